//! Guests that do what no guest should: every one gets a clean end, and its exits are counted.

use black_box::{lab, needs_kvm, profile};

#[test]
fn ports_and_addresses_of_nobodys() {
    needs_kvm!("ports_and_addresses_of_nobodys");
    // Strings of 64 KiB, each byte of which is an exit on some hosts.
    let bytes = if lab().is_some() { "2048" } else { "65536" };
    let run = profile("ports", &["--cmdline", bytes, "--timeout", "30s"]).expect_status(0);
    let profile = run.profile();
    // An access over the end of a page, or a long string, returns to userspace in parts: that may
    // exceed what KVM counts as exits, and is then said.
    assert_eq!(
        profile.total.excess > 0,
        profile.warnings().iter().any(|w| w.contains("more"))
    );
    assert!(run.stderr.is_empty(), "{run:#?}");
}

#[test]
fn milestones_of_nobodys_definition() {
    needs_kvm!("milestones_of_nobodys_definition");
    let run = profile("milestones", &["--cmdline", "3"]).expect_status(0);
    let profile = run.profile();
    let names: Vec<&str> = profile.milestones.iter().map(|m| m.name.as_str()).collect();
    let expected = [
        "reset",
        "first?[2J of mine, and a name th",
        "undefined 77",
        "unnamed 0xffffffff",
        "unnamed 0x101",
        "done",
        "unnamed 0x200",
        "unnamed 0x201",
        "unnamed 0x202",
        "undefined 0",
        "reset",
        "firmware entry",
    ];
    assert_eq!(names, expected);
}

#[test]
fn a_hundred_thousand_milestones() {
    needs_kvm!("a_hundred_thousand_milestones");
    // More than are kept, everywhere.
    let many = if lab().is_some() { 5000 } else { 100_000 };
    let args = ["--cmdline", &many.to_string(), "--timeout", "30s"];
    let run = profile("milestones", &args).expect_status(0);
    let profile = run.profile();
    let kept = profile.milestones.len() as u64;
    assert_eq!(kept, 1000);
    // "reset", the eight before, and those that the command line asks for.
    assert_eq!(kept + profile.milestones_dropped, 1 + 8 + many);
    let io = profile
        .total
        .reasons
        .iter()
        .find(|r| r.reason == 30)
        .map_or(0, |r| r.own);
    assert!(io > many, "each was counted as the profiler's own");
}

#[test]
fn exit_statuses_are_the_guests_up_to_63() {
    needs_kvm!("exit_statuses_are_the_guests_up_to_63");
    for (given, status, said) in [
        ("0", 0, "exited with status 0"),
        ("1", 1, "exited with status 1"),
        ("63", 63, "exited with status 63"),
        ("64", 63, "status 64, cut to 63"),
        ("256", 63, "status 256, cut to 63"),
        ("4294967295", 63, "status 4294967295, cut to 63"),
        ("255", 82, "said that it crashed"),
    ] {
        let run = profile("ends", &["--cmdline", given]).expect_status(status);
        let end = run.profile().end;
        assert!(end.detail.contains(said), "{end:?}");
        assert_eq!(end.cut_short, status == 82);
    }
}
