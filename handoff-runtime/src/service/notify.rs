//! Tells a service manager how we are (sd_notify(3)): one datagram, nothing when nobody asked, and never waited for.

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use crate::events::debug;

/// What can be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// A daemon serves.
    Ready,
    /// We are told to stop.
    Stopping,
}

/// Says it to the manager that `NOTIFY_SOCKET` names, if it names one.
pub(super) fn notify(state: State) {
    if let Some(address) = env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty())
        && let Err(error) = send(&address, state)
    {
        debug!(%error, ?state, "the service manager can't be told");
    }
}

fn send(address: &OsString, state: State) -> io::Result<()> {
    let text = match state {
        State::Ready => "READY=1\n",
        State::Stopping => "STOPPING=1\n",
    };
    let address = match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(address)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(text.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_is_told_at_a_path_and_at_an_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("handoff-{}", std::process::id());
        let manager = UnixDatagram::bind(&path).unwrap();
        let abstract_one = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        send(&path.into_os_string(), State::Ready).unwrap();
        send(&format!("@{name}").into(), State::Stopping).unwrap();
        let mut text = [0; 64];
        let count = manager.recv(&mut text).unwrap();
        assert_eq!(&text[..count], b"READY=1\n");
        let count = abstract_one.recv(&mut text).unwrap();
        assert_eq!(&text[..count], b"STOPPING=1\n");
        assert!(send(&"/nowhere/at/all".into(), State::Ready).is_err());
    }
}
