//! The in-process crash injector: a panic at a named point of the write path, once, on a chosen crossing.
//!
//! The slot that holds the injector belongs to the thread, so what is to crash must run on the thread that installed it:
//! the [reference store](crate::store)'s write path runs on its caller's thread for that reason. A crash here is a panic that
//! unwinds: it shows what is left half done in memory and in the file, never what a power loss leaves. For a process that
//! vanishes there is [`ProcessCrash`](crate::crash::ProcessCrash).

use std::any::Any;
use std::borrow::Borrow;
use std::cell::RefCell;
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The points of the reference store's write path. A daemon brings an enum of its own: [`CrashInjector`] takes any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CrashPoint {
    /// After the WAL append returned, before the ledger's hot tier.
    WalPreAggregate,
    /// After the hot tier, before the caller gets its reply.
    WalPostAggregate,
    /// Before the checkpoint's batch is committed to the engine.
    CheckpointPreFlush,
    /// After that commit, before the WAL's checkpoint marker.
    CheckpointPostFlush,
    /// Between two decay scores of one signal.
    SignalAggregationUpdate,
    /// In the cohort ledger, after the hot, before the warm tier.
    CohortLedgerUpdate,
    /// After the engine's put, before the in-memory bitmap.
    CollectionIndexUpdate,
    /// After the edges were inserted, before the eviction.
    CoEngagementUpdate,
}

impl CrashPoint {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::WalPreAggregate,
        Self::WalPostAggregate,
        Self::CheckpointPreFlush,
        Self::CheckpointPostFlush,
        Self::SignalAggregationUpdate,
        Self::CohortLedgerUpdate,
        Self::CollectionIndexUpdate,
        Self::CoEngagementUpdate,
    ];

    /// Its name in `HANDOFF_CRASH_AT`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::WalPreAggregate => "store-wal-pre-aggregate",
            Self::WalPostAggregate => "store-wal-post-aggregate",
            Self::CheckpointPreFlush => "store-checkpoint-pre-flush",
            Self::CheckpointPostFlush => "store-checkpoint-post-flush",
            Self::SignalAggregationUpdate => "store-signal-aggregation-update",
            Self::CohortLedgerUpdate => "store-cohort-ledger-update",
            Self::CollectionIndexUpdate => "store-collection-index-update",
            Self::CoEngagementUpdate => "store-co-engagement-update",
        }
    }
}

/// Panics once, at one point, on one crossing of it. May be shared between threads.
///
/// ```
/// use handoff_testkit::{CrashInjector, CrashPoint, check_crash_point, run_with_crash};
///
/// let injector = CrashInjector::new(CrashPoint::WalPreAggregate, 1); // lets one crossing pass
/// let crashed = run_with_crash(&injector, || {
///     check_crash_point(CrashPoint::WalPreAggregate);
///     check_crash_point(CrashPoint::WalPreAggregate); // panics here
/// });
/// assert_eq!(crashed, Err(CrashPoint::WalPreAggregate));
/// ```
#[derive(Debug)]
pub struct CrashInjector<P = CrashPoint> {
    target: P,
    fire_after_n: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    armed: bool,
    fired: bool,
    crossings: u64,
}

