//! The boot profile as a page of text: what the boot cost, where it jumped, and through what.

use super::accounts;
use super::durations::{self, Scale};
use super::format::{
    Clock, GLUE, NONE, WIDTH, bar, bytes, clean, count, count_or_none, fit, glued, grouped,
    labelled, percent, shade, si, width,
};
use super::table::{Side, Table};
use crate::profile::figures::{Cause, END, KVM_RUN, Part, Step, share};
use crate::profile::{EndKind, GateFigures, KvmKind, MemoryAccount, Profile, SourceInfo};
use Side::{Left, Right};

/// Where the text behind a label begins.
const INDENT: usize = 11;
/// Width of a bar.
const BAR: usize = 14;
/// Widest name of a milestone or a reason.
const NAME: usize = 26;
/// What points at the jump.
const JUMP: &str = "← jump";

/// The profile as text, at most 120 columns wide.
pub fn render(profile: &Profile) -> String {
    let sections = [
        title(profile) + &alarm(profile) + &facts(profile),
        milestones(profile),
        reasons(profile),
        notes(profile),
        super::emulated::section(profile),
        super::asks::table(profile),
        vcpus(profile),
        super::passes::table(profile),
        sightings(profile),
        answers(profile),
        warnings(profile),
        alarm(profile),
    ];
    let sections: Vec<&str> = sections
        .iter()
        .map(String::as_str)
        .filter(|s| !s.is_empty())
        .collect();
    sections.join("\n")
}

pub(super) fn plural(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { many })
}

fn title(profile: &Profile) -> String {
    let machine = &profile.machine;
    let kernel = machine.images.iter().find(|i| i.role == "kernel");
    let kernel = kernel.map_or("no kernel", |i| {
        i.path.rsplit('/').next().unwrap_or(&i.path)
    });
    let cpus = plural(machine.cpus.into(), "vCPU", "vCPUs");
    let leaves = match machine.layout.as_str() {
        "custom" => {
            let leaves = machine
                .leaves
                .map(|leaf| format!("{leaf:#010X}").replace("0X", "0x"));
            format!("leaves {}", leaves.join(" "))
        }
        layout => format!("{layout} leaves"),
    };
    let page = match &machine.exit_page {
        Some(writer) => format!(", exit page by {writer}"),
        None => String::new(),
    };
    let title = format!(
        "{} {} · {} · {} · {cpus}, {} · {leaves}{page}",
        profile.tool.name,
        profile.tool.version,
        kernel,
        machine.boot,
        bytes(machine.memory),
    );
    labelled("", 0, &clean(&title))
}

/// What stands at the top and at the bottom if the boot did not come to its end.
fn alarm(profile: &Profile) -> String {
    let what = match profile.end.kind {
        _ if profile.end.cut_short => "cut short: ",
        EndKind::Exit | EndKind::PowerOff | EndKind::Reset | EndKind::Milestone => {
            return String::new();
        }
        _ => "",
    };
    labelled("", 0, &format!("▲ {what}{}", clean(&profile.end.detail)))
}

fn facts(profile: &Profile) -> String {
    let mut out = String::new();
    let host = &profile.host;
    let kvm = match host.kvm {
        KvmKind::Software => "software KVM (kvm_pvm): no hardware exits are traced",
        kvm => kvm.module(),
    };
    let paging = match host.paging.as_str() {
        "nested" | "shadow" => format!(" · {} paging", host.paging),
        _ => String::new(),
    };
    let line = format!("{} · Linux {} · {kvm}{paging}", host.cpu, host.kernel);
    out += &labelled("host", INDENT, &clean(&line));
    if !profile.machine.cmdline.is_empty() {
        out += &labelled("cmdline", INDENT, &clean(&profile.machine.cmdline));
    }
    let name = |source: &SourceInfo| {
        let level = source.level.as_ref().filter(|_| source.available);
        let level = level.map_or(String::new(), |l| format!(" ({l})"));
        fit(&clean(&(source.name.clone() + &level)), 25)
    };
    let names = profile.sources.iter().map(|s| width(&name(s)));
    let widest = names.max().unwrap_or(0);
    for (i, source) in profile.sources.iter().enumerate() {
        let name = name(source);
        let mark = if source.available { '●' } else { '○' };
        let label = if i == 0 { "sources" } else { "" };
        let label = format!(
            "{label:INDENT$}{mark} {name}{}",
            " ".repeat(widest.saturating_sub(width(&name)))
        );
        out += &labelled(&label, INDENT + widest + 4, &clean(&source.completeness));
    }
    out += &labelled("accounts", INDENT, &accounts::closing(profile));
    out += &labelled("fixed", INDENT, &accounts::fixed(profile));
    out += &accounts::time(profile, INDENT);
    if profile.gates != GateFigures::default() {
        out += &labelled("gates", INDENT, &gates(profile));
    }
    if let Some(memory) = &profile.memory {
        out += &labelled("memory", INDENT, &memory_line(profile, memory));
    }
    if profile.has_reboots() {
        let reboots = plural(profile.all_reboots(), "reboot", "reboots");
        let line = format!(
            "the first boot and {reboots}; all but the table of passes is about the first boot"
        );
        out += &labelled("passes", INDENT, &line);
    }
    let mut recorded = to_seconds(&profile.created);
    if alarm(profile).is_empty() {
        recorded += &format!(" · {}", profile.end.detail);
    }
    out + &labelled("recorded", INDENT, &clean(&recorded))
}

