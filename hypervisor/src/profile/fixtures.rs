//! Profiles for tests: boots as they happen, and the extremes. All figures are invented.

use super::figures::{EMULATED_EVENTS, KERNEL_LEDGER, KVM_RUN, KVM_STATS};
use super::*;
use exit_abi::reason::{Edition, Reason};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// A reason's share of a step: reason, exits, the profiler's own of them, mean cycles (0 = not
/// timed: known from KVM's statistics).
type Booking = (u8, u64, u64, u64);
/// A step: milestone, nanoseconds since the start, residual, bookings.
type Step<'a> = (u32, u64, u64, &'a [Booking]);

/// Accounts with these bookings; what is missing to the total is residual.
pub(crate) fn accounts(total: u64, bookings: &[Booking]) -> Accounts {
    let mut accounts = Accounts {
        residual: total,
        ..Accounts::default()
    };
    for &booking in bookings {
        book(&mut accounts, booking);
        accounts.residual -= booking.1;
    }
    accounts.total = total;
    accounts
}

fn book(accounts: &mut Accounts, (reason, exits, own, mean): Booking) {
    let at = match accounts.reasons.binary_search_by_key(&reason, |r| r.reason) {
        Ok(at) => at,
        Err(at) => {
            let source = if mean == 0 { KVM_STATS } else { KVM_RUN }.to_owned();
            let (exits, own, timed, cycles, own_cycles, min, max) = (0, 0, 0, 0, 0, 0, 0);
            let own_timed = 0;
            let new = ReasonAccount {
                reason,
                exits,
                own,
                timed,
                own_timed,
                cycles,
                own_cycles,
                min,
                max,
                source,
            };
            accounts.reasons.insert(at, new);
            at
        }
    };
    let r = &mut accounts.reasons[at];
    r.exits += exits;
    r.own += own;
    r.timed += if mean == 0 { 0 } else { exits };
    r.own_timed += if mean == 0 { 0 } else { own };
    r.cycles += exits * mean;
    r.own_cycles += own * mean;
    if exits > own && mean > 0 {
        r.min = if r.min == 0 {
            mean * 3 / 5
        } else {
            r.min.min(mean * 3 / 5)
        };
        r.max = r.max.max(mean * 6 + 7 * exits);
    }
    accounts.total += exits;
}

/// The guest writes its exit status: the profiler's own exit, after which there is no entry.
fn end_run(total: &mut Accounts) {
    book(total, (30, 1, 1, 0));
}

pub(crate) fn milestone(number: u32, name: &str, nanos: u64, accounts: Accounts) -> Milestone {
    let name = name.to_owned();
    Milestone {
        number,
        name,
        kind: None,
        at: None,
        vcpu: 0,
        tsc: nanos * 5 / 2,
        nanos,
        accounts,
    }
}

