//! Texts with what an event says in them: `dunning-{data.invoice.lago_id}`. Decisions over values, without I/O.

use std::borrow::Cow;

use kit_journal::StoredEvent;
use kit_routes::Data;
use serde_json::Value;

use crate::admit::subject;

/// Longest id, name or type that Temporal takes everywhere.
///
/// Source: temporalio/temporal `schema/*/v*/temporal/schema.sql` (`VARCHAR(255)`), `limit.maxIDLength` of its
/// development configurations. The default limit is 1000.
pub(crate) const ID_BYTES: usize = 255;
/// Longest template.
const TEMPLATE_BYTES: usize = 2048;
/// What can stand in braces.
const KNOWN: &str = "{id}, {key}, {type}, {source}, {subject}, {tenant}, {time} or {data.<path>}";

/// An event and its body as JSON, parsed when the first template asks for it.
#[derive(Debug)]
pub(crate) struct Subject<'e> {
    pub(crate) event: &'e StoredEvent,
    data: Data<'e>,
}

impl<'e> Subject<'e> {
    pub(crate) fn new(event: &'e StoredEvent) -> Self {
        Self { event, data: Data::new(event) }
    }
}

/// A text with what an event says in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Fixed(String),
    Id,
    Key,
    Type,
    Source,
    Subject,
    Tenant,
    Time,
    /// The steps into the body.
    Data(Vec<String>),
}

/// What a rendered text is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A workflow's id: what an event says is written so that it has no slash, and two values stay two.
    WorkflowId,
    /// Any other name.
    Name,
    /// A text of any length.
    Text,
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// What is wrong with it, as it follows the name of the setting.
    pub(crate) fn read(text: &str) -> Result<Self, String> {
        if text.len() > TEMPLATE_BYTES {
            return Err(format!("is longer than {TEMPLATE_BYTES} bytes"));
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, from) = rest.split_at(at);
            if !before.is_empty() {
                parts.push(Part::Fixed(before.to_owned()));
            }
            let Some(inner) = from.strip_prefix('{') else {
                return Err(format!("has a }} without a {{ before it; in braces stands {KNOWN}"));
            };
            let (name, after) =
                inner.split_once('}').ok_or_else(|| format!("has a {{ without its }}; in braces stands {KNOWN}"))?;
            parts.push(Part::read(name).ok_or_else(|| format!("{{{name}}} is not one of {KNOWN}"))?);
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Fixed(rest.to_owned()));
        }
        Ok(Self { parts })
    }

    /// Whether no two events give the same text.
    pub(crate) fn is_unique(&self) -> bool {
        self.parts.contains(&Part::Id)
    }

    /// The text, where it is the same for every event.
    pub(crate) fn constant(&self) -> Option<String> {
        let is_fixed = self.parts.iter().all(|part| matches!(part, Part::Fixed(_)));
        is_fixed.then(|| self.fixed().collect::<String>()).filter(|text| !text.is_empty())
    }

    /// The texts between the braces.
    pub(crate) fn fixed(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Fixed(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// The text for an event.
    ///
    /// # Errors
    /// What the event lacks, or what is wrong with what it has; without the value itself.
    pub(crate) fn render(&self, subject: &Subject<'_>, purpose: Purpose) -> Result<String, String> {
        let mut text = String::new();
        for (at, part) in self.parts.iter().enumerate() {
            let found = match part {
                Part::Fixed(fixed) => {
                    text.push_str(fixed);
                    continue;
                }
                part => part.text(subject)?,
            };
            match purpose {
                Purpose::WorkflowId => write_encoded(&mut text, &found, self.separator(at)),
                Purpose::Name | Purpose::Text => text.push_str(&found),
            }
        }
        if purpose != Purpose::Text {
            match text.len() {
                0 => return Err("is empty for this event".to_owned()),
                1..=ID_BYTES => {}
                bytes => return Err(format!("has {bytes} bytes for this event, and Temporal takes {ID_BYTES}")),
            }
        }
        Ok(text)
    }

    /// What ends the value at this place, where another value comes after it: it must not be in the value, or
    /// `a-b` and `c` would be as `a` and `b-c`.
    fn separator(&self, at: usize) -> Option<char> {
        let has_more = self.parts.iter().skip(at + 1).any(|part| !matches!(part, Part::Fixed(_)));
        match self.parts.get(at + 1) {
            Some(Part::Fixed(text)) if has_more => text.chars().next(),
            _ => None,
        }
    }

    /// Why two events may give the same text though they say different things, if they may.
    pub(crate) fn ambiguity(&self) -> Option<&'static str> {
        let is_value = |at: usize| self.parts.get(at).is_some_and(|part| !matches!(part, Part::Fixed(_)));
        let wrong = (0..self.parts.len()).filter(|at| is_value(*at)).any(|at| {
            // What is written in place of other characters has letters, digits and percent signs.
            is_value(at + 1) || self.separator(at).is_some_and(|c| c.is_alphanumeric() || c == '%')
        });
        wrong.then_some("must have a separator such as - or : after each {} that another one follows: 1 and 23 would be as 12 and 3")
    }

    /// The value for an event as JSON: what the event has, byte for byte, where the template is nothing but that, a text
    /// otherwise.
    ///
    /// # Errors
    /// As [`Self::render`].
    pub(crate) fn value(&self, subject: &Subject<'_>) -> Result<String, String> {
        match self.parts.as_slice() {
            [part @ Part::Data(steps)] => {
                let found = subject.data.find_raw(steps).map(|found| found.get().to_owned());
                found.ok_or_else(|| format!("the event has no {}", part.shown()))
            }
            _ => self.render(subject, Purpose::Text).map(|text| Value::from(text).to_string()),
        }
    }
}

