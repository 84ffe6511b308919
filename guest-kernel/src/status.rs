//! The exit statuses by which the kernel says what went wrong.

/// A workload's exits were not counted as the source promises.
pub const WORKLOAD_FAILED: u32 = 2;
/// A word of the command line has a value that makes no sense.
pub const BAD_COMMAND_LINE: u32 = 3;
/// Start info, memory map, modules, device tree or command line cannot be used.
pub const BAD_BOOT_INFORMATION: u32 = 4;
/// The gate port refused a gate.
pub const GATE_REFUSED: u32 = 5;
/// A hypercall got another answer than the interface promises.
pub const WRONG_HYPERCALL: u32 = 6;
/// An exception that was provoked did not arrive, or another one did.
pub const WRONG_EXCEPTION: u32 = 7;
/// A CPU did not come up.
pub const MISSING_CPU: u32 = 8;
/// A workload was refused: this machine cannot do it.
pub const WORKLOAD_REFUSED: u32 = 9;
/// A reset or power-off that was asked for did not happen.
pub const POWER_FAILED: u32 = 10;
/// Answers at the gates of several CPUs contradict each other.
pub const WRONG_ANSWERS: u32 = 11;
/// The exit page and the leaves contradict each other.
pub const SOURCES_DISAGREE: u32 = 12;
/// `exits=` names a source that is not there.
pub const NO_SOURCE: u32 = 13;