/// An RFC 3339 time without its fraction of a second.
fn to_seconds(time: &str) -> String {
    match time.split_once('.') {
        Some((seconds, fraction)) => {
            seconds.to_owned() + fraction.trim_start_matches(|c: char| c.is_ascii_digit())
        }
        None => time.to_owned(),
    }
}

fn gates(profile: &Profile) -> String {
    let gates = &profile.gates;
    let queries = plural(gates.queries, "query", "queries");
    let calls = plural(gates.hypercalls, "hypercall", "hypercalls");
    let mut text = format!("{queries} and {calls} answered");
    if gates.stepped > 0 {
        text += " · ";
        text += &plural(gates.stepped, "instruction", "instructions");
        text += " stepped over unchanged";
    }
    if gates.foreign > 0 {
        text += " · ";
        text += &plural(gates.foreign, "debug exception", "debug exceptions");
        text += " given back to the guest";
    }
    if gates.armed > 0 {
        text += &format!(" · at most {} of 4 armed", count(gates.armed));
        if profile.host.kvm != KvmKind::Software {
            text += ", masking the guest's own hardware breakpoints";
        }
    }
    match profile.machine.hypercall.as_deref() {
        Some("xen") => text += " · VMCALL: KVM passes every one on",
        Some("gate") => text += " · VMCALL: at gates",
        _ => {}
    }
    text
}

/// What guest memory was made of, and what it cost to fill it in.
fn memory_line(profile: &Profile, memory: &MemoryAccount) -> String {
    let pages = match memory.pages.as_str() {
        "host" => "pages as the host is set up".to_owned(),
        pages => format!("--pages {}", clean(pages)),
    };
    let filled = match memory.prefault.as_str() {
        "none" => "not filled in beforehand".to_owned(),
        how => {
            let how = clean(how);
            let time = Clock::up_to(memory.prefault_nanos).show(memory.prefault_nanos);
            format!("filled in before the boot (--prefault {how}) in {time}")
        }
    };
    format!(
        "{pages} · {filled} · at the end {} of {} resident, {} in huge pages",
        bytes(memory.resident),
        bytes(profile.machine.memory),
        bytes(memory.huge)
    )
}

fn warnings(profile: &Profile) -> String {
    let lines = profile.warnings();
    lines
        .iter()
        .map(|w| labelled("beware", INDENT, &clean(w)))
        .collect()
}

/// A cause as it stands in running text: "12 HLT".
fn cause(profile: &Profile, cause: Cause) -> String {
    match cause {
        Cause::Reason(n) => format!("{n} {}", fit(&clean(profile.reason_name(n)), NAME)),
        Cause::Other => "other".to_owned(),
        Cause::Residual => "residual".to_owned(),
    }
}

/// A cause and its exits: "12 HLT ×60".
pub(super) fn times(profile: &Profile, part: &Part) -> String {
    format!("{} ×{}", cause(profile, part.cause), count(part.exits))
}

/// As many of the causes as fit, largest first: "12 HLT ×60, 30 I/O instruction ×41".
pub(super) fn mostly(profile: &Profile, parts: &[Part], room: usize) -> String {
    let mut out = String::new();
    for part in parts {
        let gap = if out.is_empty() { "" } else { ", " };
        let next = format!("{gap}{}", times(profile, part));
        if !out.is_empty() && width(&out) + width(&next) > room {
            break;
        }
        out += &next;
    }
    fit(&out, room)
}

