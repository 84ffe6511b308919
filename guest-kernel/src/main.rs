//! Exitvisor's test kernel: boots, shows that it can take exceptions and interrupts, and asks for
//! its exits on the way. `docs/guest-kernel.md` tells its command line and exit statuses.
#![cfg_attr(target_os = "none", no_std, no_main)]

use exit_abi::gate::{Command, Outcome};
use exit_abi::milestone;
use guest_kernel::arch::physical::{self, BootMemory};
use guest_kernel::arch::{cpu, crash, fault, gate, lapic, paging, traps};
use guest_kernel::caps::Cpu;
use guest_kernel::cmdline::{self, Crash, Options};
use guest_kernel::exit_log::ExitLog;
use guest_kernel::hypercall::{self, Called};
use guest_kernel::line::Line;
use guest_kernel::machine::{List, Machine, tree};
use guest_kernel::memory::{self, Division, Modules};
use guest_kernel::once::Once;
use guest_kernel::own::OwnSection;
use guest_kernel::power::{self, Reboot};
use guest_kernel::smp::{self, Roll};
use guest_kernel::start_info::{self, CMDLINE_MAX, StartInfo};
use guest_kernel::workload::run::Ended;
use guest_kernel::{gates, heap, list, serial, status, workload};

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
static MACHINE: Once<Machine> = Once::new(Machine::undescribed());

/// What the kernel was told before it looks for itself.
struct Told {
    options: Options,
    machine: &'static Machine,
    memory: Division,
}

/// The boot, step by step. An error is the exit status.
fn boot(start_info: u32) -> Result<u32, u32> {
    let mut told = boot_information(start_info)?;
    let (options, machine) = (&told.options, told.machine);
    if options.gate_by_port {
        register_gate_by_port()?;
    }
    let mut log = ExitLog::open(options.log, options.exits, machine);
    log.milestone(milestone::KERNEL_ENTRY);
    paging::install();
    log.remapped();
    log.milestone(milestone::PAGING);
    begin_heap(&told.memory)?;
    log.milestone(milestone::MEMORY);
    traps::install();
    provoke_exceptions()?;
    log.milestone(milestone::EXCEPTIONS);
    take_interrupts();
    log.milestone(milestone::INTERRUPTS);
    let roll = smp::start_all(machine, log.asks());
    log.milestone(milestone::SMP);
    let mut outcome = all_present(&roll).and(Ok(options.exit));
    if options.devices {
        let _own = OwnSection::open();
        list::devices(machine, serial::send_line);
    }
    if options.caps {
        let _own = OwnSection::open();
        let cpu = Cpu {
            cpuid: |leaf| gate::cpuid(leaf, 0),
            read_msr: fault::read_msr,
        };
        cpu.lines(serial::send_line);
    }
    log.milestone(milestone::DEVICES);
    match options.crash {
        Some(Crash::Panic) => panic!("as asked by crash=panic"),
        Some(Crash::PageFault) => crash::page_fault(),
        Some(Crash::Stack) => crash::stack_overflow(),
        None => {}
    }
    if options.hypercall && log.gate().is_some() {
        outcome = match hypercall::call() {
            Called::Well => outcome,
            Called::Wrong => Err(status::WRONG_HYPERCALL),
            Called::Refused => Err(status::GATE_REFUSED),
        };
    }
    if !options.workloads.is_empty() {
        outcome = work(options, &mut log, &mut told.memory).and(outcome);
        log.milestone(milestone::WORKLOAD);
    }
    log.milestone(milestone::DONE);
    log.repeat(options.queries);
    if !options.leaves.as_slice().is_empty() {
        let _own = OwnSection::open();
        let leaves = &options.leaves;
        leaves.ask(log.gate(), gate::gate_cpuid, serial::send_line);
    }
    if log.asks().is_some() {
        let _own = OwnSection::open();
        roll.lines(serial::send_line);
    }
    let logged = log.finish();
    let outcome = outcome.and_then(|status| logged.and(Ok(status)));
    if outcome.is_ok() {
        switch(options, machine)?;
    }
    outcome
}

fn kernel(start_info: u32) -> u32 {
    match boot(start_info) {
        Ok(status) | Err(status) => status,
    }
}

