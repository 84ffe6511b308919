//! Images that cannot be booted: one line that says why, status 66, and no guest.
// Helpers stop a test as its own assertions do.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use black_box::bzimage::{self, BzImage};
use black_box::code::{hello, hello_firmware, silent};
use black_box::elf::{BASE, CLASS, Elf, MACHINE, PHENTSIZE, PHNUM, PHOFF, SHOFF};
use black_box::{Run, arg, command, file, finish, guest, needs_kvm, run, skip, unprivileged};
use exitvisor::status::INPUT;
use nix::sys::stat::Mode;
use tempfile::{TempDir, tempdir};

const XEN: &[u8] = b"Xen\0";

/// Boots this file with 4 MiB of memory.
#[track_caller]
fn boot(kernel: &Path) -> Run {
    run(&["run", "--memory", "4M", "--kernel", arg(kernel)])
}

/// Expects that this file is refused in one line which names it.
#[track_caller]
fn refused(kernel: &Path, why: &str) {
    let run = boot(kernel).expect_status(INPUT);
    let run = run.expect_one_line(&["kernel", arg(kernel), why]);
    assert_eq!(run.stdout, "");
}

/// Expects that an image of these bytes is refused.
#[track_caller]
fn refused_bytes(bytes: &[u8], why: &str) {
    let folder = tempdir().unwrap();
    refused(&file(folder.path(), "image.elf", bytes), why);
}

#[track_caller]
fn refused_elf(elf: Elf, why: &str) {
    refused_bytes(&elf.bytes(), why);
}

/// The bytes of an image that boots, changed at one place.
fn patched(at: usize, with: &[u8]) -> Vec<u8> {
    let mut bytes = silent().bytes();
    bytes[at..at + with.len()].copy_from_slice(with);
    bytes
}

#[test]
fn a_hand_made_image_boots() {
    needs_kvm!("a_hand_made_image_boots");
    let folder = tempdir().unwrap();
    let run = boot(&hello().write(folder.path())).expect_status(0);
    assert_eq!(run.stdout, black_box::code::GREETING);
}

#[test]
fn missing() {
    refused(Path::new("/nowhere/kernel"), "No such file");
}

#[test]
fn not_a_file() {
    let folder = tempdir().unwrap();
    refused(folder.path(), "is not a regular file");
    let fifo = folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    refused(&fifo, "is not a regular file");
    refused(Path::new("/dev/zero"), "is not a regular file");
    let socket = folder.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    refused(&socket, "No such device");
}

#[test]
fn a_name_that_would_break_the_line() {
    let folder = tempdir().unwrap();
    let odd = folder.path().join("a\nb\x1b[31m");
    boot(&odd)
        .expect_status(INPUT)
        .expect_one_line(&["a\\nb\\u{1b}[31m"]);
}

#[test]
fn unreadable() {
    let folder = tempdir().unwrap();
    let image = silent().write(folder.path());
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&image, Permissions::from_mode(0o000)).unwrap();
    let Some(mut command) = unprivileged(&["run", "--kernel", arg(&image)]) else {
        return skip("unreadable", "only root can start exitvisor here");
    };
    let run = finish(command.spawn().unwrap()).expect_status(INPUT);
    run.expect_one_line(&["kernel", arg(&image), "cannot be read: Permission denied"]);
}

#[test]
fn other_formats() {
    refused_bytes(b"", "is empty");
    refused_bytes(
        b"M",
        "is neither an ELF file nor a bzImage (starts with 4d)",
    );
    refused_bytes(
        b"MZ\x90\0 a PE file",
        "is neither an ELF file nor a bzImage",
    );
    refused_bytes(b"\x7fELG", "is neither an ELF file nor a bzImage");
    refused_bytes(&[0; 70_000], "is neither an ELF file nor a bzImage");
    refused_bytes(&patched(CLASS, &[1]), "is a 32-bit ELF image");
    refused_bytes(&patched(CLASS, &[3]), "truncated or damaged");
    // EM_AARCH64, EM_386.
    refused_bytes(&patched(MACHINE, &[183, 0]), "machine 183, not for x86-64");
    refused_bytes(&patched(MACHINE, &[3, 0]), "machine 3, not for x86-64");
    // Big-endian, and of no byte order at all.
    refused_bytes(&patched(5, &[2]), "damaged");
    refused_bytes(&patched(5, &[0]), "damaged");
}

