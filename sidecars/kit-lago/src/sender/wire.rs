//! The bytes of Lago's request and a reader for the answer to it. No more of HTTP/1.1 than a sender
//! needs: bounded, strict, one answer at a time.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

use super::{Delivery, SendError};

const MAX_HEAD_BYTES: usize = 64 * 1024;
const MAX_BODY_BYTES: usize = 1024 * 1024;
/// Interim answers skipped before the final one.
const MAX_INTERIM: usize = 8;

/// An answer as read.
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    /// Whether another request may follow on the same connection.
    pub(super) reusable: bool,
}

/// The request as Ruby's Net::HTTP writes it for Lago: same fields, same order, same case.
pub(super) fn request(delivery: &Delivery, target: &str, host: &str, keep_alive: bool) -> Result<Vec<u8>, SendError> {
    for (name, value) in [("the signature", &delivery.signature), ("the unique key", &delivery.unique_key)] {
        if value.bytes().any(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
            return Err(SendError::BadField(name));
        }
    }
    let connection = if keep_alive { "keep-alive" } else { "close" };
    let head = [
        ("Content-Type", "application/json"),
        ("X-Lago-Signature", &delivery.signature),
        ("X-Lago-Signature-Algorithm", delivery.algorithm.as_str()),
        ("X-Lago-Unique-Key", &delivery.unique_key),
        ("Accept-Encoding", "gzip;q=1.0,deflate;q=0.6,identity;q=0.3"),
        ("Accept", "*/*"),
        ("User-Agent", "Ruby"),
        ("Connection", connection),
        ("Host", host),
        ("Content-Length", &delivery.body.len().to_string()),
    ];
    let mut request = Vec::with_capacity(512 + delivery.signature.len() + delivery.body.len());
    request.extend_from_slice(format!("POST {target} HTTP/1.1\r\n").as_bytes());
    for (name, value) in head {
        for part in [name, ": ", value, "\r\n"] {
            request.extend_from_slice(part.as_bytes());
        }
    }
    request.extend_from_slice(b"\r\n");
    request.extend_from_slice(&delivery.body);
    Ok(request)
}

/// Reads one final answer.
pub(super) async fn read_response(reader: &mut (impl AsyncRead + Unpin)) -> Result<Response, SendError> {
    let mut input = Input { reader, buffer: Vec::new() };
    for _ in 0..=MAX_INTERIM {
        let head = input.read_head().await?;
        let mut response = parse_head(&head)?;
        if (100..200).contains(&response.status) {
            continue;
        }
        let framing = framing(&response)?;
        response.reusable &= !matches!(framing, Framing::UntilEnd);
        response.body = match framing {
            Framing::None => Vec::new(),
            Framing::Length(length) => input.read_exactly(length).await?,
            Framing::Chunked => input.read_chunked().await?,
            Framing::UntilEnd => input.read_to_end().await?,
        };
        response.reusable &= input.buffer.is_empty();
        return Ok(response);
    }
    Err(SendError::Malformed("interim answers without end"))
}

enum Framing {
    None,
    Length(usize),
    Chunked,
    UntilEnd,
}

/// How the body ends. Source: RFC 9112, section 6.3.
fn framing(response: &Response) -> Result<Framing, SendError> {
    if matches!(response.status, 204 | 304) {
        return Ok(Framing::None);
    }
    if let Some(coding) = field(response, "transfer-encoding") {
        return if coding.eq_ignore_ascii_case("chunked") {
            Ok(Framing::Chunked)
        } else {
            Err(SendError::Malformed("unknown transfer coding"))
        };
    }
    match field(response, "content-length") {
        None => Ok(Framing::UntilEnd),
        Some(text) => match text.parse() {
            Ok(length) if length <= MAX_BODY_BYTES => Ok(Framing::Length(length)),
            Ok(_) => Err(SendError::Malformed("body too large")),
            Err(_) => Err(SendError::Malformed("bad content length")),
        },
    }
}

fn field<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

