//! Exit statuses of the process. 0–63 are the guest's own; ours start at 64 (sysexits.h where it
//! has a number). Prose: `docs/exit-statuses.md`, which a test keeps true to [`ALL`].

/// Defines the statuses, and the table of them, from one list.
macro_rules! statuses {
    ($(#[doc = $meaning:literal] $name:ident = $number:literal;)*) => {
        $(#[doc = $meaning] pub const $name: u8 = $number;)*

        /// Every status of ours: its number, its name, what it means.
        pub const ALL: &[(u8, &str, &str)] = &[$(($number, stringify!($name), $meaning)),*];
    };
}

statuses! {
    /// A command line that makes no sense (EX_USAGE).
    USAGE = 64;
    /// A profile that is corrupt, truncated, of a future version or void (EX_DATAERR).
    DATA = 65;
    /// A kernel, firmware or initrd that cannot be booted, or an input that cannot be read (EX_NOINPUT).
    INPUT = 66;
    /// KVM is absent, forbidden or lacks what is needed (EX_UNAVAILABLE).
    NO_KVM = 69;
    /// A fault of Exitvisor's own (EX_SOFTWARE).
    INTERNAL = 70;
    /// The host refused something: memory, threads, an ioctl (EX_OSERR).
    HOST = 71;
    /// The output cannot be written (EX_CANTCREAT).
    OUTPUT = 73;
    /// The time limit ended the run.
    TIMEOUT = 80;
    /// The guest ended in a triple fault.
    TRIPLE_FAULT = 81;
    /// The guest said that it crashed: through its exit port, or a Linux by its panic message.
    CRASH = 82;
    /// KVM could not go on with the guest (failed entry, failed emulation).
    KVM_ERROR = 83;
    /// `compare --max-growth`: something grew by more, or cannot be judged.
    GROWTH = 84;
    /// The guest reset itself more often than `--max-resets` allows.
    RESET_LIMIT = 85;
    /// A milestone that was asked for was not reached, although the guest ended well.
    MISSED = 86;
    /// Interrupted by SIGHUP (128 + 1).
    HUNG_UP = 129;
    /// Interrupted by Ctrl-C or the escape key (128 + SIGINT).
    INTERRUPTED = 130;
    /// Interrupted by SIGTERM (128 + 15).
    TERMINATED = 143;
}
