//! The firmware: boots through it, and what it refuses to boot.
// Helpers stop a test as its own assertions do.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use black_box::code::{hello, hello_firmware, silent};
use black_box::elf::{BASE, CLASS, Elf, FIRMWARE_BASE, MACHINE};
use black_box::{Run, arg, file, guest, host_has, needs_kvm, run};
use exit_abi::{note, status::firmware as status};
use exitvisor::profile::Profile;
use exitvisor::status::{CRASH, INPUT, TRIPLE_FAULT};
use tempfile::tempdir;

/// Profiles a kernel behind the firmware; its console is on standard error.
#[track_caller]
fn profile(kernel: &str, args: &[&str]) -> Run {
    let (firmware, kernel) = (guest("firmware"), guest(kernel));
    let images = ["--firmware", arg(&firmware), "--kernel", arg(&kernel)];
    run(&[&["profile", "--format", "json"], &images[..], args].concat())
}

/// Boots this file as the kernel behind the firmware; the console is on standard output.
#[track_caller]
fn boot(kernel: &Path, args: &[&str]) -> Run {
    let firmware = guest("firmware");
    let images = ["run", "--firmware", arg(&firmware), "--kernel", arg(kernel)];
    run(&[&images[..], args].concat())
}

/// Expects that the firmware refuses a kernel of these bytes in one line, in 4 MiB.
#[track_caller]
fn refused(kernel: &[u8], status: u32, why: &str) {
    refused_in("4M", kernel, status, why);
}

#[track_caller]
fn refused_in(memory: &str, kernel: &[u8], status: u32, why: &str) {
    let folder = tempdir().unwrap();
    let kernel = file(folder.path(), "kernel.elf", kernel);
    let run = boot(&kernel, &["--memory", memory]);
    let run = run.expect_status(u8::try_from(status).unwrap());
    assert_eq!(run.stdout.lines().count(), 1, "{run:#?}");
    assert!(run.stdout.starts_with("firmware: "), "{run:#?}");
    assert!(run.stdout.contains(why), "lacks {why:?}: {run:#?}");
}

fn names(profile: &Profile) -> Vec<&str> {
    profile.milestones.iter().map(|m| m.name.as_str()).collect()
}

#[test]
fn it_is_small() {
    let bytes = fs::metadata(guest("firmware")).unwrap().len();
    assert!(bytes <= 64 << 10, "{bytes} bytes");
}

#[test]
fn milestones_are_complete_and_in_order() {
    needs_kvm!("milestones_are_complete_and_in_order");
    let through = profile("guest-kernel", &[]).expect_status(0).profile();
    assert_eq!(through.machine.boot, "PVH via firmware");
    let kernel = guest("guest-kernel");
    let alone = ["profile", "--format", "json", "--kernel", arg(&kernel)];
    let alone = run(&alone).expect_status(0).profile();
    assert_eq!(alone.machine.boot, "PVH");

    let before = ["reset", "firmware entry", "long mode", "kernel loaded"];
    assert_eq!(names(&through)[..4], before);
    assert_eq!(names(&through)[4..], names(&alone)[1..]);
    for pair in through.milestones.windows(2) {
        assert!(pair[0].tsc <= pair[1].tsc && pair[0].nanos <= pair[1].nanos);
        assert!(pair[0].accounts.total <= pair[1].accounts.total);
    }
    assert_eq!(through.total.other, 0);
}

#[test]
fn an_exception_in_it_is_printed() {
    needs_kvm!("an_exception_in_it_is_printed");
    let run = profile("guest-kernel", &["--cmdline", "firmware-crash"]).expect_status(CRASH);
    let run = run.expect_stderr(&["firmware crash: exception 6 (#UD)", "rip 0x2", "rflags"]);
    let profile = run.profile();
    assert_eq!(profile.milestones.last().unwrap().name, "long mode");
    assert!(profile.end.cut_short);
}

#[test]
fn every_way_to_boot() {
    needs_kvm!("every_way_to_boot");
    let (firmware, kernel) = (guest("firmware"), guest("guest-kernel"));
    for firmware in [arg(&firmware), "none"] {
        for cpus in [1, 2, 4] {
            for layout in ["classic", "reversed"] {
                let count = cpus.to_string();
                let options = ["--cpus", &count, "--leaves", layout, "--timeout", "30s"];
                let images = ["--firmware", firmware, "--kernel", arg(&kernel)];
                let run = run(&[
                    &["profile", "--format", "json"],
                    &images[..],
                    &options[..],
                    &["--cmdline", "workload=pio:50"],
                ]
                .concat());
                let profile = run.expect_status(0).profile();
                let smp = profile.milestones.iter().filter(|m| m.name == "SMP");
                assert_eq!(smp.count(), cpus, "one for each CPU");
                let with = names(&profile).contains(&"kernel loaded");
                assert_eq!(with, firmware != "none");
                let io = |name: &str| {
                    let at = profile.milestones.iter().find(|m| m.name == name).unwrap();
                    let io = at.accounts.reasons.iter().find(|r| r.reason == 30);
                    io.map_or(0, |r| r.exits - r.own)
                };
                assert_eq!(
                    io("workload") - io("devices"),
                    50,
                    "{firmware} {cpus} {layout}"
                );
            }
        }
    }
}