pub(super) fn step_name(profile: &Profile, step: &Step<'_>) -> String {
    match step.milestone {
        None if profile.first_end().cut_short => "(cut short)".to_owned(),
        None => END.to_owned(),
        Some(m) if profile.machine.cpus > 1 && (m.vcpu > 0 || profile.is_per_cpu(m)) => {
            let on = fit(&format!(" (vCPU {})", m.vcpu), NAME - 8);
            fit(&clean(step.name), NAME - width(&on)) + &on
        }
        Some(_) => fit(&clean(step.name), NAME),
    }
}

fn milestones(profile: &Profile) -> String {
    let steps = profile.guest_steps();
    if steps.is_empty() {
        return String::new();
    }
    let jump = profile.jump().map(|s| s.index);
    let most = steps.iter().map(|s| s.delta.exits).max().unwrap_or(0);
    let clock = Clock::up_to(
        profile
            .milestones
            .iter()
            .map(|m| m.nanos)
            .chain([profile.first_end().nanos])
            .max()
            .unwrap_or(0),
    );
    let build = |room: usize| {
        let mut table = Table::new(&[
            ("milestone", Left),
            ("time", Right),
            ("exits", Right),
            ("new", Right),
            ("cycles new", Right),
            ("mostly", Left),
            ("growth", Left),
        ]);
        for step in &steps {
            let mark = if jump == Some(step.index) { JUMP } else { "" };
            let growth = bar(step.delta.exits, most, BAR);
            table.row(vec![
                step_name(profile, step),
                clock.show(
                    step.milestone
                        .map_or(profile.first_end().nanos, |m| m.nanos),
                ),
                count(step.accounts.guest_total()),
                count_or_none(step.delta.exits),
                count_or_none(step.delta.cycles),
                mostly(profile, &step.delta.ranking(), room),
                format!("{growth:BAR$} {mark}").trim_end().to_owned(),
            ]);
        }
        table
    };
    // What the other columns leave free.
    let rest = build(1).width();
    let least = width("mostly");
    let table = build((WIDTH + least).saturating_sub(rest).max(least)).render();
    table + &missed(profile)
}

/// Milestones that were looked for in vain, each with why.
fn missed(profile: &Profile) -> String {
    let lines = profile.milestones_missed.iter().map(|missed| {
        let why = format!("{}: {}", clean(&missed.name), clean(&missed.why));
        labelled("missed", INDENT, &why)
    });
    lines.collect()
}

fn reasons(profile: &Profile) -> String {
    if profile.total.ranking().is_empty() && profile.total.own() == 0 {
        return String::new();
    }
    let table = |room| reasons_within(profile, room);
    // Sparklines get what the other columns leave free.
    let free = (WIDTH + 4).saturating_sub(table(4).width());
    table(free.max(4)).render()
}

