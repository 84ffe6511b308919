//! The guest kernel's exit log by the exit page: its figures are the profile's, it costs nothing, and
//! the leaves, asked besides, say the same.

use std::collections::BTreeMap;

use black_box::accounts::{FEW, TIME_DRIVEN, TOUCH, has_ledger, is_shadowed};
use black_box::{Run, guest, kvm, needs_kvm, needs_ledger, profile, skip};
use exitvisor::profile::{KvmKind, Milestone, Profile, ReasonAccount};

const FROM_KERNEL: &str = "[exit-log] from the exit page (kernel ledger)";
const FROM_VMM: &str = "[exit-log] from the exit page (VMM)";
const BY_LEAVES: &str = "[exit-log] by the leaves, at the gate";

#[track_caller]
fn kernel(cmdline: &str, more: &[&str]) -> Run {
    let ours = ["--timeout", "40s", "--cmdline", cmdline];
    profile("guest-kernel", &[&ours, more].concat())
}

/// Whether this host has an exit page at all.
fn has_page(name: &str) -> bool {
    let profile = kernel("log=off", &[]).expect_status(0).profile();
    let has = profile.machine.exit_page.is_some();
    if !has {
        skip(name, "this host's KVM has no read-only memory");
    }
    has
}

/// What the log has of one milestone or query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Record {
    name: String,
    exits: u64,
    cycles: u64,
    reasons: BTreeMap<u8, u64>,
}

/// The first number in a text.
fn number(text: &str) -> u64 {
    let digits = |c: char| !c.is_ascii_digit();
    let first = text.split(digits).find(|part| !part.is_empty());
    first.and_then(|n| n.parse().ok()).unwrap_or(u64::MAX)
}

/// Exits by reason in a line such as `0 exception or NMI 5 +5 · 30 I/O instruction 4 +4`.
fn reasons(text: &str) -> impl Iterator<Item = (u8, u64)> {
    text.split(" · ").filter_map(|part| {
        let (rest, _growth) = part.rsplit_once(' ')?;
        let (reason, _name) = rest.trim().split_once(' ')?;
        let (_, exits) = rest.rsplit_once(' ')?;
        Some((reason.parse().ok()?, exits.parse().ok()?))
    })
}

/// The records of a log, in order; and cycles by reason of the last.
fn log(stderr: &str) -> (Vec<Record>, BTreeMap<u8, u64>) {
    let (mut records, mut cycles) = (Vec::<Record>::new(), BTreeMap::new());
    let mut of_cycles = false;
    for line in stderr.lines() {
        let Some(rest) = line.strip_prefix("[exit-log] ") else {
            continue;
        };
        if let Some((name, figures)) = rest.split_once(" CPUID(0x") {
            let (_, figures) = figures.split_once("exits= ").unwrap_or_default();
            let (exits, of_them) = figures.split_once(',').unwrap_or_default();
            records.push(Record {
                name: name.trim().to_owned(),
                exits: number(exits),
                cycles: number(of_them),
                reasons: BTreeMap::new(),
            });
            of_cycles = false;
        } else if let Some(last) = records.last_mut()
            && let Some(more) = rest.strip_prefix(&last.name)
        {
            let more = more.trim_start();
            let titled = more.strip_prefix("cycles: ");
            of_cycles |= titled.is_some();
            let found = reasons(titled.unwrap_or(more));
            match of_cycles {
                true => cycles.extend(found),
                false => last.reasons.extend(found),
            }
        }
    }
    (records, cycles)
}

fn by_reason(milestone: &Milestone, of: fn(&ReasonAccount) -> u64) -> BTreeMap<u8, u64> {
    let reasons = milestone.accounts.reasons.iter();
    let all = reasons.map(|r| (r.reason, of(r)));
    all.filter(|&(_, figure)| figure > 0).collect()
}

/// Without what time drives, which may happen between a milestone and the reading.
fn timeless(mut figures: BTreeMap<u8, u64>) -> BTreeMap<u8, u64> {
    figures.retain(|reason, _| !TIME_DRIVEN.contains(reason));
    figures
}

