//! Exitvisor's firmware: loads the kernel that PVH hands it as a module, and enters it as PVH
//! would have entered it without a firmware. `docs/firmware.md` tells how.
#![cfg_attr(target_os = "none", no_std, no_main)]

use exit_abi::leaf::Layout;
use exit_abi::milestone::{KERNEL_LOADED, LONG_MODE};
use firmware::arch::memory::{self, Identity};
use firmware::arch::{jump, paging, traps};
use firmware::error::Error;
use firmware::kernel::{Gates, Kernel};
use firmware::linux::{self, Linux};
use firmware::modules::{self, Modules};
use firmware::ram::Ram;
use firmware::start_info::{self, StartInfo};
use firmware::taken::Taken;
use firmware::{device_tree, end, gates, hand_over, log};
use guest_kernel::milestone;

guest_kernel::publish_cpuid_gate!();

/// The boot, step by step. It returns only if it fails.
fn boot(start_info: u32) -> Result<core::convert::Infallible, Error> {
    let info = StartInfo::read(&Identity, start_info.into())?;
    let map = info.memory_map(&Identity)?;
    let ram = Ram::new(map)?;
    paging::extend(ram.top_below(paging::MOST));
    let list = info.module_list(&Identity)?;
    let modules = Modules::read(&Identity, list, &ram)?;
    let cmdline = info.cmdline(&Identity)?;
    if start_info::has_word(cmdline, "firmware-crash") {
        guest_kernel::arch::crash::undefined();
    }
    let leaves = match modules.device_tree() {
        Some(tree) => device_tree::take_into_use(modules::bytes(&Identity, tree)?)?,
        None => None,
    };
    let kernel_index = modules.kernel()?;
    let file = modules.all().get(kernel_index).ok_or(Error::NoKernel)?;
    let file = modules::bytes(&Identity, file)?;
    let sizes = (size_of_val(map), cmdline.len());
    let taken = Taken::boot_information(memory::image(), &info, &modules, sizes);
    if linux::is_linux(file) {
        let initrd = modules.initrd();
        let kernel = Linux::check(file, initrd, cmdline, &ram, &taken)?;
        kernel.load();
        loaded(cmdline, leaves, &Gates::default())?;
        let zero_page = linux::room()?.build(&kernel, &info, map, initrd, modules.setup_data());
        // SAFETY: `load` has put the kernel where its entry is; the zero page is a static of the
        // firmware's, in memory that the kernel does not take before it has read it.
        unsafe { jump::enter_linux(kernel.entry(), zero_page) }
    }
    let kernel = Kernel::check(file, &ram, &taken)?;
    kernel.load();
    loaded(cmdline, leaves, &kernel.gates)?;
    let start_info = hand_over::room()?.build(info.raw, list, &modules, kernel_index);
    // SAFETY: `load` has put the kernel where its entry is; the start info is a static of the
    // firmware's, in memory that no segment overlaps; nothing else of it is needed any more.
    unsafe { jump::enter(kernel.entry, start_info) }
}

/// The kernel is where it belongs: the last things to do as a firmware.
fn loaded(cmdline: &[u8], leaves: Option<Layout>, gates: &Gates) -> Result<(), Error> {
    milestone::reached(KERNEL_LOADED);
    if start_info::has_word(cmdline, "firmware-log") {
        log::print(leaves);
    }
    gates::hand_over(gates)
}

/// Called by the assembler entry, once, in long mode.
#[cfg_attr(target_os = "none", unsafe(no_mangle))]
extern "sysv64" fn firmware_main(start_info: u32) -> ! {
    milestone::reached(LONG_MODE);
    traps::install();
    match boot(start_info) {
        Err(error) => end::failed(&error),
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