fn parse_head(head: &[u8]) -> Result<Response, SendError> {
    let head = std::str::from_utf8(head).map_err(|_| SendError::Malformed("head is not text"))?;
    let mut lines = head.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let mut words = status_line.splitn(3, ' ');
    let version = words.next().unwrap_or_default();
    if !matches!(version, "HTTP/1.1" | "HTTP/1.0") {
        return Err(SendError::Malformed("no HTTP/1 status line"));
    }
    let status = words.next().filter(|word| word.len() == 3).and_then(|word| word.parse().ok());
    let status = status.ok_or(SendError::Malformed("no status code"))?;
    let mut headers = Vec::new();
    for line in lines.filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').ok_or(SendError::Malformed("header field without a colon"))?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut response = Response { status, headers, body: Vec::new(), reusable: false };
    response.reusable = version == "HTTP/1.1"
        && !field(&response, "connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    Ok(response)
}

/// Bytes read ahead, and where more come from.
struct Input<'a, R> {
    reader: &'a mut R,
    buffer: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Input<'_, R> {
    /// Reads up to and with the empty line; returns what stands before it.
    async fn read_head(&mut self) -> Result<Vec<u8>, SendError> {
        let mut searched = 0;
        loop {
            if let Some(at) = find(&self.buffer, b"\r\n\r\n", searched) {
                let mut head = self.take(at + 4);
                head.truncate(at);
                return Ok(head);
            }
            if self.buffer.len() > MAX_HEAD_BYTES {
                return Err(SendError::Malformed("head too large"));
            }
            searched = self.buffer.len().saturating_sub(3);
            self.fill().await?;
        }
    }

    async fn read_exactly(&mut self, length: usize) -> Result<Vec<u8>, SendError> {
        while self.buffer.len() < length {
            self.fill().await?;
        }
        Ok(self.take(length))
    }

    async fn read_chunked(&mut self) -> Result<Vec<u8>, SendError> {
        let mut body = Vec::new();
        loop {
            let line = self.read_line().await?;
            let digits = line.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(digits, 16).map_err(|_| SendError::Malformed("bad chunk size"))?;
            if size == 0 {
                while !self.read_line().await?.is_empty() {}
                return Ok(body);
            }
            if size > MAX_BODY_BYTES - body.len() {
                return Err(SendError::Malformed("body too large"));
            }
            body.extend(self.read_exactly(size).await?);
            if !self.read_line().await?.is_empty() {
                return Err(SendError::Malformed("chunk longer than its size"));
            }
        }
    }

    async fn read_to_end(&mut self) -> Result<Vec<u8>, SendError> {
        let mut body = std::mem::take(&mut self.buffer);
        // One byte more than the bound tells "at the bound" from "beyond it".
        let rest = u64::try_from(MAX_BODY_BYTES + 1).unwrap_or(u64::MAX);
        (&mut *self.reader).take(rest).read_to_end(&mut body).await.map_err(SendError::Broken)?;
        if body.len() > MAX_BODY_BYTES {
            return Err(SendError::Malformed("body too large"));
        }
        Ok(body)
    }

    async fn read_line(&mut self) -> Result<String, SendError> {
        loop {
            if let Some(at) = find(&self.buffer, b"\r\n", 0) {
                let mut line = self.take(at + 2);
                line.truncate(at);
                return String::from_utf8(line).map_err(|_| SendError::Malformed("chunk size is not text"));
            }
            if self.buffer.len() > MAX_HEAD_BYTES {
                return Err(SendError::Malformed("line too long"));
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> Result<(), SendError> {
        let count = self.reader.read_buf(&mut self.buffer).await.map_err(SendError::Broken)?;
        if count == 0 {
            let end = io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the receiver");
            return Err(SendError::Broken(end));
        }
        Ok(())
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        let rest = self.buffer.split_off(count);
        std::mem::replace(&mut self.buffer, rest)
    }
}

fn find(haystack: &[u8], needle: &[u8], from: usize) -> Option<usize> {
    let rest = haystack.get(from..)?;
    rest.windows(needle.len()).position(|window| window == needle).map(|at| at + from)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    async fn read(bytes: &[u8]) -> Result<Response, SendError> {
        read_response(&mut &bytes[..]).await
    }

    #[tokio::test]
    async fn every_framing_of_an_answer_is_read() {
        for (bytes, body, reusable) in [
            (&b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"[..], &b"ok"[..], true),
            (b"HTTP/1.1 200 OK\r\ncontent-length:2\r\nConnection: close\r\n\r\nok", b"ok", false),
            (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", b"until the end", false),
            (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", b"", false),
            (b"HTTP/1.1 204 No Content\r\n\r\n", b"", true),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n1;x=y\r\n!\r\n0\r\n\r\n", b"ok!", true),
            (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 202 Accepted\r\nContent-Length: 1\r\n\r\n1", b"1", true),
        ] {
            let response = read(bytes).await.unwrap();

            assert_eq!(response.body, body);
            assert_eq!(response.reusable, reusable, "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[tokio::test]
    async fn an_answer_that_ends_early_was_not_read() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        for end in 0..whole.len() {
            assert!(matches!(read(&whole[..end]).await, Err(SendError::Broken(_))), "{end}");
        }
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
        for end in 0..chunked.len() {
            assert!(matches!(read(&chunked[..end]).await, Err(SendError::Broken(_))), "{end}");
        }
    }

    #[tokio::test]
    async fn what_is_not_an_answer_is_refused_and_nothing_is_read_without_bound() {
        let long_head = [b"HTTP/1.1 200 OK\r\nX: ".to_vec(), vec![b'a'; 100_000]].concat();
        let long_body = [b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), vec![b'a'; 1_100_000]].concat();
        for bytes in [
            b"220 smtp.example ESMTP\r\n\r\n".to_vec(),
            b"HTTP/2 200\r\n\r\n".to_vec(),
            b"HTTP/1.1 20 OK\r\n\r\n".to_vec(),
            b"HTTP/1.1 abc OK\r\n\r\n".to_vec(),
            b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n".to_vec(),
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n".to_vec(),
            b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n".to_vec(),
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n".to_vec(),
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_vec(),
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n".to_vec(),
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n".to_vec(),
            b"HTTP/1.1 100 Continue\r\n\r\n".repeat(20),
            long_head,
            long_body,
        ] {
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
            assert!(matches!(read(&bytes).await, Err(SendError::Malformed(_))), "{shown}");
        }
    }
}
