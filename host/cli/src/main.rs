//! The `cofferdam` command: the only part of the program that talks to the user, and the only one
//! that reads the environment and the home directory.
//!
//! Data goes to standard output, everything else to standard error. The exit status says whose
//! fault a failure is: 1 the user's, 2 the command line's, 124 a limit's, 125 the host's, 130
//! cancelled. 3 is no failure: a step that was done again made something else.
#![forbid(unsafe_code)]

mod command;
mod exit;
mod logging;
mod places;
mod progress;
mod signals;
mod size;
mod table;
mod values;

fn main() -> std::process::ExitCode {
    command::main(std::env::args_os())
}
