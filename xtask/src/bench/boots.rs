//! Boots of the default guest on this machine's KVM: what they cost the host, beside what we aim at.

use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use anyhow::Context;
use indicatif::ProgressBar;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};

use super::figures::{Figure, Section, Spread};
use super::profile::{Accounts, Profile};
use super::quietly::{ended_well, spawn, watched};
use crate::build::Built;
use crate::smaps::Besides;
use crate::step::Step;
use crate::workspace;

/// Measures so many rounds; or the status with which nothing boots here, of which exitvisor has
/// said why on stderr.
pub(crate) fn measure(built: &Built, runs: u32) -> anyhow::Result<Result<Section, u8>> {
    let profile = workspace::output_folder()?.join("bench.json");
    let step = |command: &str, firmware: &Path| {
        Step::new(&built.exitvisor)
            .args([command, "--firmware"])
            .arg(firmware)
            .arg("--kernel")
            .arg(&built.guest_kernel)
    };
    let boot = |firmware: &Path| step("run", firmware);
    let measured_boot = |firmware: &Path| {
        let options = ["--memory", "64M", "--format", "json", "--output"];
        step("profile", firmware).args(options).arg(&profile)
    };
    let ways = [built.firmware.as_path(), Path::new("none")];

    // The warm-up may speak on stderr.
    for firmware in ways {
        let mut warm_up = boot(firmware);
        warm_up.command().stdin(Stdio::null()).stdout(Stdio::null());
        match warm_up.status()? {
            0 => {}
            status => return Ok(Err(status)),
        }
    }
    for firmware in ways {
        eprintln!("+ {}   (times {runs})", boot(firmware));
        eprintln!("+ {}   (times {runs})", measured_boot(firmware));
    }
    let progress = ProgressBar::new(runs.into());
    let measure = |firmware: &Path| -> anyhow::Result<Boot> {
        let times = timed(boot(firmware))?;
        let memory = watched(measured_boot(firmware))?;
        Ok(Boot {
            times,
            memory,
            exits: Exits::of(&Profile::read(&profile)?),
        })
    };
    let mut rounds = Vec::new();
    for _ in 0..runs {
        let [through_firmware, alone] = ways.map(measure);
        rounds.push(Round {
            through_firmware: through_firmware?,
            alone: alone?,
        });
        progress.inc(1);
    }
    progress.finish_and_clear();
    Ok(Ok(section(&rounds)))
}

fn section(rounds: &[Round]) -> Section {
    Section {
        title: format!(
            "boots of the default guest on this machine's KVM, {} rounds",
            rounds.len()
        ),
        method: METHOD.to_owned(),
        figures: figures(rounds),
        unmeasured: Vec::new(),
    }
}

const METHOD: &str = "\
Times: exitvisor run, from its start to its exit status. Exits: exitvisor profile; its own are not the
guest's. Memory: /proc/PID/smaps every 2 ms. Aims: on software KVM. Ratio: median to aim.";

/// What one round measured.
#[derive(Clone, Copy, Debug)]
struct Round {
    /// The default: firmware, then kernel.
    through_firmware: Boot,
    /// The kernel, entered directly.
    alone: Boot,
}

/// One way to boot, measured.
#[derive(Clone, Copy, Debug)]
struct Boot {
    times: Times,
    memory: Option<Besides>,
    exits: Exits,
}

/// From process start to exit status, seconds.
#[derive(Clone, Copy, Debug)]
struct Times {
    cpu: f64,
    wall: f64,
}

/// Exits of one boot, from its profile.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Exits {
    /// All that KVM counted (or, where it does not, all that were seen).
    total: f64,
    /// Until the firmware had loaded the kernel, without the profiler's own; `None` without one.
    firmware: Option<f64>,
    /// To userspace, without the profiler's own.
    to_userspace: f64,
    /// The profiler's own at its gates, per answer; `None` if no question was asked.
    per_query: Option<f64>,
}

/// The reasons by which a gate's question arrives: #DB, CPUID, VMCALL.
const AT_GATES: [u8; 3] = [0, 10, 18];

impl Exits {
    fn of(profile: &Profile) -> Self {
        let total = &profile.total;
        let at_gates = total
            .reasons
            .iter()
            .filter(|reason| AT_GATES.contains(&reason.reason));
        let at_gates: u64 = at_gates.map(|reason| reason.own).sum();
        let answers = profile.gates.queries + profile.gates.hypercalls;
        let loaded = profile.milestone(exit_abi::milestone::KERNEL_LOADED);
        Self {
            total: total.total as f64,
            firmware: loaded.map(|m| of_the_guest(&m.accounts) as f64),
            to_userspace: (total.userspace - total.own_userspace) as f64,
            per_query: (answers > 0).then(|| at_gates as f64 / answers as f64),
        }
    }
}

/// All exits but the profiler's own.
fn of_the_guest(accounts: &Accounts) -> u64 {
    let own: u64 = accounts.reasons.iter().map(|reason| reason.own).sum();
    accounts.total.saturating_sub(own)
}

