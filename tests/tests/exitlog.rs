//! `exitlog` in Debian's kernels, as init and as a command; its kernel module; Debian's own `cpuid -k`:
//! whatever they print is what Exitvisor answered, and what its books say. In the AMD labs, which
//! bring the guests along.
// Helpers stop a test as its own assertions do.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use black_box::accounts::{TIME_DRIVEN, TOUCH, has_ledger};
use black_box::{Run, arg, host_cpus, run, skip};
use exitvisor::profile::{EndKind, Milestone, Profile};
use exitvisor::status::CRASH;
use serde_json::Value;

/// Long enough for a boot at the speed of a lab on a busy machine.
const LIMIT: &str = "120s";
/// The four milestones that an exitlog which is init tells.
const STEPS: [&str; 4] = [
    "exitlog: start",
    "exitlog: mounts",
    "exitlog: before exec",
    "exitlog: after exec",
];
/// Exit reasons (SDM vol. 3D, appendix C): #DB at a gate, I/O.
const DEBUG: u8 = 0;
const IO: u8 = 30;
/// Linux arms its timer by this one.
const WRMSR: u8 = 32;
/// The idle task waits by this one.
const HLT: u8 = 12;

/// What the labs bring along.
#[derive(Clone)]
struct Guest {
    kernel: PathBuf,
    initramfs: PathBuf,
}

/// The guests (6.1, 6.12), or a word on why there are none.
fn guests(test: &str) -> Option<[Guest; 2]> {
    let file = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let guest = |version: &str| {
        Some(Guest {
            kernel: file(&format!("EXITVISOR_LINUX_{version}"))?,
            initramfs: file(&format!("EXITVISOR_EXITLOG_{version}"))?,
        })
    };
    let found = (|| Some([guest("6_1")?, guest("6_12")?]))();
    if found.is_none() {
        skip(
            test,
            "Linux is booted in the labs: cargo xtask test --on amd-lab",
        );
    }
    found
}

/// Whether the guests have the kernel module; if not, part of the test is skipped.
fn has_module(test: &str) -> bool {
    let has = std::env::var_os("EXITVISOR_EXITLOG_MODULE").is_some();
    if !has {
        skip(
            test,
            "the kernel module was not built: make or gcc is missing",
        );
    }
    has
}

impl Guest {
    /// Boots with `exitlog` as init and these steps behind it, each query logged.
    #[track_caller]
    fn boot(&self, arguments: &str, steps: &str, options: &[&str]) -> Run {
        let cmdline =
            format!("console=ttyS0 panic=-1 rdinit=/exitlog quiet {arguments} -- {steps}");
        let standard = [
            "profile",
            "--kernel",
            arg(&self.kernel),
            "--initrd",
            arg(&self.initramfs),
            "--memory",
            "256M",
            "--cmdline",
            &cmdline,
            "--timeout",
            LIMIT,
            "--log-queries",
            "--format",
            "json",
        ];
        run(&[&standard[..], options].concat())
    }
}

/// Exits and cycles.
type Figures = (u64, u64);

/// The figures of one reading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Reading {
    exits: u64,
    cycles: u64,
    /// Exits and cycles by reason.
    reasons: BTreeMap<u8, Figures>,
}

/// What Exitvisor says that it answered: whole readings, and single questions for exits (of a
/// reason, or all).
#[derive(Debug, Default)]
struct Answered {
    readings: Vec<Reading>,
    single: Vec<(Option<u8>, u64)>,
    /// Readings that were tried first by one question, as exitlog does it.
    tried: u64,
    /// Lines.
    all: u64,
}

/// How a line begins on which Exitvisor logs a query.
const QUERY: &str = "sd> Exit_Reason : ";

/// What the guest's console said, and Exitvisor's lines on queries. These are whole, and may stand in
/// the middle of one of the guest's.
fn apart(stderr: &str) -> (String, Vec<&str>) {
    let (mut guest, mut queries) = (String::new(), Vec::new());
    for piece in stderr.split_inclusive('\n') {
        let (before, query) = piece.split_once(QUERY).unwrap_or((piece, ""));
        guest += before;
        if !query.is_empty() {
            queries.push(query.trim_end());
        }
    }
    (guest, queries)
}

