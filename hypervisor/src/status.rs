//! Exit statuses of the process. 0–63 are the guest's own; ours start at 64 (sysexits.h where it
//! has a number). Prose: `docs/exit-statuses.md`.

/// A command line that makes no sense (EX_USAGE).
pub const USAGE: u8 = 64;
/// A profile that is corrupt, truncated or of a future version (EX_DATAERR).
pub const DATA: u8 = 65;
/// A kernel, firmware or initrd that cannot be booted, or an input that cannot be read (EX_NOINPUT).
pub const INPUT: u8 = 66;
/// KVM is absent, forbidden or lacks what is needed (EX_UNAVAILABLE).
pub const NO_KVM: u8 = 69;
/// A fault of Exitvisor's own (EX_SOFTWARE).
pub const INTERNAL: u8 = 70;
/// The host refused something: memory, threads, an ioctl (EX_OSERR).
pub const HOST: u8 = 71;
/// The output cannot be written (EX_CANTCREAT).
pub const OUTPUT: u8 = 73;
/// The time limit ended the run.
pub const TIMEOUT: u8 = 80;
/// The guest ended in a triple fault.
pub const TRIPLE_FAULT: u8 = 81;
/// The guest said that it crashed.
pub const CRASH: u8 = 82;
/// KVM could not go on with the guest (failed entry, failed emulation).
pub const KVM_ERROR: u8 = 83;
/// `compare --max-growth`: something grew by more.
pub const GROWTH: u8 = 84;
/// Interrupted by SIGHUP (128 + 1).
pub const HUNG_UP: u8 = 129;
/// Interrupted by Ctrl-C or the escape key (128 + SIGINT).
pub const INTERRUPTED: u8 = 130;
/// Interrupted by SIGTERM (128 + 15).
pub const TERMINATED: u8 = 143;