impl Part {
    fn read(name: &str) -> Option<Self> {
        Some(match name {
            "id" => Self::Id,
            "key" => Self::Key,
            "type" => Self::Type,
            "source" => Self::Source,
            "subject" => Self::Subject,
            "tenant" => Self::Tenant,
            "time" => Self::Time,
            path => {
                let steps = path.strip_prefix("data.")?.split('.');
                if steps.clone().any(str::is_empty) {
                    return None;
                }
                Self::Data(steps.map(str::to_owned).collect())
            }
        })
    }

    fn shown(&self) -> String {
        match self {
            Self::Fixed(text) => text.clone(),
            Self::Id => "{id}".to_owned(),
            Self::Key => "{key}".to_owned(),
            Self::Type => "{type}".to_owned(),
            Self::Source => "{source}".to_owned(),
            Self::Subject => "{subject}".to_owned(),
            Self::Tenant => "{tenant}".to_owned(),
            Self::Time => "{time}".to_owned(),
            Self::Data(steps) => format!("{{data.{}}}", steps.join(".")),
        }
    }

    fn text<'s>(&self, about: &'s Subject<'_>) -> Result<Cow<'s, str>, String> {
        let head = &about.event.head;
        let found = match self {
            Self::Fixed(_) => None,
            Self::Id => Some(Cow::Owned(head.id.to_string())),
            Self::Key => Some(Cow::Borrowed(head.key.as_str())),
            Self::Type => Some(Cow::Borrowed(head.event_type.as_str())),
            Self::Source => Some(Cow::Borrowed(head.source.as_str())),
            Self::Subject => subject(head).map(Cow::Borrowed),
            Self::Tenant => head.tenant.as_deref().map(Cow::Borrowed),
            Self::Time => Some(head.time.as_deref().map_or_else(|| about.event.at.to_string().into(), Cow::Borrowed)),
            Self::Data(steps) => match about.data.find(steps).as_deref() {
                Some(Value::String(text)) => Some(Cow::Owned(text.clone())),
                Some(Value::Bool(value)) => Some(Cow::Borrowed(if *value { "true" } else { "false" })),
                // Others may have been rounded: two values would become one.
                Some(Value::Number(number)) if number.is_i64() || number.is_u64() => Some(number.to_string().into()),
                Some(_) => return Err(format!("{} is no text and no whole number in this event", self.shown())),
                None => None,
            },
        };
        // What is there and says nothing would make one workflow of many.
        let found = found.ok_or_else(|| format!("the event has no {}", self.shown()))?;
        if found.is_empty() { Err(format!("{} is empty in this event", self.shown())) } else { Ok(found) }
    }
}

