//! Power-off and reset, as the number on its command line says: 0 a power-off, 1 every wrong value
//! and then status 3, 2 a reset at every boot, 3 what is typed.
#![cfg_attr(target_os = "none", no_std, no_main)]

use exit_abi::port as ports;
use guest_kernel::arch::port;

guest_kernel::entry!(guest);

fn guest(start_info: u32) -> u32 {
    port::out32(ports::MILESTONE, 5);
    match test_guests::cmdline_number(start_info) {
        0 => power_off(),
        1 => wrong_values(),
        2 => reset(),
        _ => typed(),
    }
    // What should have ended the machine did not.
    60
}

fn power_off() {
    port::out8(ports::SLEEP_CONTROL, ports::POWER_OFF);
}

fn reset() {
    port::out8(ports::RESET, ports::RESET_VALUE);
}

/// None of these ends the machine, and the registers read as zero.
fn wrong_values() {
    let control = 0b11_1100;
    for value in (0..=255_u8).filter(|v| v & control != ports::POWER_OFF) {
        port::out8(ports::SLEEP_CONTROL, value);
    }
    for value in (0..=255_u8).filter(|v| *v != ports::RESET_VALUE) {
        port::out8(ports::RESET, value);
    }
    for value in [ports::POWER_OFF, ports::RESET_VALUE] {
        port::out8(ports::SLEEP_STATUS, value);
        for at in [ports::SLEEP_CONTROL, ports::SLEEP_STATUS, ports::RESET] {
            port::out16(at, value.into());
            port::out32(at, value.into());
        }
    }
    for at in [ports::SLEEP_CONTROL, ports::SLEEP_STATUS, ports::RESET] {
        let read = port::in8(at);
        test_guests::check_eq(4, read, 0, "a register reads as zero");
    }
    guest_kernel::exit::exit(3);
}

/// Says hello, then obeys: `r` resets, `p` powers off, `x` exits with 0, `c` crashes; all else is
/// given back.
fn typed() {
    // COM1 with its receive interrupt: the guest listens.
    port::out8(ports::COM1 + 1, 1);
    let say = |byte| port::out8(ports::COM1, byte);
    b"ready\n".iter().for_each(|&b| say(b));
    loop {
        if port::in8(ports::COM1 + 5) & 1 == 0 {
            core::hint::spin_loop();
            continue;
        }
        let byte = port::in8(ports::COM1);
        say(byte);
        say(b'\n');
        match byte {
            b'r' => reset(),
            b'p' => power_off(),
            b'x' => guest_kernel::exit::exit(0),
            b'c' => guest_kernel::exit::crash(),
            _ => {}
        }
    }
}
