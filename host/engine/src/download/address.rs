//! Addresses of files on servers.

use std::fmt;

use dockerfile::redact;
use reqwest::Url;

/// Name of a file whose address does not contain one.
const UNNAMED: &[u8] = b"__unnamed__";
/// Longest name of a file, in bytes, as common file systems limit it.
const MAX_NAME: usize = 255;
/// Longest address, in bytes. Servers mostly accept 8 KiB.
const MAX_ADDRESS: usize = 16 << 10;

/// The address of a file on a server, `http` or `https`. It may contain a password, which is never
/// shown.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct WebAddress {
    url: Url,
}

/// The text is not an address of a file on a server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadAddress(String);

/// Why an address does not name a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    /// It names a directory.
    #[error("its path ends in `..`")]
    Parent,
    /// It contains a byte that no name can contain.
    #[error("the last element of its path contains a NUL byte")]
    Nul,
    /// It is longer than file systems allow.
    #[error("the last element of its path is longer than {MAX_NAME} bytes")]
    TooLong,
}

impl WebAddress {
    /// Parses an address. The fragment after `#`, which is never sent, is dropped.
    ///
    /// # Errors
    /// If it is not one, or neither http nor https. The message does not contain the text.
    pub fn parse(text: &str) -> Result<Self, BadAddress> {
        if text.len() > MAX_ADDRESS {
            return Err(BadAddress(format!("it is longer than {MAX_ADDRESS} bytes")));
        }
        let mut url = Url::parse(text).map_err(|error| BadAddress(error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(BadAddress("only http and https are supported".to_owned()));
        }
        url.set_fragment(None);
        Ok(Self { url })
    }

    /// Name of the file: the last element of the path.
    ///
    /// # Errors
    /// If no file can have this name.
    pub fn name(&self) -> Result<Vec<u8>, BadName> {
        let path = decoded(self.url.path());
        let mut elements = path.split(|byte| *byte == b'/').rev();
        let last = elements.find(|element| !element.is_empty() && *element != b".");
        let name = last.unwrap_or(UNNAMED);
        if name == b".." {
            return Err(BadName::Parent);
        }
        if name.contains(&0) {
            return Err(BadName::Nul);
        }
        if name.len() > MAX_NAME {
            return Err(BadName::TooLong);
        }
        Ok(name.to_vec())
    }

    /// The address for requests.
    pub(super) fn url(&self) -> Url {
        self.url.clone()
    }

    /// The key under which the file is remembered, without user and password.
    pub(super) fn key(&self) -> String {
        let mut url = self.url.clone();
        // Neither fails for an address with a host.
        url.set_username("").ok();
        url.set_password(None).ok();
        url.into()
    }
}

impl fmt::Display for WebAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redact::urls(self.url.as_str()))
    }
}

impl fmt::Debug for WebAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WebAddress({self})")
    }
}

/// Decodes `%` and two hexadecimal digits (RFC 3986, section 2.1); anything else stays as it is.
fn decoded(path: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let mut byte = [*first];
        rest = behind;
        if *first == b'%'
            && let Some((digits, behind)) = behind.split_at_checked(2)
            && hex::decode_to_slice(digits, &mut byte).is_ok()
        {
            rest = behind;
        }
        bytes.extend(byte);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> WebAddress {
        WebAddress::parse(text).unwrap()
    }

    #[track_caller]
    fn check(text: &str, want: Result<&str, BadName>) {
        let want = want.map(|name| name.as_bytes().to_vec());
        assert_eq!(address(text).name(), want, "{text}");
    }

    #[test]
    fn the_last_element_of_the_path_names_the_file() {
        check("http://h/a/b.txt", Ok("b.txt"));
        check("http://h/a/b/", Ok("b"));
        check("http://h/a/b//?q=/c#/d", Ok("b"));
        check("http://h/a%20b%41", Ok("a bA"));
        check("http://h/100%", Ok("100%"));
        check("http://h/%zz", Ok("%zz"));
        check("http://h/grün", Ok("grün"));
        check("http://h", Ok("__unnamed__"));
        check("http://h/", Ok("__unnamed__"));
        check("http://h/?f=x", Ok("__unnamed__"));
    }

    #[test]
    fn no_name_leads_out_of_a_directory() {
        check("http://h/a/..", Ok("__unnamed__"));
        check("http://h/a/%2e%2e", Ok("__unnamed__"));
        check("http://h/..%2f..%2fetc%2fpasswd", Ok("passwd"));
        check("http://h/a%2f..", Err(BadName::Parent));
        check("http://h/..%2f", Err(BadName::Parent));
        check("http://h/.%2f", Ok("__unnamed__"));
        check("http://h/a%00b", Err(BadName::Nul));
        check(
            &format!("http://h/{}", "x".repeat(255)),
            Ok(&"x".repeat(255)),
        );
        check(
            &format!("http://h/{}", "x".repeat(256)),
            Err(BadName::TooLong),
        );
    }

    #[test]
    fn only_http_addresses_are_accepted() {
        for text in [
            "",
            "h/x",
            "ftp://h/x",
            "file:///etc/passwd",
            "http://",
            "https://:80/",
        ] {
            WebAddress::parse(text).unwrap_err();
        }
        let long = format!("http://h/{}", "x".repeat(MAX_ADDRESS));
        WebAddress::parse(&long).unwrap_err();
        let error = WebAddress::parse("http://me:secret@[::x/").unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
    }

    #[test]
    fn passwords_are_neither_shown_nor_remembered() {
        let secret = address("http://me:hunter2@h:8080/f?v=1#part");
        assert_eq!(secret.to_string(), "http://xxxxx@h:8080/f?v=1");
        assert_eq!(
            format!("{secret:?}"),
            "WebAddress(http://xxxxx@h:8080/f?v=1)"
        );
        assert_eq!(secret.key(), "http://h:8080/f?v=1");
        assert_eq!(secret.url().password(), Some("hunter2"));
    }
}
