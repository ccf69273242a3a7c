//! Webhooks that are made and signed before a run begins.

use std::sync::Arc;

use bytes::Bytes;

use super::Target;
use crate::Digest;

/// Makes the webhook of a key, where the key is part of the body.
#[derive(Clone)]
struct Maker(Arc<dyn Fn(&str) -> PreparedWebhook + Send + Sync>);

impl std::fmt::Debug for Maker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Maker")
    }
}

/// One webhook, ready but for its key.
#[derive(Clone, Debug)]
pub struct PreparedWebhook {
    /// Whose it is, as the ledger names it.
    pub organisation: Arc<str>,
    /// What order is promised within; empty where none is.
    pub subject: Arc<str>,
    /// Header lines besides `Host`, `Connection`, `Content-Length` and the key, and besides `Content-Type` where that is
    /// JSON.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Bytes,
    sha256: Digest,
    header_lines: String,
    maker: Option<Maker>,
}

impl PreparedWebhook {
    /// A webhook from its parts. Headers are sent as given: their values must not hold line ends.
    pub fn new(
        organisation: impl Into<Arc<str>>,
        subject: impl Into<Arc<str>>,
        headers: Vec<(String, String)>,
        body: impl Into<Bytes>,
    ) -> Self {
        let body = body.into();
        let mut header_lines = format!("Content-Length: {}\r\n", body.len());
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
            header_lines.insert_str(0, "Content-Type: application/json\r\n");
        }
        for (name, value) in &headers {
            header_lines.push_str(&format!("{name}: {value}\r\n"));
        }
        Self {
            organisation: organisation.into(),
            subject: subject.into(),
            headers,
            sha256: Digest::of(&body),
            body,
            header_lines,
            maker: None,
        }
    }

    /// A webhook whose key is part of its body: made anew for each.
    pub fn made_of_key(make: impl Fn(&str) -> Self + Send + Sync + 'static) -> Self {
        Self { maker: Some(Maker(Arc::new(make))), ..Self::new("", "", Vec::new(), Bytes::new()) }
    }

    /// With these bytes, a part of the body, as what is to be delivered.
    #[must_use]
    pub fn delivering(self, part: &[u8]) -> Self {
        Self { sha256: Digest::of(part), ..self }
    }

    /// The webhook of this key, where each key has its own.
    pub(super) fn of_key(&self, key: &str) -> Option<Self> {
        self.maker.as_ref().map(|maker| (maker.0)(key))
    }

    /// SHA-256 of what is to be delivered: of the body, unless it was said otherwise.
    pub fn sha256(&self) -> Digest {
        self.sha256
    }

    /// The whole request as bytes.
    pub(super) fn request(&self, target: &Target, key: &str, keep_alive: bool) -> Vec<u8> {
        let connection = if keep_alive { "keep-alive" } else { "close" };
        let Target { host, path, .. } = target;
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: {connection}\r\n\
             X-Lago-Unique-Key: {key}\r\n"
        );
        let mut bytes = Vec::with_capacity(head.len() + self.header_lines.len() + 2 + self.body.len());
        bytes.extend_from_slice(head.as_bytes());
        bytes.extend_from_slice(self.header_lines.as_bytes());
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// The webhooks of a run, sent in turn.
#[derive(Clone, Debug)]
pub struct Pool {
    webhooks: Vec<PreparedWebhook>,
}

impl Pool {
    /// A pool of these webhooks.
    pub fn new(webhooks: Vec<PreparedWebhook>) -> Self {
        Self { webhooks }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.webhooks.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.webhooks.is_empty()
    }

    /// All of them, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, PreparedWebhook> {
        self.webhooks.iter()
    }

    /// One of them; the first has index 0.
    ///
    /// # Panics
    /// There are not so many.
    pub fn get(&self, index: usize) -> &PreparedWebhook {
        &self.webhooks[index]
    }
}
