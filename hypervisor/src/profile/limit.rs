//! Limits of growth: what a comparison may find without being called a regression.

use std::str::FromStr;

/// Limits, as given: the last one that fits counts.
///
/// Separated by commas or blanks; each is `AMOUNT` or `WHICH=AMOUNT`:
///
/// - `5%`: the total may grow by 5 %, and so may each reason; what was 0 must stay 0;
/// - `12`: the total and each reason may grow by 12 exits; `0`: nothing may grow;
/// - `30=0`, `48=10%`, `total=5%`: the same for one reason or the total only;
/// - `fixed=0`: the same for the fixed count ([`super::fixed`]), which no other limit concerns.
///
/// An amount without a name never overrides one with a name. Limits concern exits of the guest's;
/// cycles are compared, but too noisy to be judged. A reason without any limit may grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    limits: Vec<Limit>,
}

/// One limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// What it limits.
    pub scope: Scope,
    /// By how much that may grow.
    pub growth: Growth,
}

/// What a limit limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The total and each reason that has no limit of its own.
    Each,
    /// The total.
    Total,
    /// The fixed count: the total without what time drives.
    Fixed,
    /// One reason.
    Reason(u8),
}

/// By how much something may grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Growth {
    /// By so many exits.
    Exits(u64),
    /// By so many thousandths of a percent.
    Share(u64),
}

/// A limit that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no limit of growth: {why}; write 5%, 12, 30=0, total=5% or fixed=0")]
pub struct LimitError {
    text: String,
    why: &'static str,
}

impl Limits {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.limits.is_empty()
    }

    /// Adds further limits; they count over those before.
    pub fn extend(&mut self, further: Self) {
        self.limits.extend(further.limits);
    }

    /// The limit for the total, the fixed count, a reason, or whatever has none of its own.
    pub fn growth(&self, scope: Scope) -> Option<Growth> {
        let last = |scope| self.limits.iter().rev().find(|l| l.scope == scope);
        let each = || last(Scope::Each).filter(|_| scope != Scope::Fixed);
        last(scope).or_else(each).map(|l| l.growth)
    }
}

impl Growth {
    /// Whether going from one count to another stays within it.
    pub fn allows(self, before: u64, after: u64) -> bool {
        let grown = u128::from(after.saturating_sub(before));
        match self {
            Self::Exits(most) => grown <= most.into(),
            Self::Share(thousandths) => {
                // `before` < 2^64 and so is the share: the product fits.
                grown * 100_000 <= u128::from(before) * u128::from(thousandths)
            }
        }
    }
}

impl std::fmt::Display for Growth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exits(most) => write!(f, "{most}"),
            Self::Share(thousandths) => {
                let fraction = format!("{:03}", thousandths % 1_000);
                let fraction = fraction.trim_end_matches('0');
                let point = if fraction.is_empty() { "" } else { "." };
                write!(f, "{}{point}{fraction}%", thousandths / 1_000)
            }
        }
    }
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.scope {
            Scope::Each => write!(f, "{}", self.growth),
            Scope::Total => write!(f, "total={}", self.growth),
            Scope::Fixed => write!(f, "fixed={}", self.growth),
            Scope::Reason(reason) => write!(f, "{reason}={}", self.growth),
        }
    }
}

impl FromStr for Limits {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Self, LimitError> {
        let items = text.split([',', ' ']).filter(|item| !item.is_empty());
        let limits = items.map(str::parse).collect::<Result<Vec<Limit>, _>>()?;
        if limits.is_empty() {
            return Err(LimitError {
                text: text.to_owned(),
                why: "it is empty",
            });
        }
        Ok(Self { limits })
    }
}

impl FromStr for Limit {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Self, LimitError> {
        let error = |why| LimitError {
            text: text.to_owned(),
            why,
        };
        let (scope, amount) = match text.split_once('=') {
            None => (Scope::Each, text),
            Some(("total", amount)) => (Scope::Total, amount),
            Some(("fixed", amount)) => (Scope::Fixed, amount),
            Some((reason, amount)) => {
                let number = digits(reason)
                    .ok_or(error("left of = stands no reason, nor total or fixed"))?;
                let fits = u8::try_from(number)
                    .ok()
                    .filter(|&n| n < exit_abi::reason::COUNT as u8);
                (
                    Scope::Reason(fits.ok_or(error("exit reasons end at 127"))?),
                    amount,
                )
            }
        };
        let growth = match amount.strip_suffix('%') {
            None => digits(amount).map(Growth::Exits),
            Some(percent) => thousandths(percent).map(Growth::Share),
        };
        let why = "the amount is neither a count nor a percentage (up to three decimals)";
        Ok(Limit {
            scope,
            growth: growth.ok_or(error(why))?,
        })
    }
}

