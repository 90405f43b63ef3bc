//! The store's whole state, in layers: the batch of what changed, the batch that a checkpoint is writing just now, the engine.
//! A read takes the first layer that knows the row.
//!
//! ```text
//! hot ──freeze: a checkpoint begins──▶ frozen ──committed: settle──▶ (the engine)
//!  ▲                                     │
//!  └──────── it failed: thaw ────────────┘
//! ```
//!
//! Invariants:
//!
//! - The state is a pure function of the writes in log order, whatever lies in which layer.
//! - [`Tables::apply`] can't fail: what it changes was loaded before the write went to the log.
//! - In memory are the rows that changed since the last checkpoint, and bitmaps; never the whole store.

use std::sync::Arc;

use super::batch::{Batch, Row};
use super::co_engagement::{self, Neighbours};
use super::cohorts::{Cohort, cohort_of};
use super::collections::{self, Bitmaps, Members};
use super::engine::Engine;
use super::error::Result;
use super::ledger::{Event, Signal};
use super::record::{Write, u64_at};

#[derive(Debug)]
pub(crate) struct Tables {
    hot: Batch,
    frozen: Option<Arc<Batch>>,
    engine: Arc<Engine>,
    bitmaps: Bitmaps,
    /// How many signals there are in all layers.
    signals: u64,
}

impl Tables {
    /// What the engine's checkpoint holds.
    pub(crate) fn over(engine: Arc<Engine>) -> Self {
        let signals = engine.checkpoint().signals;
        Self { hot: Batch::default(), frozen: None, engine, bitmaps: Bitmaps::default(), signals }
    }

    /// The same with the changes of a [`snapshot`](Self::encode_snapshot); `None` when that can't be read.
    pub(crate) fn from_snapshot(engine: Arc<Engine>, snapshot: &[u8]) -> Option<Self> {
        let hot = Batch::decode(snapshot.get(8..)?)?;
        Some(Self { hot, signals: u64_at(snapshot, 0)?, ..Self::over(engine) })
    }

    /// Appends the changes since the checkpoint to `out`. No checkpoint may be under way.
    pub(crate) fn encode_snapshot(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.signals.to_le_bytes());
        self.hot.encode(out);
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// How many signals there are.
    pub(crate) fn signals(&self) -> u64 {
        self.signals
    }

    /// How many rows changed since the last checkpoint.
    pub(crate) fn hot_rows(&self) -> usize {
        self.hot.len()
    }

    /// The row of `key`, if there is one.
    ///
    /// # Errors
    /// The engine fails.
    pub(crate) fn get<V: Row>(&self, key: &str) -> Result<Option<V>> {
        match V::rows(&self.hot).get(key) {
            Some(hot) if V::IS_WHOLE => Ok(Some(hot.clone())),
            Some(hot) => Ok(Some(hot.clone().over(self.below(key)?.unwrap_or_default()))),
            None => self.below(key),
        }
    }

    /// What the layers below the hot one hold.
    fn below<V: Row>(&self, key: &str) -> Result<Option<V>> {
        match self.frozen.as_deref().and_then(|frozen| V::rows(frozen).get(key)) {
            Some(row) if V::IS_WHOLE => Ok(Some(row.clone())),
            Some(row) => Ok(Some(row.clone().over(self.engine.get(key)?.unwrap_or_default()))),
            None => self.engine.get(key),
        }
    }

    /// What `collection` holds; its bitmap is in memory afterwards.
    ///
    /// # Errors
    /// The engine fails.
    pub(crate) fn members(&mut self, collection: &str) -> Result<Option<&Members>> {
        if self.bitmaps.get(collection).is_none()
            && let Some(members) = self.get::<Members>(collection)?
        {
            self.bitmaps.keep(collection, members);
        }
        Ok(self.bitmaps.get(collection))
    }

    /// Brings everything that `write` changes into the hot layer, so that [`apply`](Self::apply) can't fail.
    ///
    /// # Errors
    /// The engine fails.
    pub(crate) fn load(&mut self, write: Write<'_>) -> Result<()> {
        match write {
            Write::Increment { key, .. } => {
                self.warm::<Signal>(key)?;
                self.warm::<Cohort>(cohort_of(key))
            }
            Write::Add { collection, .. } => {
                if self.members(collection)?.is_none() {
                    self.bitmaps.keep(collection, Members::default());
                }
                Ok(())
            }
            Write::Engage { a, b } => {
                self.warm::<Neighbours>(a)?;
                self.warm::<Neighbours>(b)
            }
        }
    }

    fn warm<V: Row>(&mut self, key: &str) -> Result<()> {
        if !V::rows(&self.hot).contains_key(key)
            && let Some(row) = self.below::<V>(key)?
        {
            V::rows_mut(&mut self.hot).insert(key.into(), row);
        }
        Ok(())
    }

    /// Makes the change; returns the key's count, 1 if the item is new in the collection, or the edge's weight.
    pub(crate) fn apply(&mut self, write: Write<'_>, event: Event) -> u64 {
        match write {
            Write::Increment { key, .. } => {
                let count = self.count(key, event);
                change(&mut self.hot, cohort_of(key), |cohort: &mut Cohort| cohort.apply(event));
                count
            }
            Write::Add { collection, item } => {
                u64::from(collections::add(&mut self.hot, &mut self.bitmaps, collection, item))
            }
            Write::Engage { a, b } => co_engagement::engage(&mut self.hot, a, b, event.sequence),
        }
    }

    fn count(&mut self, key: &str, event: Event) -> u64 {
        let count = change(&mut self.hot, key, |signal: &mut Signal| {
            signal.apply(event);
            signal.count
        });
        self.signals += u64::from(count == 1);
        count
    }

    /// Sets the changes apart for a checkpoint, which [`settle`](Self::settle) or [`thaw`](Self::thaw) must follow.
    pub(crate) fn freeze(&mut self) -> Arc<Batch> {
        let batch = Arc::new(std::mem::take(&mut self.hot));
        self.frozen = Some(Arc::clone(&batch));
        batch
    }

    /// The engine holds what was frozen.
    pub(crate) fn settle(&mut self) {
        self.frozen = None;
    }

    /// The engine may not hold it: it is changes again.
    pub(crate) fn thaw(&mut self) {
        if let Some(frozen) = self.frozen.take() {
            self.hot = std::mem::take(&mut self.hot).over(Arc::unwrap_or_clone(frozen));
        }
    }

    /// The changes, for [`State`](super::state::State), which wants everything.
    pub(crate) fn changes(&self) -> Batch {
        let frozen = self.frozen.as_deref().cloned().unwrap_or_default();
        self.hot.clone().over(frozen)
    }
}

/// Changes the row of `key` in the batch, a new one if there is none; without a copy of the key when it is there.
fn change<V: Row, R>(batch: &mut Batch, key: &str, change: impl FnOnce(&mut V) -> R) -> R {
    let rows = V::rows_mut(batch);
    if let Some(row) = rows.get_mut(key) {
        return change(row);
    }
    let mut row = V::default();
    let result = change(&mut row);
    rows.insert(key.into(), row);
    result
}