#[test]
fn the_kernel_has_all_its_gates() {
    needs_kvm!("the_kernel_has_all_its_gates");
    // Registers until there is no room: four slots, one of which its note has taken.
    profile("gates", &[]).expect_status(0);
    profile("leaves", &[]).expect_status(0);
    profile(
        "guest-kernel",
        &["--cmdline", "exits=leaves hypercall gate=port"],
    )
    .expect_status(0);
}

#[test]
fn both_layouts_and_a_log_of_its_own() {
    needs_kvm!("both_layouts_and_a_log_of_its_own");
    for (layout, leaf) in [("classic", "0x4FFFFFFF"), ("reversed", "0x4FFFFFFC")] {
        let args = [
            "--leaves",
            layout,
            "--cmdline",
            "firmware-log log=each exits=leaves",
        ];
        let run = profile("guest-kernel", &args).expect_status(0);
        let line = |name: &str| {
            let start = format!("[exit-log] {name:<12} CPUID({leaf}), exits= ");
            let line = run.stderr.lines().find_map(|l| l.strip_prefix(&start));
            let exits = line
                .and_then(|l| l.split(',').next())
                .map(str::parse::<u64>);
            exits
                .unwrap_or_else(|| panic!("no {start:?}: {run:#?}"))
                .unwrap()
        };
        assert!(0 < line("firmware") && line("firmware") < line("kernel entry"));
        let own = |p: &Profile| p.total.reasons.iter().map(|r| r.own).sum::<u64>();
        assert!(own(&run.profile()) > 0);
    }
    let quiet = profile("guest-kernel", &[]).expect_status(0);
    assert!(!quiet.stderr.contains("firmware"), "{quiet:#?}");
}

#[test]
fn what_the_command_line_asks_for() {
    needs_kvm!("what_the_command_line_asks_for");
    let args = [
        "--cmdline",
        "workload=cpuid:100,pio:500,mmio:100,hlt:20 queries=3 exits=leaves",
        "--timeout",
        "30s",
    ];
    let profile_of = profile("guest-kernel", &args).expect_status(0).profile();
    let exits_at = |name: &str, reason: u8| {
        let at = profile_of
            .milestones
            .iter()
            .find(|m| m.name == name)
            .unwrap();
        let of = at.accounts.reasons.iter().find(|r| r.reason == reason);
        of.map_or(0, |r| r.exits - r.own)
    };
    assert_eq!(exits_at("workload", 30) - exits_at("interrupts", 30), 500);
    profile("guest-kernel", &["--cmdline", "exit=42"]).expect_status(42);
    profile("guest-kernel", &["--cmdline", "crash=panic"]).expect_status(82);
    profile("guest-kernel", &["--cmdline", "workload=nonsense:3"]).expect_status(3);
}

#[test]
fn many_memory_sizes() {
    needs_kvm!("many_memory_sizes");
    for mib in [4, 32, 64, 1024, 1028, 3072, 5120] {
        if host_has("many_memory_sizes", mib) {
            profile("guest-kernel", &["--memory", &format!("{mib}M")]).expect_status(0);
        }
    }
}

#[test]
fn modules_are_passed_on_without_the_kernel() {
    needs_kvm!("modules_are_passed_on_without_the_kernel");
    let folder = tempdir().unwrap();
    let initrd = file(folder.path(), "initrd", b"12345678 and more");
    let alone = boot(&guest("handed"), &[]).expect_status(0);
    // As without a firmware: an empty initrd, then the device tree.
    let lines: Vec<&str> = alone.stdout.lines().collect();
    assert_eq!(lines[0], "modules: 2");
    assert!(
        lines[1].starts_with("module 'initrd': 0 bytes"),
        "{lines:?}"
    );
    assert!(lines[2].starts_with("module 'dtb': "), "{lines:?}");
    let with = boot(&guest("handed"), &["--initrd", arg(&initrd)]).expect_status(0);
    let first = with.stdout.lines().nth(1).unwrap_or_default();
    assert!(
        first.ends_with(": 17 bytes, 0x3837363534333231"),
        "{with:#?}"
    );
    assert!(!with.stdout.contains("0x00010102464c457f"), "{with:#?}");
}

#[test]
fn nothing_of_it_is_needed_once_the_kernel_runs() {
    needs_kvm!("nothing_of_it_is_needed_once_the_kernel_runs");
    let profile = profile("rewriter", &[]).expect_status(0).profile();
    assert_eq!(profile.milestones.last().unwrap().name, "done");
}

