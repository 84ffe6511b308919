//! CPUID and the hypercalls, at sites that are gates and at sites that are not.

use exit_abi::leaf::Registers;

/// CPUID at an ordinary site: the CPU's or KVM's answer, never the gate's.
pub fn cpuid(leaf: u32, subleaf: u32) -> Registers {
    let r = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    Registers {
        eax: r.eax,
        ebx: r.ebx,
        ecx: r.ecx,
        edx: r.edx,
    }
}

#[cfg(target_os = "none")]
mod site {
    use core::arch::global_asm;

    // Three instructions at which Exitvisor answers once they are published (by
    // `publish_cpuid_gate!`, `publish_hypercall_gate!` or the gate port).
    global_asm!(
        ".pushsection .text.gate, \"ax\"",
        ".global exitvisor_cpuid",
        "exitvisor_cpuid:",
        "push rbx",
        "mov r8, rdx",
        "mov eax, edi",
        "mov ecx, esi",
        "xor ebx, ebx",
        "xor edx, edx",
        ".global exitvisor_cpuid_site",
        "exitvisor_cpuid_site:",
        "cpuid",
        "mov [r8], eax",
        "mov [r8 + 4], ebx",
        "mov [r8 + 8], ecx",
        "mov [r8 + 12], edx",
        "pop rbx",
        "ret",
        ".global exitvisor_hypercall",
        "exitvisor_hypercall:",
        // KVM's ABI takes arguments in RBX, RCX, RDX, RSI; ours has none: all zero.
        "push rbx",
        "mov rax, rdi",
        "xor ebx, ebx",
        "xor ecx, ecx",
        "xor edx, edx",
        "xor esi, esi",
        ".global exitvisor_hypercall_site",
        "exitvisor_hypercall_site:",
        "vmcall",
        "pop rbx",
        "ret",
        ".global exitvisor_amd_hypercall",
        "exitvisor_amd_hypercall:",
        "push rbx",
        "mov rax, rdi",
        "xor ebx, ebx",
        "xor ecx, ecx",
        "xor edx, edx",
        "xor esi, esi",
        ".global exitvisor_amd_hypercall_site",
        "exitvisor_amd_hypercall_site:",
        "vmmcall",
        "pop rbx",
        "ret",
        ".popsection",
    );

    unsafe extern "sysv64" {
        pub(super) fn exitvisor_cpuid(leaf: u32, subleaf: u32, into: *mut [u32; 4]);
        pub(super) fn exitvisor_hypercall(number: u64) -> u64;
        pub(super) fn exitvisor_amd_hypercall(number: u64) -> u64;
        pub(super) static exitvisor_cpuid_site: u8;
        pub(super) static exitvisor_hypercall_site: u8;
        pub(super) static exitvisor_amd_hypercall_site: u8;
    }
}

/// CPUID at the site that [`crate::publish_cpuid_gate`] makes a gate.
pub fn gate_cpuid(leaf: u32, subleaf: u32) -> Registers {
    #[cfg(target_os = "none")]
    {
        let mut r = [0; 4];
        // SAFETY: the routine writes 16 bytes to the pointer it is given, which points to as
        // many, and keeps to the System V calling convention.
        unsafe { site::exitvisor_cpuid(leaf, subleaf, &mut r) };
        Registers {
            eax: r[0],
            ebx: r[1],
            ecx: r[2],
            edx: r[3],
        }
    }
    // The host has no gates.
    #[cfg(not(target_os = "none"))]
    cpuid(leaf, subleaf)
}

/// A hypercall instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hypercall {
    /// VMCALL: Intel's.
    Vmcall,
    /// VMMCALL: AMD's.
    Vmmcall,
}

impl Hypercall {
    /// The one that this CPU has.
    pub fn native() -> Self {
        match super::cpu::is_amd() {
            true => Self::Vmmcall,
            false => Self::Vmcall,
        }
    }

    /// The one that is #UD here.
    pub fn other(self) -> Self {
        match self {
            Self::Vmcall => Self::Vmmcall,
            Self::Vmmcall => Self::Vmcall,
        }
    }
}

/// A hypercall with this number, at the site that the gate port (for VMCALL also
/// [`crate::publish_hypercall_gate`]) makes a gate. Where it is no gate the instruction itself is
/// executed.
pub fn gate_hypercall(instruction: Hypercall, number: u64) -> u64 {
    #[cfg(target_os = "none")]
    {
        // SAFETY: the routines touch no memory but the stack and keep to the System V calling
        // convention; a hypercall of Exitvisor's or KVM's with zero arguments changes nothing else.
        unsafe {
            match instruction {
                Hypercall::Vmcall => site::exitvisor_hypercall(number),
                Hypercall::Vmmcall => site::exitvisor_amd_hypercall(number),
            }
        }
    }
    #[cfg(not(target_os = "none"))]
    {
        let _ = (instruction, number);
        exit_abi::hypercall::UNKNOWN
    }
}

/// Linear address of the CPUID instruction in [`gate_cpuid`].
pub fn cpuid_site() -> u64 {
    #[cfg(target_os = "none")]
    {
        &raw const site::exitvisor_cpuid_site as u64
    }
    #[cfg(not(target_os = "none"))]
    0
}

/// Linear address of the instruction in [`gate_hypercall`].
pub fn hypercall_site(instruction: Hypercall) -> u64 {
    #[cfg(target_os = "none")]
    match instruction {
        Hypercall::Vmcall => &raw const site::exitvisor_hypercall_site as u64,
        Hypercall::Vmmcall => &raw const site::exitvisor_amd_hypercall_site as u64,
    }
    #[cfg(not(target_os = "none"))]
    match instruction {
        Hypercall::Vmcall => 0,
        Hypercall::Vmmcall => 1,
    }
}

/// Publishes the CPUID site by an ELF note of the image: call it once, beside `entry!`. Without
/// it [`gate_cpuid`] is an ordinary CPUID until its site is registered through the gate port.
#[macro_export]
macro_rules! publish_cpuid_gate {
    () => {
        #[cfg(target_os = "none")]
        ::core::arch::global_asm!(
            ".pushsection .note.exitvisor.cpuid, \"a\", @note",
            ".balign 4",
            ".long 10, 8, {kind}",
            ".asciz \"Exitvisor\"",
            ".balign 4",
            ".quad exitvisor_cpuid_site",
            ".popsection",
            kind = const $crate::abi::note::CPUID_GATES,
        );
    };
}

/// Publishes the VMCALL site by an ELF note of the image, like [`publish_cpuid_gate`].
#[macro_export]
macro_rules! publish_hypercall_gate {
    () => {
        #[cfg(target_os = "none")]
        ::core::arch::global_asm!(
            ".pushsection .note.exitvisor.hypercall, \"a\", @note",
            ".balign 4",
            ".long 10, 8, {kind}",
            ".asciz \"Exitvisor\"",
            ".balign 4",
            ".quad exitvisor_hypercall_site",
            ".popsection",
            kind = const $crate::abi::note::HYPERCALL_GATES,
        );
    };
}
