use super::*;

/// `A`, `E`, `P`, `S` and `D` are set, `E` to an empty value; `N` and all others are not.
struct Fixed;

impl Variables for Fixed {
    fn get(&self, name: &str) -> Option<&str> {
        Some(match name {
            "A" => "foo.bar.baz",
            "E" => "",
            "P" => "/usr/bin",
            "S" => "aXb",
            "D" => "x$0y",
            _ => return None,
        })
    }
}

fn expand(text: &str) -> Result<String, Fault> {
    Ok(word(text, '\\', &Fixed)?.text)
}

#[track_caller]
fn check(text: &str, expected: &str) {
    assert_eq!(expand(text).unwrap(), expected, "{text}");
}

#[track_caller]
fn fails(text: &str, part: &str) {
    let fault = expand(text).unwrap_err();
    assert!(fault.message.contains(part), "{fault:?}");
}

#[test]
fn values_and_fallbacks() {
    for (text, expected) in [
        ("$A", "foo.bar.baz"),
        ("${A}x", "foo.bar.bazx"),
        ("$Ax", ""),
        ("${E:-d}", "d"),
        ("${E-d}", ""),
        ("${N-d}", "d"),
        ("${N:-d}", "d"),
        ("${E:+d}", ""),
        ("${E+d}", "d"),
        ("${A:+d}", "d"),
        ("${N+d}", ""),
        ("${A:?m}", "foo.bar.baz"),
        ("${E?m}", ""),
        ("${N:-${N:-${A}}}", "foo.bar.baz"),
        ("${N:-'a b'}", "a b"),
        ("\"${N:-a b}\"", "a b"),
    ] {
        check(text, expected);
    }
}

#[test]
fn cuts_and_replacements() {
    for (text, expected) in [
        ("${A#*.}", "bar.baz"),
        ("${A##*.}", "baz"),
        ("${A%.*}", "foo.bar"),
        ("${A%%.*}", "foo"),
        (r"${P//\//_}", "_usr_bin"),
        ("${A/./-}", "foo-bar.baz"),
        ("${A//./-}", "foo-bar-baz"),
        ("${A//b?/}", "foo.r.z"),
        ("${N#x}", ""),
    ] {
        check(text, expected);
    }
}

#[test]
fn many_patterns_in_one_text_are_refused_in_time() {
    let pattern = format!("${{A//{}/x}}", "?".repeat(1000));
    check(&pattern, "foo.bar.baz");
    fails(&pattern.repeat(500), "too long to match");
}

#[test]
fn escapes_are_removed_in_patterns_but_not_in_replacements() {
    check(r"${A/foo/\/}", r"\/.bar.baz");
    check(r"${A/\*/x}", "foo.bar.baz");
}

#[test]
fn a_dollar_in_an_inserted_value_is_plain_text() {
    check("${S//X/$D}", "ax$0yb");
    check("${S/X/$D}", "ax$0yb");
}

#[test]
fn a_class_in_a_pattern_is_plain_text() {
    check("${A//[.]/_}", "foo.bar.baz");
}

#[test]
fn quotes_and_escapes() {
    for (text, expected) in [
        (r"a\ b", "a b"),
        (r"a\$A", "a$A"),
        (r#""a\$A \n \" \\""#, r#"a$A \n " \"#),
        (r"'$A \n'", r"$A \n"),
        (r#"'a'"b"c"#, "abc"),
        ("$", "$"),
        ("a$", "a$"),
        ("$.", "$."),
        ("$1$@", ""),
        ("$10x", "x"),
        ("~/*", "~/*"),
        ("$(ls)", "$(ls)"),
    ] {
        check(text, expected);
    }
}

#[test]
fn invalid_expansions_are_errors() {
    fails("${N:?no}", "N: no");
    fails("${E:?no}", "E: no");
    fails("${N?}", "N: is not allowed to be unset");
    fails("${E:?}", "E: is not allowed to be empty");
    fails("${}", "bad substitution");
    fails("${:x}", "bad substitution");
    fails("${.}", "bad substitution");
    fails("${{x}", "bad substitution");
    for text in ["${A:=w}", "${A:0:3}", "${!A}", "${A^^}", "${A:#p}", "${#A}"] {
        fails(text, "unsupported modifier");
    }
    fails("${A", "missing '}'");
    fails("${A:-x", "matching }");
    fails("${A/x}", "matching /");
    fails(r"${A#\x}", "invalid escape");
    fails("\"a", "matching double-quote");
    fails("a'", "matching single-quote");
}

#[test]
fn an_unused_branch_is_still_evaluated() {
    fails("${A:-${N:?boom}}", "N: boom");
}

#[test]
fn deep_nesting_is_an_error() {
    check(&format!("{}x{}", "${N:-".repeat(99), "}".repeat(99)), "x");
    fails(
        &format!("{}x{}", "${N:-".repeat(9_000), "}".repeat(9_000)),
        "nested",
    );
    fails(&"${N:-\"".repeat(9_000), "nested");
}

#[test]
fn unset_variables_are_reported_and_words_are_split_outside_of_quotes() {
    let expanded = word("$A '$N b' ${N}c", '\\', &Fixed).unwrap();
    assert_eq!(expanded.words, ["foo.bar.baz", "$N b", "c"]);
    assert_eq!(expanded.unset, BTreeSet::from(["N".to_owned()]));
}

#[test]
fn quotes_are_plain_text_in_heredocs() {
    let expanded = body("'$A' \"$N\" \\$A\n", &Fixed).unwrap();
    assert_eq!(expanded.text, "'foo.bar.baz' \"\" $A\n");
}

#[test]
fn display_keeps_quotes_and_unset_variables() {
    assert_eq!(
        display("'$A' \"$A\" ${N:-x} $N", '\\', &Fixed),
        "'$A' \"foo.bar.baz\" ${N:-x} $N"
    );
    assert_eq!(display("$A ${", '\\', &Fixed), "$A ${");
}