#[test]
fn truncated_anywhere() {
    let whole = silent().bytes();
    for len in 1..whole.len() {
        refused_bytes(&whole[..len], if len < 4 { "ELF" } else { "truncated" });
    }
}

/// A file may be as large as anybody likes without taking room: what its header makes of that
/// must not be believed.
#[test]
fn absurdly_large() {
    let folder = tempdir().unwrap();
    let sparse = |bytes: &[u8], size: u64| {
        let path = file(folder.path(), "image.elf", bytes);
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(size).unwrap();
        path
    };
    refused(&sparse(&silent().bytes(), 1 << 40), "has 1048576 MiB");
    // 0xFFFF program headers: the true number is `sh_info` of section header 0, here all ones.
    let mut bytes = patched(PHNUM, &[0xFF, 0xFF]);
    bytes[SHOFF..SHOFF + 8].copy_from_slice(&4096_u64.to_le_bytes());
    bytes.resize(4096 + 64, 0xFF);
    refused(&sparse(&bytes, 3 << 30), "damaged");
    // 0 section headers: the true number is its `sh_size`.
    let mut bytes = patched(SHOFF, &4096_u64.to_le_bytes());
    bytes.resize(4096 + 64, 0);
    bytes[4096 + 32..4096 + 40].copy_from_slice(&(40_u64 << 20).to_le_bytes());
    refused(&sparse(&bytes, 3 << 30), "damaged");
}

#[test]
fn the_guest_kernel_truncated() {
    let whole = fs::read(guest("guest-kernel")).unwrap();
    for eighth in 1..8 {
        refused_bytes(&whole[..whole.len() * eighth / 8], "truncated");
    }
}

#[test]
fn damaged_headers() {
    for at in [0, 60, u64::MAX, u64::MAX - 56] {
        refused_bytes(&patched(PHOFF, &at.to_le_bytes()), "");
    }
    for size in [0_u16, 1, 55, 57, u16::MAX] {
        refused_bytes(&patched(PHENTSIZE, &size.to_le_bytes()), "");
    }
    refused_bytes(&patched(PHNUM, &[0, 0]), "has no loadable segment");
    refused_bytes(&patched(PHNUM, &[1, 0]), "has no PVH note");
    refused_bytes(&patched(PHNUM, &300_u16.to_le_bytes()), "damaged");
    // PN_XNUM: the number stands in a section header, and there is none.
    refused_bytes(&patched(PHNUM, &[0xFF, 0xFF]), "");
}

#[test]
fn no_entry() {
    let bare = Elf::default().segment(BASE, &[0xF4]);
    refused_elf(bare.clone(), "has no PVH note");
    let other = bare.clone().note(b"GNU\0", 18, &[0; 4]);
    refused_elf(other, "has no PVH note");
    let other_type = bare.clone().note(XEN, 17, &[0; 4]);
    refused_elf(other_type, "has no PVH note");
    for len in 0..4 {
        let short = bare.clone().note(XEN, 18, &[0; 4][..len]);
        refused_elf(short, "PVH note too short");
    }
}

#[test]
fn absurd_entries() {
    let bare = Elf::default().segment(BASE, &[0xF4; 16]);
    for entry in [
        0,
        BASE as u32 - 1,
        BASE as u32 + 16,
        0x8000_0000,
        0xFFFF_FFFF,
    ] {
        refused_elf(bare.clone().entry(entry), "outside its own segments");
    }
}

#[test]
fn nothing_to_load() {
    let bare = Elf::default().entry(BASE as u32);
    refused_elf(bare.clone(), "has no loadable segment");
    let empty = bare.odd_segment(BASE, &[], 0, 0);
    refused_elf(empty, "has no loadable segment");
}

#[test]
fn impossible_segments() {
    let more = silent().odd_segment(2 * BASE, &[1; 64], 64, 63);
    refused_elf(more, "more bytes in the file than in memory");
    let longer = silent().odd_segment(2 * BASE, &[1; 64], 1 << 40, 1 << 41);
    refused_elf(longer, "beyond the end of the file");
    let wraps = silent().odd_segment(u64::MAX - 7, &[1; 64], 64, 64);
    refused_elf(wraps, "beyond the address space");
    let huge = silent().odd_segment(2 * BASE, &[1], 1, u64::MAX);
    refused_elf(huge, "beyond the address space");
    let endless_file = silent().odd_segment(2 * BASE, &[1], u64::MAX, u64::MAX);
    refused_elf(endless_file, "damaged");
}

