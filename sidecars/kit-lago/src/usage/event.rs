//! One usage event from what a producer sends to what Lago is sent.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserializer as _, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::exact::exact;
use super::moment::EpochSeconds;

/// What is wrong with an event, by field, in Lago's words.
pub type FieldErrors = BTreeMap<&'static str, Vec<&'static str>>;

/// Deepest nesting of properties, within the levels of the request around them.
const DEEPEST: u32 = 90;
/// Largest event.
const LARGEST: usize = 256 << 10;
/// Longest id or code.
const LONGEST_NAME: usize = 500;
/// About what an event takes beside its id and its properties.
const ROOM: usize = 192;

/// Properties by name, as they were written.
type Properties<'a> = BTreeMap<Cow<'a, str>, &'a RawValue>;

/// The events of a request.
#[derive(Debug)]
pub enum Requested<'a> {
    /// `{"event": {…}}`.
    One(&'a RawValue),
    /// `{"events": […]}`.
    Batch(Vec<&'a RawValue>),
}

/// Why a body holds no events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadBody {
    /// Not JSON, or no object.
    #[error("the body is not a JSON object")]
    NotAnObject,
    /// The root key is missing.
    #[error("param is missing or the value is empty: event")]
    NoEvent,
    /// No array of events, or an empty one.
    #[error("there are no events")]
    NoEvents,
    /// More events than are taken at once.
    #[error("there are too many events")]
    TooMany,
}

/// Reads the body of `POST /api/v1/events` (`batch` false) or `POST /api/v1/events/batch`, with at most so many events:
/// the elements of a large body of small ones would take many times its memory.
///
/// # Errors
/// [`BadBody`].
pub fn requested(body: &[u8], batch: bool, most: usize) -> Result<Requested<'_>, BadBody> {
    #[derive(Deserialize)]
    struct Root<'a> {
        #[serde(borrow, default)]
        event: Option<&'a RawValue>,
        #[serde(borrow, default)]
        events: Option<&'a RawValue>,
    }
    // An array would be taken for the fields in their order.
    let is_object = body.trim_ascii_start().starts_with(b"{");
    let root: Option<Root<'_>> = is_object.then(|| serde_json::from_slice(body).ok()).flatten();
    let root = root.ok_or(BadBody::NotAnObject)?;
    if batch {
        return elements(root.events.ok_or(BadBody::NoEvents)?, most).map(Requested::Batch);
    }
    let event = root.event.filter(|event| event.get().starts_with('{') && event.get() != "{}");
    event.map(Requested::One).ok_or(BadBody::NoEvent)
}

/// The elements of a JSON array, one at least and at most so many.
///
/// # Errors
/// [`BadBody::NoEvents`], also where it is no array; [`BadBody::TooMany`].
pub fn elements(array: &RawValue, most: usize) -> Result<Vec<&RawValue>, BadBody> {
    struct AtMost(usize);
    impl<'de> Visitor<'de> for AtMost {
        type Value = Vec<&'de RawValue>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {} elements", self.0)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut all = Vec::new();
            while let Some(element) = seq.next_element()? {
                if all.len() == self.0 {
                    return Err(serde::de::Error::invalid_length(self.0 + 1, &self));
                }
                all.push(element);
            }
            Ok(all)
        }
    }
    if !array.get().starts_with('[') {
        return Err(BadBody::NoEvents);
    }
    // It is JSON: nothing else can be wrong with it.
    let all = serde_json::Deserializer::from_str(array.get()).deserialize_seq(AtMost(most));
    all.map_err(|_| BadBody::TooMany).and_then(|all| if all.is_empty() { Err(BadBody::NoEvents) } else { Ok(all) })
}

/// One event, its fields as the producer wrote them.
#[derive(Clone, Debug)]
pub struct UsageEvent<'a> {
    /// The producer's id: Lago counts an event once for each subscription and transaction id.
    pub transaction_id: Option<Cow<'a, str>>,
    /// Who is billed.
    pub external_subscription_id: Option<Cow<'a, str>>,
    /// Whose subscription that is; some producers know only this. Lago itself does not look at it.
    pub external_customer_id: Option<Cow<'a, str>>,
    /// Code of the billable metric.
    pub code: Cow<'a, str>,
    /// When it happened, if the producer says so.
    pub timestamp: Option<EpochSeconds>,
    /// For the charge model `dynamic`: a decimal as a text.
    pub precise_total_amount_cents: Option<Cow<'a, str>>,
    /// A JSON object, or nothing.
    pub properties: Option<&'a RawValue>,
}