/// Writes a value so that no slash is in it, which Temporal's HTTP API could not express, and no control character. The
/// percent sign is encoded as well, so that different values stay different, and so is what ends the value.
fn write_encoded(text: &mut String, value: &str, separator: Option<char>) {
    use std::fmt::Write as _;
    for c in value.chars() {
        let is_plain = c != '/' && c != '%' && !c.is_ascii_control() && Some(c) != separator;
        if is_plain {
            text.push(c);
            continue;
        }
        for byte in c.encode_utf8(&mut [0; 4]).bytes() {
            let _ = write!(text, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use kit::clock::Timestamp;
    use kit_journal::{EventHead, EventId};

    use super::*;

    fn event(body: &str) -> StoredEvent {
        let id = EventId::derive("lago/acme", "k-1", None);
        let mut head = EventHead::new(id, "lago/acme", "lago.invoice.created", "invoice/i 1", "k-1");
        head.json = true;
        StoredEvent { seq: 1, at: Timestamp::from_millis(0), head, body: body.as_bytes().to_vec().into() }
    }

    fn rendered(template: &str, body: &str, purpose: Purpose) -> Result<String, String> {
        let event = event(body);
        Template::read(template).unwrap().render(&Subject::new(&event), purpose)
    }

    const BODY: &str = r#"{"invoice":{"id":"i/1%","number":7,"paid":false,"total":0.1,"empty":"","lines":[{"code":"a"}],
        "big":18446744073709551615,"bigger":18446744073709551616}}"#;

    #[test]
    fn an_event_says_what_stands_in_braces() {
        let check = |template: &str, expected: &str| {
            assert_eq!(rendered(template, BODY, Purpose::Name).as_deref(), Ok(expected), "{template}");
        };
        check("fixed", "fixed");
        check("{type}-{key}", "lago.invoice.created-k-1");
        check("{source}:{subject}", "lago/acme:invoice/i 1");
        check("dunning-{data.invoice.id}", "dunning-i/1%");
        check("{data.invoice.number}-{data.invoice.paid}-{data.invoice.lines.0.code}", "7-false-a");
        check("{data.invoice.big}", "18446744073709551615");
        check("{time}", "1970-01-01T00:00:00.000Z");
        let id = EventId::derive("lago/acme", "k-1", None).to_string();
        check("{id}", &id);
    }

    #[test]
    fn a_workflow_id_has_no_slash_and_different_values_stay_different() {
        let id = |template: &str| rendered(template, BODY, Purpose::WorkflowId).unwrap();
        assert_eq!(id("{source}:{subject}"), "lago%2Facme:invoice%2Fi 1");
        assert_eq!(id("x-{data.invoice.id}"), "x-i%2F1%25");
        let pair = |a: &str, b: &str| {
            let body = serde_json::json!({ "a": a, "b": b }).to_string();
            rendered("d-{data.a}-{data.b}", &body, Purpose::WorkflowId).unwrap()
        };
        assert_eq!(pair("acme-1", "7-8"), "d-acme%2D1-7-8");
        assert_ne!(pair("1-2", "3"), pair("1", "2-3"));
        assert_ne!(pair("1%2D2", "3"), pair("1-2", "3"));
    }

    #[test]
    fn values_that_would_run_into_each_other_are_refused() {
        let is_ambiguous = |template: &str| Template::read(template).unwrap().ambiguity().is_some();
        for wrong in ["{tenant}{key}", "a-{tenant}{key}", "{tenant}2{key}", "{tenant}%{key}", "{tenant}x-{key}"] {
            assert!(is_ambiguous(wrong), "{wrong}");
        }
        for right in ["{tenant}-{key}", "{key}", "a{key}b", "{type}:{id}", "x", "{tenant}/{key}"] {
            assert!(!is_ambiguous(right), "{right}");
        }
    }

    #[test]
    fn what_an_event_lacks_is_said_without_what_it_has() {
        let check = |template: &str, expected: &str| {
            assert_eq!(rendered(template, BODY, Purpose::Name), Err(expected.to_owned()), "{template}");
        };
        check("{tenant}", "the event has no {tenant}");
        check("{data.invoice.nothing}", "the event has no {data.invoice.nothing}");
        check("{data.invoice.empty}", "{data.invoice.empty} is empty in this event");
        check("{data.invoice.total}", "{data.invoice.total} is no text and no whole number in this event");
        check("{data.invoice.bigger}", "{data.invoice.bigger} is no text and no whole number in this event");
        check("{data.invoice}", "{data.invoice} is no text and no whole number in this event");
        let long = rendered("{data.x}", &format!(r#"{{"x":"{}"}}"#, "ä".repeat(128)), Purpose::WorkflowId);
        assert_eq!(long.unwrap_err(), "has 256 bytes for this event, and Temporal takes 255");
        assert!(rendered("{data.x}", "no json", Purpose::Name).is_err());
    }

    #[test]
    fn a_template_that_is_nothing_but_a_field_gives_its_value() {
        let event = event(BODY);
        let value = |template: &str| Template::read(template).unwrap().value(&Subject::new(&event));
        let check = |template: &str, expected: &str| assert_eq!(value(template), Ok(expected.to_owned()), "{template}");
        check("{data.invoice.number}", "7");
        check("{data.invoice.lines}", r#"[{"code":"a"}]"#);
        check("{data.invoice.bigger}", "18446744073709551616");
        check("{data.invoice.total}", "0.1");
        check("n{data.invoice.number}", "\"n7\"");
        check("{source}", "\"lago/acme\"");
    }

    /// Python writes half of a pair of surrogates as it is.
    #[test]
    fn what_cannot_be_read_keeps_nothing_else_from_being_read() {
        let body = r#"{"x":"\ud800","order":"o-1"}"#;
        assert_eq!(rendered("w-{data.order}", body, Purpose::WorkflowId).as_deref(), Ok("w-o-1"));
        let why = rendered("w-{data.x}", body, Purpose::WorkflowId).unwrap_err();
        assert_eq!(why, "{data.x} is no text and no whole number in this event");
    }

    #[test]
    fn a_wrong_template_is_told_with_what_would_be_right() {
        for wrong in ["{", "}", "a{b", "{}", "{nothing}", "{data}", "{data.}", "{data.a..b}", "{{id}}"] {
            let mistake = Template::read(wrong).unwrap_err();
            assert!(mistake.contains("{data.<path>}"), "{wrong}: {mistake}");
        }
        assert!(Template::read("{id}").unwrap().is_unique() && !Template::read("{key}").unwrap().is_unique());
    }
}
