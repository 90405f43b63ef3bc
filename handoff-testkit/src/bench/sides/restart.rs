//! A restart with a held listener, as socket activation does it: the old process is told to stop and drains, seals, lets its
//! clients go and exits; only then is the new one started. The listening socket stays open in the supervisor all the time.

use std::net::TcpListener;
use std::time::Instant;

use super::plain::{Inherited, PlainChild, PlainLock};
use super::{Answer, AnyError, EPOCH, Greeting, PATIENCE};

pub(in crate::bench) const SUPERVISOR: &str = "bench-restart-supervisor";
pub(in crate::bench) const DAEMON: &str = "bench-restart-daemon";

/// The supervisor's `main`.
pub(in crate::bench) fn supervise() -> Result<(), AnyError> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut current = PlainChild::spawn(DAEMON, &listener)?;
    current.hear(b'r')?;
    let greeting = Greeting { address: listener.local_addr()?, pid: current.process.id() };
    let ended = super::obey(&greeting, || {
        let start = Instant::now();
        current.tell(b'd')?;
        current.process.wait()?;
        let stopped = Instant::now();
        current = PlainChild::spawn(DAEMON, &listener)?;
        current.hear(b'r')?;
        let end = Instant::now();
        let phases = [("stop", super::us(stopped - start)), ("start", super::us(end - stopped))];
        Ok(Answer { pid: current.process.id(), perform: super::us(end - start), phases: super::named(&phases) })
    });
    current.process.kill()?;
    current.process.wait()?;
    ended
}

/// The daemon's `main`.
pub(in crate::bench) fn serve() -> Result<(), AnyError> {
    let inherited = Inherited::take()?;
    let daemon = super::warm_daemon()?;
    let _held_until_the_exit = PlainLock::take()?;
    daemon.open(EPOCH)?;
    daemon.listen(vec![inherited.listener.try_clone()?])?;
    inherited.tell(b'r')?;
    inherited.hear(b'd')?;
    super::drain(&daemon, Instant::now() + PATIENCE)?;
    super::seal(&daemon)?;
    daemon.leave(PATIENCE);
    Ok(())
}
