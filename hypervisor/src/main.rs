//! The `exitvisor` command.
use std::process::ExitCode;
fn main() -> ExitCode {
    let a: Vec<String> = std::env::args().collect();
    let config = exitvisor::config::Config {
        firmware: None, kernel: a[1].clone().into(), initrd: None, cmdline: a.get(2).cloned().unwrap_or_default(),
        memory: "64M".parse().unwrap(), cpus: "1".parse().unwrap(), timeout: "5s".parse().unwrap(),
        leaves: "classic".parse().unwrap(), edition: Default::default(), log_queries: false, console: exitvisor::config::Console::Stderr };
    match exitvisor::run::run(&config) {
        Ok(p) => { println!("{}", serde_json::to_string_pretty(&p).unwrap()); ExitCode::from(p.end.status) }
        Err(e) => { eprintln!("exitvisor: {e}"); ExitCode::from(e.status()) }
    }
}