fn boot(steps: &[Step<'_>]) -> (Vec<Milestone>, Accounts) {
    let mut so_far = Accounts::default();
    let mut milestones = Vec::new();
    for &(number, nanos, residual, bookings) in steps {
        for &booking in bookings {
            book(&mut so_far, booking);
        }
        so_far.residual += residual;
        so_far.total += residual;
        let name = exit_abi::milestone::name(number).unwrap_or("heap \"ready\"");
        milestones.push(milestone(number, name, nanos, so_far.clone()));
    }
    (milestones, so_far)
}

fn reasons(impossible: &[u8], exact: impl Fn(u8) -> bool) -> Vec<ReasonInfo> {
    Reason::all()
        .filter(|r| r.is_defined(Edition::Current))
        .map(|r| ReasonInfo {
            reason: r.number(),
            name: r.name().unwrap().to_owned(),
            can_occur: !impossible.contains(&r.number()),
            exact: exact(r.number()),
        })
        .collect()
}

fn source(name: &str, available: bool, completeness: &str) -> SourceInfo {
    SourceInfo {
        name: name.to_owned(),
        available,
        completeness: completeness.to_owned(),
        level: None,
    }
}

/// Nothing happened at all.
pub(crate) fn zero() -> Profile {
    Profile {
        schema: SCHEMA.to_owned(),
        version: VERSION,
        tool: Tool {
            name: "exitvisor".to_owned(),
            version: "0.1.0".to_owned(),
        },
        created: "2026-11-20T10:12:33Z".to_owned(),
        host: Host {
            cpu: "AMD EPYC 9654 96-Core Processor".to_owned(),
            kernel: "6.12.48".to_owned(),
            kvm: KvmKind::Software,
            paging: "shadow".to_owned(),
            tsc_khz: 2_500_000,
        },
        machine: Machine {
            cpus: 1,
            memory: 64 << 20,
            cmdline: String::new(),
            layout: "classic".to_owned(),
            leaves: [0x4FFF_FFFF, 0x4FFF_FFFE, 0x4FFF_FFFD, 0x4FFF_FFFC],
            sdm: "current".to_owned(),
            boot: "PVH".to_owned(),
            hypercall: Some("gate".to_owned()),
            exit_page: None,
            images: vec![Image {
                role: "kernel".to_owned(),
                path: "target/guests/guest-kernel".to_owned(),
                bytes: 183_296,
                sha256: "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8"
                    .to_owned(),
            }],
        },
        sources: vec![
            source(
                KVM_RUN,
                true,
                "every exit that reaches the VMM, timed; none that the kernel handles",
            ),
            source(
                KVM_STATS,
                true,
                "all exits, and some of them by reason; no times",
            ),
            source(
                KERNEL_LEDGER,
                false,
                "tracefs cannot be read (permission denied): needs root",
            ),
        ],
        end: End {
            status: 0,
            kind: EndKind::Exit,
            detail: "the guest exited with status 0".to_owned(),
            cut_short: false,
            tsc: 60_000_000,
            nanos: 24_000_000,
        },
        milestones: vec![milestone(1, "reset", 0, Accounts::default())],
        milestones_dropped: 0,
        milestones_missed: Vec::new(),
        total: Accounts::default(),
        vcpus: vec![Accounts::default()],
        gates: GateFigures::default(),
        memory: None,
        devices: Vec::new(),
        histograms: Vec::new(),
        culprits: Vec::new(),
        first_end: None,
        reboots: Vec::new(),
        reboots_dropped: 0,
        startup_cpu_nanos: None,
        reasons: reasons(&[11, 13, 17, 44, 52, 56, 60, 69, 70, 76, 77], |n| {
            [2, 10, 12, 30].contains(&n)
        }),
    }
}

/// A direct boot on software KVM: a residual, and reasons from two sources.
pub(crate) fn software() -> Profile {
    let (milestones, mut total) = boot(&[
        (1, 0, 0, &[]),
        (5, 412_000, 9, &[(48, 3, 0, 14_100), (0, 1, 1, 9_800)]),
        (6, 655_000, 22, &[(48, 14, 0, 13_900), (30, 4, 4, 8_900)]),
        (7, 1_204_000, 31, &[(48, 40, 0, 13_100), (30, 2, 2, 8_900)]),
        (8, 1_377_000, 18, &[(0, 6, 2, 9_900), (30, 2, 2, 9_000)]),
        (
            9,
            4_031_000,
            61,
            &[(12, 60, 0, 0), (1, 58, 0, 4_210), (30, 45, 2, 8_800)],
        ),
        (
            0x101,
            4_377_000,
            2,
            &[(48, 12, 0, 13_000), (30, 2, 2, 9_100)],
        ),
        (
            12,
            8_126_000,
            44,
            &[(30, 260, 6, 7_950), (10, 120, 0, 0), (0, 64, 64, 9_700)],
        ),
        (
            13,
            9_784_000,
            5,
            &[(30, 96, 2, 8_030), (0, 4, 4, 9_700), (55, 1, 0, 6_600)],
        ),
    ]);
    end_run(&mut total);
    Profile {
        milestones,
        vcpus: vec![total.clone()],
        total,
        gates: GateFigures {
            queries: 68,
            hypercalls: 1,
            stepped: 3,
            foreign: 0,
            armed: 2,
        },
        ..zero()
    }
}

/// The time limit struck while the guest waited for something.
pub(crate) fn cut_short() -> Profile {
    let mut profile = software();
    profile.milestones.truncate(5);
    let mut total = profile.milestones[4].accounts.clone();
    book(&mut total, (12, 29_618, 0, 0));
    book(&mut total, (1, 29_590, 0, 4_210));
    total.residual += 1_313;
    total.total += 1_313;
    profile.vcpus = vec![total.clone()];
    profile.total = total;
    profile.end = End {
        status: 80,
        kind: EndKind::Timeout,
        detail: "time limit of 30 s reached: last milestone \"exceptions\"".to_owned(),
        cut_short: true,
        tsc: 60_000_000,
        nanos: 24_000_000,
    };
    profile.machine.cmdline = "console=ttyS0 wait=\u{1b}[31mred".to_owned();
    profile
}

/// A boot on software KVM, and three reboots: the first takes fewer exits, the last one longer.
pub(crate) fn reboots() -> Profile {
    let mut profile = software();
    let ended = |kind, detail: &str, nanos| End {
        status: 0,
        kind,
        detail: detail.to_owned(),
        cut_short: false,
        tsc: nanos * 5 / 2,
        nanos,
    };
    let reset = |nanos| ended(EndKind::Reset, "the guest reset itself", nanos);
    profile.first_end = Some(reset(9_911_000));
    for (i, fewer) in [9, 0, 0].into_iter().enumerate() {
        let start_nanos = 27_300_000 * (i as u64 + 1) + 150_000 * i as u64;
        let mut milestones = profile.milestones.clone();
        let mut total = profile.total.clone();
        let all = milestones.iter_mut().map(|m| &mut m.accounts);
        for accounts in all.chain([&mut total]) {
            if let Some(r) = accounts.reasons.iter_mut().find(|r| r.reason == 30)
                && r.exits > 100
            {
                r.exits -= fewer;
                r.timed -= fewer;
                r.cycles -= fewer * 8_000;
                accounts.total -= fewer;
            }
        }
        if i == 2 {
            book(&mut total, (12, 4, 0, 0));
        }
        let end = match i {
            2 => ended(EndKind::PowerOff, "the guest powered off", 14_020_000),
            _ => reset(9_802_000 + 57_000 * i as u64),
        };
        profile.reboots.push(Pass {
            start_nanos,
            end,
            milestones,
            milestones_dropped: 0,
            milestones_missed: Vec::new(),
            vcpus: vec![total.clone()],
            total,
            gates: profile.gates.clone(),
            memory: profile.memory.clone(),
            devices: profile.devices.clone(),
            histograms: Vec::new(),
            culprits: Vec::new(),
        });
    }
    profile.end = ended(EndKind::PowerOff, "the guest powered off", 96_220_000);
    profile
}

/// What is asked for in a step of a boot: its place, what, which, how often.
type Asking = (usize, AskKind, u64, u64);

/// Books what is asked for: in the snapshot of its step, in all later ones, and in the total.
fn asking(profile: &mut Profile, asked: &[Asking]) {
    let snapshots = profile.milestones.iter_mut().map(|m| &mut m.accounts);
    let all = snapshots.chain([&mut profile.total]).enumerate();
    for (place, accounts) in all {
        for &(_, kind, index, count) in asked.iter().filter(|a| a.0 <= place) {
            let known = accounts.asks.iter_mut();
            match known
                .into_iter()
                .find(|a| (a.kind, a.index) == (kind, index))
            {
                Some(ask) => ask.count += count,
                None => accounts.asks.push(Ask { kind, index, count }),
            }
        }
        accounts.asks.sort_unstable();
    }
}

/// The codes of AMD's that these accounts' reasons come from.
fn amd_codes(accounts: &mut Accounts) {
    let code = |code, name: &str, reason, exits| CodeAccount {
        code: Some(code),
        name: name.to_owned(),
        reason: Some(reason),
        exits,
    };
    let mut codes = Vec::new();
    for r in &accounts.reasons {
        let n = r.exits;
        match r.reason {
            0 => codes.push(code(0x41, "EXCP1 #DB", 0, n)),
            1 => codes.push(code(0x60, "INTR", 1, n)),
            7 => codes.push(code(0x64, "VINTR", 7, n)),
            10 => codes.push(code(0x72, "CPUID", 10, n)),
            12 => codes.push(code(0x78, "HLT", 12, n)),
            28 => codes.extend([
                code(0x00, "CR0_READ", 28, n / 6),
                code(0x10, "CR0_WRITE", 28, n - n / 6 - n / 3),
                code(0x14, "CR4_WRITE", 28, n / 3),
            ]),
            29 => codes.push(code(0x37, "DR7_WRITE", 29, n)),
            30 => codes.push(code(0x7B, "IOIO", 30, n)),
            32 => codes.push(code(0x7C, "MSR write", 32, n)),
            48 => codes.push(code(0x400, "NPF", 48, n)),
            _ => {}
        }
    }
    codes.retain(|c| c.exits > 0);
    codes.sort_by_key(|c| c.code);
    accounts.codes = codes;
}

/// The VMM has two thirds of the cycles of what reaches it (I/O, gates), HLT waits most of its
/// time.
fn split_time(accounts: &mut Accounts) {
    let reach = |r: &&ReasonAccount| [0, 30].contains(&r.reason);
    let sum = |of: fn(&ReasonAccount) -> u64| {
        accounts.reasons.iter().filter(reach).map(of).sum::<u64>() * 2 / 3
    };
    let reached =
        |of: fn(&ReasonAccount) -> u64| accounts.reasons.iter().filter(reach).map(of).sum::<u64>();
    (accounts.userspace, accounts.own_userspace) = (reached(|r| r.exits), reached(|r| r.own));
    (accounts.vmm_cycles, accounts.own_vmm_cycles) = (sum(|r| r.cycles), sum(|r| r.own_cycles));
    accounts.blocked_cycles = accounts.reason(12).map_or(0, |r| r.cycles * 17 / 20);
}

fn every_account(profile: &mut Profile, change: impl Fn(&mut Accounts)) {
    let milestones = profile.milestones.iter_mut().map(|m| &mut m.accounts);
    milestones
        .chain(&mut profile.vcpus)
        .chain([&mut profile.total])
        .for_each(change);
}

/// A boot on AMD through the firmware with two vCPUs, every exit traced and timed.
pub(crate) fn ledger() -> Profile {
    let (mut milestones, mut total) = boot(&[
        (1, 0, 0, &[]),
        (2, 196_000, 0, &[(48, 3, 0, 12_704), (0, 1, 1, 3_100)]),
        (
            3,
            288_000,
            0,
            &[
                (28, 6, 0, 2_214),
                (10, 4, 0, 1_987),
                (32, 1, 0, 2_600),
                (48, 3, 0, 9_010),
            ],
        ),
        (4, 1_107_000, 0, &[(48, 40, 0, 9_204), (30, 2, 2, 6_900)]),
        (5, 1_160_000, 0, &[(48, 6, 0, 9_100), (30, 2, 2, 6_900)]),
        (
            7,
            1_744_000,
            0,
            &[(48, 71, 0, 9_010), (29, 1, 0, 1_800), (30, 2, 2, 6_900)],
        ),
        (
            9,
            4_011_000,
            0,
            &[
                (12, 60, 0, 18_400),
                (1, 58, 0, 1_430),
                (30, 43, 2, 6_120),
                (7, 9, 0, 1_390),
            ],
        ),
        (
            10,
            5_202_000,
            0,
            &[
                (32, 14, 0, 2_470),
                (48, 31, 0, 8_950),
                (10, 4, 0, 1_960),
                (30, 2, 2, 6_880),
            ],
        ),
        (
            12,
            8_877_000,
            0,
            &[(30, 204, 4, 5_870), (10, 64, 0, 1_950), (0, 64, 64, 3_050)],
        ),
        (13, 9_802_000, 0, &[(30, 98, 2, 6_020), (0, 4, 4, 3_020)]),
    ]);
    end_run(&mut total);
    for accounts in milestones
        .iter_mut()
        .map(|m| &mut m.accounts)
        .chain([&mut total])
    {
        accounts
            .reasons
            .iter_mut()
            .for_each(|r| r.source = KERNEL_LEDGER.to_owned());
    }
    milestones[7].vcpu = 1;
    let mut second = accounts(
        49,
        &[(32, 14, 0, 2_470), (48, 31, 0, 8_950), (10, 4, 0, 1_960)],
    );
    second
        .reasons
        .iter_mut()
        .for_each(|r| r.source = KERNEL_LEDGER.to_owned());
    let mut first = total.clone();
    first.total -= second.total;
    for r in &mut first.reasons {
        let theirs = second.reason(r.reason);
        r.exits -= theirs.map_or(0, |t| t.exits);
        r.timed -= theirs.map_or(0, |t| t.timed);
        r.cycles -= theirs.map_or(0, |t| t.cycles);
    }
    let mut profile = Profile {
        milestones,
        total,
        vcpus: vec![first, second],
        ..zero()
    };
    profile.host.kvm = KvmKind::Amd;
    profile.host.paging = "nested".to_owned();
    profile.machine.cpus = 2;
    profile.machine.boot = "PVH via firmware".to_owned();
    let firmware = Image {
        role: "firmware".to_owned(),
        path: "target/guests/firmware".to_owned(),
        bytes: 24_576,
        sha256: "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b".to_owned(),
    };
    profile.machine.images.insert(0, firmware);
    profile.sources[1].completeness = "all exits: agrees with the kernel ledger".to_owned();
    profile.sources[2] = source(
        KERNEL_LEDGER,
        true,
        "every exit with its reason and its cycles",
    );
    profile.sources[2].level = Some("cycles".to_owned());
    profile.gates = GateFigures {
        queries: 68,
        hypercalls: 1,
        stepped: 0,
        foreign: 2,
        armed: 2,
    };
    profile.reasons = reasons(&[11, 44, 52, 56, 60, 69, 70, 76, 77], |_| true);
    every_account(&mut profile, |a| {
        amd_codes(a);
        split_time(a);
    });
    use AskKind::{MsrWrite, PortIn, PortOut};
    asking(
        &mut profile,
        &[
            (2, MsrWrite, 0xC000_0080, 1),
            (3, PortOut, 0xE00, 1),
            (3, PortOut, 0xE04, 1),
            (4, PortOut, 0xE00, 1),
            (4, PortOut, 0xE04, 1),
            (5, PortOut, 0xE00, 1),
            (5, PortOut, 0xE04, 1),
            (6, PortOut, 0xE00, 1),
            (6, PortOut, 0xE04, 1),
            (6, PortOut, 0x20, 5),
            (6, PortOut, 0x21, 2),
            (6, PortOut, 0x40, 2),
            (6, PortOut, 0x43, 1),
            (6, PortOut, 0xA1, 1),
            (6, PortIn, 0x3FD, 15),
            (6, PortOut, 0x3F8, 15),
            (7, MsrWrite, 0x6E0, 4),
            (7, MsrWrite, 0x80B, 4),
            (7, MsrWrite, 0x830, 2),
            (7, MsrWrite, 0x80F, 1),
            (7, MsrWrite, 0x1B, 1),
            (7, MsrWrite, 0x277, 1),
            (7, MsrWrite, 0x4B56_4D01, 1),
            (7, PortOut, 0xE00, 2),
            (8, PortOut, 0xE00, 4),
            (8, PortOut, 0xE1C, 150),
            (8, PortIn, 0xE1C, 50),
            (9, PortIn, 0x3FD, 48),
            (9, PortOut, 0x3F8, 48),
            (9, PortOut, 0xE00, 2),
            (10, PortOut, 0xE08, 1),
        ],
    );
    profile.memory = Some(MemoryAccount {
        pages: "thp".to_owned(),
        prefault: "touch".to_owned(),
        prefault_nanos: 14_203_118,
        resident: 64 << 20,
        huge: 62 << 20,
    });
    profile
}

/// One boot on AMD with page-table work on 64 pages: with nested paging, and with shadow paging.
pub(crate) fn paging() -> [Profile; 2] {
    let of = |paging: &str, steps: &[Step<'_>]| {
        let (mut milestones, mut total) = boot(steps);
        end_run(&mut total);
        let every = milestones.iter_mut().map(|m| &mut m.accounts);
        for accounts in every.chain([&mut total]) {
            for reason in &mut accounts.reasons {
                reason.source = KERNEL_LEDGER.to_owned();
            }
            amd_codes(accounts);
        }
        let mut profile = ledger();
        profile.machine.cpus = 1;
        profile.machine.cmdline = "workload=ptes:64 log=off".to_owned();
        profile.host.paging = paging.to_owned();
        profile.vcpus = vec![total.clone()];
        profile.milestones = milestones;
        profile.total = total;
        profile
    };
    let nested: &[Step<'_>] = &[
        (1, 0, 0, &[]),
        (4, 900_000, 0, &[(48, 2, 0, 21_000), (28, 6, 0, 2_214)]),
        (8, 1_400_000, 0, &[(0, 1, 0, 3_000)]),
        (
            9,
            2_500_000,
            0,
            &[(49, 12, 0, 4_100), (12, 3, 0, 18_400), (1, 2, 0, 1_430)],
        ),
        (11, 2_600_000, 0, &[(0, 2, 2, 3_050)]),
        (
            12,
            3_100_000,
            0,
            &[(48, 1, 0, 22_000), (30, 4, 4, 5_870), (1, 1, 0, 1_400)],
        ),
        (13, 3_200_000, 0, &[(0, 4, 4, 3_020)]),
    ];
    let shadow: &[Step<'_>] = &[
        (1, 0, 0, &[]),
        (4, 1_000_000, 0, &[(0, 17, 0, 14_000), (28, 12, 0, 6_900)]),
        (8, 1_500_000, 0, &[(0, 2, 0, 9_000)]),
        (
            9,
            2_700_000,
            0,
            &[(0, 12, 0, 9_500), (12, 3, 0, 18_100), (1, 3, 0, 1_430)],
        ),
        (11, 2_900_000, 0, &[(0, 2, 2, 3_050)]),
        (
            12,
            9_400_000,
            0,
            &[
                (0, 217, 0, 11_300),
                (14, 256, 0, 4_100),
                (28, 130, 0, 7_700),
                (30, 4, 4, 5_870),
                (1, 9, 0, 1_400),
            ],
        ),
        (13, 9_500_000, 0, &[(0, 4, 4, 3_020)]),
    ];
    [of("nested", nested), of("shadow", shadow)]
}

/// [`ledger`] with histograms, failed entries, exits without a reason, and too many indices.
pub(crate) fn histograms() -> Profile {
    let mut profile = ledger();
    profile.sources[2].level = Some("histogram".to_owned());
    let unlisted = [("VMLOAD", Some(0x82), 3), ("not in our tables", None, 1)];
    let last = profile.vcpus.len() - 1;
    let end = profile.milestones.last_mut().map(|m| &mut m.accounts);
    for accounts in [&mut profile.total, &mut profile.vcpus[last]]
        .into_iter()
        .chain(end)
    {
        accounts.other = 4;
        accounts.total += 4;
        accounts.failed = 1;
        let codes = unlisted.map(|(name, code, exits)| CodeAccount {
            code,
            name: name.to_owned(),
            reason: None,
            exits,
        });
        accounts.codes.extend(codes);
    }
    profile.total.asks_dropped = 3;
    let bell = |reason: &ReasonAccount| {
        // Around the mean, in nanoseconds of 2.5 cycles.
        let place = (reason.cycles * 2 / (5 * reason.exits)).ilog2() as usize;
        let mut buckets = vec![0; place + 3];
        let n = reason.exits;
        buckets[place - 1] = n / 4;
        buckets[place + 1] = n / 8;
        buckets[place + 2] = n / 50;
        buckets[place] = n - n / 4 - n / 8 - n / 50;
        while buckets.last() == Some(&0) {
            buckets.pop();
        }
        Histogram {
            reason: reason.reason,
            buckets,
        }
    };
    profile.histograms = profile.total.reasons.iter().map(bell).collect();
    // The external interrupts have two humps.
    if let Some(h) = profile.histograms.iter_mut().find(|h| h.reason == 1) {
        h.buckets = vec![0; 13];
        h.buckets[9] = 40;
        h.buckets[12] = 18;
    }
    profile
}

/// [`ledger`] with who caused what, and symbols for some of it.
pub(crate) fn culprits() -> Profile {
    let mut profile = ledger();
    let culprit = |reason: u8, ask: Option<(AskKind, u64)>, rip: u64, symbol: &str| Culprit {
        reason: Some(reason),
        kind: ask.map(|(kind, _)| kind),
        index: ask.map(|(_, index)| index),
        rip: (rip > 0).then_some(rip),
        symbol: (!symbol.is_empty()).then(|| symbol.to_owned()),
        lost: None,
        ..Culprit::default()
    };
    let lost = |reason: u8, lost| Culprit {
        reason: Some(reason),
        lost: Some(lost),
        ..Culprit::default()
    };
    use AskKind::{Cpuid, CrWrite, Exception, MsrWrite, Page, PortIn, PortOut, Ram};
    // Who, and out of how many exits of its reason how many are its: the last of a reason has the rest.
    const TEXT: u64 = 0xFFFF_FFFF_8100_0000;
    let shares = [
        (culprit(0, Some((Exception, 1)), 0x10_2000, ""), 1, 2),
        (culprit(0, Some((Exception, 14)), 0x10_3000, ""), 1, 1),
        (culprit(1, None, 0, ""), 1, 1),
        (culprit(7, None, 0, ""), 1, 1),
        (
            culprit(10, Some((Cpuid, 0)), TEXT + 0x40, "native_cpuid+0x1f"),
            1,
            2,
        ),
        (culprit(10, Some((Cpuid, 0x4FFF_FFFF)), 0x40_1000, ""), 1, 4),
        (
            culprit(10, Some((Cpuid, 0xD)), TEXT + 0x40, "native_cpuid+0x1f"),
            1,
            1,
        ),
        (culprit(12, None, TEXT + 0x80, "native_safe_halt+0x8"), 1, 1),
        (
            culprit(28, Some((CrWrite, 0)), 0x10_0040, "start+0x40"),
            1,
            2,
        ),
        (
            culprit(28, Some((CrWrite, 4)), 0x10_0050, "start+0x50"),
            1,
            1,
        ),
        (culprit(29, None, TEXT + 0x99, ""), 1, 1),
        (
            culprit(
                30,
                Some((PortOut, 0x3F8)),
                TEXT + 0x100,
                "io_serial_out+0x16",
            ),
            1,
            4,
        ),
        (
            culprit(30, Some((PortIn, 0x3FD)), TEXT + 0x120, "io_serial_in+0x14"),
            1,
            4,
        ),
        (culprit(30, Some((PortOut, 0xE1C)), 0x10_4000, ""), 1, 6),
        (culprit(30, Some((PortOut, 0xE00)), 0x10_4100, ""), 1, 12),
        (
            culprit(
                30,
                Some((PortOut, 0x80)),
                TEXT + 0x130,
                "native_io_delay+0x2",
            ),
            1,
            12,
        ),
        (
            culprit(
                30,
                Some((PortOut, 0x80)),
                TEXT + 0x1_0000,
                "=cmd()\u{1b}[31m+0x1",
            ),
            1,
            24,
        ),
        (lost(30, Lost::NoRoom), 1, 1),
        (
            culprit(
                32,
                Some((MsrWrite, 0x6E0)),
                TEXT + 0x200,
                "lapic_next_deadline+0x1c",
            ),
            1,
            2,
        ),
        (
            culprit(
                32,
                Some((MsrWrite, 0x6E0)),
                TEXT + 0x290,
                "lapic_timer_shutdown+0x21",
            ),
            1,
            8,
        ),
        (
            culprit(
                32,
                Some((MsrWrite, 0x80B)),
                TEXT + 0x300,
                "native_apic_msr_eoi+0xe",
            ),
            1,
            4,
        ),
        (lost(32, Lost::NotTold), 1, 1),
        (
            culprit(
                48,
                Some((Ram, 0x20_0000)),
                TEXT + 0x400,
                "clear_page_erms+0x7",
            ),
            1,
            2,
        ),
        (
            culprit(
                48,
                Some((Ram, 0x120_0000)),
                TEXT + 0x400,
                "clear_page_erms+0x7",
            ),
            1,
            4,
        ),
        (culprit(48, Some((Page, 0xE_0000)), 0x10_5000, ""), 1, 1),
        (
            culprit(
                49,
                Some((Page, 0xFEC0_0000)),
                TEXT + 0x500,
                "io_apic_read+0x12",
            ),
            1,
            3,
        ),
        (
            culprit(
                49,
                Some((Page, 0xFEE0_0000)),
                TEXT + 0x520,
                "native_apic_mem_write+0x3",
            ),
            1,
            2,
        ),
        (culprit(49, Some((Page, 0xD000_0000)), 0x10_6000, ""), 1, 1),
    ];
    let known = |reason: u8| shares.iter().any(|(c, ..)| c.reason == Some(reason));
    let others: BTreeSet<u8> = profile.total.reasons.iter().map(|r| r.reason).collect();
    let others = others.into_iter().filter(|&reason| !known(reason));
    let others = others.map(|reason| (culprit(reason, None, 0x10_7000, ""), 1, 1));
    let shares: Vec<(Culprit, u64, u64)> = shares.iter().cloned().chain(others).collect();
    // Step by step: what a step adds is shared out.
    let mut counts = vec![0; shares.len()];
    let mut before = BTreeMap::new();
    let snapshots = profile.milestones.iter_mut().map(|m| &mut m.accounts);
    for accounts in snapshots.chain([&mut profile.total]) {
        let now = accounts.reasons.iter().map(|r| (Some(r.reason), r.exits));
        let now: BTreeMap<Option<u8>, u64> = now.collect();
        let mut left = now.clone();
        for (reason, exits) in &mut left {
            *exits -= before.get(reason).copied().unwrap_or(0);
        }
        let new = left.clone();
        for (count, (culprit, part, whole)) in counts.iter_mut().zip(&shares) {
            let of = new.get(&culprit.reason).copied().unwrap_or(0);
            let left = left.entry(culprit.reason).or_default();
            let n = if whole == part {
                *left
            } else {
                of * part / whole
            };
            *left -= n;
            *count += n;
        }
        before = now;
        accounts.culprits.clone_from(&counts);
        while accounts.culprits.last() == Some(&0) {
            accounts.culprits.pop();
        }
    }
    let cycles = profile.total.culprits.iter().zip(1..);
    profile.total.culprit_cycles = cycles.map(|(exits, n)| exits * (900 + 137 * n)).collect();
    profile.culprits = shares.into_iter().map(|(culprit, ..)| culprit).collect();
    profile
}

/// A boot on Intel, counts only: KVM emulated at first without an exit, an entry failed, and an
/// exit came that no table has.
pub(crate) fn intel() -> Profile {
    let mut profile = ledger();
    profile.host.kvm = KvmKind::Intel;
    profile.host.cpu = "Intel(R) Xeon(R) Platinum 8480+".to_owned();
    profile.sources[2] = source(KERNEL_LEDGER, true, "every exit with its reason; no times");
    profile.sources[2].level = Some("counts".to_owned());
    profile.sources[1].completeness = "all exits, and some of them by reason; no times".to_owned();
    profile.machine.cpus = 1;
    profile.milestones.remove(7);
    let extra = |accounts: &mut Accounts| {
        if accounts.total > 0 {
            accounts.residual += 13;
            accounts.total += 13;
        }
        for r in &mut accounts.reasons {
            if ![0, 30].contains(&r.reason) {
                (r.timed, r.own_timed, r.cycles, r.own_cycles) = (0, 0, 0, 0);
                (r.min, r.max) = (0, 0);
            }
        }
        accounts.blocked_cycles = 0;
        let code = |reason: u8, exits| CodeAccount {
            code: Some(reason.into()),
            name: Reason::new(reason.into())
                .and_then(Reason::name)
                .unwrap()
                .to_owned(),
            reason: Some(reason),
            exits,
        };
        accounts.codes = accounts
            .reasons
            .iter()
            .map(|r| code(r.reason, r.exits))
            .collect();
    };
    every_account(&mut profile, extra);
    book(&mut profile.total, (33, 1, 0, 0));
    let total = &mut profile.total;
    total.reasons.last_mut().unwrap().source = KERNEL_LEDGER.to_owned();
    if let Some(r) = total.reasons.iter_mut().find(|r| r.reason == 33) {
        r.source = KERNEL_LEDGER.to_owned();
    }
    total.failed = 1;
    let entry = CodeAccount {
        code: Some(33),
        name: "entry failure: guest state".to_owned(),
        reason: Some(33),
        exits: 1,
    };
    let at = total.codes.partition_point(|c| c.code < Some(33));
    total.codes.insert(at, entry);
    total.other = 1;
    total.total += 1;
    total.codes.push(CodeAccount {
        code: None,
        name: "not in our tables".to_owned(),
        reason: None,
        exits: 1,
    });
    profile.vcpus = vec![profile.total.clone()];
    profile
}

/// A direct boot on software KVM whose emulated events were counted.
pub(crate) fn emulated() -> Profile {
    let mut profile = software();
    profile.sources[2].completeness = "kvm_exit is not traced here; see emulated events".to_owned();
    profile.sources.push(source(
        EMULATED_EVENTS,
        true,
        "what KVM emulated, by reason; no exits, no times",
    ));
    let add = |accounts: &mut Accounts, reason: u8, events: u64, own: u64| {
        let at = accounts.emulated.partition_point(|e| e.reason < reason);
        match accounts.emulated.get_mut(at).filter(|e| e.reason == reason) {
            Some(e) => (e.events, e.own) = (e.events + events, e.own + own),
            None => accounts.emulated.insert(
                at,
                EventAccount {
                    reason,
                    events,
                    own,
                },
            ),
        }
    };
    // Step, reason, events, the profiler's own of them.
    let events = [
        (1, 10, 9, 0),
        (1, 28, 4, 0),
        (1, 32, 1, 0),
        (2, 30, 4, 4),
        (3, 30, 2, 2),
        (4, 30, 2, 2),
        (5, 12, 60, 0),
        (5, 30, 45, 2),
        (5, 32, 62, 0),
        (5, 49, 3, 0),
        (6, 30, 2, 2),
        (7, 10, 120, 0),
        (7, 30, 260, 6),
        (8, 30, 96, 2),
        (9, 30, 1, 1),
    ];
    let snapshots = profile.milestones.iter_mut().map(|m| &mut m.accounts);
    for (place, accounts) in snapshots.chain([&mut profile.total]).enumerate() {
        for &(_, reason, n, own) in events.iter().filter(|e| e.0 <= place) {
            add(accounts, reason, n, own);
        }
    }
    use AskKind::{Cpuid, MsrWrite, PortIn, PortOut};
    let mut asked = vec![
        (1, Cpuid, 0x0, 1),
        (1, Cpuid, 0x1, 2),
        (1, Cpuid, 0x4FFF_FF00, 1),
        (1, Cpuid, 0x8000_0000, 2),
        (1, Cpuid, 0x8000_0001, 2),
        (1, Cpuid, 0xD, 1),
        (1, MsrWrite, 0xC000_0080, 1),
        (2, PortOut, 0xE00, 2),
        (2, PortOut, 0xE04, 2),
        (3, PortOut, 0xE00, 2),
        (4, PortOut, 0xE00, 2),
        (5, PortOut, 0xE00, 2),
        (5, MsrWrite, 0x6E0, 60),
        (5, MsrWrite, 0x1B, 1),
        (5, MsrWrite, 0x80F, 1),
        (5, PortIn, 0x3FD, 21),
        (5, PortOut, 0x3F8, 22),
        (6, PortOut, 0xE00, 2),
        (7, Cpuid, 0x0, 120),
        (7, PortOut, 0xE00, 6),
        (7, PortOut, 0xE1C, 254),
        (8, PortOut, 0xE00, 2),
        (9, PortOut, 0xE08, 1),
    ];
    asked.extend((0..8).map(|i| (8, PortOut, 0x3F8 + i, 12 - i % 2)));
    asking(&mut profile, &asked);
    profile.vcpus = vec![profile.total.clone()];
    profile
}

/// Every figure as large as it gets.
pub(crate) fn huge() -> Profile {
    let most = u64::MAX;
    let source = KVM_RUN.to_owned();
    let account = |reason| ReasonAccount {
        reason,
        exits: most,
        own: 1,
        timed: most,
        own_timed: 1,
        cycles: most,
        own_cycles: 0,
        min: most,
        max: most,
        source: source.clone(),
    };
    let total = Accounts {
        total: most,
        residual: 0,
        own_residual: 0,
        other: 0,
        excess: most,
        reasons: vec![account(30), account(127)],
        ..Accounts::default()
    };
    let name = "\u{1b}[2J\u{202e}日本".to_owned();
    let late = Milestone {
        number: most as u32,
        name,
        kind: None,
        at: None,
        vcpu: u32::MAX,
        tsc: most,
        nanos: most,
        accounts: total.clone(),
    };
    let mut profile = zero();
    profile.milestones.push(late.clone());
    profile.milestones.push(late);
    profile.milestones_dropped = most;
    profile.vcpus = vec![total.clone(), total.clone()];
    profile.total = total;
    profile.machine.cpus = u32::MAX;
    profile.machine.memory = most;
    profile.gates = GateFigures {
        queries: most,
        hypercalls: most,
        stepped: most,
        foreign: most,
        armed: most,
    };
    profile
}

/// All of them.
pub(crate) fn all() -> Vec<Profile> {
    vec![
        zero(),
        software(),
        cut_short(),
        reboots(),
        ledger(),
        histograms(),
        culprits(),
        intel(),
        emulated(),
        huge(),
    ]
}

fn figure() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 1u64..2_000, Just(u64::MAX), any::<u64>()]
}

