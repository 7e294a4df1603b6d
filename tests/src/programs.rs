//! Programs that make one system call, as bytes, so that no test needs a compiler in an image.

/// What a program is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Abi {
    /// 64 bits.
    X86_64,
    /// 64 bits with numbers of x32.
    X32,
    /// 32 bits, in an executable of 32 bits.
    I386,
}

/// Where a program is in memory.
const BASE: u32 = 0x40_0000;

/// Sizes of the header and of the description of a segment.
const SIZES_64: (u16, u16) = (64, 56);
const SIZES_32: (u16, u16) = (52, 32);
const HEADERS_64: u16 = SIZES_64.0 + SIZES_64.1;

/// A program that makes this system call and exits with the error number, or with the result negated.
#[must_use]
pub fn syscall(abi: Abi, number: u32, arguments: &[u32]) -> Vec<u8> {
    executable(abi, &code(abi, number, arguments))
}

/// A program that sets an extended attribute of a file, and exits with the error number.
#[must_use]
pub fn set_xattr(file: &str, name: &str, value: &[u8]) -> Vec<u8> {
    const SETXATTR: u32 = 188;
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(0);
    let file = [file.as_bytes(), b"\0"].concat();
    let name = [name.as_bytes(), b"\0"].concat();
    let make = |at: u32| {
        let name_at = at + length(&file);
        let value_at = name_at + length(&name);
        // The fifth argument, flags, is zero like every register of a new program.
        let arguments = [at, name_at, value_at, length(value)];
        code(Abi::X86_64, SETXATTR, &arguments)
    };
    // The data lie behind the code, whose length does not depend on where that is.
    let code = make(BASE + u32::from(HEADERS_64) + length(&make(0)));
    executable(Abi::X86_64, &[&code, &file, &name, value].concat())
}

/// The machine code of a program that makes one system call.
fn code(abi: Abi, number: u32, arguments: &[u32]) -> Vec<u8> {
    // mov to the register of each argument, and of the number.
    let registers: [&[u8]; 4] = match abi {
        Abi::X86_64 | Abi::X32 => [&[0xbf], &[0xbe], &[0xba], &[0x41, 0xba]],
        Abi::I386 => [&[0xbb], &[0xb9], &[0xba], &[0xbe]],
    };
    let number = match abi {
        Abi::X32 => number | 0x4000_0000,
        Abi::X86_64 | Abi::I386 => number,
    };
    let mut code = [&[0xb8][..], &number.to_le_bytes()].concat(); // mov eax, number
    let padded = arguments.iter().chain(std::iter::repeat(&0));
    for (register, argument) in registers.into_iter().zip(padded) {
        code.extend_from_slice(register);
        code.extend(argument.to_le_bytes());
    }
    // The call; neg eax; mov first argument, eax; mov eax, exit; the call.
    code.extend_from_slice(match abi {
        Abi::X86_64 | Abi::X32 => &[
            0x0f, 0x05, 0xf7, 0xd8, 0x89, 0xc7, 0xb8, 60, 0, 0, 0, 0x0f, 0x05,
        ],
        Abi::I386 => &[
            0xcd, 0x80, 0xf7, 0xd8, 0x89, 0xc3, 0xb8, 1, 0, 0, 0, 0xcd, 0x80,
        ],
    });
    code
}

/// An executable of one segment that holds its headers and this code.
fn executable(abi: Abi, code: &[u8]) -> Vec<u8> {
    let wide = abi != Abi::I386;
    let (header, segment) = if wide { SIZES_64 } else { SIZES_32 };
    let headers = u32::from(header + segment);
    // Words of the machine: 8 or 4 bytes.
    let word = |value: u32| match wide {
        true => u64::from(value).to_le_bytes().to_vec(),
        false => value.to_le_bytes().to_vec(),
    };
    let half = |value: u16| value.to_le_bytes().to_vec();
    let int = |value: u32| value.to_le_bytes().to_vec();
    let class = if wide { 2 } else { 1 };
    let machine = if wide { 62 } else { 3 };
    let size = headers + u32::try_from(code.len()).unwrap_or(0);
    let flags = int(5); // readable and executable
    let mut parts = vec![
        [&b"\x7fELF"[..], &[class, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]].concat(),
        half(2),
        half(machine),
        int(1),
        word(BASE + headers),
        word(header.into()),
        word(0),
        int(0),
        half(header),
        half(segment),
        half(1),
        half(0),
        half(0),
        half(0),
    ];
    parts.push(int(1));
    if wide {
        parts.push(flags.clone());
    }
    parts.extend([word(0), word(BASE), word(BASE), word(size), word(size)]);
    if !wide {
        parts.push(flags);
    }
    parts.push(word(4096));
    parts.push(code.to_vec());
    parts.concat()
}