/// Compares what a log has with the milestones of the first vCPU.
#[track_caller]
fn check(records: &[Record], milestones: &[Milestone]) {
    let own = milestones.iter().filter(|m| m.vcpu == 0);
    let milestones: Vec<_> = own.filter(|m| m.name != "reset").collect();
    let names: Vec<_> = records.iter().map(|r| &r.name).collect();
    assert_eq!(
        names,
        milestones.iter().map(|m| &m.name).collect::<Vec<_>>()
    );
    for (record, milestone) in records.iter().zip(milestones) {
        let there = by_reason(milestone, |r| r.exits);
        let name = &record.name;
        assert_eq!(
            timeless(record.reasons.clone()),
            timeless(there.clone()),
            "{name}"
        );
        let driven = |figures: &BTreeMap<u8, u64>| {
            let all = TIME_DRIVEN.iter().filter_map(|reason| figures.get(reason));
            all.sum::<u64>()
        };
        // So many more there were when the log read.
        let (before, after) = (driven(&there), driven(&record.reasons));
        assert!(before <= after, "{name}: {before} to {after}");
        assert_eq!(
            record.exits,
            milestone.accounts.total + after - before,
            "{name}"
        );
    }
}

#[test]
fn a_default_boot_asks_nothing_and_knows_all() {
    let name = "a_default_boot_asks_nothing_and_knows_all";
    needs_kvm!("a_default_boot_asks_nothing_and_knows_all");
    if !has_page(name) {
        return;
    }
    for (cmdline, more) in [
        ("", &[][..]),
        ("log=each", &[]),
        ("exits=page workload=pio:50,hlt:5", &[]),
        ("", &["--ledger", "histogram"]),
        ("", &["--ledger", "counts"]),
        ("", &["--ledger", "off"]),
    ] {
        let run = kernel(cmdline, more).expect_status(0);
        let profile = run.profile();
        if !cmdline.contains("workload") {
            assert_eq!(profile.gates.queries, 0, "{cmdline}: {run:#?}");
        }
        let source = match has_ledger(&profile) {
            true => FROM_KERNEL,
            false => FROM_VMM,
        };
        assert_eq!(run.stderr.matches("[exit-log] from ").count(), 1);
        let run = run.expect_stderr(&[source]);
        check(&log(&run.stderr).0, &profile.milestones);
    }
}

#[test]
fn cycles_are_the_profiles() {
    let name = "cycles_are_the_profiles";
    needs_ledger!("cycles_are_the_profiles");
    if !has_page(name) {
        return;
    }
    let run = kernel("", &[]).expect_status(0);
    let profile = run.profile();
    let (records, logged) = log(&run.stderr);
    let milestone = |name: &str| {
        let found = profile.milestones.iter().find(|m| m.name == name);
        found.unwrap_or_else(|| panic!("no milestone {name}"))
    };
    let cycles = |milestone: &Milestone| {
        let all = by_reason(milestone, |r| r.cycles);
        timeless(all)
    };
    // The milestone's own exit is one of 30, whose time is known only when the guest runs again.
    let mut told = cycles(milestone("done"));
    let of_ports = told.remove(&30);
    let mut logged = timeless(logged);
    assert!(logged.remove(&30) > of_ports, "{run:#?}");
    assert_eq!(logged, told, "{run:#?}");
    // From one record to the next, what the milestone cost and what time drives.
    for (record, next) in records.iter().zip(&records[1..]) {
        assert!(record.cycles < next.cycles, "{run:#?}");
    }
    let last = records.last().map_or(0, |r| r.cycles);
    let total = |p: &Profile| p.total.reasons.iter().map(|r| r.cycles).sum::<u64>();
    assert!(last < total(&profile));
}

#[test]
fn a_milestone_costs_its_own_exit_alone() {
    let name = "a_milestone_costs_its_own_exit_alone";
    needs_kvm!("a_milestone_costs_its_own_exit_alone");
    if !has_page(name) {
        return;
    }
    let run = kernel("queries=20", &[]).expect_status(0);
    let (records, _) = log(&run.stderr);
    let find = |name: &str| {
        let found = records.iter().find(|r| r.name == name);
        timeless(
            found
                .unwrap_or_else(|| panic!("no {name}: {run:#?}"))
                .reasons
                .clone(),
        )
    };
    // Nothing is done between these.
    for (from, to) in [("SMP", "devices"), ("devices", "done")] {
        let mut expected = find(from);
        *expected.entry(30).or_default() += 1;
        assert_eq!(find(to), expected, "{from} to {to}");
    }
    // To read is none.
    for query in 1..=20 {
        assert_eq!(find(&format!("query {query}")), find("done"));
    }
}

