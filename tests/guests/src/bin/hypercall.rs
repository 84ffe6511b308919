//! The hypercall in all its ways. Each part checks its answers itself; what the calls cost is for the
//! test to count.
//!
//! Command line: 0 at a gate registered by port, 1 also one that is no gate (it must not hang), 2 five
//! hundred at no gate, 3 from ring 3, 4 in 32-bit code, 5 what CPUID says of it, 6 the MSR that KVM
//! wants named, 7 single-stepped, 8 the other maker's instruction at a gate, 9 as many gates as there
//! can be, 10 hostile numbers and arguments at no gate. From 2 to 6 and 9, 10 hypercalls must be
//! intercepted.
#![cfg_attr(target_os = "none", no_std, no_main)]

guest_kernel::entry!(guest);

#[cfg(not(target_os = "none"))]
fn guest(_: u32) -> u32 {
    0
}

#[cfg(target_os = "none")]
use target::guest;

#[cfg(target_os = "none")]
mod target {
    use core::arch::{asm, global_asm};
    use core::sync::atomic::Ordering::Relaxed;

    use exit_abi::gate::{Command, Outcome, Outcome::*};
    use exit_abi::hypercall::{ANSWER, NOT_PERMITTED, UNKNOWN, WHO_ARE_YOU};
    use guest_kernel::arch::gate::{self, Hypercall, gate_hypercall, hypercall_site};
    use test_guests::traps::{self, DEBUG_RIP, PROTECTION_COUNT, UNDEFINED_COUNT};
    use test_guests::{check, check_eq, gate, withdraw};

    /// KVM_HC_CLOCK_PAIRING cannot be served.
    const NOT_SUPPORTED: u64 = -95_i64 as u64;
    /// As `exitvisor::exits::hypercall` has it.
    const PAGE_MSR: u32 = 0x4E00_0283;

    global_asm!(
        ".pushsection .data.ring3, \"awx\"",
        ".balign 16",
        // Null, kernel code and data as the entry has them, user data, user code, 32-bit code, a TSS.
        "gdt:",
        ".quad 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF",
        ".quad 0x00CFF3000000FFFF, 0x00AFFB000000FFFF, 0x00CF9B000000FFFF",
        "gdt_task: .quad 0, 0",
        "gdt_pointer: .word 63",
        ".quad gdt",
        ".balign 16",
        // RSP0: nothing is kept on it.
        ".fill 256, 1, 0",
        "task: .fill 104, 1, 0",
        "stack_kept: .quad 0",
        ".balign 16",
        ".fill 512, 1, 0",
        "stack_user:",
        // RDI: the number; RSI: where the caller has its instruction, which is followed by UD2.
        "enter_ring3:",
        "push rbx",
        "push rbp",
        "mov [rip + stack_kept], rsp",
        "mov rax, rdi",
        "lea rcx, [rip + stack_user]",
        "push 0x1B",
        "push rcx",
        "push 2",
        "push 0x23",
        "push rsi",
        "iretq",
        // Where #UD leads.
        "leave_ring3:",
        "mov rsp, [rip + stack_kept]",
        "pop rbp",
        "pop rbx",
        "ret",
        "user_vmcall: vmcall",
        "ud2",
        "user_vmmcall: vmmcall",
        "ud2",
        // RDI: all of RAX; RSI: 32-bit code that calls and jumps back.
        "enter_compat:",
        "push rbx",
        "mov rax, rdi",
        "push 0x28",
        "push rsi",
        "retfq",
        "leave_compat:",
        "pop rbx",
        "ret",
        ".code32",
        "compat_vmcall: vmcall",
        ".byte 0xEA",
        ".long leave_compat",
        ".word 8",
        "compat_vmmcall: vmmcall",
        ".byte 0xEA",
        ".long leave_compat",
        ".word 8",
        ".code64",
        ".popsection",
    );

    unsafe extern "sysv64" {
        fn enter_ring3(number: u64, code: u64) -> u64;
        fn enter_compat(rax: u64, code: u64) -> u64;
        fn leave_ring3();
        static user_vmcall: u8;
        static user_vmmcall: u8;
        static compat_vmcall: u8;
        static compat_vmmcall: u8;
        static mut gdt_task: [u64; 2];
        static gdt_pointer: u8;
        static mut task: [u8; 104];
    }