#[test]
fn overlapping_segments() {
    let same = silent().segment(BASE, &[1]);
    refused_elf(same, "segments over each other, at 0x100000 and 0x100000");
    let within = silent().segment(BASE + 4, &[1]);
    refused_elf(within, "segments over each other, at 0x100000 and 0x100004");
    let zeros = Elf::default()
        .segment(BASE + 0x1000, &[0xF4])
        .odd_segment(BASE, &[1], 1, 0x1001)
        .entry(BASE as u32);
    refused_elf(zeros, "segments over each other, at 0x100000 and 0x101000");
}

#[test]
fn gates_that_cannot_be_armed() {
    let publishing = |gates: &[u64]| silent().gates(gates);
    let four = [BASE, BASE + 2, BASE + 4, BASE + 6];
    let five = [&four[..], &[BASE + 8]].concat();
    refused_elf(publishing(&five), "there are only 4 slots");
    refused_elf(publishing(&four).gates(&[1]), "there are only 4 slots");
    refused_elf(publishing(&[BASE, BASE]), "0x100000 stands there twice");
    refused_elf(publishing(&[1 << 63]), "is not canonical");
    let odd = silent().note(exit_abi::note::OWNER, exit_abi::note::CPUID_GATES, &[1; 9]);
    refused_elf(odd, "not a multiple of 8");
}

#[test]
fn segments_where_no_memory_is() {
    needs_kvm!("segments_where_no_memory_is");
    let at = |paddr| silent().segment(paddr, &[1; 16]);
    refused_elf(at(0), "at 0x0, below 1 MiB");
    refused_elf(at(0x6000), "at 0x6000, below 1 MiB");
    refused_elf(at(BASE - 16), "at 0xffff0, below 1 MiB");
    refused_elf(
        at((4 << 20) - 15),
        "outside guest memory (4 MiB): give more with --memory",
    );
    for paddr in [4 << 20, 0xC000_0000, 0xFEE0_0000, 1 << 32, 1 << 62] {
        refused_elf(at(paddr), "outside guest memory (4 MiB)");
    }
    let zeros = silent().odd_segment(2 * BASE, &[1], 1, 3 << 20);
    refused_elf(zeros, "outside guest memory (4 MiB)");
    let astronomic = silent().odd_segment(2 * BASE, &[1], 1, 1 << 62);
    refused_elf(astronomic, "outside guest memory (4 MiB)");
}

/// A folder with an image that boots.
fn booting() -> (TempDir, String) {
    let folder = tempdir().unwrap();
    let image = arg(&hello().write(folder.path())).to_owned();
    (folder, image)
}

#[test]
fn firmware() {
    let (folder, good) = booting();
    let missing = ["run", "--firmware", "/nowhere/fw", "--kernel", &good];
    let run = run(&missing).expect_status(INPUT);
    run.expect_one_line(&["firmware /nowhere/fw cannot be read: No such file"]);
    let text = file(folder.path(), "text", b"just text");
    for (bad, why) in [
        (text.as_path(), "is neither an ELF file nor a bzImage"),
        (folder.path(), "is not a regular file"),
        (Path::new("/dev/null"), "is not a regular file"),
    ] {
        let with = ["run", "--firmware", arg(bad), "--kernel", &good];
        let run = black_box::run(&with).expect_status(INPUT);
        let run = run.expect_one_line(&["firmware", arg(bad), why]);
        assert_eq!(run.stdout, "");
    }
}

/// Boots an image that is good, with options whose files are not.
#[track_caller]
fn beside_a_good_image(options: &[&str], why: &[&str]) {
    let run = run(&[&["run", "--memory", "4M"], options].concat()).expect_status(INPUT);
    let run = run.expect_one_line(why);
    assert_eq!(run.stdout, "", "the guest ran");
}

