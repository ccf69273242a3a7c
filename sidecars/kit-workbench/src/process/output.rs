//! What a daemon prints: kept in a bounded ring, copied to a file, searched for its listeners.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::watch;

const KEPT_LINES: usize = 20_000;
const KEPT_BYTES: usize = 16 * 1024 * 1024;
/// A longer line is cut; none of ours is.
const LINE_LIMIT_BYTES: usize = 64 * 1024;
const TAIL_LINES: usize = 20;

/// Where a daemon listens, by the listener's name.
pub(super) type Listeners = BTreeMap<String, SocketAddr>;

#[derive(Clone)]
pub(super) struct Output {
    shared: Arc<Shared>,
    /// Streams being read.
    open: watch::Sender<usize>,
    listeners: watch::Sender<Listeners>,
    lines: watch::Sender<u64>,
}

struct Shared {
    ring: Mutex<Ring>,
}

#[derive(Default)]
struct Ring {
    lines: VecDeque<Line>,
    bytes: usize,
    let_go: u64,
    file: Option<File>,
}

struct Line {
    from_stdout: bool,
    text: String,
}

/// The log line that announces a listener.
#[derive(Deserialize)]
struct Announcement {
    listener: String,
    address: SocketAddr,
}

impl Output {
    pub(super) fn new(file: Option<&Path>) -> io::Result<Self> {
        let file = match file {
            Some(path) => Some(File::options().append(true).create(true).open(path)?),
            None => None,
        };
        Ok(Self {
            shared: Arc::new(Shared { ring: Mutex::new(Ring { file, ..Ring::default() }) }),
            open: watch::Sender::new(0),
            listeners: watch::Sender::new(Listeners::new()),
            lines: watch::Sender::new(0),
        })
    }

    /// Reads `stream` to its end in a task of its own.
    pub(super) fn read(&self, mut stream: impl AsyncRead + Unpin + Send + 'static, stdout: bool) {
        self.open.send_modify(|open| *open += 1);
        let output = self.clone();
        tokio::spawn(async move {
            let mut pending = Vec::new();
            let mut buffer = vec![0; 16 * 1024];
            loop {
                let count = match stream.read(&mut buffer).await {
                    Ok(0) => break,
                    Ok(count) => count,
                    Err(error) => {
                        tracing::debug!(%error, "the daemon's output cannot be read");
                        break;
                    }
                };
                for piece in buffer[..count].split_inclusive(|byte| *byte == b'\n') {
                    let room = LINE_LIMIT_BYTES.saturating_sub(pending.len());
                    let ended = piece.ends_with(b"\n");
                    let text = piece.strip_suffix(b"\n").unwrap_or(piece);
                    pending.extend_from_slice(&text[..text.len().min(room)]);
                    if ended {
                        output.line(&pending, stdout);
                        pending.clear();
                    }
                }
            }
            if !pending.is_empty() {
                output.line(&pending, stdout);
            }
            output.open.send_modify(|open| *open -= 1);
        });
    }

    /// Waits until all streams have ended.
    pub(super) async fn finished(&self) {
        let mut open = self.open.subscribe();
        // The sender is in `self`: this cannot fail.
        drop(open.wait_for(|open| *open == 0).await);
    }

    pub(super) fn listeners(&self) -> watch::Receiver<Listeners> {
        self.listeners.subscribe()
    }

    pub(super) fn listener(&self, name: &str) -> Option<SocketAddr> {
        self.listeners.borrow().get(name).copied()
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.lines.subscribe()
    }

    pub(super) fn find(&self, wanted: impl Fn(&str) -> bool) -> Option<String> {
        let ring = self.ring();
        let line = ring.lines.iter().find(|line| wanted(&line.text))?;
        Some(line.text.clone())
    }

    pub(super) fn text(&self, stdout: bool) -> String {
        let ring = self.ring();
        let mut text = String::with_capacity(ring.bytes);
        for line in ring.lines.iter().filter(|line| line.from_stdout == stdout) {
            text.push_str(&line.text);
            text.push('\n');
        }
        text
    }

    pub(super) fn tail(&self) -> String {
        let ring = self.ring();
        let skip = ring.lines.len().saturating_sub(TAIL_LINES);
        let lines: Vec<&str> = ring.lines.iter().skip(skip).map(|line| line.text.as_str()).collect();
        lines.join("\n")
    }

    pub(super) fn let_go(&self) -> u64 {
        self.ring().let_go
    }

    fn line(&self, bytes: &[u8], from_stdout: bool) {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let announcement = serde_json::from_str::<Announcement>(&text).ok();
        let mut ring = self.ring();
        if let Some(file) = &mut ring.file
            && let Err(error) = writeln!(file, "{text}")
        {
            tracing::warn!(%error, "the daemon's log file cannot be written");
        }
        ring.bytes += text.len();
        ring.lines.push_back(Line { from_stdout, text });
        while ring.lines.len() > KEPT_LINES || ring.bytes > KEPT_BYTES {
            let Some(oldest) = ring.lines.pop_front() else {
                break;
            };
            ring.bytes -= oldest.text.len();
            ring.let_go += 1;
        }
        drop(ring);
        if let Some(Announcement { listener, address }) = announcement {
            self.listeners.send_modify(|known| {
                known.insert(listener, address);
            });
        }
        self.lines.send_modify(|lines| *lines += 1);
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.shared.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
