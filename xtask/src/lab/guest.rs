//! Linux guests: Debian's kernels, which the labs run on too, and a small initramfs of busybox.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::cpio::Archive;
use super::packages::{Packages, Wanted};
use super::{BUSYBOX, Job, Own, Version, bochs, drivers, packages, vmlinux};

/// A Linux that can be booted as a guest.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    /// Its bzImage, as shipped.
    pub(crate) kernel: PathBuf,
    /// An initramfs whose `/init` is [`INIT`].
    pub(crate) initrd: PathBuf,
}

/// What runs in user space. It says that it is there, and powers off; a word behind `--` on the
/// kernel's command line makes it do something else: with `idle` what is counted ends where user
/// space begins.
///
/// The console is opened anew for the first line: Linux then takes the lock of all consoles, and who
/// gives it up has written the whole kernel log (linux/drivers/tty/tty_io.c, `tty_lookup_driver`;
/// linux/kernel/printk/printk.c, `console_unlock`). So that line comes after all that the kernel said.
const INIT: &str = "\
#!/bin/busybox sh
echo 'exitvisor-guest: user space' >/dev/console
case \"$1\" in
idle) exec /bin/busybox sleep 86400 ;;
shell) exec /bin/busybox sh ;;
reset) exec /bin/busybox reboot -f ;;
esac
echo \"exitvisor-guest: $(/bin/busybox uname -r), $(/bin/busybox nproc) CPUs\"
exec /bin/busybox poweroff -f
";

/// The beginning of it for a console that is a virtio device: its drivers are modules, so it is there
/// once they are loaded, and only then. What the kernel has said until then it prints on it while the driver
/// does not take anything yet, and so to nobody (linux/drivers/char/virtio_console.c, `init_port_console`:
/// a port is none before `hvc_alloc` returns): /init prints it again, unless it is to be `quiet`. So [`INIT`]'s
/// first line comes after all that the kernel said.
const CONSOLE_INIT: &str = "\
#!/bin/busybox sh
while read -r module; do
    /bin/busybox insmod \"/modules/$module\"
done </modules/order
# A device with several ports has its console a little later; without one, exec fails: a panic.
tries=0
until true </dev/console 2>/dev/null || [ $tries = 100 ]; do
    tries=$((tries + 1))
    /bin/busybox sleep 0.05
done
exec </dev/console >/dev/console 2>&1
/bin/busybox mount -t proc proc /proc
case \" $(/bin/busybox cat /proc/cmdline) \" in
*' quiet '*) ;;
*) /bin/busybox dmesg ;;
esac
";

/// The line that [`INIT`] prints first.
pub(crate) const USER_SPACE: &str = "exitvisor-guest: user space";

/// The variables by which tests find the guests: both kernels, the initramfs, and one kernel unpacked.
pub(crate) const VARIABLES: [&str; 4] = [
    "EXITVISOR_LINUX_6_1",
    "EXITVISOR_LINUX_6_12",
    "EXITVISOR_INITRAMFS",
    "EXITVISOR_VMLINUX",
];

/// The variables by which tests find an initramfs for `console=hvc0`, for 6.1 and 6.12.
const CONSOLES: [&str; 2] = ["EXITVISOR_HVC0_6_1", "EXITVISOR_HVC0_6_12"];

/// Carries the guests into a lab, fetched and made first if they are not there yet.
pub(crate) fn carry(job: &mut Job) -> anyhow::Result<()> {
    let packages = packages(&job.own)?;
    let guests = [Version::V6_1, Version::V6_12].map(|version| guest(&packages, version));
    let [old, new] = guests;
    let (old, new) = (old?, new?);
    let vmlinux = vmlinux::file(&old.kernel, &packages.folder.join(bochs::KERNELS))?;
    let files = [old.kernel, new.kernel, old.initrd, vmlinux];
    for (name, file) in VARIABLES.iter().zip(files) {
        job.env.push(((*name).into(), file.clone().into()));
        job.files.push(file);
    }
    for (version, name) in [Version::V6_1, Version::V6_12].into_iter().zip(CONSOLES) {
        let file = console(&packages, version)?.initrd;
        job.env.push((name.into(), file.clone().into()));
        job.files.push(file);
    }
    Ok(())
}

/// The guest of this version, for who boots it; fetched and made first if it is not there yet.
pub(crate) fn fetched(own: &Own, version: Version) -> anyhow::Result<Guest> {
    guest(&packages(own)?, version)
}

/// The initramfs, for a kernel of the user's own; busybox is fetched first if it is not there yet.
pub(crate) fn initramfs_alone(own: &Own) -> anyhow::Result<PathBuf> {
    initramfs(&packages(own)?, "initramfs", INIT, |_| Ok(()))
}

/// The guest of this version; fetched and made first if it is not there yet.
pub(super) fn guest(packages: &Packages, version: Version) -> anyhow::Result<Guest> {
    let kernel = version.kernel(packages)?;
    Ok(Guest {
        kernel: kernel.image,
        initrd: initramfs(packages, "initramfs", INIT, |_| Ok(()))?,
    })
}

/// The guest of this version whose console is `hvc0`; fetched and made first if it is not there yet.
pub(super) fn console(packages: &Packages, version: Version) -> anyhow::Result<Guest> {
    let kernel = version.kernel(packages)?;
    let modules = drivers::drivers(packages, &kernel, &drivers::CONSOLE)?;
    let name = format!("hvc0-{}", version.name());
    let init = [CONSOLE_INIT, INIT.trim_start_matches("#!/bin/busybox sh\n")].concat();
    let carry = |archive: &mut Archive| drivers::carry(&modules, archive);
    Ok(Guest {
        initrd: initramfs(packages, &name, &init, carry)?,
        kernel: kernel.image,
    })
}

/// Writes an initramfs with busybox, this `/init`, and what is added.
pub(super) fn initramfs(
    packages: &Packages,
    name: &str,
    init: &str,
    add: impl FnOnce(&mut Archive) -> anyhow::Result<()>,
) -> anyhow::Result<PathBuf> {
    const TREE: &Wanted = &BUSYBOX;
    let busybox = packages.tree(TREE)?.path("bin/busybox");
    let bytes = fs::read(&busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    let mut archive = Archive::default();
    for folder in ["/proc", "/sys", "/dev", "/tmp"] {
        archive.folder(Path::new(folder));
    }
    archive.device(Path::new("/dev/console"), 0o600, (5, 1));
    archive.file(Path::new("/bin/busybox"), 0o755, bytes);
    archive.link(Path::new("/bin/sh"), "busybox".as_ref());
    archive.file(Path::new("/init"), 0o755, init.as_bytes().to_vec());
    add(&mut archive)?;
    let folder = packages.folder.join("guest");
    let path = folder.join(format!("{name}.cpio"));
    let mut content = Vec::new();
    let written = archive.write(&mut content).and_then(|()| {
        fs::create_dir_all(&folder)?;
        // Others may be reading it: it is there as a whole or not at all.
        let partial = folder.join(format!("{name}.{}", std::process::id()));
        fs::write(&partial, &content)?;
        fs::rename(&partial, &path)
    });
    written.with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}
