//! Figures of the histograms: how long exits take, to a power of two.

use super::{Histogram, Profile};

/// How many places a histogram has at most; the last has whatever is longer, too.
pub const PLACES: usize = 32;

/// A histogram's place: durations of 2^place up to 2^(place + 1) nanoseconds. Place 0 also has the
/// shorter ones.
pub type Place = usize;

impl Histogram {
    /// All exits in it.
    pub fn count(&self) -> u128 {
        self.buckets.iter().map(|&b| u128::from(b)).sum()
    }

    /// Where the exit lies that so many percent of all are not longer than (1–100); `None` if
    /// there is no exit.
    pub fn percentile(&self, percent: u32) -> Option<Place> {
        // The nearest rank: the smallest that at least so many are not longer than.
        let rank = (self.count() * u128::from(percent)).div_ceil(100).max(1);
        let mut reached = 0;
        self.buckets.iter().position(|&b| {
            reached += u128::from(b);
            reached >= rank
        })
    }

    /// The first and the last place that has any exit.
    fn ends(&self) -> Option<(Place, Place)> {
        let first = self.buckets.iter().position(|&b| b > 0)?;
        let last = self.buckets.iter().rposition(|&b| b > 0)?;
        Some((first, last))
    }
}

impl Profile {
    /// The histogram of a reason, if there is one that is not empty.
    pub fn histogram(&self, reason: u8) -> Option<&Histogram> {
        let of = self.histograms.iter().find(|h| h.reason == reason);
        of.filter(|h| h.count() > 0)
    }

    /// The first and the last place that any histogram has exits in: one scale for all of them.
    pub fn scale(&self) -> Option<(Place, Place)> {
        let ends = self.histograms.iter().filter_map(Histogram::ends);
        ends.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::fixtures;

    fn histogram(buckets: &[u64]) -> Histogram {
        Histogram {
            reason: 10,
            buckets: buckets.to_vec(),
        }
    }

    #[test]
    fn percentiles_are_places() {
        let all = histogram(&[0, 0, 50, 49, 0, 1]);
        assert_eq!(all.percentile(50), Some(2));
        assert_eq!(all.percentile(51), Some(3));
        assert_eq!(all.percentile(99), Some(3));
        assert_eq!(all.percentile(100), Some(5));
        assert_eq!(histogram(&[0, 1]).percentile(50), Some(1));
        assert_eq!(histogram(&[0, 0]).percentile(50), None);
        assert_eq!(histogram(&[]).percentile(99), None);
        assert_eq!(histogram(&[u64::MAX; 32]).percentile(99), Some(31));
    }

    #[test]
    fn one_scale_for_all() {
        let mut profile = fixtures::zero();
        assert_eq!(profile.scale(), None);
        profile.histograms = vec![histogram(&[0, 0, 1]), histogram(&[0, 2, 0, 7, 0])];
        assert_eq!(profile.scale(), Some((1, 3)));
        assert!(profile.histogram(10).is_some() && profile.histogram(11).is_none());
    }
}
