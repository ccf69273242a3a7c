//! Values as Temporal keeps them: bytes with their encoding.
//!
//! Source: temporalio/api `temporal/api/common/v1/message.proto`; the encodings are those of every official SDK's default
//! data converter.

use temporalio_protos::temporal::api::common::v1::{Payload, Payloads};

/// Name of the encoding in a payload's metadata.
const ENCODING: &str = "encoding";

/// A JSON text, which workers get as the value that it says.
pub fn json(text: impl Into<Vec<u8>>) -> Payload {
    encoded("json/plain", text.into())
}

/// Bytes that are no JSON.
pub fn binary(bytes: impl Into<Vec<u8>>) -> Payload {
    encoded("binary/plain", bytes.into())
}

/// One argument.
pub fn one(payload: Payload) -> Payloads {
    Payloads { payloads: vec![payload] }
}

fn encoded(encoding: &str, data: Vec<u8>) -> Payload {
    let metadata = [(ENCODING.to_owned(), encoding.as_bytes().to_vec())].into();
    Payload { metadata, data, ..Payload::default() }
}

/// The payload's JSON text, where it is one.
pub fn as_json(payload: &Payload) -> Option<&str> {
    let is_json = payload.metadata.get(ENCODING).is_some_and(|encoding| encoding.starts_with(b"json/"));
    is_json.then(|| std::str::from_utf8(&payload.data).ok()).flatten()
}