/// The table of reasons. With histograms, sparklines (of so many characters at most) stand for the
/// bars, and percentiles for the shortest exit; cycles are rounded, for the room that takes.
fn reasons_within(profile: &Profile, room: usize) -> Table {
    let total = &profile.total;
    let (whole, cycles) = (total.whole(), u128::from(total.guest_cycles()));
    let ranking = total.ranking();
    let most = ranking.first().map_or(0, |p| p.exits);
    let footnotes = Footnotes::of(profile);
    let scale = Scale::of(profile, room);
    let ends = scale.map(Scale::ends).unwrap_or_default();
    let (least, p50, p99) = match scale {
        Some(_) => ("", "p50", "p99"),
        None => ("min", "", ""),
    };
    let mut table = Table::new(&[
        ("", Right),
        ("reason", Left),
        ("exits", Right),
        ("", Left),
        ("share", Right),
        ("cycles", Right),
        ("share", Right),
        (least, Right),
        ("mean", Right),
        ("max", Right),
        (p50, Right),
        (p99, Right),
        (&fit(&ends, room), Left),
    ]);
    let amount = |cycles: u64| match scale {
        Some(_) => si(cycles),
        None => count(cycles),
    };
    for part in &ranking {
        let (account, histogram) = match part.cause {
            Cause::Reason(n) => (total.reason(n), profile.histogram(n)),
            _ => (None, None),
        };
        let (number, name) = match part.cause {
            Cause::Reason(n) => (n.to_string(), fit(&clean(profile.reason_name(n)), NAME)),
            other => (String::new(), cause(profile, other)),
        };
        let times = account.and_then(|a| a.times());
        let time = |of: fn((u64, u64, u64)) -> u64| times.map(of).map_or(NONE.to_owned(), amount);
        let spent = times.and(account).map(|a| a.guest_cycles());
        let percentile = |n| durations::range(histogram, n);
        let (min, p50, p99, picture) = match scale {
            Some(scale) => (
                String::new(),
                percentile(50),
                percentile(99),
                histogram.map(|h| scale.draw(h)).unwrap_or_default(),
            ),
            None => (
                time(|t| t.0),
                String::new(),
                String::new(),
                match part.cause {
                    Cause::Residual => shade(part.exits, most, BAR),
                    _ => bar(part.exits, most, BAR),
                },
            ),
        };
        table.row(vec![
            number,
            name,
            count(part.exits),
            account
                .map(|a| footnotes.mark(&a.source))
                .unwrap_or_default(),
            percent(share(part.exits, whole)),
            spent.map_or(NONE.to_owned(), amount),
            percent(spent.and_then(|c| share(c, cycles))),
            min,
            time(|t| t.1),
            time(|t| t.2),
            p50,
            p99,
            picture,
        ]);
    }
    table.rule();
    let timed = total.guest_timed() > 0;
    let sum = |exits, cycles, timed| {
        let cycles = if timed {
            amount(cycles)
        } else {
            NONE.to_owned()
        };
        vec![
            String::new(),
            String::new(),
            count(exits),
            String::new(),
            String::new(),
            cycles,
        ]
    };
    let mut row = sum(total.guest_total(), total.guest_cycles(), timed);
    row[1] = "total".to_owned();
    table.row(row);
    if total.own() > 0 {
        table.row(Vec::new());
        table.line("the profiler's own, contained in none of the figures above:");
        for r in total.reasons.iter().filter(|r| r.own > 0) {
            let mut row = sum(r.own, r.own_cycles, r.own_cycles > 0);
            row[0] = r.reason.to_string();
            row[1] = fit(&clean(profile.reason_name(r.reason)), NAME);
            table.row(row);
        }
        if total.own_residual > 0 {
            let mut row = sum(total.own_residual, 0, false);
            row[1] = "residual".to_owned();
            table.row(row);
        }
    }
    table
}

/// How the figures came about.
fn notes(profile: &Profile) -> String {
    let mut out = Footnotes::of(profile).render();
    let (timed, exits) = (profile.total.guest_timed(), profile.total.guest_total());
    if timed > 0 {
        let how_many = match timed >= exits {
            true => "every exit is timed".to_owned(),
            false => format!(
                "{} of {} are timed",
                count(timed),
                plural(exits, "exit", "exits")
            ),
        };
        let line = format!("{} · {how_many}", accounts::span(profile));
        out += &labelled("cycles", INDENT, &line);
    }
    if let Some(scale) = Scale::of(profile, WIDTH) {
        let mut line = scale.explained();
        if profile.total.own() > 0 {
            line += ", own included";
        }
        out += &labelled("durations", INDENT, &line);
    }
    match accounts::codes(&profile.total) {
        codes if codes.is_empty() => out,
        codes => out + &labelled("exit codes", INDENT, &codes),
    }
}

/// Who counted what: one mark per source other than KVM_RUN; no marks if all is from one source.
struct Footnotes {
    sources: Vec<String>,
    single: bool,
}

const MARKS: [&str; 4] = ["†", "‡", "§", "¶"];

impl Footnotes {
    fn of(profile: &Profile) -> Self {
        let mut sources: Vec<String> = profile
            .total
            .reasons
            .iter()
            .map(|r| r.source.clone())
            .collect();
        sources.sort_unstable();
        sources.dedup();
        let single = sources.len() == 1;
        sources.retain(|s| single || s != KVM_RUN);
        Self { sources, single }
    }

    fn mark(&self, source: &str) -> String {
        if self.single {
            return String::new();
        }
        let at = self.sources.iter().position(|s| s == source);
        at.map_or("", |i| MARKS[i.min(MARKS.len() - 1)]).to_owned()
    }

