//! A ratio of two frequencies in small numbers: its best approximation by a continued fraction.

/// The fraction nearest to `a` / `b` among those of its continued fraction whose numerator is at most
/// `most`, as (numerator, denominator); neither is 0. (0 / 1 is said to be 1 / 1.)
pub(super) fn nearest(a: u32, b: u32, most: u32) -> (u32, u32) {
    let (mut a, mut b) = (u64::from(a), u64::from(b));
    let most = u64::from(most.max(1));
    // The last two fractions of those that come ever nearer.
    let (mut last, mut this) = ((0, 1), (1, 0));
    while b != 0 {
        let whole = a / b;
        (a, b) = (b, a % b);
        let next: (u64, u64) = (whole * this.0 + last.0, whole * this.1 + last.1);
        if next.0 > most || next.1 > u64::from(u32::MAX) {
            // As far towards it as the numerator goes.
            let part = (most - last.0) / this.0.max(1);
            let between = (part * this.0 + last.0, part * this.1 + last.1);
            if 2 * part > whole {
                this = between;
            }
            break;
        }
        (last, this) = (this, next);
    }
    let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX).max(1);
    (small(this.0), small(this.1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_small_is_exact() {
        assert_eq!(nearest(2_000_000, 1_000_000, 4294), (2, 1));
        assert_eq!(nearest(2_400_000, 1_000_000, 4294), (12, 5));
        assert_eq!(nearest(0, 5, 10), (1, 1));
        assert_eq!(nearest(5, 0, 10), (1, 1));
    }

    proptest! {
        #[test]
        fn near_and_in_bounds(a in 100_000_u32..5_000_000, b in 20_000_u32..1_000_001) {
            let most = u32::MAX / b;
            let (n, d) = nearest(a, b, most);
            prop_assert!(n >= 1 && d >= 1 && n <= most);
            let (value, wanted) = (f64::from(n) / f64::from(d), f64::from(a) / f64::from(b));
            prop_assert!((value - wanted).abs() / wanted < 1e-6, "{n}/{d} for {a}/{b}");
        }

        #[test]
        fn any_numbers(a: u32, b: u32, most: u32) {
            let (n, d) = nearest(a, b, most);
            prop_assert!(n >= 1 && d >= 1 && n <= most.max(1));
        }
    }
}