    fn register(site: u64) -> Option<Outcome> {
        gate(Command::RegisterHypercall as u32, site)
    }

    /// One at no gate, with arguments where KVM and Xen look for them.
    fn call(native: Hypercall, number: u64, first: u64, second: u64) -> u64 {
        let answer;
        // SAFETY: a hypercall that the VMM answers changes nothing but RAX; what KVM answers itself
        // for Xen's sake reads memory at most.
        unsafe {
            match native {
                Hypercall::Vmcall => asm!("push rbx", "mov rbx, rdi", "vmcall", "pop rbx",
                    inout("rax") number => answer, in("rdi") first, in("rsi") second,
                    in("rcx") second, in("rdx") second, in("r10") second, in("r8") second),
                Hypercall::Vmmcall => asm!("push rbx", "mov rbx, rdi", "vmmcall", "pop rbx",
                    inout("rax") number => answer, in("rdi") first, in("rsi") second,
                    in("rcx") second, in("rdx") second, in("r10") second, in("r8") second),
            }
        }
        answer
    }

    /// Loads a table with segments for ring 3 and for 32-bit code, and lets ring 3 use all memory.
    fn segments() {
        // SAFETY: the code and data segments stay what they are; the tables and the TSS are this
        // part's own, and there is one CPU. The boot page tables are writable, and lie where they are
        // mapped.
        unsafe {
            let base = (&raw const task) as u64;
            // RSP0, at byte 4 (SDM vol. 3A, figure 8-11).
            (&raw mut task)
                .cast::<u8>()
                .add(4)
                .cast::<u64>()
                .write_unaligned(base);
            let low = 103 | (base & 0xFF_FFFF) << 16 | 0x89 << 40 | (base >> 24 & 0xFF) << 56;
            (&raw mut gdt_task).write([low, base >> 32]);
            asm!("lgdt [{}]", "ltr {:x}", in(reg) &raw const gdt_pointer, in(reg) 0x30_u64);
            let root: u64;
            asm!("mov {}, cr3", out(reg) root);
            let user = |table: u64, entries: usize| {
                let table = (table & !0xFFF) as *mut u64;
                for i in 0..entries {
                    table
                        .add(i)
                        .write_volatile(table.add(i).read_volatile() | 4);
                }
                table.read_volatile()
            };
            let directories = user(root, 1);
            let directory = user(directories, 1);
            user(directory, 8);
            asm!("mov cr3, {}", in(reg) root);
        }
    }

    pub(super) fn guest(start_info: u32) -> u32 {
        traps::install();
        let native = Hypercall::native();
        let site = hypercall_site(native);
        match test_guests::cmdline_number(start_info) {
            part @ (0 | 1) => at_a_gate(native, site, part == 1),
            2 => {
                for _ in 0..500 {
                    check_eq(10, call(native, 1, 0, 0), 0, "KVM_HC_VAPIC_POLL_IRQ");
                }
                check_eq(11, call(native, WHO_ARE_YOU, 0, 0), ANSWER, "at no gate");
            }
            3 => from_ring3(native),
            4 => from_32_bit_code(native),
            5 => cpuid_says(),
            6 => page_msr(),
            7 => stepped(native),
            8 => other_makers(native.other()),
            9 => many(native),
            _ => hostile(native),
        }
        0
    }

    fn at_a_gate(native: Hypercall, site: u64, stray: bool) {
        check_eq(
            1,
            gate(Command::RegisterCpuid as u32, site),
            Some(NotTheInstruction),
            "no CPUID",
        );
        check_eq(2, register(site), Some(Done), "registered");
        check_eq(3, register(site), Some(Duplicate), "registered twice");
        let answer = gate_hypercall(native, WHO_ARE_YOU);
        check_eq(4, answer, ANSWER, "who are you");
        for number in [0, 0x284, 0x1_0000_0283, u64::MAX] {
            let answer = gate_hypercall(native, number);
            check_eq(5, answer, UNKNOWN, "another number");
        }
        check_eq(6, gate_hypercall(native, 1), 0, "KVM_HC_VAPIC_POLL_IRQ");
        check_eq(7, withdraw(site), Some(Done), "withdrawn");
        check_eq(8, withdraw(site), Some(NotFound), "withdrawn twice");
        if stray {
            // KVM's own answer, the VMM's, or #UD where there is neither: never a hang.
            gate_hypercall(native, WHO_ARE_YOU);
            gate_hypercall(native.other(), WHO_ARE_YOU);
        }
    }

