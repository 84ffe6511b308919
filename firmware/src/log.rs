//! The firmware's own line of the exit log, where the command line has `firmware-log`.

use guest_kernel::arch::gate;
use guest_kernel::exit_log::discovery;
use guest_kernel::line::Line;
use guest_kernel::own::OwnSection;

use crate::machine::Machine;

/// Asks at the firmware's gate for all exits so far and prints them in the classic format. What
/// that costs is booked as the profiler's own.
pub fn print(machine: &Machine) {
    let _own = OwnSection::open();
    let mut line = Line::new();
    line.text("[exit-log] firmware ");
    match discovery::discover(gate::cpuid) {
        Ok(layout) => {
            let exits = gate::gate_cpuid(layout.total_exits, 0).exits();
            let cycles = gate::gate_cpuid(layout.total_cycles, 0).cycles();
            line.text("    CPUID(0x")
                .hex32(layout.total_exits)
                .text("), exits= ")
                .number(exits)
                .text(", cycles spent in exit= ")
                .number(cycles);
        }
        Err(absent) => {
            // A `Line` takes what fits and never fails.
            let _ = core::fmt::write(&mut line, format_args!("{absent}"));
        }
    }
    machine.send(&mut line);
}
