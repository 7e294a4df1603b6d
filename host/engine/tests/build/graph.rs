//! Plans in which exponentially many paths lead from the target to the first stage.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use engine::build::{BuildRequest, Class, DockerfileSource};
use exec::Cancel;

use crate::bench::Bench;

/// Far more than it takes, even on a slow machine under load; walking each path would take for ever.
const BOUND: Duration = Duration::from_secs(120);

#[test]
fn diamonds_upon_diamonds_are_planned_built_explained_exported_and_found_again() {
    let bench = Bench::new();
    let out = tempfile::tempdir().unwrap();
    let layout = out.path().join("layout");
    bench.write("a", "one");
    let mut text = "FROM scratch AS s0\nCOPY a /f\nFROM scratch AS s1\nCOPY a /f\n".to_owned();
    for n in 2..200 {
        let (one, two) = (n - 1, n - 2);
        let base = if n % 10 == 0 {
            format!("s{one}")
        } else {
            "scratch".to_owned()
        };
        writeln!(text, "FROM {base} AS s{n}\nCOPY --from=s{one} /f /f").unwrap();
        writeln!(text, "COPY --from=s{two} /f /g{n}").unwrap();
    }
    bench.write("Dockerfile", &text);
    let output = format!("type=oci,tar=false,dest={}", layout.display());
    let request = BuildRequest {
        dockerfile: DockerfileSource::Default,
        explain: true,
        outputs: vec![output.parse().unwrap()],
        ..bench.request("")
    };
    let begin = Instant::now();
    for hit in [false, true] {
        let built = bench.build_as(&request, &Cancel::new());
        let last = built.why("[s199 2/2]").to_owned();
        let image = built.result.unwrap().image;
        assert_eq!(last.starts_with("hit"), hit, "{last}");
        // Each layer of the target once, however many paths lead to it; manifest and configuration.
        let blobs = std::fs::read_dir(layout.join("blobs/sha256")).unwrap();
        let layers: HashSet<_> = image.layers.iter().collect();
        assert_eq!(blobs.count(), layers.len() + 2);
    }
    assert!(begin.elapsed() < BOUND, "{:?}", begin.elapsed());
}

#[test]
fn a_stage_with_more_layers_than_an_image_can_have_is_refused() {
    let bench = Bench::new();
    bench.write("a", "one");
    let text = |n: usize| format!("FROM scratch\n{}", "COPY a /a\n".repeat(n));
    let built = bench.build(&text(500)).result.unwrap();
    assert_eq!(built.image.layers.len(), 500);
    let err = bench.build(&text(501)).result.unwrap_err();
    assert_eq!(err.class(), Class::User);
    assert!(err.to_string().contains("Dockerfile:502"), "{err}");
    assert!(err.to_string().contains("500 layers"), "{err}");
}
