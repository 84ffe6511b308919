//! The TSC's rate, measured once: what the kernel tells in nanoseconds is booked in cycles.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::vcpu::rdtsc;

/// How long the rate is measured: the two clocks are read within 100 ns of each other, which is
/// 1 in 20,000 of it.
const MEASURED_FOR: Duration = Duration::from_millis(2);

/// How often both clocks are read for one moment: between the two a busy host may run somebody
/// else, for longer than the measurement takes.
const TRIES: usize = 5;

/// TSC cycles per nanosecond, as a binary fraction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(u64);

impl Rate {
    /// Bits behind the point.
    const FRACTION: u32 = 32;

    /// A rate of so many cycles in so many nanoseconds.
    fn of(cycles: u64, nanos: u64) -> Self {
        let fraction = (u128::from(cycles) << Self::FRACTION) / u128::from(nanos.max(1));
        Self(u64::try_from(fraction).unwrap_or(u64::MAX))
    }

    /// This host's, against CLOCK_MONOTONIC. The first call takes 2 ms.
    pub fn measured() -> Self {
        static RATE: OnceLock<Rate> = OnceLock::new();
        *RATE.get_or_init(|| {
            let (start, tsc) = moment();
            // Asleep: what the processor does meanwhile changes neither clock.
            std::thread::sleep(MEASURED_FOR);
            let (end, now) = moment();
            let elapsed = end.duration_since(start).as_nanos();
            let nanos = u64::try_from(elapsed).unwrap_or(u64::MAX);
            Self::of(now.wrapping_sub(tsc), nanos)
        })
    }

    /// Cycles in so many nanoseconds.
    pub fn cycles(self, nanos: u64) -> u64 {
        let cycles = (u128::from(nanos) * u128::from(self.0)) >> Self::FRACTION;
        u64::try_from(cycles).unwrap_or(u64::MAX)
    }

    /// Cycles per nanosecond, with 32 bits behind the point: as a guest is told it
    /// ([`exit_abi::page::head::RATE`]).
    pub const fn fraction(self) -> u64 {
        self.0
    }

    /// In MHz, for people.
    pub fn mhz(self) -> u64 {
        self.cycles(1_000)
    }
}

/// One moment on both clocks: of a few readings that between which the least time passed.
fn moment() -> (Instant, u64) {
    let mut best: Option<(u64, (Instant, u64))> = None;
    for _ in 0..TRIES {
        let before = rdtsc();
        let instant = Instant::now();
        let apart = rdtsc().wrapping_sub(before);
        if best.is_none_or(|(least, _)| apart < least) {
            best = Some((apart, (instant, before.wrapping_add(apart / 2))));
        }
    }
    best.map_or_else(|| (Instant::now(), rdtsc()), |(_, moment)| moment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nanoseconds_become_cycles() {
        let rate = Rate::of(5_000_000, 2_000_000);
        assert_eq!((rate.cycles(1000), rate.mhz()), (2500, 2500));
        assert_eq!(rate.cycles(u64::MAX), u64::MAX);
        assert_eq!(
            Rate::of(u64::MAX, 0).cycles(1),
            1 << 32 >> 1 | ((1 << 31) - 1)
        );
    }

    #[test]
    fn this_host_has_a_rate() {
        assert!(Rate::measured().mhz() > 100);
    }
}
