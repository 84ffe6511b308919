//! The VMX capability report.

use serde_json::json;

use super::super::evidence::Evidence;
use super::super::results::{Answered, Table};
use super::super::survey::{Group, Setting, Survey, Svm};
use super::{row, short};

/// The fields that the coursework asks for, as they begin.
const ASKED: [&str; 5] = [
    "pin-based",
    "primary processor",
    "secondary",
    "exit",
    "entry",
];

pub(super) fn answer(labs: &[Evidence]) -> Answered {
    let mut answered = Answered {
        title: "What can KVM intercept and control?".to_owned(),
        question: "Read the VMX capability MSRs, and say of each pin-based, primary, secondary, exit and \
                   entry control whether it can be set and whether it can be cleared."
            .to_owned(),
        source: "`exitvisor caps`, by KVM_GET_MSRS on `/dev/kvm`: what KVM offers a guest that is itself to be a \
                 hypervisor. On bare hardware, as root, the CPU's own values stand beside them. \
                 `capabilities.csv` has every bit."
            .to_owned(),
        why: "The low half of each MSR has the bits that must be 1, the high half those that may be (SDM \
              volume 3D, A.3 to A.5): a control can be cleared if its low bit is 0, and set if its high bit is \
              1. Where KVM emulates VMX it offers what it can emulate, so this is no more than the CPU has. \
              AMD has no such MSRs: SVM intercepts are bits of the VMCB that may all be set, and what else \
              there is, CPUID 0x8000000A tells."
            .to_owned(),
        ..Answered::default()
    };
    let header = [
        "lab",
        "field",
        "bit",
        "control",
        "can be set",
        "can be cleared",
    ];
    answered.csv.push(row(header));
    for lab in labs {
        let survey = match lab.survey("capabilities") {
            Ok(survey) => survey,
            Err(why) => {
                answered.not_run(&lab.title, why);
                continue;
            }
        };
        if survey.vmx.controls.is_empty() {
            let why = survey.vmx.no_guest.as_deref().unwrap_or("it offers none");
            let name = short(&lab.title);
            answered.text(format!("**{name}** has no VMX capability MSRs: {why}."));
        } else {
            vmx(&mut answered, lab, survey);
        }
        // Of another vendor's CPU it says that there is nothing.
        if let Some(of) = survey.svm.as_ref().filter(|_| survey.host.kvm == "amd") {
            svm(&mut answered, lab, of);
        }
    }
    answered
}

fn vmx(answered: &mut Answered, lab: &Evidence, survey: &Survey) {
    let name = short(&lab.title);
    let missing: Vec<&str> = ASKED
        .into_iter()
        .filter(|asked| !survey.vmx.controls.iter().any(|group| is(group, asked)))
        .collect();
    answered.expect(
        &lab.title,
        "pin-based, primary, secondary, exit and entry controls are reported",
        missing.is_empty(),
        format!("no {}", missing.join(", ")),
    );
    if let Some(why) = &survey.vmx.no_cpu {
        answered.text(format!(
            "**{name}**: of the bare CPU's own values nothing is known: {why}."
        ));
    }
    let mut figures = Vec::new();
    for group in &survey.vmx.controls {
        let msr = group.msr.guest.as_deref().unwrap_or_default();
        let value = survey.vmx.value(msr);
        let wrong: Vec<u8> = group
            .controls
            .iter()
            .filter(|control| control.guest != value.and_then(|v| of_msr(v, control.bit)))
            .map(|control| control.bit)
            .collect();
        answered.expect(
            &lab.title,
            "each control is what its MSR's two halves say",
            wrong.is_empty(),
            format!("{msr}, bits {wrong:?}"),
        );
        let shown = value.map_or_else(|| "unknown".to_owned(), |v| format!("`{v:#018x}`"));
        let caption = format!("{name}, {}: {msr} = {shown}", group.title);
        let bare = group.controls.iter().any(|control| control.cpu.is_some());
        let mut columns = vec![">bit", "control", "can be set", "can be cleared"];
        if bare {
            columns.extend(["on this CPU: set", "cleared"]);
        }
        let mut table = Table::new(&caption, columns);
        for control in &group.controls {
            let Some(setting) = control.guest else {
                continue;
            };
            let title = control.name.as_deref();
            let cells = [yes(setting.can_be_set), yes(setting.can_be_cleared)];
            let bit = control.bit.to_string();
            let known = title.unwrap_or("reserved");
            answered
                .csv
                .push(row([name, &group.title, &bit, known, cells[0], cells[1]]));
            figures.push(json!({
                "field": group.title, "msr": msr, "bit": control.bit, "control": title,
                "can_be_set": setting.can_be_set, "can_be_cleared": setting.can_be_cleared,
            }));
            if title.is_none() {
                continue;
            }
            let mut cells = vec![bit.as_str(), known, cells[0], cells[1]];
            if bare {
                let cpu = |of: fn(Setting) -> bool| control.cpu.map_or("?", |cpu| yes(of(cpu)));
                cells.extend([cpu(|s| s.can_be_set), cpu(|s| s.can_be_cleared)]);
            }
            table.row(cells);
        }
        answered.table(table);
    }
    let value = json!({"controls": figures});
    answered.figures.insert(lab.title.clone(), value);
}

fn is(group: &Group, asked: &str) -> bool {
    group.title.split(' ').any(|word| {
        let word = word.strip_prefix("VM-").unwrap_or(word);
        word == asked || asked.contains(' ') && group.title.starts_with(asked)
    })
}

/// What the two halves of a capability MSR say of one bit.
fn of_msr(value: u64, bit: u8) -> Option<Setting> {
    (bit < 32).then(|| Setting {
        can_be_set: value >> (bit + 32) & 1 == 1,
        can_be_cleared: value >> bit & 1 == 0,
    })
}

fn svm(answered: &mut Answered, lab: &Evidence, svm: &Svm) {
    let name = short(&lab.title);
    let nested = svm.features.iter().find(|feature| feature.name == "NP");
    answered.expect(
        &lab.title,
        "SVM's features are reported, and the CPU has nested paging",
        nested.is_some_and(|feature| feature.cpu == Some(true)),
        "not so",
    );
    let caption = format!("{name}, SVM's features (CPUID 0x8000000A, EDX)");
    let columns = [
        "feature",
        "meaning",
        "the CPU has it",
        "KVM offers it to guests",
    ];
    let mut table = Table::new(&caption, columns);
    let known = |has: Option<bool>| has.map_or("?", yes);
    for feature in &svm.features {
        let (cpu, guest) = (known(feature.cpu), known(feature.guest));
        table.row([feature.name.as_str(), feature.meaning.as_str(), cpu, guest]);
    }
    answered.table(table);
    let features = svm.features.iter();
    let features = features.map(|f| json!({"name": f.name, "cpu": f.cpu, "guest": f.guest}));
    let features: Vec<_> = features.collect();
    answered
        .figures
        .insert(lab.title.clone(), json!({"svm": features}));
}

fn yes(is: bool) -> &'static str {
    if is { "yes" } else { "no" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_an_msr() {
        let of = |bit| of_msr(0x0000_007F_0000_0016, bit).map(|s| (s.can_be_set, s.can_be_cleared));
        assert_eq!(of(0), Some((true, true)));
        assert_eq!(of(1), Some((true, false)));
        assert_eq!(of(7), Some((false, true)));
        assert_eq!(of(32), None);
    }
}