fn string() -> impl Strategy<Value = String> {
    prop_oneof![".{0,12}", "\\PC{0,200}", Just("KVM stats".to_owned())]
}

prop_compose! {
    fn any_reason()(
        reason in any::<u8>(),
        figures in proptest::array::uniform8(figure()),
        source in string(),
    ) -> ReasonAccount {
        let [exits, own, timed, own_timed, cycles, own_cycles, min, max] = figures;
        ReasonAccount {
            reason, exits, own, timed, own_timed, cycles, own_cycles, min, max, source,
        }
    }
}

prop_compose! {
    fn any_code()(
        code in proptest::option::of(any::<u64>()),
        name in string(),
        reason in proptest::option::of(any::<u8>()),
        exits in figure(),
    ) -> CodeAccount {
        CodeAccount { code, name, reason, exits }
    }
}

prop_compose! {
    fn any_ask()(
        kind in prop_oneof![
            Just(AskKind::MsrRead),
            Just(AskKind::MsrWrite),
            Just(AskKind::PortIn),
            Just(AskKind::PortOut),
            Just(AskKind::Cpuid),
            Just(AskKind::Page),
            Just(AskKind::Ram),
            Just(AskKind::Exception),
            Just(AskKind::CrWrite),
        ],
        index in prop_oneof![any::<u64>(), Just(0x6E0), Just(0x20), 0u64..0x1_0000],
        count in figure(),
    ) -> Ask {
        Ask { kind, index, count }
    }
}

