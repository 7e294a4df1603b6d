//! Files that are made to exhaust the planner end in an error or a plan, in bounded time.

use std::time::{Duration, Instant};

use super::*;

/// Far more than any of them takes, even on a slow machine under load.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// Reads and plans; the result does not matter, the time does.
#[track_caller]
fn ends(text: &str) -> Result<Plan, DockerfileError> {
    let start = Instant::now();
    let result = try_plan_with(text, &options());
    assert!(start.elapsed() < TIME_LIMIT, "{:?}", start.elapsed());
    result
}

#[track_caller]
fn ends_with(text: &str, part: &str) {
    let err = ends(text).unwrap_err();
    assert!(err.message.contains(part), "{err}");
}

#[test]
fn a_heredoc_with_a_nul_byte_is_refused() {
    ends_with("FROM a\nRUN <<E\n\0\nE", "NUL byte");
}

#[test]
fn the_largest_allowed_files_are_read() {
    let stages: String = (0..1_000)
        .map(|n| format!("FROM a AS s{n}\nRUN x\n"))
        .collect();
    assert_eq!(ends(&stages).unwrap().stages.len(), 1);
    let chain: String = (1..1_000)
        .map(|n| format!("FROM s{} AS s{n}\nRUN x\n", n - 1))
        .collect();
    assert_eq!(
        ends(&format!("FROM a AS s0\n{chain}"))
            .unwrap()
            .stages
            .len(),
        1_000
    );
    let long = format!("FROM a\nRUN echo {}", "x \\\n".repeat(1 << 20));
    assert_eq!(runs(&ends(&long).unwrap().stages[0]).len(), 1);
}

#[test]
fn copies_of_large_states_are_bounded() {
    let ports = "EXPOSE 0-65535\n";
    let chain: String = (1..900)
        .map(|n| format!("FROM s{} AS s{n}\n", n - 1))
        .collect();
    ends_with(
        &format!("FROM a AS s0\n{ports}{chain}"),
        "plan would be larger",
    );
    ends_with(
        &format!("FROM a\n{}", ports.repeat(900)),
        "plan would be larger",
    );
    let trigger = format!("ONBUILD RUN <<E\n{}\nE\n", "x".repeat(60_000));
    let children = "FROM s0\n".repeat(900);
    ends_with(
        &format!(
            "FROM a AS s0\n{}{children}{}",
            trigger.repeat(20),
            chain_to_s0()
        ),
        "ONBUILD",
    );
    let heredoc = format!(
        "COPY {} /d/\n{}{}\na\n",
        "<<a ".repeat(5_000),
        "a\n".repeat(4_999),
        "x".repeat(60_000)
    );
    assert_eq!(
        ends(&format!("FROM a\n{heredoc}")).unwrap().stages[0]
            .steps
            .len(),
        1
    );
}

/// A last stage that needs many children of the first.
fn chain_to_s0() -> String {
    let copies: String = (1..900)
        .map(|n| format!("COPY --from={n} /a /b\n"))
        .collect();
    format!("FROM a\n{copies}")
}

#[test]
fn expensive_texts_end_in_time() {
    let names: String = (0..9_000).map(|n| format!("ENV variable{n}=x\n")).collect();
    let unset: String = (0..5_000).map(|n| format!("$varable{n}")).collect();
    ends(&format!(
        "FROM a\n{names}{}",
        format!("USER {unset}\n").repeat(200)
    ))
    .unwrap();
    ends(&format!(
        "FROM a\nENV A={}\n{}",
        "a".repeat(60_000),
        "ENV B=${A//*a*a*a*b/x}\n".repeat(20)
    ))
    .unwrap_err();
    ends(&format!("FROM a\nRUN {}", "<<a".repeat(20_000))).unwrap();
    ends(&format!("FROM a\nRUN {}", "<<a ".repeat(16_000))).unwrap_err();
    ends(&format!("FROM a\nCMD {}", "[".repeat(60_000))).unwrap();
    ends(&format!("FROM a\nENV A={}", "\"${".repeat(20_000))).unwrap_err();
}

/// Every stage copies from the two before it: 2^n paths lead to the first one.
#[test]
fn diamonds_in_the_largest_file_are_planned() {
    let stages: String = (2..1_000)
        .map(|n| {
            let (one, two) = (n - 1, n - 2);
            let copies = format!("COPY --from=s{one} /a /a\nCOPY --from=s{two} /b /b\n");
            format!("FROM scratch AS s{n}\n{}", copies.repeat(4))
        })
        .collect();
    let text = format!("FROM scratch AS s0\nFROM scratch AS s1\n{stages}");
    let plan = ends(&text).unwrap();
    let steps: usize = plan.stages.iter().map(|stage| stage.steps.len()).sum();
    assert_eq!((plan.stages.len(), steps), (1_000, 8 * 998));
}
