//! Medians with their spread.

use serde::{Deserialize, Serialize};

/// What a value is, of several rounds: the median, and the quartiles around it.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Estimate {
    pub(crate) median: f64,
    /// A quarter of the rounds lies below.
    pub(crate) low: f64,
    /// A quarter of the rounds lies above.
    pub(crate) high: f64,
}

impl Estimate {
    /// Of the values of all rounds; nothing of none.
    pub(crate) fn of(values: &[f64]) -> Option<Estimate> {
        if values.is_empty() {
            return None;
        }
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Estimate {
            median: at(&sorted, 0.5),
            low: at(&sorted, 0.25),
            high: at(&sorted, 0.75),
        })
    }

    /// Of a value that was found once.
    pub(crate) fn exactly(value: f64) -> Estimate {
        Estimate {
            median: value,
            low: value,
            high: value,
        }
    }

    /// Distance between the quartiles, relative to the median.
    pub(crate) fn spread(&self) -> f64 {
        (self.high - self.low) / self.median.abs().max(f64::MIN_POSITIVE)
    }
}

/// The value below which the part `q` of the sorted values lies, between two of them
/// where it falls between two.
fn at(sorted: &[f64], q: f64) -> f64 {
    let place = (sorted.len() - 1) as f64 * q;
    let (below, above) = (
        sorted[place.floor() as usize],
        sorted[place.ceil() as usize],
    );
    below + (above - below) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_counts() {
        let median = |values: &[f64]| Estimate::of(values).map(|e| e.median);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn one_wild_round_does_not_widen_the_quartiles() {
        let calm = Estimate::of(&[10.0, 11.0, 12.0, 13.0, 14.0]).unwrap();
        let wild = Estimate::of(&[10.0, 11.0, 12.0, 13.0, 9000.0]).unwrap();
        assert_eq!(calm, wild);
        assert_eq!((calm.low, calm.high), (11.0, 13.0));
        assert!(calm.spread() > 0.16 && calm.spread() < 0.17);
    }
}
