//! Users and groups of a root, by its own `/etc/passwd` and `/etc/group`.
//!
//! A step's user and the owner of a copy read the same text differently, as the Dockerfile
//! language has it: a number alone means group 0 for a step, and the group of the same number
//! for an owner.

use super::{ReadError, Rootfs};
use crate::similar::is_close;

/// Longest user or group file that is looked into.
const MAX_FILE: u64 = 16 << 20;

/// Whom a step runs as.
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

/// Why a user or group has no number.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// No line of the file has the name.
    #[error("no {what} `{name}` in {file}{}", hint(close, *missing))]
    Unknown {
        /// `user` or `group`.
        what: &'static str,
        /// The name.
        name: String,
        /// The file that was looked into.
        file: &'static str,
        /// There is no such file.
        missing: bool,
        /// Names that are much like it.
        close: Vec<String>,
    },
    /// The file cannot be read.
    #[error("cannot look into {file}")]
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
        return " (the image has no such file; use a number)".to_owned();
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
    /// Whom a step runs as: `user[:group]`, each a name or a number, empty for root.
    ///
    /// # Errors
    /// If a name is unknown, or a file cannot be read.
    pub fn user(&self, spec: &str) -> Result<User, UserError> {
        let (user, group) = split(spec);
        let user = if user.is_empty() { "0" } else { user };
        let number = id(user);
        let line = match self.passwd(user, number) {
            // A number needs no files.
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

    /// Who owns what is copied with `--chown=SPEC`.
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

    /// Who owns the directories that WORKDIR makes: as for a copy, but an unknown user is root.
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

    /// A file of the root, or `None` if it has none.
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

/// What stands for a number without any file: digits, `root`, and nothing at all.
fn number(name: &str) -> Option<u32> {
    if name.is_empty() || name == "root" {
        Some(0)
    } else {
        id(name)
    }
}

/// A user or group number. The highest one means "leave it as it is" to the kernel.
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
