//! `exitlog`: what this Linux guest's VM exits cost, asked of the Exitvisor underneath. As a
//! command, or as the first process, which then starts the real init.

mod cli;
mod error;
mod gate;
mod init;
mod kernel;
mod lock;
mod log;
mod page;
mod ports;
mod record;
mod site;
mod text;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Task};
use error::Error;
use log::{Label, Log};

fn main() -> ExitCode {
    // The first process gets the kernel's arguments, which are the real init's.
    if std::process::id() == 1 {
        let why = init::run();
        eprintln!("exitlog: {why}");
        return ExitCode::FAILURE;
    }
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("exitlog: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<(), Error> {
    match cli.task {
        Some(Task::GateKernel) => kernel::gate(),
        Some(Task::UngateKernel) => kernel::ungate(),
        None => {
            let count = cli.repeat.count();
            let mut log = Log::open(cli.from, cli.form())?;
            for number in 1..=count {
                if number > 1 {
                    std::thread::sleep(cli.repeat.every());
                }
                log.take(Label::Query(number), cli.milestone.as_deref())?;
            }
            log.finish()
        }
    }
}
