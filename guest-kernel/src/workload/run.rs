//! Doing a workload, and nothing else that would exit for the same reason.

use exit_abi::leaf::{self, Layout};
use exit_abi::port as ports;

use super::verdict::{self, Verdict};
use super::{Item, Kind};
use crate::arch::{cpu, gate, lapic, port, scratch};
use crate::line::Line;

/// The timer's countdown for one HLT: long enough to be asleep when it ends.
const NAP: u32 = 50_000;

/// Repeats the workload; answers how many exits it should have cost.
fn repeat(item: Item) -> u64 {
    let mut strays = 0;
    for _ in 0..item.count {
        match item.kind {
            Kind::Cpuid => {
                let _ = gate::cpuid(0, 0);
            }
            Kind::Pio => port::out8(ports::SCRATCH, 0),
            Kind::Mmio => {
                let _ = scratch::read();
            }
            Kind::Hlt => {
                let before = lapic::ticks();
                lapic::arm(NAP);
                cpu::wait_for_interrupt();
                // Woken by something else: the timer is still to come.
                while lapic::ticks() == before {
                    strays += 1;
                    cpu::wait_for_interrupt();
                }
            }
        }
    }
    item.count + strays
}

/// Runs one workload and, where an Exitvisor counts, checks its count. The line says how it went;
/// `false` is a failure.
///
/// Nothing but the workload lies between the two queries, and a query is an exit of reason 0: the
/// reason's count grows by the workload alone, the stated constant is 0.
pub fn run(item: Item, layout: Option<Layout>, line: &mut Line) -> bool {
    match item.kind {
        // On hardware the first touch of a page is an EPT violation (48) and only the later ones
        // are what we count (49): touch it before.
        Kind::Mmio => {
            let _ = scratch::read();
        }
        Kind::Hlt => lapic::one_shot(),
        Kind::Cpuid | Kind::Pio => {}
    }
    let Some(layout) = layout else {
        let done = repeat(item);
        line.text("workload ")
            .text(item.kind.name())
            .text(": ")
            .number(done);
        line.text(" done, nobody counts");
        return true;
    };
    let reason = item.kind.reason().number().into();
    let before = gate::gate_cpuid(layout.exits_of, reason).exits();
    let expected = repeat(item);
    let after = gate::gate_cpuid(layout.exits_of, reason).exits();
    let flags = gate::gate_cpuid(leaf::FLAGS, reason).eax;
    let counted = after.wrapping_sub(before);
    let verdict = verdict::judge(item, expected, counted, flags);
    verdict::report(line, item, expected, counted, verdict);
    verdict != Verdict::Failed
}
