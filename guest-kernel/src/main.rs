//! Exitvisor's test kernel: boots, shows that it can take exceptions and interrupts, and asks for
//! its exits on the way. `docs/guest-kernel.md` tells its command line and exit statuses.
#![cfg_attr(target_os = "none", no_std, no_main)]

use exit_abi::gate::{Command, Outcome};
use exit_abi::milestone;
use guest_kernel::arch::{cpu, crash, fault, gate, lapic, paging, physical, traps};
use guest_kernel::cmdline::{self, Crash, Options};
use guest_kernel::exit_log::ExitLog;
use guest_kernel::hypercall::{self, Called};
use guest_kernel::line::Line;
use guest_kernel::once::Once;
use guest_kernel::own::OwnSection;
use guest_kernel::start_info::{self, CMDLINE_MAX, StartInfo};
use guest_kernel::{gates, serial, status, workload};

guest_kernel::entry!(kernel);
guest_kernel::publish_cpuid_gate!();

/// Page faults and undefined instructions, by vector.
const PAGE_FAULT: u8 = 14;
const UNDEFINED_INSTRUCTION: u8 = 6;
/// An address that the kernel leaves unmapped.
const UNMAPPED: u64 = 8;
/// Time between timer interrupts, in nanoseconds: no shorter than KVM lets a period be.
const PERIOD: u32 = 200_000;

static CMDLINE: Once<[u8; CMDLINE_MAX]> = Once::new([0; CMDLINE_MAX]);

/// The boot, step by step. An error is the exit status.
fn boot(start_info: u32) -> Result<u32, u32> {
    let options = boot_information(start_info)?;
    if options.gate_by_port {
        register_gate_by_port()?;
    }
    let mut log = ExitLog::open(options.log);
    log.milestone(milestone::KERNEL_ENTRY);
    paging::install();
    log.milestone(milestone::PAGING);
    traps::install();
    provoke_exceptions()?;
    log.milestone(milestone::EXCEPTIONS);
    take_interrupts();
    log.milestone(milestone::INTERRUPTS);
    match options.crash {
        Some(Crash::Panic) => panic!("as asked by crash=panic"),
        Some(Crash::PageFault) => crash::page_fault(),
        Some(Crash::Stack) => crash::stack_overflow(),
        None => {}
    }
    let mut outcome = Ok(options.exit);
    if options.hypercall && log.layout().is_some() {
        outcome = match hypercall::call() {
            Called::Well => outcome,
            Called::Wrong => Err(status::WRONG_HYPERCALL),
            Called::Refused => Err(status::GATE_REFUSED),
        };
    }
    if !options.workloads.is_empty() {
        if !work(&options, &log) {
            outcome = Err(status::WORKLOAD_FAILED);
        }
        log.milestone(milestone::WORKLOAD);
    }
    log.milestone(milestone::DONE);
    log.repeat(options.queries);
    log.finish();
    outcome
}

fn kernel(start_info: u32) -> u32 {
    match boot(start_info) {
        Ok(status) | Err(status) => status,
    }
}

/// Reads the memory map and the command line while all memory is still mapped.
fn boot_information(address: u32) -> Result<Options, u32> {
    let bad = |error: start_info::Error| {
        complain(format_args!("boot information: {error}"));
        status::BAD_BOOT_INFORMATION
    };
    let Some(room) = CMDLINE.take() else {
        return Err(status::BAD_BOOT_INFORMATION);
    };
    let info = StartInfo::read(&physical::BootMemory, address.into()).map_err(bad)?;
    info.ram(paging::map_ram).map_err(bad)?;
    let cmdline = info.cmdline(room).map_err(bad)?;
    cmdline::parse(cmdline).map_err(|error| {
        complain(format_args!("{error}"));
        status::BAD_COMMAND_LINE
    })
}

/// One line of the kernel's own.
fn complain(text: core::fmt::Arguments<'_>) {
    let _own = OwnSection::open();
    serial::println(format_args!("guest-kernel: {text}"));
}

/// Moves the CPUID gate from the image's note to the gate port.
fn register_gate_by_port() -> Result<(), u32> {
    let site = gate::cpuid_site();
    let withdrawn = gates::command(Command::Withdraw, site);
    let registered = gates::command(Command::RegisterCpuid, site);
    if (withdrawn, registered) == (Some(Outcome::Done), Some(Outcome::Done)) {
        return Ok(());
    }
    complain(format_args!(
        "FAILED gate=port: withdrawal answers {withdrawn:?}, registration {registered:?}"
    ));
    Err(status::GATE_REFUSED)
}

/// Touches a page that is not there and executes an instruction that does not exist.
fn provoke_exceptions() -> Result<(), u32> {
    let page_fault = fault::read(UNMAPPED);
    let undefined = fault::undefined_instruction();
    let survived = matches!(page_fault, Err(f) if f.vector == PAGE_FAULT && f.address == UNMAPPED)
        && matches!(undefined, Err(f) if f.vector == UNDEFINED_INSTRUCTION);
    if survived {
        return Ok(());
    }
    complain(format_args!(
        "FAILED exceptions: {page_fault:?} and {undefined:?}"
    ));
    Err(status::WRONG_EXCEPTION)
}

/// One timer interrupt by itself, then two of a period.
fn take_interrupts() {
    lapic::enable();
    lapic::one_shot();
    lapic::arm(PERIOD);
    wait_for_ticks(1);
    lapic::periodic(PERIOD);
    wait_for_ticks(3);
    lapic::stop();
}

fn wait_for_ticks(ticks: u64) {
    while lapic::ticks() < ticks {
        cpu::wait_for_interrupt();
    }
}

/// Runs the workloads; `false` if one was miscounted.
fn work(options: &Options, log: &ExitLog) -> bool {
    let mut well = true;
    for item in options.workloads.iter() {
        let mut line = Line::new();
        well &= workload::run::run(item, log.layout(), &mut line);
        let _own = OwnSection::open();
        serial::send_line(&mut line);
    }
    well
}
