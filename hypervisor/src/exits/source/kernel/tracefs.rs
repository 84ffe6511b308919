//! tracefs: where it is, and what its `events/kvm/` says of a tracepoint.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use nix::sys::statfs::{TRACEFS_MAGIC, statfs};

use super::error::KernelLedgerError as Error;
use super::format::{self, Field};

/// Where it is mounted, if somebody has mounted it (linux/Documentation/trace/ftrace.rst).
const USUAL: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// Most of a file that is read: `format` files are some kilobytes.
const LONGEST: u64 = 1 << 20;

/// An open tracefs.
#[derive(Debug)]
pub(super) struct Tracefs {
    root: PathBuf,
    folder: OwnedFd,
}

/// A tracepoint of KVM's.
#[derive(Debug)]
pub(super) struct Event {
    /// Its number, for perf_event_open.
    pub(super) id: u64,
    path: PathBuf,
    format: String,
}

impl Event {
    /// Whether its own fields begin with these, in this order.
    pub(super) fn starts_with(&self, names: &[&str]) -> bool {
        format::own_fields(&self.format)
            .take(names.len())
            .eq(names.iter().copied())
    }

    /// Where a field lies; its size must be one of `sizes`.
    pub(super) fn field(&self, name: &str, sizes: &[usize]) -> Result<Field, Error> {
        format::field(&self.format, name, sizes).map_err(|what| Error::Format {
            path: self.path.clone(),
            what,
        })
    }
}

impl Tracefs {
    /// Finds it: where it is said to be, or where it usually is, or (root may) by a mount of our
    /// own that is attached nowhere, so that nothing on the system changes.
    pub(super) fn find(given: Option<&Path>) -> Result<Self, Error> {
        let usual = USUAL.map(Path::new);
        let candidates = given.as_ref().map_or(&usual[..], std::slice::from_ref);
        let mut unusable = None;
        for root in candidates {
            match Self::at(root) {
                Ok(found) => return Ok(found),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    unusable.get_or_insert(Error::Unreadable {
                        path: root.to_path_buf(),
                        root: root.to_path_buf(),
                        source: error,
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound && is_tracefs(root) => {
                    return Err(Error::NoEvents {
                        root: root.to_path_buf(),
                    });
                }
                Err(source) if given.is_some() => {
                    return Err(Error::NotTracefs {
                        root: root.to_path_buf(),
                        source,
                    });
                }
                Err(_) => {}
            }
        }
        if given.is_none()
            && let Ok(folder) = detached()
        {
            let root = PathBuf::from("tracefs");
            return Ok(Self { root, folder });
        }
        Err(unusable.unwrap_or(Error::NoTracefs))
    }

    /// The tracefs at this path. An empty folder, where nothing is mounted, is none.
    fn at(root: &Path) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let folder = open(root, flags, Mode::empty())?;
        openat(&folder, "events", flags, Mode::empty())?;
        Ok(Self {
            root: root.to_owned(),
            folder,
        })
    }

    /// A tracepoint of KVM's.
    pub(super) fn event(&self, name: &'static str) -> Result<Event, Error> {
        let format = self.read(name, "format")?;
        let id = self.read(name, "id")?;
        let path = self.path(name, "format");
        match id.trim().parse() {
            Ok(id) => Ok(Event { id, path, format }),
            Err(_) => Err(Error::Format {
                path: self.path(name, "id"),
                what: "is not a number".to_owned(),
            }),
        }
    }

    fn path(&self, event: &str, file: &str) -> PathBuf {
        self.root.join("events/kvm").join(event).join(file)
    }

    fn read(&self, event: &'static str, file: &str) -> Result<String, Error> {
        let path = Path::new("events/kvm").join(event).join(file);
        let read = || -> io::Result<String> {
            // What is named to us need not be a tracefs: a pipe is not waited for.
            let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
            let mut text = String::new();
            File::from(openat(self.folder.as_fd(), &path, flags, Mode::empty())?)
                .take(LONGEST)
                .read_to_string(&mut text)?;
            Ok(text)
        };
        read().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::NoTracepoint {
                event,
                root: self.root.clone(),
            },
            io::ErrorKind::PermissionDenied => Error::Unreadable {
                path: self.root.join(&path),
                root: self.root.clone(),
                source,
            },
            _ => Error::Format {
                path: self.root.join(&path),
                what: format!("cannot be read ({source})"),
            },
        })
    }
}