#[track_caller]
fn expect(console: &str, parts: &[&str]) {
    for part in parts {
        assert!(
            console.contains(part),
            "the console lacks {part:?}: {console}"
        );
    }
}

impl Answered {
    fn parse(queries: &[&str]) -> Self {
        let answers: Vec<_> = queries.iter().map(|query| answer(query)).collect();
        let mut answered = Self {
            all: answers.len() as u64,
            ..Self::default()
        };
        // Whether a reading is, and whether the answer before was a single one to all exits.
        let (mut open, mut just_totals) = (false, false);
        let mut left = answers.iter().copied().peekable();
        while let Some((reason, of_exits, exits)) = left.next() {
            assert!(of_exits, "cycles are asked after exits: {reason:?}");
            let cycles = left.next_if(|next| next.0 == reason && !next.1);
            match (reason, cycles) {
                (None, Some((_, _, cycles))) => {
                    open = true;
                    if std::mem::take(&mut just_totals) {
                        answered.single.pop();
                        answered.tried += 1;
                    }
                    answered.readings.push(Reading {
                        exits,
                        cycles,
                        ..Reading::default()
                    });
                }
                (Some(reason), Some((_, _, cycles))) if open => {
                    just_totals = false;
                    let reading = answered.readings.last_mut().unwrap();
                    assert_eq!(reading.reasons.insert(reason, (exits, cycles)), None);
                }
                _ => {
                    open = false;
                    just_totals = reason.is_none();
                    answered.single.push((reason, exits));
                }
            }
        }
        answered
    }
}

/// `48 , ExitCount : 61`: the reason, whether of exits, the number.
fn answer(query: &str) -> (Option<u8>, bool, u64) {
    let (reason, rest) = query.split_once(" , ").unwrap();
    let (what, number) = rest.split_once(" : ").unwrap();
    let reason = match reason {
        "ALL" => None,
        number => Some(number.parse().unwrap()),
    };
    let of_exits = match what {
        "ExitCount" => true,
        "Time_Taken" => false,
        other => panic!("{other}"),
    };
    (reason, of_exits, number.parse().unwrap())
}

/// The coursework's line, wherever on a line it stands: exits and cycles.
fn classic(line: &str) -> Option<Figures> {
    let (_, rest) = line.split_once("CPUID(0x4FFFFFFF), exits= ")?;
    let (exits, cycles) = rest.split_once(", cycles spent in exit= ")?;
    Some((exits.parse().unwrap(), cycles.trim().parse().unwrap()))
}

/// A line of the kernel module's: `exit reason 30, exits= 5, cycles= 7`.
fn of_module(line: &str) -> Option<(u8, Figures)> {
    let rest = line.strip_prefix("exit reason ")?;
    let (reason, rest) = rest.split_once(", exits= ")?;
    let (exits, cycles) = rest.split_once(", cycles= ")?;
    let figures = (exits.parse().unwrap(), cycles.trim().parse().unwrap());
    Some((reason.parse().unwrap(), figures))
}

/// A row of exitlog's table: `[exit-log]    30 I/O instruction   374   +152   196170883   +21838333`;
/// what it grew by too.
fn row(line: &str) -> Option<(u8, Figures, Figures)> {
    let words: Vec<&str> = line
        .strip_prefix("[exit-log] ")?
        .split_whitespace()
        .collect();
    let [number, _, .., exits, more, cycles, more_cycles] = words[..] else {
        return None;
    };
    let grown = |text: &str| text.strip_prefix('+').unwrap().parse().unwrap();
    Some((
        number.parse().ok()?,
        (exits.parse().unwrap(), cycles.parse().unwrap()),
        (grown(more), grown(more_cycles)),
    ))
}