/// What the log says that asking and reading cost, as exits by reason.
#[track_caller]
fn costs(run: &Run) -> [BTreeMap<u8, u64>; 2] {
    let start = "[exit-log] asking the leaves cost ";
    let line = run.stderr.lines().find_map(|l| l.strip_prefix(start));
    let both = line.and_then(|l| l.split_once("; reading the page "));
    let (asking, reading) = both.unwrap_or_else(|| panic!("no costs: {run:#?}"));
    [asking, reading].map(|cost| {
        let (_, reasons) = cost.split_once("(reason ").unwrap_or_default();
        let (reasons, _) = reasons.split_once(')').unwrap_or_default();
        let reasons = reasons.split(", ").filter_map(|r| r.split_once(": "));
        let parsed = reasons.map(|(reason, n)| (number(reason) as u8, number(n)));
        timeless(parsed.collect())
    })
}

#[test]
fn page_and_leaves_agree_and_the_leaves_cost() {
    let name = "page_and_leaves_agree_and_the_leaves_cost";
    needs_kvm!("page_and_leaves_agree_and_the_leaves_cost");
    if !has_page(name) {
        return;
    }
    // Where page tables are shadowed, MMIO is a page fault, and not what the workload expects.
    let plain = kernel("log=off", &[]).expect_status(0).profile();
    let mmio = if is_shadowed(&plain) { "" } else { ",mmio:20" };
    let works = format!("workload=pio:50,cpuid:30,hlt:5{mmio}");
    let firmware = guest("firmware");
    let through = ["--firmware", black_box::arg(&firmware)];
    for (cmdline, more) in [
        ("", &[][..]),
        ("queries=3 log=each", &["--leaves", "reversed"]),
        (&works, &through),
        ("", &["--ledger", "counts"]),
        ("workload=hlt:5", &["--ledger", "off"]),
    ] {
        let run = kernel(&format!("exits=both {cmdline}"), more).expect_status(0);
        let profile = run.profile();
        let (records, _) = log(&run.stderr);
        let agree = format!("exit page and leaves agree in {} records", records.len());
        let run = run.expect_stderr(&[&agree, ", and by the leaves, at the gate"]);
        let [mut asking, reading] = costs(&run);
        // The code that asks may lie where nobody has been.
        let touched = asking.remove(&TOUCH).unwrap_or(0);
        assert!(touched <= FEW, "{run:#?}");
        assert_eq!(reading, BTreeMap::new(), "{cmdline} {more:?}: {run:#?}");
        // An own section around each record; each question is an exit of 0. One more asks whether
        // the gate answers, and a workload asks three times at least.
        assert_eq!(
            asking.get(&30),
            Some(&(2 * records.len() as u64)),
            "{run:#?}"
        );
        let asked = asking.get(&0).copied().unwrap_or(0);
        let queries = profile.gates.queries;
        if cmdline.contains("workload") {
            assert!(asked + 1 + 3 <= queries, "{asked} of {queries}");
        } else {
            // Where page tables are shadowed, to touch code for the first time is one too.
            let more = if is_shadowed(&profile) { FEW } else { 0 };
            assert!(
                (queries..=queries + more).contains(&(asked + 1)),
                "{run:#?}"
            );
        }
        assert_eq!(asking.len(), 2, "{asking:?}");
        let named = |n: &Record| !n.name.starts_with("query");
        let milestones: Vec<_> = records.into_iter().filter(named).collect();
        let of_kernel = profile
            .milestones
            .iter()
            .position(|m| m.name == "kernel entry");
        check(&milestones, &profile.milestones[of_kernel.unwrap_or(0)..]);
    }
}

