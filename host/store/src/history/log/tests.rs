use std::ffi::OsStr;
use std::path::Path;

use super::frame::MAX_FRAME;
use super::names::{segment_number, segment_path};
use super::{LogReader, StepLog};
use crate::disk;

fn create(dir: &Path, limit: u64) -> StepLog {
    let log = StepLog::create(dir.join("1.log")).unwrap();
    log.with_limit(limit)
}

/// What a log contains, with the text of each stream joined while it does not change.
fn read(log: &mut LogReader) -> Vec<(u8, Vec<u8>)> {
    let mut found: Vec<(u8, Vec<u8>)> = Vec::new();
    while let Some(frame) = log.next_frame().unwrap() {
        match found.last_mut() {
            Some((stream, data)) if *stream == frame.stream => data.extend(frame.data),
            _ => found.push((frame.stream, frame.data)),
        }
    }
    found
}

fn reopened(log: &StepLog) -> Vec<(u8, Vec<u8>)> {
    read(&mut LogReader::open(log.path()).unwrap())
}

fn allocated(dir: &Path) -> u64 {
    disk::allocated_below(dir).unwrap()
}

/// Lines that are all different, as many as make `length` bytes.
fn lines(length: usize) -> Vec<u8> {
    let lines = (0..).flat_map(|n| format!("line {n:010}\n").into_bytes());
    lines.take(length).collect()
}

#[test]
fn a_flood_of_output_costs_little() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = create(dir.path(), StepLog::DEFAULT_LIMIT);
    let flood = b"y\n".repeat(32 << 10);
    for _ in 0..512 {
        log.append(1, &flood);
    }
    log.finish();
    assert!(allocated(dir.path()) < 1 << 20, "{}", allocated(dir.path()));
    assert_eq!(reopened(&log), [(1, flood.repeat(512))]);
}

#[test]
fn many_small_pieces_cost_little_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = create(dir.path(), StepLog::DEFAULT_LIMIT);
    for _ in 0..400_000 {
        log.append(1, b"y\n");
    }
    log.finish();
    assert!(allocated(dir.path()) < 1 << 20, "{}", allocated(dir.path()));
    assert_eq!(reopened(&log), [(1, b"y\n".repeat(400_000))]);
}

#[test]
fn nothing_below_the_limit_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = create(dir.path(), 1 << 20);
    let text = lines(1 << 20);
    for piece in text.chunks(1000) {
        log.append(1, piece);
    }
    log.finish();
    assert_eq!(reopened(&log), [(1, text)]);
}

#[test]
fn beyond_the_limit_the_first_and_last_parts_stay_and_the_cut_says_what_is_missing() {
    for limit in [StepLog::LEAST_LIMIT, 1 << 20] {
        let dir = tempfile::tempdir().unwrap();
        let mut log = create(dir.path(), limit);
        let half = usize::try_from(limit / 2).unwrap();
        let text = lines(half * 20);
        for piece in text.chunks(70_000) {
            log.append(1, piece);
        }
        log.finish();
        let found = reopened(&log);
        let [(1, head), (StepLog::LEFT_OUT, missing), (1, tail)] = found.as_slice() else {
            panic!("{} parts", found.len());
        };
        let segment = half / 4;
        assert!(head.len() >= half - segment && tail.len() >= half - segment);
        assert!(head.len() + tail.len() <= 2 * half + 3 * segment);
        assert!(text.starts_with(head) && text.ends_with(tail));
        let missing: usize = std::str::from_utf8(missing).unwrap().parse().unwrap();
        assert_eq!(head.len() + missing + tail.len(), text.len());
    }
}

