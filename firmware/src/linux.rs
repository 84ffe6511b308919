//! Linux as a bzImage: checked whole before a byte of it is loaded, and entered by its own 64-bit
//! boot protocol (linux/Documentation/arch/x86/boot.rst, zero-page.rst).
//!
//! The rules are the VMM's for a bzImage that it loads itself (`hypervisor/src/boot/bzimage.rs`). An
//! unpacked kernel is an ELF image with a PVH note, as any other.

use guest_kernel::once::Once;

use crate::arch::memory;
use crate::error::Error;
use crate::kernel::check_place;
use crate::modules::Module;
use crate::ram::{self, Ram};
use crate::start_info::{StartInfo, field, wide, word};
use crate::taken::Taken;

/// The header in the file, which is at the same place in the zero page, and its end.
const HEADER: usize = 0x1F1;
const HEADER_END: usize = 0x26C;
/// Its fields, by their offset in the file.
mod header {
    pub(super) const SETUP_SECTS: usize = 0x1F1;
    pub(super) const SYSSIZE: usize = 0x1F4;
    pub(super) const BOOT_FLAG: usize = 0x1FE;
    pub(super) const MAGIC: usize = 0x202;
    pub(super) const VERSION: usize = 0x206;
    pub(super) const TYPE_OF_LOADER: usize = 0x210;
    pub(super) const LOADFLAGS: usize = 0x211;
    pub(super) const RAMDISK_IMAGE: usize = 0x218;
    pub(super) const RAMDISK_SIZE: usize = 0x21C;
    pub(super) const CMD_LINE_PTR: usize = 0x228;
    pub(super) const INITRD_ADDR_MAX: usize = 0x22C;
    pub(super) const XLOADFLAGS: usize = 0x236;
    pub(super) const CMDLINE_SIZE: usize = 0x238;
    pub(super) const SETUP_DATA: usize = 0x250;
    pub(super) const PREF_ADDRESS: usize = 0x258;
    pub(super) const INIT_SIZE: usize = 0x260;
}
/// Fields of the zero page besides the header.
mod zero_page {
    pub(super) const ACPI_RSDP_ADDR: usize = 0x070;
    pub(super) const E820_ENTRIES: usize = 0x1E8;
    pub(super) const E820_TABLE: usize = 0x2D0;
}
/// `E820_MAX_ENTRIES_ZEROPAGE`, and bytes of an entry: address, size, type.
const E820_MAX: usize = 128;
const E820_ENTRY: usize = 20;
const _: () = assert!(ram::ENTRIES_MAX as usize <= E820_MAX);
/// "HdrS".
const MAGIC: u32 = 0x5372_6448;
/// The first version whose `xloadflags` tell of the 64-bit entry.
const VERSION_MIN: u16 = 0x020C;
/// `loadflags`: the kernel goes to 1 MiB or above.
const LOADED_HIGH: u8 = 1;
/// `xloadflags`: there is a 64-bit entry, this far behind the start.
const XLF_KERNEL_64: u8 = 1;
const ENTRY_64: u64 = 0x200;
/// A loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xFF;

/// A bzImage that passed the checks.
#[derive(Debug)]
pub struct Linux<'m> {
    file: &'m [u8],
    /// What is loaded.
    code: &'m [u8],
    /// Where to.
    start: u64,
}

/// What Linux finds at its entry.
#[repr(C, align(16))]
#[derive(Debug)]
pub struct ZeroPage([u8; 4096]);

static ROOM: Once<ZeroPage> = Once::new(ZeroPage([0; 4096]));

/// Where the zero page goes: a static of the firmware's, so it stays.
pub fn room() -> Result<&'static mut ZeroPage, Error> {
    ROOM.take().ok_or(Error::Unreadable("the zero page", 0))
}

/// Whether the file is for [`Linux::check`].
pub fn is_linux(file: &[u8]) -> bool {
    file.len() >= HEADER_END && word(file, header::MAGIC) == MAGIC
}

