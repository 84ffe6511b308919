//! What the guest is told of its machine: accepted by `iasl` and `dtc`, found through the hand-over.
// Helpers stop a test as its own assertions do.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use black_box::code::{GREETING, hello};
use black_box::elf::Elf;
use black_box::{arg, file, needs_kvm, run, skip};
use exitvisor::status::{OUTPUT, USAGE};
use tempfile::{TempDir, tempdir};

/// Whether a program can be started; the test is skipped where it cannot.
fn has(test: &str, program: &str) -> bool {
    let mut probe = Command::new(program);
    probe.arg("-v").stdout(Stdio::null()).stderr(Stdio::null());
    let found = probe.status().is_ok();
    if !found {
        skip(test, &format!("{program} is not installed"));
    }
    found
}

/// Runs a tool in a folder; answers everything that it says.
#[track_caller]
fn tool(folder: &Path, program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .current_dir(folder)
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {said}");
    said
}

/// Boots a guest that greets, and dumps both descriptions.
#[track_caller]
fn dumped(options: &[&str]) -> TempDir {
    let folder = tempdir().unwrap();
    let image = hello().write(folder.path());
    let (acpi, dtb) = (folder.path().join("acpi"), folder.path().join("m.dtb"));
    let args = ["run", "--kernel", arg(&image), "--dump-acpi", arg(&acpi)];
    let run = run(&[&args[..], &["--dump-dtb", arg(&dtb)], options].concat()).expect_status(0);
    assert_eq!(run.stdout, GREETING, "the VM runs as usual");
    assert_eq!(
        black_box::names(&acpi),
        ["apic.dat", "dsdt.dat", "facp.dat", "rsdp.dat", "xsdt.dat"]
    );
    folder
}

#[test]
fn iasl_accepts_the_tables() {
    needs_kvm!("iasl_accepts_the_tables");
    if !has("iasl_accepts_the_tables", "iasl") {
        return;
    }
    for cpus in ["1", "4"] {
        let folder = dumped(&["--cpus", cpus]);
        let acpi = folder.path().join("acpi");
        // Not the RSDP, which is no table to iasl: it has another header.
        for table in ["xsdt", "facp", "apic", "dsdt"] {
            let (dat, dsl) = (format!("{table}.dat"), format!("{table}.dsl"));
            let said = tool(&acpi, "iasl", &["-d", &dat]);
            assert!(
                !said.contains("Warning") && !said.contains("rror:"),
                "{said}"
            );
            let said = tool(&acpi, "iasl", &[&dsl]);
            let fine = "Compilation successful. 0 Errors, 0 Warnings, 0 Remarks";
            assert!(said.contains(fine), "{table}: {said}");
            // What iasl makes of its own disassembly is our table, but for its header.
            let read = |name: &str| fs::read(acpi.join(name)).unwrap();
            let (ours, theirs) = (read(&dat), read(&format!("{table}.aml")));
            assert_eq!(ours.len(), theirs.len(), "{table}");
            assert_eq!(ours[36..], theirs[36..], "{table}");
        }
    }
}

#[test]
fn dtc_accepts_the_tree() {
    needs_kvm!("dtc_accepts_the_tree");
    if !has("dtc_accepts_the_tree", "dtc") {
        return;
    }
    for options in [&[][..], &["--cpus", "4", "--cmdline", "log=each"]] {
        let folder = dumped(options);
        let said = tool(folder.path(), "dtc", &["-I", "dtb", "-O", "dts", "m.dtb"]);
        assert!(
            !said.contains("Warning") && !said.contains("ERROR"),
            "{said}"
        );
        assert!(said.starts_with("/dts-v1/;"), "{said}");
    }
}

/// Every line of the document's excerpt is in the tree that is dumped, in order.
#[test]
fn the_documented_tree_is_the_real_one() {
    needs_kvm!("the_documented_tree_is_the_real_one");
    if !has("the_documented_tree_is_the_real_one", "dtc") {
        return;
    }
    let document = include_str!("../../docs/platform.md");
    let (_, rest) = document.split_once("```dts\n").unwrap();
    let (excerpt, _) = rest.split_once("```").unwrap();
    let folder = dumped(&[]);
    let dts = tool(folder.path(), "dtc", &["-I", "dtb", "-O", "dts", "m.dtb"]);
    // Other versions of dtc write numbers with other widths.
    let plain = |line: &str| {
        let line = line.trim().replace("<0x0", "<0x").replace(" 0x0", " 0x");
        // The exit page's size is that of the records of who writes it: another on software KVM.
        match line.split_once(" 0xd1000000 ") {
            Some((start, _)) => format!("{start} 0xd1000000"),
            None => line,
        }
    };
    let mut lines = dts.lines().map(plain);
    for line in excerpt.lines().map(plain) {
        assert!(lines.any(|real| real == line), "{line:?} is not in {dts}");
    }
}

#[test]
fn dumps_that_cannot_be_written() {
    let folder = tempdir().unwrap();
    let image = hello().write(folder.path());
    let plain = file(folder.path(), "plain", b"");
    let beneath = format!("{}/beneath", arg(&plain));
    for (option, path, why) in [
        (
            "--dump-acpi",
            "/nowhere/tables",
            "/nowhere/tables: no such file",
        ),
        ("--dump-acpi", arg(&plain), "plain"),
        ("--dump-acpi", &beneath, "not a directory"),
        (
            "--dump-dtb",
            "/nowhere/m.dtb",
            "there is no directory /nowhere",
        ),
        ("--dump-dtb", arg(folder.path()), "is a directory"),
    ] {
        for command in ["run", "profile"] {
            let args = [command, "--kernel", arg(&image), option, path];
            let run = run(&args).expect_status(OUTPUT);
            let run = run.expect_one_line(&["cannot write", why]);
            assert_eq!(run.stdout, "", "the guest ran");
        }
    }
    for option in ["--dump-acpi", "--dump-dtb"] {
        let args = ["run", "--kernel", arg(&image), option, ""];
        run(&args).expect_status(USAGE).expect_one_line(&[option]);
    }
    let args = ["run", "--kernel", arg(&image), "--dump-dtb", "-"];
    run(&args)
        .expect_status(USAGE)
        .expect_one_line(&["needs the name of a file"]);
}

