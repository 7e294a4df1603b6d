//! Reading frames from a stream.

use thiserror::Error;

use super::{Frame, FrameError, HEADER_LEN, Header};

/// Why [`read`] returned no frame.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum ReadError<E: std::error::Error + 'static> {
    /// The source failed.
    #[error("cannot read from the connection")]
    Source(#[source] E),
    /// The bytes are not a frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The stream ended inside a frame.
    #[error("the connection ended inside a frame")]
    Cut,
}

/// Reads one frame into `buf`, which grows to the length of the body only after that length was
/// checked. `fill` reads into a slice and returns the number of bytes; zero is the end of the
/// stream. `Ok(None)` means that the stream ended between two frames.
///
/// ```
/// use wire::{Kind, frame};
///
/// let mut stream = frame::encode(Kind::Ping, 0, 3, 0, b"")?;
/// stream.extend(frame::encode(Kind::Pong, 0, 3, 0, b"")?);
///
/// let (mut source, mut buf) = (stream.as_slice(), Vec::new());
/// let mut kinds = Vec::new();
/// while let Some(frame) = frame::read(&mut buf, |buf| std::io::Read::read(&mut source, buf))? {
///     kinds.push(frame.kind);
/// }
/// assert_eq!(kinds, [Kind::Ping, Kind::Pong]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// See [`ReadError`].
pub fn read<E: std::error::Error>(
    buf: &mut Vec<u8>,
    mut fill: impl FnMut(&mut [u8]) -> Result<usize, E>,
) -> Result<Option<Frame<'_>>, ReadError<E>> {
    match read_header(&mut fill)? {
        Some(header) => read_body(header, buf, fill).map(Some),
        None => Ok(None),
    }
}

/// Reads the header of a frame as [`read`] does, and leaves the body to the caller.
///
/// # Errors
/// See [`ReadError`].
pub fn read_header<E: std::error::Error>(
    mut fill: impl FnMut(&mut [u8]) -> Result<usize, E>,
) -> Result<Option<Header>, ReadError<E>> {
    let mut header = [0; HEADER_LEN];
    match fill_whole(&mut header, &mut fill)? {
        0 => Ok(None),
        HEADER_LEN => Ok(Some(Header::parse(&header)?)),
        _ => Err(ReadError::Cut),
    }
}

/// Reads the body that belongs to a header as [`read`] does.
///
/// # Errors
/// See [`ReadError`].
pub fn read_body<E: std::error::Error>(
    header: Header,
    buf: &mut Vec<u8>,
    mut fill: impl FnMut(&mut [u8]) -> Result<usize, E>,
) -> Result<Frame<'_>, ReadError<E>> {
    let len = usize::try_from(header.len).unwrap_or(usize::MAX);
    // The buffer only ever grows, so that reusing it does not zero it again for each frame.
    if buf.len() < len {
        buf.resize(len, 0);
    }
    let Some(body) = buf.get_mut(..len) else {
        return Err(ReadError::Cut);
    };
    if fill_whole(body, &mut fill)? != len {
        return Err(ReadError::Cut);
    }
    Ok(header.verify(body)?)
}

/// Fills `buf` unless the stream ends; returns how many bytes were read.
fn fill_whole<E: std::error::Error>(
    buf: &mut [u8],
    fill: &mut impl FnMut(&mut [u8]) -> Result<usize, E>,
) -> Result<usize, ReadError<E>> {
    let mut done = 0;
    while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match fill(rest).map_err(ReadError::Source)? {
            0 => break,
            n => done += n.min(rest.len()),
        }
    }
    Ok(done)
}
