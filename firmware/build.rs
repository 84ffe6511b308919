//! Links the firmware at its fixed place.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=firmware.ld");
    // Only the guest's target is linked by our script; on the host this is an empty program.
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let here = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo:rustc-link-arg-bins=-T{here}/firmware.ld");
        // The target links position-independent by default; the firmware has one place.
        println!("cargo:rustc-link-arg-bins=--no-pie");
        // A firmware's file is small: no symbols, no lines, no padding between segments.
        println!("cargo:rustc-link-arg-bins=--strip-all");
        println!("cargo:rustc-link-arg-bins=--nmagic");
    }
}
