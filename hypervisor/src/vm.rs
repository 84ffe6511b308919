//! Building a VM: one linear recipe, from `/dev/kvm` to vCPUs that are ready to run.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use exit_abi::devicetree::{INITRD_MODULE, KERNEL_MODULE};
use kvm_bindings::{
    CpuId, KVM_CAP_DISABLE_QUIRKS2, KVM_CAP_SET_GUEST_DEBUG2, KVM_GUESTDBG_BLOCKIRQ,
    KVM_MAX_CPUID_ENTRIES, KVM_SYNC_X86_REGS, KVM_X86_QUIRK_FIX_HYPERCALL_INSN, kvm_enable_cap,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::boot::elf::{self, Image, Role};
use crate::boot::files::Files;
use crate::boot::kernel::Kernel;
use crate::boot::linux::{self, HandOver};
use crate::boot::pvh::{self, Module};
use crate::boot::{Entry, Protocol, arguments};
use crate::config::{Config, Console as ConsoleTarget};
use crate::devices::console::{Console, Output, Way};
use crate::devices::control::Control;
use crate::devices::pci::EmptyBus;
use crate::devices::serial::Com1;
use crate::devices::status_page::{Slot, StatusPage};
use crate::devices::virtio;
use crate::devices::virtio::console::Terminal;
use crate::devices::virtio::slot::Placed;
use crate::error::{Error, host as host_error, kvm as kvm_error};
use crate::exits::books::Books;
use crate::exits::gate::{Gate, Gates};
use crate::exits::hypercall::{self, Mechanism, Wish};
use crate::exits::ledger::Ledger;
use crate::exits::milestone::Milestones;
use crate::exits::page::ExitPage;
use crate::exits::source::{self, open::KernelSide};
use crate::held::Held;
use crate::marks::Marks;
use crate::marks::kernel::{Facts, Given};
use crate::marks::leaf::Leaves;
use crate::memory::prefault::{self, Prefault};
use crate::memory::{self, Memory};
use crate::platform::cpuid::Shape;
use crate::platform::{self, Machine, irqchip};
use crate::profile::{KvmKind, SourceInfo};
use crate::symbols::files::SymbolsError;
use crate::vcpu::{Shared, Vcpu};
use crate::{host, layout, symbols, terminal};

/// A file that was loaded: hashed after the run, so that hashing costs the boot nothing.
pub struct Loaded {
    /// `kernel`, `firmware` or `initrd`.
    pub role: &'static str,
    /// Its path, as given.
    pub path: std::path::PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Open on what was loaded.
    pub file: File,
}

/// A VM, ready to run.
pub struct Vm {
    /// What the vCPUs share. Also keeps guest memory alive.
    pub shared: Arc<Shared>,
    /// The vCPUs.
    pub vcpus: Vec<Vcpu>,
    /// Which KVM.
    pub kvm: KvmKind,
    /// The vCPU's TSC frequency, if KVM tells.
    pub tsc_khz: u64,
    /// The sources, and how complete they are.
    pub sources: Vec<SourceInfo>,
    /// The files that were loaded.
    pub images: Vec<Loaded>,
    /// How the kernel is entered, for people.
    pub boot: String,
    /// Set once the guest listens to its console.
    pub listening: Arc<AtomicBool>,
    /// What it took to fill memory in before.
    pub prefault_time: Duration,
    /// Keeps the VM.
    pub fd: VmFd,
}

/// Opens `/dev/kvm`, or says in one line what is missing and what to do.
pub(crate) fn open_kvm() -> Result<Kvm, Error> {
    let kvm = Kvm::new().map_err(|e| {
        let advice = match e.errno() {
            libc::ENOENT => {
                "there is no /dev/kvm: enable virtualization in the BIOS and load kvm_intel or \
                 kvm_amd (in a container: add --device /dev/kvm)"
            }
            libc::EACCES | libc::EPERM => {
                "permission denied on /dev/kvm: add yourself to group kvm, or run: \
                 sudo setfacl -m u:$USER:rw /dev/kvm"
            }
            libc::ENODEV | libc::ENXIO => {
                "/dev/kvm has no driver behind it: load kvm_intel or kvm_amd"
            }
            _ => return Error::NoKvm(format!("cannot open /dev/kvm: {e}")),
        };
        Error::NoKvm(advice.to_owned())
    })?;
    let version = kvm.get_api_version();
    if version < 0 {
        let what = "/dev/kvm is not KVM's device: remove it, and load kvm_intel or kvm_amd";
        return Err(Error::NoKvm(what.to_owned()));
    }
    if version != 12 {
        return Err(Error::NoKvm(format!(
            "/dev/kvm speaks API version {version}, not 12: it is no KVM that Linux documents"
        )));
    }
    let needed = [
        (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
        (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
        (Cap::Irqfd, "KVM_CAP_IRQFD"),
        (Cap::SetGuestDebug, "KVM_CAP_SET_GUEST_DEBUG"),
        (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    ];
    if let Some((_, name)) = needed
        .into_iter()
        .find(|(cap, _)| !kvm.check_extension(*cap))
    {
        return Err(Error::NoKvm(format!(
            "this KVM lacks {name}: use a newer kernel"
        )));
    }
    Ok(kvm)
}

/// Tells KVM what it needs before there are vCPUs.
fn prepare(vm: &VmFd, kvm_kind: KvmKind, wish: Wish) -> Result<Mechanism, Error> {
    vm.set_identity_map_address(layout::IDENTITY_MAP)
        .map_err(kvm_error("an identity map"))?;
    vm.set_tss_address(layout::TSS as usize)
        .map_err(kvm_error("a TSS address"))?;
    if kvm_kind == KvmKind::Software {
        // There a stray VMCALL would hang in KVM_RUN while KVM tries to patch it; without this
        // quirk it is #UD. Not every kernel has the capability: then the time limit must do.
        let mut cap = kvm_enable_cap {
            cap: KVM_CAP_DISABLE_QUIRKS2,
            ..Default::default()
        };
        cap.args[0] = KVM_X86_QUIRK_FIX_HYPERCALL_INSN.into();
        if let Err(error) = vm.enable_cap(&cap) {
            tracing::debug!(%error, "cannot disable KVM_X86_QUIRK_FIX_HYPERCALL_INSN");
        }
    }
    hypercall::set_up(vm, kvm_kind, wish)
}

/// Creates a vCPU with its CPUID table.
fn create_vcpu(vm: &VmFd, index: u32, supported: &CpuId, shape: &Shape) -> Result<VcpuFd, Error> {
    let fd = vm.create_vcpu(index.into()).map_err(kvm_error("a vCPU"))?;
    let shape = Shape {
        apic_id: u8::try_from(index).unwrap_or(u8::MAX),
        tsc_khz: fd.get_tsc_khz().unwrap_or(0),
        ..*shape
    };
    let table = platform::cpuid::table(supported, &shape)
        .ok_or_else(|| Error::NoKvm("KVM's CPUID table has no room for our leaves".into()))?;
    fd.set_cpuid2(&table)
        .map_err(kvm_error("the CPUID table"))?;
    // Set as it is. Not idle: a KVM whose map of APIC identifiers is not up to date drops an INIT
    // for a vCPU whose APIC nobody has written yet (seen on software KVM, Linux 6.18).
    let lapic = fd.get_lapic().map_err(kvm_error("reading a local APIC"))?;
    fd.set_lapic(&lapic).map_err(kvm_error("a local APIC"))?;
    Ok(fd)
}

/// What was loaded where.
struct Boot {
    /// Each with what stands there.
    gates: Vec<(Gate, [u8; 3])>,
    names: BTreeMap<u32, String>,
    images: Vec<Loaded>,
}

fn image_error(role: &'static str, path: &Path) -> impl FnOnce(elf::ElfError) -> Error {
    move |source| Error::Image {
        role,
        path: path.to_owned(),
        source,
    }
}

/// What the guest is told of the machine besides what the configuration says.
#[derive(Clone, Copy)]
struct Told<'a> {
    /// Where what is loaded is entered.
    entry: Entry,
    /// The kernel's command line.
    cmdline: &'a str,
    /// The highest address that a byte of the initial RAM disk may have.
    initrd_max: u64,
    /// A firmware is to hand on a random seed.
    seed: bool,
    /// Which interrupt controllers there are.
    irqchip: irqchip::Kind,
    /// Frequency of the local APICs' timer.
    timer_hz: u32,
    /// How often the machine has been reset.
    resets: u32,
    /// Bytes of the exit page, if there is one.
    exit_page: Option<u64>,
    /// Its virtio devices.
    devices: &'a [Placed],
}

/// Loads what is booted (the kernel, or a firmware that gets the kernel as its first module),
/// describes the machine, and writes the hand-over.
fn load(
    config: &Config,
    memory: &Memory,
    mut image: Kernel,
    files: &mut Files,
    told: Told<'_>,
) -> Result<Boot, Error> {
    let role = match config.firmware {
        Some(_) => Role::Firmware,
        None => Role::Kernel,
    };
    let path = image.path().to_owned();
    image
        .load(memory, role, told.cmdline)
        .map_err(image_error(role.name(), &path))?;
    // Modules lie above the image and above the hole at 640 KiB.
    let floor = image.end().max(layout::HIGH_START);
    let mut room = (floor, pvh::top_of_low_ram(memory));
    let mut modules: Vec<Module> = Vec::new();
    let mut images = Vec::new();
    let kernel = config
        .firmware
        .is_some()
        .then_some((KERNEL_MODULE, config.kernel.as_path()));
    let initrd = config.initrd.as_deref().map(|path| (INITRD_MODULE, path));
    for (role, path) in kernel.into_iter().chain(initrd) {
        let (mut file, bytes) = files.open(path).map_err(image_error(role, path))?;
        if role == INITRD_MODULE {
            room.1 = room.1.min(told.initrd_max.saturating_add(1));
        }
        let module = pvh::load_module(memory, &mut file, bytes, role, room)?;
        room.1 = module.start;
        modules.push(module);
        images.push(Loaded {
            role,
            path: path.to_owned(),
            bytes,
            file,
        });
    }
    let initrd = modules.iter().find(|m| m.name == INITRD_MODULE).copied();
    let machine = Machine {
        memory: config.memory.bytes(),
        cpus: config.cpus.get(),
        cmdline: told.cmdline,
        irqchip: told.irqchip,
        initrd,
        leaves: config.leaves.layout,
        timer_hz: told.timer_hz,
        resets: told.resets,
        exit_page: told.exit_page,
        console: config.way,
        devices: told.devices,
    };
    let described = platform::describe(memory, &machine)?;
    if told.resets == 0 {
        config.dump.write(&described)?;
    }
    if modules.is_empty() {
        // Linux takes the first module for its initrd: an empty one it leaves alone.
        modules.push(Module {
            name: INITRD_MODULE,
            start: 0,
            bytes: 0,
        });
    }
    if told.seed {
        modules.push(linux::write_seed(memory)?);
    }
    modules.push(described.module());
    let rsdp = described.acpi.rsdp.address;
    pvh::write(memory, told.cmdline, &modules, rsdp, told.exit_page)?;
    let hand_over = HandOver {
        cmdline: told.cmdline,
        initrd,
        rsdp,
        exit_page: told.exit_page,
    };
    image.hand_over(told.entry, memory, &hand_over)?;
    let bytes = image.bytes();
    let gates = image.take_gates(memory);
    let mut names = image.take_names();
    if role == Role::Firmware
        && let Ok(kernel) = Image::open(&config.kernel, files)
    {
        // Names are for people, and the kernel's are as good as the firmware's. Whether the kernel
        // can be booted is the firmware's to say, and its gates are the firmware's to register.
        names.extend(kernel.names);
    }
    images.insert(
        0,
        Loaded {
            role: role.name(),
            path,
            bytes,
            file: image.into_file(),
        },
    );
    Ok(Boot {
        gates,
        names,
        images,
    })
}

/// A descriptor of our own on standard output or error.
fn console_file(target: ConsoleTarget) -> io::Result<File> {
    use std::os::fd::AsFd;
    let fd: OwnedFd = match target {
        ConsoleTarget::Stdout => io::stdout().as_fd().try_clone_to_owned()?,
        ConsoleTarget::Stderr => io::stderr().as_fd().try_clone_to_owned()?,
    };
    Ok(fd.into())
}

/// The kernel behind a firmware. Whether it can be booted is the firmware's to say.
fn behind(config: &Config, held: &mut Held) -> Option<Kernel> {
    config.firmware.as_ref()?;
    Kernel::open(&config.kernel, &mut held.files).ok()
}

/// The milestones that are looked for in a kernel, which is entered there if no firmware comes first.
fn marks(config: &Config, held: &mut Held, kernel: &Kernel, entry: Entry) -> Result<Marks, Error> {
    let wish = &config.milestones;
    let given = match &wish.symbols {
        Some(path) => symbols(held, path)?,
        None if !wish.needs_symbols(kernel.is_linux()) => return Ok(Marks::none()),
        None => Given {
            // What a bzImage or a stripped file has not, memory may have.
            symbols: held
                .files
                .open(kernel.path())
                .ok()
                .filter(|_| matches!(kernel, Kernel::Elf(_)))
                .and_then(|(file, bytes)| symbols::files::read(file, bytes).ok())
                .map(Arc::new),
            ..Given::default()
        },
    };
    let entry = match config.firmware {
        None => Some(entry),
        // As the firmware does; what it cannot boot, it will say.
        Some(_) if matches!(kernel, Kernel::Elf(_)) => kernel.entry(Protocol::Pvh).ok(),
        Some(_) => kernel.entry(Protocol::Auto).ok(),
    };
    let facts = entry.map_or(Facts::Other, |entry| Facts::of(kernel, entry));
    Ok(Marks::new(wish, facts, given))
}

/// Reads symbols that were given. A stub is no error: the kernel has symbols of its own.
fn symbols(held: &mut Held, path: &Path) -> Result<Given, Error> {
    let name = path.display().to_string();
    let (file, bytes) = held
        .files
        .open(path)
        .map_err(image_error("symbols", path))?;
    match symbols::files::read(file, bytes) {
        Ok(symbols) => Ok(Given {
            symbols: Some(Arc::new(symbols)),
            name,
            note: None,
        }),
        Err(stub @ SymbolsError::Stub) => Ok(Given {
            symbols: None,
            note: Some(format!("symbols {name} {stub}")),
            name,
        }),
        Err(source) => Err(Error::Symbols {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Software KVM runs small guests: in Linux it hangs, which is no way to say so.
fn refuse_linux(config: &Config) -> Error {
    Error::NoKvm(format!(
        "kernel {} is Linux, which does not run on this machine's software KVM (kvm_pvm): boot it in \
         a lab, `cargo xtask run --on amd-lab …`, or where there is kvm_intel or kvm_amd",
        config.kernel.display()
    ))
}

/// Makes the exit page, if it is wanted and possible, and gives it to the VM. Its counters begin at
/// 0 with this boot.
fn exit_page(
    config: &Config,
    vm: &VmFd,
    kernel: &KernelSide,
    resets: u32,
) -> Result<Option<ExitPage>, Error> {
    let ledger = kernel
        .ledger
        .as_ref()
        .filter(|ledger| !ledger.is_emulated());
    let mut is_fresh = true;
    if let Some(ledger) = ledger.filter(|_| resets > 0)
        && let Err(error) = ledger.clear()
    {
        is_fresh = false;
        if config.exit_page {
            tracing::warn!(%error, "no exit page after a reset: the kernel's counters cannot be cleared");
        }
    }
    if !config.exit_page {
        return Ok(None);
    }
    if !ExitPage::is_possible(vm) {
        tracing::warn!("no exit page: this KVM has no read-only memory (KVM_CAP_READONLY_MEM)");
        return Ok(None);
    }
    let page = match ledger {
        Some(_) if !is_fresh => return Ok(None),
        Some(ledger) => ExitPage::of_kernel(ledger.clone()),
        None => ExitPage::of_vmm(config.cpus.get()),
    };
    let page = page.map_err(host_error("make an exit page"))?;
    page.give_to_kvm(vm)?;
    Ok(Some(page))
}

/// Where the guest's console goes, and what is looked for there.
fn output(config: &Config, linux: bool, control: &Arc<Control>) -> Result<Output, Error> {
    let out = console_file(config.console).map_err(host_error("duplicate the console"))?;
    let console = Console::new(out, control.clone()).looking_for(config.milestones.patterns());
    Ok(match linux {
        true => console.listening().into(),
        false => console.into(),
    })
}

/// Makes the page of COM1's registers.
fn status_page(kvm: &Kvm, vm: &VmFd, control: &Arc<Control>) -> Result<StatusPage, Error> {
    if !Slot::is_possible(vm) {
        let what = "--console page: this KVM has no read-only memory (KVM_CAP_READONLY_MEM): leave it \
                    out";
        return Err(Error::NoKvm(what.to_owned()));
    }
    let slot = Slot::new(irqchip::another(kvm, vm)?);
    StatusPage::new(Box::new(slot), control.clone())
        .map_err(host_error("make a page for the console"))
}

/// Builds the VM, as it is after this many resets. What takes long goes on no further once `stop` says
/// that somebody wants the run to end.
pub fn build(
    config: &Config,
    held: &mut Held,
    resets: u32,
    stop: &dyn Fn() -> bool,
) -> Result<Vm, Error> {
    tracing::debug!(resets, "building a machine");
    // Images first: a typing mistake should not need a KVM to be found.
    let (role, path) = match &config.firmware {
        Some(firmware) => ("firmware", firmware.as_path()),
        None => ("kernel", config.kernel.as_path()),
    };
    let image = Kernel::open(path, &mut held.files).map_err(image_error(role, path))?;
    if let Some(total) = memory::host_total() {
        config.memory.within(total)?;
    }

    let kind = host::kvm_kind();
    // A firmware is entered by PVH; how it enters the kernel is its own business.
    let wish = match config.firmware {
        Some(_) => Protocol::Pvh,
        None => config.boot,
    };
    let entry = image.entry(wish).map_err(image_error(role, path))?;
    let behind = behind(config, held);
    let kernels = || std::iter::once(&image).chain(&behind);
    let linux = kernels().any(Kernel::is_linux);
    let entered = match &behind {
        _ if config.firmware.is_none() => entry.name().to_owned(),
        // The firmware boots a bzImage by Linux's own protocol, all else by PVH.
        Some(Kernel::BzImage(_)) => format!("{} via firmware", Entry::Linux(0).name()),
        _ => format!("{} via firmware", entry.name()),
    };
    let initrd_max = kernels().map(Kernel::initrd_max).min().unwrap_or(u64::MAX);
    // What ends before its first instruction does not run there.
    if linux && kind == KvmKind::Software && !config.milestones.ends_at_reset() {
        return Err(refuse_linux(config));
    }
    let cmdline = match linux {
        true => arguments::with(&config.cmdline, config.way),
        false => config.cmdline.clone(),
    };
    let marks = marks(config, held, behind.as_ref().unwrap_or(&image), entry)?;
    let leaves = Leaves::new(&config.milestones, held.stops(config));
    let kvm = held.kvm(open_kvm)?;
    let most = u32::try_from(kvm.get_max_vcpus()).unwrap_or(u32::MAX);
    if config.cpus.get() > most {
        let what = format!("this KVM runs at most {most} vCPUs: give fewer with --cpus");
        return Err(Error::Usage(what));
    }
    let fd = kvm.create_vm().map_err(kvm_error("a VM"))?;

    let memory = Arc::new(memory::map_of(config.pages, linux, config.memory.bytes())?);
    memory::give_to_kvm(&fd, &memory)?;
    let wish = config.hypercall.of(linux, config.cpus.get());
    let hypercalls = prepare(&fd, kind, wish)?;

    let control = Arc::new(Control::new().map_err(host_error("make an event descriptor"))?);
    let output = output(config, linux, &control)?;
    let listening = Arc::new(AtomicBool::new(false));
    let terminal = (config.way == Way::Virtio)
        .then(|| Arc::new(Terminal::new(terminal::size(), listening.clone())));
    let console = terminal
        .as_ref()
        .map(|t| virtio::console::Console::new(output.clone(), t.clone(), control.clone()));
    let devices = virtio::build::devices(config, held, console)?;
    let pins = irqchip::pins(devices.len());
    let irqchip = irqchip::create(&fd, config.irqchip, linux, pins)?;
    let ioapic = match irqchip {
        irqchip::Kind::Kernel => None,
        irqchip::Kind::Split => Some(irqchip::Wired::new(&kvm, &fd, irqchip, pins)?),
    };
    let devices = virtio::slot::Set::new(&fd, devices, &memory)?;
    let kernel = held.kernel(config, kind).clone();
    if let Some(ledger) = &kernel.ledger {
        ledger.tell_memory(&memory);
    }
    let exit_page = exit_page(config, &fd, &kernel, resets)?;

    let line = EventFd::new(EFD_NONBLOCK).map_err(host_error("make an event descriptor"))?;
    fd.register_irqfd(&line, layout::COM1_GSI)
        .map_err(kvm_error("an interrupt line for COM1"))?;
    let typed_at = match config.way {
        Way::Ports | Way::Page => listening.clone(),
        // It prints, for who comes before the device's driver; nobody types there.
        Way::Virtio => Arc::default(),
    };
    let com1 = Com1::new(line, output.clone(), typed_at);
    let com1 = match config.way {
        Way::Page => com1.with_page(status_page(&kvm, &fd, &control)?),
        Way::Ports | Way::Virtio => com1,
    };
    let query_log = match config.log_queries {
        true => {
            let out = console_file(ConsoleTarget::Stderr)
                .map_err(host_error("duplicate standard error"))?;
            Some(Mutex::new(Console::new(out, control.clone())))
        }
        false => None,
    };

    let timer_hz = irqchip::timer_hz(&kvm);
    let sync_regs = kvm.check_extension_int(Cap::SyncRegs) as u32 & KVM_SYNC_X86_REGS != 0;

    let mut supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(kvm_error("its supported CPUID table"))?;
    if hypercalls == Mechanism::Xen {
        hypercall::hide_features(&mut supported);
    }
    let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    let placed: Vec<Placed> = devices.slots().iter().map(|s| s.placed.clone()).collect();
    let told = Told {
        entry,
        cmdline: &cmdline,
        initrd_max,
        seed: matches!(behind, Some(Kernel::BzImage(_))),
        irqchip,
        timer_hz,
        resets,
        exit_page: exit_page.as_ref().map(|page| page.size()),
        devices: &placed,
    };
    let boot = load(config, &memory, image, &mut held.files, told)?;

    let shape = Shape {
        apic_id: 0,
        cpus: config.cpus.get(),
        layout: config.leaves.layout,
        exit_page: exit_page.is_some(),
        deadline,
        tsc_khz: 0,
        timer_hz,
    };
    let mut fds = Vec::new();
    let mut books = Vec::new();
    let mut sources = Vec::new();
    for index in 0..config.cpus.get() {
        let vcpu = create_vcpu(&fd, index, &supported, &shape)?;
        let ledger = Arc::new(Ledger::default());
        let (book, infos) = source::open::open(&vcpu, index, &ledger, kind, &kernel, hypercalls);
        books.push(book);
        sources = infos;
        fds.push((vcpu, ledger));
    }
    let mut tsc_khz = 0;
    if let Some((boot_vcpu, _)) = fds.first() {
        entry.set(boot_vcpu)?;
        tsc_khz = boot_vcpu.get_tsc_khz().unwrap_or(0).into();
    }

    let started = Instant::now();
    if let Some((boot_vcpu, _)) = fds.first() {
        prefault::fill(&memory, config.prefault, &fd, boot_vcpu, stop)?;
        if config.prefault == Prefault::Kvm
            && let Some(page) = &exit_page
            && let Err(error) =
                prefault::map_by_kvm(boot_vcpu, exit_abi::page::ADDRESS, page.size())
        {
            // It costs the guest a few exits, once.
            tracing::debug!(%error, "the exit page is not mapped beforehand");
        }
    }
    let prefault_time = started.elapsed();

    let gates = Gates::new(fds.len());
    for (gate, bytes) in boot.gates {
        // The image's check has ruled out what the table refuses.
        let registered = match gate.needs_slot(hypercalls, kind, &bytes) {
            true => gates.register(gate).map(|_| ()),
            false => gates.register_unarmed(gate.address),
        };
        if let Err(outcome) = registered {
            let source = elf::ElfError::Gates(format!("{:#x}: {outcome:?}", gate.address));
            return Err(image_error(role, path)(source));
        }
    }
    // Nobody runs yet: whoever does arms them first.
    let _ = gates.want(|| marks.window());
    let can_block = fd.check_extension_raw(KVM_CAP_SET_GUEST_DEBUG2.into()) as u32;
    let shared = Arc::new(Shared {
        memory,
        books: Books::new(books, kind).with_hypercalls(hypercalls),
        gates,
        hypercalls,
        milestones: Milestones::new(boot.names).awaiting(config.milestones.awaited()),
        output,
        terminal,
        com1: Mutex::new(com1),
        empty_bus: (linux && arguments::has_empty_bus(&cmdline)).then(EmptyBus::default),
        has_status_page: config.way == Way::Page,
        ioapic,
        devices,
        control,
        layout: config.leaves.layout,
        edition: config.edition,
        ignores_rf: AtomicBool::new(kind == KvmKind::Software),
        step_flags: can_block & KVM_GUESTDBG_BLOCKIRQ,
        sync_regs,
        kernel: kernel.ledger,
        exit_page: exit_page.map(Arc::new),
        kernel_map: Arc::default(),
        marks,
        leaves,
        query_log,
        started: OnceLock::new(),
        entered: OnceLock::new(),
        ends_at_reset: config.milestones.ends_at_reset(),
        threads: Mutex::new(vec![None; fds.len()]),
    });
    let vcpus = fds
        .into_iter()
        .enumerate()
        .map(|(index, (fd, ledger))| Vcpu::new(fd, index, shared.clone(), ledger))
        .collect();
    Ok(Vm {
        shared,
        vcpus,
        kvm: kind,
        tsc_khz,
        sources,
        images: boot.images,
        boot: entered,
        listening,
        prefault_time,
        fd,
    })
}
