//! Exitvisor's test kernel.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod kernel {
    use core::fmt::Write;
    use exit_abi::{leaf::Layout, milestone, port as ports};
    use guest_kernel::arch::{gate, port};
    use guest_kernel::serial::Serial;

    #[unsafe(no_mangle)]
    extern "sysv64" fn guest_main(start_info: u32) -> ! {
        port::out32(ports::MILESTONE, milestone::KERNEL_ENTRY);
        let _ = writeln!(Serial, "hello {start_info:#x}");
        let d = gate::cpuid(exit_abi::leaf::DISCOVERY, 0);
        let i = gate::cpuid(exit_abi::leaf::INFO, 0);
        let _ = writeln!(Serial, "{d:x?} {i:x?}");
        let l = Layout::CLASSIC;
        let e = gate::gate_cpuid(l.total_exits, 0).exits();
        let c = gate::gate_cpuid(l.total_cycles, 0).cycles();
        let _ = writeln!(
            Serial,
            "CPUID(0x4FFFFFFF), exits= {e}, cycles spent in exit= {c}"
        );
        let _ = writeln!(Serial, "{:x?}", gate::gate_cpuid(0, 0));
        let _ = writeln!(Serial, "{:x?}", gate::cpuid(0, 0));
        for _ in 0..20 {
            gate::cpuid(0, 0);
        }
        port::out32(ports::MILESTONE, milestone::DONE);
        port::out32(ports::EXIT, 7);
        loop {}
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        port::out32(ports::EXIT, exit_abi::status::CRASH);
        loop {}
    }
}
