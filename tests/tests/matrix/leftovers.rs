//! What a build left behind, as the system and the database show it; no code of the product is asked.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use rusqlite::Connection;
use tests::Bench;

/// The files with results that a build may leave.
const RESULTS: [&str; 2] = ["iid", "metadata"];

/// Each thing that is left, in words.
pub(crate) fn of(bench: &Bench) -> Vec<String> {
    let mut found = processes(bench);
    found.extend(rows(bench));
    let store = bench.store();
    for dir in ["instances", "tmp"] {
        found.extend(names(&store.join(dir)).map(|name| format!("file {dir}/{name}")));
    }
    for dir in [bench.out().join("tmp"), bench.out().join("results")] {
        let strange = names(&dir).filter(|name| !RESULTS.contains(&name.as_str()));
        found.extend(strange.map(|name| format!("temporary file {name}")));
    }
    let store = store.display().to_string();
    let lines = |file: &str| fs::read_to_string(file).unwrap();
    for (what, file) in [("socket", "/proc/net/unix"), ("mount", "/proc/self/mounts")] {
        let text = lines(file);
        let below = text
            .lines()
            .filter(|line| line.contains(&format!("{store}/")));
        found.extend(below.map(|line| format!("{what} {line}")));
    }
    found
}

/// Processes that work in the store or were told its name.
pub(crate) fn processes(bench: &Bench) -> Vec<String> {
    let store = fs::canonicalize(bench.store()).unwrap();
    let variable = format!("COFFERDAM_STORE={}", bench.store().display());
    let all = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let of_store = pids.filter(|pid| {
        let works = fs::read_link(format!("/proc/{pid}/cwd"));
        let variables = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        works.is_ok_and(|dir| dir.starts_with(&store))
            || String::from_utf8_lossy(&variables)
                .split('\0')
                .any(|word| word == variable)
    });
    of_store
        .map(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            format!("process {pid} {}", name.trim())
        })
        .collect()
}

fn rows(bench: &Bench) -> Vec<String> {
    let database = Connection::open(bench.store().join("store.db")).unwrap();
    let mut found = Vec::new();
    for table in [
        "instance",
        "claim",
        "lease",
        "resource",
        "vm WHERE instance IS NOT NULL",
        "object WHERE state <> 'valid'",
    ] {
        let count = format!("SELECT count(*) FROM {table}");
        let count: i64 = database.query_row(&count, [], |row| row.get(0)).unwrap();
        if count > 0 {
            found.push(format!("{count} rows of {table}"));
        }
    }
    let mut ids = database.prepare("SELECT id, kind FROM object").unwrap();
    let ids = ids.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get(1)?)));
    let ids: Vec<(i64, String)> = ids.unwrap().map(Result::unwrap).collect();
    let known = |layers_only: bool| -> BTreeSet<String> {
        let wanted = ids
            .iter()
            .filter(|(_, kind)| !layers_only || kind == "layer");
        wanted.map(|(id, _)| id.to_string()).collect()
    };
    for (dir, wanted) in [("blobs", known(false)), ("index", known(true))] {
        let files: BTreeSet<String> = names(&bench.store().join(dir)).collect();
        let extra = files
            .difference(&wanted)
            .map(|name| format!("file {dir}/{name}"));
        found.extend(extra);
        let missing = wanted
            .difference(&files)
            .map(|name| format!("no file {dir}/{name}"));
        found.extend(missing);
    }
    found
}

fn names(dir: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
}
