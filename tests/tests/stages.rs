//! What steps see and make. None of it is about the VM, so all of it is one build in one VM: each
//! test looks at a stage of its own.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use tests::{BUSYBOX, Bench, list};

/// The stages. The last one collects what the others made.
const STAGES: &str = r#"
FROM base AS left
RUN echo left >/left
FROM base AS right
RUN echo right >/right
FROM base AS unneeded
RUN false

FROM base AS user
COPY passwd group /etc/
ARG FLAVOUR
ENV COLOUR=blue
WORKDIR /w
USER ann
RUN echo "$(id -u) $(id -g) $(id -G) $HOME $PWD $COLOUR $FLAVOUR $PATH"; echo problem >&2

FROM base AS heredoc
RUN <<SCRIPT
#!/bin/awk -f
BEGIN { print 6 * 7 >"/answer" }
SCRIPT

FROM base AS directories
RUN ls -ld /etc && echo root:x:0:0::/: >/etc/passwd

FROM base AS equal
RUN true
RUN true 2
COPY a /a
RUN rm /a
COPY a /a
RUN test -f /a && true 3
RUN true 4

FROM base AS large
COPY data /data
RUN cp /data /copy && cmp /data /copy

FROM scratch
COPY --from=left /left /sides/
COPY --from=right /right /sides/
COPY --from=user /w /user
COPY --from=heredoc / /heredoc/
COPY --from=directories /etc /directories
COPY --from=equal /a /equal
COPY --from=large /copy /large
"#;

/// What the build said and made.
struct Built {
    stderr: String,
    /// As [`list`] has it.
    tree: BTreeMap<String, String>,
    /// Contents of the small files.
    texts: BTreeMap<String, String>,
    /// Whether the large file is the same.
    large: bool,
}

/// Builds all stages, once for all tests.
fn built() -> &'static Built {
    static BUILT: OnceLock<Built> = OnceLock::new();
    BUILT.get_or_init(|| {
        let bench = Bench::new();
        let data = write_context(&bench);
        let base = BUSYBOX.replacen("FROM scratch", "FROM scratch AS base", 1);
        let dest = bench.out().join("tree");
        let args = ["--build-arg", "FLAVOUR=sweet", "-o", dest.to_str().unwrap()];
        let done = bench
            .build(&format!("{base}{STAGES}"), &args)
            .expect_status(0);
        bench.check_clean();
        let small = ["sides/left", "sides/right", "heredoc/answer", "equal"];
        Built {
            stderr: done.stderr,
            tree: list(&dest),
            texts: small
                .map(|name| (name.to_owned(), text(&dest, name)))
                .into(),
            large: fs::read(dest.join("large")).unwrap() == data,
        }
    })
}

fn text(dest: &Path, name: &str) -> String {
    fs::read_to_string(dest.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Returns the content of the large file.
fn write_context(bench: &Bench) -> Vec<u8> {
    bench.write(
        "passwd",
        "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n",
    );
    bench.write("group", "root:x:0:\nann:x:1000:\nmore:x:2000:ann\n");
    bench.write("a", "a");
    let data: Vec<u8> = (0..20_000_000_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    bench.write("data", &data);
    data
}

fn says(text: &str) {
    let stderr = &built().stderr;
    assert!(stderr.contains(text), "no `{text}` in:\n{stderr}");
}

#[test]
fn only_the_needed_stages_run() {
    let built = built();
    assert_eq!(built.texts["sides/left"], "left\n");
    assert_eq!(built.texts["sides/right"], "right\n");
    assert!(!built.stderr.contains("[unneeded"), "{}", built.stderr);
}

#[test]
fn a_step_has_its_user_directory_and_environment() {
    says(
        "1000 1000 1000 2000 /home/ann /w blue sweet /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    );
    says("problem");
}

#[test]
fn a_heredoc_that_names_its_interpreter_is_run_by_it_and_leaves_nothing() {
    let built = built();
    assert_eq!(built.texts["heredoc/answer"], "42\n");
    for absent in ["dev", "proc", "sys", "etc"] {
        let path = format!("heredoc/{absent}");
        assert!(!built.tree.contains_key(&path), "{path}");
    }
}

/// A step writes into a directory that the builder created.
#[test]
fn directories_that_the_builder_created_have_default_modes() {
    says(" drwxr-xr-x ");
    let facts = &built().tree["directories"];
    assert!(facts.starts_with("d 755 "), "{facts}");
}

/// Steps that change nothing have equal layers, and no file system takes a layer twice.
#[test]
fn a_step_may_have_equal_layers_below_it() {
    assert_eq!(built().texts["equal"], "a");
}

#[test]
fn a_large_layer_arrives_whole_in_both_directions() {
    assert!(built().large, "the large file differs");
}
