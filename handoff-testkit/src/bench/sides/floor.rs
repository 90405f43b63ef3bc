//! The bare floor: start the new process, drain and seal the old one, hand the lock over, be ready, let the old one go. No
//! lease, no journal, no version, no deadline, no heartbeat, no way back: whoever dies takes the service along.
//!
//! ```text
//! supervisor   spawn N ◀─h─ N   ─d─▶ O   ◀─s─ O   ─b─▶ N   ◀─r─ N   ─c─▶ O
//! ```

use std::net::TcpListener;
use std::time::Instant;

use super::plain::{Inherited, PlainChild, PlainLock};
use super::{Answer, AnyError, EPOCH, Greeting, PATIENCE};

pub(in crate::bench) const SUPERVISOR: &str = "bench-floor-supervisor";
pub(in crate::bench) const DAEMON: &str = "bench-floor-daemon";

/// The supervisor's `main`.
pub(in crate::bench) fn supervise() -> Result<(), AnyError> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut current = PlainChild::spawn(DAEMON, &listener)?;
    current.hear(b'h')?;
    current.tell(b'b')?;
    current.hear(b'r')?;
    let greeting = Greeting { address: listener.local_addr()?, pid: current.process.id() };
    let mut leaving: Option<PlainChild> = None;
    let ended = super::obey(&greeting, || {
        // Gone since the order before this one.
        if let Some(mut old) = leaving.take() {
            old.process.wait()?;
        }
        let (old, answer) = hand_over(&listener, &mut current)?;
        leaving = Some(old);
        Ok(answer)
    });
    current.process.kill()?;
    current.process.wait()?;
    ended
}

fn hand_over(listener: &TcpListener, current: &mut PlainChild) -> Result<(PlainChild, Answer), AnyError> {
    let start = Instant::now();
    let successor = PlainChild::spawn(DAEMON, listener)?;
    successor.hear(b'h')?;
    let warm = Instant::now();
    current.tell(b'd')?;
    current.hear(b's')?;
    let sealed = Instant::now();
    successor.tell(b'b')?;
    successor.hear(b'r')?;
    let ready = Instant::now();
    current.tell(b'c')?;
    let end = Instant::now();
    let old = std::mem::replace(current, successor);
    let phases = [
        ("start", super::us(warm - start)),
        ("seal", super::us(sealed - warm)),
        ("begin", super::us(ready - sealed)),
        ("after", super::us(end - ready)),
    ];
    let answer = Answer { pid: current.process.id(), perform: super::us(end - start), phases: super::named(&phases) };
    Ok((old, answer))
}

/// The daemon's `main`.
pub(in crate::bench) fn serve() -> Result<(), AnyError> {
    let inherited = Inherited::take()?;
    let daemon = super::warm_daemon()?;
    inherited.tell(b'h')?;
    inherited.hear(b'b')?;
    let lock = PlainLock::take()?;
    daemon.open(EPOCH)?;
    daemon.listen(vec![inherited.listener.try_clone()?])?;
    inherited.tell(b'r')?;
    inherited.hear(b'd')?;
    super::drain(&daemon, Instant::now() + PATIENCE)?;
    super::seal(&daemon)?;
    lock.release()?;
    inherited.tell(b's')?;
    inherited.hear(b'c')?;
    daemon.leave(PATIENCE);
    Ok(())
}
