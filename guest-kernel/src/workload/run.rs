//! Doing a workload, and nothing else that would exit for the same reason.

use exit_abi::leaf::{self, Layout, flags};
use exit_abi::reason::Reason;

use super::verdict::{self, Verdict};
use super::{Item, Kind, STRING, ptes};
use crate::arch::address_space::{Refused, Spaces};
use crate::arch::fault::{self, Fault};
use crate::arch::{cpu, gate, lapic, paging, port, scratch};
use crate::exit_log::page::ExitPage;
use crate::line::Line;
use crate::machine::List;
use crate::memory::Division;
use crate::ports;

/// The timer's countdown for one HLT, in nanoseconds: long enough to be asleep when it ends.
const NAP: u32 = 50_000;
/// IA32_APIC_BASE (SDM vol. 4, table 2-2): AMD has it too.
const APIC_BASE: u32 = 0x1B;
const PAGE: u64 = 4096;
/// Most runs of fresh pages that one workload takes.
const RUNS: usize = 32;

/// How a workload ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Counted as promised, or done where nobody counts.
    Well,
    /// Miscounted, or ended by an exception.
    Failed,
    /// Not begun.
    Refused,
}

/// What a workload needs, found before the count begins.
#[derive(Default)]
struct Ready {
    /// CR0.
    cr0: u64,
    /// IA32_APIC_BASE or XCR0.
    value: u64,
    /// Whether hypercalls are AMD's.
    amd: bool,
    /// Fresh pages, as (start, pages).
    pages: Option<List<(u64, u64), RUNS>>,
    /// Address spaces.
    spaces: Option<Spaces>,
}

/// Why a workload did not come to its end.
enum Broken {
    /// An exception.
    Fault(Fault),
    /// The memory management does not do what it should.
    Wrong(ptes::Wrong),
}

impl From<Fault> for Broken {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl Broken {
    fn report(&self, line: &mut Line) {
        match self {
            Self::Fault(fault) => line.text("ended by exception ").number(fault.vector.into()),
            Self::Wrong(wrong) => line
                .text(wrong.step)
                .text(": page ")
                .number(wrong.page)
                .text(": ")
                .text(wrong.found),
        };
    }
}

/// Gets ready, or says why the machine cannot do this.
fn prepare(
    item: Item,
    known: impl Fn(Reason) -> Option<u32>,
    memory: &mut Division,
) -> Result<Ready, &'static str> {
    let mut ready = Ready::default();
    let occurs = |reason| known(reason).is_some_and(|f| f & flags::CAN_OCCUR != 0);
    match item.kind {
        // On hardware the first touch of a page is an EPT violation (48) and only the later ones
        // are what we count (49): touch it before.
        Kind::Mmio => {
            let _ = scratch::read();
        }
        Kind::Hlt => lapic::one_shot(),
        Kind::Rdmsr | Kind::Wrmsr => {
            let value = fault::read_msr(APIC_BASE);
            ready.value = value.map_err(|_| "this CPU has no IA32_APIC_BASE")?;
        }
        Kind::Cr => ready.cr0 = cpu::cr0(),
        Kind::Vmcall => {
            // A KVM without hardware interprets ring 0: no MOV CR exits, and VMCALL may hang.
            if !occurs(Reason::CR_ACCESS) {
                return Err("this KVM interprets ring 0, and has no hypercalls");
            }
            ready.amd = cpu::is_amd();
        }
        Kind::Xsetbv => {
            if !occurs(Reason::XSETBV) {
                return Err("this KVM interprets ring 0, and cannot do XSETBV");
            }
            if !cpu::has_xsave() {
                return Err("this CPU has no XSAVE");
            }
            cpu::enable_xsave();
            ready.value = fault::xgetbv().map_err(|_| "XGETBV is refused")?;
        }
        Kind::Touch => ready.pages = Some(fresh_pages(item.count, memory)?),
        Kind::Ptes => {
            let spaces = Spaces::build(item.count, memory, |frame| ptes::stamp(frame, 0));
            ready.spaces = Some(spaces.map_err(|why| match why {
                Refused::TooMany => "at most 262144 pages: a gigabyte of addresses is private",
                Refused::NoMemory => "not so many pages of RAM are untouched",
                Refused::OutOfReach => "so much RAM cannot be mapped",
            })?);
        }
        _ => {}
    }
    Ok(ready)
}

/// Takes pages that nobody has touched, and maps them.
fn fresh_pages(count: u64, memory: &mut Division) -> Result<List<(u64, u64), RUNS>, &'static str> {
    let mut runs = List::new((0, 0));
    let mut mapped = true;
    let taken = memory.take(count, |start, pages| {
        let end = start + pages * PAGE;
        let mut page = start & !(paging::LARGE_PAGE - 1);
        while page < end && mapped {
            mapped = paging::map_large_page(page);
            page += paging::LARGE_PAGE;
        }
        mapped &= runs.push((start, pages)).is_some();
    });
    taken.ok_or("not so many pages of RAM are untouched")?;
    if mapped {
        Ok(runs)
    } else {
        Err("so much RAM cannot be mapped")
    }
}

