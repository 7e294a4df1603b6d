//! Addresses as they may be shown: without what lets somebody in.
//!
//! The law: user and password of an address never reach a message, a log or an image, nor do values
//! in its query that look like keys. It works on any text, since a Dockerfile writes addresses in many
//! ways, and it hides too much rather than too little.

/// What stands for what is hidden.
const HIDDEN: &str = "xxxxx";

/// Parts of the names of query parameters whose values let somebody in.
const SECRET_PARTS: [&str; 9] = [
    "auth", "cred", "key", "pass", "private", "pwd", "secret", "sig", "token",
];

/// The text with all addresses in it made fit for display.
#[must_use]
pub(crate) fn addresses(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("://") {
        shown.push_str(before);
        shown.push_str("://");
        let end = after.find(ends_address).unwrap_or(after.len());
        let (address, behind) = after.split_at(end);
        one(address, &mut shown);
        rest = behind;
    }
    shown.push_str(rest);
    shown
}

/// Blanks and quotes stand in no address.
fn ends_address(c: char) -> bool {
    c.is_whitespace() || c.is_control() || "\"'<>".contains(c)
}

/// An address without its scheme.
fn one(address: &str, shown: &mut String) {
    let host_end = address.find(['/', '?', '#']).unwrap_or(address.len());
    let (authority, behind) = address.split_at(host_end);
    match authority.rsplit_once('@') {
        Some((_, host)) => {
            shown.push_str(HIDDEN);
            shown.push('@');
            shown.push_str(host);
        }
        None => shown.push_str(authority),
    }
    let Some((path, query)) = behind.split_once('?') else {
        shown.push_str(behind);
        return;
    };
    shown.push_str(path);
    let mut mark = '?';
    for pair in query.split('&') {
        shown.push(mark);
        mark = '&';
        match pair.split_once('=') {
            Some((name, _)) if lets_in(name) => {
                shown.push_str(name);
                shown.push('=');
                shown.push_str(HIDDEN);
            }
            Some(_) | None => shown.push_str(pair),
        }
    }
}

fn lets_in(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    SECRET_PARTS.iter().any(|part| lower.contains(part))
}

#[cfg(test)]
mod tests {
    use super::addresses;

    #[track_caller]
    fn check(text: &str, want: &str) {
        assert_eq!(addresses(text), want);
    }

    #[test]
    fn users_and_passwords_are_hidden() {
        check("https://me:pw@h/x", "https://xxxxx@h/x");
        check("https://token@h:80", "https://xxxxx@h:80");
        check("https://a@b@h/x@y", "https://xxxxx@h/x@y");
        check(
            r#"ADD ["http://u:p@h/a","https://v@h/b", "/d"]"#,
            r#"ADD ["http://xxxxx@h/a","https://xxxxx@h/b", "/d"]"#,
        );
    }

    #[test]
    fn keys_in_queries_are_hidden_and_the_rest_is_kept() {
        check(
            "http://h/f?v=1&X-Amz-Signature=abc&sig=d#k",
            "http://h/f?v=1&X-Amz-Signature=xxxxx&sig=xxxxx",
        );
        check(
            "http://h/f?access_token=a b=c",
            "http://h/f?access_token=xxxxx b=c",
        );
        check("http://h?a&b=1", "http://h?a&b=1");
    }

    #[test]
    fn other_text_is_left_alone() {
        for text in ["", "a@b", "COPY a:b /c?key=1", "x://", "http://h/"] {
            check(text, text);
        }
    }
}
