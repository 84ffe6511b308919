//! What a workload's count means, given what the counting source promises.

use exit_abi::leaf::flags;

use super::Item;
use crate::line::Line;

/// The judgement on one workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The source promises exactness, and the count is exact.
    Exact,
    /// The source promises exactness, and the count is another.
    Failed,
    /// The source promises nothing and saw nothing.
    NotVisible,
    /// The source promises nothing and saw some.
    AtLeast,
}

/// Judges what was counted of a workload, with FLAGS' answer for its reason.
pub fn judge(item: Item, expected: u64, counted: u64, flags: u32) -> Verdict {
    let exact = flags & flags::EXACT != 0
        || flags & flags::EXACT_IN_VMM != 0 && item.kind.is_served_by_vmm();
    match (exact, counted) {
        (true, n) if n == expected => Verdict::Exact,
        (true, _) => Verdict::Failed,
        (false, 0) => Verdict::NotVisible,
        (false, _) => Verdict::AtLeast,
    }
}

/// The line that says so.
pub fn report(line: &mut Line, item: Item, expected: u64, counted: u64, verdict: Verdict) {
    if verdict == Verdict::Failed {
        line.text("FAILED ");
    }
    line.text("workload ").text(item.kind.name()).text(": ");
    let reason = item.kind.reason();
    match verdict {
        Verdict::Failed => {
            line.text("expected ")
                .number(expected)
                .text(", counted ")
                .number(counted);
            return;
        }
        Verdict::Exact => line.text("exactly ").number(counted),
        Verdict::NotVisible => line
            .number(expected)
            .text(" done, not visible to this KVM's sources:"),
        Verdict::AtLeast => line
            .number(expected)
            .text(" done, at least ")
            .number(counted)
            .text(" counted:"),
    };
    line.text(" exits of reason ")
        .number(reason.number().into());
    line.text(" ").text(reason.name().unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::super::Kind;
    use super::*;

    fn line(kind: Kind, counted: u64, flags: u32) -> String {
        let item = Item { kind, count: 500 };
        let mut line = Line::new();
        report(
            &mut line,
            item,
            500,
            counted,
            judge(item, 500, counted, flags),
        );
        String::from_utf8_lossy(line.as_bytes()).into_owned()
    }

    #[test]
    fn verdicts() {
        let seen = flags::DEFINED | flags::CAN_OCCUR;
        let vmm = seen | flags::EXACT_IN_VMM;
        let all = seen | flags::EXACT;
        assert_eq!(
            line(Kind::Pio, 500, vmm),
            "workload pio: exactly 500 exits of reason 30 I/O instruction"
        );
        assert_eq!(
            line(Kind::Pio, 499, vmm),
            "FAILED workload pio: expected 500, counted 499"
        );
        assert_eq!(
            line(Kind::Mmio, 501, all),
            "FAILED workload mmio: expected 500, counted 501"
        );
        assert_eq!(
            line(Kind::Hlt, 0, all),
            "FAILED workload hlt: expected 500, counted 0"
        );
        assert_eq!(
            line(Kind::Cpuid, 0, seen),
            "workload cpuid: 500 done, not visible to this KVM's sources: exits of reason 10 CPUID"
        );
        assert_eq!(
            line(Kind::Hlt, 3, vmm),
            "workload hlt: 500 done, at least 3 counted: exits of reason 12 HLT"
        );
    }
}