    fn from_ring3(native: Hypercall) {
        segments();
        let code = match native {
            Hypercall::Vmcall => (&raw const user_vmcall) as u64,
            Hypercall::Vmmcall => (&raw const user_vmmcall) as u64,
        };
        traps::set(6, leave_ring3 as *const () as u64);
        for number in [WHO_ARE_YOU, 1, 0x284, u64::MAX] {
            // SAFETY: ring 3 executes the call and UD2, and comes back by #UD.
            let answer = unsafe { enter_ring3(number, code) };
            check_eq(20, answer, NOT_PERMITTED, "from ring 3");
        }
        check_eq(
            21,
            call(native, WHO_ARE_YOU, 0, 0),
            ANSWER,
            "ring 0 after it",
        );
    }

    fn from_32_bit_code(native: Hypercall) {
        segments();
        let code = match native {
            Hypercall::Vmcall => (&raw const compat_vmcall) as u64,
            Hypercall::Vmmcall => (&raw const compat_vmmcall) as u64,
        };
        // What 64-bit code has left in the upper half does not count there.
        for rax in [WHO_ARE_YOU, 0xFFFF_8000_0000_0283] {
            // SAFETY: the code executes the call in 32-bit mode and jumps back.
            let answer = unsafe { enter_compat(rax, code) };
            check_eq(30, answer as u32, ANSWER as u32, "in 32-bit code");
        }
        // SAFETY: as above.
        let answer = unsafe { enter_compat(WHO_ARE_YOU + 1, code) };
        check_eq(31, answer as u32, UNKNOWN as u32, "another number");
        check_eq(
            32,
            call(native, 0xFFFF_8000_0000_0283, 0, 0),
            UNKNOWN,
            "64-bit",
        );
    }

    fn cpuid_says() {
        for leaf in (0x4000_0000..=0x4001_0000).step_by(0x100) {
            let r = gate::cpuid(leaf, 0);
            let name = [r.ebx, r.ecx, r.edx].map(u32::to_le_bytes);
            check(40, name.as_flattened() != b"XenVMMXenVMM", "no Xen");
        }
        let kvm = gate::cpuid(0x4000_0000, 0);
        check_eq(
            41,
            kvm.ebx.to_le_bytes(),
            *b"KVMK",
            "KVM says that it is KVM",
        );
        let features = gate::cpuid(0x4000_0001, 0).eax;
        check_eq(
            42,
            features & 0x0003_2880,
            0,
            "no feature that is a hypercall",
        );
        check(43, features & 1 << 3 != 0, "KVM's clock is still there");
    }

    fn page_msr() {
        static PAGE: [core::sync::atomic::AtomicU64; 1024] =
            [const { core::sync::atomic::AtomicU64::new(0x5A5A_5A5A) }; 1024];
        let page = ((&raw const PAGE) as u64 + 4095) & !4095;
        let addresses = [
            page,
            page | 1,
            0,
            exit_abi::SCRATCH_PAGE,
            0xC000_0000,
            0xFEE0_0000,
            0x000F_FFFF_FFFF_F000,
            u64::MAX,
            u64::MAX << 12,
        ];
        let mut faults = 0;
        for address in addresses {
            // SAFETY: what comes of it is what is tested: #GP, whose handler goes on behind it.
            unsafe {
                asm!("wrmsr", in("ecx") PAGE_MSR, in("eax") address as u32,
                    in("edx") (address >> 32) as u32);
            }
            faults += 1;
            check_eq(50, PROTECTION_COUNT.load(Relaxed), faults, "WRMSR is #GP");
        }
        // SAFETY: as above.
        unsafe { asm!("rdmsr", in("ecx") PAGE_MSR, out("eax") _, out("edx") _) }
        check_eq(
            51,
            PROTECTION_COUNT.load(Relaxed),
            faults + 1,
            "RDMSR is #GP",
        );
        let kept = PAGE.iter().all(|word| word.load(Relaxed) == 0x5A5A_5A5A);
        check(52, kept, "no byte of memory has changed");
    }

