//! Prints what it was handed: the modules of its start info, and whether memory map and command
//! line are there. Its own entry shows the rest: it would not run with paging on.
#![cfg_attr(target_os = "none", no_std, no_main)]

guest_kernel::entry!(guest);

fn guest(start_info: u32) -> u32 {
    use guest_kernel::serial::println;
    use test_guests::{check, check_eq};

    /// The word at an offset of a structure of PVH's.
    fn word(at: u64, offset: u64) -> u64 {
        // SAFETY: start info and module list lie in the first 4 GiB, which are mapped one to one;
        // their fields are aligned to 4 bytes at least, and a read changes nothing.
        unsafe { ((at + offset) as *const u64).read_unaligned() }
    }
    let info = u64::from(start_info);
    check_eq(1, word(info, 0), 1 << 32 | 0x336E_C578, "magic and version");
    let (count, list) = (word(info, 12) as u32, word(info, 16));
    check_eq(2, word(info, 8) as u32, 0, "flags");
    check(3, word(info, 40) != 0 && word(info, 48) as u32 > 2, "a map");
    check(4, word(info, 24) != 0, "a command line");
    println(format_args!("modules: {count}"));
    for i in 0..u64::from(count) {
        let module = list + 32 * i;
        let (start, bytes, name) = (word(module, 0), word(module, 8), word(module, 16));
        let mut text = [0_u8; 16];
        for (i, byte) in text.iter_mut().enumerate() {
            if name == 0 {
                break;
            }
            // SAFETY: as above; a name ends with a NUL, and low RAM reaches beyond 16 bytes.
            *byte = unsafe { *((name + i as u64) as *const u8) };
            if *byte == 0 {
                break;
            }
        }
        let length = text.iter().position(|&b| b == 0).unwrap_or(16);
        let name = core::str::from_utf8(&text[..length]).unwrap_or("?");
        let first = if bytes >= 8 { word(start, 0) } else { 0 };
        println(format_args!(
            "module '{name}': {bytes} bytes, {first:#018x}"
        ));
    }
    0
}