/// Reads all that VMM or firmware have left in memory, while all of it is still mapped.
fn boot_information(address: u32) -> Result<Told, u32> {
    let bad = |error: start_info::Error| {
        complain(format_args!("boot information: {error}"));
        status::BAD_BOOT_INFORMATION
    };
    let (Some(room), Some(machine)) = (CMDLINE.take(), MACHINE.take()) else {
        return Err(status::BAD_BOOT_INFORMATION);
    };
    let info = StartInfo::read(&BootMemory, address.into()).map_err(bad)?;
    let mut modules: Modules = List::new((0, 0));
    let mut described = None;
    info.modules(|module| {
        // There is room: the start info has no more modules than the list.
        let _ = modules.push((module.start, module.length));
        if module.is_tree {
            described = Some(module);
        }
    })
    .map_err(bad)?;
    let cmdline = info.cmdline(room).map_err(bad)?;
    let options = cmdline::parse(cmdline).map_err(|error| {
        complain(format_args!("{error}"));
        status::BAD_COMMAND_LINE
    })?;
    if let Some(module) = described {
        read_tree(module, machine)?;
    }
    if machine.ram.as_slice().is_empty() {
        let mut room = true;
        info.ram(|start, length| room &= machine.ram.push((start, length)).is_some())
            .map_err(bad)?;
        if !room {
            complain(format_args!("boot information: too many ranges of RAM"));
            return Err(status::BAD_BOOT_INFORMATION);
        }
    }
    if options.cpus > 0 || machine.cpus.as_slice().is_empty() {
        machine.cpus = List::new(0);
        for id in 0..options.cpus.max(1) as u8 {
            let _ = machine.cpus.push(id);
        }
    }
    for &(start, length) in machine.ram.as_slice() {
        paging::map_ram(start, length);
    }
    let memory = memory::divide(&machine.ram, &modules, physical::image()).ok_or_else(|| {
        complain(format_args!(
            "boot information: the kernel does not lie in RAM"
        ));
        status::BAD_BOOT_INFORMATION
    })?;
    Ok(Told {
        options,
        machine,
        memory,
    })
}

/// Reads the device tree and lets the drivers use what it says.
fn read_tree(module: start_info::Module, machine: &mut Machine) -> Result<(), u32> {
    let bad = |why: &dyn core::fmt::Display| {
        complain(format_args!("device tree at {:#x}: {why}", module.start));
        status::BAD_BOOT_INFORMATION
    };
    if module.length > tree::SIZE_MAX {
        return Err(bad(&"it is too large"));
    }
    let bytes = BootMemory.slice(module.start, module.length);
    let bytes = bytes.ok_or_else(|| bad(&"it cannot be read"))?;
    tree::read(bytes, machine).map_err(|error| bad(&error))?;
    for page in [machine.local_apic, machine.io_apic, machine.scratch_page] {
        if !paging::map_device(page) {
            return Err(bad(&"a device lies outside 3 to 4 GiB"));
        }
    }
    machine.take_into_use();
    Ok(())
}

/// Gives the heap its memory and takes a first piece of it.
fn begin_heap(memory: &Division) -> Result<(), u32> {
    let heap = &memory.heap;
    // SAFETY: `divide` found this memory to be RAM behind the image and clear of modules; our
    // tables map it, and nothing else is put there.
    if unsafe { heap::begin(heap.start, heap.end.saturating_sub(heap.start)) } {
        return Ok(());
    }
    complain(format_args!("FAILED memory: no room for a heap"));
    Err(status::BAD_BOOT_INFORMATION)
}

/// Whether every CPU came, and was answered sensibly.
fn all_present(roll: &Roll) -> Result<(), u32> {
    for id in roll.missing() {
        complain(format_args!("FAILED SMP: CPU {id} did not come up"));
    }
    if !roll.agrees() {
        complain(format_args!(
            "FAILED SMP: the answers at the CPUs' gates contradict each other"
        ));
        return Err(status::WRONG_ANSWERS);
    }
    if roll.missing().is_empty() {
        Ok(())
    } else {
        Err(status::MISSING_CPU)
    }
}

/// Resets or switches off, if it is asked for. An error is the exit status.
fn switch(options: &Options, machine: &Machine) -> Result<(), u32> {
    match power::reboot(options.reboot, machine.resets) {
        Reboot::No if options.power_off => {
            power::throw(machine.power_off);
            complain(format_args!("FAILED poweroff: the machine stays on"));
        }
        Reboot::No => return Ok(()),
        Reboot::Again => {
            power::throw(machine.reset);
            complain(format_args!("FAILED reboot: the machine goes on"));
        }
        Reboot::Unknown => complain(format_args!(
            "FAILED reboot: nobody tells how often the machine has been reset"
        )),
    }
    Err(status::POWER_FAILED)
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

/// Runs the workloads. An error is the exit status.
fn work(options: &Options, log: &mut ExitLog, memory: &mut Division) -> Result<(), u32> {
    let mut outcome = Ok(());
    let layout = log.gate();
    // A page that lags is no judge of a count.
    let page = log.page().filter(|page| page.is_complete());
    for item in options.workloads.iter() {
        let mut line = Line::new();
        match workload::run::run(item, layout, page, memory, &mut line) {
            Ended::Well => {}
            Ended::Failed => outcome = Err(status::WORKLOAD_FAILED),
            Ended::Refused => outcome = outcome.and(Err(status::WORKLOAD_REFUSED)),
        }
        let _own = OwnSection::open();
        serial::send_line(&mut line);
    }
    outcome
}
