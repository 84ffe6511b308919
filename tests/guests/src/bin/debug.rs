//! Debug exceptions of the guest's own, while gates are armed: single steps and ICEBP reach it as
//! if nobody else used the debug registers. Its hardware breakpoints are masked meanwhile.
//!
//! Command line: 1 single steps, 2 ICEBP, 3 breakpoints, 4 single steps at a gate.
#![cfg_attr(target_os = "none", no_std, no_main)]

guest_kernel::entry!(guest);
guest_kernel::publish_cpuid_gate!();

// CPUID with TF set by the instruction before it: the trap is due behind CPUID.
core::arch::global_asm!(
    ".pushsection .text.stepped, \"ax\"",
    ".global stepped_call, stepped_cpuid",
    "stepped_call:",
    "push rbx",
    "pushfq",
    "or qword ptr [rsp], 0x100",
    "popfq",
    "stepped_cpuid:",
    "cpuid",
    "nop",
    "pop rbx",
    "ret",
    ".popsection",
);

#[cfg(not(target_os = "none"))]
fn guest(_: u32) -> u32 {
    0
}

#[cfg(target_os = "none")]
fn guest(start_info: u32) -> u32 {
    use core::arch::asm;
    use core::sync::atomic::Ordering::Relaxed;
    use exit_abi::leaf;
    use guest_kernel::arch::gate::gate_cpuid;
    use test_guests::traps::{self, DEBUG_DR6, DEBUG_RIP};
    use test_guests::{check, check_eq};

    traps::install();
    let part = test_guests::cmdline_number(start_info);
    if part == 1 {
        let after: u64;
        // SAFETY: TF is set for one instruction; the handler clears it.
        unsafe {
            asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq", "nop", "lea {}, [rip]", "nop",
                out(reg) after);
        }
        check_eq(1, traps::debug_count(), 1, "one step, one #DB");
        check_eq(2, DEBUG_DR6.load(Relaxed) & 0xE00F, 1 << 14, "BS in DR6");
        let rip = DEBUG_RIP.load(Relaxed);
        check(
            3,
            (after - 8..=after).contains(&rip),
            "it came behind the NOP",
        );
        // A step over a CPUID that a gate answers: the trap comes all the same.
        let info: u32;
        // SAFETY: as above; the routine is the gate's CPUID, called with TF set one instruction
        // earlier than it, so that the first step ends inside it.
        unsafe {
            asm!("push rbx", "pushfq", "or qword ptr [rsp], 0x100", "popfq", "nop", "cpuid",
                "pop rbx", inout("eax") leaf::INFO => info, inout("ecx") 0 => _, out("edx") _);
        }
        check_eq(4, info, exit_abi::VERSION, "CPUID behind a step");
        check_eq(5, traps::debug_count(), 2, "a second #DB");
    }
    if part == 2 {
        let after: u64;
        // SAFETY: the handler returns behind ICEBP.
        unsafe { asm!(".byte 0xF1", "lea {}, [rip]", out(reg) after) }
        check_eq(6, traps::debug_count(), 1, "ICEBP, one #DB");
        check_eq(
            7,
            DEBUG_RIP.load(Relaxed),
            after - 7,
            "it is a trap: RIP behind it",
        );
    }
    if part == 3 {
        // SAFETY: a breakpoint on code of ours; the handler returns from it.
        unsafe {
            asm!("lea {t}, [rip + 2f]", "mov dr0, {t}", "mov {t}, 0x402", "mov dr7, {t}",
                "2: nop", "xor {t:e}, {t:e}", "mov dr7, {t}", t = out(reg) _);
        }
        // Whether KVM masks them is KVM's business: the test knows what to expect of which.
        check(
            40,
            traps::debug_count() == 0,
            "not masked while a gate is armed",
        );
    }
    if part == 4 {
        unsafe extern "C" {
            static stepped_call: u8;
            static stepped_cpuid: u8;
        }
        let (routine, site) = (
            (&raw const stepped_call) as u64,
            (&raw const stepped_cpuid) as u64,
        );
        check_eq(
            50,
            test_guests::register(site),
            Some(exit_abi::gate::Outcome::Done),
            "a gate",
        );
        // A leaf that the gate answers, one that it lets pass.
        for (i, leaf) in [leaf::INFO, 0].into_iter().enumerate() {
            // SAFETY: the routine keeps RBX; the handler clears TF.
            unsafe {
                asm!("call {}", in(reg) routine, inout("eax") leaf => _, inout("ecx") 0 => _,
                    out("edx") _);
            }
            check_eq(51, traps::debug_count(), i as u64 + 1, "one step, one #DB");
            check_eq(
                52,
                DEBUG_RIP.load(Relaxed),
                site + 2,
                "it came behind CPUID",
            );
            check_eq(53, DEBUG_DR6.load(Relaxed) & 0xE00F, 1 << 14, "BS in DR6");
        }
    }
    check_eq(
        9,
        gate_cpuid(leaf::INFO, 0).eax,
        exit_abi::VERSION,
        "the gate still answers",
    );
    0
}
