//! What CPUID says of the machine, compared with how many vCPUs the command line says there are.
#![cfg_attr(target_os = "none", no_std, no_main)]

guest_kernel::entry!(guest);

#[cfg(not(target_os = "none"))]
fn guest(_: u32) -> u32 {
    0
}

#[cfg(target_os = "none")]
fn guest(start_info: u32) -> u32 {
    use core::arch::x86_64::{__cpuid_count, CpuidResult};
    use test_guests::{check, check_eq};

    let cpus = test_guests::cmdline_number(start_info);
    let several = cpus > 1;
    let ids = cpus.next_power_of_two();
    let bits = ids.trailing_zeros();
    let ask = |leaf, subleaf| -> CpuidResult { __cpuid_count(leaf, subleaf) };

    let most = ask(0, 0);
    let amd = [most.ebx, most.edx, most.ecx] == [0x6874_7541, 0x6974_6E65, 0x444D_4163];
    let one = ask(1, 0);
    check_eq(1, one.ebx >> 24, 0, "the boot CPU's APIC ID");
    check_eq(2, one.ebx >> 16 & 0xFF, ids, "APIC IDs of the package");
    check_eq(3, one.edx >> 28 & 1 == 1, several, "HTT");
    check(4, one.ecx >> 31 == 1, "a hypervisor");
    check_eq(5, one.edx >> 12 & 1, 0, "no MTRRs");
    if most.eax >= 0xB {
        let (threads, cores, end) = (ask(0xB, 0), ask(0xB, 1), ask(0xB, 2));
        check_eq(6, (threads.eax, threads.ebx), (0, 1), "one thread a core");
        check_eq(7, (cores.eax, cores.ebx), (bits, cpus), "cores");
        check_eq(8, (threads.ecx, cores.ecx), (0x100, 0x201), "levels");
        check_eq(9, (end.ebx, end.ecx), (0, 2), "no third level");
        check_eq(10, [threads.edx, cores.edx, end.edx], [0; 3], "x2APIC ID");
    }
    if amd && ask(0x8000_0000, 0).eax >= 0x8000_0008 {
        let ecx = ask(0x8000_0008, 0).ecx;
        check_eq(11, (ecx & 0xFF, ecx >> 12 & 0xF), (cpus - 1, bits), "AMD's");
        let legacy = ask(0x8000_0001, 0).ecx >> 1 & 1 == 1;
        check_eq(12, legacy, several, "CmpLegacy");
    }
    let kvm = ask(0x4000_0000, 0);
    let name = [kvm.ebx, kvm.ecx, kvm.edx];
    check_eq(13, name, [0x4B4D_564B, 0x564B_4D56, 0x4D], "KVM");
    let features = ask(0x4000_0001, 0).eax;
    check_eq(
        14,
        features & (1 << 4 | 1 << 10 | 1 << 14),
        0,
        "no async faults",
    );
    check(15, features & 1 << 3 != 0, "kvmclock");
    if kvm.eax >= 0x4000_0010 {
        let rates = ask(0x4000_0010, 0);
        check(16, rates.eax > 1_000, "the TSC's kHz");
        check_eq(17, rates.ebx, 1_000_000, "the local APIC's kHz");
    }
    0
}