#[test]
fn a_kernel_that_wrecks_its_page_tables() {
    needs_kvm!("a_kernel_that_wrecks_its_page_tables");
    let run = profile("rewriter", &["--cmdline", "1"]).expect_status(TRIPLE_FAULT);
    assert!(run.profile().end.detail.contains("triple fault on vCPU 0"));
}

#[test]
fn the_kernels_names_for_milestones_are_known() {
    needs_kvm!("the_kernels_names_for_milestones_are_known");
    // mov dx, 0xE00; mov eax, 0x100; out dx, eax; then the end: mov dx, 0xE08; mov al, 0; out dx, al
    let code = [
        0x66, 0xBA, 0x00, 0x0E, 0xB8, 0x00, 0x01, 0x00, 0x00, 0xEF, //
        0x66, 0xBA, 0x08, 0x0E, 0xB0, 0x00, 0xEE, 0xF4,
    ];
    let name = b"\0\x01\0\0a step of mine";
    let kernel = Elf::of_code(&code).note(note::OWNER, note::MILESTONE_NAME, name);
    let folder = tempdir().unwrap();
    let (firmware, kernel) = (guest("firmware"), kernel.write(folder.path()));
    let images = ["--firmware", arg(&firmware), "--kernel", arg(&kernel)];
    let run = run(&[&["profile", "--format", "json"], &images[..]].concat());
    let profile = run.expect_status(0).profile();
    assert_eq!(names(&profile).last(), Some(&"a step of mine"));
}

#[test]
fn a_hand_made_kernel_boots() {
    needs_kvm!("a_hand_made_kernel_boots");
    let folder = tempdir().unwrap();
    let kernel = hello().write(folder.path());
    let run = boot(&kernel, &["--memory", "2M"]).expect_status(0);
    assert_eq!(run.stdout, black_box::code::GREETING);
}

#[test]
fn a_firmware_outside_its_window_is_refused() {
    needs_kvm!("a_firmware_outside_its_window_is_refused");
    let folder = tempdir().unwrap();
    let kernel = hello().write_as(folder.path(), "kernel.elf");
    let window = "outside 0x20000..0x80000, the place of a firmware";
    for odd in [
        hello(),
        hello_firmware().segment(BASE, &[0; 16]),
        hello_firmware().segment(FIRMWARE_BASE - 1, &[0]),
        hello_firmware().odd_segment(FIRMWARE_BASE + 0x1000, &[0], 1, 0x5_F001),
        hello_firmware().segment(0x6000, &[0; 16]),
    ] {
        let firmware = odd.write_as(folder.path(), "firmware.elf");
        let images = ["--firmware", arg(&firmware), "--kernel", arg(&kernel)];
        let run = run(&[&["run"], &images[..]].concat()).expect_status(INPUT);
        let run = run.expect_one_line(&["firmware", arg(&firmware), window]);
        assert_eq!(run.stdout, "");
    }
    let firmware = guest("firmware");
    let as_kernel = run(&["run", "--kernel", arg(&firmware)]).expect_status(INPUT);
    as_kernel.expect_one_line(&["below 1 MiB"]);
}

#[test]
fn kernels_of_other_formats() {
    needs_kvm!("kernels_of_other_formats");
    refused(
        b"M",
        status::KERNEL_FORMAT,
        "neither an ELF file nor a bzImage",
    );
    refused(
        b"MZ\x90\0 a PE file",
        status::KERNEL_FORMAT,
        "starts with 4d 5a",
    );
    refused(
        &[0; 70_000],
        status::KERNEL_FORMAT,
        "neither an ELF file nor a bzImage",
    );
    let with = |at: usize, byte: u8| {
        let mut bytes = silent().bytes();
        bytes[at] = byte;
        bytes
    };
    refused(&with(CLASS, 1), status::KERNEL_FORMAT, "32-bit");
    refused(&with(CLASS, 9), status::KERNEL_FORMAT, "class 9");
    refused(&with(MACHINE, 3), status::KERNEL_FORMAT, "machine 3");
}

#[test]
fn damaged_kernels() {
    needs_kvm!("damaged_kernels");
    let whole = fs::read(guest("guest-kernel")).unwrap();
    for eighth in 1..8 {
        let part = &whole[..whole.len() * eighth / 8];
        refused_in("64M", part, status::KERNEL_DAMAGED, "truncated");
    }
    let whole = silent().bytes();
    for length in [5, 16, 63, 64, 100, whole.len() - 1] {
        refused(&whole[..length], status::KERNEL_DAMAGED, "truncated");
    }
    let more = silent().odd_segment(2 * BASE, &[1; 64], 64, 63);
    let why = "more bytes in the file than in memory";
    refused(&more.bytes(), status::KERNEL_DAMAGED, why);
    let wraps = silent().odd_segment(u64::MAX - 7, &[1; 64], 64, 64);
    refused(&wraps.bytes(), status::KERNEL_DAMAGED, "address space");
    let endless = silent().odd_segment(2 * BASE, &[1], u64::MAX, u64::MAX);
    refused(&endless.bytes(), status::KERNEL_DAMAGED, "end of the file");
}

