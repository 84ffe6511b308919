//! An `exitvisor` with less than everything: capabilities, system calls, mounts, process ids. All
//! but the seccomp filter want root.

use std::ffi::CString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::libc;

/// linux/include/uapi/linux/capability.h
pub const CAP_SYS_ADMIN: u32 = 21;
/// As above.
pub const CAP_PERFMON: u32 = 38;
/// As above.
pub const CAP_BPF: u32 = 39;

/// What a system call that is not one of `nix`'s returned.
fn done(returned: libc::c_long) -> io::Result<()> {
    if returned < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Starts it without these capabilities: root gets none back that is not in the bounding set.
pub fn without_capabilities(command: &mut Command, capabilities: &'static [u32]) {
    let drop = move || {
        for capability in capabilities {
            // SAFETY: PR_CAPBSET_DROP takes a number.
            done(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, *capability) }.into())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls only.
    unsafe { command.pre_exec(drop) };
}

/// Starts it where this system call is not permitted (seccomp(2), as containers do).
pub fn without_call(command: &mut Command, number: libc::c_long) {
    let confine = move || {
        let op = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter {
            code: code as u16,
            jt,
            jf,
            k,
        };
        let refusal = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
        let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
        let jump = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        let end = libc::BPF_RET | libc::BPF_K;
        // The number is the first word of struct seccomp_data.
        let mut filter = [
            op(load, 0, 0, 0),
            op(jump, number as u32, 0, 1),
            op(end, refusal, 0, 0),
            op(end, libc::SECCOMP_RET_ALLOW, 0, 0),
        ];
        let program = libc::sock_fprog {
            len: filter.len() as u16,
            filter: filter.as_mut_ptr(),
        };
        // SAFETY: numbers; `program` and what it names outlive the call.
        unsafe {
            done(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).into())?;
            let mode = libc::SECCOMP_SET_MODE_FILTER;
            done(libc::syscall(
                libc::SYS_seccomp,
                mode,
                0,
                &raw const program,
            ))
        }
    };
    // SAFETY: between fork and exec the closure makes system calls only.
    unsafe { command.pre_exec(confine) };
}

/// Makes the mounts of this process its own: what changes is not seen elsewhere.
fn own_mounts() -> io::Result<()> {
    let flags = libc::MS_REC | libc::MS_PRIVATE;
    let none = std::ptr::null();
    // SAFETY: unshare takes a number; mount(2) ignores source, type and data with MS_PRIVATE.
    unsafe {
        done(libc::unshare(libc::CLONE_NEWNS).into())?;
        done(libc::mount(none, c"/".as_ptr(), none, flags, none.cast()).into())
    }
}

/// Starts it where nothing is mounted at these places.
pub fn without_mounts(command: &mut Command, places: &[&str]) {
    let places: Vec<CString> = places
        .iter()
        .filter_map(|p| CString::new(*p).ok())
        .collect();
    let unmount = move || {
        own_mounts()?;
        for place in &places {
            // SAFETY: a C string that outlives the call. As often as something is mounted there.
            while unsafe { libc::umount2(place.as_ptr(), libc::MNT_DETACH) } == 0 {}
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls only.
    unsafe { command.pre_exec(unmount) };
}

/// Starts it in a PID namespace of its own, where it is process 1 and has a /proc to match.
pub fn in_pid_namespace(command: &mut Command) {
    let enter = || {
        own_mounts()?;
        let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        let proc = c"proc".as_ptr();
        // SAFETY: the strings are C strings. fork: this is a single-threaded child already; the
        // parent of the two only waits, and ends without running anything of Rust's.
        unsafe {
            done(libc::unshare(libc::CLONE_NEWPID).into())?;
            match libc::fork() {
                -1 => Err(io::Error::last_os_error()),
                0 => {
                    done(libc::mount(proc, c"/proc".as_ptr(), proc, flags, std::ptr::null()).into())
                }
                child => {
                    // Whoever started us waits for the end of what it has given us.
                    libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0);
                    let mut status = 0;
                    while libc::waitpid(child, &raw mut status, 0) < 0
                        && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
                    {
                    }
                    let ended = libc::WIFEXITED(status);
                    libc::_exit(if ended {
                        libc::WEXITSTATUS(status)
                    } else {
                        128
                    })
                }
            }
        }
    };
    // SAFETY: as the closure says: system calls only, no memory that a lock guards.
    unsafe { command.pre_exec(enter) };
}
