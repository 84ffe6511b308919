//! The black-box tests inside labs: several labs at a time, each a process of its own, so that one
//! that dies takes nothing with it.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;

use super::inside;
use super::suite::Suite;
use crate::build::{Built, Executable};
use crate::lab::{self, Host, Job, process};
use crate::{step, workspace};

/// The status of a lab that cannot be set up (EX_UNAVAILABLE).
const NO_LAB: u8 = 69;
/// What a skipped test says first.
const SKIPPED: &str = "skipped: ";

/// What is to be run in labs.
#[derive(Debug)]
pub(super) struct Plan {
    /// In which labs, the slowest first.
    pub(super) suites: Vec<Suite>,
    /// The hypervisor and the guests.
    pub(super) built: Built,
    /// The black-box test programs.
    pub(super) programs: Vec<PathBuf>,
    /// The hypervisor's own test programs: what it gives the kernel meets another verifier in
    /// each lab.
    pub(super) own: Vec<PathBuf>,
    /// Options of the test programs.
    pub(super) options: Vec<OsString>,
    /// Whether this is the usual run: of some labs it takes only a part.
    pub(super) usual: bool,
}

/// How a lab went.
#[derive(Debug)]
struct Report {
    suite: Suite,
    status: u8,
    passed: u64,
    /// Without the word in front.
    skipped: Vec<String>,
    took: Duration,
}

impl Plan {
    /// Runs the labs, and the tests of this host meanwhile; the first status that is not 0.
    pub(super) fn run_beside(
        &self,
        host: impl FnOnce() -> anyhow::Result<u8>,
    ) -> anyhow::Result<u8> {
        let waiting = Mutex::new(VecDeque::from(self.suites.clone()));
        let reports = Mutex::new(Vec::new());
        let work = || -> anyhow::Result<()> {
            loop {
                let mut queue = waiting.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(suite) = queue.pop_front() else {
                    return Ok(());
                };
                drop(queue);
                let report = self.run_suite(suite)?;
                let mut reports = reports.lock().unwrap_or_else(PoisonError::into_inner);
                reports.push(report);
            }
        };
        let host_status = thread::scope(|scope| {
            let others: Vec<_> = (1..at_once()).map(|_| scope.spawn(work)).collect();
            let status = host()?;
            work()?;
            for other in others {
                let ended = other.join();
                ended.map_err(|_| anyhow::anyhow!("a lab's thread panicked"))??;
            }
            anyhow::Ok(status)
        })?;
        let mut reports = reports.into_inner().unwrap_or_else(PoisonError::into_inner);
        reports.sort_by_key(|report| report.suite.title());
        print!("{}", summary(&reports));
        let labs = reports.iter().map(|report| report.status);
        let failed = std::iter::once(host_status).chain(labs).find(|s| *s != 0);
        Ok(failed.unwrap_or(0))
    }

    /// Runs one lab, in a process of its own; its lines are shown with its name in front.
    fn run_suite(&self, suite: Suite) -> anyhow::Result<Report> {
        let start = Instant::now();
        let mut command = process::command("test-lab", &self.built)?;
        command.arg(suite.name());
        let wanted = |path: &&PathBuf| suite.wants(&inside::title(path), self.usual);
        command.args(self.programs.iter().filter(wanted));
        for own in self
            .own
            .iter()
            .filter(|_| !(self.usual && suite.is_shadowed()))
        {
            command.arg("--own").arg(own);
        }
        command.arg("--").args(&self.options);
        let mut child = process::spawn(command)?;

        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let mut report = Report {
            suite,
            status: 0,
            passed: 0,
            skipped: Vec::new(),
            took: Duration::ZERO,
        };
        thread::scope(|scope| {
            scope.spawn(|| {
                for line in lines(stderr) {
                    show(suite, &line);
                }
            });
            for line in lines(stdout) {
                match line.strip_prefix(SKIPPED) {
                    Some(skipped) => report.skipped.push(skipped.to_owned()),
                    None => show(suite, &line),
                }
                report.passed += passed(&line).unwrap_or(0);
            }
        });
        let status = child.wait().context("cannot wait for a lab")?;
        report.status = match step::number(status) {
            NO_LAB => 0,
            status => status,
        };
        report.took = start.elapsed();
        Ok(report)
    }
}

/// How many labs run at once, this host's own tests counting as one: one for each CPU, as far as
/// memory allows.
pub(crate) fn at_once() -> usize {
    const OF_A_LAB: u64 = 3 << 30;
    let cpus = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let available = std::fs::read_to_string("/proc/meminfo").ok();
    let available = available.as_deref().and_then(available_bytes);
    let fit = available.map_or(1, |bytes| bytes / OF_A_LAB);
    cpus.min(usize::try_from(fit).unwrap_or(1)).max(1)
}

/// `MemAvailable:   12345 kB`
fn available_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

fn lines(from: Option<impl Read>) -> impl Iterator<Item = String> {
    let lines = from.map(|from| BufReader::new(from).split(b'\n'));
    let lines = lines.into_iter().flatten().map_while(Result::ok);
    lines.map(|line| String::from_utf8_lossy(&line).into_owned())
}

fn show(suite: Suite, line: &str) {
    println!("[{}] {line}", suite.title());
}