impl<P: Copy + Eq + Debug + Send + Sync + 'static> CrashInjector<P> {
    /// An armed injector that lets `fire_after_n` crossings of `target` pass and panics on the next one.
    pub fn new(target: P, fire_after_n: u64) -> Arc<Self> {
        let state = Mutex::new(State { armed: true, fired: false, crossings: 0 });
        Arc::new(Self { target, fire_after_n, state })
    }

    /// Where it fires.
    pub fn target(&self) -> P {
        self.target
    }

    /// Counts and fires again after a [`disarm`](Self::disarm). One that has fired stays spent.
    pub fn arm(&self) {
        self.state().armed = true;
    }

    /// Neither counts nor fires until it is armed; what it has counted stays.
    pub fn disarm(&self) {
        self.state().armed = false;
    }

    /// Whether it has panicked.
    pub fn has_fired(&self) -> bool {
        self.state().fired
    }

    /// How often its target was crossed while it was armed, the crossing on which it fired included.
    pub fn crossing_count(&self) -> u64 {
        self.state().crossings
    }

    /// To be called where `point` is crossed.
    ///
    /// # Panics
    /// On purpose, once, naming the point and the crossings: when `point` is the target and this is the chosen crossing.
    pub fn maybe_crash(&self, point: P) {
        if let Some(crossings) = self.crossing_that_fires(point) {
            panic!("injected crash at {point:?} on crossing {crossings}");
        }
    }

    /// Counts this crossing; says how many there were when it is the one to fire on. The lock is gone before the panic.
    fn crossing_that_fires(&self, point: P) -> Option<u64> {
        let mut state = self.state();
        if point != self.target || !state.armed || state.fired {
            return None;
        }
        let before = state.crossings;
        state.crossings += 1;
        state.fired = before >= self.fire_after_n;
        state.fired.then_some(state.crossings)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

thread_local! {
    /// The `Arc<CrashInjector<P>>` of whatever `P` was installed last on this thread.
    static SLOT: RefCell<Option<Box<dyn Any>>> = const { RefCell::new(None) };
}

/// Puts `injector`, an `Arc` or a reference to one, into this thread's slot, in place of any other.
pub fn install_injector<P: Copy + Eq + Debug + Send + Sync + 'static>(injector: impl Borrow<Arc<CrashInjector<P>>>) {
    let injector: Box<dyn Any> = Box::new(Arc::clone(injector.borrow()));
    SLOT.with(|slot| slot.replace(Some(injector)));
}

/// Empties this thread's slot.
pub fn clear_injector() {
    SLOT.with(|slot| slot.replace(None));
}

/// To be called where `point` is crossed: asks the injector of this thread, if there is one for points of this type.
///
/// # Panics
/// On purpose, as [`CrashInjector::maybe_crash`] does.
pub fn check_crash_point<P: Copy + Eq + Debug + Send + Sync + 'static>(point: P) {
    let installed = SLOT.with(|slot| slot.borrow().as_ref()?.downcast_ref::<Arc<CrashInjector<P>>>().cloned());
    if let Some(injector) = installed {
        injector.maybe_crash(point);
    }
}

