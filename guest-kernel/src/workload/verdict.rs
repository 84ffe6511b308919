//! What a workload's count means, given what the counting source promises.

use exit_abi::leaf::flags;
use exit_abi::reason::Reason;

use super::{Expected, Item, Kind, STRING};
use crate::line::Line;

/// The judgement on one workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The source promises exactness, and the count is right.
    Exact,
    /// The source promises exactness, and the count is another; or there is one where there can
    /// be none.
    Failed,
    /// Such an exit cannot occur on this KVM, and none was counted.
    CannotOccur,
    /// The source promises nothing and saw nothing.
    NotVisible,
    /// The source promises nothing and saw some.
    AtLeast,
}

impl Expected {
    fn admits(self, counted: u64) -> bool {
        match self {
            Self::Exactly(n) => counted == n,
            Self::Either(one, other) => counted == one || counted == other,
            Self::OneOf(counts) => counts.contains(&counted),
            Self::UpTo(most) => counted <= most,
        }
    }

    fn say(self, line: &mut Line) {
        match self {
            Self::Exactly(n) => line.number(n),
            Self::Either(one, other) => line.number(one).text(" or ").number(other),
            Self::OneOf([one, other, third]) => {
                line.number(one).text(", ").number(other);
                line.text(" or ").number(third)
            }
            Self::UpTo(most) => line.text("at most ").number(most),
        };
    }
}

/// Judges what was counted of a workload, with FLAGS' answer for its reason.
pub fn judge(kind: Kind, expected: Expected, counted: u64, flags: u32) -> Verdict {
    let exact =
        flags & flags::EXACT != 0 || flags & flags::EXACT_IN_VMM != 0 && kind.is_served_by_vmm();
    if flags & flags::CAN_OCCUR == 0 {
        return match counted {
            0 => Verdict::CannotOccur,
            _ => Verdict::Failed,
        };
    }
    match (exact, counted) {
        (true, n) if expected.admits(n) => Verdict::Exact,
        (true, _) => Verdict::Failed,
        (false, 0) => Verdict::NotVisible,
        (false, _) => Verdict::AtLeast,
    }
}

/// The line that says so.
pub fn report(line: &mut Line, item: Item, expected: Expected, counted: u64, verdict: Verdict) {
    if verdict == Verdict::Failed {
        line.text("FAILED ");
    }
    line.text("workload ").text(item.kind.name()).text(": ");
    let done = match (item.kind, expected) {
        // What else than the timer ended a HLT is repeated, and counts.
        (Kind::Hlt, Expected::Exactly(done)) => done,
        _ => item.count,
    };
    match verdict {
        Verdict::Failed => {
            line.text("expected ");
            expected.say(line);
            line.text(", counted ").number(counted);
            return;
        }
        Verdict::Exact if Expected::Exactly(done) == expected => {
            line.text("exactly ").number(counted)
        }
        Verdict::Exact => {
            line.number(done).text(" done");
            if item.kind == Kind::Outs {
                line.text(" of ").number(STRING.len() as u64).text(" bytes");
            }
            match expected {
                Expected::UpTo(_) => line.text(", ").number(counted),
                _ => line.text(", exactly ").number(counted),
            }
        }
        Verdict::CannotOccur => line.number(done).text(" done, none exits on this KVM: no"),
        Verdict::NotVisible => line
            .number(done)
            .text(" done, not visible to this KVM's sources:"),
        Verdict::AtLeast => line
            .number(done)
            .text(" done, at least ")
            .number(counted)
            .text(" counted:"),
    };
    let reason = item.kind.reason();
    line.text(" exits of reason ")
        .number(reason.number().into());
    line.text(" ").text(reason.name().unwrap_or_default());
}

/// What is added to the line for a workload's other reason.
pub fn report_besides(
    line: &mut Line,
    reason: Reason,
    expected: Expected,
    counted: u64,
    verdict: Verdict,
) {
    match verdict {
        Verdict::Failed => {
            line.text(", FAILED: expected ");
            expected.say(line);
            line.text(", counted ").number(counted)
        }
        Verdict::Exact => line.text(", exactly ").number(counted),
        Verdict::CannotOccur => line.text(", none"),
        Verdict::NotVisible => line.text(", not visible: those"),
        Verdict::AtLeast => line.text(", at least ").number(counted),
    };
    line.text(" of ").number(reason.number().into());
    line.text(" ").text(reason.name().unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEN: u32 = flags::DEFINED | flags::CAN_OCCUR;
    const VMM: u32 = SEEN | flags::EXACT_IN_VMM;
    const ALL: u32 = SEEN | flags::EXACT;

    fn line(kind: Kind, counted: u64, flags: u32) -> String {
        let item = Item { kind, count: 500 };
        let expected = kind.expected(500, 0);
        let mut line = Line::new();
        report(
            &mut line,
            item,
            expected,
            counted,
            judge(kind, expected, counted, flags),
        );
        String::from_utf8_lossy(line.as_bytes()).into_owned()
    }

    #[test]
    fn verdicts() {
        assert_eq!(
            line(Kind::Pio, 500, VMM),
            "workload pio: exactly 500 exits of reason 30 I/O instruction"
        );
        assert_eq!(
            line(Kind::Pio, 499, VMM),
            "FAILED workload pio: expected 500, counted 499"
        );
        assert_eq!(
            line(Kind::Mmio, 501, ALL),
            "FAILED workload mmio: expected 500, counted 501"
        );
        assert_eq!(
            line(Kind::Hlt, 0, ALL),
            "FAILED workload hlt: expected 500, counted 0"
        );
        assert_eq!(
            line(Kind::Cpuid, 0, SEEN),
            "workload cpuid: 500 done, not visible to this KVM's sources: exits of reason 10 CPUID"
        );
        assert_eq!(
            line(Kind::Hlt, 3, VMM),
            "workload hlt: 500 done, at least 3 counted: exits of reason 12 HLT"
        );
    }

    #[test]
    fn verdicts_with_room() {
        for per_line in [1, 16, 17] {
            assert_eq!(
                line(Kind::Outs, 500 * per_line, VMM),
                format!(
                    "workload outs: 500 done of 16 bytes, exactly {} exits of reason 30 I/O instruction",
                    500 * per_line
                )
            );
        }
        assert_eq!(
            line(Kind::Outs, 501, VMM),
            "FAILED workload outs: expected 500, 8000 or 8500, counted 501"
        );
        assert_eq!(
            line(Kind::Invlpg, 0, ALL),
            "workload invlpg: 500 done, exactly 0 exits of reason 14 INVLPG"
        );
        assert_eq!(
            line(Kind::Touch, 3, ALL),
            "workload touch: 500 done, 3 exits of reason 48 EPT violation"
        );
        assert_eq!(
            line(Kind::Touch, 501, ALL),
            "FAILED workload touch: expected at most 500, counted 501"
        );
    }

    #[test]
    fn what_cannot_occur_must_not() {
        assert_eq!(
            line(Kind::Rdtsc, 0, flags::DEFINED),
            "workload rdtsc: 500 done, none exits on this KVM: no exits of reason 16 RDTSC"
        );
        assert_eq!(
            line(Kind::Rdtsc, 1, flags::DEFINED),
            "FAILED workload rdtsc: expected 0, counted 1"
        );
    }
}