impl<'m> Linux<'m> {
    /// Checks the kernel in `file` against RAM and what is taken of it.
    pub fn check(
        file: &'m [u8],
        initrd: Option<&Module<'_>>,
        cmdline: &[u8],
        ram: &Ram<'_>,
        taken: &Taken,
    ) -> Result<Self, Error> {
        let byte = |at: usize| file.get(at).copied().unwrap_or(0);
        if [byte(header::BOOT_FLAG), byte(header::BOOT_FLAG + 1)] != [0x55, 0xAA] {
            return Err(Error::Damaged("there is no 55 aa where a boot sector ends"));
        }
        if byte(header::LOADFLAGS) & LOADED_HIGH == 0 {
            return Err(Error::BzImage("is a zImage: give a bzImage"));
        }
        if (word(file, header::VERSION) as u16) < VERSION_MIN {
            return Err(Error::BzImage("speaks a boot protocol older than 2.12"));
        }
        if byte(header::XLOADFLAGS) & XLF_KERNEL_64 == 0 {
            return Err(Error::BzImage("has no 64-bit entry"));
        }
        let sectors = match byte(header::SETUP_SECTS) {
            0 => 4,
            n => usize::from(n),
        };
        let size = word(file, header::SYSSIZE) as usize * 16;
        let code = file.get((sectors + 1) * 512..).unwrap_or_default();
        if size == 0 || code.len() < size {
            return Err(Error::Damaged(
                "the file has fewer bytes than its header says",
            ));
        }
        let start = wide(file, header::PREF_ADDRESS);
        let need = u64::from(word(file, header::INIT_SIZE)).max(code.len() as u64);
        let Some(end) = start.checked_add(need) else {
            return Err(Error::Damaged("it reaches beyond the address space"));
        };
        check_place(start, end, ram, taken)?;
        if cmdline.len() as u64 > u64::from(word(file, header::CMDLINE_SIZE)) {
            return Err(Error::BzImage("takes no command line as long as this one"));
        }
        let highest = u64::from(word(file, header::INITRD_ADDR_MAX));
        if initrd.is_some_and(|initrd| initrd.end > highest.saturating_add(1)) {
            return Err(Error::BzImage("takes no initrd as high as this one lies"));
        }
        Ok(Self { file, code, start })
    }

    /// Copies it to its place. What it needs behind its end it clears itself.
    pub fn load(&self) {
        // SAFETY: `check` has found this memory to be RAM that is mapped, off the firmware, the boot
        // information and every module, so off `code`.
        unsafe { memory::fill(self.start, self.code, self.code.len() as u64) };
    }

    /// Its 64-bit entry.
    pub fn entry(&self) -> u64 {
        self.start + ENTRY_64
    }
}

impl ZeroPage {
    /// Fills it in. Returns its address.
    pub fn build(
        &'static mut self,
        kernel: &Linux<'_>,
        info: &StartInfo<'_>,
        map: &[ram::Entry],
        initrd: Option<&Module<'_>>,
        setup_data: Option<&Module<'_>>,
    ) -> u64 {
        self.fill(kernel, info, map, initrd, setup_data);
        &raw const self.0 as u64
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        let room = self.0.get_mut(at..).unwrap_or_default();
        room.iter_mut()
            .zip(bytes)
            .for_each(|(to, from)| *to = *from);
    }

