//! A second reader of ignore files: the rules as their documentation has them, and nothing clever.

/// Pairs of a place in a pattern and one in a path. What has more takes too long.
const MAX_PAIRS: usize = 1 << 16;

/// Added to a byte that is no part of a character.
const RAW: u32 = 0x0011_0000;

/// An ignore file.
pub(super) struct Reference {
    rules: Vec<Rule>,
}

struct Rule {
    negated: bool,
    pattern: Vec<u32>,
}

impl Reference {
    /// Reads a file that is known to be valid.
    pub(super) fn parse(text: &[u8]) -> Self {
        let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text);
        let lines = text.split(|byte| *byte == b'\n');
        let rules = lines.filter(|line| !line.starts_with(b"#"));
        Self {
            rules: rules.filter_map(Rule::parse).collect(),
        }
    }

    /// Whether the last rule that matches `path` or a directory above it ignores; `None` if that
    /// takes too long to find.
    pub(super) fn ignores(&self, path: &[u8]) -> Option<bool> {
        let ends = (0..path.len()).filter(|at| path[*at] == b'/');
        let paths: Vec<Vec<u32>> = ends
            .chain([path.len()])
            .map(|end| units(&path[..end]))
            .collect();
        for rule in self.rules.iter().rev() {
            for path in &paths {
                if rule.pattern.len() * path.len() > MAX_PAIRS {
                    return None;
                }
                if Match::new(&rule.pattern, path).run() {
                    return Some(!rule.negated);
                }
            }
        }
        Some(false)
    }
}

impl Rule {
    fn parse(line: &[u8]) -> Option<Self> {
        let line = trim(line);
        let (negated, pattern) = match line.strip_prefix(b"!") {
            Some(rest) => (true, trim(rest)),
            None => (false, line),
        };
        (!pattern.is_empty()).then(|| Self {
            negated,
            pattern: units(&clean(pattern)),
        })
    }
}

fn trim(line: &[u8]) -> &[u8] {
    match std::str::from_utf8(line) {
        Ok(line) => line.trim().as_bytes(),
        Err(_) => line.trim_ascii(),
    }
}

/// Without `.`, without `..` where that can be, and without `/` at both ends.
fn clean(pattern: &[u8]) -> Vec<u8> {
    let mut kept: Vec<&[u8]> = Vec::new();
    for element in pattern.split(|byte| *byte == b'/') {
        match element {
            b"" | b"." => {}
            b".." if kept.last().is_some_and(|last| *last != b"..") => drop(kept.pop()),
            b".." if pattern.starts_with(b"/") => {}
            other => kept.push(other),
        }
    }
    kept.join(&b'/')
}

/// Characters, and bytes that are none.
fn units(bytes: &[u8]) -> Vec<u32> {
    let mut units = Vec::new();
    for chunk in bytes.utf8_chunks() {
        units.extend(chunk.valid().chars().map(u32::from));
        units.extend(chunk.invalid().iter().map(|byte| RAW + u32::from(*byte)));
    }
    units
}

/// Tries everything, but nothing twice.
struct Match<'a> {
    pattern: &'a [u32],
    path: &'a [u32],
    /// Pairs of places that were tried.
    tried: Vec<bool>,
}

const fn unit(c: char) -> u32 {
    c as u32
}

impl<'a> Match<'a> {
    fn new(pattern: &'a [u32], path: &'a [u32]) -> Self {
        let tried = vec![false; (pattern.len() + 1) * (path.len() + 1)];
        Self {
            pattern,
            path,
            tried,
        }
    }

    /// Whether the pattern matches the whole path.
    fn run(&mut self) -> bool {
        let mut pending = vec![(0, 0)];
        while let Some((at, n)) = pending.pop() {
            if at == self.pattern.len() && n == self.path.len() {
                return true;
            }
            let tried = &mut self.tried[at * (self.path.len() + 1) + n];
            if at < self.pattern.len() && !std::mem::replace(tried, true) {
                self.go_on(at, n, &mut pending);
            }
        }
        false
    }

    /// The pairs that follow from this one.
    fn go_on(&self, at: usize, n: usize, pending: &mut Vec<(usize, usize)>) {
        const SLASH: u32 = unit('/');
        let rest = &self.path[n..];
        let first = rest.first().copied();
        let name = first.filter(|first| *first != SLASH);
        let (matched, after) = match self.pattern[at..] {
            [STAR, STAR, ..] => return self.deep_star(at, n, pending),
            [STAR, ..] => {
                let within = rest.iter().take_while(|c| **c != SLASH).count();
                pending.extend((0..=within).map(|more| (at + 1, n + more)));
                return;
            }
            [ANY, ..] => (name.is_some(), at + 1),
            [ESCAPE, wanted, ..] => (first == Some(wanted), at + 2),
            [OPEN, ..] => {
                let (negated, ranges, end) = self.class(at + 1);
                let inside = |c: u32| ranges.iter().any(|(low, high)| (low..=high).contains(&&c));
                (name.is_some_and(|c| inside(c) != negated), end)
            }
            [wanted, ..] => (first == Some(wanted), at + 1),
            [] => return,
        };
        if matched {
            pending.push((after, n + 1));
        }
    }

    /// Whole elements, none as well. With the `/` behind it, which is then not needed.
    fn deep_star(&self, at: usize, n: usize, pending: &mut Vec<(usize, usize)>) {
        let glued = self.pattern.get(at + 2) != Some(&unit('/'));
        let after = if glued { at + 2 } else { at + 3 };
        let special = |c: &u32| [STAR, ANY, OPEN, ESCAPE].contains(c);
        let rest = self.pattern.get(after..).unwrap_or_default();
        // At the end it is any text, and before plain text at the very start, too.
        let text = rest.is_empty() || at == 0 && glued && !rest.iter().any(special);
        let ends = (n..=self.path.len())
            .filter(|end| text || *end == n || self.path[*end - 1] == unit('/'));
        pending.extend(ends.map(|end| (after, end)));
    }

    /// Reads a class: whether it is negated, its ranges, and where it ends.
    fn class(&self, mut at: usize) -> (bool, Vec<(u32, u32)>, usize) {
        let negated = self.pattern[at] == unit('^');
        at += usize::from(negated);
        let mut ranges = Vec::new();
        while ranges.is_empty() || self.pattern[at] != unit(']') {
            let low = self.end_of_range(&mut at);
            let mut high = low;
            if self.pattern[at] == unit('-') {
                at += 1;
                high = self.end_of_range(&mut at);
            }
            ranges.push((low, high));
        }
        (negated, ranges, at + 1)
    }

    fn end_of_range(&self, at: &mut usize) -> u32 {
        *at += usize::from(self.pattern[*at] == ESCAPE) + 1;
        self.pattern[*at - 1]
    }
}

const STAR: u32 = unit('*');
const ANY: u32 = unit('?');
const OPEN: u32 = unit('[');
const ESCAPE: u32 = unit('\\');
