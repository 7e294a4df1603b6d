//! The arguments of the trampoline: what it is told between its own command and the monitor's program.
//!
//! They are words and paths in turn, up to `--`; then the monitor's program and its arguments follow.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::PathBuf;

use super::{Confinement, Inherited, Source, Wall};

/// What the trampoline is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Handover {
    /// The process that must be its parent.
    pub(crate) owner: u32,
    pub(crate) confinement: Confinement,
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<OsString>,
}

impl Handover {
    pub(crate) fn into_args(self) -> Vec<OsString> {
        let mut args = vec![self.owner.to_string().into()];
        let mut say = |word: &str, value: OsString| args.extend([word.into(), value]);
        let confinement = self.confinement;
        for wall in confinement.walls.present {
            say("wall", wall.word().into());
        }
        for group in confinement.walls.groups {
            say("group", group.to_string().into());
        }
        for device in confinement.devices {
            say("device", device.into());
        }
        for Inherited { number, source } in confinement.inherited {
            say("number", number.to_string().into());
            match source {
                Source::Read(path) => say("read", path.into()),
                Source::ReadWrite(path) => say("read-write", path.into()),
                Source::Connect(path) => say("connect", path.into()),
                Source::Output => say("output", OsString::new()),
            }
        }
        say("file-size", confinement.file_size.to_string().into());
        args.push("--".into());
        args.push(self.program.into());
        args.extend(self.args);
        args
    }

    pub(crate) fn from_args(args: impl IntoIterator<Item = OsString>) -> io::Result<Self> {
        let mut args = args.into_iter();
        let owner = number(&args.next().ok_or_else(invalid)?)?;
        let mut confinement = Confinement::default();
        let mut next: Option<i32> = None;
        loop {
            let word = args.next().ok_or_else(invalid)?;
            if word == "--" {
                break;
            }
            let value = args.next().ok_or_else(invalid)?;
            let source = match word.to_str().ok_or_else(invalid)? {
                "wall" => {
                    confinement.walls.present.push(wall(&value)?);
                    continue;
                }
                "group" => {
                    confinement.walls.groups.push(number(&value)?);
                    continue;
                }
                "device" => {
                    confinement.devices.push(value.into());
                    continue;
                }
                "number" => {
                    next = Some(number(&value)?);
                    continue;
                }
                "file-size" => {
                    confinement.file_size = number(&value)?;
                    continue;
                }
                "read" => Source::Read(value.into()),
                "read-write" => Source::ReadWrite(value.into()),
                "connect" => Source::Connect(value.into()),
                "output" => Source::Output,
                _ => return Err(invalid()),
            };
            let number = next.take().ok_or_else(invalid)?;
            confinement.inherited.push(Inherited { number, source });
        }
        Ok(Self {
            owner,
            confinement,
            program: args.next().ok_or_else(invalid)?.into(),
            args: args.collect(),
        })
    }
}

fn wall(word: &OsStr) -> io::Result<Wall> {
    let found = Wall::ALL.into_iter().find(|wall| word == wall.word());
    found.ok_or_else(invalid)
}

fn number<T: std::str::FromStr>(text: &OsStr) -> io::Result<T> {
    let number = text.to_str().and_then(|text| text.parse().ok());
    number.ok_or_else(invalid)
}

fn invalid() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        "the arguments are not those of a monitor",
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use super::super::Walls;
    use super::*;

    fn handover() -> Handover {
        let odd = PathBuf::from(OsString::from_vec(b"/a,b \xff\n--".into()));
        let inherited = |number, source| Inherited { number, source };
        Handover {
            owner: 17,
            confinement: Confinement {
                walls: Walls {
                    present: Wall::ALL.into(),
                    groups: vec![36, 0],
                    ..Walls::default()
                },
                inherited: vec![
                    inherited(100, Source::Output),
                    inherited(101, Source::Read(odd.clone())),
                    inherited(102, Source::ReadWrite("--".into())),
                    inherited(103, Source::Connect("vsock".into())),
                ],
                devices: vec!["/dev/kvm".into()],
                file_size: u64::MAX,
            },
            program: "/usr/bin/qemu".into(),
            args: vec!["-m".into(), "--".into(), odd.into()],
        }
    }

    #[test]
    fn the_trampoline_is_told_what_was_said() {
        let said = handover();
        let heard = Handover::from_args(said.clone().into_args()).unwrap();
        assert_eq!(heard, said);
    }

    #[test]
    fn arguments_that_are_cut_or_unknown_are_refused() {
        let args = handover().into_args();
        let until = args.len() - handover().args.len();
        for length in 0..until {
            let cut = args.iter().take(length).cloned();
            assert!(Handover::from_args(cut).is_err(), "{length}");
        }
        for odd in [["wall", "none"], ["door", "1"], ["read", "/without/number"]] {
            let args = ["1"].into_iter().chain(odd).chain(["--", "true"]);
            assert!(
                Handover::from_args(args.map(Into::into)).is_err(),
                "{odd:?}"
            );
        }
    }
}
