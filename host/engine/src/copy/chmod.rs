//! The value of `--chmod`: octal, or symbolic as for chmod(1).

/// Bits that `+w` and the like do not change if they do not say for whom.
const UMASK: u32 = 0o022;
/// All bits a mode has.
const MODE: u32 = 0o7777;

/// A change of the mode of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ModeChange {
    /// This mode, for files and directories alike.
    Octal(u32),
    /// Changes to the current mode.
    Symbolic(Vec<Action>),
}

/// One operator of a symbolic mode, with its operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Action {
    /// The bits it may change: those of user, group, others.
    who: u32,
    /// It does not say for whom.
    anybody: bool,
    operator: Operator,
    bits: Bits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Add,
    Remove,
    Set,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bits {
    /// Read, write and execute bits, each for all three, and set-id and sticky bits.
    Given { bits: u32, execute_if_any: bool },
    /// The current bits of user, group or others, by the shift that selects them.
    Copied(u32),
}

impl ModeChange {
    /// Parses the value of the flag.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            let mode = u32::from_str_radix(text, 8)
                .ok()
                .filter(|mode| *mode <= MODE)?;
            return Some(Self::Octal(mode));
        }
        let mut actions = Vec::new();
        for clause in text.split(',') {
            parse_clause(clause, &mut actions)?;
        }
        Some(Self::Symbolic(actions))
    }

    /// The new mode of a file with `mode`.
    pub(crate) fn apply(&self, mode: u32, directory: bool) -> u32 {
        match self {
            Self::Octal(mode) => *mode,
            Self::Symbolic(actions) => actions
                .iter()
                .fold(mode, |mode, action| action.apply(mode, directory)),
        }
    }

    /// The mode, if the value is octal.
    pub(crate) fn octal(&self) -> Option<u32> {
        match self {
            Self::Octal(mode) => Some(*mode),
            Self::Symbolic(_) => None,
        }
    }
}

/// `[ugoa]*([-+=]([rwxXst]*|[ugo]))+`
fn parse_clause(clause: &str, actions: &mut Vec<Action>) -> Option<()> {
    let at = clause.find(['+', '-', '='])?;
    let (who_text, mut rest) = clause.split_at(at);
    let mut who = 0;
    for letter in who_text.chars() {
        who |= match letter {
            'u' => 0o4700,
            'g' => 0o2070,
            'o' => 0o1007,
            'a' => MODE,
            _ => return None,
        };
    }
    while let Some(operator) = rest.chars().next() {
        let operator = match operator {
            '+' => Operator::Add,
            '-' => Operator::Remove,
            '=' => Operator::Set,
            _ => return None,
        };
        let text = rest.get(1..)?;
        let end = text.find(['+', '-', '=']).unwrap_or(text.len());
        let bits = parse_bits(text.get(..end)?)?;
        let anybody = who_text.is_empty();
        actions.push(Action {
            who: if anybody { MODE } else { who },
            anybody,
            operator,
            bits,
        });
        rest = text.get(end..)?;
    }
    Some(())
}

fn parse_bits(text: &str) -> Option<Bits> {
    match text {
        "u" => return Some(Bits::Copied(6)),
        "g" => return Some(Bits::Copied(3)),
        "o" => return Some(Bits::Copied(0)),
        _ => {}
    }
    let (mut bits, mut execute_if_any) = (0, false);
    for letter in text.chars() {
        match letter {
            'r' => bits |= 0o444,
            'w' => bits |= 0o222,
            'x' => bits |= 0o111,
            's' => bits |= 0o6000,
            't' => bits |= 0o1000,
            'X' => execute_if_any = true,
            _ => return None,
        }
    }
    Some(Bits::Given {
        bits,
        execute_if_any,
    })
}

impl Action {
    fn apply(self, mode: u32, directory: bool) -> u32 {
        let bits = match self.bits {
            Bits::Given {
                bits,
                execute_if_any: true,
            } if directory || mode & 0o111 != 0 => bits | 0o111,
            Bits::Given { bits, .. } => bits,
            Bits::Copied(shift) => (mode >> shift & 0o7) * 0o111,
        };
        // The sticky bit belongs to none of them, so all may set it.
        let bits = bits & (self.who | 0o1000) & if self.anybody { !UMASK } else { MODE };
        match self.operator {
            Operator::Add => mode | bits,
            Operator::Remove => mode & !bits,
            Operator::Set => mode & !self.who | bits,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, mode: u32, directory: bool, want: u32) {
        let got = ModeChange::parse(text)
            .expect("a mode")
            .apply(mode, directory);
        assert_eq!(got, want, "{text} on {mode:o}: {got:o}");
    }

    #[test]
    fn octal_replaces() {
        check("644", 0o4755, true, 0o644);
        check("0", 0o755, false, 0);
        check("07777", 0, false, 0o7777);
    }

    #[test]
    fn symbolic_changes() {
        check("+x", 0o644, false, 0o755);
        check("u=rwX,go=rX", 0o600, false, 0o644);
        check("u=rwX,go=rX", 0o700, false, 0o755);
        check("u=rwX,go=rX", 0o600, true, 0o755);
        check("g=u", 0o750, false, 0o770);
        check("go-rwx", 0o755, false, 0o700);
        check("a+w", 0o444, false, 0o666);
        check("+w", 0o444, false, 0o644);
        check("u+s", 0o755, false, 0o4755);
        check("+t", 0o755, true, 0o1755);
        check("o=", 0o1755, true, 0o750);
        check("u-x+s", 0o755, false, 0o4655);
        check("u=", 0o4755, false, 0o055);
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "", "8", "10000", "rw", "u", "+q", "x+r", "u=g+", "u+r,", "-1",
        ] {
            let parsed = ModeChange::parse(text);
            let empty_change = text == "u=g+";
            assert_eq!(parsed.is_some(), empty_change, "{text}: {parsed:?}");
        }
    }
}
