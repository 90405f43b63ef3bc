//! Where the write path can be crashed: by the injector of the thread that crosses a point, or, in a real process, by
//! `HANDOFF_CRASH_AT`, which [`handoff_runtime::crash`] obeys. Without the feature `crash-points` nothing is left of it.
//!
//! `HANDOFF_CRASH_AT=store-wal-pre-aggregate` crashes at the first crossing, `store-wal-pre-aggregate+3` lets three pass.

/// Crosses a point of [`CrashPoint`](crate::CrashPoint).
macro_rules! crash_point {
    ($point:ident) => {
        #[cfg(feature = "crash-points")]
        $crate::store::points::crossed($crate::crash::CrashPoint::$point)
    };
}

#[cfg(feature = "crash-points")]
pub(crate) use armed::crossed;
pub(crate) use crash_point;

#[cfg(feature = "crash-points")]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use handoff_runtime::crash::maybe_crash;

    use crate::crash::{CrashPoint, check_crash_point};

    /// What `HANDOFF_CRASH_AT` says, read once.
    struct Plan {
        text: String,
        point: CrashPoint,
        pass: u64,
        crossings: AtomicU64,
    }

    static PLAN: OnceLock<Option<Plan>> = OnceLock::new();

    pub(crate) fn crossed(point: CrashPoint) {
        check_crash_point(point);
        if let Some(plan) = PLAN.get_or_init(Plan::read)
            && plan.point == point
            && plan.crossings.fetch_add(1, Ordering::Relaxed) == plan.pass
        {
            maybe_crash(&plan.text);
        }
    }

    impl Plan {
        /// `None` when it names none of the store's points: then it is somebody else's.
        fn read() -> Option<Self> {
            let text = std::env::var("HANDOFF_CRASH_AT").ok()?;
            let (point, pass) = parse(&text)?;
            Some(Self { text, point, pass, crossings: AtomicU64::new(0) })
        }
    }

    fn parse(text: &str) -> Option<(CrashPoint, u64)> {
        let (name, pass) = text.split_once('+').unwrap_or((text, "0"));
        let point = CrashPoint::ALL.into_iter().find(|point| point.name() == name)?;
        Some((point, pass.parse().ok()?))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_plan_names_a_point_and_how_many_crossings_pass() {
            for point in CrashPoint::ALL {
                assert_eq!(parse(point.name()), Some((point, 0)));
                assert_eq!(parse(&format!("{}+3", point.name())), Some((point, 3)));
            }
            assert_eq!(parse("n-after-lock"), None, "another crate's point");
            assert_eq!(parse("store-wal-pre-aggregate+many"), None);
        }
    }
}
