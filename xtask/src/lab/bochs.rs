//! The Intel lab's machine: Bochs, which emulates VT-x with EPT and unrestricted guest.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};

use super::machine::{Launch, Machine, Results, Start};
use super::memory::{self, Contents};
use super::packages::{Packages, Tree, Wanted};
use super::rom;
use super::vmlinux::Vmlinux;

/// Bochs with its plugins, its BIOS and the BIOS of its display.
const WANTED: Wanted = Wanted {
    name: "bochs",
    packages: &["bochs", "bochsbios", "vgabios"],
    release: None,
};

/// Below `target/lab`: kernels, unpacked.
pub(super) const KERNELS: &str = "unpacked-kernels";

/// Instructions that Bochs takes for a second. It counts time by instructions, so a run does not
/// depend on the host's speed; about what a host emulates in a second, so that time passes inside
/// as it does outside.
const INSTRUCTIONS_PER_SECOND: u32 = 100_000_000;

/// Kernel arguments of this machine.
const ARGUMENTS: &[&str] = &[
    // The TSC ticks with the instructions. Left to itself the kernel believes what the emulated
    // CPU says of its frequency, and time runs 35 times off.
    "tsc_early_khz=100000",
    "tsc=reliable",
    "no_timer_check",
    // Lines of the console cost least at the highest speed.
    "console=ttyS0,115200",
    // The kernel lies where it was put.
    "nokaslr",
    // Its AVX-512 state has not the size that its CPUID tells, and the kernel would do without
    // XSAVE; its AVX2 miscomputes.
    "clearcpuid=avx512f,xsavec,xsaves",
    // Less code to patch, and no entropy to wait for.
    "mitigations=off",
    "random.trust_cpu=on",
    "cryptomgr.notests",
    // What takes long to start, and is not needed here: entropy by jitter, known answers of
    // ciphers, certificates, and a search of all functions for those that a linker dropped.
    "initcall_blacklist=jent_mod_init,crypto_kdf108_init,load_system_certificate_list,\
     bpf_tcp_ca_kfunc_init,bpf_dummy_struct_ops_init,trace_eval_init,init_kprobe_trace,\
     ftrace_check_for_weak_functions",
    // After a panic: a triple fault, by which Bochs ends.
    "reboot=triple",
];

/// Bochs, fetched.
#[derive(Debug)]
pub(crate) struct Bochs {
    tree: Tree,
    version: String,
    kernels: PathBuf,
}

impl Bochs {
    /// Fetches it if it is not there yet.
    pub(crate) fn setup(packages: &Packages) -> anyhow::Result<Self> {
        let tree = packages.tree(&WANTED)?;
        Ok(Self {
            version: tree.version("bochs").unwrap_or_default(),
            tree,
            kernels: packages.folder.join(KERNELS),
        })
    }
}

impl Machine for Bochs {
    fn name(&self) -> String {
        format!("Bochs {}", self.version)
    }

    fn is_telling(&self, line: &str) -> bool {
        // Until it has read where its log goes, that goes to stderr: a time, `i` for information.
        let logged = line.trim_start_matches(|c: char| c.is_ascii_digit());
        let frame = "Bochs is exiting with the following message:";
        !(line.starts_with("===") || line == frame || logged.starts_with("i["))
    }

    fn launch(&self, start: &Start<'_>) -> anyhow::Result<Launch> {
        if start.cpus != 1 {
            // Two stall each other when one leaves VMX operation.
            bail!("the Intel lab has one CPU: for more take --host amd");
        }
        if !start.disks.is_empty() {
            bail!("the Intel lab has no disks: take --host amd (--on amd-lab)");
        }
        let kernel = Vmlinux::of(start.kernel, &self.kernels)?;
        let contents = Contents {
            kernel: &kernel,
            initramfs: start.initramfs,
            arguments: &format!("{} {}", start.cmdline, ARGUMENTS.join(" ")),
            memory_mib: start.memory_mib,
        };
        contents.write(&start.folder.join(MEMORY))?;
        let file = |name: &str, bytes: &[u8]| {
            let path = start.folder.join(name);
            fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
        };
        file(ROM, &rom::image())?;
        file(CONFIGURATION, configuration(start).as_bytes())?;
        // Debian's Bochs has the debugger in it, which waits to be told to continue.
        file(COMMANDS, b"c\n")?;
        // By links, because its configuration gives some characters of a path a meaning.
        let link = |name: &str, to: &Path| {
            symlink(to, start.folder.join(name))
                .with_context(|| format!("cannot link {}", to.display()))
        };
        link(BIOS, &self.tree.path("usr/share/bochs/BIOS-bochs-latest"))?;
        link(VGA_BIOS, &self.tree.path("usr/share/vgabios/vgabios.bin"))?;
        link(CONSOLE, start.console)?;

        let libraries = self.tree.path("usr/lib/x86_64-linux-gnu");
        let mut command = self.tree.command("usr/bin/bochs-bin");
        command
            .current_dir(start.folder)
            // Nothing of the host's: no locale, no converters of characters, no plugins.
            .env_clear()
            .env("LC_ALL", "C")
            .env("GCONV_PATH", libraries.join("gconv"))
            .env("LTDL_LIBRARY_PATH", libraries.join("bochs/plugins"))
            .args(["-q", "-f", CONFIGURATION, "-rc", COMMANDS, "-log", LOG])
            .args(start.extra);
        prepare(&mut command)?;
        Ok(Launch {
            command,
            results: if start.terminal {
                Results::Stdio
            } else {
                Results::File(start.folder.join(RESULTS))
            },
        })
    }
}

