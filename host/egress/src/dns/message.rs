//! Questions and answers of the domain name system, read only as far as the policy needs.
//!
//! **Law:** no bytes of a step or of a name server make this module panic.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use domain::base::iana::{Class, Opcode, Rcode, Rtype};
use domain::base::message_builder::AnswerBuilder;
use domain::base::{Message, MessageBuilder, ParsedName, Ttl};
use domain::rdata::{A, Aaaa, Cname};

/// Longest message, in bytes.
pub(super) const MAX_MESSAGE: usize = u16::MAX as usize;
/// Longest answer by UDP to who does not say more.
const PLAIN_UDP: usize = 512;
/// Longest answer by UDP to who says more: what passes through any network unfragmented.
const MOST_UDP: usize = 1232;
/// How long a step may remember an answer of our own.
const OWN_TTL: Ttl = Ttl::from_secs(60);
/// Where the identifier of a message is.
const ID: std::ops::Range<usize> = 0..2;

/// A name as names are compared: lower case, without the dot of the root.
fn normalize(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// A question of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Query {
    bytes: Vec<u8>,
    /// The name, normalized.
    pub(super) name: String,
    qtype: Rtype,
}

/// Why there is nothing to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NoQuery {
    /// These bytes are no question, and get no answer.
    Nothing,
    /// The answer is known already.
    Reply(Vec<u8>),
}

impl Query {
    /// Reads a question.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, NoQuery> {
        let message = Message::from_slice(bytes).map_err(|_| NoQuery::Nothing)?;
        if message.header().qr() {
            return Err(NoQuery::Nothing);
        }
        let refuse = |rcode| NoQuery::Reply(reply(message, rcode).finish());
        if message.header().opcode() != Opcode::QUERY {
            return Err(refuse(Rcode::NOTIMP));
        }
        let question = message
            .sole_question()
            .map_err(|_| refuse(Rcode::FORMERR))?;
        // Transfers of zones have answers of many messages, and no step needs them.
        if question.qclass() != Class::IN || message.is_xfr() {
            return Err(refuse(Rcode::REFUSED));
        }
        Ok(Self {
            name: normalize(&question.qname().to_string()),
            qtype: question.qtype(),
            bytes: bytes.to_vec(),
        })
    }

    /// The question with another identifier, for a name server.
    pub(super) fn with_id(&self, id: [u8; 2]) -> Vec<u8> {
        with_id(&self.bytes, id)
    }

    /// An answer of a name server, with the identifier that the step chose.
    pub(super) fn own(&self, answer: &[u8]) -> Vec<u8> {
        let id = self.bytes.get(ID).and_then(|id| id.try_into().ok());
        with_id(answer, id.unwrap_or_default())
    }

    /// An answer that says no more than `rcode`.
    pub(super) fn fail(&self, rcode: Rcode) -> Vec<u8> {
        Message::from_slice(&self.bytes)
            .map(|message| reply(message, rcode).finish())
            .unwrap_or_default()
    }

    /// The answer that the name has this address, and no other.
    pub(super) fn address(&self, address: Ipv4Addr) -> Vec<u8> {
        let Ok(message) = Message::from_slice(&self.bytes) else {
            return Vec::new();
        };
        let mut answer = reply(message, Rcode::NOERROR);
        if let Ok(question) = message.sole_question()
            && self.qtype == Rtype::A
        {
            let pushed = answer.push((question.qname(), OWN_TTL, A::new(address)));
            debug_assert!(pushed.is_ok(), "a vector has room");
        }
        answer.finish()
    }

    /// The answer as it fits into a datagram: one that is too long says so, and the step asks again
    /// by TCP.
    pub(super) fn for_udp(&self, answer: Vec<u8>) -> Vec<u8> {
        let most = Message::from_slice(&self.bytes)
            .ok()
            .and_then(Message::opt)
            .map_or(PLAIN_UDP, |opt| {
                usize::from(opt.udp_payload_size()).clamp(PLAIN_UDP, MOST_UDP)
            });
        if answer.len() <= most {
            return answer;
        }
        let rcode = Message::from_slice(&answer).map_or(Rcode::SERVFAIL, |a| a.header().rcode());
        let Ok(message) = Message::from_slice(&self.bytes) else {
            return Vec::new();
        };
        let mut cut = reply(message, rcode);
        cut.header_mut().set_tc(true);
        cut.finish()
    }
}

/// Whether a name server's message answers the question that was sent to it as `query`.
pub(super) fn answers(query: &[u8], answer: &[u8]) -> bool {
    match (Message::from_slice(query), Message::from_slice(answer)) {
        (Ok(query), Ok(answer)) => answer.is_answer(query),
        _ => false,
    }
}

/// Whether an answer was too long for its way.
pub(super) fn is_truncated(answer: &[u8]) -> bool {
    Message::from_slice(answer).is_ok_and(|answer| answer.header().tc())
}

