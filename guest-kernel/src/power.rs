//! Switching the machine off and resetting it.

use crate::arch::{cpu, port};
use crate::machine::Switch;

/// How long a switch is waited for, in cycles of the time-stamp counter: it acts at once or never.
const PATIENCE: u64 = 200_000_000;

/// Uses a switch. Returns only if it has no effect.
pub fn throw(switch: Switch) {
    port::out8(switch.port, switch.value);
    let start = cpu::time_stamp();
    while cpu::time_stamp().wrapping_sub(start) < PATIENCE {
        core::hint::spin_loop();
    }
}

/// What `reboot=` asks of this pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reboot {
    /// Nothing: it was not asked for, or has happened often enough.
    No,
    /// Another reset.
    Again,
    /// Nobody tells how often it has happened.
    Unknown,
}

/// Whether there is a reset to come, of `wanted`, after `resets` of them.
pub fn reboot(wanted: u32, resets: Option<u32>) -> Reboot {
    match resets {
        _ if wanted == 0 => Reboot::No,
        None => Reboot::Unknown,
        Some(done) if done < wanted => Reboot::Again,
        Some(_) => Reboot::No,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_often_as_asked() {
        assert_eq!(reboot(0, None), Reboot::No);
        assert_eq!(reboot(2, None), Reboot::Unknown);
        assert_eq!(reboot(2, Some(0)), Reboot::Again);
        assert_eq!(reboot(2, Some(1)), Reboot::Again);
        assert_eq!(reboot(2, Some(2)), Reboot::No);
        assert_eq!(reboot(2, Some(u32::MAX)), Reboot::No);
    }
}
