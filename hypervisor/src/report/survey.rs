//! The survey of a host, for people and for programs: what its KVM can intercept and control.

use super::format::{NONE, clean, fit, labelled, width};
use super::json::pretty;
use super::table::{Side, Table};
use crate::profile::KvmKind;
use crate::survey::Survey;
use crate::survey::capabilities::Capability;
use crate::survey::svm::Svm;
use crate::survey::vmx::{Both, Choice, Control, Group, Vmx};
use Side::{Left, Right};

/// Where the text behind a label begins.
const INDENT: usize = 12;

/// Everything, as indented JSON.
pub fn json(survey: &Survey) -> String {
    pretty(survey)
}

/// Sections of tables.
pub fn text(survey: &Survey) -> String {
    let mut sections = vec![head(survey), parameters(survey)];
    if !survey.capabilities.is_empty() {
        sections.push(capabilities(&survey.capabilities));
    }
    sections.extend(vmx(&survey.vmx));
    sections.push(svm(&survey.svm, survey.no_kvm.is_some()));
    let sections: Vec<String> = sections.into_iter().filter(|s| !s.is_empty()).collect();
    sections.join("\n")
}

fn head(survey: &Survey) -> String {
    let host = &survey.host;
    let tool = &survey.tool;
    let title = "what this host's KVM can intercept and control";
    let mut out = labelled("", 0, &format!("{} {} · {title}", tool.name, tool.version));
    let virtual_machine = match survey.virtual_machine {
        true => " · of a virtual machine",
        false => "",
    };
    let cpu = format!("{} · {}{virtual_machine}", host.cpu, survey.vendor);
    out += &labelled("CPU", INDENT, &clean(&cpu));
    out += &labelled("kernel", INDENT, &clean(&format!("Linux {}", host.kernel)));
    let kvm = match host.kvm {
        KvmKind::Software => format!("{}: software, no hardware exits", survey.kvm()),
        _ => survey.kvm().to_owned(),
    };
    let paging = match host.paging.as_str() {
        paging @ ("nested" | "shadow") => format!(" · {paging} paging"),
        _ => String::new(),
    };
    out += &labelled("KVM", INDENT, &(kvm + &paging));
    if let Some(why) = &survey.no_kvm {
        out += &labelled("", INDENT, &format!("▲ {}", clean(why)));
    }
    let sources = &survey.sources;
    let widest = sources.iter().map(|s| width(&s.name)).max().unwrap_or(0);
    for (i, source) in sources.iter().enumerate() {
        let label = if i == 0 { "sources" } else { "" };
        let mark = if source.available { '●' } else { '○' };
        let gap = " ".repeat(widest.saturating_sub(width(&source.name)));
        let label = format!("{label:INDENT$}{mark} {}{gap}", source.name);
        out += &labelled(&label, INDENT + widest + 4, &clean(&source.completeness));
    }
    out
}

fn parameters(survey: &Survey) -> String {
    let mut out = String::new();
    for module in survey.modules.iter().filter(|m| !m.parameters.is_empty()) {
        let all = module.parameters.iter();
        // Held together: a value can have several words.
        let all = all.map(|(name, value)| format!("{name}={value}").replace(' ', "\u{a0}"));
        let all = clean(&all.collect::<Vec<_>>().join(" "));
        out += &labelled(&module.name, INDENT, &all);
    }
    out
}

fn capabilities(all: &[Capability]) -> String {
    let mut table = Table::new(&[("KVM_CAP_…", Left), ("value", Left), ("what for", Left)]);
    for capability in all {
        let value = match (capability.value, capability.unit) {
            (0, _) => "no".to_owned(),
            (value, Some(unit)) => format!("{value} {unit}"),
            _ => "yes".to_owned(),
        };
        table.row(vec![
            capability.name.to_owned(),
            value,
            capability.purpose.to_owned(),
        ]);
        for line in wrapped(capability.flags.as_deref().unwrap_or_default()) {
            table.row(vec![String::new(), String::new(), format!("  {line}")]);
        }
    }
    table.render()
}

