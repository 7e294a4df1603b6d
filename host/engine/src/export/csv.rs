//! One record of comma-separated values, as flags such as `--output` take it (RFC 4180).
//!
//! The law: a field that holds a comma or a quote is quoted as a whole; blanks are kept; anything
//! that could be read in two ways is an error.

/// Text that is no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CsvError {
    /// Nothing at all.
    #[error("the value is empty")]
    Empty,
    /// `a"b`.
    #[error("a quote stands inside a field that does not begin with one; quote the whole field")]
    BareQuote,
    /// `"a"b`.
    #[error("something follows a closing quote; only a comma may")]
    AfterQuote,
    /// `"a`.
    #[error("a quote is not closed")]
    Unclosed,
    /// More than one record.
    #[error("a line ends inside the value")]
    LineBreak,
}

/// Splits one record into its fields.
///
/// # Errors
/// See [`CsvError`].
pub fn parse(text: &str) -> Result<Vec<String>, CsvError> {
    if text.is_empty() {
        return Err(CsvError::Empty);
    }
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let (field, behind) = match rest.strip_prefix('"') {
            Some(quoted) => take_quoted(quoted)?,
            None => take_plain(rest)?,
        };
        fields.push(field);
        match behind {
            Some(behind) => rest = behind,
            None => return Ok(fields),
        }
    }
}

/// Takes a field up to the next comma; gives what is behind it, if there was one.
fn take_plain(text: &str) -> Result<(String, Option<&str>), CsvError> {
    let (field, behind) = match text.split_once(',') {
        Some((field, behind)) => (field, Some(behind)),
        None => (text, None),
    };
    if field.contains('"') {
        return Err(CsvError::BareQuote);
    }
    if field.contains(['\n', '\r']) {
        return Err(CsvError::LineBreak);
    }
    Ok((field.to_owned(), behind))
}

/// Takes a field whose opening quote is gone already.
fn take_quoted(text: &str) -> Result<(String, Option<&str>), CsvError> {
    let mut field = String::new();
    let mut rest = text;
    loop {
        let (piece, behind) = rest.split_once('"').ok_or(CsvError::Unclosed)?;
        field.push_str(piece);
        match behind.chars().next() {
            None => return Ok((field, None)),
            Some(',') => return Ok((field, behind.get(1..))),
            Some('"') => {
                field.push('"');
                rest = behind.get(1..).unwrap_or_default();
            }
            Some(_) => return Err(CsvError::AfterQuote),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<&[&str], CsvError>) {
        let expected = expected.map(|fields| fields.iter().map(|f| (*f).to_owned()).collect());
        assert_eq!(parse(text), expected, "{text}");
    }

    #[test]
    fn fields_are_split_at_commas_outside_of_quotes() {
        check("a", Ok(&["a"]));
        check("a,b", Ok(&["a", "b"]));
        check("a,,", Ok(&["a", "", ""]));
        check(",", Ok(&["", ""]));
        check(" a , b", Ok(&[" a ", " b"]));
        check(
            r#"type=image,"name=r/a,r/b",push=true"#,
            Ok(&["type=image", "name=r/a,r/b", "push=true"]),
        );
        check(r#""a""b""#, Ok(&["a\"b"]));
        check(r#""""#, Ok(&[""]));
        check(r#""","#, Ok(&["", ""]));
        check("\"a\nb\"", Ok(&["a\nb"]));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        check("", Err(CsvError::Empty));
        check(r#"name="a,b""#, Err(CsvError::BareQuote));
        check(r#""a"b"#, Err(CsvError::AfterQuote));
        check(r#""a" ,b"#, Err(CsvError::AfterQuote));
        check(r#"a,"b"#, Err(CsvError::Unclosed));
        check("a\nb", Err(CsvError::LineBreak));
    }

    proptest! {
        #[test]
        fn what_is_quoted_reads_back(fields in proptest::collection::vec("\\PC{0,12}", 1..5)) {
            let quoted: Vec<String> = fields
                .iter()
                .map(|field| format!("\"{}\"", field.replace('"', "\"\"")))
                .collect();
            prop_assert_eq!(parse(&quoted.join(",")), Ok(fields));
        }

        #[test]
        fn no_text_panics(text in "[a\",\\n=é]{0,20}") {
            drop(parse(&text));
        }
    }
}
