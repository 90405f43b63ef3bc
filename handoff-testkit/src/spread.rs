//! A distribution of times in a few figures.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

/// How times are spread; in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Spread {
    /// Of how many samples.
    pub n: usize,
    /// The median.
    pub p50: f64,
    /// The 99th percentile. Of fewer than a hundred samples it is the longest.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

impl Spread {
    /// Of these samples.
    pub fn of(samples: &[Duration]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_unstable();
        let at = |quantile: f64| {
            let rank = (sorted.len() as f64 * quantile).ceil() as usize;
            sorted.get(rank.saturating_sub(1)).map_or(0.0, |sample| sample.as_secs_f64() * 1e3)
        };
        Self { n: sorted.len(), p50: at(0.5), p99: at(0.99), max: at(1.0) }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms of {}", self.p50, self.p99, self.max, self.n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_samples_by_their_rank() {
        let ms = |ms: &[u64]| Spread::of(&ms.iter().copied().map(Duration::from_millis).collect::<Vec<_>>());
        assert_eq!(ms(&[]), Spread::default());
        assert_eq!(ms(&[3, 1, 2]), Spread { n: 3, p50: 2.0, p99: 3.0, max: 3.0 });
        let hundred: Vec<u64> = (1..=200).collect();
        assert_eq!(ms(&hundred), Spread { n: 200, p50: 100.0, p99: 198.0, max: 200.0 });
    }
}
