//! Ports of EXPOSE and signals of STOPSIGNAL.

use dockerfile::{Fault, closest};

/// One word of EXPOSE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ports {
    /// Such as `80/tcp`; ranges are expanded.
    pub(super) ports: Vec<String>,
    /// Whether the protocol has upper-case letters.
    pub(super) upper_protocol: bool,
    /// Whether an address or a host port is given, which has no effect.
    pub(super) has_host: bool,
}

/// Parses `[[ip:]host:]port[-port][/protocol]`.
pub(super) fn ports(word: &str) -> Result<Ports, Fault> {
    let (range, protocol) = word.split_once('/').unwrap_or((word, "tcp"));
    let lower = protocol.to_ascii_lowercase();
    if !matches!(lower.as_str(), "tcp" | "udp" | "sctp") {
        return Err(wrong(word, "the protocol must be tcp, udp or sctp"));
    }
    let container = range
        .rsplit_once(':')
        .map_or(range, |(_, container)| container);
    let (first, last) = container.split_once('-').unwrap_or((container, container));
    let (first, last) = (number(word, first)?, number(word, last)?);
    if last < first {
        return Err(wrong(word, "the end of the range is less than its start"));
    }
    Ok(Ports {
        ports: (first..=last)
            .map(|port| format!("{port}/{lower}"))
            .collect(),
        upper_protocol: lower != protocol,
        has_host: container.len() != range.len(),
    })
}

fn number(word: &str, text: &str) -> Result<u16, Fault> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let port = text.parse().ok().filter(|_| digits);
    port.ok_or_else(|| wrong(word, "a port must be a number from 0 to 65535"))
}

fn wrong(word: &str, why: &str) -> Fault {
    Fault::new(format!("invalid port \"{word}\": {why}"))
}

/// Signals of Linux by name.
const SIGNALS: [&str; 36] = [
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL",
    "PIPE", "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP",
    "TTIN", "TTOU", "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN", "RTMAX",
];

/// Whether `text` names a signal: a number, a name with or without `SIG`, `RTMIN+n`, `RTMAX-n`.
pub(super) fn check_signal(text: &str) -> Result<(), Fault> {
    if let Ok(number) = text.parse::<u32>() {
        return match number {
            1..=64 => Ok(()),
            _ => Err(Fault::new(format!(
                "invalid signal: {text}: use a number from 1 to 64, or a name"
            ))),
        };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let realtime = name.strip_prefix("RTMIN+").map(|offset| (offset, 30));
    let realtime = realtime.or_else(|| name.strip_prefix("RTMAX-").map(|offset| (offset, 14)));
    let known = match realtime {
        Some((offset, most)) => offset.parse::<u32>().is_ok_and(|n| (1..=most).contains(&n)),
        None => SIGNALS.contains(&name),
    };
    if known {
        return Ok(());
    }
    let close = closest(name, SIGNALS).map(|name| format!("SIG{name}"));
    Err(Fault::new(format!("invalid signal: {text}")).did_you_mean(close.as_deref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(word: &str, expected: &[&str]) {
        assert_eq!(ports(word).unwrap().ports, expected, "{word}");
    }

    #[test]
    fn ports_have_a_protocol_and_ranges_are_expanded() {
        check("80", &["80/tcp"]);
        check("53/UDP", &["53/udp"]);
        check("8000-8002/sctp", &["8000/sctp", "8001/sctp", "8002/sctp"]);
        check("127.0.0.1:8080:80", &["80/tcp"]);
        check("[::1]:8080:80/tcp", &["80/tcp"]);
        assert_eq!(ports("0-65535").unwrap().ports.len(), 65_536);
    }

    #[test]
    fn invalid_ports_are_refused() {
        for word in [
            "", "80:", "65536", "90-80", "80/xyz", "+80", "a", "80-", "-1", "80/",
        ] {
            assert!(ports(word).is_err(), "{word}");
        }
    }

    #[test]
    fn unusual_forms_are_noticed() {
        assert!(ports("80/TCP").unwrap().upper_protocol);
        assert!(ports("1:80").unwrap().has_host);
    }

    #[test]
    fn signals_are_names_or_numbers() {
        for signal in ["9", "SIGTERM", "term", "SIGRTMIN+3", "RTMAX-14", "SIGRTMIN"] {
            check_signal(signal).unwrap();
        }
        for signal in ["0", "65", "SIGNOPE", "RTMIN+31", "RTMIN+", "", "-9"] {
            assert!(check_signal(signal).is_err(), "{signal}");
        }
        assert_eq!(
            check_signal("SIGTREM").unwrap_err().hint.as_deref(),
            Some("did you mean SIGTERM?")
        );
    }
}