// Files of one run, in its folder.
const MEMORY: &str = "memory";
const ROM: &str = "start.rom";
// Bochs looks at the name whether it is its own.
const BIOS: &str = "BIOS-bochs-latest";
const VGA_BIOS: &str = "vgabios.bin";
const CONFIGURATION: &str = "bochsrc";
const COMMANDS: &str = "commands";
const CONSOLE: &str = "console";
const RESULTS: &str = "results";
/// What it has to say before it ends.
const LOG: &str = "bochs.log";

/// What Bochs reads (its user guide, section 4.3).
fn configuration(start: &Start<'_>) -> String {
    let results = if start.terminal {
        "mode=term, dev=/dev/tty".to_owned()
    } else {
        format!("mode=file, dev={RESULTS}")
    };
    format!(
        "# The CPU with the most of VT-x. An MSR that it lacks reads 0, as the kernel can bear.
cpu: model=corei7_skylake_x, count=1, ips={INSTRUCTIONS_PER_SECOND}, reset_on_triple_fault=0, \
ignore_bad_msrs=1, mwait_is_nop=0
memory: guest={memory}, host={memory}
# Time passes with the instructions and is skipped when there is nothing to do.
clock: sync=none, time0=utc
romimage: file={BIOS}
vgaromimage: file={VGA_BIOS}
optromimage1: file={ROM}, address={rom:#x}
optramimage1: file={MEMORY}, address={file:#x}
com1: enabled=1, mode=file, dev={CONSOLE}
com2: enabled=1, {results}
ata0: enabled=0
ata1: enabled=0
boot: floppy
floppy_bootsig_check: disabled=1
# Nobody looks at the display; nothing waits for a viewer.
display_library: rfb, options=\"timeout=0\"
sound: driver=dummy
speaker: enabled=0
plugin_ctrl: unmapped=1, biosdev=1, speaker=0, extfpuirq=1, parallel=0, serial=1, iodebug=0
debug: action=ignore
info: action=ignore
error: action=ignore
# Power off is such a panic, a triple fault another.
panic: action=fatal
",
        memory = start.memory_mib,
        rom = rom::ADDRESS,
        file = memory::ADDRESS,
    )
}

/// What has to be done in the process that becomes Bochs.
fn prepare(command: &mut Command) -> anyhow::Result<()> {
    let mut alarm = SigSet::empty();
    alarm.add(Signal::SIGALRM);
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    let prepare = move || {
        // Its display is a server: out of everyone's reach in a network of its own. Where the
        // host forbids that, it stays reachable.
        let _ = unshare(CloneFlags::CLONE_NEWNET)
            .or_else(|_| unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET));
        // It measures its speed once a second, and what that interrupts fails.
        alarm.thread_block()?;
        // Its debugger would read what is typed, and prompt for it. Why it ends it says on stderr.
        for stream in 0..=1 {
            // SAFETY: both are open descriptors of this process; nobody owns 0 and 1 between fork
            // and exec, and dup2 is async-signal-safe.
            if unsafe { nix::libc::dup2(nothing.as_raw_fd(), stream) } < 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls only: it neither allocates
    // nor takes a lock.
    unsafe { command.pre_exec(prepare) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_names_what_launch_writes() {
        let path = Path::new("/a, b");
        let start = Start {
            folder: path,
            console: path,
            kernel: path,
            initramfs: path,
            cmdline: "",
            cpus: 1,
            memory_mib: 640,
            extra: &[],
            disks: &[],
            terminal: false,
        };
        let text = configuration(&start);
        assert!(text.contains("\nmemory: guest=640, host=640\n"), "{text}");
        assert!(
            text.contains("\noptromimage1: file=start.rom, address=0xd0000\n"),
            "{text}"
        );
        assert!(
            text.contains("\noptramimage1: file=memory, address=0x800000\n"),
            "{text}"
        );
        assert!(
            text.contains("\ncom2: enabled=1, mode=file, dev=results\n"),
            "{text}"
        );
        // Not one path of the host: Bochs gives commas and blanks in them a meaning.
        assert!(!text.contains("a, b"), "{text}");
    }

    #[test]
    fn arguments_are_words() {
        for argument in ARGUMENTS {
            assert!(!argument.contains(char::is_whitespace), "{argument:?}");
        }
        let khz = format!("tsc_early_khz={}", INSTRUCTIONS_PER_SECOND / 1000);
        assert!(ARGUMENTS.contains(&khz.as_str()));
    }
}
