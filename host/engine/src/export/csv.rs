//! One record of comma-separated values, for flags such as `--output` (RFC 4180).
//!
//! The law: a field that contains a comma or a quote must be quoted as a whole. Spaces are kept. Anything
//! ambiguous is an error.

/// Why a text is not a valid record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CsvError {
    /// Empty text.
    #[error("the value is empty")]
    Empty,
    /// `a"b`.
    #[error("bare \" in non-quoted field; quote the whole field")]
    BareQuote,
    /// `"a"b`.
    #[error("extraneous text after a closing \"; only a comma can follow")]
    AfterQuote,
    /// `"a`.
    #[error("missing closing \" in quoted field")]
    Unclosed,
    /// More than one record.
    #[error("the value contains a line break")]
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

/// Takes a field up to the next comma; returns the text after the comma, if there is one.
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

/// Takes a field whose opening quote is already removed.
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
    fn ambiguous_text_is_refused() {
        check("", Err(CsvError::Empty));
        check(r#"name="a,b""#, Err(CsvError::BareQuote));
        check(r#""a"b"#, Err(CsvError::AfterQuote));
        check(r#""a" ,b"#, Err(CsvError::AfterQuote));
        check(r#"a,"b"#, Err(CsvError::Unclosed));
        check("a\nb", Err(CsvError::LineBreak));
    }

    proptest! {
        #[test]
        fn quoted_fields_are_parsed_back(fields in proptest::collection::vec("\\PC{0,12}", 1..5)) {
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