/// `gates: 12 passed (3.4 s)`
fn passed(line: &str) -> Option<u64> {
    let (_, counts) = line.split_once(": ")?;
    counts.split_once(" passed")?.0.parse().ok()
}

/// A line per skipped test, then one per lab.
fn summary(reports: &[Report]) -> String {
    let mut text = String::new();
    for report in reports {
        let mut skipped = report.skipped.clone();
        skipped.sort_unstable();
        skipped.dedup();
        let title = report.suite.title();
        for line in &skipped {
            text += &format!("skipped in {title}: {line}\n");
        }
    }
    for report in reports {
        let title = report.suite.title();
        let seconds = report.took.as_secs();
        let (passed, skipped) = (report.passed, report.skipped.len());
        let ended = match report.status {
            0 => "",
            _ => ", FAILED",
        };
        text += &format!(
            "{title}: {passed} passed, {skipped} of them skipped in whole or part{ended} ({seconds} s)\n"
        );
    }
    text
}

/// Run the tests of one lab
#[derive(Debug, Args)]
#[command(hide = true)]
pub(crate) struct OneLab {
    suite: Suite,
    #[command(flatten)]
    built: Built,
    /// The hypervisor's own test programs
    #[arg(long)]
    own: Vec<PathBuf>,
    /// The test programs
    programs: Vec<PathBuf>,
    /// Options of the test programs
    #[arg(last = true)]
    options: Vec<OsString>,
}

/// Which of the hypervisor's own tests depend on the kernel, as words of a test program's; one of
/// them compares with files that no lab has.
const OF_THE_KERNEL: &str = "exits::source::kernel,--skip,programs_read";

impl OneLab {
    /// Sets the lab up and runs the test programs there.
    pub(crate) fn run(self) -> anyhow::Result<u8> {
        let suite = self.suite;
        if let Err(error) = lab::prepare(suite.host(), suite.kernel()) {
            println!("{SKIPPED}all: {error:#}");
            return Ok(NO_LAB);
        }
        let this = crate::workspace::this_program()?;
        let mut job = Job::new(suite.host(), this)?;
        job.with_guests(&self.built)?;
        job.kernel = suite.kernel();
        job.cpus = suite.cpus();
        job.module_args = vec![suite.paging().parameter(suite.host())];
        job.limit = suite.limit();
        // Nothing is to come back.
        job.cwd = PathBuf::from("/lab/tests");
        job.env
            .push(("EXITVISOR_LAB".into(), suite.host().name().into()));
        job.env
            .push(("EXITVISOR_XTASK".into(), job.program.clone().into()));
        job.args.push("test-inside".into());
        let runs = |is: &dyn Fn(&str) -> bool| {
            let mut titles = self.programs.iter().map(|path| inside::title(path));
            titles.any(|title| is(&title))
        };
        if runs(&|title| title.starts_with("linux")) {
            lab::guest::carry(&mut job)?;
        }
        if runs(&|title| title == "exitlog") {
            lab::asking::carry(&mut job)?;
        }
        if runs(&|title| title == "debian") && suite.host() == Host::Amd {
            lab::debian::carry(&mut job)?;
        }
        // For tests that make a TAP.
        if runs(&|title| title == "debian" || title.starts_with("virtio")) {
            job.drivers.push(lab::drivers::TAP);
        }
        let all = self.programs.into_iter().map(|program| (program, ""));
        let own = self.own.into_iter().map(|program| (program, OF_THE_KERNEL));
        for (program, filter) in all.chain(own) {
            let name = program.file_name().unwrap_or_default().to_string_lossy();
            let name = name.into_owned();
            job.args.push(format!("/usr/bin/{name},{filter}").into());
            job.programs.push((name, program));
        }
        job.args.push("--".into());
        job.args.extend(self.options);
        Ok(lab::run(&job)?.status)
    }
}

/// Those of the programs that cargo has built whose source lies below this path of the workspace.
pub(super) fn built_from(programs: &[Executable], source: &str) -> Vec<PathBuf> {
    let source = workspace::root().join(source);
    let built_from = programs.iter().filter(|p| p.source.starts_with(&source));
    built_from.map(|p| p.path.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_test_programs_say_is_added_up() {
        assert_eq!(passed("gates: 12 passed (3.4 s)"), Some(12));
        assert_eq!(passed("gates: 12 passed, 1 FAILED (3.4 s)"), Some(12));
        assert_eq!(passed("thread 'x' panicked: 3 things"), None);
        assert_eq!(
            available_bytes("MemFree: 1 kB\nMemAvailable:  2 kB\n"),
            Some(2048)
        );
    }

    #[test]
    fn a_summary_names_the_labs() {
        let report = |suite, status, skipped: &[&str]| Report {
            suite,
            status,
            passed: 7,
            skipped: skipped.iter().map(|&s| s.to_owned()).collect(),
            took: Duration::from_millis(3900),
        };
        let reports = [
            report(Suite::Amd, 0, &["b: why", "a: why"]),
            report(Suite::Intel, 1, &[]),
        ];
        assert_eq!(
            summary(&reports),
            "skipped in AMD lab 6.12: a: why\nskipped in AMD lab 6.12: b: why\n\
             AMD lab 6.12: 7 passed, 2 of them skipped in whole or part (3 s)\n\
             Intel lab 6.12: 7 passed, 0 of them skipped in whole or part, FAILED (3 s)\n"
        );
    }
}
