//! Reads its console and writes back what it reads, in capitals, up to a `q`.
#![cfg_attr(target_os = "none", no_std, no_main)]

guest_kernel::entry!(guest);

fn guest(_: u32) -> u32 {
    use exit_abi::port::COM1;
    use guest_kernel::arch::port;

    // Received data raise an interrupt: that is how a guest says that it listens. It polls.
    port::out8(COM1 + 1, 1);
    loop {
        if port::in8(COM1 + 5) & 1 == 0 {
            continue;
        }
        match port::in8(COM1) {
            b'q' => return 0,
            byte => port::out8(COM1, byte.to_ascii_uppercase()),
        }
    }
}
