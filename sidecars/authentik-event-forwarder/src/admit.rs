//! From an event of Authentik's to an event for the journal: decisions over values, without I/O.
//!
//! What is stored is the event alone, byte for byte as it was sent, and not the envelope around it: so it looks the same
//! whether a webhook or the API brought it, and a secret in the envelope is stored nowhere (ADR 0021).

use std::borrow::Cow;

use kit_authentik::envelope::Envelope;
use kit_authentik::event::Event;
use kit_journal::{BodyDigest, Dedupe, EventHead, EventId, NewEvent, StoredEvent};

use crate::exclude::{Excluded, Rules};
use crate::names::{self, Aliases};
use crate::people::Known;

/// Type of a proven body that is not our envelope, and of a row of the API that is no event.
const UNREADABLE: &str = "authentik.unreadable";
/// What the subject of a webhook begins with that cannot be read.
const WEBHOOK: &str = "webhook/";
/// Tenants that stand for nobody in particular.
const UNATTRIBUTED: [&str; 4] = ["default", "default_tenant", "global", "system"];

/// What events become, whichever way they come.
#[derive(Debug)]
pub(crate) struct Admission {
    pub(crate) source: String,
    pub(crate) rules: Rules,
    pub(crate) aliases: Aliases,
    /// Some sink is sent the sender's headers.
    pub(crate) keep_headers: bool,
}

impl Admission {
    /// The event for the journal, or why it is not taken. `own_pk` is the number of the account whose writes are our own;
    /// `known` what is known of the user that the event is about.
    pub(crate) fn event(
        &self,
        event: &Event<'_>,
        own_pk: Option<i64>,
        known: Option<&Known>,
    ) -> Result<NewEvent, Excluded> {
        if let Some(excluded) = self.rules.excluded(event, own_pk) {
            return Err(excluded);
        }
        let key = event.pk.to_string();
        let tenant = known.and_then(|known| known.tenant.clone());
        let id = EventId::derive(&self.source, &key, None);
        let head = EventHead {
            unattributed: tenant.as_deref().is_some_and(|tenant| UNATTRIBUTED.contains(&tenant)),
            tenant,
            time: event.created_at().and_then(|_| event.created.clone()),
            alias: self.aliases.of(event),
            json: true,
            headers: self.headers(),
            ..EventHead::new(id, &self.source, names::event_type(event), names::subject(event), key)
        };
        let body = match known.and_then(|known| known.shown.as_deref()) {
            Some(enriched) => with_member(event.raw, enriched),
            None => event.raw.as_bytes().to_vec(),
        };
        Ok(NewEvent { head, body, dedupe: Dedupe::Key })
    }

    /// A body that is proven and cannot be read: a mapping of another version, or one that somebody changed. Where nothing
    /// else brings its event it is kept, and parked ([`parked`]) for a person to look at.
    pub(crate) fn unreadable(&self, body: Vec<u8>) -> (NewEvent, BodyDigest) {
        let digest = BodyDigest::of(&body);
        let key = digest.0.iter().fold(String::from("sha256-"), |text, byte| text + &format!("{byte:02x}"));
        let id = EventId::derive(&self.source, &key, Some(&digest));
        let subject = format!("{WEBHOOK}{key}");
        let json = serde_json::from_slice::<serde::de::IgnoredAny>(&body).is_ok();
        let head =
            EventHead { json, headers: self.headers(), ..EventHead::new(id, &self.source, UNREADABLE, subject, key) };
        (NewEvent { head, body, dedupe: Dedupe::KeyAndBody }, digest)
    }

    fn headers(&self) -> Vec<(Cow<'static, str>, String)> {
        let own = (Cow::Borrowed("content-type"), "application/json".to_owned());
        if self.keep_headers { vec![own] } else { Vec::new() }
    }
}

/// Why an event is a dead letter from the beginning: nobody that it is routed to can read it either. Replayed, it is
/// delivered as it is.
pub(crate) fn parked(event: &StoredEvent) -> Option<String> {
    if event.head.event_type != UNREADABLE {
        return None;
    }
    // An action may have this name, too.
    let text = std::str::from_utf8(&event.body).unwrap_or_default();
    if event.head.subject.starts_with(WEBHOOK) {
        let why = Envelope::read(&event.body).err().map_or_else(String::new, |why| format!(": {why}"));
        Some(format!("a webhook that could not be read{why}"))
    } else {
        Event::read(text).err().map(|why| format!("an event of Authentik's API that cannot be read: {why}"))
    }
}

