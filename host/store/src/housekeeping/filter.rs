//! Filters of a prune, in the syntax of `docker buildx prune --filter`.

use std::str::FromStr;

use regex_lite::{Regex, RegexBuilder};
use thiserror::Error;

use crate::Digest;

/// Maximum size of a compiled pattern in memory, in bytes.
const PATTERN_SIZE: usize = 1 << 20;

/// A condition for an object to be pruned: `FIELD=VALUE`, `FIELD!=VALUE` or `FIELD~=PATTERN`.
///
/// Fields are `id` (a digest; `=` also accepts its beginning, with or without `sha256:`), `type` and
/// `description` (where the object came from, such as an instruction).
#[derive(Debug, Clone)]
pub struct Filter {
    field: Field,
    test: Test,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Id,
    Type,
    Description,
}

#[derive(Debug, Clone)]
enum Test {
    Is(String),
    IsNot(String),
    Matches(Regex),
}

/// Why a filter is invalid.
#[derive(Debug, Error)]
pub enum FilterError {
    /// It has none of the three forms.
    #[error("invalid filter `{0}`: use FIELD=VALUE, FIELD!=VALUE or FIELD~=PATTERN")]
    Form(String),
    /// There is no such field.
    #[error("unknown filter field `{0}`: use `id`, `type` or `description`")]
    Field(String),
    /// The pattern is invalid or too large.
    #[error("invalid regular expression `{0}` in a filter")]
    Pattern(String, #[source] regex_lite::Error),
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        let (left, value) = text
            .split_once('=')
            .ok_or_else(|| FilterError::Form(text.into()))?;
        let (field, test) = if let Some(field) = left.strip_suffix('!') {
            (field, Test::IsNot(value.into()))
        } else if let Some(field) = left.strip_suffix('~') {
            let pattern = RegexBuilder::new(value).size_limit(PATTERN_SIZE).build();
            let pattern = pattern.map_err(|error| FilterError::Pattern(value.into(), error))?;
            (field, Test::Matches(pattern))
        } else {
            (left, Test::Is(value.into()))
        };
        let field = match field.trim() {
            "id" => Field::Id,
            "type" => Field::Type,
            "description" => Field::Description,
            other => return Err(FilterError::Field(other.into())),
        };
        Ok(Self { field, test })
    }
}

impl Filter {
    /// Whether an object with these properties passes.
    pub(super) fn takes(&self, digest: Option<Digest>, kind: &str, origin: &str) -> bool {
        match self.field {
            Field::Id => {
                let id = digest.map(|digest| digest.to_string());
                self.passes(id.as_deref().unwrap_or_default())
            }
            Field::Type => self.passes(kind),
            Field::Description => self.passes(origin),
        }
    }

    fn passes(&self, found: &str) -> bool {
        match &self.test {
            Test::Is(value) => self.is(found, value),
            Test::IsNot(value) => !self.is(found, value),
            Test::Matches(pattern) => pattern.is_match(found),
        }
    }

    fn is(&self, found: &str, value: &str) -> bool {
        match self.field {
            Field::Id => {
                let digits = found.rsplit(':').next().unwrap_or_default();
                let value = value.strip_prefix("sha256:").unwrap_or(value);
                !value.is_empty() && digits.starts_with(value)
            }
            Field::Type | Field::Description => found == value,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(filter: &str, takes: bool) {
        let filter: Filter = filter.parse().unwrap();
        let mut digest = [0; 32];
        digest[..3].copy_from_slice(&[0, 0xab, 0x34]);
        let found = filter.takes(Some(Digest(digest)), "layer", "RUN echo a=b");
        assert_eq!(found, takes, "{filter:?}");
    }

    #[test]
    fn a_filter_can_test_each_field() {
        for taken in [
            "id=00ab34",
            "id=00",
            "id=sha256:00ab",
            "id!=ab",
            "id~=^sha256:[0-9a]+b",
            "type=layer",
            "type!=manifest",
            "type~=^(layer|config)$",
            "description=RUN echo a=b",
            "description~=echo",
        ] {
            check(taken, true);
        }
        for left in [
            "id=ab34",
            "id=",
            "id!=00ab",
            "id~=^00",
            "type=lay",
            "type!=layer",
            "type=",
            "description=echo",
            "description~=^echo",
        ] {
            check(left, false);
        }
    }

    #[test]
    fn an_invalid_filter_is_refused_with_the_reason() {
        for (text, want) in [
            ("inuse", "use FIELD=VALUE"),
            ("size=3", "unknown filter field `size`"),
            ("=3", "unknown filter field ``"),
            ("id~=(", "invalid regular expression"),
            ("id~=(((a{99}){99}){99}){99}", "invalid regular expression"),
        ] {
            let error = text.parse::<Filter>().unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }
}
