//! A raw HTTP/1.1 client: sends the very bytes it is given and says precisely what came back –
//! an answer, a close, a reset or silence. For requests that no HTTP library would agree to send.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use crate::http1::{self, ReadError, Received};

/// An answer whose body is larger than this is refused: 8 MiB.
pub const BODY_LIMIT_BYTES: usize = 8 * 1024 * 1024;

/// One complete answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawResponse {
    /// Status code of the final answer.
    pub status: u16,
    /// Headers with their names as sent, in wire order; values without surrounding blanks.
    pub headers: Vec<(String, String)>,
    /// The body, chunked coding removed.
    pub body: Vec<u8>,
    /// Status codes of interim (1xx) answers that came first.
    pub interim: Vec<u16>,
    /// Whether the server is willing to take another request on this connection.
    pub keep_alive: bool,
    /// Whether the whole request could be written. `false` means that the server answered and
    /// closed before it had taken all of it.
    pub request_written: bool,
}

impl RawResponse {
    /// The first header with this name, whatever its case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The body as text; what is not UTF-8 is replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// When it is not JSON.
    pub fn json(&self) -> Result<serde_json::Value, serde_json::Error> {
        serde_json::from_slice(&self.body)
    }
}

/// Why there is no answer. `received` is what had arrived by then.
#[derive(Debug, thiserror::Error)]
pub enum RawError {
    /// The connection was refused: nobody listens.
    #[error("connection refused by {address}")]
    Refused {
        /// Who was called.
        address: SocketAddr,
    },
    /// The connection could not be made for another reason.
    #[error("connect to {address}")]
    Connect {
        /// Who was called.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The peer reset the connection.
    #[error("connection reset after {} bytes of an answer", received.len())]
    Reset {
        /// What had arrived.
        received: Vec<u8>,
    },
    /// The peer closed in an orderly way before a complete answer.
    #[error("connection closed after {} bytes of an answer", received.len())]
    Closed {
        /// What had arrived.
        received: Vec<u8>,
    },
    /// The deadline passed.
    #[error("no complete answer in time, {} bytes of one", received.len())]
    TimedOut {
        /// What had arrived.
        received: Vec<u8>,
    },
    /// The peer does not speak HTTP/1.1, or the answer is too large.
    #[error("{what}")]
    Malformed {
        /// What was wrong with it.
        what: String,
        /// What had arrived.
        received: Vec<u8>,
    },
    /// Any other failure of the connection.
    #[error("read from the connection")]
    Io(#[source] io::Error),
}

/// Connects, sends `request` exactly as it is and reads one answer, all within `deadline`.
///
/// Writing and reading go on at the same time, so an answer that comes before the request is
/// complete (413, 431) is seen even when the server then stops reading.
///
/// # Errors
/// See [`RawError`]; every way of getting no answer is told apart.
pub async fn exchange(address: SocketAddr, request: &[u8], deadline: Duration) -> Result<RawResponse, RawError> {
    let until = Instant::now() + deadline;
    let mut connection = match timeout_at(until, RawConnection::open(address)).await {
        Ok(connection) => connection?,
        Err(_) => {
            return Err(RawError::TimedOut { received: Vec::new() });
        }
    };
    connection.exchange(request, until.saturating_duration_since(Instant::now())).await
}

/// `GET` of one path, the connection closed afterwards.
///
/// # Errors
/// See [`RawError`].
pub async fn get(address: SocketAddr, path: &str, deadline: Duration) -> Result<RawResponse, RawError> {
    request(address, "GET", path, &[], b"", deadline).await
}

/// A well-formed request built from its parts; `Host`, `Content-Length` (unless it is a `GET`) and
/// `Connection: close` are added, the rest is as given.
///
/// # Errors
/// See [`RawError`].
pub async fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
    deadline: Duration,
) -> Result<RawResponse, RawError> {
    let mut bytes = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    if method != "GET" || !body.is_empty() {
        bytes.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    for (name, value) in headers {
        bytes.push_str(&format!("{name}: {value}\r\n"));
    }
    bytes.push_str("\r\n");
    let mut bytes = bytes.into_bytes();
    bytes.extend_from_slice(body);
    exchange(address, &bytes, deadline).await
}

/// A connection for step-by-step talk: half a head, a pause, a half-close.
#[derive(Debug)]
pub struct RawConnection {
    stream: TcpStream,
    received: Received,
}

impl RawConnection {
    /// Connects.
    ///
    /// # Errors
    /// [`RawError::Refused`] or [`RawError::Connect`].
    pub async fn open(address: SocketAddr) -> Result<Self, RawError> {
        let stream = TcpStream::connect(address).await.map_err(|source| {
            if source.kind() == io::ErrorKind::ConnectionRefused {
                RawError::Refused { address }
            } else {
                RawError::Connect { address, source }
            }
        })?;
        // Every send is a packet of its own: tests place packet borders deliberately.
        stream.set_nodelay(true).map_err(RawError::Io)?;
        Ok(Self { stream, received: Received::default() })
    }

    /// The address of our end.
    ///
    /// # Errors
    /// When the system no longer knows it.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }

    /// Sends bytes as they are. Blocks while the peer does not read.
    ///
    /// # Errors
    /// When the peer has closed or reset the connection.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Ends our direction: the peer sees the end of the stream and can still answer.
    ///
    /// # Errors
    /// When the connection is already gone.
    pub async fn half_close(&mut self) -> io::Result<()> {
        self.stream.shutdown().await
    }

    /// Breaks the connection with a reset instead of an orderly close.
    pub fn reset(self) {
        // Without lingering time a close discards what is unsent and sends RST.
        if let Err(error) = self.stream.set_zero_linger() {
            tracing::debug!(%error, "reset of a connection that is already gone");
        }
    }

    /// Reads one answer within `deadline`. Bytes of a following answer are kept for the next call.
    ///
    /// # Errors
    /// See [`RawError`].
    pub async fn read_response(&mut self, deadline: Duration) -> Result<RawResponse, RawError> {
        let answer = http1::read_answer(&mut self.stream, &mut self.received, BODY_LIMIT_BYTES);
        let answer = timeout(deadline, answer).await;
        self.outcome(answer, true)
    }

    /// Sends `request` and reads one answer at the same time, within `deadline`.
    ///
    /// # Errors
    /// See [`RawError`].
    pub async fn exchange(&mut self, request: &[u8], deadline: Duration) -> Result<RawResponse, RawError> {
        let (mut reader, mut writer) = self.stream.split();
        let received = &mut self.received;
        let mut written = None;
        let both = async {
            let answer = http1::read_answer(&mut reader, received, BODY_LIMIT_BYTES);
            let write = writer.write_all(request);
            tokio::pin!(answer, write);
            loop {
                tokio::select! {
                    // The write first: `request_written` must not depend on which is polled first.
                    biased;
                    done = &mut write, if written.is_none() => written = Some(done.is_ok()),
                    answer = &mut answer => return answer,
                }
            }
        };
        let answer = timeout(deadline, both).await;
        self.outcome(answer, written == Some(true))
    }

    /// Waits until the peer ends the connection, discarding what it still sends.
    ///
    /// Returns `Ok(true)` for an orderly close, `Ok(false)` for a reset.
    ///
    /// # Errors
    /// [`RawError::TimedOut`] when the connection is still open at the deadline.
    pub async fn wait_closed(&mut self, deadline: Duration) -> Result<bool, RawError> {
        let until = Instant::now() + deadline;
        let mut buffer = [0; 4096];
        loop {
            match timeout_at(until, self.stream.read(&mut buffer)).await {
                Ok(Ok(0)) => return Ok(true),
                Ok(Ok(_)) => {}
                Ok(Err(_)) => return Ok(false),
                Err(_) => {
                    return Err(RawError::TimedOut { received: self.received.take() });
                }
            }
        }
    }

    fn outcome(
        &mut self,
        answer: Result<Result<http1::Answer, ReadError>, tokio::time::error::Elapsed>,
        request_written: bool,
    ) -> Result<RawResponse, RawError> {
        let error = match answer {
            Ok(Ok(answer)) => {
                return Ok(RawResponse {
                    status: answer.status,
                    headers: answer.headers,
                    body: answer.body,
                    interim: answer.interim,
                    keep_alive: answer.keep_alive,
                    request_written,
                });
            }
            Ok(Err(error)) => error,
            Err(_) => {
                return Err(RawError::TimedOut { received: self.received.take() });
            }
        };
        let received = self.received.take();
        Err(match error {
            ReadError::Closed => RawError::Closed { received },
            ReadError::Io(source)
                if matches!(source.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) =>
            {
                RawError::Reset { received }
            }
            ReadError::Io(source) => RawError::Io(source),
            other => RawError::Malformed { what: other.to_string(), received },
        })
    }
}

#[cfg(test)]
mod tests;
