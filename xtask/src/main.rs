//! `cargo xtask`: the project's own commands. Each is one file with one struct and one `run()`,
//! and says on stderr what it executes.
//!
//! The exit status is that of the step that mattered (exitvisor's, cargo's); xtask's own failures
//! end with [`USAGE`] or [`FAILED`], above the statuses that belong to guests.

mod ablate;
mod bench;
mod boot_profile;
mod build;
mod ci;
mod exercises;
mod guest;
mod kvm_module;
mod lab;
mod linux_guest;
mod on;
mod paging;
mod run;
mod signals;
mod smaps;
mod step;
mod tap;
mod test;
mod toolchain;
mod with_paging;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A command line that makes no sense (EX_USAGE), as exitvisor has it.
const USAGE: u8 = 64;
/// xtask itself could not go on (EX_SOFTWARE), as exitvisor has it.
const FAILED: u8 = 70;

/// Build, run, measure and check Exitvisor.
#[derive(Debug, Parser)]
#[command(
    bin_name = "cargo xtask",
    after_help = "Examples:
  cargo xtask run                    boot the guest kernel
  cargo xtask boot-profile           boot it and show what each step cost in exits
  cargo xtask exercises              the coursework, answered from the labs
  cargo xtask test                   every test"
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    Build(build::Build),
    Run(run::Run),
    BootProfile(boot_profile::BootProfile),
    Test(test::Test),
    Bench(bench::Bench),
    BenchInLab(bench::InLab),
    BenchLinuxInLab(bench::LinuxInLab),
    Exercises(exercises::Exercises),
    ExercisesLab(exercises::OneLab),
    ExercisesInLab(exercises::InLab),
    Lab(lab::Lab),
    Guest(guest::Guest),
    Ci(ci::Ci),
    SeveralInLab(paging::SeveralInLab),
    TestLab(test::OneLab),
    TestInside(test::Inside),
    WithPaging(with_paging::WithPaging),
}

fn main() -> ExitCode {
    if lab::agent::called() {
        lab::agent::main();
        return ExitCode::from(FAILED);
    }
    if let Some(name) = lab::modprobe::called() {
        return ExitCode::from(lab::modprobe::main(name));
    }
    let result = Cli::try_parse_from(boot_profile::in_order(std::env::args_os()))
        .map_err(anyhow::Error::from)
        .and_then(|cli| match cli.task {
            Task::Build(task) => task.run(),
            Task::Run(task) => task.run(),
            Task::BootProfile(task) => task.run(),
            Task::Test(task) => task.run(),
            Task::Bench(task) => task.run(),
            Task::BenchInLab(task) => task.run(),
            Task::BenchLinuxInLab(task) => task.run(),
            Task::Exercises(task) => task.run(),
            Task::ExercisesLab(task) => task.run(),
            Task::ExercisesInLab(task) => task.run(),
            Task::Lab(task) => task.run(),
            Task::Guest(task) => task.run(),
            Task::Ci(task) => task.run(),
            Task::SeveralInLab(task) => task.run(),
            Task::TestLab(task) => task.run(),
            Task::TestInside(task) => task.run(),
            Task::WithPaging(task) => task.run(),
        });
    ExitCode::from(result.unwrap_or_else(|error| complain(&error)))
}

/// Says what went wrong; the exit status for it.
fn complain(error: &anyhow::Error) -> u8 {
    if let Some(error) = error.downcast_ref::<clap::Error>() {
        // Help is among these "errors". If it cannot be printed, nothing is left to say.
        let _ = error.print();
        return if error.use_stderr() { USAGE } else { 0 };
    }
    eprintln!("xtask: {error:#}");
    error
        .downcast_ref::<step::Ended>()
        .map_or(FAILED, |ended| ended.status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    fn parsed(line: &str) -> Task {
        Cli::try_parse_from(line.split(' ')).unwrap().task
    }

    #[test]
    fn options_of_exitvisor_pass_through() {
        let line = "xtask boot-profile --runs 3 --memory 128M --cmdline workload=pio:5 -x --help";
        let Task::BootProfile(task) = parsed(line) else {
            panic!("not boot-profile")
        };
        assert_eq!(task.runs, 3);
        let options = [
            "--memory",
            "128M",
            "--cmdline",
            "workload=pio:5",
            "-x",
            "--help",
        ];
        assert_eq!(task.options, options);

        let Task::Run(task) = parsed("xtask run --timeout 5s --kernel=k") else {
            panic!("not run");
        };
        assert_eq!(task.options, ["--timeout", "5s", "--kernel=k"]);
    }

    #[test]
    fn options_of_cargo_test_pass_through() {
        for line in [
            "xtask test --package a gate -- --nocapture",
            "xtask test -- --nocapture",
        ] {
            let Task::Test(task) = parsed(line) else {
                panic!("not test")
            };
            assert_eq!(task.options(), line.split(' ').skip(2).collect::<Vec<_>>());
        }
    }
}