impl<'a> UsageEvent<'a> {
    /// Reads one event and checks what Lago checks when it takes one, and that it says whom it is about.
    ///
    /// A missing `transaction_id` is left to the caller, who may know another name for the event.
    ///
    /// # Errors
    /// What is wrong, by field.
    ///
    /// Source: getlago/lago-api `app/services/events/create_service.rb`; `external_subscription_id` is not required
    /// there, and an event without one is never billed.
    pub fn read(event: &'a RawValue) -> Result<Self, FieldErrors> {
        Self::read_hashed(event).map(|(event, _)| event)
    }

    /// As [`UsageEvent::read`], with the event's [`UsageEvent::content`].
    ///
    /// # Errors
    /// As [`UsageEvent::read`].
    pub fn read_hashed(event: &'a RawValue) -> Result<(Self, Content), FieldErrors> {
        if event.get().len() > LARGEST {
            return Err(FieldErrors::from([("event", vec!["value_is_invalid"])]));
        }
        // Read once: an intake does this for every event.
        let (event, properties) = Self::parse(event)?;
        let content = event.content_with(&properties);
        Ok((event, content))
    }

    /// Reads what [`UsageEvent::to_json`] has written. It may be larger than what it was made of.
    ///
    /// `None` for anything else.
    pub fn reread(json: &'a [u8]) -> Option<Self> {
        Some(Self::parse(serde_json::from_slice(json).ok()?).ok()?.0)
    }

