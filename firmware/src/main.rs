//! Exitvisor's firmware: loads the kernel that PVH hands it as a module, and enters it as PVH
//! would have entered it without a firmware. `docs/firmware.md` tells how.
#![cfg_attr(target_os = "none", no_std, no_main)]

use exit_abi::milestone;
use firmware::arch::memory::{self, Identity};
use firmware::arch::{jump, traps};
use firmware::end;
use firmware::error::Error;
use firmware::hand_over::{self, HandOver};
use firmware::kernel::Kernel;
use firmware::log;
use firmware::machine::Machine;
use firmware::ram::Ram;
use firmware::start_info::StartInfo;

guest_kernel::publish_cpuid_gate!();

/// The boot, step by step. It returns only if it fails.
fn boot(machine: &mut Machine, start_info: u32) -> Result<core::convert::Infallible, Error> {
    let info = StartInfo::read(&Identity, start_info.into())?;
    let ram = Ram::new(info.memory_map)?;
    info.check_modules(&ram)?;
    if let Some(tree) = info.device_tree(&Identity) {
        *machine = Machine::from_tree(tree?)?;
    }
    let kernel_module = info.kernel()?;
    let file = info.bytes(&Identity, &kernel_module)?;
    let kernel = Kernel::check(file, &ram, info.taken(memory::image()))?;
    kernel.load();
    machine.milestone(milestone::KERNEL_LOADED);
    if info.has_word("firmware-log") {
        log::print(machine);
    }
    machine.move_gates(&kernel.gates)?;
    let start_info = HandOver::build(hand_over::room()?, &info, &kernel_module);
    // SAFETY: `load` has put the kernel where its entry is; the start info is a static of the
    // firmware's, in memory that no segment overlaps; nothing else of it is needed any more.
    unsafe { jump::enter(kernel.entry, start_info) }
}

/// Called by the assembler entry, once, in long mode.
#[cfg_attr(target_os = "none", unsafe(no_mangle))]
extern "sysv64" fn firmware_main(start_info: u32) -> ! {
    let mut machine = Machine::default();
    machine.milestone(milestone::LONG_MODE);
    traps::install();
    match boot(&mut machine, start_info) {
        Err(error) => end::failed(&machine, &error),
        Ok(never) => match never {},
    }
}

#[cfg(target_os = "none")]
#[panic_handler]
fn panicked(info: &core::panic::PanicInfo<'_>) -> ! {
    end::panicked(info)
}

#[cfg(not(target_os = "none"))]
fn main() {
    let _ = firmware_main;
}
