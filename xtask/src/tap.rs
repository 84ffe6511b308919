//! A TAP for a guest: a network of two, the host's end being this machine's kernel, in a network
//! namespace of its own here, or inside a lab.
//!
//! linux/Documentation/networking/tuntap.rst; netdevice(7).

use std::fs::{self, OpenOptions};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::libc::{
    AF_INET, IFF_NO_PI, IFF_TAP, IFF_UP, IFF_VNET_HDR, Ioctl, SIOCSIFADDR, SIOCSIFFLAGS,
    SIOCSIFNETMASK, TUNSETIFF, TUNSETPERSIST, ifreq, in_addr, ioctl, sockaddr, sockaddr_in,
};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

/// The name that our TAPs have.
pub(crate) const NAME: &str = "exitvisor0";
/// The host's end of the network; the guest's is 10.42.0.2.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 42, 0, 1);
const MASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);

/// Makes a TAP that stays when this process ends, with the host's address, up.
pub(crate) fn make(name: &str) -> anyhow::Result<()> {
    let mut request = request(name)?;
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun");
    let tun = tun.context("cannot open /dev/net/tun")?;
    let flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).unwrap_or(0);
    ask(&tun, TUNSETIFF, &mut request, "make it")?;
    // SAFETY: `tun` is open, and TUNSETPERSIST takes a number, not a pointer.
    if unsafe { ioctl(tun.as_raw_fd(), TUNSETPERSIST, 1) } < 0 {
        bail!("the TAP {name} does not stay: {}", nix::Error::last());
    }
    // Or this machine's kernel looks for neighbours and routers as soon as it is on: packets that
    // nobody asked for. A kernel without IPv6 has no such file.
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
    // Any socket will do.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("cannot open a socket")?;
    for (code, address, what) in [
        (SIOCSIFADDR, ADDRESS, "give it its address"),
        (SIOCSIFNETMASK, MASK, "give it its network"),
    ] {
        request.ifr_ifru.ifru_addr = socket_address(address);
        ask(&socket, code, &mut request, what)?;
    }
    request.ifr_ifru.ifru_flags = i16::try_from(IFF_UP).unwrap_or(0);
    ask(&socket, SIOCSIFFLAGS, &mut request, "switch it on")
}

/// A request about the interface of this name.
fn request(name: &str) -> anyhow::Result<ifreq> {
    // SAFETY: an ifreq is bytes, numbers and pointers, all of which may be zero.
    let mut request: ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    if name.is_empty() || name.len() >= request.ifr_name.len() || !name.is_ascii() {
        bail!("`{name}` cannot be the name of a TAP: 1 to 15 letters and digits");
    }
    for (to, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = i8::from_ne_bytes([byte]);
    }
    Ok(request)
}

fn ask(file: &impl AsRawFd, code: Ioctl, request: &mut ifreq, what: &str) -> anyhow::Result<()> {
    // SAFETY: the file is open, and each of the codes that this module asks for reads or writes one
    // ifreq, which `request` is.
    if unsafe { ioctl(file.as_raw_fd(), code, &raw mut *request) } < 0 {
        bail!("a TAP: cannot {what}: {}", nix::Error::last());
    }
    Ok(())
}

fn socket_address(address: Ipv4Addr) -> sockaddr {
    let address = sockaddr_in {
        sin_family: u16::try_from(AF_INET).unwrap_or(0),
        sin_port: 0,
        sin_addr: in_addr {
            s_addr: u32::from_ne_bytes(address.octets()),
        },
        sin_zero: [0; 8],
    };
    // SAFETY: both are 16 bytes without padding, and any bytes make a sockaddr.
    unsafe { std::mem::transmute(address) }
}

/// Takes this process, and what it becomes, into a network namespace of its own with a TAP in it. Nothing
/// of the machine's network is changed, and neither it nor the guest reaches the other.
///
/// Who is not root takes a user namespace too, in which it is.
pub(crate) fn in_namespace(name: &str) -> anyhow::Result<()> {
    let (user, group) = (geteuid(), getegid());
    let mut flags = CloneFlags::CLONE_NEWNET;
    if !user.is_root() {
        flags |= CloneFlags::CLONE_NEWUSER;
    }
    let mut tries = 0;
    while let Err(error) = unshare(flags) {
        // A process of several threads has no user namespace made for it (unshare(2)), and a
        // spinner's thread takes a moment to end.
        tries += 1;
        if error != nix::Error::EINVAL || tries > 50 {
            return Err(error).context("cannot have a network namespace");
        }
        thread::sleep(Duration::from_millis(10));
    }
    if !user.is_root() {
        // user_namespaces(7): the group's map may be written once setgroups is denied.
        for (file, text) in [
            ("setgroups", "deny".to_owned()),
            ("uid_map", format!("0 {user} 1")),
            ("gid_map", format!("0 {group} 1")),
        ] {
            let file = format!("/proc/self/{file}");
            fs::write(&file, text).with_context(|| format!("cannot write {file}"))?;
        }
    }
    make(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert!(request("exitvisor0").is_ok() && request("a23456789012345").is_ok());
        assert!(request("").is_err() && request("a234567890123456").is_err());
    }

    #[test]
    fn a_tap_in_a_namespace() {
        use std::os::unix::process::CommandExt;
        let mut command = std::process::Command::new("cat");
        command.arg("/proc/net/fib_trie");
        let other = |error: anyhow::Error| std::io::Error::other(format!("{error:#}"));
        // SAFETY: between fork and exec the closure allocates, which glibc allows the child of a
        // process with threads, and takes no lock of this program's.
        unsafe { command.pre_exec(move || in_namespace(NAME).map_err(other)) };
        match command.output() {
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stdout);
                assert!(text.contains("10.42.0.1"), "{text}");
            }
            Err(error) => {
                eprintln!("skipped: a_tap_in_a_namespace: no namespace or TAP here: {error}")
            }
        }
    }

    #[test]
    fn addresses_are_in_network_order() {
        let address = socket_address(ADDRESS);
        let bytes = address.sa_data.map(|byte| byte.to_ne_bytes()[0]);
        assert_eq!(bytes[..6], [0, 0, 10, 42, 0, 1]);
    }
}
