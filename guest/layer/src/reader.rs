//! Reads a tar from a source that lends its buffer.

use std::io::{self, BufRead};

use crate::{Entry, Event, LayerError, Parser};

/// Reads a tar entry by entry. It pulls where [`Parser`] is pushed, and hands the data of files on
/// from the buffers of the source, without a copy.
#[derive(Debug)]
pub struct Reader<R> {
    source: R,
    parser: Parser,
    /// Whether an entry is being read.
    is_inside: bool,
}

/// Why a [`Reader`] cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The tar cannot be a layer.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The source failed.
    #[error(transparent)]
    Source(#[from] io::Error),
}

/// What one step of reading came to.
enum Step {
    Entry(Entry),
    /// Data, which was handed on.
    Data,
    EndOfEntry,
    EndOfTar,
}

impl<R: BufRead> Reader<R> {
    /// Reads from `source`, piece by piece as it lends them.
    pub fn new(source: R) -> Self {
        Self {
            source,
            parser: Parser::new(),
            is_inside: false,
        }
    }

    /// The next entry; passes over the data of the one before that was not read. `None` at the end of
    /// the source, which must be the end of the tar.
    ///
    /// # Errors
    /// If the tar cannot be a layer, or the source fails.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, ReadError> {
        self.data(|_| Ok::<(), ReadError>(()))?;
        loop {
            match self.step(&mut |_| Ok::<(), ReadError>(()))? {
                Step::Entry(entry) => {
                    self.is_inside = true;
                    return Ok(Some(entry));
                }
                Step::EndOfTar => return Ok(None),
                Step::Data | Step::EndOfEntry => {}
            }
        }
    }

    /// Hands the data of the current entry to `take`, in pieces as they come.
    ///
    /// # Errors
    /// If the tar cannot be a layer, the source fails, or `take` does.
    pub fn data<E: From<ReadError>>(
        &mut self,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while self.is_inside {
            match self.step(&mut take)? {
                Step::EndOfEntry => self.is_inside = false,
                Step::EndOfTar | Step::Entry(_) | Step::Data => {}
            }
        }
        Ok(())
    }

    /// Reads up to the end of the next event. What the tar has not needed stays with the source.
    fn step<E: From<ReadError>>(
        &mut self,
        take: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<Step, E> {
        // Some events need no more bytes, and the source may wait for those.
        let mut lent: &[u8] = &[];
        let mut event = self.parser.next(&mut lent).map_err(ReadError::from)?;
        let mut n_bytes = 0;
        if event.is_none() {
            let piece = self.source.fill_buf().map_err(ReadError::from)?;
            if piece.is_empty() {
                self.parser.finish().map_err(ReadError::from)?;
                return Ok(Step::EndOfTar);
            }
            lent = piece;
            event = self.parser.next(&mut lent).map_err(ReadError::from)?;
            n_bytes = piece.len() - lent.len();
        }
        let step = match event {
            Some(Event::Entry(entry)) => Step::Entry(entry),
            Some(Event::Data(data)) => {
                take(data)?;
                Step::Data
            }
            Some(Event::End) => Step::EndOfEntry,
            None => Step::Data,
        };
        self.source.consume(n_bytes);
        Ok(step)
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;
    use crate::{Attributes, Digest, EntryKind, Style, Writer};

    const DATA: &[u8] = &[7; 1300];

    /// Two files of this content.
    fn tar() -> Vec<u8> {
        let mut tar = Writer::new(Vec::new(), Style::Diff);
        for path in [b"a", b"b"] {
            let kind = EntryKind::File {
                size: DATA.len() as u64,
                digest: Digest::UNKNOWN,
                offset: 0,
            };
            tar.header(path, &Attributes::default(), &kind).unwrap();
            tar.out().extend_from_slice(DATA);
            tar.pad(DATA.len() as u64).unwrap();
        }
        tar.finish().unwrap()
    }

    #[test]
    fn data_is_handed_on_where_the_source_has_it() {
        let tar = tar();
        let mut reader = Reader::new(tar.as_slice());
        assert_eq!(reader.next_entry().unwrap().unwrap().path, b"a");
        let mut pieces = 0;
        let take = |piece: &[u8]| {
            pieces += 1;
            assert!(tar.as_ptr_range().contains(&piece.as_ptr()) && piece == DATA);
            Ok::<(), ReadError>(())
        };
        reader.data(take).unwrap();
        assert_eq!(pieces, 1);
    }

    #[test]
    fn data_may_come_in_pieces_and_may_be_passed_over() {
        let tar = tar();
        for capacity in [1, 100, 512, 5000] {
            let mut reader = Reader::new(BufReader::with_capacity(capacity, tar.as_slice()));
            assert_eq!(reader.next_entry().unwrap().unwrap().path, b"a");
            assert_eq!(reader.next_entry().unwrap().unwrap().path, b"b");
            let mut data = Vec::new();
            let take = |piece: &[u8]| {
                data.extend_from_slice(piece);
                Ok::<(), ReadError>(())
            };
            reader.data(take).unwrap();
            assert_eq!(data, DATA, "{capacity}");
            assert!(reader.next_entry().unwrap().is_none());
            assert!(reader.next_entry().unwrap().is_none());
        }
    }

    #[test]
    fn a_tar_that_is_cut_is_an_error() {
        let tar = tar();
        let ends = [0, 100, 512, 600, 1811, 1812, 2047];
        for end in ends {
            let mut reader = Reader::new(&tar[..end]);
            let read = (0..3).try_for_each(|_| reader.next_entry().map(|_| ()));
            assert!(matches!(read, Err(ReadError::Layer(_))), "{end}");
        }
        let mut reader = Reader::new(&tar[..2048]);
        assert!(reader.next_entry().unwrap().is_some() && reader.next_entry().unwrap().is_none());
    }

    #[test]
    fn what_follows_the_end_is_an_error() {
        let tar = [tar(), vec![0; 3000], vec![1]].concat();
        let mut reader = Reader::new(tar.as_slice());
        assert!(reader.next_entry().unwrap().is_some() && reader.next_entry().unwrap().is_some());
        assert!(reader.next_entry().is_err());
    }

    #[test]
    fn a_source_that_fails_is_told_from_a_bad_tar() {
        struct Failing;
        impl io::Read for Failing {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::ConnectionReset.into())
            }
        }
        let tar = tar();
        let source = io::Read::chain(&tar[..512], Failing);
        let mut reader = Reader::new(BufReader::new(source));
        assert!(reader.next_entry().unwrap().is_some());
        assert!(matches!(reader.next_entry(), Err(ReadError::Source(_))));
    }
}
