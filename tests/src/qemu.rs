//! A QEMU that is not quite the real one: a script of its name, in front of it in the search path.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::Bench;

/// How the script changes what it is told, and then becomes the real QEMU.
#[derive(Debug, Default)]
pub struct OtherQemu<'a> {
    /// Done first, in words of the shell.
    pub before: &'a str,
    /// A branch of the shell's `case` that changes the argument `$word`; empty for none.
    pub change: &'a str,
    /// Additional arguments.
    pub more: &'a str,
}

impl OtherQemu<'_> {
    /// Writes the script among the outputs. Returns a search path with it.
    #[must_use]
    pub fn install(&self, bench: &Bench) -> String {
        let Self {
            before,
            change,
            more,
        } = self;
        let dir = bench.out().join("bin");
        fs::create_dir_all(&dir).expect("directory of programs");
        let path = std::env::var("PATH").expect("PATH");
        let change = if change.is_empty() {
            String::new()
        } else {
            format!("case \"$word\" in {change} ;; esac")
        };
        let script = format!(
            r#"#!/bin/sh
PATH='{path}'
case "$*" in *--version) exec qemu-system-x86_64 "$@" ;; esac
{before}
for word; do
  shift
  {change}
  set -- "$@" "$word"
done
exec qemu-system-x86_64 "$@" {more}
"#
        );
        let program = dir.join("qemu-system-x86_64");
        fs::write(&program, script).expect("script in place of QEMU");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("its mode");
        format!("{}:{path}", dir.display())
    }
}
