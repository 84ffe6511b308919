//! Links each guest at its fixed place, as the guest kernel is.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=../../guest-kernel/guest-kernel.ld");
    // On the host the guests are empty programs.
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let here = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo:rustc-link-arg-bins=-T{here}/../../guest-kernel/guest-kernel.ld");
        println!("cargo:rustc-link-arg-bins=--no-pie");
    }
}
