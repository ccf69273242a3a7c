//! One value of an event's body, wherever it stands.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::HashMap;

use kit_journal::StoredEvent;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// An event's body as JSON, parsed when somebody first asks.
#[derive(Debug)]
pub struct Data<'e> {
    event: &'e StoredEvent,
    parsed: OnceCell<Option<Value>>,
}

impl<'e> Data<'e> {
    /// The body of this event.
    pub fn new(event: &'e StoredEvent) -> Self {
        Self { event, parsed: OnceCell::new() }
    }

    /// What stands there; `None` where nothing does. The place of an array is a number from 0.
    ///
    /// A body that cannot be read as a whole – nested deeper than is read at once, or with a text that is none (`"\ud800"`)
    /// somewhere – is read along the way there: what stands elsewhere says nothing about it. A value that cannot be read is
    /// an empty array here: it is there, and no text, number or truth.
    pub fn find(&self, steps: &[String]) -> Option<Cow<'_, Value>> {
        if !self.event.head.json {
            return None;
        }
        let parsed = self.parsed.get_or_init(|| serde_json::from_slice(&self.event.body).ok());
        let Some(whole) = parsed else {
            let value = serde_json::from_str(self.find_raw(steps)?.get());
            return Some(Cow::Owned(value.unwrap_or_else(|_| Value::Array(Vec::new()))));
        };
        let found = steps.iter().try_fold(whole, |value, step| match value {
            Value::Array(values) => values.get(step.parse::<usize>().ok()?),
            value => value.get(step),
        });
        found.map(Cow::Borrowed)
    }

    /// The same as it stands in the body, byte for byte: numbers of any size.
    pub fn find_raw(&self, steps: &[String]) -> Option<&'e RawValue> {
        if !self.event.head.json {
            return None;
        }
        let whole: &RawValue = serde_json::from_slice(&self.event.body).ok()?;
        steps.iter().try_fold(whole, |value, step| match value.get().as_bytes().first()? {
            b'[' => serde_json::from_str::<Vec<&RawValue>>(value.get()).ok()?.get(step.parse::<usize>().ok()?).copied(),
            b'{' => serde_json::from_str::<HashMap<Name<'_>, &RawValue>>(value.get()).ok()?.get(step.as_str()).copied(),
            _ => None,
        })
    }
}

/// The name of a member.
#[derive(PartialEq, Eq, Hash, Deserialize)]
#[serde(transparent)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl std::borrow::Borrow<str> for Name<'_> {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use kit::clock::Timestamp;
    use kit_journal::{EventHead, EventId};

    use super::*;

    fn event(body: &str, json: bool) -> StoredEvent {
        let head = EventHead { json, ..EventHead::new(EventId::derive("s", "k", None), "s", "t", "x", "k") };
        StoredEvent { seq: 1, at: Timestamp::from_millis(0), head, body: body.as_bytes().to_vec().into() }
    }

    #[test]
    fn what_stands_elsewhere_says_nothing_about_a_value() {
        let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
        for elsewhere in ["1", r#""\ud800""#, &deep] {
            let text =
                format!(r#"{{"b":{elsewhere},"a":{{"\u0062":[true,"x",{elsewhere}]}},"n": 1e400, "c":2,"c":3}}"#);
            let event = event(&text, true);
            let data = Data::new(&event);
            let find = |path: &str| {
                let steps: Vec<String> = path.split('.').map(str::to_owned).collect();
                data.find(&steps).map(Cow::into_owned)
            };
            assert_eq!(find("a.b.1"), Some(Value::from("x")));
            assert_eq!(find("c"), Some(Value::from(3)), "of two the last one");
            assert_eq!((find("a.c"), find("a.b.3"), find("a.b.x"), find("c.d")), (None, None, None, None));
            let there = if elsewhere == "1" { Value::from(1) } else { Value::Array(Vec::new()) };
            assert_eq!((find("b"), find("a.b.2")), (Some(there.clone()), Some(there)));
        }
    }

    #[test]
    fn what_is_no_json_has_no_values() {
        for (text, json) in [("{\"a\":1}", false), ("{\"a\":1", true), ("", true)] {
            let event = event(text, json);
            assert_eq!(Data::new(&event).find(&["a".to_owned()]), None, "{text}");
            assert!(Data::new(&event).find_raw(&["a".to_owned()]).is_none(), "{text}");
        }
    }
}
