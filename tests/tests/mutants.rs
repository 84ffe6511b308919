//! Guests with bits flipped at random (the same ones in every run): whatever they do, each has a clean
//! end with a documented status, in time, and its accounts close.

// What fails to be set up fails the test.
#![allow(clippy::unwrap_used)]

use black_box::{arg, file, guest, needs_kvm, run};
use exitvisor::status;
use tempfile::tempdir;

/// How many mutants of each guest.
const MUTANTS: u64 = 12;
/// Where the first segment lies in the file: the headers are other tests' business.
const CODE: usize = 0x1000;

/// A small generator (SplitMix64), so that a mutant can be had again by its number.
struct Random(u64);

impl Random {
    fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ z >> 31) % most as u64) as usize
    }
}

fn mutant(image: &[u8], number: u64) -> Vec<u8> {
    let mut random = Random(number);
    let mut bytes = image.to_vec();
    for _ in 0..[1, 2, 4, 8, 30][random.below(5)] {
        let at = CODE + random.below((bytes.len() - CODE).min(0x8000));
        bytes[at] = random.below(256) as u8;
    }
    bytes
}

fn all_end_cleanly(name: &str, options: &[&str]) {
    let folder = tempdir().unwrap();
    let image = std::fs::read(guest(name)).unwrap();
    for number in 0..MUTANTS {
        let kernel = file(folder.path(), "mutant", &mutant(&image, number));
        let limit = ["profile", "--format", "json", "--timeout", "300ms"];
        let run = run(&[&limit, &["--kernel", arg(&kernel)][..], options].concat());
        let known = [
            status::INPUT,
            status::TIMEOUT,
            status::TRIPLE_FAULT,
            status::CRASH,
            status::KVM_ERROR,
        ];
        let status = u8::try_from(run.status).unwrap_or(u8::MAX);
        let fine = u32::from(status) <= exit_abi::status::GUEST_MAX || known.contains(&status);
        assert!(fine, "mutant {number} of {name}: {run:#?}");
        if status != status::INPUT {
            // Reading a profile checks that its sums close.
            assert_eq!(run.profile().end.status, status, "mutant {number}");
        }
    }
}

#[test]
fn mutants_of_the_guest_kernel() {
    needs_kvm!("mutants_of_the_guest_kernel");
    all_end_cleanly(
        "guest-kernel",
        &["--cmdline", "exits=leaves queries=2 hypercall"],
    );
}

#[test]
fn mutants_that_use_gates() {
    needs_kvm!("mutants_that_use_gates");
    all_end_cleanly("gates", &[]);
}

#[test]
fn mutants_on_two_cpus() {
    needs_kvm!("mutants_on_two_cpus");
    all_end_cleanly("smp_gates", &["--cpus", "2"]);
}

#[test]
fn mutants_behind_the_firmware() {
    needs_kvm!("mutants_behind_the_firmware");
    let firmware = guest("firmware");
    all_end_cleanly("leaves", &["--firmware", arg(&firmware)]);
}
