//! Exitvisor's test kernel.
#![cfg_attr(target_os = "none", no_std, no_main)]

guest_kernel::entry!(kernel);
guest_kernel::publish_cpuid_gate!();

fn kernel(_start_info: u32) -> u32 {
    guest_kernel::milestone::reached(exit_abi::milestone::KERNEL_ENTRY);
    guest_kernel::serial::println(format_args!(
        "hello {:x?}",
        guest_kernel::arch::gate::gate_cpuid(0x4fffffff, 0)
    ));
    7
}
