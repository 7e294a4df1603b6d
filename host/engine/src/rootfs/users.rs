//! Users and groups of a root, from its own `/etc/passwd` and `/etc/group`.
//!
//! The user of a step and the owner of a copy interpret the same text differently, as Docker does: a
//! number alone means group 0 for a step, and the group with the same number for an owner.

use super::{ReadError, Rootfs};
use crate::similar::is_close;

/// Maximum size of a user or group file, in bytes.
const MAX_FILE: u64 = 16 << 20;

/// The user that a step runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home directory, if the user is in `/etc/passwd`.
    pub home: Option<String>,
}

/// Why a user or group cannot be looked up.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// The file has no such name.
    #[error("unable to find {what} `{name}` in {file}{}", hint(close, *missing))]
    Unknown {
        /// `user` or `group`.
        what: &'static str,
        /// The name.
        name: String,
        /// The file that was searched.
        file: &'static str,
        /// Whether the file does not exist.
        missing: bool,
        /// Similar names.
        close: Vec<String>,
    },
    /// The file cannot be read.
    #[error("cannot read {file}")]
    Read {
        /// The file.
        file: &'static str,
        /// Why not.
        #[source]
        source: ReadError,
    },
}

fn hint(close: &[String], missing: bool) -> String {
    if missing {
        return " (the image does not have this file; use a number)".to_owned();
    }
    match close {
        [] => String::new(),
        names => format!(" (did you mean `{}`?)", names.join("`, `")),
    }
}

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// A line of the user file.
struct Passwd {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

/// A line of the group file.
struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

impl Rootfs {
    /// The user of a step: `user[:group]`, each a name or a number; empty means root.
    ///
    /// # Errors
    /// If a name is unknown, or a file cannot be read.
    pub fn user(&self, spec: &str) -> Result<User, UserError> {
        let (user, group) = split(spec);
        let user = if user.is_empty() { "0" } else { user };
        let number = id(user);
        let line = match self.passwd(user, number) {
            // A number does not have to be in the file.
            Err(UserError::Unknown { .. }) if number.is_some() => None,
            other => Some(other?),
        };
        let uid = line
            .as_ref()
            .map(|line| line.uid)
            .or(number)
            .unwrap_or_default();
        let home = line.as_ref().map(|line| line.home.clone());
        if let Some(group) = group {
            let gid = self.group(group)?;
            return Ok(User {
                uid,
                gid,
                groups: Vec::new(),
                home,
            });
        }
        let gid = line.as_ref().map_or(0, |line| line.gid);
        let groups = line.map_or_else(|| Ok(Vec::new()), |line| self.memberships(&line.name))?;
        Ok(User {
            uid,
            gid,
            groups,
            home,
        })
    }

    /// User and group of `--chown=SPEC`.
    ///
    /// # Errors
    /// If a name is unknown, or a file cannot be read.
    pub fn owner(&self, spec: &str) -> Result<(u32, u32), UserError> {
        let (user, group) = split(spec);
        let (uid, gid) = match number(user) {
            Some(number) => (number, number),
            None => {
                let line = self.passwd(user, None)?;
                (line.uid, line.gid)
            }
        };
        match group {
            Some(group) => Ok((uid, self.group(group)?)),
            None => Ok((uid, gid)),
        }
    }

    /// User and group of the directories that WORKDIR creates: as for a copy, but an unknown user is root.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn workdir_owner(&self, spec: &str) -> Result<(u32, u32), UserError> {
        match self.owner(spec) {
            Err(UserError::Unknown { .. }) => Ok((0, 0)),
            other => other,
        }
    }

    fn passwd(&self, name: &str, number: Option<u32>) -> Result<Passwd, UserError> {
        let text = self.text(PASSWD)?;
        let lines = || {
            text.iter()
                .flat_map(|text| text.lines())
                .filter_map(passwd_line)
        };
        let by_name = lines().find(|line| line.name == name);
        by_name
            .or_else(|| lines().find(|line| Some(line.uid) == number))
            .ok_or_else(|| unknown("user", name, PASSWD, &text, lines().map(|line| line.name)))
    }

    fn group(&self, name: &str) -> Result<u32, UserError> {
        if let Some(number) = number(name) {
            return Ok(number);
        }
        let text = self.text(GROUP)?;
        let lines = || {
            text.iter()
                .flat_map(|text| text.lines())
                .filter_map(group_line)
        };
        let line = lines().find(|line| line.name == name);
        line.map(|line| line.gid)
            .ok_or_else(|| unknown("group", name, GROUP, &text, lines().map(|line| line.name)))
    }

    /// The groups that list the user as a member.
    fn memberships(&self, user: &str) -> Result<Vec<u32>, UserError> {
        let text = self.text(GROUP)?;
        let lines = text
            .iter()
            .flat_map(|text| text.lines())
            .filter_map(group_line);
        let member = |line: &Group| line.members.iter().any(|member| member == user);
        Ok(lines.filter(member).map(|line| line.gid).collect())
    }

    /// The text of a file, or `None` if it does not exist.
    fn text(&self, file: &'static str) -> Result<Option<String>, UserError> {
        match self.read(file.as_bytes(), MAX_FILE) {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            Err(ReadError::Missing(_)) => Ok(None),
            Err(source) => Err(UserError::Read { file, source }),
        }
    }
}

fn split(spec: &str) -> (&str, Option<&str>) {
    spec.split_once(':')
        .map_or((spec, None), |(user, group)| (user, Some(group)))
}

/// The number of a name that needs no file: digits, `root`, or nothing.
fn number(name: &str) -> Option<u32> {
    if name.is_empty() || name == "root" {
        Some(0)
    } else {
        id(name)
    }
}

/// A user or group number. The highest one means "do not change" to the kernel.
fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX)
}

fn unknown(
    what: &'static str,
    name: &str,
    file: &'static str,
    text: &Option<String>,
    names: impl Iterator<Item = String>,
) -> UserError {
    let close = names
        .filter(|known| is_close(known, name))
        .take(3)
        .collect();
    UserError::Unknown {
        what,
        name: name.to_owned(),
        file,
        missing: text.is_none(),
        close,
    }
}

/// `name:password:uid:gid:comment:home:shell`
fn passwd_line(line: &str) -> Option<Passwd> {
    let mut fields = line.trim().split(':');
    let name = fields.next()?.to_owned();
    let uid = id(fields.nth(1)?)?;
    let gid = id(fields.next()?)?;
    let home = fields.nth(1).unwrap_or_default().to_owned();
    Some(Passwd {
        name,
        uid,
        gid,
        home,
    })
}

/// `name:password:gid:member,member`
fn group_line(line: &str) -> Option<Group> {
    let mut fields = line.trim().split(':');
    let name = fields.next()?.to_owned();
    let gid = id(fields.nth(1)?)?;
    let members = fields
        .next()
        .unwrap_or_default()
        .split(',')
        .map(str::to_owned)
        .collect();
    Some(Group { name, gid, members })
}
