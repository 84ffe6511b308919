//! CPUID and VMCALL, at sites that are gates and at sites that are not.

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

    // The gate's CPUID, published by an ELF note: linear address of the instruction.
    global_asm!(
        ".pushsection .text.gate, \"ax\"",
        ".global gate_cpuid",
        "gate_cpuid:",
        "push rbx",
        "mov r8, rdx",
        "mov eax, edi",
        "mov ecx, esi",
        "xor ebx, ebx",
        "xor edx, edx",
        ".global gate_cpuid_site",
        "gate_cpuid_site:",
        "cpuid",
        "mov [r8], eax",
        "mov [r8 + 4], ebx",
        "mov [r8 + 8], ecx",
        "mov [r8 + 12], edx",
        "pop rbx",
        "ret",
        ".popsection",
        ".pushsection .note.exitvisor.cpuid, \"a\", @note",
        ".balign 4",
        ".long 10, 8, {cpuid_gates}",
        ".asciz \"Exitvisor\"",
        ".balign 4",
        ".quad gate_cpuid_site",
        ".popsection",
        cpuid_gates = const exit_abi::note::CPUID_GATES,
    );

    unsafe extern "sysv64" {
        pub(super) fn gate_cpuid(leaf: u32, subleaf: u32, into: *mut [u32; 4]);
    }
}

/// CPUID at the gate that the image's note publishes.
#[cfg(target_os = "none")]
pub fn gate_cpuid(leaf: u32, subleaf: u32) -> Registers {
    let mut r = [0; 4];
    // SAFETY: the routine writes 16 bytes to the pointer it is given and keeps to the System V
    // calling convention.
    unsafe { site::gate_cpuid(leaf, subleaf, &mut r) };
    Registers {
        eax: r[0],
        ebx: r[1],
        ecx: r[2],
        edx: r[3],
    }
}
