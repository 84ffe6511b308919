//! One instruction of QEMU 10, put right for a KVM that shadows.
//!
//! Its decoder adds a control register's number to an intercept's code only if that code is not zero
//! (qemu/target/i386/tcg/decode-new.c.inc, `X86_TYPE_C`), and that of reading CR0 is zero: so a guest's
//! read of CR3 or CR4 is an exit only where a read of CR0 is one. kvm_amd with `npt=0` intercepts CR3
//! always, and CR0 no longer once the guest's is as it has it: from then on a guest that reads CR3 gets
//! KVM's, and Linux, which looks there at its first page fault, gives up. Every MOV of a control
//! register has an intercept, so the test is one too many.
//!
//! KVM and the kernel on it stay as they are, and so does the fetched program: a copy is repaired, for one
//! run.

/// Any byte: a jump's distance.
const ANY: i16 = -1;
/// What stands there in Debian's builds.
#[rustfmt::skip]
const CODE: [i16; 31] = [
    // test $0xf7, %dl; jne: no such control register.
    0xF6, 0xC2, 0xF7, 0x0F, 0x85, ANY, ANY, ANY, ANY,
    // movzbl 0x18(%r12), %eax; test %al, %al: the intercept's code.
    0x41, 0x0F, 0xB6, 0x44, 0x24, 0x18, 0x84, 0xC0,
    // je: it is zero. This goes.
    0x0F, 0x84, ANY, ANY, ANY, ANY,
    // add %edx, %eax; mov %al, 0x18(%r12); jmp: the register's number is added.
    0x01, 0xD0, 0x41, 0x88, 0x44, 0x24, 0x18, 0xE9,
];

/// Where in it the jump stands.
const JUMP: usize = 17;

/// An instruction of as many bytes that does nothing (Intel SDM vol. 2B, NOP).
const NOTHING: [u8; 6] = [0x66, 0x0F, 0x1F, 0x44, 0x00, 0x00];

/// Repairs the program; `false`, and nothing is done, unless the code is there exactly once.
pub(super) fn repair(program: &mut [u8]) -> bool {
    let is_code = |window: &[u8]| {
        let mut pairs = window.iter().zip(CODE);
        pairs.all(|(byte, code)| code == ANY || code == i16::from(*byte))
    };
    let windows = program.windows(CODE.len()).enumerate();
    let mut found = windows.filter(|(_, window)| is_code(window));
    let (Some((at, _)), None) = (found.next(), found.next()) else {
        return false;
    };
    program[at + JUMP..][..NOTHING.len()].copy_from_slice(&NOTHING);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(any: u8) -> Vec<u8> {
        let byte = |code| u8::try_from(code).unwrap_or(any);
        CODE.into_iter().map(byte).collect()
    }

    #[test]
    fn the_jump_goes() {
        let mut program = [&[0xF6, 0xC2][..], &code(7), &[0xE9; 40]].concat();
        let before = program.clone();
        assert!(repair(&mut program));
        let changed = 2 + JUMP..2 + JUMP + NOTHING.len();
        assert_eq!(program[changed.clone()], NOTHING);
        assert_eq!(program[..changed.start], before[..changed.start]);
        assert_eq!(program[changed.end..], before[changed.end..]);
        assert!(!repair(&mut program), "twice");
    }

    #[test]
    fn what_is_not_known_for_certain_is_left_alone() {
        let cut = &code(7)[..CODE.len() - 1];
        for text in [&[][..], &[0; 100], cut, &[code(7), code(8)].concat()] {
            let mut program = text.to_vec();
            assert!(!repair(&mut program));
            assert_eq!(program, text);
        }
    }
}