#[test]
fn a_dump_on_a_full_disk() {
    needs_kvm!("a_dump_on_a_full_disk");
    let folder = tempdir().unwrap();
    let image = hello().write(folder.path());
    let args = ["run", "--kernel", arg(&image), "--dump-dtb", "/dev/full"];
    let run = run(&args).expect_status(OUTPUT);
    run.expect_one_line(&["cannot write /dev/full: no space left on device"]);
}

/// A guest that makes comparisons, and exits with the number of the first that fails, or 0.
fn checking(checks: &[&[u8]]) -> Vec<u8> {
    // mov dx, 0xE08; out dx, al; hlt
    const EXIT: [u8; 6] = [0x66, 0xBA, 0x08, 0x0E, 0xEE, 0xF4];
    let mut code = Vec::new();
    let mut jumps = Vec::new();
    for (i, check) in checks.iter().enumerate() {
        code.extend([0xB0, i as u8 + 1]); // mov al, i + 1
        code.extend(*check);
        code.extend([0x0F, 0x85, 0, 0, 0, 0]); // jne to the exit
        jumps.push(code.len());
    }
    code.extend([0xB0, 0]);
    let exit = code.len();
    for jump in jumps {
        code[jump - 4..jump].copy_from_slice(&((exit - jump) as u32).to_le_bytes());
    }
    code.extend(EXIT);
    code
}

/// A guest that looks at its start info: two modules, the first of this name, the second the device
/// tree; and an RSDP. `first` compares the first module's size.
fn looking(name: &[u8; 4], first: &[u8]) -> Vec<u8> {
    let first_name = [&[0x8B, 0x7E, 0x10, 0x81, 0x3F][..], name].concat();
    checking(&[
        &[0x83, 0x7B, 0x0C, 2], // cmp dword [ebx + 12], 2: the number of modules
        &[&[0x8B, 0x73, 0x10], first].concat(), // mov esi, [ebx + 16]: their list
        &first_name,            // mov edi, [esi + 16]; cmp dword [edi], name
        &[0x8B, 0x7E, 0x30, 0x81, 0x3F, b'd', b't', b'b', 0], // the same of the second
        &[0x8B, 0x7E, 0x20, 0x81, 0x3F, 0xD0, 0x0D, 0xFE, 0xED], // its first bytes: FDT's magic
        &[0x8B, 0x7B, 0x20, 0x81, 0x3F, b'R', b'S', b'D', b' '], // [[ebx + 32]]: the RSDP
    ])
}

#[test]
fn the_hand_over_leads_to_both_descriptions() {
    needs_kvm!("the_hand_over_leads_to_both_descriptions");
    let folder = tempdir().unwrap();
    let boot = |code: Vec<u8>, options: &[&str]| {
        let image = Elf::of_code(&code).write(folder.path());
        run(&[&["run", "--kernel", arg(&image)], options].concat()).expect_status(0)
    };
    // Without an initrd an empty module stands first: cmp dword [esi + 8], 0.
    boot(looking(b"init", &[0x83, 0x7E, 0x08, 0]), &[]);
    let five = file(folder.path(), "initrd", b"12345");
    let size_is_5 = [0x83, 0x7E, 0x08, 5];
    boot(looking(b"init", &size_is_5), &["--initrd", arg(&five)]);
    // A firmware gets the kernel there.
    let firmware = Elf::of_firmware_code(&looking(b"kern", &size_is_5)).write(folder.path());
    let args = ["run", "--firmware", arg(&firmware), "--kernel", arg(&five)];
    run(&args).expect_status(0);
}

/// in al, 0x21; mov bl, al; in al, 0xA1; and al, bl; cmp al, 0xFF
#[test]
fn the_8259s_come_masked() {
    needs_kvm!("the_8259s_come_masked");
    let folder = tempdir().unwrap();
    let masks = [0xE4, 0x21, 0x88, 0xC3, 0xE4, 0xA1, 0x20, 0xD8, 0x3C, 0xFF];
    let image = Elf::of_code(&checking(&[&masks])).write(folder.path());
    run(&["run", "--kernel", arg(&image)]).expect_status(0);
}

#[test]
fn layout() {
    let text = run(&["layout", "--memory", "5G"]).expect_status(0);
    let expected = "0x0000e0000  0x0000ffff0    ACPI tables";
    assert!(text.stdout.contains(expected), "{text:#?}");
    let json = run(&["layout", "--format", "json"]).expect_status(0);
    let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    let ranges = json.as_array().unwrap();
    let named = |name: &str| ranges.iter().find(|range| range["name"] == name);
    assert_eq!(named("main RAM").unwrap()["end"], 64 << 20);
    assert_eq!(named("device tree").unwrap()["start"], 0x8_0000);
    assert!(named("high RAM").is_none());
    let refused = run(&["layout", "--memory", "1M"]).expect_status(USAGE);
    refused.expect_one_line(&["at least 2M"]);
}