    /// TF is set by the instruction before the call: the trap is due behind the call.
    fn stepped(native: Hypercall) {
        let (answer, after): (u64, u64);
        // SAFETY: TF is set for one instruction, the handler clears it.
        unsafe {
            match native {
                Hypercall::Vmcall => asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq", "vmcall",
                    "nop", "lea {}, [rip]", out(reg) after, inout("rax") WHO_ARE_YOU => answer),
                Hypercall::Vmmcall => {
                    asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq", "vmmcall",
                    "nop", "lea {}, [rip]", out(reg) after, inout("rax") WHO_ARE_YOU => answer)
                }
            }
        }
        check_eq(60, traps::debug_count(), 1, "one step, one #DB");
        // NOP has 1 byte, LEA 7.
        check_eq(
            61,
            DEBUG_RIP.load(Relaxed),
            after - 8,
            "it came behind the call",
        );
        check_eq(62, answer, ANSWER, "and the call was answered");
    }

    /// #UD on this CPU, upon which KVM rewrites it, if it can. A gate needs a breakpoint.
    fn other_makers(other: Hypercall) {
        let site = hypercall_site(other);
        // SAFETY: the three bytes of the instruction, in memory that is mapped.
        let bytes = || unsafe { (site as *const [u8; 3]).read_volatile() };
        let before = bytes();
        check_eq(70, register(site), Some(Done), "registered");
        check_eq(
            71,
            gate_hypercall(other, WHO_ARE_YOU),
            ANSWER,
            "at its gate",
        );
        check_eq(72, bytes(), before, "as it was");
        check_eq(73, UNDEFINED_COUNT.load(Relaxed), 0, "no #UD");
        check_eq(74, withdraw(site), Some(Done), "withdrawn");
    }

    /// Gates that need no slot are remembered, up to a bound, and leave the slots to others.
    fn many(native: Hypercall) {
        let bytes = match native {
            Hypercall::Vmcall => [0x0F, 0x01, 0xC1],
            Hypercall::Vmmcall => [0x0F, 0x01, 0xD9],
        };
        // RAM that nothing lies in.
        let room = 0x20_0000_u64;
        for i in 0..17 {
            // SAFETY: as said, and it is mapped.
            unsafe { ((room + 16 * i) as *mut [u8; 3]).write_volatile(bytes) };
            let expected = if i < 16 { Done } else { Full };
            check_eq(
                80,
                register(room + 16 * i),
                Some(expected),
                "gate after gate",
            );
        }
        check_eq(81, register(room), Some(Duplicate), "twice");
        let cpuid = room + 0x1000;
        for i in 0..5 {
            // SAFETY: as above.
            unsafe { ((cpuid + 16 * i) as *mut [u8; 2]).write_volatile([0x0F, 0xA2]) };
            let expected = if i < 4 { Done } else { Full };
            let outcome = gate(Command::RegisterCpuid as u32, cpuid + 16 * i);
            check_eq(82, outcome, Some(expected), "all four slots are free");
        }
        check_eq(83, withdraw(room), Some(Done), "withdrawn");
        check_eq(84, withdraw(room), Some(NotFound), "withdrawn twice");
        let outcome = gate(Command::RegisterCpuid as u32, room + 16);
        check_eq(85, outcome, Some(NotTheInstruction), "no CPUID");
    }

    fn hostile(native: Hypercall) {
        check_eq(
            90,
            call(native, 9, 0, 0),
            NOT_SUPPORTED,
            "KVM_HC_CLOCK_PAIRING",
        );
        // KVM's that need a feature, and what is nobody's.
        for number in [
            0,
            2,
            5,
            10,
            11,
            12,
            0x282,
            0x284,
            0x1_0000_0283,
            1 << 63,
            u64::MAX,
        ] {
            for argument in [0, 1, u64::MAX, 0xFFFF_FFFF_FFFF_F000] {
                let answer = call(native, number, argument, argument);
                check_eq(91, answer, UNKNOWN, "another number");
            }
        }
        // Xen's, and with the bit that Hyper-V's have: KVM may answer some itself.
        for number in [15, 17, 24, 29, 32, 34, 0x8000_0000, 0x8000_0283] {
            for first in 0..6 {
                for second in [0, 0x10_0000, exit_abi::SCRATCH_PAGE, u64::MAX] {
                    call(native, number, first, second);
                }
            }
        }
        check_eq(92, call(native, WHO_ARE_YOU, 0, 0), ANSWER, "still there");
    }
}