/// Touches a byte of our own in the way of the workload: the code that is about to be counted is then in
/// memory, where it could otherwise be one page more that is touched first.
fn rehearse_touching(item: Item, ready: &mut Ready) {
    let mut own = 0_u8;
    let mut runs = List::new((0, 0));
    if runs.push((&raw mut own as u64, 1)).is_some() {
        let pages = ready.pages.replace(runs);
        // Touching cannot fail.
        let _ = repeat(item, ready);
        ready.pages = pages;
    }
}

/// Repeats the workload; answers how many exits it has cost besides those asked for.
fn repeat(item: Item, ready: &mut Ready) -> Result<u64, Broken> {
    let mut strays = 0;
    let scratch_port = ports::SCRATCH.get();
    if let Some(runs) = &ready.pages {
        for (start, pages) in runs.as_slice() {
            for i in 0..*pages {
                cpu::touch(start + i * PAGE);
            }
        }
        return Ok(0);
    }
    if let Some(spaces) = &mut ready.spaces {
        return match ptes::run(spaces, item.count) {
            Ok(()) => Ok(0),
            Err(wrong) => Err(Broken::Wrong(wrong)),
        };
    }
    let on = ready.cr0 & cpu::ALIGNMENT_MASK != 0;
    for i in 0..item.count {
        match item.kind {
            Kind::Cpuid => {
                let _ = gate::cpuid(0, 0);
            }
            Kind::Pio => port::out8(scratch_port, 0),
            Kind::Pin => {
                let _ = port::in8(scratch_port);
            }
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
            Kind::Rdmsr => {
                fault::read_msr(APIC_BASE)?;
            }
            Kind::Wrmsr => fault::write_back_msr(APIC_BASE, ready.value)?,
            Kind::Outs => port::out_bytes(scratch_port, STRING),
            Kind::Touch | Kind::Ptes => {}
            // Each write changes the bit: the first to what it is not.
            Kind::Cr => cpu::write_cr0(ready.cr0, (i % 2 == 0) != on),
            Kind::Dr => cpu::clear_dr3(),
            Kind::Wbinvd => cpu::wbinvd(),
            Kind::Invlpg => cpu::forget_page(lapic::BASE),
            Kind::Vmcall => fault::hypercall(ready.amd)?,
            Kind::Rdtsc => {
                let _ = cpu::time_stamp();
            }
            Kind::Xsetbv => fault::write_back_xcr0(ready.value)?,
        }
    }
    Ok(strays)
}

/// Runs one workload and, where an Exitvisor counts, checks its count. The line says how it went.
///
/// The count is read before and after on the exit page, or else asked for. Nothing but the workload
/// lies between, and a query is an exit of reason 0: the reason's count grows by the workload alone,
/// the stated constant is 0.
pub fn run(
    item: Item,
    layout: Option<Layout>,
    page: Option<&ExitPage>,
    memory: &mut Division,
    line: &mut Line,
) -> Ended {
    let known =
        |reason: Reason| layout.map(|_| gate::gate_cpuid(leaf::FLAGS, reason.number().into()).eax);
    let name = item.kind.name();
    let mut ready = match prepare(item, known, memory) {
        Ok(ready) => ready,
        Err(why) => {
            line.text("REFUSED workload ")
                .text(name)
                .text(": ")
                .text(why);
            return Ended::Refused;
        }
    };
    let reason = item.kind.reason();
    let exits_of = |reason: Reason| match page {
        Some(page) => Some(page.exits_of(reason)),
        None => layout.map(|l| gate::gate_cpuid(l.exits_of, reason.number().into()).exits()),
    };
    let besides = item.kind.besides(item.count);
    if ready.pages.is_some() {
        rehearse_touching(item, &mut ready);
    }
    let before = (
        besides.and_then(|(reason, _)| exits_of(reason)),
        exits_of(reason),
    );
    let strays = repeat(item, &mut ready);
    let after = (
        exits_of(reason),
        besides.and_then(|(reason, _)| exits_of(reason)),
    );
    let strays = match strays {
        Ok(strays) => strays,
        Err(broken) => {
            line.text("FAILED workload ").text(name).text(": ");
            broken.report(line);
            return Ended::Failed;
        }
    };
    let (Some(first), Some(last), Some(flags)) = (before.1, after.0, known(reason)) else {
        line.text("workload ").text(name).text(": ");
        line.number(item.count).text(" done, nobody counts");
        return Ended::Well;
    };
    let counted = last.wrapping_sub(first);
    let expected = item.kind.expected(item.count, strays);
    let verdict = verdict::judge(item.kind, expected, counted, flags);
    verdict::report(line, item, expected, counted, verdict);
    let mut failed = verdict == Verdict::Failed;
    if let (Some((reason, expected)), Some(first), Some(last)) = (besides, before.0, after.1) {
        let flags = known(reason).unwrap_or_default();
        let counted = last.wrapping_sub(first);
        let verdict = verdict::judge(item.kind, expected, counted, flags);
        verdict::report_besides(line, reason, expected, counted, verdict);
        failed |= verdict == Verdict::Failed;
    }
    if failed { Ended::Failed } else { Ended::Well }
}
