//! The hypercall: VMCALL (Intel) or VMMCALL (AMD) with the number in RAX.

/// RAX of the one call that the coursework defines.
pub const WHO_ARE_YOU: u64 = 0x283;
/// What it returns in RAX: the bytes `CMPE283\0`.
pub const ANSWER: u64 = u64::from_le_bytes(*b"CMPE283\0");
/// What a number that nobody serves returns in RAX: -KVM_ENOSYS, as KVM itself answers. (KVM's own
/// 1, KVM_HC_VAPIC_POLL_IRQ, returns 0, and 9, KVM_HC_CLOCK_PAIRING, -95.)
pub const UNKNOWN: u64 = -1000_i64 as u64;
/// What any number returns above CPL 0: -KVM_EPERM, as KVM itself answers.
pub const NOT_PERMITTED: u64 = -1_i64 as u64;

#[cfg(test)]
mod tests {
    #[test]
    fn answer_is_the_documented_number() {
        assert_eq!(super::ANSWER, 0x0033_3832_4550_4D43);
    }
}
