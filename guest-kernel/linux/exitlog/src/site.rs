//! The site: a page of this process with one CPUID instruction, at an address that is always the
//! same and that nothing else uses.
//!
//! A gate is a linear address, whoever runs there: Exitvisor does not know processes. In a place
//! where other programs have code, each of their passes would cost an exit (they would be stepped
//! over, unharmed). The same address for every exitlog has another good: a gate that a killed one
//! left behind is found, used and withdrawn by the next.

use std::arch::global_asm;
use std::io;

use exit_abi::leaf::Registers;

use crate::error::Error;

/// Far from where Linux puts programs (0x55…, 0x56…), libraries and stacks (0x7e…, 0x7f…), and from
/// where programs that cannot be moved lie (below 4 GiB).
pub(crate) const PAGE: u64 = 0x4FFF_FFFF_F000;
const SIZE: usize = 4096;

global_asm!(
    ".pushsection .rodata.exitlog_site, \"a\", @progbits",
    // (leaf, subleaf, to: 4 words), System V calling convention.
    "exitlog_site_begin:",
    "push rbx",
    "mov r8, rdx",
    "mov eax, edi",
    "mov ecx, esi",
    "exitlog_site_cpuid:",
    "cpuid",
    "mov [r8], eax",
    "mov [r8 + 4], ebx",
    "mov [r8 + 8], ecx",
    "mov [r8 + 12], edx",
    "pop rbx",
    "ret",
    "exitlog_site_end:",
    ".popsection",
);

unsafe extern "C" {
    static exitlog_site_begin: [u8; 0];
    static exitlog_site_cpuid: [u8; 0];
    static exitlog_site_end: [u8; 0];
}

/// The routine's bytes, and where in them the instruction is.
fn routine() -> (&'static [u8], u64) {
    let [begin, cpuid, end] = [
        &raw const exitlog_site_begin,
        &raw const exitlog_site_cpuid,
        &raw const exitlog_site_end,
    ]
    .map(|symbol| symbol.cast::<u8>());
    let length = end as usize - begin as usize;
    // SAFETY: the symbols are the beginning and the end of a routine in read-only data, which lives as
    // long as the program.
    let bytes = unsafe { std::slice::from_raw_parts(begin, length) };
    (bytes, cpuid as u64 - begin as u64)
}

/// The page, mapped.
#[derive(Debug)]
pub(crate) struct Site {
    /// Address of the instruction.
    address: u64,
}

impl Site {
    /// Maps the page.
    pub(crate) fn map() -> Result<Self, Error> {
        let failed = |why| Error::Site { at: PAGE, why };
        let (bytes, offset) = routine();
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: MAP_FIXED_NOREPLACE maps where nothing is, or fails.
        let page = unsafe {
            libc::mmap(
                PAGE as *mut libc::c_void,
                SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                -1,
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(failed(io::Error::last_os_error()));
        }
        let site = Self {
            address: PAGE + offset,
        };
        if page as u64 != PAGE {
            // A kernel before 4.17 takes the address for a wish.
            // SAFETY: it was mapped just now, and nobody knows it.
            unsafe { libc::munmap(page, SIZE) };
            return Err(failed(io::Error::from(io::ErrorKind::AddrInUse)));
        }
        // SAFETY: the page is ours, writable, and larger than the routine.
        unsafe { page.cast::<u8>().copy_from(bytes.as_ptr(), bytes.len()) };
        // SAFETY: the page is ours; nothing of Rust's is in it.
        if unsafe { libc::mprotect(page, SIZE, libc::PROT_READ | libc::PROT_EXEC) } != 0 {
            return Err(failed(io::Error::last_os_error()));
        }
        Ok(site)
    }

    /// Has the kernel keep the page in memory: Exitvisor looks at the instruction when it is asked to
    /// arm the gate. A child of the process that did so must do it again (mlock(2)).
    pub(crate) fn pin(&self) -> Result<(), Error> {
        // SAFETY: the page is mapped as long as `self` lives.
        if unsafe { libc::mlock(PAGE as *const libc::c_void, SIZE) } == 0 {
            return Ok(());
        }
        let why = io::Error::last_os_error();
        Err(Error::Site { at: PAGE, why })
    }

    /// Address of the instruction.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// CPUID, at the site.
    pub(crate) fn cpuid(&self, leaf: u32, subleaf: u32) -> Registers {
        // SAFETY: the routine was copied to the page, which is executable as long as `self` lives.
        let call: extern "sysv64" fn(u32, u32, *mut [u32; 4]) =
            unsafe { std::mem::transmute(PAGE as *const ()) };
        let mut r = [0; 4];
        call(leaf, subleaf, &mut r);
        Registers {
            eax: r[0],
            ebx: r[1],
            ecx: r[2],
            edx: r[3],
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // SAFETY: the page was mapped by `map`, and whoever could call it is gone.
        unsafe { libc::munmap(PAGE as *mut libc::c_void, SIZE) };
    }
}

/// CPUID anywhere: where Exitvisor's static leaves are asked.
pub(crate) fn plain_cpuid(leaf: u32, subleaf: u32) -> Registers {
    let r = std::arch::x86_64::__cpuid_count(leaf, subleaf);
    Registers {
        eax: r.eax,
        ebx: r.ebx,
        ecx: r.ecx,
        edx: r.edx,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_site_executes_cpuid() {
        let (bytes, offset) = routine();
        assert_eq!(bytes[offset as usize..][..2], [0x0F, 0xA2]);
        let site = Site::map().unwrap();
        assert_eq!(site.address(), PAGE + offset);
        // (Leaf 0 is the same on every CPU.)
        assert_eq!(site.cpuid(0, 0), plain_cpuid(0, 0));
        assert!(Site::map().is_err(), "it is there already");
        drop(site);
        assert!(Site::map().is_ok());
    }
}
