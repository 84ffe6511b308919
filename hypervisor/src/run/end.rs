//! From the cause of an end to its status and its words.

use crate::config::{Config, OnReset};
use crate::devices::control::Cause;
use crate::exits::milestone::Clocks;
use crate::profile::{End, EndKind};
use crate::status;
use crate::vcpu::Standing;

/// How the vCPUs stood, for people.
fn describe(standings: &[Option<Standing>]) -> String {
    let described: Vec<String> = standings
        .iter()
        .enumerate()
        .filter_map(|(i, s)| {
            let s = (*s)?;
            let state = match (s.halted, s.interruptible) {
                (true, false) => "halted with interrupts off",
                (true, true) => "halted, waiting for an interrupt",
                (false, false) => "running with interrupts off",
                (false, true) => "running",
            };
            Some(format!("vCPU {i} was {state} at rip {:#x}", s.rip))
        })
        .take(4)
        .collect();
    described.join("; ")
}

/// From the cause to the status and the words.
pub(super) fn end(
    cause: &Cause,
    config: &Config,
    standings: &[Option<Standing>],
    clocks: Clocks,
) -> End {
    let (status, kind, detail) = match cause {
        Cause::Exit(exit_abi::status::CRASH) => (
            status::CRASH,
            EndKind::Crash,
            "the guest said that it crashed".to_owned(),
        ),
        Cause::Exit(n) => {
            let cut = (*n).min(exit_abi::status::GUEST_MAX) as u8;
            let detail = if u32::from(cut) == *n {
                format!("the guest exited with status {n}")
            } else {
                format!("the guest exited with status {n}, cut to {cut}")
            };
            (cut, EndKind::Exit, detail)
        }
        Cause::PowerOff => (0, EndKind::PowerOff, "the guest powered off".to_owned()),
        Cause::Reset => (0, EndKind::Reset, "the guest reset itself".to_owned()),
        Cause::Milestone(name) => {
            let detail = format!("the milestone {name:?} was reached");
            (0, EndKind::Milestone, detail)
        }
        Cause::ResetLimit => {
            let most = match config.on_reset {
                OnReset::Continue(most) => most,
                OnReset::End => 0,
            };
            let detail = format!("the guest reset itself more often than --max-resets {most}");
            (status::RESET_LIMIT, EndKind::ResetLimit, detail)
        }
        Cause::Panic(message) => (
            status::CRASH,
            EndKind::Crash,
            format!("the guest's kernel panicked: {message}"),
        ),
        Cause::TripleFault(vcpu) => (
            status::TRIPLE_FAULT,
            EndKind::TripleFault,
            format!("triple fault on vCPU {vcpu}"),
        ),
        Cause::Timeout => {
            let limit = config.timeout.0.unwrap_or_default();
            let detail = format!("time limit of {limit:?} reached: {}", describe(standings));
            (status::TIMEOUT, EndKind::Timeout, detail)
        }
        Cause::Signal(number) => {
            let (status, name) = match *number {
                libc::SIGHUP => (status::HUNG_UP, "SIGHUP"),
                libc::SIGTERM => (status::TERMINATED, "SIGTERM"),
                _ => (status::INTERRUPTED, "Ctrl-C"),
            };
            (
                status,
                EndKind::Interrupted,
                format!("interrupted by {name}"),
            )
        }
        Cause::EscapeKey => (
            status::INTERRUPTED,
            EndKind::Interrupted,
            "interrupted by Ctrl-]".to_owned(),
        ),
        Cause::Kvm(what) => (status::KVM_ERROR, EndKind::KvmError, what.clone()),
        Cause::Internal(what) => (status::INTERNAL, EndKind::Internal, what.clone()),
        Cause::Rebuild { status, why } => {
            let detail = format!("the machine cannot be booted again: {why}");
            (*status, EndKind::Internal, detail)
        }
    };
    let by_itself = [
        EndKind::Exit,
        EndKind::PowerOff,
        EndKind::Reset,
        EndKind::Milestone,
    ];
    let cut_short = !by_itself.contains(&kind);
    End {
        status,
        kind,
        detail,
        cut_short,
        tsc: clocks.tsc,
        nanos: clocks.nanos,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Console, TimeLimit};
    use exit_abi::reason::Edition;
    use std::time::Duration;

    fn config() -> Config {
        Config {
            boot: crate::boot::Protocol::Auto,
            way: Default::default(),
            irqchip: crate::platform::irqchip::Wish::Auto,
            firmware: None,
            kernel: "kernel".into(),
            initrd: None,
            cmdline: String::new(),
            memory: "64M".parse().unwrap(),
            pages: Default::default(),
            prefault: Default::default(),
            cpus: "1".parse().unwrap(),
            timeout: TimeLimit(Some(Duration::from_secs(2))),
            on_reset: OnReset::Continue(7),
            leaves: "classic".parse().unwrap(),
            edition: Edition::Current,
            kernel_ledger: Default::default(),
            hypercall: Default::default(),
            devices: Default::default(),
            exit_page: true,
            log_queries: false,
            console: Console::Stdout,
            dump: Default::default(),
            milestones: Default::default(),
        }
    }

    #[test]
    fn ends_have_their_statuses() {
        let standing = Standing {
            halted: true,
            interruptible: false,
            rip: 0x10_0000,
        };
        let end = |cause| end(&cause, &config(), &[Some(standing)], Clocks::default());
        let cases = [
            (Cause::Exit(0), 0, false),
            (Cause::Exit(63), 63, false),
            (Cause::Exit(64), 63, false),
            (Cause::Exit(0xFF), 82, true),
            (Cause::PowerOff, 0, false),
            (Cause::Reset, 0, false),
            (Cause::ResetLimit, 85, true),
            (Cause::Panic("x".into()), 82, true),
            (Cause::Milestone("x".into()), 0, false),
            (Cause::TripleFault(0), 81, true),
            (Cause::Timeout, 80, true),
            (Cause::Signal(libc::SIGINT), 130, true),
            (Cause::Signal(libc::SIGTERM), 143, true),
            (Cause::EscapeKey, 130, true),
            (Cause::Kvm("x".into()), 83, true),
            (Cause::Internal("x".into()), 70, true),
            (
                Cause::Rebuild {
                    status: 66,
                    why: "x".into(),
                },
                66,
                true,
            ),
        ];
        for (cause, status, cut_short) in cases {
            let end = end(cause.clone());
            assert_eq!(
                (end.status, end.cut_short),
                (status, cut_short),
                "{cause:?}"
            );
        }
        assert_eq!(
            end(Cause::Timeout).detail,
            "time limit of 2s reached: vCPU 0 was halted with interrupts off at rip 0x100000"
        );
    }
}