/// A record of `exitlog --json`: its reading, and what it says that each figure grew by.
fn of_json(record: &Value) -> (Reading, Reading) {
    let reading = |of: &str| {
        let figure = |value: &Value, name: &str| value[name][of].as_u64().unwrap();
        let reasons = record["reasons"].as_array().unwrap().iter();
        let reasons = reasons.map(|line| {
            let reason = u8::try_from(line["reason"].as_u64().unwrap()).unwrap();
            (reason, (figure(line, "exits"), figure(line, "cycles")))
        });
        Reading {
            exits: figure(record, "exits"),
            cycles: figure(record, "cycles"),
            reasons: reasons.collect(),
        }
    };
    (reading("now"), reading("more"))
}

/// What stands between a command's `+` line and its `=` line, and how it ended.
#[derive(Debug)]
struct Said<'a> {
    command: &'a str,
    lines: Vec<&'a str>,
    status: u8,
}

/// The commands of the guest's steps, in what its console said.
fn commands(guest: &str) -> Vec<Said<'_>> {
    let mut all: Vec<Said<'_>> = Vec::new();
    let mut lines = Vec::new();
    let mut command = None;
    for line in guest.lines().map(str::trim_end) {
        match line.strip_prefix("exitvisor-guest: ") {
            Some(said) if said.starts_with("+ ") => {
                command = said.strip_prefix("+ ");
                lines.clear();
            }
            Some(said) if said.starts_with("= ") => all.push(Said {
                command: command.take().unwrap(),
                lines: std::mem::take(&mut lines),
                status: said[2..].parse().unwrap(),
            }),
            _ => lines.push(line),
        }
    }
    all
}

/// The figure that stock `cpuid` prints for exits: `   0x4fffffff 0x00: eax=0x… ebx=0x… …`.
fn of_cpuid(said: &Said<'_>) -> u64 {
    let line = said.lines.iter().find(|line| line.contains("eax=0x"));
    let register = |name: &str| {
        let (_, rest) = line.unwrap().split_once(name).unwrap();
        u64::from_str_radix(&rest[..8], 16).unwrap()
    };
    register("eax=0x") | register("ebx=0x") << 32
}

/// The four milestones of exitlog, in order, and each only once.
#[track_caller]
fn steps(profile: &Profile) -> Vec<&Milestone> {
    let told = profile.milestones.iter();
    let told: Vec<_> = told.filter(|m| m.name.starts_with("exitlog: ")).collect();
    let names: Vec<_> = told.iter().map(|m| &*m.name).collect();
    assert_eq!(names, STEPS);
    told
}

fn exits_of(milestone: &Milestone, reason: u8) -> u64 {
    let accounts = &milestone.accounts;
    accounts.reason(reason).map_or(0, |r| r.exits)
}

/// A reading right behind a milestone has what the milestone has, and what asking took: three OUTs
/// and an IN at the gate port, and, when reason 0 is asked for, five stops at the gate: whether it
/// answers, both totals, the map, and that question itself.
#[track_caller]
fn check_step(milestone: &Milestone, reading: &Reading) {
    let name = &milestone.name;
    // The real init runs meanwhile, and its loader executes CPUID.
    let alone = name != STEPS[3];
    for (&reason, &(exits, _)) in &reading.reasons {
        let asking = match reason {
            DEBUG => 5,
            IO => 4,
            _ => 0,
        };
        let before = exits_of(milestone, reason);
        if [&TIME_DRIVEN[..], &[TOUCH, WRMSR, HLT]]
            .concat()
            .contains(&reason)
        {
            assert!(exits >= before, "{name}: reason {reason}");
        } else if !alone {
            assert!(exits >= before + asking, "{name}: reason {reason}");
        } else {
            assert_eq!(exits, before + asking, "{name}: reason {reason}");
        }
    }
}

