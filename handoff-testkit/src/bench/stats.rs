//! Medians, their spread, and ratios with their uncertainty. Pure.

use std::cmp::Ordering;

use serde::Serialize;

/// How often the rounds are drawn again for a ratio's interval.
const RESAMPLES: usize = 2_000;
/// The same samples always give the same interval.
const SEED: u64 = 0x6861_6e64_6f66_6621;

/// Samples in a few figures, in the samples' unit.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub(super) struct Summary {
    /// How many samples.
    pub n: usize,
    /// The smallest.
    pub min: f64,
    /// A tenth is below it.
    pub p10: f64,
    /// The median.
    pub p50: f64,
    /// A tenth is above it.
    pub p90: f64,
    /// The largest.
    pub max: f64,
}

impl Summary {
    /// Of these samples; all zero when there are none.
    pub(super) fn of(samples: &[f64]) -> Self {
        let sorted = sorted(samples);
        let at = |quantile| quantile_of(&sorted, quantile);
        Self { n: sorted.len(), min: at(0.0), p10: at(0.1), p50: at(0.5), p90: at(0.9), max: at(1.0) }
    }
}

/// A ratio of two medians, and where it lies with 95 % certainty.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Ratio {
    /// Median over median.
    pub ratio: f64,
    /// The interval's lower end.
    pub low: f64,
    /// The interval's upper end.
    pub high: f64,
}

impl Ratio {
    /// Of paired samples: what stands at the same place was measured in the same round, and is drawn together. `None` when
    /// there is nothing to divide by.
    pub(super) fn of(ours: &[f64], theirs: &[f64]) -> Option<Self> {
        let rounds = ours.len().min(theirs.len());
        let ratio = median(&ours[..rounds]) / median(&theirs[..rounds]);
        if rounds == 0 || !ratio.is_finite() {
            return None;
        }
        let mut random = fastrand::Rng::with_seed(SEED);
        let mut drawn: Vec<f64> = (0..RESAMPLES)
            .map(|_| {
                let (mut above, mut below) = (Vec::with_capacity(rounds), Vec::with_capacity(rounds));
                for _ in 0..rounds {
                    let round = random.usize(..rounds);
                    above.push(ours[round]);
                    below.push(theirs[round]);
                }
                median(&above) / median(&below)
            })
            .filter(|ratio| ratio.is_finite())
            .collect();
        drawn.sort_unstable_by(total);
        Some(Self { ratio, low: quantile_of(&drawn, 0.025), high: quantile_of(&drawn, 0.975) })
    }
}

fn median(samples: &[f64]) -> f64 {
    quantile_of(&sorted(samples), 0.5)
}

fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable_by(total);
    sorted
}

fn total(a: &f64, b: &f64) -> Ordering {
    a.total_cmp(b)
}

/// Between two samples it is in between.
fn quantile_of(sorted: &[f64], quantile: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let place = last as f64 * quantile;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_of_the_sorted_samples() {
        let summary = Summary::of(&[5.0, 1.0, 3.0, 2.0, 4.0]);
        assert_eq!((summary.n, summary.min, summary.p50, summary.max), (5, 1.0, 3.0, 5.0));
        assert!((summary.p10 - 1.4).abs() < 1e-9 && (summary.p90 - 4.6).abs() < 1e-9);
        assert_eq!(Summary::of(&[1.0, 2.0]).p50, 1.5);
        assert_eq!(Summary::of(&[]), Summary::default());
    }

    #[test]
    fn one_outlier_moves_no_median() {
        let mut samples = vec![10.0; 49];
        samples.push(1e9);
        assert_eq!(Summary::of(&samples).p50, 10.0);
    }

    #[test]
    fn a_ratio_lies_in_its_interval_and_repeats() {
        let ours: Vec<f64> = (0..50).map(|n| 100.0 + f64::from(n % 7)).collect();
        let theirs: Vec<f64> = (0..50).map(|n| 200.0 + f64::from(n % 11)).collect();
        let ratio = Ratio::of(&ours, &theirs).expect("a ratio");
        assert!(ratio.low <= ratio.ratio && ratio.ratio <= ratio.high, "{ratio:?}");
        assert!((0.49..0.51).contains(&ratio.ratio) && ratio.high - ratio.low < 0.02, "{ratio:?}");
        assert_eq!(Ratio::of(&ours, &theirs), Some(ratio));
    }

    #[test]
    fn equal_samples_have_a_ratio_without_doubt() {
        let ratio = Ratio::of(&[4.0; 10], &[2.0; 10]).expect("a ratio");
        assert_eq!((ratio.ratio, ratio.low, ratio.high), (2.0, 2.0, 2.0));
    }

    #[test]
    fn nothing_to_divide_by_is_no_ratio() {
        assert_eq!(Ratio::of(&[], &[]), None);
        assert_eq!(Ratio::of(&[1.0], &[0.0]), None);
    }
}
