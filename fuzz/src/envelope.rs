//! A verified body described: the first line is the unique key, the rest the body.
//!
//! Promises: every field is bounded and can stand in a CloudEvent; a body that counts as JSON is
//! JSON; what decides is in the body, once.

use kit::clock::Timestamp;
use kit_lago::describe;
use kit_lago::describe::{MAX_ID_BYTES, MAX_TYPE_CHARS, UNKNOWN_TYPE};
use serde_json::Value;

use crate::parts::first_line;

/// Describes the body.
///
/// # Panics
/// A field is not what it must be.
pub fn target(data: &[u8]) {
    let (key, body) = first_line(data);
    let key = String::from_utf8_lossy(key);
    let description = describe(body, "acme", &key);

    assert_eq!(description.source, "lago/acme");
    let type_name = description.webhook_type.as_deref().map_or(UNKNOWN_TYPE.to_owned(), |name| format!("lago.{name}"));
    assert_eq!(description.event_type, type_name);
    for name in [&description.webhook_type, &description.object_type].into_iter().flatten() {
        assert!((1..=MAX_TYPE_CHARS).contains(&name.chars().count()), "{name:?}");
        plain(name);
    }
    for id in [&description.tenant, &description.organization_id].into_iter().flatten() {
        assert!((1..=MAX_ID_BYTES).contains(&id.len()), "{id:?}");
        plain(id);
    }
    assert!(description.subject.len() <= MAX_TYPE_CHARS * 4 + 1 + MAX_ID_BYTES, "{:?}", description.subject);
    plain(&description.subject);
    if let Some(time) = &description.time {
        assert_eq!(time.parse::<Timestamp>().map(|time| time.to_string()).as_ref(), Ok(time));
    }
    assert!(!description.organization_ambiguous || description.organization_id.is_none());
    assert!(!description.is_json || std::str::from_utf8(body).is_ok());

    // The reader of whole trees stops at a depth that `describe` does not have.
    let Ok(tree) = serde_json::from_slice::<Value>(body) else { return };
    assert!(description.is_json);
    let text = |name: &str| tree.get(name).and_then(Value::as_str);
    if let Some(name) = &description.webhook_type {
        assert_eq!(text("webhook_type"), Some(name.as_str()));
    }
    if let Some(name) = &description.object_type {
        assert_eq!(text("object_type"), Some(name.as_str()));
    }
    if let Some(id) = &description.organization_id {
        assert_eq!(text("organization_id"), Some(id.as_str()));
    }
    if let Some(tenant) = &description.tenant {
        assert!(contains(&tree, tenant), "{tenant:?} is not in the body");
    }
}

/// As the strings of CloudEvents: no control characters.
fn plain(text: &str) {
    assert!(!text.is_empty() && !text.contains(char::is_control), "{text:?}");
}

fn contains(value: &Value, wanted: &str) -> bool {
    match value {
        Value::String(text) => text == wanted,
        Value::Array(values) => values.iter().any(|value| contains(value, wanted)),
        Value::Object(values) => values.values().any(|value| contains(value, wanted)),
        Value::Null | Value::Bool(_) => false,
        // Identifiers may be numbers.
        Value::Number(number) => number.to_string() == wanted,
    }
}