/// Everything that a kernel's user space and kernel space say, against what was answered.
#[track_caller]
fn check_agreement(test: &str, guest: &Guest, release: &str) {
    let module = has_module(test);
    let words = [
        "wait json page both leaves gate",
        if module { " module" } else { "" },
    ]
    .concat();
    let run = guest.boot("", &words, &[]).expect_status(0);
    let profile = run.profile();
    assert_eq!(profile.end.kind, EndKind::PowerOff);
    let (console, queries) = apart(&run.stderr);
    expect(&console, &["exitvisor-guest: user space", release]);
    let commands = commands(&console);
    let answered = Answered::parse(&queries);
    let mut readings = answered.readings.iter();

    // Init: four lines, which are told in the end, and a table of the last beside the first.
    let lines: Vec<_> = console.lines().map(str::trim_end).collect();
    let user_space = lines
        .iter()
        .position(|line| line.starts_with("[exit-log] start"));
    let of_init: Vec<_> = readings.by_ref().take(4).collect();
    let printed = lines[user_space.unwrap()..].iter().copied();
    let printed: Vec<_> = printed.filter_map(classic).take(4).collect();
    let totals: Vec<_> = of_init.iter().map(|r| (r.exits, r.cycles)).collect();
    assert_eq!(printed, totals);
    for (milestone, reading) in steps(&profile).into_iter().zip(&of_init) {
        if has_ledger(&profile) {
            check_step(milestone, reading);
        }
    }
    let rows: Vec<_> = lines.iter().filter_map(|line| row(line)).collect();
    let table: BTreeMap<_, _> = rows
        .iter()
        .map(|(reason, now, _)| (*reason, *now))
        .collect();
    assert_eq!(table, of_init[3].reasons);
    for (reason, now, more) in rows {
        let first = of_init[0].reasons.get(&reason).copied().unwrap_or_default();
        assert_eq!(more, (now.0 - first.0, now.1 - first.1), "reason {reason}");
    }

    // Commands.
    let mut singles = answered.single.iter();
    let mut records = 0;
    for said in &commands {
        let expected = match said.command {
            "/exitlog ungate-kernel" if said.lines[0].starts_with("exitlog: no gate") => 1,
            _ => 0,
        };
        assert_eq!(said.status, expected, "{said:#?}");
        let mut before = Reading::default();
        for line in &said.lines {
            if line.starts_with('{') {
                let record: Value = serde_json::from_str(line).unwrap();
                let (now, more) = of_json(&record);
                assert_eq!(more, growth(&now, &before), "{}", record["label"]);
                match record["source"].as_str().unwrap() {
                    // No question is asked.
                    "page" => {}
                    _ => assert_eq!(&now, readings.next().unwrap(), "{}", said.command),
                }
                before = now;
                records += 1;
            } else if let Some(totals) = classic(line) {
                let reading = readings.next().unwrap();
                assert_eq!(totals, (reading.exits, reading.cycles), "{}", said.command);
                before = reading.clone();
                before.reasons.clear();
            } else if let Some((reason, figures)) = of_module(line) {
                before.reasons.insert(reason, figures);
            }
        }
        if said.command == "/bin/busybox cat /proc/exitlog" {
            let last = answered.readings.len() - readings.len() - 1;
            assert_eq!(before, answered.readings[last], "{}", said.command);
            let name = "hypercall 0x283= 0x0033383245504d43 \"CMPE283\"";
            assert!(said.lines.contains(&name), "{said:#?}");
        }
        if said.command.starts_with("/usr/bin/cpuid -k") {
            let figure = of_cpuid(said);
            let reason = said.command.ends_with("-s 48").then_some(TOUCH);
            // The last is asked when the kernel's gate is gone.
            if figure > 0 {
                assert_eq!(singles.next(), Some(&(reason, figure)), "{}", said.command);
            }
        }
    }
    assert_eq!(records, 3 + 1 + 2 + 1);
    assert_eq!(
        readings.next(),
        None,
        "nothing was answered that nobody told"
    );
    assert_eq!(singles.next(), None);
    let figures: Vec<_> = commands
        .iter()
        .filter(|said| said.command.starts_with("/usr/bin/cpuid"))
        .map(of_cpuid)
        .collect();
    let [total, touches, in_ring_3, ungated] = figures[..] else {
        panic!("{figures:?}");
    };
    assert!(total > 0 && touches > 0);
    assert_eq!((in_ring_3, ungated), (0, 0), "where there is no gate");
    assert!(console.contains("exit page and leaves agree in 3 records"));

    // Init's four, those of the records that are not the page's alone, and the brief one.
    assert_eq!(answered.tried, 4 + (records - 1) + 1);
    // The map is asked for in each reading that has reasons, and is not logged.
    let maps = answered.readings.iter().filter(|r| !r.reasons.is_empty());
    let queries = answered.all + maps.count() as u64;
    assert_eq!(profile.gates.queries, queries);
    // Figures only grow.
    for pair in answered.readings.windows(2) {
        assert!(pair[0].exits < pair[1].exits && pair[0].cycles <= pair[1].cycles);
        for (reason, before) in &pair[0].reasons {
            if let Some(now) = pair[1].reasons.get(reason) {
                assert!(before.0 <= now.0 && before.1 <= now.1, "{reason}");
            }
        }
    }
    let last = answered.readings.last().unwrap();
    for (reason, figures) in &last.reasons {
        let total = profile.total.reason(*reason).map_or(0, |r| r.exits);
        assert!(figures.0 <= total, "reason {reason}");
    }
}

