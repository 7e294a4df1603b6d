use engine::event::{Comparison, Explanation, Outcome};
use exec::Stream;

use super::*;

/// Feeds a script of (seconds, payload) to a display and returns what it wrote.
fn play(script: Vec<(f64, Payload)>, ending: Ending) -> String {
    let mut plain = Plain::new(Vec::new());
    let mut now = Duration::ZERO;
    for (seconds, payload) in script {
        now = Duration::from_secs_f64(seconds);
        plain.item(Item { at: now, payload }).unwrap();
    }
    plain.finish(now, ending, &[]).unwrap();
    String::from_utf8(plain.out).unwrap()
}

fn started(step: StepId, name: &str) -> Payload {
    Payload::Event(Event::Started {
        step,
        name: name.into(),
    })
}

fn log(step: StepId, data: &str) -> Payload {
    Payload::Event(Event::Log {
        step,
        stream: Stream::Stdout,
        data: data.into(),
    })
}

fn ended(step: StepId, outcome: Outcome, seconds: f64) -> Payload {
    let took = Duration::from_secs_f64(seconds);
    Payload::Event(Event::Ended {
        step,
        outcome,
        took,
    })
}

fn status(step: StepId, current: u64, total: u64) -> Payload {
    let what = "sha256:ab12".to_owned();
    Payload::Event(Event::Status {
        step,
        what,
        current,
        total,
    })
}

#[track_caller]
fn check(script: Vec<(f64, Payload)>, ending: Ending, want: &str) {
    let got = play(script, ending);
    assert_eq!(got, want, "\n--- got:\n{got}\n--- want:\n{want}");
}

#[test]
fn a_sequential_build_is_shown_in_order() {
    check(
        vec![
            (0.0, started(1, "[1/3] FROM base")),
            (0.1, status(1, 1 << 20, 4 << 20)),
            (0.2, status(1, 4 << 20, 4 << 20)),
            (0.3, ended(1, Outcome::Done, 0.3)),
            (0.3, started(2, "[2/3] COPY . /src")),
            (0.3, ended(2, Outcome::Cached, 0.0)),
            (0.3, started(3, "[3/3] RUN make")),
            (3.42, log(3, "cc -c a.c\ncc -o ")),
            (13.0, log(3, "a a.o\n")),
            (13.5, ended(3, Outcome::Done, 13.2)),
        ],
        Ending::Built,
        "\
#1 [1/3] FROM base
#1 sha256:ab12 1.0MiB / 4.0MiB 0.1s
#1 sha256:ab12 4.0MiB / 4.0MiB 0.2s done
#1 DONE 0.3s

#2 [2/3] COPY . /src
#2 CACHED

#3 [3/3] RUN make
#3 3.120 cc -c a.c
#3 12.70 cc -o a a.o
#3 DONE 13.2s

Built in 13.5s: 3 steps, 1 cached, 2 done
        0.3s  [1/3] FROM base
      CACHED  [2/3] COPY . /src
       13.2s  [3/3] RUN make
",
    );
}

#[test]
fn explanations_and_comparisons_are_shown_with_their_step() {
    let why = Explanation {
        reasons: vec!["ARG \u{1b}[31mA changed from 1 to 2".into()],
        ..Explanation::default()
    };
    let comparison = Comparison::default();
    check(
        vec![
            (0.0, started(1, "[1/1] RUN a")),
            (0.0, Payload::Event(Event::Explained { step: 1, why })),
            (0.1, log(1, "a1\n")),
            (
                0.2,
                Payload::Event(Event::Compared {
                    step: 1,
                    comparison,
                }),
            ),
            (0.2, ended(1, Outcome::Done, 0.2)),
        ],
        Ending::Built,
        "\
#1 [1/1] RUN a
#1 miss: ARG A changed from 1 to 2
#1 0.100 a1
#1 rebuilt: identical to the stored result
#1 DONE 0.2s

Built in 0.2s: 1 step, 0 cached, 1 done
        0.2s  [1/1] RUN a
",
    );
}