/// The object with one more member, everything else byte for byte as it is.
fn with_member(object: &str, value: &str) -> Vec<u8> {
    let end = object.rfind('}').unwrap_or(object.len());
    let (before, after) = object.split_at(end);
    [before, r#","enriched":"#, value, after].concat().into_bytes()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::EventsSection;

    fn admission() -> Admission {
        let section = EventsSection::default();
        Admission {
            source: "authentik/default".to_owned(),
            rules: Rules::new(&section),
            aliases: Aliases::new(&section),
            keep_headers: false,
        }
    }

    fn admitted(raw: &str, known: Option<&Known>) -> NewEvent {
        admission().event(&Event::read(raw).unwrap(), None, known).unwrap()
    }

    #[test]
    fn webhook_and_api_give_the_same_event_whatever_the_spelling_of_its_key() {
        let hex =
            r#"{"pk":"0F0e0d0c0b0a49088706050403020100","action":"login","created":"2026-11-22T13:27:00.123456Z"}"#;
        let dashed = hex.replace("0F0e0d0c0b0a49088706050403020100", "0f0e0d0c-0b0a-4908-8706-050403020100");

        let (one, two) = (admitted(hex, None), admitted(&dashed, None));

        assert_eq!((one.head.id, &one.head.key), (two.head.id, &two.head.key));
        assert_eq!(one.head.key, "0f0e0d0c0b0a49088706050403020100");
        assert_eq!((one.head.event_type.as_str(), one.dedupe), ("authentik.login", Dedupe::Key));
        assert_eq!(one.head.time.as_deref(), Some("2026-11-22T13:27:00.123456Z"));
        assert_eq!(one.body, hex.as_bytes());
    }

    #[test]
    fn a_time_that_is_none_is_not_passed_on() {
        let head = admitted(r#"{"pk":"0f0e0d0c0b0a49088706050403020100","action":"x","created":"today"}"#, None).head;
        assert_eq!(head.time, None);
    }

    #[test]
    fn what_is_known_of_the_user_is_added_and_nothing_else_changes() {
        let raw = r#"{ "pk":"0f0e0d0c0b0a49088706050403020100", "action":"login","context":{"a": 1.50} } "#.trim();
        let known = Known { tenant: Some("default".to_owned()), shown: Some(r#"{"user":{}}"#.to_owned()) };

        let event = admitted(raw, Some(&known));

        let expected = raw.strip_suffix('}').unwrap().to_owned() + r#","enriched":{"user":{}}}"#;
        assert_eq!(String::from_utf8(event.body).unwrap(), expected);
        assert_eq!((event.head.tenant.as_deref(), event.head.unattributed), (Some("default"), true));
    }

    #[test]
    fn what_cannot_be_read_is_parked_with_the_reason_and_an_action_of_that_name_is_not() {
        let reason = |new: NewEvent| {
            let at = "2026-11-22T13:27:00Z".parse().unwrap();
            parked(&StoredEvent { seq: 1, at, head: new.head, body: new.body.into() })
        };
        let (webhook, _) = admission().unreadable(br#"{"schema":"outrigger.authentik/2","event":{}}"#.to_vec());
        assert!(reason(webhook).unwrap().contains("is of another version"));
        let (mut row, _) = admission().unreadable(br#"{"pk":"0f0e0d0c0b0a49088706050403020100"}"#.to_vec());
        row.head.subject = "event/0f0e0d0c0b0a49088706050403020100".to_owned();
        assert!(reason(row).unwrap().contains("its action is missing"));
        for action in ["unreadable", "login"] {
            let raw = format!(r#"{{"pk":"0f0e0d0c0b0a49088706050403020100","action":"{action}"}}"#);
            assert_eq!(reason(admitted(&raw, None)), None, "{action}");
        }
    }

    #[test]
    fn a_proven_body_that_cannot_be_read_is_kept_under_its_digest() {
        let (event, digest) = admission().unreadable(b"{}".to_vec());
        assert!(event.head.key.starts_with("sha256-44136fa3") && event.head.json);
        assert_eq!((event.head.event_type.as_str(), digest), (UNREADABLE, BodyDigest::of(b"{}")));
        assert!(!admission().unreadable(b"".to_vec()).0.head.json);
    }
}
