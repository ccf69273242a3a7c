//! What the journal stores: an event's head (what the envelope needs), its body byte for byte, and
//! the identity that follows from both. No meaning of any sender's fields lives here.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use kit::clock::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

/// Position of an event in the journal: 1, 2, 3 … without gaps, never reused.
///
/// Signed because that is what the store speaks; a stored value is always positive.
pub type Seq = i64;

/// SHA-256 of a body exactly as received.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BodyDigest(pub [u8; 32]);

impl BodyDigest {
    /// Hashes the body.
    pub fn of(body: &[u8]) -> Self {
        Self(Sha256::digest(body).into())
    }
}

impl fmt::Debug for BodyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4].iter().try_for_each(|b| write!(f, "{b:02x}"))?;
        f.write_str("…")
    }
}

/// The identity of an event: a UUID (version 8) derived from source, key and, where the intake's
/// rule says so, the body's digest. The same webhook has the same id for ever, on every host,
/// without a look-up.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId([u8; 16]);

impl EventId {
    /// Derives the id; `digest` is `None` where the key alone identifies the event.
    pub fn derive(source: &str, key: &str, digest: Option<&BodyDigest>) -> Self {
        let mut hasher = key_hasher(b"outrigger/id", source, key);
        if let Some(digest) = digest {
            hasher.update(digest.0);
        }
        let hash: [u8; 32] = hasher.finalize().into();
        Self::version_8(first_16(&hash))
    }

    /// Derives the id of an event whose key is unique within `scope` only, and whose content tells whether a second
    /// arrival is the same event.
    pub fn derive_scoped(source: &str, key: &str, scope: &str, content: &BodyDigest) -> Self {
        let mut hasher = key_hasher(b"outrigger/scoped-id", source, key);
        hasher.update((scope.len() as u64).to_le_bytes());
        hasher.update(scope.as_bytes());
        hasher.update(content.0);
        let hash: [u8; 32] = hasher.finalize().into();
        Self::version_8(first_16(&hash))
    }

    fn version_8(mut bytes: [u8; 16]) -> Self {
        bytes[6] = (bytes[6] & 0x0f) | 0x80;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        Self(bytes)
    }

    /// The sixteen bytes of the UUID.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Room for [`EventId::text`].
    pub fn buffer() -> [u8; 36] {
        [0; uuid::fmt::Hyphenated::LENGTH]
    }

    /// The UUID as text.
    pub fn text<'a>(&self, buffer: &'a mut [u8; 36]) -> &'a str {
        uuid::Uuid::from_bytes(self.0).hyphenated().encode_lower(buffer)
    }

    /// An id from its sixteen stored bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text(&mut EventId::buffer()))
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for EventId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        uuid::Uuid::try_parse(text).map(|id| Self(id.into_bytes()))
    }
}

impl Serialize for EventId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.text(&mut Self::buffer()))
    }
}

impl<'de> Deserialize<'de> for EventId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Sixteen bytes that stand for (source, key) in the deduplication memory, or for (source, key, scope): then the first
/// [`KeyHash::SHARED`] are those that all scopes of the key share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct KeyHash(pub(crate) [u8; 16]);

impl KeyHash {
    /// So many bytes are the same for every scope of a key. The rest of the eight in memory tells scopes apart there,
    /// so that a key which thousands of scopes have is not looked for on disk once for each of them.
    pub(crate) const SHARED: usize = 5;

    pub(crate) fn of(source: &str, key: &str) -> Self {
        let hash: [u8; 32] = key_hasher(b"outrigger/key", source, key).finalize().into();
        Self(first_16(&hash))
    }

    pub(crate) fn within(source: &str, key: &str, scope: Option<&str>) -> Self {
        let mut whole = Self::of(source, key);
        if let Some(scope) = scope {
            let mut hasher = key_hasher(b"outrigger/scoped-key", source, key);
            hasher.update(scope.as_bytes());
            let hash: [u8; 32] = hasher.finalize().into();
            whole.0[Self::SHARED..].copy_from_slice(&hash[Self::SHARED..16]);
        }
        whole
    }

    /// What all scopes of the key share.
    pub(crate) fn shared(&self) -> &[u8] {
        &self.0[..Self::SHARED]
    }

    /// The fingerprint kept in memory; confirmed on disk when it matches.
    pub(crate) fn fingerprint(&self) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.0[..8]);
        u64::from_be_bytes(bytes)
    }
}

/// Lengths go in front of the texts, so that no two (source, key) pairs run together.
fn key_hasher(label: &[u8], source: &str, key: &str) -> Sha256 {
    let mut hasher = Sha256::new();
    hasher.update(label);
    for part in [source, key] {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher
}

fn first_16(hash: &[u8; 32]) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    bytes
}

/// What identifies an event of one intake, and what a second arrival under the same key means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dedupe {
    /// Key and body together: another body under a known key is a *conflict* – accepted as a new
    /// event, flagged and counted.
    KeyAndBody,
    /// The key alone: the first arrival wins and later ones are duplicates whatever they carry. A duplicate has the
    /// first one's id, which is its own only where the id says the same ([`EventId::derive_scoped`]: the content).
    Key,
}