prop_compose! {
    fn any_event()(reason in any::<u8>(), events in figure(), own in figure()) -> EventAccount {
        EventAccount { reason, events, own }
    }
}

prop_compose! {
    fn any_histogram()(
        reason in any::<u8>(),
        buckets in proptest::collection::vec(figure(), 0..40),
    ) -> Histogram {
        Histogram { reason, buckets }
    }
}

prop_compose! {
    fn any_accounts()(
        figures in proptest::array::uniform12(figure()),
        reasons in proptest::collection::vec(any_reason(), 0..6),
        codes in proptest::collection::vec(any_code(), 0..6),
        asks in proptest::collection::vec(any_ask(), 0..24),
        emulated in proptest::collection::vec(any_event(), 0..3),
        culprits in proptest::collection::vec(figure(), 0..6),
    ) -> Accounts {
        let [total, residual, own_residual, other, excess, failed, ..] = figures;
        let [.., userspace, own_userspace, vmm_cycles, own_vmm_cycles, blocked_cycles, asks_dropped] = figures;
        Accounts {
            total,
            residual,
            own_residual,
            other,
            excess,
            reasons,
            failed,
            userspace,
            own_userspace,
            vmm_cycles,
            own_vmm_cycles,
            blocked_cycles,
            codes,
            asks,
            asks_dropped,
            culprits,
            culprit_cycles: Vec::new(),
            emulated,
        }
    }
}

