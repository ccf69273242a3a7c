//! Reading one HTTP/1.1 answer off a stream: enough for a loopback client that must know exactly
//! what it was told, and when. Shared by the raw client and the load generator.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// An answer's head that has not ended after this many bytes is refused.
const HEAD_LIMIT_BYTES: usize = 256 * 1024;
const CHUNK_LINE_LIMIT_BYTES: usize = 4 * 1024;
const READ_BYTES: usize = 8 * 1024;

/// One complete answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names as sent, in wire order.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Status codes of 1xx answers that came before.
    pub(crate) interim: Vec<u16>,
    /// Whether another request may follow on the same connection.
    pub(crate) keep_alive: bool,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// End of stream before the answer was complete.
    #[error("closed by the peer")]
    Closed,
    #[error("the answer cannot be read as HTTP/1.1: {0}")]
    Malformed(&'static str),
    #[error("the answer is larger than {limit} bytes")]
    TooLarge { limit: usize },
    #[error(transparent)]
    Io(io::Error),
}

/// Bytes received and not consumed. It outlives a cancelled read, so that a caller whose deadline
/// passed can still say what did arrive.
#[derive(Debug, Default)]
pub(crate) struct Received {
    bytes: Vec<u8>,
}

impl Received {
    pub(crate) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }

    async fn more(&mut self, stream: &mut (impl AsyncRead + Unpin)) -> Result<(), ReadError> {
        self.bytes.reserve(READ_BYTES);
        match stream.read_buf(&mut self.bytes).await {
            Ok(0) => Err(ReadError::Closed),
            Ok(_) => Ok(()),
            Err(error) => Err(ReadError::Io(error)),
        }
    }

    /// The position just behind the first `pattern`, reading on until it is there.
    async fn find(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
        from: usize,
        pattern: &[u8],
        limit: usize,
    ) -> Result<usize, ReadError> {
        let mut searched = from;
        loop {
            let found = self.bytes[searched..].windows(pattern.len()).position(|window| window == pattern);
            if let Some(position) = found {
                return Ok(searched + position + pattern.len());
            }
            if self.bytes.len() - from > limit {
                return Err(ReadError::TooLarge { limit });
            }
            searched = from.max((self.bytes.len() + 1).saturating_sub(pattern.len()));
            self.more(stream).await?;
        }
    }

    async fn fill(&mut self, stream: &mut (impl AsyncRead + Unpin), up_to: usize) -> Result<(), ReadError> {
        while self.bytes.len() < up_to {
            self.more(stream).await?;
        }
        Ok(())
    }
}

enum Framing {
    None,
    Length(usize),
    Chunked,
    UntilClosed,
}

/// Reads one answer, skipping 1xx ones. What follows it stays in `received`.
pub(crate) async fn read_answer(
    stream: &mut (impl AsyncRead + Unpin),
    received: &mut Received,
    body_limit_bytes: usize,
) -> Result<Answer, ReadError> {
    let mut interim = Vec::new();
    loop {
        let head_end = received.find(stream, 0, b"\r\n\r\n", HEAD_LIMIT_BYTES).await?;
        let head = parse_head(&received.bytes[..head_end])?;
        if (100..200).contains(&head.status) && head.status != 101 {
            interim.push(head.status);
            received.bytes.drain(..head_end);
            continue;
        }
        let mut keep_alive = head.keep_alive;
        let limit = body_limit_bytes;
        let (body, end) = match head.framing {
            Framing::None => (Vec::new(), head_end),
            Framing::Length(length) if length > limit => {
                return Err(ReadError::TooLarge { limit });
            }
            Framing::Length(length) => {
                received.fill(stream, head_end + length).await?;
                let end = head_end + length;
                (received.bytes[head_end..end].to_vec(), end)
            }
            Framing::Chunked => read_chunks(stream, received, head_end, limit).await?,
            Framing::UntilClosed => {
                keep_alive = false;
                loop {
                    match received.more(stream).await {
                        Ok(()) if received.bytes.len() - head_end > limit => {
                            return Err(ReadError::TooLarge { limit });
                        }
                        Ok(()) => {}
                        Err(ReadError::Closed) => break,
                        Err(error) => return Err(error),
                    }
                }
                (received.bytes[head_end..].to_vec(), received.bytes.len())
            }
        };
        received.bytes.drain(..end);
        return Ok(Answer { status: head.status, headers: head.headers, body, interim, keep_alive });
    }
}

async fn read_chunks(
    stream: &mut (impl AsyncRead + Unpin),
    received: &mut Received,
    mut position: usize,
    limit: usize,
) -> Result<(Vec<u8>, usize), ReadError> {
    let mut body = Vec::new();
    loop {
        let line_end = received.find(stream, position, b"\r\n", CHUNK_LINE_LIMIT_BYTES).await?;
        let line = &received.bytes[position..line_end - 2];
        let size = line.split(|byte| *byte == b';').next().unwrap_or_default();
        let size = std::str::from_utf8(size)
            .ok()
            .filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .and_then(|text| usize::from_str_radix(text, 16).ok())
            .ok_or(ReadError::Malformed("chunk size"))?;
        position = line_end;
        if size == 0 {
            // Trailers, if any, end with an empty line.
            loop {
                let end = received.find(stream, position, b"\r\n", CHUNK_LINE_LIMIT_BYTES).await?;
                let empty = end - position == 2;
                position = end;
                if empty {
                    return Ok((body, position));
                }
            }
        }
        if size > limit || body.len() + size > limit {
            return Err(ReadError::TooLarge { limit });
        }
        received.fill(stream, position + size + 2).await?;
        body.extend_from_slice(&received.bytes[position..position + size]);
        position += size;
        if &received.bytes[position..position + 2] != b"\r\n" {
            return Err(ReadError::Malformed("end of chunk"));
        }
        position += 2;
    }
}

