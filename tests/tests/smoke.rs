//! The thin line: the default guest boots, ends well and leaves a profile.

use black_box::{needs_kvm, profile};

#[test]
fn the_default_guest_boots() {
    needs_kvm!("the_default_guest_boots");
    let run = profile("guest-kernel", &["--timeout", "20s"]).expect_status(7);
    let profile = run.profile();
    assert_eq!(profile.milestones[0].name, "reset");
    assert_eq!(profile.total.excess, 0);
}