#[test]
fn a_reader_that_is_as_fast_as_the_writer_sees_all_of_a_log_beyond_its_limit() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = create(dir.path(), StepLog::LEAST_LIMIT);
    let mut reader = LogReader::open(log.path()).unwrap();
    let text = lines(1 << 20);
    let mut found = Vec::new();
    for piece in text.chunks(5000) {
        log.append(2, piece);
        found.extend(read(&mut reader).into_iter().flat_map(|(stream, data)| {
            assert_eq!(stream, 2);
            data
        }));
    }
    assert_eq!(found, text);
    assert!(!reader.is_torn() && !reader.is_cut());
}

#[test]
fn a_slow_reader_learns_what_it_missed() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = create(dir.path(), StepLog::LEAST_LIMIT);
    let mut reader = LogReader::open(log.path()).unwrap();
    let text = lines(1 << 20);
    log.append(1, &text[..10]);
    assert_eq!(reader.next_frame().unwrap().unwrap().data, text[..10]);
    log.append(1, &text[10..]);
    let found = read(&mut reader);
    let [(1, head), (StepLog::LEFT_OUT, missing), (1, tail)] = found.as_slice() else {
        panic!("{} parts", found.len());
    };
    let missing: usize = std::str::from_utf8(missing).unwrap().parse().unwrap();
    assert_eq!(10 + head.len() + missing + tail.len(), text.len());
}

#[test]
fn a_log_goes_on_after_a_part_of_it_was_finished() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = create(dir.path(), StepLog::DEFAULT_LIMIT);
    let mut reader = LogReader::open(log.path()).unwrap();
    let text = lines(200_000);
    log.append(1, &text);
    log.finish();
    log.finish();
    log.append(2, b"again");
    let all = [(1, text), (2, b"again".to_vec())];
    assert_eq!(read(&mut reader), all);
    assert_eq!(reopened(&log), all);
}

#[test]
fn a_damaged_segment_hides_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = create(dir.path(), StepLog::LEAST_LIMIT);
    log.append(1, &lines(30_000));
    log.append(2, b"end");
    let second = segment_path(log.path(), 1);
    let length = disk::length(&second).unwrap().unwrap();
    let file = disk::open_lasting(&second).unwrap();
    disk::write_at(&file, &[0xff], length - 1).unwrap();
    let mut reader = LogReader::open(log.path()).unwrap();
    let found = read(&mut reader);
    assert!(reader.is_torn());
    assert!(found.iter().any(|(stream, _)| *stream == StepLog::LEFT_OUT));
    assert_eq!(found.last(), Some(&(2, b"end".to_vec())));
}

#[test]
fn logs_of_other_steps_are_not_segments() {
    let first = Path::new("logs/1.log");
    let number = |name: &str| segment_number(first, OsStr::new(name));
    assert_eq!(segment_path(first, 12), Path::new("logs/1.12.log"));
    assert_eq!(number("1.12.log"), Some(12));
    for other in [
        "1.log",
        "11.log",
        "11.2.log",
        "1.2.sealed",
        "1.x.log",
        "2.1.log",
    ] {
        assert_eq!(number(other), None, "{other}");
    }
}

#[test]
fn a_reader_follows_a_log_that_grows() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = create(dir.path(), StepLog::DEFAULT_LIMIT);
    log.append(1, b"hello ");
    log.append(2, b"world");
    let mut reader = LogReader::open(log.path()).unwrap();
    assert_eq!(reader.next_frame().unwrap().unwrap().data, b"hello ");
    assert_eq!(reader.next_frame().unwrap().unwrap().data, b"world");
    assert_eq!(reader.next_frame().unwrap(), None);
    log.append(1, &vec![7; MAX_FRAME + 1]);
    assert_eq!(reader.next_frame().unwrap().unwrap().data.len(), MAX_FRAME);
    assert_eq!(reader.next_frame().unwrap().unwrap().data, [7]);
    assert_eq!(reader.next_frame().unwrap(), None);
    assert!(!reader.is_torn());
}

#[test]
fn a_log_of_the_same_step_is_not_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let first = create(dir.path(), StepLog::DEFAULT_LIMIT);
    assert!(StepLog::create(first.path().to_owned()).is_err());
}
