//! Hides credentials in URLs before they are shown.
//!
//! The law: the user and password of a URL never reach a message, a log or an image, and neither do
//! the values of query parameters that look like credentials. This works on any text, because a
//! Dockerfile can write URLs in many ways, and it hides too much rather than too little.

/// Replaces what is hidden.
const HIDDEN: &str = "xxxxx";

/// Parts of the names of query parameters whose values are credentials.
const SECRET_PARTS: [&str; 9] = [
    "auth", "cred", "key", "pass", "private", "pwd", "secret", "sig", "token",
];

/// The text with the credentials of all URLs in it replaced.
#[must_use]
pub fn urls(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("://") {
        shown.push_str(before);
        shown.push_str("://");
        let end = after.find(ends_url).unwrap_or(after.len());
        let (url, behind) = after.split_at(end);
        one(url, &mut shown);
        rest = behind;
    }
    shown.push_str(rest);
    shown
}

/// URLs contain no whitespace and no quotes.
fn ends_url(c: char) -> bool {
    c.is_whitespace() || c.is_control() || "\"'<>".contains(c)
}

/// Appends one URL, given without its scheme.
fn one(url: &str, shown: &mut String) {
    let host_end = url.find(['/', '?', '#']).unwrap_or(url.len());
    let (authority, behind) = url.split_at(host_end);
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
            Some((name, _)) if is_credential(name) => {
                shown.push_str(name);
                shown.push('=');
                shown.push_str(HIDDEN);
            }
            Some(_) | None => shown.push_str(pair),
        }
    }
}

fn is_credential(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    SECRET_PARTS.iter().any(|part| lower.contains(part))
}

#[cfg(test)]
mod tests {
    use super::urls;

    #[track_caller]
    fn check(text: &str, want: &str) {
        assert_eq!(urls(text), want);
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
