//! The exit page, as the guests that read it see it.

use exit_abi::leaf;
use exit_abi::page::{ADDRESS, Head};
use guest_kernel::arch::gate::cpuid;

use crate::{check, check_eq};

/// More than any exit page has: 254 records of 16 KiB and the head fit.
const SIZE_MAX: u64 = 4 << 20;

/// Loads a word of the page, at an offset below [`SIZE_MAX`].
pub fn load(offset: u64) -> u64 {
    let value;
    // SAFETY: the entry's page tables map the page where it is; where there is none, no device is
    // either, so that a load changes nothing. One MOV, because an emulator decodes it.
    unsafe {
        core::arch::asm!("mov {}, [{}]", out(reg) value, in(reg) ADDRESS + offset,
            options(readonly, nostack, preserves_flags));
    }
    value
}

/// The head, as the leaf leads to it; ends the guest with 1, 2 or 3 if it does not.
pub fn find() -> Head {
    let info = cpuid(leaf::INFO, 0);
    check_eq(1, info.ebx, 1, "the leaf says that there is an exit page");
    check_eq(2, u64::from(info.ecx) << 12, ADDRESS, "and where");
    match Head::read(SIZE_MAX, load) {
        Ok(head) => head,
        Err(error) => {
            check_eq(3, Some(error), None, "the head");
            unreachable!()
        }
    }
}

/// Exits of a reason, all vCPUs together; of rows without one if it is none.
pub fn exits_of(head: &Head, reason: Option<u8>) -> u64 {
    sum(head, reason, |vcpu, row| head.exits(vcpu, row, load))
}

/// Cycles of a reason, all vCPUs together.
pub fn cycles_of(head: &Head, reason: u8) -> u64 {
    sum(head, Some(reason), |vcpu, row| {
        head.cycles_of_times(&head.row(vcpu, row, load))
    })
}

/// All exits.
pub fn total(head: &Head) -> u64 {
    (0..head.vcpus).fold(0, |sum, vcpu| sum + of_vcpu(head, vcpu))
}

/// All exits of a vCPU.
pub fn of_vcpu(head: &Head, vcpu: u64) -> u64 {
    (0..head.rows).fold(0, |sum, row| sum + head.exits(vcpu, row, load))
}

fn sum(head: &Head, reason: Option<u8>, of: impl Fn(u64, u64) -> u64) -> u64 {
    (0..head.rows)
        .filter(|&row| head.reason(row, load).map(|r| r.number()) == reason)
        .flat_map(|row| (0..head.vcpus).map(move |vcpu| (vcpu, row)))
        .fold(0, |sum, (vcpu, row)| sum + of(vcpu, row))
}

/// Checks that every row is in order, with this number.
pub fn check_rows(number: u32, head: &Head) {
    for vcpu in 0..head.vcpus {
        for row in 0..head.rows {
            let row = head.row(vcpu, row, load);
            check(
                number,
                row.own_timed <= row.timed && row.timed <= row.exits && row.own_time <= row.time,
                "own ≤ timed ≤ exits",
            );
        }
    }
}
