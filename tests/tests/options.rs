//! Command lines that make no sense: one line that says what would, status 64; and help.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use black_box::code::{GREETING, hello};
use black_box::{arg, needs_kvm, run};
use exitvisor::status::USAGE;
use tempfile::tempdir;

/// Expects that these options are refused before anything is looked at.
#[track_caller]
fn refused(options: &[&str], why: &str) {
    let args = [&["run", "--kernel", "/nowhere/kernel"], options].concat();
    let run = run(&args).expect_status(USAGE).expect_one_line(&[why]);
    assert_eq!(run.stdout, "");
    assert!(run.stderr.chars().count() < 1000, "a long line: {run:#?}");
}

#[test]
fn memory() {
    for (size, why) in [
        ("0", "memory of 0 bytes is too little: give at least 2M"),
        ("1M", "at least 2M"),
        ("2097151", "at least 2M"),
        ("67108865", "is not a multiple of the page size"),
        ("2049K", "is not a multiple of the page size"),
        ("64X", "write a number with K, M or G, for example 64M"),
        ("", "is not a size"),
        ("M", "is not a size"),
        ("-64M", "is not a size"),
        ("6.4M", "is not a size"),
        ("0x400000", "is not a size"),
        ("64 M", "is not a size"),
        ("18446744073709551616", "is not a size"),
        ("18446744073709551615G", "is not a size"),
    ] {
        refused(&["--memory", size], why);
        refused(&[&format!("--memory={size}")], why);
    }
}

#[test]
fn more_memory_than_the_host_has() {
    let folder = tempdir().expect("a folder");
    let image = hello().write(folder.path());
    for size in ["1024T", "16000000T", "18446744073709547520"] {
        let run = run(&["run", "--kernel", arg(&image), "--memory", size]).expect_status(USAGE);
        let run = run.expect_one_line(&["MiB is more than this host has", "give less"]);
        assert_eq!(run.stdout, "");
    }
}

#[test]
fn cpus() {
    for count in [
        "0",
        "255",
        "1000",
        "4294967297",
        "-1",
        "1.5",
        "two",
        "",
        " 1",
        "0x1",
    ] {
        refused(&["--cpus", count], "give a number from 1 to 254");
    }
}

#[test]
fn leaves() {
    for layout in [
        "",
        "backwards",
        "Classic",
        "classic,reversed",
        // Too few, too many.
        "0x4fffff10",
        "0x4fffff10,0x4fffff11,0x4fffff12",
        "0x4fffff10,0x4fffff11,0x4fffff12,0x4fffff13,0x4fffff14",
        // One over another.
        "0x4fffff10,0x4fffff10,0x4fffff11,0x4fffff12",
        // Over leaves of the CPU's, of KVM's and of our own.
        "0,1,2,3",
        "0x40000000,0x40000001,0x40000002,0x40000003",
        "0x4fffff00,0x4fffff11,0x4fffff12,0x4fffff13",
        "0x50000000,0x4fffff11,0x4fffff12,0x4fffff13",
        // Not numbers of 32 bits.
        "a,b,c,leaf",
        "0x14fffff10,0x4fffff11,0x4fffff12,0x4fffff13",
    ] {
        refused(
            &["--leaves", layout],
            "write classic, reversed, or four distinct leaves",
        );
    }
}

#[test]
fn editions() {
    for edition in ["", "1999", "Current", "2020 "] {
        refused(&["--sdm", edition], "write current or 2020");
    }
}

#[test]
fn time_limits() {
    for limit in ["", "soon", "0", "-1s", "1y", "nan", "inf", "1e3s", "99999h"] {
        refused(&["--timeout", limit], "write for example 30s");
    }
}

#[test]
fn options_that_do_not_exist() {
    refused(&["--nonsense"], "--nonsense");
    refused(&["--cpu", "1"], "--cpu");
    refused(&["stray"], "stray");
    refused(&["--format", "xml"], "text, json, csv");
    refused(&["--memory"], "--memory");
    refused(&["--memory", "4M", "--memory", "8M"], "--memory");
    for args in [
        &["walk"][..],
        &["--nonsense"],
        &["report"],
        &["compare", "only-one"],
        &["compare", "a", "b", "c"],
        &["compare", "a", "b", "--format", "csv"],
    ] {
        run(args).expect_status(USAGE).expect_one_line(&[]);
    }
}

#[test]
fn nothing_to_do() {
    let none: [&str; 0] = [];
    let run = run(&none).expect_status(USAGE);
    run.expect_one_line(&["no command: try `exitvisor --help`"]);
    for command in ["run", "profile"] {
        let run = black_box::run(&[command]).expect_status(USAGE);
        run.expect_one_line(&["no kernel to boot: give --kernel FILE"]);
    }
}

#[test]
fn bytes_that_are_no_text() {
    let bytes = OsStr::from_bytes(b"\xff\xfe");
    for option in ["--cmdline", "--memory", "--leaves"] {
        let args = ["run", "--kernel", "k", option].map(OsStr::new);
        let run = run(&[&args[..], &[bytes]].concat()).expect_status(USAGE);
        run.expect_one_line(&["UTF-8"]);
    }
    refused(&["--leaves", "a\nb\x07"], "a b");
    refused(&["--no\nsense\r"], "sense");
}

#[test]
fn a_command_line_that_is_too_long() {
    let long = "x".repeat(2048);
    refused(
        &["--cmdline", &long],
        "the command line has 2048 bytes: at most 2047 fit",
    );
    let longer = "x".repeat(100_000);
    refused(&["--cmdline", &longer], "100000 bytes: at most 2047 fit");
    refused(&["--leaves", &longer], "write classic, reversed");
    // Bytes count, not characters.
    refused(&["--cmdline", &"é".repeat(1024)], "2048 bytes");
}

#[test]
fn the_longest_command_line() {
    needs_kvm!("the_longest_command_line");
    let folder = tempdir().expect("a folder");
    let image = hello().write(folder.path());
    let line = "x".repeat(2047);
    let args = ["profile", "--format", "json", "--kernel", arg(&image)];
    let run = run(&[&args[..], &["--cmdline", &line]].concat()).expect_status(0);
    assert_eq!(run.profile().machine.cmdline, line);
    assert_eq!(run.stderr, GREETING);
}

#[test]
fn help() {
    for args in [
        &["--help"][..],
        &["-h"],
        &["help"],
        &["run", "--help"],
        &["profile", "--help"],
        &["report", "--help"],
        &["compare", "--help"],
        &["layout", "--help"],
    ] {
        let run = run(args).expect_status(0);
        assert_eq!(run.stderr, "");
        assert!(run.stdout.contains("Usage: exitvisor"), "{run:#?}");
        if args.len() == 2 {
            let examples = format!("Examples:\n  exitvisor {}", args[0]);
            assert!(run.stdout.contains(&examples), "{run:#?}");
        } else {
            assert!(run.stdout.contains("Exit status:"), "{run:#?}");
        }
    }
}

#[test]
fn version() {
    for option in ["--version", "-V"] {
        let run = run(&[option]).expect_status(0);
        let expected = concat!("exitvisor ", env!("CARGO_PKG_VERSION"), "\n");
        assert_eq!((&run.stdout[..], &run.stderr[..]), (expected, ""));
    }
}