/// The part of an event that the envelope is built from. Stored as JSON beside the body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventHead {
    /// Identity; also the outgoing `webhook-id` and CloudEvents `id`.
    pub id: EventId,
    /// CloudEvents `source`, for example `lago/acme`.
    pub source: String,
    /// CloudEvents `type`, for example `lago.invoice.created`.
    #[serde(rename = "type")]
    pub event_type: String,
    /// CloudEvents `subject`, for example `invoice/4f5c…`: deliveries keep their order within it.
    pub subject: String,
    /// The sender's deduplication key.
    pub key: String,
    /// Within what the key is unique, where that is not the whole source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// CloudEvents extension `tenantid`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// The tenant is one of the literals that mean "nobody in particular".
    #[serde(default, skip_serializing_if = "is_false")]
    pub unattributed: bool,
    /// CloudEvents `time` where the sender gives one; receipt time otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// A second name of the type, matched by globs too (CloudEvents extension `typealias`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// The key was known with another body (CloudEvents extension `keyconflict`).
    #[serde(default, skip_serializing_if = "is_false")]
    pub conflict: bool,
    /// The body is one JSON text in UTF-8 and may be embedded verbatim.
    #[serde(default, skip_serializing_if = "is_false")]
    pub json: bool,
    /// W3C trace context as received.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// W3C trace state as received, kept only with a trace parent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracestate: Option<String>,
    /// The sender's headers that the `raw` format passes on, in order, lower-case names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(Cow<'static, str>, String)>,
}

impl EventHead {
    /// A head with what every event has, and nothing of what it may have.
    pub fn new(
        id: EventId,
        source: impl Into<String>,
        event_type: impl Into<String>,
        subject: impl Into<String>,
        key: impl Into<String>,
    ) -> Self {
        Self {
            id,
            source: source.into(),
            event_type: event_type.into(),
            subject: subject.into(),
            key: key.into(),
            scope: None,
            tenant: None,
            unattributed: false,
            time: None,
            alias: None,
            conflict: false,
            json: false,
            traceparent: None,
            tracestate: None,
            headers: Vec::new(),
        }
    }

    /// What it takes as JSON, roughly: thousands wait for a commit together.
    fn json_bytes(&self) -> usize {
        let texts = [&self.source, &self.event_type, &self.subject, &self.key].map(String::len).iter().sum::<usize>();
        let optional =
            [&self.scope, &self.tenant, &self.time, &self.alias, &self.traceparent, &self.tracestate].into_iter();
        let optional: usize = optional.flatten().map(|text| text.len() + 20).sum();
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
        // The id, and the names of what is always there.
        128 + texts + optional + headers
    }

    /// As it is stored.
    pub(crate) fn to_json(&self) -> String {
        let mut json = Vec::with_capacity(self.json_bytes());
        // Texts and flags only: nothing in it can fail to be written, and JSON is UTF-8.
        let written = serde_json::to_writer(&mut json, self).is_ok();
        String::from_utf8(json).ok().filter(|_| written).unwrap_or_default()
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde asks for")]
fn is_false(value: &bool) -> bool {
    !value
}

/// An event on its way into the journal.
#[derive(Debug)]
pub struct NewEvent {
    /// Everything but the body; `head.id` must be the id that [`EventId::derive`] or [`EventId::derive_scoped`]
    /// gives for it.
    pub head: EventHead,
    /// The body as received. An exact copy: a slice of a connection's read buffer would keep the
    /// whole buffer alive while it waits.
    pub body: Vec<u8>,
    /// How a second arrival is judged.
    pub dedupe: Dedupe,
}

/// An event read back, its record checksum verified.
#[derive(Clone, Debug)]
pub struct StoredEvent {
    /// Position in the journal.
    pub seq: Seq,
    /// When it was received.
    pub at: Timestamp,
    /// The envelope's part.
    pub head: EventHead,
    /// The body as received; empty where only the head was asked for.
    pub body: bytes::Bytes,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_id_depends_on_source_key_and_body_and_on_where_they_are_cut() {
        let body = BodyDigest::of(b"{}");
        let other = BodyDigest::of(b"[]");
        let id = EventId::derive("lago/a", "k", Some(&body));

        assert_eq!(id, EventId::derive("lago/a", "k", Some(&body)));
        assert_ne!(id, EventId::derive("lago/a", "k", Some(&other)));
        assert_ne!(id, EventId::derive("lago/", "ak", Some(&body)));
        assert_ne!(id, EventId::derive("lago/a", "k", None));
    }

    #[test]
    fn an_id_is_a_version_8_uuid_and_survives_its_text() {
        let id = EventId::derive("s", "k", None);
        let text = id.to_string();

        assert_eq!(&text[14..15], "8");
        assert_eq!(text.parse::<EventId>().unwrap(), id);
    }

    #[test]
    fn a_scoped_id_tells_the_scope_and_the_content_apart() {
        let content = BodyDigest::of(b"{}");
        let id = EventId::derive_scoped("usage", "k", "sub-1", &content);

        for (key, scope, content) in
            [("k", "sub-1", "[]"), ("k", "sub-2", "{}"), ("ksub", "-1", "{}"), ("ks", "ub-1", "{}")]
        {
            assert_ne!(
                EventId::derive_scoped("usage", key, scope, &BodyDigest::of(content.as_bytes())),
                id,
                "{key} {scope}"
            );
        }
        let hash = |scope| KeyHash::within("usage", "k", scope);
        assert!(hash(Some("a")) != hash(Some("b")) && hash(Some("a")).fingerprint() != hash(Some("b")).fingerprint());
        assert_eq!(hash(Some("a")).shared(), hash(None).shared());
        assert_eq!(hash(None), KeyHash::of("usage", "k"));
        assert_eq!(&id.to_string()[14..15], "8");
    }

    /// Ids are promised to stay the same across versions: receivers deduplicate by them.
    #[test]
    fn the_derivation_is_pinned() {
        let id = EventId::derive("lago/default", "00000000-0000-0000-0000-000000000001", Some(&BodyDigest::of(b"{}")));
        assert_eq!(id.to_string(), "5ae265db-7b34-83df-9a42-75d2ebb3d6e6");
    }
}
