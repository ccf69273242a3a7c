//! Log lines on their way to standard output. A thread of its own writes them, so that nobody who has something to say waits
//! for whoever reads: a log driver that hangs must not stop webhooks. What is not read in time is left out, and counted.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes of lines that wait; thousands of usual ones.
const MOST_BYTES: usize = 4 << 20;
const THREAD: &str = "log-writer";

#[derive(Debug, Default)]
pub(crate) struct LogWriter {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Lines for which there was no room since the last that had some.
    left_out: u64,
    /// Lines that have been taken and are not written yet.
    writing: bool,
}

impl LogWriter {
    /// Starts the thread that writes to `output`.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub(crate) fn start(output: impl Write + Send + 'static) -> std::io::Result<Arc<Self>> {
        let writer = Arc::new(Self::default());
        let shared = Arc::clone(&writer);
        std::thread::Builder::new().name(THREAD.to_owned()).spawn(move || shared.write_for_ever(output))?;
        Ok(writer)
    }

    /// Waits until all is written that was said before, or until `within` is over.
    pub(crate) fn flush(&self, within: Duration) {
        if std::thread::current().name() == Some(THREAD) {
            return;
        }
        let deadline = Instant::now() + within;
        let mut waiting = self.lock();
        while waiting.writing || !waiting.lines.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            waiting = self.changed.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_for_ever(&self, mut output: impl Write) {
        let mut waiting = self.lock();
        loop {
            while waiting.lines.is_empty() {
                waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            }
            let lines = std::mem::take(&mut waiting.lines);
            waiting.bytes = 0;
            let left_out = std::mem::take(&mut waiting.left_out);
            waiting.writing = true;
            drop(waiting);
            for line in lines {
                // A reader that is gone, or a full disk, costs lines and nothing else.
                let _ = output.write_all(&line);
            }
            let _ = output.flush();
            if left_out > 0 {
                tracing::warn!(lines = left_out, "{left_out} log lines were left out: nobody read standard output");
            }
            waiting = self.lock();
            waiting.writing = false;
            self.changed.notify_all();
        }
    }
}

/// One call is one line, as `tracing-subscriber` makes it.
impl Write for &LogWriter {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let mut waiting = self.lock();
        if waiting.bytes + line.len() > MOST_BYTES {
            waiting.left_out += 1;
        } else {
            waiting.bytes += line.len();
            waiting.lines.push_back(line.to_vec());
            self.changed.notify_all();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Writes when the test says so.
    struct Held(Arc<Mutex<Vec<u8>>>);

    impl Write for Held {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nobody_waits_for_a_reader_and_what_waits_is_bounded() {
        let written = Arc::new(Mutex::new(Vec::new()));
        let writer = LogWriter::start(Held(Arc::clone(&written))).unwrap();
        let line = [b'x'; 1024];
        let held = written.lock().unwrap();
        (&*writer).write_all(&line).unwrap();
        // It must have begun to write: what waits goes with it, and what was left out is forgotten.
        let deadline = Instant::now() + Duration::from_secs(60);
        while !writer.lock().writing {
            assert!(Instant::now() < deadline, "it never begins to write");
            std::thread::yield_now();
        }
        for _ in 0..4 * MOST_BYTES / line.len() {
            (&*writer).write_all(&line).unwrap();
        }
        assert!(writer.lock().bytes <= MOST_BYTES && writer.lock().left_out > 0);
        writer.flush(Duration::from_millis(10));
        drop(held);

        writer.flush(Duration::from_secs(30));

        let bytes = written.lock().unwrap().len();
        assert!((MOST_BYTES / 2..=2 * MOST_BYTES + line.len()).contains(&bytes), "{bytes}");
        (&*writer).write_all(b"again").unwrap();
        writer.flush(Duration::from_secs(30));
        assert!(written.lock().unwrap().ends_with(b"again"));
    }
}
