//! The requests that were recorded off the wire of a Ruby sender.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::binaries::repository;

/// The key that the `hmac` recordings are signed with. Made for them, used nowhere else.
pub const HMAC_KEY: &str = "0f0e0d0c-0b0a-4908-8706-050403020100";
/// The issuer that the `jwt` recordings name.
pub const ISSUER: &str = "http://lago-api:3000";

/// One recorded request.
#[derive(Clone, Debug)]
pub struct Capture {
    /// Method, target and version.
    pub request_line: String,
    /// Headers in wire order.
    pub headers: Vec<(String, String)>,
    /// The exact bytes.
    pub body: Vec<u8>,
}

#[derive(Deserialize)]
struct Line {
    request_line: String,
    headers: Vec<(String, String)>,
    body_base64: String,
}

fn folder() -> PathBuf {
    repository().join("sidecars/kit-lago/tests/fixtures/captures")
}

/// The public key that the `jwt` recordings verify with.
pub fn public_key_file() -> PathBuf {
    folder().join("lago-jwt-public.pem")
}

/// All recordings of an algorithm, `hmac` or `jwt`.
///
/// # Errors
/// The fixture cannot be read.
pub fn all(algorithm: &str) -> Result<Vec<Capture>> {
    let path = folder().join(format!("lago-{algorithm}.jsonl"));
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let captures: Result<Vec<Capture>> = text
        .lines()
        .map(|line| {
            let Line { request_line, headers, body_base64 } = serde_json::from_str(line)?;
            Ok(Capture { request_line, headers, body: STANDARD.decode(body_base64)? })
        })
        .collect();
    let captures = captures?;
    ensure!(captures.len() == 40, "{} holds {} recordings, expected 40", path.display(), captures.len());
    Ok(captures)
}

impl Capture {
    /// The value of a header, for changing it.
    ///
    /// # Errors
    /// The recording has no such header.
    pub fn header_mut(&mut self, name: &str) -> Result<&mut String> {
        let found = self.headers.iter_mut().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value).with_context(|| format!("the recording has no {name}"))
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The bytes on the wire, as recorded but for `Content-Length`, which is the body's.
    ///
    /// `signature` stands in place of the recorded one: a changed byte may be one that no text holds.
    pub fn request(&self, signature: Option<&[u8]>) -> Vec<u8> {
        let mut bytes = format!("{}\r\n", self.request_line).into_bytes();
        for (name, value) in &self.headers {
            let value = match signature {
                Some(signature) if name.eq_ignore_ascii_case("x-lago-signature") => signature.to_vec(),
                _ if name.eq_ignore_ascii_case("content-length") => self.body.len().to_string().into_bytes(),
                _ => value.clone().into_bytes(),
            };
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(&value);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(&self.body);
        bytes
    }
}