/// Digits only: no sign, no blank.
fn digits(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

fn thousandths(percent: &str) -> Option<u64> {
    let (whole, fraction) = match percent.split_once('.') {
        None => (percent, 0),
        Some((whole, decimals)) if decimals.len() <= 3 => {
            let scale = 10u64.pow(3 - decimals.len() as u32);
            (whole, digits(decimals)? * scale)
        }
        Some(_) => return None,
    };
    digits(whole)?.checked_mul(1_000)?.checked_add(fraction)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    use Scope::{Fixed, Reason, Total};

    fn growth(limits: &str, scope: Scope) -> Option<Growth> {
        limits.parse::<Limits>().unwrap().growth(scope)
    }

    #[test]
    fn the_named_one_counts_then_the_last() {
        assert_eq!(growth("5%", Total), Some(Growth::Share(5_000)));
        assert_eq!(growth("5%", Reason(30)), Some(Growth::Share(5_000)));
        assert_eq!(growth("30=0,5%", Reason(30)), Some(Growth::Exits(0)));
        assert_eq!(growth("30=0 30=12", Reason(30)), Some(Growth::Exits(12)));
        assert_eq!(growth("30=0", Reason(31)), None);
        assert_eq!(growth("30=0", Total), None);
        assert_eq!(growth("total=2.5%,0", Total), Some(Growth::Share(2_500)));
        assert_eq!(growth("5%,fixed=0", Fixed), Some(Growth::Exits(0)));
        assert_eq!(growth("5%,total=0", Fixed), None);
    }

    #[test]
    fn edges() {
        let allows = |limit: &str, a, b| growth(limit, Total).unwrap().allows(a, b);
        assert!(allows("5%", 100, 105) && !allows("5%", 100, 106));
        assert!(allows("0.001%", 100_000, 100_001) && !allows("0.001%", 99_999, 100_000));
        assert!(allows("0", 7, 7) && allows("0", 7, 0) && !allows("0", 7, 8));
        assert!(!allows("500%", 0, 1) && allows("1", 0, 1));
        assert!(allows("18446744073709551615", 0, u64::MAX));
        assert!(allows("1%", u64::MAX - 1, u64::MAX));
        assert!(!allows("18446744073709551%", 0, u64::MAX));
    }

    #[test]
    fn refusals_say_why() {
        for text in [
            "", " ", ",", "%", "-5%", "+5", "5 %", "x=1", "128=0", "30=", "=5", "1.2345%", "1.5",
            "30=0=1", ".5%", "5.%",
        ] {
            let error = text.parse::<Limits>().unwrap_err().to_string();
            assert!(error.contains("write 5%"), "{text}: {error}");
        }
        assert_eq!(
            "128=0".parse::<Limits>().unwrap_err().to_string(),
            "\"128=0\" is no limit of growth: exit reasons end at 127; write 5%, 12, 30=0, total=5% \
             or fixed=0"
        );
    }

    fn any_limit() -> impl Strategy<Value = Limit> {
        let scope = prop_oneof![
            Just(Scope::Each),
            Just(Scope::Total),
            Just(Scope::Fixed),
            (0u8..128).prop_map(Scope::Reason)
        ];
        let growth = prop_oneof![
            any::<u64>().prop_map(Growth::Exits),
            any::<u64>().prop_map(Growth::Share)
        ];
        (scope, growth).prop_map(|(scope, growth)| Limit { scope, growth })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(limits in proptest::collection::vec(any_limit(), 1..5)) {
            let text = limits.iter().map(Limit::to_string).collect::<Vec<_>>().join(",");
            prop_assert_eq!(text.parse::<Limits>().unwrap(), Limits { limits });
        }

        #[test]
        fn any_text_is_refused_or_understood(text in "[0-9=%.,a-z -]{0,20}|.{0,20}") {
            if let Ok(limits) = text.parse::<Limits>() {
                let again: Vec<_> = limits.limits.iter().map(Limit::to_string).collect();
                prop_assert_eq!(again.join(",").parse::<Limits>().unwrap(), limits);
            }
        }

        #[test]
        fn a_limit_is_monotonous(limit in any_limit(), a: u64, b: u64, c: u64) {
            let (low, high) = (b.min(c), b.max(c));
            prop_assert!(!limit.growth.allows(a, high) || limit.growth.allows(a, low));
        }
    }
}