    /// The event, and its properties read.
    fn parse(event: &'a RawValue) -> Result<(Self, Properties<'a>), FieldErrors> {
        #[derive(Deserialize)]
        struct Fields<'a> {
            #[serde(borrow, default)]
            transaction_id: Option<&'a RawValue>,
            #[serde(borrow, default)]
            external_subscription_id: Option<&'a RawValue>,
            #[serde(borrow, default)]
            external_customer_id: Option<&'a RawValue>,
            #[serde(borrow, default)]
            code: Option<&'a RawValue>,
            #[serde(borrow, default)]
            timestamp: Option<&'a RawValue>,
            #[serde(borrow, default)]
            precise_total_amount_cents: Option<&'a RawValue>,
            #[serde(borrow, default)]
            properties: Option<&'a RawValue>,
        }
        let mut errors = FieldErrors::new();
        let is_object = event.get().starts_with('{');
        let Some(fields) = is_object.then(|| serde_json::from_str::<Fields<'a>>(event.get()).ok()).flatten() else {
            errors.insert("event", vec!["value_is_invalid"]);
            return Err(errors);
        };
        let mut name = |field: &'static str, value: Option<&'a RawValue>| match value.map(scalar) {
            None | Some(Ok(None)) => None,
            // PostgreSQL takes no NUL in a text: Lago would answer 500 to the whole batch.
            Some(Ok(Some(text))) if text.len() <= LONGEST_NAME && !text.contains('\0') => Some(text),
            Some(_) => {
                errors.insert(field, vec!["value_is_invalid"]);
                None
            }
        };
        let transaction_id = name("transaction_id", fields.transaction_id);
        let external_subscription_id = name("external_subscription_id", fields.external_subscription_id);
        let external_customer_id = name("external_customer_id", fields.external_customer_id);
        let code = name("code", fields.code);
        let precise_total_amount_cents = name("precise_total_amount_cents", fields.precise_total_amount_cents);
        // Rails makes 0 of what is no number, and that is what a customer would be billed.
        let is_no_number = |amount: &str| !amount.trim().parse::<f64>().is_ok_and(f64::is_finite);
        if precise_total_amount_cents.as_deref().is_some_and(is_no_number) {
            errors.insert("precise_total_amount_cents", vec!["value_is_invalid"]);
        }
        if external_subscription_id.is_none() && external_customer_id.is_none() {
            errors.entry("external_subscription_id").or_insert_with(|| vec!["value_is_mandatory"]);
        }
        if code.is_none() {
            errors.entry("code").or_insert_with(|| vec!["value_is_mandatory"]);
        }
        let timestamp = match fields.timestamp.filter(|value| !is_nothing(value)).map(EpochSeconds::of_json) {
            None => None,
            Some(Ok(timestamp)) => Some(timestamp),
            Some(Err(_)) => {
                errors.insert("timestamp", vec!["invalid_format"]);
                None
            }
        };
        // Lago drops what is not an object.
        let properties = fields.properties.filter(|value| value.get().starts_with('{'));
        let read = properties.map_or_else(|| Some(Properties::new()), read_properties);
        if read.is_none() || properties.is_some_and(|object| !is_storable(object.get())) {
            errors.insert("properties", vec!["value_is_invalid"]);
        }
        let Some(code) = code.filter(|_| errors.is_empty()) else { return Err(errors) };
        let event = Self {
            transaction_id,
            external_subscription_id,
            external_customer_id,
            code,
            timestamp,
            precise_total_amount_cents,
            properties,
        };
        Ok((event, read.unwrap_or_default()))
    }

    /// The properties as Lago is sent them: the same, but for numbers with so many digits that Lago would change them,
    /// which are texts.
    pub fn outgoing_properties(&self) -> Option<Cow<'a, RawValue>> {
        let properties = self.properties?;
        Some(exact(properties).map_or(Cow::Borrowed(properties), Cow::Owned))
    }

    /// A value of `properties`, as it was written.
    pub fn property(&self, name: &str) -> Option<&'a RawValue> {
        property(self.properties?, name)
    }

    /// What tells a second arrival of the same event from another event under its id: the fields, whatever the order
    /// of the properties and the white space around them.
    pub fn content(&self) -> Content {
        self.content_with(&self.properties.map(properties).unwrap_or_default())
    }

    fn content_with(&self, properties: &Properties<'_>) -> Content {
        let mut hasher = Sha256::new();
        let mut part = |text: &str| {
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text);
        };
        part(&self.code);
        part(self.timestamp.as_ref().map_or("", EpochSeconds::as_str));
        part(self.precise_total_amount_cents.as_deref().unwrap_or_default());
        for (name, value) in properties {
            part(name);
            part(value.get());
        }
        Content(hasher.finalize().into())
    }

    /// The event as Lago is sent it, or, without a subscription, as it came. The same bytes, whenever it is sent: ClickHouse counts an event again whose
    /// timestamp has changed.
    ///
    /// `timestamp` is the producer's, or the time of the first receipt.
    pub fn to_json(
        &self,
        transaction_id: &str,
        external_subscription_id: Option<&str>,
        timestamp: &EpochSeconds,
    ) -> Vec<u8> {
        // What is not sent yet is read once more, and has to be the same event then.
        let properties = match external_subscription_id {
            Some(_) => self.outgoing_properties(),
            None => self.properties.map(Cow::Borrowed),
        };
        self.to_json_with(transaction_id, external_subscription_id, timestamp, properties.as_deref())
    }

    /// The same with these properties, for who has them already.
    pub fn to_json_with(
        &self,
        transaction_id: &str,
        external_subscription_id: Option<&str>,
        timestamp: &EpochSeconds,
        properties: Option<&RawValue>,
    ) -> Vec<u8> {
        #[derive(Serialize)]
        struct Outgoing<'o> {
            transaction_id: &'o str,
            #[serde(skip_serializing_if = "Option::is_none")]
            external_subscription_id: Option<&'o str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            external_customer_id: Option<&'o str>,
            code: &'o str,
            timestamp: Option<Box<RawValue>>,
            #[serde(skip_serializing_if = "Option::is_none")]
            precise_total_amount_cents: Option<&'o str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            properties: Option<&'o RawValue>,
        }
        let outgoing = Outgoing {
            transaction_id,
            external_subscription_id,
            // Only where nothing else says whose it is: Lago wants the subscription.
            external_customer_id: self.external_customer_id.as_deref().filter(|_| external_subscription_id.is_none()),
            code: &self.code,
            timestamp: RawValue::from_string(timestamp.as_str().to_owned()).ok(),
            precise_total_amount_cents: self.precise_total_amount_cents.as_deref(),
            properties,
        };
        let room = ROOM + transaction_id.len() + properties.map_or(0, |properties| properties.get().len());
        let mut json = Vec::with_capacity(room);
        // Texts and values that were read from JSON: nothing in it can fail to be written.
        let _ = serde_json::to_writer(&mut json, &outgoing);
        json
    }
}

