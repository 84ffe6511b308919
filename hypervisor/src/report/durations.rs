//! Durations as a column: a sparkline per reason on one scale, and percentiles as ranges.

use super::format::{NONE, fit};
use crate::profile::durations::{PLACES, Place};
use crate::profile::{Histogram, Profile};

/// Widest sparkline.
const MOST: usize = 16;

/// The scale that the sparklines of a profile share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    first: Place,
    last: Place,
    /// Places per character.
    step: usize,
}

impl Scale {
    /// The scale of these histograms, within so many characters; `None` if all are empty.
    pub(super) fn of(profile: &Profile, room: usize) -> Option<Self> {
        let (first, last) = profile.scale()?;
        let span = last - first + 1;
        let step = span.div_ceil(room.clamp(1, MOST));
        Some(Self { first, last, step })
    }

    /// What a sparkline looks like: each character as high as its share of the largest; a place
    /// without any is blank. Blanks at the end are left out.
    pub(super) fn draw(self, histogram: &Histogram) -> String {
        const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
        let places = histogram.buckets.get(self.first..).unwrap_or_default();
        let sums: Vec<u128> = places
            .chunks(self.step)
            .map(|chunk| chunk.iter().map(|&b| u128::from(b)).sum())
            .collect();
        let most = sums.iter().copied().max().unwrap_or(0).max(1);
        let line = sums.iter().map(|&sum| match sum {
            0 => ' ',
            sum => HEIGHTS[((sum * 8).div_ceil(most) as usize).clamp(1, 8) - 1],
        });
        line.collect::<String>().trim_end().to_owned()
    }

    /// How long the shortest and the longest on it are: "256 ns … 64 µs".
    pub(super) fn ends(self) -> String {
        format!("{} … {}", floor(self.first), ceiling(self.last))
    }

    /// What a character of it is.
    pub(super) fn explained(self) -> String {
        let each = match self.step {
            1 => "power of two".to_owned(),
            n => format!("{n} powers of two"),
        };
        format!(
            "one character per {each} from {} to {} (1 µs: 1,024 ns), as high as its share of the \
             reason's exits",
            floor(self.first),
            ceiling(self.last)
        )
    }
}

/// The lower end of a place.
fn floor(place: Place) -> String {
    match place {
        0 => "0".to_owned(),
        _ => power(place),
    }
}

/// The upper end of a place.
fn ceiling(place: Place) -> String {
    match place + 1 {
        end if end >= PLACES => "longer".to_owned(),
        end => power(end),
    }
}

/// 2^exponent nanoseconds, in units of 1,024.
fn power(exponent: usize) -> String {
    let (size, unit) = parts(exponent);
    format!("{size} {unit}")
}

fn parts(exponent: usize) -> (u64, &'static str) {
    let unit = ["ns", "µs", "ms", "s"][(exponent / 10).min(3)];
    (1 << (exponent - 10 * (exponent / 10).min(3)), unit)
}

/// A percentile's place as a range: "1–2 µs".
pub(super) fn range(histogram: Option<&Histogram>, percent: u32) -> String {
    match histogram.and_then(|h| h.percentile(percent)) {
        None => NONE.to_owned(),
        Some(0) => "< 2 ns".to_owned(),
        Some(place) if place + 1 >= PLACES => fit(&format!("≥ {}", power(PLACES - 1)), 9),
        Some(place) => {
            let ((low, unit), (high, to)) = (parts(place), parts(place + 1));
            match unit == to {
                true => format!("{low}–{high} {to}"),
                false => format!("0.5–{high} {to}"),
            }
        }
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

    fn only(place: Place) -> Histogram {
        let mut buckets = vec![0; place];
        buckets.push(3);
        histogram(&buckets)
    }

    #[test]
    fn ranges() {
        let shown = [0, 1, 8, 9, 10, 13, 19, 29, 30, 31].map(|place| range(Some(&only(place)), 50));
        assert_eq!(
            shown.join("|"),
            "< 2 ns|2–4 ns|256–512 ns|0.5–1 µs|1–2 µs|8–16 µs|0.5–1 ms|0.5–1 s|1–2 s|≥ 2 s"
        );
        assert_eq!(range(None, 50), NONE);
        assert_eq!(range(Some(&histogram(&[0])), 99), NONE);
        // Beyond what a profile may hold, but no reason to fail.
        assert_eq!(range(Some(&only(39)), 99), "≥ 2 s");
    }

    #[test]
    fn sparklines_share_a_scale() {
        let mut profile = fixtures::zero();
        profile.histograms = vec![
            histogram(&[0, 0, 6, 8, 3, 1, 1]),
            histogram(&[0, 0, 0, 0, 1]),
        ];
        let scale = Scale::of(&profile, 16).unwrap();
        assert_eq!(scale.draw(&profile.histograms[0]), "▆█▃▁▁");
        assert_eq!(scale.draw(&profile.histograms[1]), "  █");
        assert_eq!(scale.ends(), "4 ns … 128 ns");
        let narrow = Scale::of(&profile, 3).unwrap();
        assert_eq!(narrow.draw(&profile.histograms[0]), "█▃▁");
        assert!(narrow.explained().contains("2 powers of two"));
        assert!(Scale::of(&fixtures::zero(), 16).is_none());
    }

    #[test]
    fn extremes_are_drawn() {
        let mut profile = fixtures::zero();
        profile.histograms = vec![histogram(&[u64::MAX; 40])];
        let scale = Scale::of(&profile, 16).unwrap();
        assert_eq!(scale.draw(&profile.histograms[0]).chars().count(), 14);
        assert_eq!(scale.ends(), "0 … longer");
        assert!(Scale::of(&profile, 0).is_some());
    }
}