/// Whether a name server could not or would not answer, so that another one should be asked.
pub(super) fn is_failure(answer: &[u8]) -> bool {
    Message::from_slice(answer)
        .is_ok_and(|answer| matches!(answer.header().rcode(), Rcode::SERVFAIL | Rcode::REFUSED))
}

/// The addresses that an answer names for its question, through aliases, and how long they live.
pub(super) fn addresses(answer: &[u8]) -> Vec<(IpAddr, Duration)> {
    let Ok(message) = Message::from_slice(answer) else {
        return Vec::new();
    };
    let (Some(name), Ok(records)) = (message.canonical_name(), message.answer()) else {
        return Vec::new();
    };
    let is_final = |owner: &ParsedName<&[u8]>| *owner == name;
    // The aliases on the way end the life of the answer too.
    let aliases = records.limit_to_in::<Cname<ParsedName<&[u8]>>>();
    let aliases = aliases.flatten().map(|record| record.ttl().as_secs()).min();
    let life =
        |ttl: Ttl| Duration::from_secs(ttl.as_secs().min(aliases.unwrap_or(u32::MAX)).into());
    let v4 = records.limit_to_in::<A>().flatten();
    let v4 = v4.filter(|record| is_final(record.owner()));
    let v4 = v4.map(|record| (IpAddr::V4(record.data().addr()), life(record.ttl())));
    let v6 = records.limit_to_in::<Aaaa>().flatten();
    let v6 = v6.filter(|record| is_final(record.owner()));
    let v6 = v6.map(|record| (IpAddr::V6(record.data().addr()), life(record.ttl())));
    v4.chain(v6).collect()
}

fn reply(query: &Message<[u8]>, rcode: Rcode) -> AnswerBuilder<Vec<u8>> {
    let mut reply = MessageBuilder::new_vec().start_error(query, rcode);
    reply.header_mut().set_ra(true);
    reply
}

fn with_id(message: &[u8], id: [u8; 2]) -> Vec<u8> {
    let mut message = message.to_vec();
    if let Some(own) = message.get_mut(ID) {
        own.copy_from_slice(&id);
    }
    message
}

#[cfg(test)]
pub(crate) mod tests {
    use domain::base::name::Name;
    use proptest::prelude::*;

    use super::*;

    /// A question for addresses of a name.
    pub(crate) fn question(name: &str, qtype: Rtype) -> Vec<u8> {
        let mut message = MessageBuilder::new_vec();
        message.header_mut().set_id(0x1234);
        message.header_mut().set_rd(true);
        let mut message = message.question();
        let name: Name<Vec<u8>> = name.parse().unwrap();
        message.push((name, qtype)).unwrap();
        message.finish()
    }

    /// The answer to a question, with aliases and the addresses of the last one.
    pub(crate) fn answer(
        question: &[u8],
        aliases: &[(&str, u32)],
        to: &[(IpAddr, u32)],
    ) -> Vec<u8> {
        let question = Message::from_slice(question).unwrap();
        let mut answer = reply(question, Rcode::NOERROR);
        let asked = question.sole_question().unwrap().qname().to_string();
        let mut owner: Name<Vec<u8>> = asked.parse().unwrap();
        for (alias, ttl) in aliases {
            let alias: Name<Vec<u8>> = alias.parse().unwrap();
            let ttl = Ttl::from_secs(*ttl);
            answer.push((&owner, ttl, Cname::new(&alias))).unwrap();
            owner = alias;
        }
        for (address, ttl) in to {
            let ttl = Ttl::from_secs(*ttl);
            match address {
                IpAddr::V4(v4) => answer.push((&owner, ttl, A::new(*v4))).unwrap(),
                IpAddr::V6(v6) => answer.push((&owner, ttl, Aaaa::new(*v6))).unwrap(),
            }
        }
        answer.finish()
    }

    fn rcode(reply: &[u8]) -> Rcode {
        Message::from_slice(reply).unwrap().header().rcode()
    }

    #[test]
    fn a_question_is_read_and_keeps_its_identifier() {
        let bytes = question("Deb.Debian.ORG", Rtype::A);
        let query = Query::read(&bytes).unwrap();
        assert_eq!(query.name, "deb.debian.org");
        let sent = query.with_id([0, 7]);
        assert_eq!((&sent[..2], &sent[2..]), (&[0, 7][..], &bytes[2..]));
        let got = answer(&sent, &[], &[]);
        assert!(answers(&sent, &got) && !answers(&bytes, &got));
        assert_eq!(query.own(&got)[..2], [0x12, 0x34]);
        assert!(answers(&bytes, &query.own(&got)));
    }