#[test]
fn parallel_steps_take_turns_and_wait_a_bounded_time() {
    check(
        vec![
            (0.0, started(1, "[a 1/1] RUN a")),
            (0.0, started(2, "[b 1/1] RUN b")),
            (0.1, log(1, "a1\n")),
            (0.2, log(2, "b1\n")),
            (0.3, log(1, "a2\n")),
            (2.3, log(1, "a3\n")),
            (2.4, log(2, "b2\n")),
            (2.5, ended(1, Outcome::Done, 2.5)),
            (2.6, ended(2, Outcome::Done, 2.6)),
        ],
        Ending::Built,
        "\
#1 [a 1/1] RUN a
#1 0.100 a1
#1 0.300 a2
#1 2.300 a3
#1 ...

#2 [b 1/1] RUN b
#2 0.200 b1
#2 2.400 b2
#2 DONE 2.6s

#1 [a 1/1] RUN a
#1 DONE 2.5s

Built in 2.6s: 2 steps, 0 cached, 2 done
        2.5s  [a 1/1] RUN a
        2.6s  [b 1/1] RUN b
",
    );
}

#[test]
fn a_failure_repeats_the_end_of_the_output_after_the_summary() {
    let output = vec![(Duration::from_secs(1), b"a.c:1: error: no\n".to_vec())];
    check(
        vec![
            (0.0, started(1, "[1/2] RUN make")),
            (1.0, log(1, "a.c:1: error: no\n")),
            (1.2, ended(1, Outcome::Failed("exit code: 2".into()), 1.2)),
            (1.2, Payload::Tail { step: 1, output }),
            (1.2, started(2, "[2/2] RUN make install")),
            (1.2, ended(2, Outcome::NotRun, 0.0)),
            (
                1.2,
                Payload::Event(Event::Warning {
                    text: "old".into(),
                    line: Some(2),
                }),
            ),
        ],
        Ending::Failed,
        "\
#1 [1/2] RUN make
#1 1.000 a.c:1: error: no
#1 ERROR: exit code: 2

#2 [2/2] RUN make install
#2 NOT RUN

Failed after 1.2s: 2 steps, 0 cached, 0 done
  ERROR 1.2s  [1/2] RUN make
     NOT RUN  [2/2] RUN make install
------
 > [1/2] RUN make:
1.000 a.c:1: error: no
------
1 warning found:
 - old (line 2)
",
    );
}

#[test]
fn skipped_output_is_counted() {
    let text = play(
        vec![
            (0.0, started(1, "x")),
            (
                0.0,
                Payload::Skipped {
                    step: 1,
                    bytes: 5 << 20,
                },
            ),
            (0.0, ended(1, Outcome::Done, 0.0)),
        ],
        Ending::Built,
    );
    assert!(
        text.contains("#1 … 5.0MiB of output not shown: the display is too slow\n"),
        "{text}"
    );
}

#[test]
fn a_status_is_shown_every_five_percent_or_five_seconds_and_never_twice_in_half_a_second() {
    let shown = |seconds: f64| {
        let mut script = vec![(0.0, started(1, "pull"))];
        script.extend((0..=1000_u32).map(|n| {
            let part = f64::from(n) / 1e3;
            (seconds * part, status(1, u64::from(n), 1000))
        }));
        let text = play(script, Ending::Built);
        text.matches("sha256:ab12").count()
    };
    assert_eq!((shown(80.0), shown(2.0), shown(0.1)), (21, 5, 2));
    let mut script = vec![(0.0, started(1, "pull"))];
    script.extend((0..=100_u32).map(|n| (f64::from(n), status(1, u64::from(n), 0))));
    assert_eq!(
        play(script, Ending::Built).matches("sha256:ab12").count(),
        21
    );
}

#[test]
fn names_and_reasons_are_sanitized() {
    let text = play(
        vec![
            (0.0, started(1, "RUN \u{1b}[31mx\ny\u{202e}")),
            (
                0.0,
                ended(1, Outcome::Failed("\u{1b}]0;t\u{7}no\u{2066}".into()), 0.0),
            ),
        ],
        Ending::Failed,
    );
    assert!(
        text.contains("#1 RUN x y\\u{202e}\n#1 ERROR: no\\u{2066}\n"),
        "{text}"
    );
}
