//! The two byte queues of a connection.
//!
//! Invariant: a byte that went in comes out once and in order, and memory use is in proportion to the
//! queued bytes, whatever the number of packets or calls.

use std::collections::VecDeque;

use bytes::Bytes;

/// The payload of a packet: in guest memory, or a slice in tests.
pub(crate) trait Payload {
    /// Fills `to` with the next bytes.
    fn read(&mut self, to: &mut [u8]) -> Result<(), Unreadable>;
}

/// The payload cannot be read: guest memory was unmapped meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unreadable;

/// Bytes from the guest that the application has not read yet.
///
/// The connection's credit bounds it: nothing is pushed that was not granted.
#[derive(Debug, Clone, Default)]
pub(crate) struct ReceiveBuffer {
    segments: VecDeque<Segment>,
    /// One empty segment for the next bytes, so that a steady stream allocates nothing.
    spare: Option<Segment>,
    len: usize,
}

#[derive(Debug, Clone)]
struct Segment {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

/// Small enough for a thousand idle connections, large enough to copy a packet in a few pieces.
const SEGMENT: usize = 16 * 1024;

impl std::hash::Hash for ReceiveBuffer {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.len.hash(state);
        for segment in &self.segments {
            segment.filled().hash(state);
        }
    }
}

impl Segment {
    fn new() -> Self {
        Self {
            bytes: vec![0; SEGMENT].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }

    fn filled(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    fn free(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }
}

impl ReceiveBuffer {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Copies `len` bytes of `payload`.
    pub(crate) fn push(
        &mut self,
        len: usize,
        payload: &mut impl Payload,
    ) -> Result<(), Unreadable> {
        let mut left = len;
        while left > 0 {
            let segment = self.tail();
            let free = segment.free();
            let n = left.min(free.len());
            let (to, _) = free.split_at_mut(n);
            payload.read(to)?;
            segment.end += n;
            self.len += n;
            left -= n;
        }
        Ok(())
    }

    /// Moves bytes to the front of `to`. Returns how many.
    pub(crate) fn pop(&mut self, to: &mut [u8]) -> usize {
        let mut to = to;
        let mut moved = 0;
        while let Some(segment) = self.segments.front_mut() {
            let n = segment.filled().len().min(to.len());
            let (now, later) = to.split_at_mut(n);
            now.copy_from_slice(segment.filled().split_at(n).0);
            segment.start += n;
            moved += n;
            if !segment.filled().is_empty() {
                break;
            }
            self.retire();
            to = later;
        }
        self.len -= moved;
        moved
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// The last segment, with free space.
    fn tail(&mut self) -> &mut Segment {
        if self
            .segments
            .back()
            .is_none_or(|segment| segment.end == SEGMENT)
        {
            let segment = self.spare.take().unwrap_or_else(Segment::new);
            self.segments.push_back(segment);
        }
        let last = self.segments.len() - 1;
        self.segments
            .get_mut(last)
            .unwrap_or_else(|| unreachable!("one was just pushed"))
    }

    fn retire(&mut self) {
        if let Some(mut segment) = self.segments.pop_front() {
            segment.start = 0;
            segment.end = 0;
            self.spare = Some(segment);
        }
    }
}

/// Bytes for the guest that are not in a packet yet.
#[derive(Debug, Clone, Default, Hash)]
pub(crate) struct SendQueue {
    buffers: VecDeque<Bytes>,
    /// Small buffers are merged here, after all of `buffers`: otherwise a million one-byte writes
    /// would cost far more memory than their bytes.
    tail: Vec<u8>,
    len: usize,
}

/// Smaller buffers cost more to keep than to copy.
const COPY_BREAK: usize = 1024;

/// Small buffers are merged up to this size.
const TAIL: usize = 64 * 1024;

impl SendQueue {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends `data`, without copying it unless it is small.
    pub(crate) fn push(&mut self, data: Bytes) {
        self.len += data.len();
        if data.len() < COPY_BREAK {
            self.append(&data);
        } else {
            self.close_tail();
            self.buffers.push_back(data);
        }
    }

    /// Appends a copy of `data`.
    pub(crate) fn push_copy(&mut self, data: &[u8]) {
        self.len += data.len();
        if data.len() < COPY_BREAK {
            self.append(data);
        } else {
            self.close_tail();
            self.buffers.push_back(Bytes::copy_from_slice(data));
        }
    }

    /// Moves the first `n` bytes to the end of `to`.
    pub(crate) fn take(&mut self, n: usize, to: &mut Vec<Bytes>) {
        debug_assert!(n <= self.len, "more taken than queued");
        let mut left = n;
        while left > 0 {
            if self.buffers.is_empty() {
                self.close_tail();
            }
            let Some(first) = self.buffers.front_mut() else {
                break;
            };
            if first.len() <= left {
                left -= first.len();
                to.extend(self.buffers.pop_front());
            } else {
                to.push(first.split_to(left));
                left = 0;
            }
        }
        self.len -= n - left;
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    fn append(&mut self, data: &[u8]) {
        if self.tail.len() + data.len() > TAIL {
            self.close_tail();
        }
        self.tail.extend_from_slice(data);
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            self.buffers
                .push_back(Bytes::from(std::mem::take(&mut self.tail)));
        }
    }
}

#[cfg(test)]
impl Payload for &[u8] {
    fn read(&mut self, to: &mut [u8]) -> Result<(), Unreadable> {
        let (now, later) = self.split_at_checked(to.len()).ok_or(Unreadable)?;
        to.copy_from_slice(now);
        *self = later;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Byte `i` of a stream in these tests.
    fn nth(i: usize) -> u8 {
        u8::try_from(i % 251).unwrap()
    }

    #[test]
    fn reading_in_step_with_writing_allocates_one_segment() {
        let mut buffer = ReceiveBuffer::default();
        for round in 0..100_u8 {
            buffer
                .push(SEGMENT, &mut [round; SEGMENT].as_slice())
                .unwrap();
            assert_eq!(buffer.segments.len(), 1);
            assert_eq!(buffer.pop(&mut [0; SEGMENT]), SEGMENT);
        }
        assert!(buffer.segments.is_empty());
    }

    #[test]
    fn a_million_tiny_writes_cost_little_more_than_their_bytes() {
        let mut queue = SendQueue::default();
        for _ in 0..1_000_000 {
            queue.push_copy(b"x");
        }
        assert!(queue.buffers.len() < 20);
        let held: usize = queue.buffers.iter().map(Bytes::len).sum();
        assert_eq!(held + queue.tail.len(), queue.len());
    }

    #[test]
    fn a_large_buffer_is_not_copied() {
        let data = vec![7; 100_000];
        let place = data.as_ptr();
        let mut queue = SendQueue::default();
        queue.push(data.into());
        let mut taken = Vec::new();
        queue.take(100_000, &mut taken);
        assert_eq!(taken[0].as_ptr(), place);
    }

    proptest! {
        #[test]
        fn what_goes_into_the_receive_buffer_comes_out(
            steps in prop::collection::vec((any::<bool>(), 0usize..40_000), 1..60),
        ) {
            let mut buffer = ReceiveBuffer::default();
            let (mut put, mut got) = (0usize, 0usize);
            for (push, n) in steps {
                if push {
                    let data: Vec<u8> = (put..put + n).map(nth).collect();
                    buffer.push(n, &mut data.as_slice()).unwrap();
                    put += n;
                } else {
                    let mut data = vec![0; n];
                    let n = buffer.pop(&mut data);
                    prop_assert!(data[..n].iter().zip(got..).all(|(&b, i)| b == nth(i)));
                    got += n;
                }
                prop_assert_eq!(buffer.len(), put - got);
                prop_assert!(buffer.segments.len() <= (put - got) / SEGMENT + 2);
            }
        }

        #[test]
        fn what_goes_into_the_send_queue_comes_out(
            steps in prop::collection::vec((0u8..3, 0usize..3_000), 1..100),
        ) {
            let mut queue = SendQueue::default();
            let (mut put, mut got) = (0usize, 0usize);
            for (what, n) in steps {
                if what < 2 {
                    let data: Vec<u8> = (put..put + n).map(nth).collect();
                    if what == 0 { queue.push(data.into()) } else { queue.push_copy(&data) }
                    put += n;
                } else {
                    let mut taken = Vec::new();
                    let n = n.min(queue.len());
                    queue.take(n, &mut taken);
                    let taken = taken.concat();
                    prop_assert_eq!(taken.len(), n);
                    prop_assert!(taken.iter().zip(got..).all(|(&b, i)| b == nth(i)));
                    got += n;
                }
                prop_assert_eq!(queue.len(), put - got);
            }
        }
    }
}