    fn render(&self) -> String {
        let names = |s: &[String]| {
            s.iter()
                .map(|s| fit(&clean(s), 60))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let text = match self.sources.as_slice() {
            [] => return String::new(),
            all if self.single => names(all),
            all => {
                // The last mark stands for all that are left.
                let last = MARKS.len() - 1;
                let marked = all.iter().take(last).enumerate();
                let mut notes: Vec<String> = marked
                    .map(|(i, s)| format!("{} {}", MARKS[i], names(std::slice::from_ref(s))))
                    .collect();
                if all.len() > last {
                    notes.push(format!("{} {}", MARKS[last], names(&all[last..])));
                }
                format!("{KVM_RUN}, except {}", notes.join(" · "))
            }
        };
        labelled("counted by", INDENT, &text)
    }
}

fn vcpus(profile: &Profile) -> String {
    if profile.vcpus.len() < 2 {
        return String::new();
    }
    let whole = profile
        .vcpus
        .iter()
        .map(|v| u128::from(v.guest_total()))
        .sum();
    let most = profile
        .vcpus
        .iter()
        .map(|v| v.guest_total())
        .max()
        .unwrap_or(0);
    let mut table = Table::new(&[
        ("vCPU", Right),
        ("exits", Right),
        ("share", Right),
        ("cycles", Right),
        ("mostly", Left),
        ("", Left),
    ]);
    for (i, accounts) in profile.vcpus.iter().enumerate() {
        table.row(vec![
            i.to_string(),
            count(accounts.guest_total()),
            percent(share(accounts.guest_total(), whole)),
            count_or_none(accounts.guest_cycles()),
            mostly(profile, &accounts.ranking(), 56),
            bar(accounts.guest_total(), most, BAR),
        ]);
    }
    table.render()
}

/// As many numbers with names as fit on a line, and how many there are.
fn list(profile: &Profile, label: &str, why: &str, numbers: &[u8]) -> String {
    const LABEL: usize = 18;
    if numbers.is_empty() {
        return String::new();
    }
    let mut line = format!("{label:LABEL$}{:>3}{why}: ", numbers.len());
    for (i, &number) in numbers.iter().enumerate() {
        let name = profile.reason_name(number);
        let name = if name == "undefined" {
            String::new()
        } else {
            format!(" {}", clean(name))
        };
        let item = format!("{}{number}{name}", if i == 0 { "" } else { ", " });
        let last = i + 1 == numbers.len();
        if width(&line) + width(&item) + if last { 0 } else { 3 } > WIDTH {
            line += ", …";
            break;
        }
        line += &item;
    }
    fit(line.trim_end(), WIDTH) + "\n"
}

fn sightings(profile: &Profile) -> String {
    let all = profile.sightings();
    list(profile, "never seen", "", &all.never)
        + &list(profile, "maybe in residual", "", &all.hidden)
        + &list(profile, "cannot occur here", "", &all.impossible)
        + &list(profile, "undefined", "", &all.undefined)
}

fn answers(profile: &Profile) -> String {
    const INDENT: usize = 39;
    let mut out = String::new();
    out += &labelled(
        "How many exits does this boot take?",
        INDENT,
        &how_many(profile),
    );
    out += &labelled("Does the count grow steadily?", INDENT, &steadily(profile));
    out += &labelled(
        "Where does it jump, and through what?",
        INDENT,
        &jump(profile),
    );
    out += &labelled(
        "Most frequent, least frequent, never?",
        INDENT,
        &frequencies(profile),
    );
    if let Some(answer) = super::passes::cost(profile) {
        out += &labelled("What does a reboot cost?", INDENT, &answer);
    }
    out
}

fn how_many(profile: &Profile) -> String {
    let total = &profile.total;
    let mut answer = grouped(total.guest_total());
    if !profile.counts_everything() {
        answer += " that reach the VMM; no source counts the kernel's";
    }
    if profile.first_end().cut_short {
        answer += " until it was cut short";
    }
    if let Some(fixed) = profile.fixed(total).filter(|f| f.time_driven() > 0) {
        answer += &format!(" ({} without what time drives)", grouped(fixed.count()));
    }
    match total.own() {
        0 => {}
        own => answer += &format!(", and {} of the profiler's own", grouped(own)),
    }
    answer
}

fn steadily(profile: &Profile) -> String {
    let (Some(unsteadiness), Some((few, steps))) =
        (profile.unsteadiness(), profile.half_of_growth())
    else {
        return "There is too little to tell".to_owned();
    };
    let word = match unsteadiness {
        u if u < 0.25 => "Yes",
        u if u < 0.5 => "Not quite",
        _ => "No",
    };
    let comes = if few == 1 {
        "comes in one"
    } else {
        &format!("comes in {few}")
    };
    format!(
        "{word}: half of it {comes} of {steps} steps \
         (unsteadiness {unsteadiness:.2}: 0 even, 1 all at once)"
    )
}

fn jump(profile: &Profile) -> String {
    let Some(step) = profile.jump() else {
        return "Nowhere: the guest caused no exit".to_owned();
    };
    let part = percent(share(step.delta.exits, profile.total.guest_total().into()));
    let name = step_name(profile, &step);
    let at = match step.milestone {
        Some(_) => format!("On the way to \"{name}\""),
        None => "After the last milestone".to_owned(),
    };
    let exits = grouped(step.delta.exits);
    let ranking = step.delta.ranking();
    let through = ranking
        .iter()
        .take(3)
        .map(|part| glued(&times(profile, part)));
    let through = through.collect::<Vec<_>>().join(", ");
    format!("{at}: +{exits} ({}), through {through}", glued(&part))
}

fn frequencies(profile: &Profile) -> String {
    let parts = profile.frequencies();
    let shown = |part: &Part| {
        let name = cause(profile, part.cause);
        glued(&format!("{name} ({})", count(part.exits)))
    };
    let all = profile.sightings();
    let never = match all.hidden.len() {
        0 => format!(
            "never:{GLUE}{} of {} that can occur",
            all.never.len(),
            all.never.len() + all.seen.len()
        ),
        hidden => format!(
            "never:{GLUE}{} for certain, {hidden} as far as can be seen",
            all.never.len()
        ),
    };
    let (Some(first), Some(last)) = (parts.first(), parts.last()) else {
        return never;
    };
    let most: Vec<String> = parts.iter().take(2).map(shown).collect();
    if first == last {
        return format!("{} only{GLUE}· {never}", shown(first));
    }
    format!(
        "{}{GLUE}· least:{GLUE}{}{GLUE}· {never}",
        most.join(", "),
        shown(last)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::fixtures;
    use proptest::prelude::*;

    #[test]
    fn on_software_kvm() {
        insta::assert_snapshot!(render(&fixtures::software()));
    }

    #[test]
    fn with_the_kernel_ledger() {
        insta::assert_snapshot!(render(&fixtures::ledger()));
    }

    #[test]
    fn with_histograms() {
        insta::assert_snapshot!(render(&fixtures::histograms()));
    }

    #[test]
    fn on_intel_counts_only() {
        insta::assert_snapshot!(render(&fixtures::intel()));
    }

    #[test]
    fn with_emulated_events() {
        insta::assert_snapshot!(render(&fixtures::emulated()));
    }

    #[test]
    fn when_cut_short() {
        insta::assert_snapshot!(render(&fixtures::cut_short()));
    }

    #[test]
    fn with_reboots() {
        insta::assert_snapshot!(render(&fixtures::reboots()));
    }

    #[test]
    fn without_any_exit() {
        insta::assert_snapshot!(render(&fixtures::zero()));
    }

    #[test]
    fn at_the_limits_of_u64() {
        insta::assert_snapshot!(render(&fixtures::huge()));
    }

    #[test]
    fn times_of_day() {
        assert_eq!(
            to_seconds("2026-11-20T05:39:37.912Z"),
            "2026-11-20T05:39:37Z"
        );
        assert_eq!(to_seconds("2026-11-20T05:39:37Z"), "2026-11-20T05:39:37Z");
        assert_eq!(to_seconds("1.5+01:00"), "1+01:00");
        assert_eq!(to_seconds(""), "");
    }

    #[test]
    fn a_crash_is_told_at_both_ends() {
        let mut profile = fixtures::ledger();
        profile.end.kind = EndKind::TripleFault;
        profile.end.detail = "triple fault at 0x20134a".to_owned();
        profile.machine.layout = "custom".to_owned();
        let text = render(&profile);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].ends_with("leaves 0x4FFFFFFF 0x4FFFFFFE 0x4FFFFFFD 0x4FFFFFFC"));
        assert_eq!(lines[1], "▲ triple fault at 0x20134a");
        assert_eq!(lines.last(), Some(&lines[1]));
    }

    #[test]
    fn without_anything() {
        let mut profile = fixtures::zero();
        profile.milestones.clear();
        profile.vcpus.clear();
        profile.sources.clear();
        profile.reasons.clear();
        profile.machine.images.clear();
        insta::assert_snapshot!(render(&profile));
    }

    proptest! {
        #[test]
        fn any_profile_fits(profile in fixtures::any_profile()) {
            let text = render(&profile);
            for line in text.lines() {
                prop_assert!(width(line) <= WIDTH, "{line}");
                prop_assert_eq!(line, line.trim_end());
                prop_assert!(!line.contains(char::is_control), "{line:?}");
            }
        }
    }
}
