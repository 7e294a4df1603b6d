//! The `rawjson` display: one JSON object per line, for programs.
//!
//! Each object has `v` (the version of this format), `t` (seconds since the start) and `event`.
//! The last event is `build_end`, with the class of the outcome and the exit status. Nothing else
//! is written to that stream. Step output keeps its escape sequences, written as escapes of JSON;
//! invalid UTF-8 is replaced.

use std::io::{self, Write};
use std::time::Duration;

use engine::changes::Listed;
use engine::event::{Comparison, Event, Explanation, Outcome};
use exec::Stream;
use serde_json::{Value, json};

use super::queue::{Item, Payload};
use crate::sanitize;

/// Version of the format. Readers should refuse other versions.
const VERSION: u32 = 1;

/// The `rawjson` display.
#[derive(Debug)]
pub(crate) struct RawJson<W> {
    out: W,
}

impl<W: Write> RawJson<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out }
    }

    /// Writes one item.
    pub(crate) fn item(&mut self, item: Item) -> io::Result<()> {
        let value = match item.payload {
            Payload::Event(event) => of_event(event),
            Payload::Skipped { step, bytes } => {
                json!({"event": "skipped", "step": step, "bytes": bytes})
            }
            // Already written as log events.
            Payload::Tail { .. } => return Ok(()),
            Payload::Note(text) => json!({"event": "note", "text": text}),
        };
        self.write(item.at, value)
    }

    /// Writes the end of the build.
    pub(crate) fn finish(
        &mut self,
        now: Duration,
        class: &str,
        exit: u8,
        error: Option<&str>,
    ) -> io::Result<()> {
        let end = json!({"event": "build_end", "status": class, "exit": exit, "error": error});
        self.write(now, end)?;
        self.out.flush()
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn write(&mut self, at: Duration, mut value: Value) -> io::Result<()> {
        if let Value::Object(members) = &mut value {
            members.insert("v".into(), VERSION.into());
            let seconds = (at.as_secs_f64() * 1e6).round() / 1e6;
            members.insert("t".into(), seconds.into());
        }
        writeln!(self.out, "{}", sanitize::json(&value))
    }
}

fn of_event(event: Event) -> Value {
    match event {
        Event::Started { step, name } => json!({"event": "started", "step": step, "name": name}),
        Event::Log { step, stream, data } => {
            let stream = match stream {
                Stream::Stdout => "stdout",
                Stream::Stderr => "stderr",
            };
            let text = String::from_utf8_lossy(&data);
            json!({"event": "log", "step": step, "stream": stream, "text": text})
        }
        Event::Status {
            step,
            what,
            current,
            total,
        } => {
            json!({"event": "status", "step": step, "what": what, "current": current, "total": total})
        }
        Event::Ended {
            step,
            outcome,
            took,
        } => {
            let (name, error) = match outcome {
                Outcome::Done => ("done", None),
                Outcome::Cached => ("cached", None),
                Outcome::Failed(reason) => ("failed", Some(reason)),
                Outcome::Cancelled => ("cancelled", None),
                Outcome::NotRun => ("not_run", None),
            };
            let seconds = took.as_secs_f64();
            json!({"event": "ended", "step": step, "outcome": name, "error": error, "seconds": seconds})
        }
        Event::Explained { step, why } => with(
            explanation(&why),
            json!({"event": "explained", "step": step}),
        ),
        Event::Compared { step, comparison } => with(
            self::comparison(&comparison),
            json!({"event": "compared", "step": step}),
        ),
        Event::Warning { text, line } => json!({"event": "warning", "text": text, "line": line}),
    }
}

/// Adds the members of `more` to the object `value`.
pub(crate) fn with(mut value: Value, more: Value) -> Value {
    if let (Value::Object(members), Value::Object(more)) = (&mut value, more) {
        members.extend(more);
    }
    value
}

/// Why a step was or was not cached. `files` tells how the files of a COPY or ADD changed.
pub(crate) fn explanation(why: &Explanation) -> Value {
    json!({"hit": why.hit, "reasons": why.reasons, "files": listed(&why.changes.content)})
}

/// The result of running a cached step again.
pub(crate) fn comparison(comparison: &Comparison) -> Value {
    json!({
        "differs": comparison.differs(),
        "content": listed(&comparison.changes.content),
        "times": listed(&comparison.changes.times),
    })
}

/// Changed paths: how many, and the names of the first ones.
fn listed(list: &Listed) -> Value {
    let first = list.first.iter().map(|change| {
        let kinds: Vec<&str> = change.aspects.iter().map(|aspect| aspect.name()).collect();
        json!({"path": change.path, "kinds": kinds})
    });
    json!({"total": list.total, "first": first.collect::<Vec<_>>()})
}

#[cfg(test)]
mod tests {
    use engine::changes::{Aspect, Change, Changes};

    use super::*;

    #[test]
    fn each_line_is_an_object_and_the_last_one_is_the_end() {
        let mut raw = RawJson::new(Vec::new());
        let at = Duration::from_millis(1500);
        let event = Event::Started {
            step: 3,
            name: "RUN \"x\"\n".into(),
        };
        raw.item(Item {
            at,
            payload: Payload::Event(event),
        })
        .unwrap();
        raw.finish(at, "user", 1, Some("no")).unwrap();
        let text = String::from_utf8(raw.out).unwrap();
        let values: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let want = json!({"v": 1, "t": 1.5, "event": "started", "step": 3, "name": "RUN \"x\"\n"});
        assert_eq!(values[0], want);
        let want = json!({"v": 1, "t": 1.5, "event": "build_end", "status": "user", "exit": 1, "error": "no"});
        assert_eq!(values[1], want);
    }

    #[test]
    fn explanations_and_comparisons_name_paths_and_kinds() {
        let change = Change {
            path: "/a".into(),
            aspects: vec![Aspect::Content, Aspect::Mode],
        };
        let content = Listed {
            first: vec![change],
            total: 5,
        };
        let changes = Changes {
            content,
            times: Listed::default(),
        };
        let listed = json!({"total": 5, "first": [{"path": "/a", "kinds": ["content", "mode"]}]});
        let why = Explanation {
            hit: false,
            reasons: vec!["x".into()],
            changes: changes.clone(),
        };
        let want = json!({
            "event": "explained", "step": 7, "hit": false, "reasons": ["x"], "files": listed,
        });
        assert_eq!(of_event(Event::Explained { step: 7, why }), want);
        let comparison = Comparison {
            changes,
            strict: false,
        };
        let none = json!({"total": 0, "first": []});
        let want = json!({
            "event": "compared", "step": 7, "differs": true, "content": listed, "times": none,
        });
        let event = Event::Compared {
            step: 7,
            comparison,
        };
        assert_eq!(of_event(event), want);
    }
}