/// Hash of what an event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content(pub [u8; 32]);

/// A value of a JSON object, as it was written.
pub fn property<'a>(object: &'a RawValue, name: &str) -> Option<&'a RawValue> {
    properties(object).remove(name)
}

fn properties(object: &RawValue) -> Properties<'_> {
    read_properties(object).unwrap_or_default()
}

/// `None` for names that are no text, such as half of a surrogate pair.
pub(super) fn read_properties(object: &RawValue) -> Option<Properties<'_>> {
    #[derive(Deserialize)]
    struct Object<'a>(#[serde(borrow)] BTreeMap<Cow<'a, str>, &'a RawValue>);
    serde_json::from_str(object.get()).map(|Object(properties)| properties).ok()
}

/// Whether Lago can read and store a JSON text: Ruby reads a hundred levels, PostgreSQL takes no NUL in `jsonb`, and neither
/// takes half of a surrogate pair. It refuses the whole batch otherwise.
fn is_storable(json: &str) -> bool {
    let (mut depth, mut deepest, mut in_text) = (0_u32, 0, false);
    // The first half of a pair, whose second one has to be next.
    let mut open_pair = false;
    let mut bytes = json.bytes();
    while let Some(byte) = bytes.next() {
        if open_pair && byte != b'\\' {
            return false;
        }
        match byte {
            b'\\' if in_text => {
                let escaped = bytes.next();
                let unit = (escaped == Some(b'u')).then(|| hexadecimal(&mut bytes));
                match unit {
                    Some(None | Some(0)) => return false,
                    Some(Some(0xdc00..=0xdfff)) if open_pair => open_pair = false,
                    Some(Some(0xdc00..=0xdfff)) => return false,
                    _ if open_pair => return false,
                    Some(Some(unit)) => open_pair = (0xd800..=0xdbff).contains(&unit),
                    None => {}
                }
            }
            b'"' => in_text = !in_text,
            _ if in_text => {}
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest <= DEEPEST
}

/// The four digits of an escape.
fn hexadecimal(bytes: &mut impl Iterator<Item = u8>) -> Option<u32> {
    (0..4).try_fold(0, |unit, _| Some(unit * 16 + char::from(bytes.next()?).to_digit(16)?))
}

fn is_nothing(value: &RawValue) -> bool {
    matches!(value.get(), "null" | "\"\"")
}

/// The text of a string or a number; nothing for `null`, an empty text, and what Rails' strong parameters drop.
fn scalar(value: &RawValue) -> Result<Option<Cow<'_, str>>, ()> {
    let json = value.get();
    match json.as_bytes().first() {
        Some(b'"') => {
            #[derive(Deserialize)]
            struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
            let Text(text) = serde_json::from_str(json).map_err(|_| ())?;
            Ok(Some(text).filter(|text| !text.trim().is_empty()))
        }
        Some(b'-' | b'0'..=b'9') => Ok(Some(Cow::Borrowed(json))),
        Some(b't' | b'f') => Err(()),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(json: &str) -> Result<UsageEvent<'_>, FieldErrors> {
        UsageEvent::read(serde_json::from_str(json).unwrap())
    }

    fn sent(json: &str) -> String {
        let event = read(json).unwrap();
        let timestamp = event.timestamp.clone().unwrap_or_else(|| EpochSeconds::of_text("1").unwrap());
        let id = event.transaction_id.clone().unwrap();
        String::from_utf8(event.to_json(&id, event.external_subscription_id.as_deref(), &timestamp)).unwrap()
    }

    /// Rails would read the first as 0.1.
    #[test]
    fn what_is_sent_on_keeps_every_digit_of_what_came() {
        let event = r#"{"transaction_id":"t-1","external_subscription_id":"s","code":"api_calls",
            "timestamp":"2024-11-19T07:06:40.5Z","precise_total_amount_cents":12.30,"unknown":1,
            "properties":{"gb": 0.10000000000000000001, "n":1E+2, "who":"\u00fc","deep":{"a":[1, 2]}}}"#;
        assert_eq!(
            sent(event),
            concat!(
                r#"{"transaction_id":"t-1","external_subscription_id":"s","code":"api_calls","timestamp":1732000000.5,"#,
                r#""precise_total_amount_cents":"12.30","#,
                r#""properties":{"gb": "0.10000000000000000001", "n":1E+2, "who":"\u00fc","deep":{"a":[1, 2]}}}"#
            )
        );
        assert_eq!(
            sent(r#"{"transaction_id":17,"external_customer_id":"c","code":"x","properties":null}"#),
            r#"{"transaction_id":"17","external_customer_id":"c","code":"x","timestamp":1}"#
        );
    }

    #[test]
    fn whole_pairs_and_what_only_looks_like_half_of_one_are_sent_on() {
        for value in [r#""\ud83d\ude00""#, r#""\\ud800""#, r#""\\u0000""#, r#""\"\\\u00fc""#, r#"["{",{"[":"\n"}]"#] {
            let json = format!(
                r#"{{"transaction_id":"t","external_subscription_id":"s","code":"c","properties":{{"a":{value}}}}}"#
            );
            assert!(sent(&json).contains(value), "{value}");
        }
    }

    #[test]
    fn what_lago_refuses_is_refused_in_its_words() {
        let check = |json: &str, expected: &[(&str, &str)]| {
            let errors = read(json).unwrap_err();
            let seen: Vec<_> = errors.iter().map(|(field, codes)| (*field, codes[0])).collect();
            assert_eq!(seen, expected, "{json}");
        };
        let mandatory = [("code", "value_is_mandatory"), ("external_subscription_id", "value_is_mandatory")];
        check(r#"{"transaction_id":"t"}"#, &mandatory);
        check(r#"{"transaction_id":"t","code":" ","external_subscription_id":""}"#, &mandatory);
        check(r#"{"transaction_id":"t","code":{},"external_subscription_id":null}"#, &mandatory);
        check(r#"{"code":true,"external_subscription_id":"s"}"#, &[("code", "value_is_invalid")]);
        check(r#"{"code":"a\u0000b","external_subscription_id":"s"}"#, &[("code", "value_is_invalid")]);
        check(
            r#"{"code":"c","external_subscription_id":"s","timestamp":"tomorrow"}"#,
            &[("timestamp", "invalid_format")],
        );
        for amount in ["abc", "1,5", "NaN", "inf", "1.5 EUR"] {
            let json =
                format!(r#"{{"code":"c","external_subscription_id":"s","precise_total_amount_cents":"{amount}"}}"#);
            check(&json, &[("precise_total_amount_cents", "value_is_invalid")]);
        }
        let long = "x".repeat(501);
        check(
            &format!(r#"{{"code":"c","external_subscription_id":"s","transaction_id":"{long}"}}"#),
            &[("transaction_id", "value_is_invalid")],
        );
        for properties in [
            r#"{"\ud800":1}"#.to_owned(),
            r#"{"a":"\u0000"}"#.to_owned(),
            // Half of a surrogate pair: Rails refuses the whole request.
            r#"{"a":"\ud800"}"#.to_owned(),
            r#"{"a":"\uDFFF"}"#.to_owned(),
            r#"{"a":["\ud83d\n\ude00"]}"#.to_owned(),
            r#"{"a":{"\ud83dx":1}}"#.to_owned(),
            r#"{"a":"\ud83d\ud83d\ude00"}"#.to_owned(),
            format!(r#"{{"a":{}{}}}"#, "[".repeat(91), "]".repeat(91)),
        ] {
            check(
                &format!(r#"{{"code":"c","external_subscription_id":"s","properties":{properties}}}"#),
                &[("properties", "value_is_invalid")],
            );
        }
        let huge =
            format!(r#"{{"code":"c","external_subscription_id":"s","properties":{{"a":"{}"}}}}"#, "x".repeat(300_000));
        check(&huge, &[("event", "value_is_invalid")]);
        check("[1]", &[("event", "value_is_invalid")]);
        check("7", &[("event", "value_is_invalid")]);
    }

    #[test]
    fn the_same_content_is_recognised_however_it_is_written() {
        let content = |json: &str| read(json).unwrap().content();
        let first = content(r#"{"code":"c","external_subscription_id":"s","properties":{"a":1,"b":"x"}}"#);

        for same in [
            r#"{ "external_subscription_id":"s","code":"c","properties" : { "b":"x" , "a": 1 } }"#,
            r#"{"code":"\u0063","external_subscription_id":"s","timestamp":null,"properties":{"a":1,"b":"x"},"other":1}"#,
        ] {
            assert_eq!(content(same), first, "{same}");
        }
        for other in [
            r#"{"code":"d","external_subscription_id":"s","properties":{"a":1,"b":"x"}}"#,
            r#"{"code":"c","external_subscription_id":"s","properties":{"a":1.0,"b":"x"}}"#,
            r#"{"code":"c","external_subscription_id":"s","properties":{"a":1}}"#,
            r#"{"code":"c","external_subscription_id":"s","timestamp":5,"properties":{"a":1,"b":"x"}}"#,
            r#"{"code":"c","external_subscription_id":"s"}"#,
        ] {
            assert_ne!(content(other), first, "{other}");
        }
    }

    #[test]
    fn what_was_written_is_read_again_as_it_was_also_where_it_has_grown() {
        let properties = format!(r#"{{"gb":0.10,"region":"{}"}}"#, "x".repeat(LARGEST - 200));
        let sent = format!(
            r#"{{"transaction_id":17,"external_customer_id":"c","code":"x","timestamp":"2024-11-19T07:06:40Z",
                "precise_total_amount_cents":1.50,"properties":{properties}}}"#
        );
        let event = read(&sent).unwrap();
        let written = event.to_json(&"t".repeat(400), None, event.timestamp.as_ref().unwrap());

        let again = UsageEvent::reread(&written).unwrap();

        assert!(written.len() > LARGEST && again.content() == event.content());
        assert_eq!(again.external_customer_id.as_deref(), Some("c"));
        assert_eq!(again.to_json("t", Some("s"), &EpochSeconds::of_text("1").unwrap()).len(), {
            event.to_json("t", Some("s"), &EpochSeconds::of_text("1").unwrap()).len()
        });
        assert!(UsageEvent::reread(b"7").is_none());
    }

    #[test]
    fn a_body_holds_one_event_or_several() {
        assert!(matches!(requested(br#"{"event":{"code":"c"}}"#, false, 1), Ok(Requested::One(_))));
        assert!(
            matches!(requested(br#"{"events":[{},1]}"#, true, 2), Ok(Requested::Batch(events)) if events.len() == 2)
        );
        for (body, batch, expected) in [
            (&b""[..], false, BadBody::NotAnObject),
            (b"[]", false, BadBody::NotAnObject),
            (b"{}", false, BadBody::NoEvent),
            (br#"{"event":{}}"#, false, BadBody::NoEvent),
            (br#"{"event":null}"#, false, BadBody::NoEvent),
            (br#"{"event":{"code":"c"}"#, false, BadBody::NotAnObject),
            (b"{}", true, BadBody::NoEvents),
            (br#"{"events":[]}"#, true, BadBody::NoEvents),
            (br#"{"events":{}}"#, true, BadBody::NoEvents),
            (br#"{"event":{"code":"c"}}"#, true, BadBody::NoEvents),
            (br#"{"events":7}"#, true, BadBody::NoEvents),
            (br#"{"events":[{},[],{}]}"#, true, BadBody::TooMany),
            (br#"{"events":[{},[],{}}"#, true, BadBody::NotAnObject),
        ] {
            assert_eq!(requested(body, batch, 2).err(), Some(expected), "{}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn a_property_is_found_as_it_was_written() {
        let event = read(r#"{"code":"c","external_subscription_id":"s","properties":{"gb":1.50,"\u0061":2}}"#).unwrap();
        assert_eq!(event.property("gb").map(RawValue::get), Some("1.50"));
        assert_eq!(event.property("a").map(RawValue::get), Some("2"));
        assert!(event.property("b").is_none());
    }
}
