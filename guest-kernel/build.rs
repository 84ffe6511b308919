//! Links the kernel at its fixed place.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=guest-kernel.ld");
    // Only the guest's target is linked by our script; on the host this is an empty program.
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let here = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo:rustc-link-arg-bins=-T{here}/guest-kernel.ld");
        // The target links position-independent by default; this kernel has one place.
        println!("cargo:rustc-link-arg-bins=--no-pie");
    }
}