/// Names, as many to a line as fit beside the other columns.
fn wrapped(names: &[String]) -> Vec<String> {
    const ROOM: usize = 72;
    let mut lines: Vec<String> = Vec::new();
    for name in names {
        match lines.last_mut() {
            Some(line) if width(line) + 1 + width(name) <= ROOM => {
                line.push(' ');
                line.push_str(name);
            }
            _ => lines.push(name.clone()),
        }
    }
    lines
}

/// Whose columns there are.
fn columns<T>(both: Both<&T>) -> Vec<Option<&T>> {
    [both.guest, both.cpu].into_iter().collect()
}

fn vmx(vmx: &Vmx) -> Vec<String> {
    let mut about = String::from("VMX\n");
    let offered = match &vmx.no_guest {
        Some(why) => clean(why),
        None => "what KVM offers to a guest, which is not all that KVM itself uses".to_owned(),
    };
    about += &labelled("  guest", INDENT, &offered);
    let own = match &vmx.no_cpu {
        Some(why) => clean(why),
        None => "this CPU's own (/dev/cpu/0/msr)".to_owned(),
    };
    about += &labelled("  CPU", INDENT, &own);
    let mut sections = vec![about];
    if vmx.msrs.is_empty() {
        return sections;
    }
    let mut table = Table::new(&[("MSR", Left), ("", Left), ("guest", Right), ("CPU", Right)]);
    for msr in &vmx.msrs {
        let shown = |value: Option<&_>| cell(value, ToString::to_string);
        let mut row = vec![msr.number.clone(), msr.name.to_owned()];
        row.extend(cells(vmx, columns(msr.values.as_ref()), shown));
        table.row(row);
    }
    sections.push(table.render());
    sections.extend(vmx.controls.iter().map(|group| controls(vmx, group, "")));
    let bits = |group: &Group| controls(vmx, group, " in VMX operation");
    sections.extend(vmx.registers.iter().map(bits));
    sections.push(features(vmx));
    sections
}

impl<T> Both<T> {
    fn as_ref(&self) -> Both<&T> {
        Both {
            guest: self.guest.as_ref(),
            cpu: self.cpu.as_ref(),
        }
    }
}

fn cell<T>(value: Option<&T>, shown: impl Fn(&T) -> String) -> String {
    value.map_or_else(|| NONE.to_owned(), shown)
}

/// The cells of guest and CPU; empty, so that the column is left out, where nothing is known of
/// either at all.
fn cells<T>(
    vmx: &Vmx,
    values: Vec<Option<&T>>,
    shown: impl Fn(Option<&T>) -> String,
) -> Vec<String> {
    let known = [vmx.no_guest.is_none(), vmx.no_cpu.is_none()];
    let both = values.into_iter().zip(known);
    both.map(|(value, known)| if known { shown(value) } else { String::new() })
        .collect()
}

fn yes(is: bool) -> String {
    if is { "yes" } else { "no" }.to_owned()
}

/// A table of controls; bits without a name stand in a line below.
fn controls(vmx: &Vmx, group: &Group, suffix: &str) -> String {
    let mut table = Table::new(&[
        ("bit", Right),
        (&format!("{}{suffix}", group.title), Left),
        ("guest: can set", Left),
        ("can clear", Left),
        ("CPU: can set", Left),
        ("can clear", Left),
    ]);
    for control in group.controls.iter().filter(|c| c.name.is_some()) {
        let set = |c: Option<&Choice>| cell(c, |c| yes(c.can_be_set));
        let clear = |c: Option<&Choice>| cell(c, |c| yes(c.can_be_cleared));
        let settings = || columns(control.settings.as_ref());
        let (set, clear) = (cells(vmx, settings(), set), cells(vmx, settings(), clear));
        let mut row = vec![
            control.bit.to_string(),
            control.name.unwrap_or_default().to_owned(),
        ];
        row.extend(set.into_iter().zip(clear).flat_map(|(s, c)| [s, c]));
        table.row(row);
    }
    let mut out = table.render();
    let of = [("guest", 0), ("CPU", 1)];
    for (whose, i) in of {
        let choice = |c: &Control| columns(c.settings.as_ref())[i].copied();
        let bits = |wanted: Choice| {
            let unnamed = group.controls.iter().filter(|c| c.name.is_none());
            let bits = unnamed.filter(|c| choice(c) == Some(wanted));
            let bits: Vec<String> = bits.map(|c| c.bit.to_string()).collect();
            bits.join(", ")
        };
        let choice = |can_be_cleared| Choice {
            can_be_set: true,
            can_be_cleared,
        };
        for (what, bits) in [
            ("reserved, always 1", bits(choice(false))),
            ("without a name here, can set and clear", bits(choice(true))),
        ] {
            if !bits.is_empty() {
                out += &labelled("     ", 5, &format!("{whose}: {what}: {bits}"));
            }
        }
    }
    out
}

