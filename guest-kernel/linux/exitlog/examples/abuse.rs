//! Abuses the gate port from a Linux guest's user space, for the black-box tests: each word of the
//! command line is one abuse, and a status other than 0 says that it was not endured.

use std::arch::asm;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use exit_abi::gate::{self, Outcome, SLOTS};
use exit_abi::leaf::Layout;
use exit_abi::port;

/// Where nothing of Linux's is.
const PAGE: u64 = 0x4FFF_FFFE_0000;
const SIZE: usize = 4096;
/// Where exitlog has its page.
const EXITLOG: u64 = 0x4FFF_FFFF_F000;
/// `push rbx; mov r8, rdx; mov eax, edi; mov ecx, esi; cpuid; mov [r8], eax; pop rbx; ret`
const ASK: [u8; 15] = [
    0x53, 0x49, 0x89, 0xD0, 0x89, 0xF8, 0x89, 0xF1, 0x0F, 0xA2, 0x41, 0x89, 0x00, 0x5B, 0xC3,
];
/// Where in it the instruction is.
const SITE: u64 = PAGE + 8;
/// The same with `mov eax, 7` in its place.
const NO_CPUID: [u8; 18] = [
    0x53, 0x49, 0x89, 0xD0, 0x89, 0xF8, 0x89, 0xF1, 0xB8, 0x07, 0x00, 0x00, 0x00, 0x41, 0x89, 0x00,
    0x5B, 0xC3,
];

fn out(port: u16, value: u32, width: u32) {
    // SAFETY: main has asked for the ports; Exitvisor's touch no memory of ours.
    unsafe {
        match width {
            1 => asm!("out dx, al", in("dx") port, in("al") value as u8, options(nomem, nostack)),
            2 => asm!("out dx, ax", in("dx") port, in("ax") value as u16, options(nomem, nostack)),
            _ => asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack)),
        }
    }
}

fn outs(port: u16, bytes: &[u8]) {
    // SAFETY: as for `out`; the instruction reads the slice.
    unsafe {
        asm!("rep outsb", in("dx") port, inout("rsi") bytes.as_ptr() => _,
             inout("rcx") bytes.len() => _, options(readonly, nostack));
    }
}

fn read(port: u16) -> u32 {
    let value;
    // SAFETY: as for `out`.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack)) };
    value
}

/// Gives a command, by its number.
fn command(number: u32, address: u64) -> Option<Outcome> {
    out(port::GATE_LOW, address as u32, 4);
    out(port::GATE_HIGH, (address >> 32) as u32, 4);
    out(port::GATE_COMMAND, number, 4);
    Outcome::from_number(read(port::GATE_COMMAND))
}

fn register(address: u64) -> Option<Outcome> {
    command(gate::Command::RegisterCpuid as u32, address)
}

fn withdraw(address: u64) -> Option<Outcome> {
    command(gate::Command::Withdraw as u32, address)
}

/// Maps the page with this code.
fn map(code: &[u8]) {
    map_at(PAGE, code);
}

fn map_at(at: u64, code: &[u8]) {
    // SAFETY: nothing but earlier pages of ours is there, to which nothing of Rust's refers.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        let all = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let page = libc::mmap(at as *mut _, SIZE, all, flags, -1, 0);
        assert_eq!(page as u64, at, "mmap");
        page.cast::<u8>().copy_from(code.as_ptr(), code.len());
    }
}

fn unmap() {
    // SAFETY: as for `map`.
    unsafe { libc::munmap(PAGE as *mut _, SIZE) };
}

/// Runs the page's code with a leaf; EAX as it leaves it.
fn call(leaf: u32) -> u32 {
    // SAFETY: `map` has put a routine of this convention there.
    let routine: extern "sysv64" fn(u32, u32, *mut u32) =
        unsafe { std::mem::transmute(PAGE as *const ()) };
    let mut eax = 0;
    routine(leaf, 0, &raw mut eax);
    eax
}

fn total() -> u32 {
    call(Layout::CLASSIC.total_exits)
}

/// A CPUID at every second byte, for as many gates.
fn map_many() {
    map(&[0x0F, 0xA2].repeat(SLOTS + 1));
}

fn site(n: usize) -> u64 {
    PAGE + 2 * n as u64
}