/// Whether it is a tracefs, be it an empty one.
fn is_tracefs(root: &Path) -> bool {
    statfs(root).is_ok_and(|found| found.filesystem_type() == TRACEFS_MAGIC)
}

/// A tracefs that is mounted nowhere and goes when it is closed (fsopen(2), fsmount(2)).
fn detached() -> io::Result<OwnedFd> {
    /// linux/include/uapi/linux/mount.h
    const FSOPEN_CLOEXEC: u32 = 1;
    const FSCONFIG_CMD_CREATE: u32 = 6;
    const FSMOUNT_CLOEXEC: u32 = 1;
    const TRACEFS: &CStr = c"tracefs";
    let none = std::ptr::null::<u8>();

    // SAFETY: the name is a C string that outlives the call; the other arguments are numbers.
    let context =
        descriptor(unsafe { libc::syscall(libc::SYS_fsopen, TRACEFS.as_ptr(), FSOPEN_CLOEXEC) })?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&context);
    // SAFETY: FSCONFIG_CMD_CREATE takes neither key nor value; the descriptor is open.
    let done = unsafe { libc::syscall(libc::SYS_fsconfig, fd, FSCONFIG_CMD_CREATE, none, none, 0) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    let attributes = libc::MOUNT_ATTR_RDONLY
        | libc::MOUNT_ATTR_NOSUID
        | libc::MOUNT_ATTR_NODEV
        | libc::MOUNT_ATTR_NOEXEC;
    // SAFETY: all arguments are numbers; the descriptor is open.
    descriptor(unsafe { libc::syscall(libc::SYS_fsmount, fd, FSMOUNT_CLOEXEC, attributes) })
}

/// What a system call returned, as a descriptor.
fn descriptor(returned: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(returned) {
        Ok(fd) if fd >= 0 => {
            // SAFETY: the kernel has just made this descriptor for us, and nobody else has it.
            Ok(unsafe { OwnedFd::from_raw_fd(fd) })
        }
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn fake(id: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let event = root.path().join("events/kvm/kvm_exit");
        fs::create_dir_all(&event).unwrap();
        fs::write(event.join("id"), id).unwrap();
        let line = "\tfield:unsigned int vcpu_id;\toffset:56;\tsize:4;\tsigned:0;\n";
        fs::write(event.join("format"), line).unwrap();
        root
    }

    #[test]
    fn events_are_read() {
        let root = fake("103\n");
        let event = Tracefs::find(Some(root.path())).unwrap();
        let event = event.event("kvm_exit").unwrap();
        assert_eq!(event.id, 103);
        assert_eq!(event.field("vcpu_id", &[4]).unwrap().offset, 56);
        assert!(event.starts_with(&["vcpu_id"]));
        assert!(!event.starts_with(&["vcpu_id", "rip"]));
        let message = event.field("info1", &[8]).unwrap_err().to_string();
        assert!(
            message.contains("/events/kvm/kvm_exit/format has no field `info1`"),
            "{message}"
        );
    }

    #[test]
    fn what_is_missing_is_said() {
        let root = fake("x");
        let tracefs = Tracefs::find(Some(root.path())).unwrap();
        let message = tracefs.event("kvm_entry").unwrap_err().to_string();
        assert!(
            message.contains("no tracepoint kvm:kvm_entry in /"),
            "{message}"
        );
        let message = tracefs.event("kvm_exit").unwrap_err().to_string();
        assert!(
            message.contains("/events/kvm/kvm_exit/id is not a number"),
            "{message}"
        );
        // Files without an end, and what is no file.
        let format = root.path().join("events/kvm/kvm_exit/format");
        fs::remove_file(&format).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &format).unwrap();
        assert!(tracefs.event("kvm_exit").is_err());
        fs::remove_file(&format).unwrap();
        nix::unistd::mkfifo(&format, Mode::S_IRUSR).unwrap();
        assert!(tracefs.event("kvm_exit").is_err());
        fs::remove_file(&format).unwrap();
        fs::write(&format, [0xFF]).unwrap();
        let message = tracefs.event("kvm_exit").unwrap_err().to_string();
        assert!(message.contains("/format cannot be read (") && !message.contains("root"));

        let empty = tempfile::tempdir().unwrap();
        let message = Tracefs::find(Some(empty.path())).unwrap_err().to_string();
        assert!(message.contains("is no tracefs"), "{message}");
    }
}
