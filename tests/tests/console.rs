//! COM1 as a page that the guest reads without an exit (`--console page`).
// Helpers stop a test as its own assertions do.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::process::Stdio;

use black_box::{Run, arg, command, finish, guest, needs_kvm, profile};
use exitvisor::profile::Profile;
use exitvisor::status::{KVM_ERROR, TIMEOUT, TRIPLE_FAULT};

/// A run of the guest that speaks by the page.
#[track_caller]
fn paged(part: &str, options: &[&str]) -> Run {
    let standard = ["--console", "page", "--cmdline", part];
    let limit = ["--timeout", "30s"];
    let options = if options.is_empty() { &limit } else { options };
    profile("console_page", &[&standard[..], options].concat())
}

/// Exits to the page, and to ports.
fn exits(profile: &Profile) -> [u64; 2] {
    let of = |reason| profile.total.reason(reason).map_or(0, |r| r.exits);
    [of(48) + of(49), of(30)]
}

#[test]
fn a_driver_finds_a_uart_and_prints() {
    needs_kvm!("a_driver_finds_a_uart_and_prints");
    let run = paged("0", &[]).expect_status(0);
    run.expect_stderr(&["by the page\n"]);
}

#[test]
fn a_byte_is_an_exit_and_nothing_else_is() {
    needs_kvm!("a_byte_is_an_exit_and_nothing_else_is");
    let many = |bytes: &str| exits(&paged(bytes, &[]).expect_status(0).profile());
    let (few, more) = (many("1000"), many("3000"));
    assert_eq!(more[0] - few[0], 2000);
    assert_eq!(more[1], few[1]);
}

#[test]
fn what_a_guest_does_to_the_page_ends_well() {
    needs_kvm!("what_a_guest_does_to_the_page_ends_well");
    for (part, printed) in [
        ("1", "it still prints\n"),
        ("3", "from elsewhere\n"),
        ("5", "it still prints\n"),
    ] {
        let run = paged(part, &[]).expect_status(0);
        run.expect_stderr(&[printed]);
    }
    // It is no code: wherever that leads, it is the guest's end alone.
    let run = paged("2", &["--timeout", "3s"]);
    let ends = [TRIPLE_FAULT, TIMEOUT, KVM_ERROR].map(i32::from);
    assert!(ends.contains(&run.status), "{run:#?}");
}

#[test]
fn input_comes_by_the_page() {
    needs_kvm!("input_comes_by_the_page");
    let image = guest("console_page");
    let args = ["run", "--kernel", arg(&image), "--console", "page"];
    let rest = ["--cmdline", "4", "--timeout", "30s"];
    let mut child = command(&[&args[..], &rest].concat())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let text = "more than the sixty-four bytes that the receiver of a UART holds at a time: q";
    let mut input = child.stdin.take().unwrap();
    input.write_all(text.as_bytes()).unwrap();
    drop(input);
    let run = finish(child).expect_status(0);
    assert_eq!(run.stdout.trim_end(), text);
}

/// COM1 prints all the same, but nobody types there.
#[test]
fn a_guest_that_knows_no_virtio_prints() {
    needs_kvm!("a_guest_that_knows_no_virtio_prints");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("profile.json");
    let image = guest("power");
    let args = ["run", "--kernel", arg(&image), "--console", "virtio"];
    let rest = [
        "--cmdline",
        "3",
        "--timeout",
        "1s",
        "--format",
        "json",
        "--output",
        arg(&file),
    ];
    let mut child = command(&[&args[..], &rest].concat())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    // It would power off.
    child.stdin.take().unwrap().write_all(b"p").unwrap();
    let run = finish(child).expect_status(TIMEOUT);
    assert_eq!(run.stdout, "ready\n");
    let json = std::fs::read_to_string(&file).unwrap();
    let profile: Profile = serde_json::from_str(&json).unwrap();
    let console = profile.devices.first().unwrap();
    assert_eq!((console.name.as_str(), console.gsi), ("console0", 5));
    assert_eq!((console.exits, console.from_guest), (0, 0));
}
