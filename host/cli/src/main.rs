//! The `cofferdam` command. It is the only part of the program that talks to the user, and the only
//! one that reads the environment and the home directory.
//!
//! Data goes to standard output, everything else to standard error. The exit status tells who has
//! to act ([`exit::Class`]).
//!
//! | module | what it does |
//! |---|---|
//! | [`command`] | one file per command: its options, its help, and `run` |
//! | [`progress`] | shows a running build: `plain`, `tty`, `quiet` or `rawjson` |
//! | [`exit`] | error classes, exit statuses and the text of error messages |
//! | [`output`] | writes data to standard output and messages to standard error |
//! | [`sanitize`] | removes escape sequences from untrusted text |
//! | [`directories`] | default locations of the store and of the guest image |
//! | [`size`], [`values`] | parse and print the values of options |
//! | [`table`] | tables and relative times |
//! | [`signals`], [`logging`] | Ctrl-C, and log messages of the libraries |
#![forbid(unsafe_code)]

mod command;
mod directories;
mod exit;
mod logging;
mod output;
mod progress;
mod sanitize;
mod signals;
mod size;
mod table;
mod values;

fn main() -> std::process::ExitCode {
    command::main(std::env::args_os())
}