prop_compose! {
    fn any_milestone()(
        number in any::<u32>(),
        name in string(),
        vcpu in any::<u32>(),
        nanos in figure(),
        accounts in any_accounts(),
    ) -> Milestone {
        Milestone { number, name, kind: None, at: None, vcpu, tsc: nanos, nanos, accounts }
    }
}

prop_compose! {
    fn any_pass()(
        start_nanos in figure(),
        detail in string(),
        cut_short in any::<bool>(),
        milestones in proptest::collection::vec(any_milestone(), 0..3),
        total in any_accounts(),
    ) -> Pass {
        let end = End {
            detail,
            cut_short,
            nanos: total.total,
            ..zero().end
        };
        Pass {
            start_nanos,
            end,
            milestones,
            milestones_dropped: 0,
            milestones_missed: Vec::new(),
            vcpus: vec![total.clone()],
            total,
            gates: GateFigures::default(),
            memory: None,
            devices: Vec::new(),
            histograms: Vec::new(),
            culprits: Vec::new(),
        }
    }
}

prop_compose! {
    /// Any profile at all, consistent or not.
    pub(crate) fn any_profile()(
        strings in proptest::collection::vec(string(), 8),
        milestones in proptest::collection::vec(any_milestone(), 0..6),
        totals in proptest::collection::vec(any_accounts(), 1..4),
        dropped in figure(),
        memory in figure(),
        cut_short in any::<bool>(),
        reboots in proptest::collection::vec(any_pass(), 0..20),
        histograms in proptest::collection::vec(any_histogram(), 0..6),
        level in prop_oneof![Just(None), string().prop_map(Some)],
    ) -> Profile {
        let mut profile = ledger();
        profile.histograms = histograms;
        profile.culprits = culprits().culprits;
        profile.sources[2].level = level;
        let mut strings = strings.into_iter();
        let mut next = || strings.next().unwrap_or_default();
        profile.tool.version = next();
        profile.created = next();
        profile.host.cpu = next();
        profile.host.kernel = next();
        profile.machine.cmdline = next();
        profile.machine.images[0].path = next();
        profile.end.detail = next();
        profile.sources[0].completeness = next();
        profile.end.cut_short = cut_short;
        profile.machine.memory = memory;
        profile.milestones_dropped = dropped;
        profile.total = totals[0].clone();
        profile.vcpus = totals;
        profile.milestones = milestones;
        profile.first_end = reboots.first().map(|pass| pass.end.clone());
        profile.reboots_dropped = if reboots.is_empty() { 0 } else { dropped };
        profile.reboots = reboots;
        profile
    }
}