/// By what one reading is more than another.
fn growth(now: &Reading, before: &Reading) -> Reading {
    let reasons = now.reasons.iter().map(|(reason, &(exits, cycles))| {
        let then = before.reasons.get(reason).copied().unwrap_or_default();
        (*reason, (exits - then.0, cycles - then.1))
    });
    Reading {
        exits: now.exits - before.exits,
        cycles: now.cycles - before.cycles,
        reasons: reasons.collect(),
    }
}

#[test]
fn all_that_is_told_in_the_older_kernel_was_answered() {
    let test = "all_that_is_told_in_the_older_kernel_was_answered";
    let Some([old, _]) = guests(test) else { return };
    check_agreement(test, &old, "6.1.0-");
}

#[test]
fn all_that_is_told_in_the_newer_kernel_was_answered() {
    let test = "all_that_is_told_in_the_newer_kernel_was_answered";
    let Some([_, new]) = guests(test) else { return };
    check_agreement(test, &new, "6.12.");
}

#[test]
fn abuse_from_user_space_is_endured() {
    let test = "abuse_from_user_space_is_endured";
    let Some([_, new]) = guests(test) else { return };
    let run = new.boot("", "wait abuse", &[]).expect_status(0);
    assert_eq!(run.profile().end.kind, EndKind::PowerOff);
    let module = has_module(test);
    let full = "no slot is left: Exitvisor has four gates for all of this machine";
    let freed = "free: all slots were taken, and none is";
    let expected = [
        ("/abuse garbage", 0, "garbage: endured"),
        ("/abuse unmapped", 0, "unmapped: endured"),
        ("/abuse elsewhere", 0, "elsewhere: endured"),
        ("/abuse slots", 0, freed),
        ("/abuse fill", 0, "fill: all slots are taken"),
        ("/exitlog --brief", 1, full),
        ("/exitlog gate-kernel", 1, full),
        ("/bin/busybox insmod /modules/exitlog.ko", 16, full),
        ("/abuse free", 0, freed),
        ("/abuse nobody", 1, "run it as root"),
        ("/abuse left", 0, "left: a gate"),
        // The gate that was left is found, and withdrawn.
        ("/exitlog --brief", 0, "CPUID(0x4FFFFFFF), exits= "),
        ("/abuse slots", 0, freed),
    ];
    let (console, _) = apart(&run.stderr);
    let commands = commands(&console);
    assert_eq!(commands.len(), expected.len(), "{commands:#?}");
    for (said, (command, status, word)) in commands.iter().zip(expected) {
        assert_eq!(said.command, command);
        if command.contains("insmod") && !module {
            continue;
        }
        assert_eq!(said.status, status, "{said:#?}");
        let text = said.lines.join("\n");
        assert!(text.contains(word), "{said:#?}");
        assert!(!text.contains("panicked"), "{said:#?}");
        if command.starts_with("/exitlog") && status != 0 {
            assert_eq!(said.lines.len(), 1, "one line: {said:#?}");
        }
    }
}

