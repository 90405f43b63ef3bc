//! Everything that a store holds, copied into memory: to compare a store with a replay of its log, and to look into one from
//! outside. A store that serves never makes one.

use std::collections::BTreeMap;

use super::batch::Row;
use super::co_engagement::Neighbours;
use super::cohorts::Cohort;
use super::collections::Members;
use super::error::Result;
use super::ledger::Signal;
use super::tables::Tables;

/// The whole state; equal for two stores that hold the same writes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct State {
    /// The ledger.
    pub signals: BTreeMap<String, Signal>,
    /// The cohort ledger.
    pub cohorts: BTreeMap<String, Cohort>,
    /// The collection index.
    pub collections: BTreeMap<String, Members>,
    /// The co-engagement index.
    pub neighbours: BTreeMap<String, Neighbours>,
}

impl State {
    /// How often `key` was incremented.
    pub fn get(&self, key: &str) -> u64 {
        self.signals.get(key).map_or(0, |signal| signal.count)
    }

    /// # Errors
    /// The engine fails.
    pub(crate) fn of(tables: &Tables) -> Result<Self> {
        let changes = tables.changes();
        Ok(Self {
            signals: whole(tables, changes.signals)?,
            cohorts: whole(tables, changes.cohorts)?,
            collections: whole(tables, changes.members)?,
            neighbours: whole(tables, changes.neighbours)?,
        })
    }
}

/// The engine's rows of one table with the changes over them.
fn whole<V: Row>(tables: &Tables, changes: super::batch::Rows<V>) -> Result<BTreeMap<String, V>> {
    let mut all = tables.engine().all::<V>()?;
    for (key, row) in changes {
        let key = String::from(key);
        let older = if V::IS_WHOLE { None } else { all.remove(&key) };
        all.insert(key, older.map_or_else(|| row.clone(), |older| row.clone().over(older)));
    }
    Ok(all)
}
