//! Parsers for structured option values.

/// `KEY=VALUE`, or `KEY` alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) key: String,
    pub(crate) value: Option<String>,
}

/// Parses `KEY=VALUE` or `KEY`.
pub(crate) fn pair(text: &str) -> Result<Pair, String> {
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, Some(value.to_owned())),
        None => (text, None),
    };
    if key.is_empty() {
        return Err("expected NAME=VALUE, but the name is empty".into());
    }
    Ok(Pair {
        key: key.into(),
        value,
    })
}

/// Parses `NAME=VALUE`.
pub(crate) fn assignment(text: &str) -> Result<(String, String), String> {
    match pair(text)? {
        Pair {
            key,
            value: Some(value),
        } => Ok((key, value)),
        Pair { value: None, .. } => Err("expected NAME=VALUE".into()),
    }
}

/// Parses `HOST:IP` or `HOST=IP`; an IPv6 address may be in brackets, and `host-gateway` is this
/// machine. Returns address and name, in
/// the order of `/etc/hosts`.
pub(crate) fn host(text: &str) -> Result<(String, String), String> {
    let (name, address) = text
        .split_once('=')
        .or_else(|| text.split_once(':'))
        .ok_or("expected HOST:IP")?;
    let address = address
        .strip_prefix('[')
        .and_then(|inner| inner.strip_suffix(']'))
        .unwrap_or(address);
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err(format!("`{name}` is not a valid host name"));
    }
    if address == "host-gateway" {
        return Ok((egress::host_address().to_string(), name.to_owned()));
    }
    let parsed: std::net::IpAddr = address
        .parse()
        .map_err(|_| format!("`{address}` is not a valid IP address"))?;
    Ok((parsed.to_string(), name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_values_differ_from_missing_ones() {
        let read = |text| pair(text).map(|pair| (pair.key, pair.value));
        assert_eq!(read("a=b=c"), Ok(("a".into(), Some("b=c".into()))));
        assert_eq!(read("a="), Ok(("a".into(), Some(String::new()))));
        assert_eq!(read("a"), Ok(("a".into(), None)));
        assert!(read("=v").is_err());
        assert!(assignment("a").is_err());
    }

    #[test]
    fn hosts_are_names_and_addresses() {
        let ok = |address: &str, name: &str| Ok((address.to_owned(), name.to_owned()));
        assert_eq!(host("db:10.0.0.1"), ok("10.0.0.1", "db"));
        assert_eq!(host("db=10.0.0.1"), ok("10.0.0.1", "db"));
        assert_eq!(host("db:::1"), ok("::1", "db"));
        assert_eq!(host("db:[::1]"), ok("::1", "db"));
        assert_eq!(host("db:host-gateway"), ok("10.0.2.2", "db"));
        for wrong in ["db", "db:x", ":10.0.0.1", "db:gateway", "d b:10.0.0.1"] {
            assert!(host(wrong).is_err(), "{wrong}");
        }
    }
}
