//! From a CloudEvent to an event for the journal: decisions over values, without I/O.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kit_delivery::cloudevents::CloudEvent;
use kit_journal::{Dedupe, EventHead, EventId, NewEvent};
use serde_json::value::RawValue;

/// Longest attribute in bytes. CloudEvents asks for at least 64 of a type and knows no bound.
const ATTRIBUTE_BYTES: usize = 1024;

/// Why an event cannot be taken, ever.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotAdmitted {
    #[error("the event has no type")]
    NoType,
    #[error("{0} is longer than {ATTRIBUTE_BYTES} bytes")]
    TooLong(&'static str),
    #[error("data_base64 is not Base64")]
    NotBase64,
}

/// Makes the event. CloudEvents says that source and id together name one event for ever, so that what comes again
/// under them is the same whatever it carries.
pub(crate) fn admit(event: CloudEvent<'_>) -> Result<NewEvent, NotAdmitted> {
    if event.event_type.is_empty() {
        return Err(NotAdmitted::NoType);
    }
    let attributes = [
        ("id", Some(&event.id)),
        ("source", Some(&event.source)),
        ("type", Some(&event.event_type)),
        ("subject", event.subject.as_ref()),
        ("typealias", event.type_alias.as_ref()),
        ("tenantid", event.tenant.as_ref()),
        ("time", event.time.as_ref()),
        ("traceparent", event.traceparent.as_ref()),
        ("tracestate", event.tracestate.as_ref()),
    ];
    for (name, value) in attributes {
        if value.is_some_and(|value| value.len() > ATTRIBUTE_BYTES) {
            return Err(NotAdmitted::TooLong(name));
        }
    }
    let (body, json) = match (event.data, &event.data_base64, event.bytes) {
        (Some(data), ..) => (data.get().as_bytes().to_vec(), true),
        (None, Some(text), _) => {
            let bytes = STANDARD.decode(text).map_err(|_| NotAdmitted::NotBase64)?;
            // Some libraries write every data as bytes.
            let is_json = event.says_json && serde_json::from_slice::<&RawValue>(&bytes).is_ok();
            (bytes, is_json)
        }
        (None, None, bytes) => (bytes.unwrap_or_default().to_vec(), false),
    };
    let id = EventId::derive(&event.source, &event.id, None);
    let subject = event.subject.unwrap_or_else(|| no_subject(&event.id));
    let head = EventHead {
        tenant: event.tenant,
        time: event.time,
        alias: event.type_alias,
        json,
        tracestate: event.tracestate.filter(|_| event.traceparent.is_some()),
        traceparent: event.traceparent,
        ..EventHead::new(id, event.source, event.event_type, subject, event.id)
    };
    Ok(NewEvent { head, body, dedupe: Dedupe::Key })
}

/// The subject of an event that names none: it is in nobody's order.
fn no_subject(key: &str) -> String {
    format!("event/{key}")
}

/// The subject that the event came with.
pub(crate) fn subject(head: &EventHead) -> Option<&str> {
    (head.subject.strip_prefix("event/") != Some(head.key.as_str())).then_some(head.subject.as_str())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn event(json: &str) -> Result<NewEvent, NotAdmitted> {
        let headers = [("content-type".parse().unwrap(), "application/cloudevents+json".parse().unwrap())];
        admit(kit_delivery::cloudevents::event(&headers.into_iter().collect(), json.as_bytes()).unwrap())
    }

    const MINIMAL: &str = r#""specversion":"1.0","id":"e-1","source":"s","type":"t""#;

    #[test]
    fn data_is_kept_byte_for_byte() {
        let check = |more: &str, body: &[u8], json: bool| {
            let event = event(&format!("{{{MINIMAL}{more}}}")).unwrap();
            assert_eq!((event.body.as_slice(), event.head.json), (body, json), "{more}");
        };
        check(r#","data":{"a": 0.10,"b":1e400}"#, br#"{"a": 0.10,"b":1e400}"#, true);
        check(r#","data_base64":"AAE=""#, &[0, 1], false);
        check(r#","datacontenttype":"application/json","data_base64":"AAE=""#, &[0, 1], false);
        check(
            r#","datacontenttype":"application/json; charset=utf-8","data_base64":"eyJhIjogMX0=""#,
            br#"{"a": 1}"#,
            true,
        );
        check(r#","data_base64":"eyJhIjogMX0=""#, br#"{"a": 1}"#, false);
        check("", b"", false);
    }

    #[test]
    fn what_a_workflow_gets_of_an_event_has_data_where_the_event_had() {
        let shown = |more: &str| {
            let NewEvent { head, body, .. } = event(&format!("{{{MINIMAL}{more}}}")).unwrap();
            let at = "2026-11-22T13:27:00Z".parse().unwrap();
            let text = crate::rules::as_event(&kit_journal::StoredEvent { seq: 1, at, head, body: body.into() });
            serde_json::from_slice::<serde_json::Value>(&text).unwrap()
        };
        assert_eq!(shown(r#","data":{"a":1}"#)["data"]["a"], 1);
        assert_eq!(shown(r#","data_base64":"AAE=""#)["data_base64"], "AAE=");
        for none in ["", r#","data":null"#] {
            let shown = shown(none);
            assert!(shown.get("data").is_none() && shown.get("data_base64").is_none(), "{shown}");
        }
    }

    #[test]
    fn an_event_is_named_by_source_and_id_whatever_else_it_says() {
        let one = event(&format!(r#"{{{MINIMAL},"data":1}}"#)).unwrap();
        let other = event(&format!(r#"{{{MINIMAL},"data":2,"subject":"x"}}"#)).unwrap();
        assert_eq!((one.head.id, one.dedupe), (other.head.id, Dedupe::Key));
        assert_eq!((subject(&one.head), subject(&other.head)), (None, Some("x")));
        assert_eq!(one.head.subject, "event/e-1");
    }

    #[test]
    fn what_can_never_be_taken_is_said() {
        assert_eq!(event(r#"{"specversion":"1.0","id":"e","source":"s"}"#).unwrap_err(), NotAdmitted::NoType);
        let long = "x".repeat(1025);
        let found = event(&format!(r#"{{{MINIMAL},"subject":"{long}"}}"#)).unwrap_err();
        assert_eq!(found, NotAdmitted::TooLong("subject"));
        assert_eq!(event(&format!(r#"{{{MINIMAL},"data_base64":"%"}}"#)).unwrap_err(), NotAdmitted::NotBase64);
    }
}