#[test]
fn kernels_without_an_entry() {
    needs_kvm!("kernels_without_an_entry");
    let bare = Elf::default().segment(BASE, &[0xF4; 16]);
    refused(&bare.bytes(), status::NO_PVH_NOTE, "no PVH note");
    for entry in [
        0,
        BASE as u32 - 1,
        BASE as u32 + 16,
        FIRMWARE_BASE as u32,
        u32::MAX,
    ] {
        let odd = bare.clone().entry(entry).bytes();
        refused(&odd, status::KERNEL_ENTRY, "outside its own segments");
    }
    let empty = Elf::default().entry(BASE as u32).bytes();
    refused(&empty, status::KERNEL_ENTRY, "outside its own segments");
}

#[test]
fn segments_where_they_must_not_be() {
    needs_kvm!("segments_where_they_must_not_be");
    let with = |paddr, size| silent().odd_segment(paddr, &[1], 1, size).bytes();
    // The interrupt vectors, start info, module list, command line, the firmware, and up to 1 MiB.
    for paddr in [0, 0x6000, 0x7800, 0x1_0000, FIRMWARE_BASE, BASE - 1] {
        refused(&with(paddr, 1), status::TOO_LOW, "below 1 MiB");
    }
    refused(&with(BASE - 16, 2 << 20), status::TOO_LOW, "below 1 MiB");
    for (paddr, size) in [
        (4 << 20, 1),
        ((4 << 20) - 1, 2),
        (2 * BASE, 1 << 62),
        (0xC000_0000, 1),
        (0xFEE0_0000, 1),
        (1 << 32, 1),
    ] {
        refused(&with(paddr, size), status::OUTSIDE_RAM, "outside RAM");
    }
    if host_has("segments_where_they_must_not_be", 5120) {
        let beyond = with(1 << 32, 4096);
        refused_in("5G", &beyond, status::OUTSIDE_RAM, "beyond 4 GiB");
    }
    let same = silent().segment(BASE, &[1]).bytes();
    refused(&same, status::OVERLAP, "over each other");
    let within = with(BASE, 0x1000);
    refused(&within, status::OVERLAP, "at 0x100000 and 0x100000");
}

#[test]
fn too_little_memory_for_kernel_and_file() {
    needs_kvm!("too_little_memory_for_kernel_and_file");
    // The file lies in the last page or pages.
    let large = |size| silent().odd_segment(2 * BASE, &[1], 1, size).bytes();
    refused(
        &large(2 << 20),
        status::OVER_MODULE,
        "over the module at 0x3ff000",
    );
    refused(&large((2 << 20) - 4095), status::OVER_MODULE, "--memory");
    let folder = tempdir().unwrap();
    let fits = file(folder.path(), "fits", &large((2 << 20) - 4096));
    boot(&fits, &["--memory", "4M"]).expect_status(0);
    let small = Elf::default().odd_segment(BASE, &[0xF4], 1, 1 << 20);
    let small = small.entry(BASE as u32).bytes();
    refused_in("2M", &small, status::OVER_MODULE, "over the module");
}

#[test]
fn gates_that_cannot_be_armed() {
    needs_kvm!("gates_that_cannot_be_armed");
    let publishing = |gates: &[u64]| {
        let code = [0xEE, 0x0F, 0xA2, 0x0F, 0xA2, 0x0F, 0x01, 0xC1];
        silent().segment(2 * BASE, &code).gates(gates)
    };
    let folder = tempdir().unwrap();
    let good = publishing(&[2 * BASE + 1, 2 * BASE + 3]);
    let call = (2 * BASE + 5).to_le_bytes();
    let good = good.note(note::OWNER, note::HYPERCALL_GATES, &call);
    boot(&good.write(folder.path()), &[]).expect_status(0);
    let at = 2 * BASE + 1;
    for (gates, why) in [
        (&[0, 1, 2, 3, 4][..], "only 4 slots"),
        (&[at, at], "Duplicate"),
        (&[2 * BASE], "NotTheInstruction"),
        (&[1 << 40], "BadAddress"),
        (&[1 << 63], "BadAddress"),
    ] {
        refused(&publishing(gates).bytes(), status::GATES, why);
    }
    let odd = silent().note(note::OWNER, note::CPUID_GATES, &[1; 9]);
    refused(&odd.bytes(), status::GATES, "multiple of 8");
}