/// Any command, address and width, from a fixed seed; and what it registered is withdrawn.
fn garbage() {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut registered = Vec::new();
    for _ in 0..1500 {
        let address = match random() % 4 {
            0 => random(),
            1 => PAGE | random() & 0xFFFF,
            2 => random() | 0xFFFF_FFFF_8000_0000,
            _ => random() & 0x7FFF_FFFF_FFFF,
        };
        let number = match random() % 4 {
            0 => random() as u32,
            _ => (random() % 8) as u32,
        };
        if command(number, address) == Some(Outcome::Done) && number != 3 {
            registered.push(address);
        }
        // The ports of gates alone: others end the machine, as they should.
        let port = port::GATE_LOW + (random() % 12) as u16;
        let width = [1, 2, 4][random() as usize % 3];
        let reaches_scratch = port + width as u16 > port::SCRATCH;
        if !reaches_scratch {
            out(port, random() as u32, width);
            read(port & !3);
        }
        if random() % 16 == 0 {
            outs(port::GATE_LOW, &random().to_le_bytes());
            outs(port::GATE_HIGH, &random().to_le_bytes());
            outs(port::GATE_COMMAND, &[0; 9]);
        }
    }
    for address in registered {
        // A later command may have withdrawn it.
        let _ = withdraw(address);
    }
    println!("garbage: endured");
}

/// A gate whose page goes away, comes back as other code, and as itself.
fn unmapped() {
    map(&ASK);
    assert_eq!(register(SITE), Some(Outcome::Done));
    let first = total();
    assert!(first > 0, "it answers");
    unmap();
    assert_eq!(register(SITE), Some(Outcome::BadAddress));
    map(&NO_CPUID);
    assert_eq!(total(), 7, "other code is stepped over unchanged");
    map(&ASK);
    assert!(total() > first, "it answers again");
    assert_ne!(call(0), 0, "an ordinary leaf");
    unmap();
    assert_eq!(withdraw(SITE), Some(Outcome::Done));
    assert_eq!(withdraw(SITE), Some(Outcome::NotFound));
    map(&ASK);
    assert_eq!(total(), 0, "no gate any more");
    println!("unmapped: endured");
}

/// Another process at the same linear address: a gate does not know processes.
fn elsewhere() {
    map(&ASK);
    assert_eq!(register(SITE), Some(Outcome::Done));
    // SAFETY: this process has one thread.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let answered = total() > 0;
        map(&NO_CPUID);
        let well = answered && total() == 7;
        std::process::exit(i32::from(!well));
    }
    let mut status = 0;
    // SAFETY: it writes to `status` alone.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(status, 0, "the child");
    assert!(total() > 0);
    assert_eq!(withdraw(SITE), Some(Outcome::Done));
    println!("elsewhere: endured");
}

/// Takes all slots, or frees them.
fn fill() {
    map_many();
    for n in 0..SLOTS {
        assert_eq!(register(site(n)), Some(Outcome::Done), "slot {n}");
    }
    assert_eq!(register(site(SLOTS)), Some(Outcome::Full));
    println!("fill: all slots are taken");
}

fn free() {
    for n in 0..SLOTS {
        assert_eq!(withdraw(site(n)), Some(Outcome::Done), "slot {n}");
    }
    println!("free: all slots were taken, and none is");
}

/// Leaves a gate behind where exitlog's is, as one that was killed would.
fn left() {
    map_at(EXITLOG, &ASK);
    assert_eq!(register(EXITLOG + (SITE - PAGE)), Some(Outcome::Done));
    println!("left: a gate");
}

/// Without rights: none of it is possible.
fn nobody() -> ! {
    let error = Command::new("/exitlog").uid(65534).gid(65534).exec();
    panic!("{error}");
}

fn main() -> ExitCode {
    // What is written to the gate port is kept per vCPU.
    // SAFETY: a CPU set is plain data, and 0 is this thread.
    unsafe {
        let mut one: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(0, &mut one);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const one);
    }
    // SAFETY: it changes which ports this thread may use.
    let allowed = unsafe { libc::ioperm(port::BASE.into(), 0x30, 1) };
    assert_eq!(allowed, 0, "ioperm");
    for word in std::env::args().skip(1) {
        match &*word {
            "garbage" => garbage(),
            "unmapped" => unmapped(),
            "elsewhere" => elsewhere(),
            "slots" => {
                fill();
                free();
            }
            "fill" => fill(),
            "free" => free(),
            "left" => left(),
            "nobody" => nobody(),
            other => {
                eprintln!("abuse: what is {other}?");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
