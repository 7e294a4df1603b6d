//! Sinks that lend their buffer, so that data is read into it without a copy.

use std::io::{self, Read, Write};

/// A sink that lends its buffer.
pub(crate) trait Fill: Write {
    /// Where the next data belongs; never empty.
    fn space(&mut self) -> io::Result<&mut [u8]>;
    /// So many bytes were read into the last [`Self::space`].
    fn filled(&mut self, n: usize);
}

impl<W: Fill> Fill for &mut W {
    fn space(&mut self) -> io::Result<&mut [u8]> {
        (**self).space()
    }
    fn filled(&mut self, n: usize) {
        (**self).filled(n);
    }
}

/// Moves `size` bytes from `source`, which must have at least that many, into `sink`.
pub(crate) fn copy(sink: &mut impl Fill, source: &mut impl Read, size: u64) -> io::Result<()> {
    let mut left = size;
    while left > 0 {
        let space = sink.space()?;
        let want = space.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let n = source.read(space.get_mut(..want).unwrap_or_default())?;
        if n == 0 {
            let text = "a file became shorter while it was read";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        sink.filled(n);
        left -= n as u64;
    }
    Ok(())
}

#[cfg(test)]
impl Fill for Vec<u8> {
    fn space(&mut self) -> io::Result<&mut [u8]> {
        self.extend_from_slice(&[0xee; 100]);
        let at = self.len() - 100;
        Ok(&mut self[at..])
    }
    fn filled(&mut self, n: usize) {
        self.truncate(self.len() - 100 + n);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_the_size_that_was_asked_for() {
        let source = [7; 350];
        for size in [0, 1, 99, 100, 101, 350] {
            let mut sink = Vec::new();
            copy(&mut sink, &mut source.as_slice(), size as u64).unwrap();
            assert_eq!(sink, source[..size]);
        }
    }

    #[test]
    fn data_that_ends_early_is_an_error() {
        let err = copy(&mut Vec::new(), &mut &b"abc"[..], 4).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::UnexpectedEof);
    }
}
