//! The jumps of a bzImage's own code, found by their structure: from where it was loaded to where it has
//! moved itself, and from there into the kernel that it has unpacked.
//!
//! Source: linux/arch/x86/boot/compressed/head_64.S, `startup_64` and `.Lrelocated`:
//!
//! ```text
//!         leaq  rva(.Lrelocated)(%rbx), %rax      RBX: where it has moved itself to
//!         jmp   *%rax                             the first
//!     …
//!     .Lrelocated:
//!         …
//!         rep   stosq                             clears the BSS
//!         …
//!         call  extract_kernel
//!         movq  %r15, %rsi                        popq %rsi, before 6.3
//!         jmp   *%rax                             the second; RAX: where the kernel is entered
//! ```

use std::ops::Range;

/// `jmp *%rax`.
pub const JUMP: [u8; 2] = [0xFF, 0xE0];
/// `lea imm32(%rbx), %rax`, without its offset.
const LEA: [u8; 3] = [0x48, 0x8D, 0x83];
/// `rep stosq`.
const CLEAR: [u8; 3] = [0xF3, 0x48, 0xAB];
/// `call rel32`, without its offset.
const CALL: u8 = 0xE8;
/// Where the 64-bit entry is, and behind what else the first jump does not lie.
const HEAD: Range<u64> = 0x200..0x2000;
/// From the start of `.Lrelocated`, no further than this to the second jump.
const RELOCATED: usize = 1024;
/// What may stand between the call and the jump behind it: `movq %r15, %rsi`, or `popq %rsi`.
const BETWEEN: [&[u8]; 3] = [&[0x4C, 0x89, 0xFE], &[0x5E], &[]];

/// Where the jumps are, from where the image begins; the second from where it has moved itself to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Jumps {
    /// To where it has moved itself.
    pub first: u64,
    /// Into the kernel.
    pub second: u64,
}

/// Finds both in code of this length; `read` reads as much of it as there is from an offset on.
pub fn find(length: u64, read: impl Fn(u64, &mut [u8]) -> usize) -> Option<Jumps> {
    let mut head = vec![0; (HEAD.end - HEAD.start) as usize];
    let got = read(HEAD.start, &mut head);
    let head = head.get(..got)?;
    let leas = positions(head, &LEA);
    leas.filter_map(|at| {
        let offset = head.get(at + LEA.len()..)?.first_chunk()?;
        let target = u64::try_from(i32::from_le_bytes(*offset)).ok()?;
        let jump = at + LEA.len() + 4;
        head.get(jump..)?.starts_with(&JUMP).then_some(())?;
        (HEAD.start..length).contains(&target).then_some(())?;
        let mut code = [0; RELOCATED];
        let got = read(target, &mut code);
        let second = second(code.get(..got)?)?;
        Some(Jumps {
            first: HEAD.start + jump as u64,
            second: target + second as u64,
        })
    })
    .next()
}

/// The jump behind the call behind what clears the BSS.
fn second(code: &[u8]) -> Option<usize> {
    let cleared = positions(code, &CLEAR).next()? + CLEAR.len();
    let jumps = positions(code, &JUMP).filter(|&jump| jump > cleared);
    let mut behind_calls = jumps.filter(|&jump| {
        BETWEEN.iter().any(|between| {
            let call = jump
                .checked_sub(between.len() + 5)
                .filter(|&call| call >= cleared);
            let is_between = code[..jump].ends_with(between);
            is_between && call.is_some_and(|call| code[call] == CALL)
        })
    });
    behind_calls.next()
}

fn positions<'a>(code: &'a [u8], wanted: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    let windows = code.windows(wanted.len()).enumerate();
    windows
        .filter(move |(_, bytes)| *bytes == wanted)
        .map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Code as head_64.S makes it, so much between the head and the rest.
    fn code(payload: usize, behind_call: &[u8]) -> Vec<u8> {
        let mut code = vec![0x90; 0x2CA];
        let target = (0x1000 + payload) as i32;
        // Another jump of the kind that must not be taken for it: to the BSS.
        code[0x240..0x243].copy_from_slice(&LEA);
        code[0x243..0x247].copy_from_slice(&0x10_0000_i32.to_le_bytes());
        code.truncate(0x2C3);
        code.extend_from_slice(&LEA);
        code.extend_from_slice(&target.to_le_bytes());
        code.extend_from_slice(&JUMP);
        code.resize(target as usize, 0xFF);
        code.extend_from_slice(&[0x31, 0xC0, 0x48, 0x29, 0xF9]);
        code.extend_from_slice(&CLEAR);
        code.extend_from_slice(&[0xE8, 1, 2, 3, 0, 0x4C, 0x89, 0xFF, 0xE8, 0xFF, 0xE0, 0, 0]);
        code.extend_from_slice(behind_call);
        code.extend_from_slice(&JUMP);
        code.extend_from_slice(&[0xF4, 0xEB, 0xFD]);
        code
    }

    fn find_in(code: &[u8]) -> Option<Jumps> {
        find(code.len() as u64, |at, into| {
            let from = code.get(at as usize..).unwrap_or_default();
            let got = from.len().min(into.len());
            into[..got].copy_from_slice(&from[..got]);
            got
        })
    }

    #[test]
    fn both_jumps_are_found() {
        for behind_call in [&[0x5E][..], &[0x4C, 0x89, 0xFE]] {
            for payload in [0, 0x10_0000] {
                let code = code(payload, behind_call);
                let jumps = find_in(&code).unwrap();
                assert_eq!(jumps.first, 0x2CA);
                assert_eq!(jumps.second, code.len() as u64 - 5);
            }
        }
    }

    #[test]
    fn other_code_has_none() {
        assert_eq!(find_in(&[]), None);
        assert_eq!(find_in(&[0x90; 0x4000]), None);
        let code = code(0, &[0x5E]);
        assert_eq!(find_in(&code[..code.len() - 5]), None, "cut");
    }

    proptest! {
        #[test]
        fn any_damage_is_survived(
            damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..30),
            cut in any::<proptest::sample::Index>(),
        ) {
            let mut code = code(0x100, &[0x4C, 0x89, 0xFE]);
            for (at, value) in damage {
                let at = at.index(code.len());
                code[at] = value;
            }
            code.truncate(cut.index(code.len()));
            if let Some(jumps) = find_in(&code) {
                for at in [jumps.first, jumps.second] {
                    prop_assert_eq!(&code[at as usize..at as usize + 2], &JUMP);
                }
            }
        }
    }

    /// A whole bzImage: `EXITVISOR_BZIMAGE=FILE cargo test -p exitvisor a_real_bzimage -- --nocapture`.
    #[test]
    fn a_real_bzimage_s_jumps_are_found() {
        let Some(path) = std::env::var_os("EXITVISOR_BZIMAGE") else {
            return;
        };
        let image = std::fs::read(path).unwrap();
        let setup = (usize::from(image[0x1F1]) + 1) * 512;
        println!("{:#x?}", find_in(&image[setup..]).expect("the jumps"));
    }
}