#[test]
fn several_cpus_are_told_apart() {
    let name = "several_cpus_are_told_apart";
    needs_kvm!("several_cpus_are_told_apart");
    if !has_page(name) {
        return;
    }
    for (cmdline, cpus) in [("", 2), ("exits=both", 4), ("exits=both", 2), ("", 4)] {
        let number_of = cpus.to_string();
        let run = kernel(cmdline, &["--cpus", &number_of]).expect_status(0);
        let profile = run.profile();
        assert_eq!(run.stderr.contains(" asked 4 times"), !cmdline.is_empty());
        for (cpu, vcpu) in profile.vcpus.iter().enumerate() {
            let start = format!("[exit-log] CPU {cpu}: ");
            let line = run.stderr.lines().find_map(|l| l.strip_prefix(&start));
            let exits = number(line.unwrap_or_else(|| panic!("no {start}: {run:#?}")));
            assert!(0 < exits && exits <= vcpu.total, "CPU {cpu}: {exits}");
            // The others have parked long ago.
            if cpu > 0 && has_ledger(&profile) {
                let counted = vcpu.reasons.iter();
                let timeless = counted.filter(|r| !TIME_DRIVEN.contains(&r.reason));
                assert!(
                    exits >= timeless.map(|r| r.exits).sum(),
                    "CPU {cpu}: {exits}"
                );
            }
        }
    }
}

#[test]
fn without_a_page_the_leaves_are_asked() {
    needs_kvm!("without_a_page_the_leaves_are_asked");
    let off = ["--exit-page", "off"];
    let run = kernel("", &off)
        .expect_status(0)
        .expect_stderr(&[BY_LEAVES]);
    assert!(run.profile().gates.queries > 8 * 3, "{run:#?}");
    for word in ["exits=page", "exits=both"] {
        let run = kernel(word, &off).expect_status(13);
        let run = run.expect_stderr(&["[exit-log] there is no exit page"]);
        assert_eq!(run.stderr.lines().count(), 1, "{run:#?}");
        assert_eq!(run.profile().gates.queries, 0);
    }
    let run = kernel("exits=leaves", &[]).expect_status(0);
    let run = run.expect_stderr(&[BY_LEAVES]);
    assert!(run.profile().gates.queries > 8 * 3, "{run:#?}");
}

#[test]
fn a_silent_log_touches_nothing() {
    needs_kvm!("a_silent_log_touches_nothing");
    let run = kernel("log=off", &[]).expect_status(0);
    assert!(!run.stderr.contains("[exit-log]"), "{run:#?}");
    let profile = run.profile();
    assert_eq!(profile.gates.queries, 0);
    // What the log reads without a record of its own, it touches in an own section: the guest's
    // exits are the same with it and without.
    if has_ledger(&profile) && kvm() != Some(KvmKind::Software) {
        let guests = |profile: &Profile| {
            let done = profile.milestones.iter().find(|m| m.name == "done");
            let mut all = done
                .map(|m| by_reason(m, |r| r.exits - r.own))
                .unwrap_or_default();
            // Time, and who touches memory first: a page fault where page tables are shadowed.
            let shadowed = is_shadowed(profile);
            all.retain(|&reason, _| ![12, 48, 49].contains(&reason) && (reason > 0 || !shadowed));
            timeless(all)
        };
        let logged = kernel("", &[]).expect_status(0).profile();
        assert_eq!(guests(&profile), guests(&logged));
    }
}

#[test]
fn every_boot_begins_at_zero() {
    let name = "every_boot_begins_at_zero";
    needs_kvm!("every_boot_begins_at_zero");
    if !has_page(name) {
        return;
    }
    for word in ["exits=auto", "exits=both"] {
        let run = kernel(&format!("reboot=2 {word}"), &["--on-reset", "continue"]);
        let run = run.expect_status(0);
        let profile = run.profile();
        let (records, _) = log(&run.stderr);
        let mut boots = vec![&profile.milestones];
        boots.extend(profile.reboots.iter().map(|boot| &boot.milestones));
        assert_eq!((records.len(), boots.len()), (3 * 8, 3), "{run:#?}");
        for (records, milestones) in records.chunks(8).zip(boots) {
            check(records, milestones);
        }
    }
}
