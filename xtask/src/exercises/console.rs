//! What the guest kernel prints, read back: the exit log's lines, answers of leaves, the hypercall.

use exit_abi::leaf::Registers;
use serde::Serialize;

/// One record of the exit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Record {
    /// The milestone's name, or `query N`.
    pub(crate) label: String,
    /// The leaf that was asked.
    pub(crate) leaf: u32,
    pub(crate) exits: u64,
    pub(crate) cycles: u64,
    /// The line in the coursework's form, without what comes before.
    pub(crate) line: String,
    /// Exits by reason, the largest first.
    pub(crate) reasons: Vec<Counted>,
}

/// One reason in a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Counted {
    pub(crate) reason: u32,
    pub(crate) exits: u64,
    /// Since the record before.
    pub(crate) growth: i64,
}

const LOG: &str = "[exit-log] ";

/// The records, a list for each boot.
pub(crate) fn boots(console: &str) -> Vec<Vec<Record>> {
    let mut boots: Vec<Vec<Record>> = Vec::new();
    // The lines that follow tell of cycles.
    let mut cycles = false;
    for line in console.lines().filter_map(|line| line.strip_prefix(LOG)) {
        if let Some(record) = record(line) {
            cycles = false;
            let again = |boot: &Vec<Record>| boot.iter().any(|r| r.label == record.label);
            match boots.last_mut() {
                Some(boot) if !again(boot) => boot.push(record),
                _ => boots.push(vec![record]),
            }
        } else if let Some(last) = boots.last_mut().and_then(|boot| boot.last_mut())
            && let Some(rest) = line.strip_prefix(last.label.as_str())
        {
            cycles |= rest.trim().starts_with("cycles: ");
            let reasons: Option<Vec<Counted>> = rest.trim().split(" · ").map(counted).collect();
            last.reasons
                .extend(reasons.filter(|_| !cycles).unwrap_or_default());
        }
    }
    boots
}

/// `done         CPUID(0x4FFFFFFF), exits= 219, cycles spent in exit= 40463473`
fn record(line: &str) -> Option<Record> {
    let at = line.find("CPUID(0x")?;
    let (label, rest) = line.split_at(at);
    let (leaf, figures) = rest.strip_prefix("CPUID(0x")?.split_once("), exits= ")?;
    let (exits, cycles) = figures.split_once(", cycles spent in exit= ")?;
    Some(Record {
        label: label.trim().to_owned(),
        leaf: u32::from_str_radix(leaf, 16).ok()?,
        exits: exits.parse().ok()?,
        cycles: cycles.parse().ok()?,
        line: rest.to_owned(),
        reasons: Vec::new(),
    })
}

/// `0 exception or NMI 151 +23`
fn counted(text: &str) -> Option<Counted> {
    let (reason, rest) = text.split_once(' ')?;
    let mut words = rest.rsplit(' ');
    let (growth, exits) = (words.next()?, words.next()?);
    Some(Counted {
        reason: reason.parse().ok()?,
        exits: exits.parse().ok()?,
        growth: growth.parse().ok()?,
    })
}

/// An answer that `leaves=` printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) leaf: u32,
    pub(crate) ecx: u32,
    pub(crate) registers: Registers,
}

/// The answers of leaves, in the order in which they were asked.
pub(crate) fn answers(console: &str) -> Vec<Answer> {
    console.lines().filter_map(answer).collect()
}

/// `[leaves] CPUID(0x4FFFFFFD, 35): EAX 00000000 EBX 00000000 ECX 00000000 EDX FFFFFFFF`
fn answer(line: &str) -> Option<Answer> {
    let rest = line.strip_prefix("[leaves] CPUID(0x")?;
    let (leaf, rest) = rest.split_once(", ")?;
    let (ecx, rest) = rest.split_once("): ")?;
    let words: Vec<&str> = rest.split(' ').collect();
    let ["EAX", eax, "EBX", ebx, "ECX", answered, "EDX", edx] = words[..] else {
        return None;
    };
    let hex = |text| u32::from_str_radix(text, 16).ok();
    Some(Answer {
        leaf: hex(leaf)?,
        ecx: ecx.parse().ok()?,
        registers: Registers {
            eax: hex(eax)?,
            ebx: hex(ebx)?,
            ecx: hex(answered)?,
            edx: hex(edx)?,
        },
    })
}

/// What the hypercall of this number answered, as the guest showed it.
pub(crate) fn hypercall(console: &str, number: u64) -> Option<&str> {
    let start = format!("hypercall {number:#x}: ");
    console.lines().find_map(|line| line.strip_prefix(&start))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "\
exitvisor: notice
[exit-log] kernel entry CPUID(0x4FFFFFFF), exits= 36, cycles spent in exit= 9131772
[exit-log] kernel entry   30 I/O instruction 15 +15 · 28 CR access 6 +6
[exit-log] kernel entry   31 RDMSR 2 +2
[exit-log] done         CPUID(0x4FFFFFFF), exits= 219, cycles spent in exit= 40463473
[exit-log] done           0 exception or NMI 151 +151 · 30 I/O instruction 36 +21
[exit-log] done           cycles: 0 exception or NMI 22435892 +3295196 · 12 HLT 2486499 +0
[exit-log] done           31 RDMSR 160020 +0
[exit-log] kernel entry CPUID(0x4FFFFFFF), exits= 7, cycles spent in exit= 1
[exit-log] kernel entry   nothing counted
";

    #[test]
    fn the_exit_log() {
        let boots = boots(CONSOLE);
        let shape: Vec<Vec<_>> = boots
            .iter()
            .map(|boot| boot.iter().map(|r| (r.label.as_str(), r.exits)).collect())
            .collect();
        assert_eq!(
            shape,
            [
                vec![("kernel entry", 36), ("done", 219)],
                vec![("kernel entry", 7)]
            ]
        );
        let counted: Vec<_> = boots[0][0]
            .reasons
            .iter()
            .map(|c| (c.reason, c.exits))
            .collect();
        assert_eq!(counted, [(30, 15), (28, 6), (31, 2)]);
        let done = &boots[0][1];
        assert_eq!((done.reasons.len(), done.reasons[1].growth), (2, 21));
        assert_eq!(
            done.line,
            "CPUID(0x4FFFFFFF), exits= 219, cycles spent in exit= 40463473"
        );
        assert!(boots[1][0].reasons.is_empty());
    }

    #[test]
    fn answers_of_leaves() {
        let line =
            "[leaves] CPUID(0x4FFFFFFD, 35): EAX 00000001 EBX 00000000 ECX 00000002 EDX FFFFFFFF";
        let damaged = "[leaves] CPUID(0x4FFFFFFD, 35): EAX 0000000g EBX 0 ECX 0 EDX 0";
        let answers = answers(&format!("{line}\n{damaged}\n[leaves] nobody says\n"));
        let registers = Registers {
            eax: 1,
            ebx: 0,
            ecx: 2,
            edx: u32::MAX,
        };
        let (leaf, ecx) = (0x4FFF_FFFD, 35);
        assert_eq!(
            answers,
            [Answer {
                leaf,
                ecx,
                registers
            }]
        );
    }

    #[test]
    fn the_hypercall() {
        let console = "hypercall 0x283: 0x0033383245504d43 \"CMPE283\"\nhypercall 0x284: -1000\n";
        assert_eq!(hypercall(console, 0x284), Some("-1000"));
        assert_eq!(hypercall(console, 0x285), None);
    }
}