    fn fill(
        &mut self,
        kernel: &Linux<'_>,
        info: &StartInfo<'_>,
        map: &[ram::Entry],
        initrd: Option<&Module<'_>>,
        setup_data: Option<&Module<'_>>,
    ) {
        let header = kernel.file.get(HEADER..HEADER_END).unwrap_or_default();
        self.put(HEADER, header);
        self.put(header::TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
        // Both below 4 GiB: more is not mapped, and could not be read.
        let cmdline = wide(info.raw, field::CMDLINE) as u32;
        self.put(header::CMD_LINE_PTR, &cmdline.to_le_bytes());
        let (start, bytes) = initrd.map_or((0, 0), |m| (m.start as u32, (m.end - m.start) as u32));
        self.put(header::RAMDISK_IMAGE, &start.to_le_bytes());
        self.put(header::RAMDISK_SIZE, &bytes.to_le_bytes());
        // Where it is: the kernel wipes the seed in it.
        let data = setup_data.map_or(0, |module| module.start);
        self.put(header::SETUP_DATA, &data.to_le_bytes());
        let rsdp = wide(info.raw, field::RSDP);
        self.put(zero_page::ACPI_RSDP_ADDR, &rsdp.to_le_bytes());
        self.put(zero_page::E820_ENTRIES, &[map.len().min(E820_MAX) as u8]);
        for (i, entry) in map.iter().take(E820_MAX).enumerate() {
            let at = zero_page::E820_TABLE + i * E820_ENTRY;
            self.put(at, entry.get(..E820_ENTRY).unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::Double;
    use proptest::prelude::*;

    /// A kernel of a page that wants 1 MiB from 2 MiB on.
    fn image() -> Vec<u8> {
        let mut file = vec![0; 1024 + 4096];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(header::SETUP_SECTS, &[1]);
        put(header::SYSSIZE, &[0, 1]);
        put(header::BOOT_FLAG, &[0x55, 0xAA]);
        put(header::MAGIC, b"HdrS");
        put(header::VERSION, &[0x0F, 2]);
        put(header::LOADFLAGS, &[1]);
        put(header::INITRD_ADDR_MAX, &[0xFF, 0xFF, 0x3F, 0]);
        put(header::XLOADFLAGS, &[0x7F]);
        put(header::CMDLINE_SIZE, &[8]);
        put(header::PREF_ADDRESS, &[0, 0, 0x20]);
        put(header::INIT_SIZE, &[0, 0, 0x10]);
        file
    }

    fn initrd(end: u64) -> Module<'static> {
        Module {
            start: end - 9,
            end,
            name: b"initrd",
            name_address: 0,
        }
    }

    /// Four megabytes, a module in the last page.
    fn check(file: &[u8]) -> Result<Linux<'_>, Error> {
        let mut entry: ram::Entry = [0; 24];
        entry[8..16].copy_from_slice(&(4_u64 << 20).to_le_bytes());
        entry[16] = 1;
        let mut taken = Taken::new();
        taken.add(None, 0x3F_F000, 0x1000);
        let ram = [entry];
        let ram = Ram::new(&ram).unwrap();
        Linux::check(file, Some(&initrd(0x40_0000)), b"quiet", &ram, &taken)
    }

    #[test]
    fn a_kernel() {
        assert!(is_linux(&image()));
        assert!(!is_linux(&image()[..0x260]));
        let file = image();
        let kernel = check(&file).unwrap();
        assert_eq!((kernel.entry(), kernel.code.len()), (0x20_0200, 4096));
    }

    #[test]
    fn the_zero_page() {
        let file = image();
        let kernel = check(&file).unwrap();
        let memory = Double::booting(&[], b"quiet");
        let info = StartInfo::read(&memory, Double::START_INFO).unwrap();
        let map = info.memory_map(&memory).unwrap();
        let mut page = ZeroPage([0; 4096]);
        let seed = initrd(0x3F_F009);
        page.fill(&kernel, &info, map, Some(&initrd(0x40_0000)), Some(&seed));
        assert_eq!(wide(&page.0, header::SETUP_DATA), 0x3F_F000);
        assert_eq!(word(&page.0, header::MAGIC), MAGIC);
        assert_eq!(page.0[header::TYPE_OF_LOADER], 0xFF);
        assert_eq!(
            u64::from(word(&page.0, header::CMD_LINE_PTR)),
            Double::CMDLINE
        );
        assert_eq!(word(&page.0, header::RAMDISK_IMAGE), 0x3F_FFF7);
        assert_eq!(word(&page.0, header::RAMDISK_SIZE), 9);
        assert_eq!(usize::from(page.0[zero_page::E820_ENTRIES]), map.len());
        for (i, entry) in map.iter().enumerate() {
            assert_eq!(page.0[zero_page::E820_TABLE + i * 20..][..20], entry[..20]);
        }
    }

    #[test]
    fn each_fault_has_its_line() {
        let with = |at: usize, bytes: &[u8]| {
            let mut file = image();
            file[at..at + bytes.len()].copy_from_slice(bytes);
            check(&file).unwrap_err().to_string()
        };
        for (message, expected) in [
            (with(header::BOOT_FLAG, &[0]), "no 55 aa"),
            (with(header::LOADFLAGS, &[0]), "is a zImage"),
            (with(header::VERSION, &[6]), "older than 2.12"),
            (with(header::XLOADFLAGS, &[0]), "no 64-bit entry"),
            (with(header::SYSSIZE, &[1, 1]), "fewer bytes than"),
            (with(header::SYSSIZE, &[0, 0]), "fewer bytes than"),
            (with(header::SETUP_SECTS, &[0]), "fewer bytes than"),
            (with(header::PREF_ADDRESS, &[0, 0, 0]), "below 1 MiB"),
            (
                with(header::PREF_ADDRESS, &[0xFF; 8]),
                "beyond the address space",
            ),
            (with(header::PREF_ADDRESS, &[0, 0, 0x40]), "outside RAM"),
            (
                with(header::INIT_SIZE, &[1, 0xF0, 0x1F]),
                "over the module at 0x3ff000",
            ),
            (with(header::CMDLINE_SIZE, &[4]), "no command line as long"),
            (with(header::INITRD_ADDR_MAX, &[0, 0]), "no initrd as high"),
        ] {
            assert!(message.contains(expected), "{message:?} lacks {expected:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_read(flips in prop::collection::vec((0x1F1_usize..0x26C, any::<u8>()), 1..8)) {
            let mut file = image();
            for (at, byte) in flips {
                file[at] = byte;
            }
            let _ = check(&file);
        }
    }
}
