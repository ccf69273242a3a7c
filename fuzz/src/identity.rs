//! What comes from Authentik: a webhook – the first line is `X-Outrigger-Signature`, the rest the body –, and the same body
//! as an answer of its events API.
//!
//! Promises: a header is accepted exactly when it is the one spelling of a configured secret's signature; so is a signature
//! in the body, over a text that stands for one event and one nonce; an event is a piece of what was sent, byte for byte.

use std::sync::LazyLock;

use kit::secret::Secret;
use kit_authentik::api::EventPage;
use kit_authentik::envelope::{CANONICAL_VERSION, Envelope, SCHEMA, SIGNATURE_PREFIX, canonical, is_unmapped};
use kit_authentik::event::Event;
use kit_authentik::signature::{Secrets, sign};

use crate::parts::first_line;

const SECRETS: [&str; 2] = ["0123456789abcdef0123456789abcdef", "the secret before, of thirty-two bytes"];

static VERIFIER: LazyLock<Secrets> =
    LazyLock::new(|| Secrets::new(&secrets()).expect("two secrets that are long enough are taken"));

fn secrets() -> [Secret; 2] {
    SECRETS.map(|secret| Secret::from(secret.to_owned()))
}

/// Takes a webhook and a page of the API.
///
/// # Panics
/// A forgery is accepted, what is genuine is not, or an event is not what was sent.
pub fn target(data: &[u8]) {
    let (header, body) = first_line(data);
    let genuine = secrets().map(|secret| format!("{SIGNATURE_PREFIX}{}", sign(&secret, body)));
    let accepted = VERIFIER.verify_header(Some(header), body);
    assert_eq!(accepted.is_ok(), genuine.iter().any(|one| one.as_bytes() == header), "{accepted:?}");
    for one in &genuine {
        assert!(VERIFIER.verify_header(Some(one.as_bytes()), body).is_ok(), "a genuine signature is refused");
    }
    match Envelope::read(body) {
        Ok(envelope) => signed_in_the_body(&envelope, body),
        Err(error) => assert!(error.to_string().len() < 300, "{error}"),
    }
    if let Ok(page) = EventPage::read(body) {
        for event in &page.events {
            piece(event.get(), body);
            if let Ok(event) = Event::read(event.get()) {
                is_sound(&event);
            }
        }
    }
}

fn signed_in_the_body(envelope: &Envelope<'_>, body: &[u8]) {
    assert!(!is_unmapped(body), "it is both");
    let event = &envelope.event;
    piece(event.raw, body);
    is_sound(event);
    let signatures = |text: &str| secrets().map(|secret| sign(&secret, text.as_bytes()));
    let text = envelope.canonical();
    assert_eq!(text.is_some(), envelope.nonce.is_some());
    if let (Some(text), Some(nonce)) = (&text, &envelope.nonce) {
        // Its parts can be told apart: another event or another nonce is another text.
        let rest =
            text.strip_prefix(CANONICAL_VERSION).and_then(|text| text.strip_prefix('\n')).expect("its first line");
        assert_eq!(rest.split_once('\n'), Some((nonce.as_str(), event.raw)));
    }
    let is_genuine = match (&text, &envelope.signature) {
        (Some(text), Some(signature)) => signatures(text).contains(signature),
        _ => false,
    };
    assert_eq!(VERIFIER.verify_body(envelope).is_ok(), is_genuine);
    let nonce = "a nonce";
    for signature in signatures(&canonical(nonce, event.raw)) {
        let raw = event.raw;
        let body = format!(r#"{{"schema":"{SCHEMA}","event":{raw},"nonce":"{nonce}","signature":"{signature}"}}"#);
        let again = Envelope::read(body.as_bytes()).expect("the same event in another envelope is read");
        assert_eq!((again.event.raw, again.event.pk), (event.raw, event.pk));
        assert!(VERIFIER.verify_body(&again).is_ok(), "a genuine signature is refused");
    }
}

fn is_sound(event: &Event<'_>) {
    assert!((1..=200).contains(&event.action.len()), "{:?}", event.action);
    assert_eq!(event.pk.dashed().replace('-', ""), event.pk.to_string());
    assert!(event.raw.starts_with('{') && event.raw.ends_with('}'), "an event is an object");
    // Read again it is the same.
    let again = Event::read(event.raw).expect("what was read is read again");
    assert_eq!((again.pk, &again.action, again.created_micros()), (event.pk, &event.action, event.created_micros()));
}

/// The text stands in the bytes as it is.
fn piece(text: &str, body: &[u8]) {
    let (start, begin) = (text.as_ptr() as usize, body.as_ptr() as usize);
    // A box of its own, where it was copied.
    let is_within = start >= begin && start + text.len() <= begin + body.len();
    assert!(is_within || body.windows(text.len().max(1)).any(|part| part == text.as_bytes()), "it was written anew");
}
