//! The protocol's intervals that a role begins with: the real ones, or with the feature `crash-points` those of
//! `HANDOFF_TIMING`, so that every process of a test has the same without a change to the daemon under test.

use handoff_proto::Timing;

/// What `Timing::default()` says: the feature `crash-points` is off.
#[cfg(not(feature = "crash-points"))]
pub(crate) fn initial() -> Timing {
    Timing::default()
}

#[cfg(feature = "crash-points")]
pub(crate) use armed::initial;
#[cfg(feature = "crash-points")]
pub use armed::variable;

#[cfg(feature = "crash-points")]
mod armed {
    use std::time::Duration;

    use super::Timing;

    const VARIABLE: &str = "HANDOFF_TIMING";

    /// The intervals of `HANDOFF_TIMING`; what it does not name is as ever.
    pub(crate) fn initial() -> Timing {
        let mut timing = Timing::default();
        for entry in std::env::var(VARIABLE).unwrap_or_default().split(',').filter(|entry| !entry.is_empty()) {
            let set = entry.split_once('=').and_then(|(name, ms)| {
                *field(&mut timing, name)? = Duration::from_millis(ms.parse().ok()?);
                Some(())
            });
            if set.is_none() {
                eprintln!("{VARIABLE}: {entry} is no interval in milliseconds");
            }
        }
        timing
    }

    /// The variable, and its value, that give these intervals to a process and to all that it starts. For tests: only a
    /// build with the feature `crash-points` reads it.
    pub fn variable(timing: &Timing) -> (&'static str, String) {
        let mut timing = *timing;
        let entries = NAMES.map(|name| {
            let ms = field(&mut timing, name).map_or(0, |interval| interval.as_millis());
            format!("{name}={ms}")
        });
        (VARIABLE, entries.join(","))
    }

    const NAMES: [&str; 11] = [
        "heartbeat",
        "liveness",
        "hello",
        "successor_slack",
        "limbo_slack",
        "closed_grace",
        "limbo_poll",
        "deadline_max",
        "settle",
        "promotion",
        "parting",
    ];

    fn field<'a>(timing: &'a mut Timing, name: &str) -> Option<&'a mut Duration> {
        // All fields by name: a new one does not compile before it stands here.
        let Timing {
            heartbeat,
            liveness,
            hello,
            successor_slack,
            limbo_slack,
            closed_grace,
            limbo_poll,
            deadline_max,
            settle,
            promotion,
            parting,
        } = timing;
        let fields = [
            heartbeat,
            liveness,
            hello,
            successor_slack,
            limbo_slack,
            closed_grace,
            limbo_poll,
            deadline_max,
            settle,
            promotion,
            parting,
        ];
        NAMES.into_iter().zip(fields).find(|(known, _)| *known == name).map(|(_, field)| field)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn every_interval_has_its_own_name() {
            let mut timing = Timing::default();
            for (ms, name) in (1..).zip(NAMES) {
                *field(&mut timing, name).unwrap() = Duration::from_millis(ms);
            }
            let text = "heartbeat=1,liveness=2,hello=3,successor_slack=4,limbo_slack=5,closed_grace=6,limbo_poll=7,\
                        deadline_max=8,settle=9,promotion=10,parting=11";
            assert_eq!(variable(&timing), ("HANDOFF_TIMING", text.to_owned()));
            assert_eq!(initial(), Timing::default(), "nobody set it here");
        }
    }
}
