//! The firmware's own line of the exit log, where the command line has `firmware-log`.

use exit_abi::leaf::Layout;
use guest_kernel::arch::gate;
use guest_kernel::exit_log::discovery::{self, Found};
use guest_kernel::own::OwnSection;
use guest_kernel::serial::println;

/// Asks at the firmware's gate for all exits so far and prints them in the classic format. What
/// that costs is booked as the profiler's own.
pub fn print(described: Option<Layout>) {
    let _own = OwnSection::open();
    match discovery::discover(gate::cpuid, described) {
        Ok(Found { layout, .. }) => {
            let exits = gate::gate_cpuid(layout.total_exits, 0).exits();
            let cycles = gate::gate_cpuid(layout.total_cycles, 0).cycles();
            println(format_args!(
                "[exit-log] firmware     CPUID({:#010X}), exits= {exits}, cycles spent in exit= {cycles}",
                layout.total_exits
            ));
        }
        Err(absent) => println(format_args!("[exit-log] firmware     {absent}")),
    }
}