/// Runs `f` on this thread with `injector` in the slot, which is empty afterwards, however `f` ended.
///
/// # Errors
/// The injector's target, when the injector fired in this run.
///
/// # Panics
/// When `f` panicked and the injector was not the reason: that panic goes on.
pub fn run_with_crash<P, T>(injector: &Arc<CrashInjector<P>>, f: impl FnOnce() -> T) -> Result<T, P>
where
    P: Copy + Eq + Debug + Send + Sync + 'static,
{
    let spent = injector.has_fired();
    install_injector(injector);
    let outcome = catch_unwind(AssertUnwindSafe(f));
    clear_injector();
    if injector.has_fired() && !spent {
        return Err(injector.target);
    }
    outcome.or_else(|panic| resume_unwind(panic))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    const POINT: CrashPoint = CrashPoint::WalPreAggregate;
    const OTHER: CrashPoint = CrashPoint::WalPostAggregate;

    /// Whether crossing `point` panicked.
    fn crashes(injector: &Arc<CrashInjector>, point: CrashPoint) -> bool {
        catch_unwind(AssertUnwindSafe(|| injector.maybe_crash(point))).is_err()
    }

    #[test]
    fn fires_at_threshold() {
        let injector = CrashInjector::new(POINT, 2);
        assert!(!crashes(&injector, POINT));
        assert!(!crashes(&injector, POINT));
        assert!(!injector.has_fired());
        assert!(crashes(&injector, POINT));
        assert!(injector.has_fired());
        assert_eq!(injector.crossing_count(), 3);
    }

    #[test]
    fn fires_on_the_first_crossing_at_threshold_zero() {
        let injector = CrashInjector::new(POINT, 0);
        assert!(crashes(&injector, POINT));
        assert_eq!(injector.crossing_count(), 1);
    }

    #[test]
    fn ignores_wrong_point() {
        let injector = CrashInjector::new(POINT, 0);
        assert!(!crashes(&injector, OTHER));
        assert!(!injector.has_fired());
        assert_eq!(injector.crossing_count(), 0);
    }

    #[test]
    fn one_shot() {
        let injector = CrashInjector::new(POINT, 0);
        assert!(crashes(&injector, POINT));
        assert!(!crashes(&injector, POINT));
        injector.arm();
        assert!(!crashes(&injector, POINT));
        assert_eq!(injector.crossing_count(), 1, "a spent injector counts no more");
    }

    #[test]
    fn disarm_prevents() {
        let injector = CrashInjector::new(POINT, 1);
        assert!(!crashes(&injector, POINT));
        injector.disarm();
        assert!(!crashes(&injector, POINT));
        assert_eq!(injector.crossing_count(), 1, "disarmed, it does not count, and it keeps what it has counted");
        injector.arm();
        assert!(crashes(&injector, POINT));
    }

    #[test]
    fn run_returns_ok() {
        let injector = CrashInjector::new(POINT, 1);
        let outcome = run_with_crash(&injector, || {
            check_crash_point(POINT);
            7
        });
        assert_eq!(outcome, Ok(7));
        check_crash_point(POINT); // would be the second crossing, if the slot were not empty
        assert_eq!(injector.crossing_count(), 1);
    }

    #[test]
    fn run_returns_err() {
        let injector = CrashInjector::new(POINT, 0);
        assert_eq!(run_with_crash(&injector, || check_crash_point(POINT)), Err(POINT));
        check_crash_point(POINT);
        assert_eq!(run_with_crash(&injector, || 7), Ok(7), "spent in an earlier run is not fired in this one");
    }

    #[test]
    fn run_tells_of_a_crash_that_was_swallowed() {
        let injector = CrashInjector::new(POINT, 0);
        let outcome = run_with_crash(&injector, || catch_unwind(|| check_crash_point(POINT)).is_err());
        assert_eq!(outcome, Err(POINT));
    }

    #[test]
    fn foreign_panic_goes_on() {
        let injector = CrashInjector::new(POINT, 0);
        let caught = catch_unwind(AssertUnwindSafe(|| run_with_crash(&injector, || panic!("mine"))));
        let panic = caught.expect_err("the panic goes on");
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"mine"));
        check_crash_point(POINT);
        assert!(!injector.has_fired(), "the slot is empty after a foreign panic too");
    }

    #[test]
    fn the_panic_names_point_and_crossings() {
        let injector = CrashInjector::new(POINT, 1);
        injector.maybe_crash(POINT);
        let panic = catch_unwind(AssertUnwindSafe(|| injector.maybe_crash(POINT))).expect_err("it fires");
        let text = panic.downcast_ref::<String>().expect("a formatted message");
        assert!(text.contains("WalPreAggregate") && text.contains('2'), "{text}");
    }

    #[test]
    fn points_of_another_type_are_ignored() {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        enum Mine {
            Here,
        }
        let injector = CrashInjector::new(Mine::Here, 0);
        let outcome = run_with_crash(&injector, || check_crash_point(POINT));
        assert_eq!(outcome, Ok(()));
        assert_eq!(run_with_crash(&injector, || check_crash_point(Mine::Here)), Err(Mine::Here));
    }

    #[test]
    fn the_slot_belongs_to_the_thread() {
        let injector = CrashInjector::new(POINT, 0);
        let outcome = run_with_crash(&injector, || {
            thread::scope(|scope| scope.spawn(|| check_crash_point(POINT)).join().is_ok())
        });
        assert_eq!(outcome, Ok(true));
    }

    #[test]
    fn installed_last_wins_and_clear_empties() {
        let (first, second) = (CrashInjector::new(POINT, 0), CrashInjector::new(OTHER, 0));
        install_injector(&first);
        install_injector(&second);
        check_crash_point(POINT);
        assert_eq!(first.crossing_count(), 0);
        clear_injector();
        check_crash_point(OTHER);
        assert_eq!(second.crossing_count(), 0);
    }

    #[test]
    fn many_threads_fire_once() {
        let injector = CrashInjector::new(POINT, 50);
        let fired: usize = thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(|| (0..100).filter(|_| crashes(&injector, POINT)).count())).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic escapes")).sum()
        });
        assert_eq!(fired, 1);
        assert_eq!(injector.crossing_count(), 51);
    }
}
