//! `exitlog` where there is no Exitvisor: one line, status 1.

// Helpers stop a test as its own assertions do.
#![allow(clippy::unwrap_used)]

use std::process::Command;

#[test]
fn nobody_to_ask_is_one_line() {
    // (Run in a guest of Exitvisor's, there is somebody.)
    let leaf = std::arch::x86_64::__cpuid(exit_abi::leaf::DISCOVERY);
    if leaf.ebx == u32::from_le_bytes(*b"Exit") {
        eprintln!("skipped: nobody_to_ask_is_one_line: this machine is a guest of Exitvisor's");
        return;
    }
    for args in [&[][..], &["--json"], &["gate-kernel"], &["ungate-kernel"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_exitlog"))
            .args(args)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(output.stdout.is_empty(), "{args:?}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(stderr, "exitlog: no Exitvisor underneath: nobody to ask\n");
    }
}