fn features(vmx: &Vmx) -> String {
    let mut table = Table::new(&[
        ("bit", Right),
        ("further capabilities", Left),
        ("", Left),
        ("guest", Left),
        ("CPU", Left),
    ]);
    for feature in &vmx.features {
        let has = |has: Option<&bool>| cell(has, |has| yes(*has));
        let name = feature.name.unwrap_or("without a name here");
        let mut row = vec![
            feature.bit.to_string(),
            feature.about.to_owned(),
            name.to_owned(),
        ];
        row.extend(cells(vmx, columns(feature.has.as_ref()), has));
        table.row(row);
    }
    for number in &vmx.numbers {
        let shown = |value: Option<&u64>| cell(value, u64::to_string);
        let mut row = vec![String::new(), "number".to_owned(), number.name.to_owned()];
        row.extend(cells(vmx, columns(number.values.as_ref()), shown));
        table.row(row);
    }
    table.render()
}

fn svm(svm: &Svm, no_kvm: bool) -> String {
    let revision = |of: Option<crate::survey::svm::Revision>, without: &str| match of {
        Some(r) => format!("revision {}, {} ASIDs", r.revision, r.asids),
        None => without.to_owned(),
    };
    let mut out = String::from("SVM\n");
    let without = match no_kvm {
        true => "there is no usable /dev/kvm",
        false => "KVM offers none to a guest",
    };
    out += &labelled("  guest", INDENT, &revision(svm.guest, without));
    out += &labelled("  CPU", INDENT, &revision(svm.cpu, "it has none"));
    if svm.features.is_empty() {
        return out;
    }
    let mut table = Table::new(&[
        ("bit", Right),
        ("SVM feature", Left),
        ("", Left),
        ("guest", Left),
        ("CPU", Left),
    ]);
    for feature in &svm.features {
        let has = |has: Option<bool>| has.map_or_else(String::new, yes);
        table.row(vec![
            feature.bit.to_string(),
            feature.name.unwrap_or(NONE).to_owned(),
            fit(feature.meaning.unwrap_or("without a name here"), 60),
            has(feature.guest),
            has(feature.cpu),
        ]);
    }
    out + "\n" + &table.render()
}

#[cfg(test)]
mod tests {
    use super::super::format::WIDTH;
    use super::*;
    use crate::survey::fixtures;

    #[test]
    fn an_intel_host() {
        insta::assert_snapshot!(text(&fixtures::intel()));
    }

    #[test]
    fn a_host_without_kvm() {
        let text = text(&fixtures::without_kvm());
        assert!(!text.contains('\u{1b}'));
        insta::assert_snapshot!(text);
    }

    /// Whoever changes this snapshot changes the schema.
    #[test]
    fn schema() {
        let mut survey = fixtures::intel();
        survey.vmx.controls[0].controls.truncate(2);
        survey.vmx.registers[0].controls.truncate(1);
        survey.vmx.features.truncate(1);
        survey.vmx.numbers.truncate(1);
        survey.svm.features = fixtures::without_kvm().svm.features;
        survey.svm.features.truncate(1);
        insta::assert_snapshot!(json(&survey));
    }

    #[test]
    fn no_line_is_too_wide() {
        for survey in [fixtures::intel(), fixtures::without_kvm()] {
            for line in text(&survey).lines() {
                assert!(width(line) <= WIDTH && !line.ends_with(' '), "{line}");
            }
        }
    }

    #[test]
    fn names_are_wrapped() {
        let names: Vec<String> = (0..12).map(|n| format!("NAME_OF_FLAG_{n}")).collect();
        let lines = wrapped(&names);
        assert!(lines.len() > 1 && lines.iter().all(|line| width(line) <= 72));
        assert_eq!(lines.join(" "), names.join(" "));
        assert!(wrapped(&[]).is_empty());
    }
}