    #[test]
    fn what_is_no_question_gets_no_answer_or_an_error() {
        assert_eq!(Query::read(b"").unwrap_err(), NoQuery::Nothing);
        assert_eq!(Query::read(&[0; 11]).unwrap_err(), NoQuery::Nothing);
        let bytes = question("a.org", Rtype::A);
        assert_eq!(
            Query::read(&answer(&bytes, &[], &[])).unwrap_err(),
            NoQuery::Nothing
        );
        let refused = |bytes: &[u8]| match Query::read(bytes) {
            Err(NoQuery::Reply(reply)) => rcode(&reply),
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(&[0; 12]), Rcode::FORMERR);
        assert_eq!(refused(&question("a.org", Rtype::AXFR)), Rcode::REFUSED);
        let mut update = bytes.clone();
        update[2] |= 5 << 3;
        assert_eq!(refused(&update), Rcode::NOTIMP);
        let mut chaos = bytes;
        *chaos.last_mut().unwrap() = 3;
        assert_eq!(refused(&chaos), Rcode::REFUSED);
    }

    #[test]
    fn addresses_are_found_through_aliases_and_live_as_long_as_the_shortest_record() {
        let bytes = question("a.org", Rtype::A);
        let to: [(IpAddr, u32); 2] = [
            ("192.0.2.1".parse().unwrap(), 300),
            ("2001:db8::1".parse().unwrap(), 30),
        ];
        let seconds = Duration::from_secs;
        let aliased = answer(&bytes, &[("b.net", 100), ("c.com", 200)], &to);
        assert_eq!(
            addresses(&aliased),
            [(to[0].0, seconds(100)), (to[1].0, seconds(30))]
        );
        let plain = answer(&bytes, &[], &to);
        assert_eq!(addresses(&plain)[0], (to[0].0, seconds(300)));
    }

    #[test]
    fn records_of_names_that_were_not_asked_for_name_no_address() {
        let bytes = question("a.org", Rtype::A);
        let query = Message::from_slice(&bytes).unwrap();
        let mut forged = reply(query, Rcode::NOERROR);
        let other: Name<Vec<u8>> = "bank.com".parse().unwrap();
        let address = A::new(Ipv4Addr::new(192, 0, 2, 66));
        forged.push((other, Ttl::from_secs(60), address)).unwrap();
        assert_eq!(addresses(&forged.finish()), []);
    }

    #[test]
    fn an_answer_that_is_too_long_for_a_datagram_says_so() {
        let bytes = question("a.org", Rtype::A);
        let query = Query::read(&bytes).unwrap();
        let many = vec![("192.0.2.1".parse().unwrap(), 60); 100];
        let long = answer(&bytes, &[], &many);
        let cut = query.for_udp(long.clone());
        assert!(cut.len() <= PLAIN_UDP && is_truncated(&cut) && answers(&bytes, &cut));
        let short = answer(&bytes, &[], &many[..1]);
        assert_eq!(query.for_udp(short.clone()), short);
        // Who says that it takes more gets more.
        let mut edns = MessageBuilder::new_vec().question();
        let name: Name<Vec<u8>> = "a.org".parse().unwrap();
        edns.push((name, Rtype::A)).unwrap();
        let mut edns = edns.additional();
        edns.opt(|opt| {
            opt.set_udp_payload_size(1232);
            Ok(())
        })
        .unwrap();
        let query = Query::read(&edns.finish()).unwrap();
        let medium = answer(&bytes, &[], &many[..50]);
        assert!(medium.len() > PLAIN_UDP);
        assert_eq!(query.for_udp(medium.clone()), medium);
        assert!(is_truncated(&query.for_udp(long)));
    }

    #[test]
    fn our_own_answer_has_an_address_if_one_of_its_kind_was_asked_for() {
        let v4 = Ipv4Addr::new(10, 0, 2, 2);
        let of = |qtype| {
            let query = Query::read(&question("host.docker.internal", qtype)).unwrap();
            let answer = query.address(v4);
            assert_eq!(rcode(&answer), Rcode::NOERROR);
            let addresses = addresses(&answer).into_iter();
            addresses.map(|(address, _)| address).collect::<Vec<_>>()
        };
        assert_eq!(of(Rtype::A), [IpAddr::V4(v4)]);
        assert!(of(Rtype::AAAA).is_empty());
        assert!(of(Rtype::MX).is_empty());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            exercise(&bytes);
        }

        #[test]
        fn no_damage_makes_it_panic(at in 0..80_usize, byte: u8, cut in 0..120_usize) {
            let asked = question("a.very.long.name.example.org", Rtype::A);
            let to = [("192.0.2.1".parse().unwrap(), 60)];
            for mut bytes in [asked.clone(), answer(&asked, &[("b.net", 1)], &to)] {
                if let Some(old) = bytes.get_mut(at) {
                    *old = byte;
                }
                bytes.truncate(cut);
                exercise(&bytes);
            }
        }
    }

    fn exercise(bytes: &[u8]) {
        if let Ok(query) = Query::read(bytes) {
            let fail = query.fail(Rcode::NXDOMAIN);
            assert!(answers(bytes, &fail));
            query.address(Ipv4Addr::LOCALHOST);
            assert!(query.for_udp(vec![0; 3000]).len() <= PLAIN_UDP);
        }
        addresses(bytes);
        is_truncated(bytes);
        is_failure(bytes);
        answers(bytes, bytes);
    }
}