#[test]
fn another_layout_no_page_and_a_kernel_out_of_sight() {
    let test = "another_layout_no_page_and_a_kernel_out_of_sight";
    let Some([old, new]) = guests(test) else {
        return;
    };
    let options = ["--leaves", "reversed", "--exit-page", "off"];
    for (guest, pti) in [(&old, "pti=on"), (&new, "pti=off")] {
        let run = guest.boot(pti, "wait table page both gate", &options);
        let run = run.expect_status(0);
        steps(&run.profile());
        let (console, _) = apart(&run.stderr);
        let line = "[exit-log] before exec  CPUID(0x4FFFFFFC), exits= ";
        let gate = "native_cpuid: the CPUID instruction at 0x";
        expect(&console, &[line, gate]);
        for said in commands(&console) {
            let line = said.lines.first().copied().unwrap_or_default();
            let status = match said.command {
                "/exitlog --json --from page" => {
                    let why = "exitlog: this machine has no exit page; without it: --from leaves";
                    assert_eq!(said.lines, [why]);
                    1
                }
                command if command.contains("--from both") => 1,
                "/exitlog ungate-kernel" if line.starts_with("exitlog: no gate") => 1,
                _ => 0,
            };
            assert_eq!(said.status, status, "{pti}: {said:#?}");
        }
    }
}

#[test]
fn init_goes_on_beside_the_real_one() {
    let test = "init_goes_on_beside_the_real_one";
    let Some([_, new]) = guests(test) else { return };
    let arguments = "exitlog.every=50ms exitlog.count=3 exitlog.brief exitlog.nonsense=1 \
                     exitlog.init=/init";
    let run = new.boot(arguments, "wait", &[]).expect_status(0);
    let (console, _) = apart(&run.stderr);
    expect(
        &console,
        &["exitlog: what is `exitlog.nonsense=1`?", "step wait"],
    );
    let labels: Vec<_> = console
        .lines()
        .filter_map(|line| line.strip_prefix("[exit-log] ")?.split_once(" CPUID("))
        .map(|(label, _)| label.trim())
        .collect();
    let steps = ["start", "mounts", "before exec", "after exec"];
    assert_eq!(
        labels,
        [&steps[..], &["query 1", "query 2", "query 3"]].concat()
    );
    assert!(!console.lines().any(|line| row(line).is_some()), "brief");
}

#[test]
fn a_real_init_that_is_not_there_is_named() {
    let test = "a_real_init_that_is_not_there_is_named";
    let Some([old, _]) = guests(test) else { return };
    let run = old.boot("exitlog.init=/nowhere", "", &[]);
    // As without any init: Linux panics.
    let run = run.expect_status(CRASH);
    let (console, _) = apart(&run.stderr);
    expect(
        &console,
        &["exitlog: cannot start the real init /nowhere: ENOENT"],
    );
    assert_eq!(run.profile().end.kind, EndKind::Crash);
}

#[test]
fn two_cpus_are_asked_together() {
    let test = "two_cpus_are_asked_together";
    let Some([_, new]) = guests(test) else { return };
    if host_cpus() < 2 {
        skip(test, "this host has one CPU");
        return;
    }
    let module = has_module(test);
    let words = ["wait json gate", if module { " module" } else { "" }].concat();
    let run = new.boot("", &words, &["--cpus", "2"]).expect_status(0);
    let profile = run.profile();
    steps(&profile);
    let (console, queries) = apart(&run.stderr);
    let answered = Answered::parse(&queries);
    let mut readings = answered.readings.iter().skip(STEPS.len());
    for said in commands(&console) {
        assert!(said.status <= 1, "{said:#?}");
        for line in said.lines.iter().filter(|line| line.starts_with('{')) {
            let record: Value = serde_json::from_str(line).unwrap();
            assert_eq!(&of_json(&record).0, readings.next().unwrap());
        }
    }
}
