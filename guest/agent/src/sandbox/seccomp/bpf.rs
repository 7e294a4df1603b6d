//! The little of an assembler that filters of system calls need.
//!
//! Programs are built from the end: a part that is jumped over is made first, so that its length is
//! known. Conditional jumps reach 255 instructions, so [`branch`] goes farther by an unconditional one.

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W,
    sock_filter,
};

/// A part of a program.
pub(crate) type Code = Vec<sock_filter>;

/// Offsets in the kernel's `seccomp_data`.
pub(crate) const NUMBER: u32 = 0;
pub(crate) const ARCHITECTURE: u32 = 4;

/// Offsets of the low and the high half of the first argument. This is for little-endian machines.
pub(crate) const FIRST_ARGUMENT: [u32; 2] = [16, 20];

/// Offset of the low half of the second argument.
pub(crate) const SECOND_ARGUMENT: u32 = 24;

/// A comparison of what was loaded.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Test {
    Equal(u32),
    AtLeast(u32),
}

fn instruction(code: u32, k: u32) -> sock_filter {
    sock_filter {
        // Codes of classic BPF are below 256.
        code: u16::try_from(code).unwrap_or(u16::MAX),
        jt: 0,
        jf: 0,
        k,
    }
}

/// Loads a word of the system call's data.
pub(crate) fn load(offset: u32) -> sock_filter {
    instruction(BPF_LD | BPF_W | BPF_ABS, offset)
}

/// Keeps some bits of what was loaded.
pub(crate) fn mask(bits: u32) -> sock_filter {
    instruction(BPF_ALU | BPF_AND | BPF_K, bits)
}

/// Ends with this action.
pub(crate) fn answer(action: u32) -> sock_filter {
    instruction(BPF_RET | BPF_K, action)
}

/// Goes on with one of two parts. Both must end with an answer.
pub(crate) fn branch(test: Test, then: Code, otherwise: Code) -> Code {
    let (operation, value) = match test {
        Test::Equal(value) => (BPF_JEQ, value),
        Test::AtLeast(value) => (BPF_JGE, value),
    };
    let over = u32::try_from(otherwise.len()).unwrap_or(u32::MAX);
    let mut code = vec![
        // If true, the next instruction jumps over `otherwise`.
        sock_filter {
            jf: 1,
            ..instruction(BPF_JMP | operation | BPF_K, value)
        },
        instruction(BPF_JMP | BPF_JA, over),
    ];
    code.extend(otherwise);
    code.extend(then);
    code
}
