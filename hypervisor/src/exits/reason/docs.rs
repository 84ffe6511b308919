//! Keeps the tables of `docs/exit-reasons.md` equal to the code.

use super::{Occurrence, kvm, occurrence, svm};
use crate::profile::KvmKind;
use exit_abi::reason::{Edition, Reason};
use std::fmt::Write;
use std::path::Path;

#[test]
fn the_document_has_the_tables_of_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/exit-reasons.md");
    let written = std::fs::read_to_string(&path).unwrap();
    let mut fresh = written.clone();
    for (name, table) in [
        ("editions", editions()),
        ("svm", svm_table()),
        ("kvm", kvm_table()),
        ("intel", occurrences(KvmKind::Intel)),
        ("amd", occurrences(KvmKind::Amd)),
        ("software", occurrences(KvmKind::Software)),
    ] {
        fresh = replace(&fresh, name, &table);
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, fresh).unwrap();
    } else {
        assert!(
            fresh == written,
            "docs/exit-reasons.md is out of date; regenerate its tables with\n\
             UPDATE_DOCS=1 cargo test -p exitvisor exits::reason::docs"
        );
    }
}

/// The text with what is between a table's marks replaced.
fn replace(text: &str, name: &str, table: &str) -> String {
    let begin = format!("<!-- table {name} -->\n");
    let end = "<!-- end -->";
    let (before, rest) = text.split_once(&begin).expect("the document has the mark");
    let (_, after) = rest.split_once(end).expect("the mark has an end");
    format!("{before}{begin}\n{table}\n{end}{after}")
}

fn mark(yes: bool) -> &'static str {
    if yes { "yes" } else { "–" }
}

fn titled(reason: Reason) -> String {
    format!("{} {}", reason.number(), reason.name().unwrap())
}

fn editions() -> String {
    let word = |kind, reason| match occurrence(kind, reason) {
        Occurrence::Yes => "yes",
        Occurrence::When(_) => "when",
        Occurrence::Never(_) => "–",
    };
    let mut table =
        String::from("| reason | in `2020` | Intel | AMD | software |\n|---|---|---|---|---|\n");
    for reason in Reason::all().filter(|r| r.is_defined(Edition::Current)) {
        writeln!(
            table,
            "| {} | {} | {} | {} | {} |",
            titled(reason),
            mark(reason.is_defined(Edition::Sdm2020)),
            word(KvmKind::Intel, reason),
            word(KvmKind::Amd, reason),
            word(KvmKind::Software, reason),
        )
        .unwrap();
    }
    table
}

fn svm_table() -> String {
    let mut table = String::from("| code | name | reason | note |\n|---|---|---|---|\n");
    for row in svm::TABLE {
        let count = row.names.len() as u64;
        let last = row.first + (count - 1);
        let (code, names) = match (count, row.names) {
            (1, names) => (hex(row.first), names[0].to_owned()),
            (2, names) => (
                format!("{}, {}", hex(row.first), hex(last)),
                names.join(", "),
            ),
            (_, names) => (
                format!("{} – {}", hex(row.first), hex(last)),
                format!("{} – {}", names[0], names[names.len() - 1]),
            ),
        };
        let reason = match row.to {
            svm::To::Reason(reason) => titled(reason),
            svm::To::Msr => "31 or 32".to_owned(),
            svm::To::NestedFault => "48 or 49".to_owned(),
            svm::To::ApicAccess => "44, 45 or 56".to_owned(),
            svm::To::Nothing => "none".to_owned(),
        };
        writeln!(table, "| {code} | {names} | {reason} | {} |", row.why).unwrap();
    }
    table
}

fn hex(code: u64) -> String {
    match i64::try_from(code) {
        Ok(_) => format!("{code:#04X}").replace("0X", "0x"),
        Err(_) => (code as i64).to_string(),
    }
}

fn kvm_table() -> String {
    let mut table = String::from("| number | name | reason | note |\n|---|---|---|---|\n");
    for row in kvm::TABLE.iter().filter(|row| row.why != "not on x86") {
        let exit = match row.exit {
            kvm::KvmExit::Reason(reason) => titled(reason),
            kvm::KvmExit::NotAnExit => "not an exit".to_owned(),
            kvm::KvmExit::Other => "other".to_owned(),
        };
        let name = row.name.trim_start_matches("KVM_EXIT_");
        writeln!(table, "| {} | {name} | {exit} | {} |", row.number, row.why).unwrap();
    }
    table
}

/// Reasons with the same answer in one row, in the order of the first.
fn occurrences(kind: KvmKind) -> String {
    let mut groups: Vec<(Occurrence, Vec<String>)> = Vec::new();
    for reason in Reason::all().filter(|r| r.is_defined(Edition::Current)) {
        let answer = occurrence(kind, reason);
        let number = reason.number().to_string();
        match groups.iter_mut().find(|(seen, _)| *seen == answer) {
            Some((_, numbers)) => numbers.push(number),
            None => groups.push((answer, vec![number])),
        }
    }
    let rank = |answer: &Occurrence| match answer {
        Occurrence::Yes => 0,
        Occurrence::When(_) => 1,
        Occurrence::Never(_) => 2,
    };
    groups.sort_by_key(|(answer, _)| rank(answer));

    let mut table = String::from("| reasons | occur | |\n|---|---|---|\n");
    for (answer, numbers) in groups {
        let (word, why) = match answer {
            Occurrence::Yes => ("yes", ""),
            Occurrence::When(why) => ("when", why),
            Occurrence::Never(why) => ("never", why),
        };
        writeln!(table, "| {} | {word} | {why} |", numbers.join(", ")).unwrap();
    }
    table
}