struct Head {
    status: u16,
    headers: Vec<(String, String)>,
    framing: Framing,
    keep_alive: bool,
}

fn parse_head(head: &[u8]) -> Result<Head, ReadError> {
    let text = String::from_utf8_lossy(head);
    let mut lines = text.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let mut words = status_line.splitn(3, ' ');
    let version = words.next().unwrap_or_default();
    if !matches!(version, "HTTP/1.1" | "HTTP/1.0") {
        return Err(ReadError::Malformed("version"));
    }
    let status = words
        .next()
        .filter(|word| word.len() == 3)
        .and_then(|word| word.parse().ok())
        .ok_or(ReadError::Malformed("status code"))?;

    let mut headers = Vec::new();
    for line in lines.take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').ok_or(ReadError::Malformed("header without a colon"))?;
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    let value = |wanted: &str| {
        headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.as_str())
    };
    let framing = if matches!(status, 100..=199 | 204 | 304) {
        Framing::None
    } else if value("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
        Framing::Chunked
    } else if let Some(length) = value("content-length") {
        Framing::Length(length.parse().map_err(|_| ReadError::Malformed("content-length"))?)
    } else {
        Framing::UntilClosed
    };
    let connection = value("connection").unwrap_or_default().to_ascii_lowercase();
    let keep_alive =
        if version == "HTTP/1.1" { !connection.contains("close") } else { connection.contains("keep-alive") };
    Ok(Head { status, headers, framing, keep_alive })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    async fn read(bytes: &[u8]) -> (Result<Answer, ReadError>, Vec<u8>) {
        // One byte at a time finds every boundary that a single read would hide.
        let mut stream = tokio_util_one_byte(bytes);
        let mut received = Received::default();
        let answer = read_answer(&mut stream, &mut received, 1024).await;
        (answer, received.take())
    }

    fn tokio_util_one_byte(bytes: &[u8]) -> impl AsyncRead + Unpin {
        struct OneByte(std::collections::VecDeque<u8>);
        impl AsyncRead for OneByte {
            fn poll_read(
                mut self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
                buffer: &mut tokio::io::ReadBuf<'_>,
            ) -> std::task::Poll<io::Result<()>> {
                if let Some(byte) = self.0.pop_front() {
                    buffer.put_slice(&[byte]);
                }
                std::task::Poll::Ready(Ok(()))
            }
        }
        OneByte(bytes.iter().copied().collect())
    }

    #[tokio::test]
    async fn answers_are_read_in_every_framing() {
        let cases: [(&[u8], &[u8], bool); 5] = [
            (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok", true),
            (b"HTTP/1.1 204 No Content\r\n\r\n", b"", true),
            (
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2;x=y\r\nab\r\n1\r\nc\r\n0\r\nt: 1\r\n\r\n",
                b"abc",
                true,
            ),
            (b"HTTP/1.1 500 \r\n\r\nuntil the end", b"until the end", false),
            (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", b"", false),
        ];
        for (bytes, body, keep_alive) in cases {
            let (answer, rest) = read(bytes).await;
            let answer = answer.unwrap();
            assert_eq!(answer.body, body);
            assert_eq!(answer.keep_alive, keep_alive);
            assert!(rest.is_empty());
        }
    }

    #[tokio::test]
    async fn interim_answers_are_told_apart_from_the_final_one() {
        let (answer, _) = read(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n").await;

        let answer = answer.unwrap();
        assert_eq!(answer.interim, [100]);
        assert_eq!(answer.status, 413);
    }

    #[tokio::test]
    async fn a_cut_answer_is_closed_and_keeps_what_arrived() {
        let (answer, rest) = read(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await;

        assert!(matches!(answer, Err(ReadError::Closed)), "{answer:?}");
        assert!(rest.ends_with(b"half"));
    }

    #[tokio::test]
    async fn nonsense_and_oversize_are_refused() {
        for bytes in [
            &b"SSH-2.0-x\r\n\r\n"[..],
            b"HTTP/1.1 abc\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n+1\r\na\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nabc\r\n",
        ] {
            let (answer, _) = read(bytes).await;
            assert!(matches!(answer, Err(ReadError::Malformed(_))), "{answer:?}");
        }
        for bytes in [
            &b"HTTP/1.1 200 OK\r\nContent-Length: 1025\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffff\r\n",
        ] {
            let (answer, _) = read(bytes).await;
            assert!(matches!(answer, Err(ReadError::TooLarge { limit: 1024 })), "{answer:?}");
        }
    }
}