/// Runs a step undisturbed and takes its times.
fn timed(step: Step) -> anyhow::Result<Times> {
    let cpu_before = cpu_of_children()?;
    let start = Instant::now();
    let (what, mut child) = spawn(step)?;
    let status = child.wait()?;
    let wall = start.elapsed().as_secs_f64();
    ended_well(what, status)?;
    let cpu = (cpu_of_children()? - cpu_before).num_microseconds() as f64 / 1e6;
    Ok(Times { cpu, wall })
}

/// CPU time of all children that have ended, user and system.
fn cpu_of_children() -> anyhow::Result<TimeVal> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("getrusage")?;
    Ok(usage.user_time() + usage.system_time())
}

pub(crate) const MIB: f64 = 1024.0 * 1024.0;

/// The figures, with the aims of the project for its default guest on software KVM.
fn figures(rounds: &[Round]) -> Vec<Figure> {
    let figure = |name, unit, aim, value: &dyn Fn(&Round) -> Option<f64>| {
        Figure::new(name, unit, aim, Spread::of(rounds.iter().map(value)))
    };
    let boot: fn(&Round) -> Boot = |round| round.through_firmware;
    let alone: fn(&Round) -> Boot = |round| round.alone;
    vec![
        figure("CPU time of a boot", "s", Some(0.6), &|round| {
            Some(boot(round).times.cpu)
        }),
        figure("… kernel alone", "s", Some(0.4), &|round| {
            Some(alone(round).times.cpu)
        }),
        figure("wall time of a boot", "s", None, &|round| {
            Some(boot(round).times.wall)
        }),
        figure("… kernel alone", "s", None, &|round| {
            Some(alone(round).times.wall)
        }),
        figure("exits to userspace but own", "", Some(39.0), &|round| {
            Some(boot(round).exits.to_userspace)
        }),
        figure("… kernel alone", "", Some(39.0), &|round| {
            Some(alone(round).exits.to_userspace)
        }),
        figure("exits until kernel loaded", "", None, &|round| {
            boot(round).exits.firmware
        }),
        figure("exits, all", "", None, &|round| {
            Some(boot(round).exits.total)
        }),
        figure("… kernel alone", "", None, &|round| {
            Some(alone(round).exits.total)
        }),
        figure("own exits per gate query", "", Some(2.0), &|round| {
            boot(round).exits.per_query
        }),
        figure("memory besides guest RAM", "MiB", Some(5.0), &|round| {
            Some(boot(round).memory?.resident as f64 / MIB)
        }),
        figure("… of it private", "MiB", None, &|round| {
            Some(boot(round).memory?.private as f64 / MIB)
        }),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::figures::{Results, text};
    use super::super::profile::{End, Gates, Host, Milestone, Reason};
    use super::*;

    fn table(rounds: &[Round]) -> String {
        text(&Results {
            sections: vec![section(rounds)],
        })
    }

    fn round(cpu: f64, to_userspace: f64) -> Round {
        let alone = boot(cpu / 2.0, to_userspace, None);
        Round {
            through_firmware: boot(cpu, to_userspace, Some(24.0)),
            alone,
        }
    }

    fn boot(cpu: f64, to_userspace: f64, firmware: Option<f64>) -> Boot {
        Boot {
            times: Times {
                cpu,
                wall: cpu + 0.01,
            },
            memory: Some(Besides {
                resident: 4 << 20,
                private: 1 << 20,
            }),
            exits: Exits {
                total: 120.0,
                firmware,
                to_userspace,
                per_query: Some(1.0),
            },
        }
    }

    #[test]
    fn exits_come_from_the_profile() {
        let reason = |reason, own| Reason {
            reason,
            own,
            own_timed: 0,
            own_cycles: 0,
        };
        let accounts = |total, reasons| Accounts {
            total,
            userspace: 60,
            own_userspace: 36,
            reasons,
        };
        let at = |number, total| Milestone {
            number,
            tsc: 0,
            accounts: accounts(total, vec![reason(30, 5)]),
        };
        let all = vec![reason(0, 12), reason(12, 0), reason(30, 30)];
        let mut profile = Profile {
            host: Host { tsc_khz: 0 },
            sources: Vec::new(),
            end: End {
                status: 0,
                detail: String::new(),
            },
            milestones: vec![at(3, 30), at(4, 70), at(5, 80)],
            total: accounts(120, all),
            gates: Gates {
                queries: 10,
                hypercalls: 2,
                armed: 1,
            },
        };
        let exits = Exits {
            total: 120.0,
            firmware: Some(65.0),
            to_userspace: 24.0,
            per_query: Some(1.0),
        };
        assert_eq!(Exits::of(&profile), exits);

        profile.gates = Gates {
            queries: 0,
            hypercalls: 0,
            armed: 0,
        };
        assert_eq!(Exits::of(&profile).per_query, None);
    }

    #[test]
    fn the_table_is_aligned() {
        let rounds = [round(0.25, 30.0), round(0.125, 28.0)];
        insta::assert_snapshot!(table(&rounds));
    }

    #[test]
    fn what_cannot_be_shown_is_a_dash() {
        let bare = Boot {
            memory: None,
            ..boot(0.25, 24.0, None)
        };
        let rounds = [Round {
            through_firmware: bare,
            alone: bare,
        }];
        insta::assert_snapshot!(table(&rounds));
    }
}
