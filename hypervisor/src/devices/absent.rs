//! Devices that a PC has and this machine has not: what their ports answer, so that who looks for
//! them, or waits for them, is through with it soonest. Every access is an exit.

/// Ports with an answer of their own, as (first, last, answer, why). All others read as all ones: so
/// an ISA bus floats that nobody drives, and so whoever probes a port knows that nothing is there.
/// Prose: `docs/platform.md`, which a test holds against this.
pub const PORTS: &[(u16, u16, u8, &str)] = &[
    (
        0x40,
        0x43,
        0,
        "PIT: a counter that stands at 0; all ones would be waited for, a value at a time",
    ),
    (
        0x64,
        0x64,
        0,
        "keyboard controller: it takes commands, so that `reboot=k` writes the one for a reset at once",
    ),
    (
        0x70,
        0x71,
        0,
        "CMOS clock: no update goes on; all ones say that one does, for ever",
    ),
];

/// What nobody drives reads as.
const FLOATING: u8 = 0xFF;

/// The keyboard controller's command port, and the command that pulses the reset line of the
/// processor: how PCs are reset since the AT, and what Linux does with `reboot=k`.
const COMMAND: u16 = 0x64;
const PULSE_RESET: u8 = 0xFE;

/// A byte read from a port that no device has.
pub fn read(port: u16) -> u8 {
    let own = PORTS
        .iter()
        .find(|(first, last, ..)| (*first..=*last).contains(&port));
    own.map_or(FLOATING, |(_, _, answer, _)| *answer)
}

/// Whether this write to a port that no device has resets the machine.
pub fn resets(port: u16, data: &[u8]) -> bool {
    port == COMMAND && data == [PULSE_RESET]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_waits_for_what_is_not_there() {
        // MC146818's update in progress, the 8042's input buffer full.
        assert_eq!(read(0x71) & 0x80, 0);
        assert_eq!(read(0x64) & 2, 0);
        // The PIT's output on port 0x61 has risen.
        assert_ne!(read(0x61) & 0x20, 0);
        assert_eq!([read(0x60), read(0x80), read(0xCF8)], [0xFF; 3]);
    }

    #[test]
    fn one_command_resets() {
        assert!(resets(0x64, &[0xFE]));
        assert!(!resets(0x64, &[0xFE, 0]));
        assert!(!resets(0x64, &[0xFF]));
        assert!(!resets(0x60, &[0xFE]));
    }
}
