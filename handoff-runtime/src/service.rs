//! The long-lived supervisor: what `handoff run` is made of, for programs that want it inside.
//!
//! It owns the listening sockets, starts the daemon, watches it, starts it again when it dies, hands it over when a client
//! on the admin socket says so, and makes what it replaced leave. It never opens the daemon's data and never accepts a
//! connection on a listener.

mod address;
mod admin;
mod config;
mod error;
mod report;
mod state_dir;

pub use address::{Address, AddressError, Listen, ListenError};
pub use config::{Restart, ServiceConfig, Watchdog};
pub use error::ServiceError;
pub use report::{
    DurationText, Event, HandoverReport, HandoverStatus, IncumbentStatus, ListenerStatus, Refusal, Request,
    ServiceState, ServiceStatus, Stopped, TimingsMs, build_id_text,
};