#[test]
fn the_kernel_behind_a_firmware() {
    needs_kvm!("the_kernel_behind_a_firmware");
    let folder = tempdir().unwrap();
    let firmware = hello_firmware().write(folder.path());
    let with = |kernel: &Path, why: &[&str]| {
        beside_a_good_image(
            &["--firmware", arg(&firmware), "--kernel", arg(kernel)],
            why,
        )
    };
    with(
        Path::new("/nowhere/kernel"),
        &["kernel /nowhere/kernel cannot be read: No such file"],
    );
    with(folder.path(), &["kernel", "is not a regular file"]);
    with(&file(folder.path(), "empty", b""), &["kernel", "is empty"]);
    let large = folder.path().join("large");
    // All above 1 MiB is just too little.
    for size in [(3 << 20) + 1, 4 << 20, 1 << 40] {
        File::create(&large).unwrap().set_len(size).unwrap();
        let size = format!("kernel of {size} bytes does not fit");
        with(&large, &[&size, "give more with --memory"]);
    }
}

#[test]
fn initrd() {
    needs_kvm!("initrd");
    let (folder, good) = booting();
    let with = |initrd: &Path, why: &[&str]| {
        beside_a_good_image(&["--kernel", &good, "--initrd", arg(initrd)], why)
    };
    with(
        Path::new("/nowhere/initrd"),
        &["initrd /nowhere/initrd cannot be read: No such file"],
    );
    with(folder.path(), &["initrd", "is not a regular file"]);
    with(&file(folder.path(), "empty", b""), &["initrd", "is empty"]);
    let large = folder.path().join("large");
    for size in [3 << 20, 1 << 40] {
        File::create(&large).unwrap().set_len(size).unwrap();
        let size = format!("initrd of {size} bytes does not fit");
        with(&large, &[&size, "give more with --memory"]);
    }
    File::create(&large).unwrap().set_len(2 << 20).unwrap();
    let fits = ["run", "--memory", "4M", "--kernel", &good, "--initrd"];
    run(&[&fits[..], &[arg(&large)]].concat()).expect_status(0);
}

#[test]
fn an_image_on_standard_input_is_not_waited_for() {
    let mut command = command(&["run", "--kernel", "/dev/stdin"]);
    command.stdin(std::process::Stdio::piped());
    let run = finish(command.spawn().unwrap()).expect_status(INPUT);
    run.expect_one_line(&["kernel /dev/stdin is not a regular file"]);
}

#[test]
fn a_bzimage_is_checked_whole() {
    let linux = BzImage::default;
    let cases = [
        (
            linux().with(bzimage::MAGIC, b"HDRS"),
            "boot sector without Linux's header",
        ),
        (
            linux().with(bzimage::VERSION, &[6, 2]),
            "protocol 2.06, older than 2.12",
        ),
        (linux().with(bzimage::LOADFLAGS, &[0]), "is a zImage"),
        (
            linux().with(bzimage::XLOADFLAGS, &[0x7E]),
            "without 64-bit entry",
        ),
        (
            linux().with(bzimage::BOOT_FLAG, &[0, 0]),
            "damaged header: no 55 aa",
        ),
        (
            linux().with(bzimage::SYSSIZE, &[0; 4]),
            "damaged header: a kernel of 0 bytes",
        ),
        (
            linux().with(bzimage::SYSSIZE, &[0xFF; 4]),
            "truncated: its header tells of",
        ),
        (
            linux().with(bzimage::SETUP_SECTS, &[0]),
            "truncated: its header tells of",
        ),
        (
            linux().with(bzimage::PAYLOAD_OFFSET, &[0xFF; 4]),
            "damaged header: its payload reaches beyond its end",
        ),
        (
            linux().with(bzimage::PREF_ADDRESS, &[0; 8]),
            "an address of 0x0",
        ),
        (
            linux().with(bzimage::PREF_ADDRESS, &[0xFF; 8]),
            "aligned to 0x200000",
        ),
    ];
    for (image, why) in cases {
        refused_bytes(&image.0, why);
    }
    for length in [0x210, 0x250, 1024, 5119] {
        refused_bytes(&linux().0[..length], "is truncated");
    }
    let folder = tempdir().unwrap();
    let kernel = linux().write(folder.path());
    let run = run(&["run", "--kernel", arg(&kernel), "--boot", "pvh"]).expect_status(INPUT);
    run.expect_one_line(&["has no PVH entry", "leave out --boot pvh"]);
    // In the place of a firmware, too.
    let silent = silent().write(folder.path());
    let options = ["run", "--kernel", arg(&silent), "--firmware", arg(&kernel)];
    let run = black_box::run(&options).expect_status(INPUT);
    run.expect_one_line(&["firmware", "has no PVH entry", "give it as --kernel"]);
}
