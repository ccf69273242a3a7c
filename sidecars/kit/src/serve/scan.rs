//! A second look at the bytes of a request's head.
//!
//! hyper 1.12 drops `Content-Length` without a word when `Transfer-Encoding` is there, and merges
//! equal repeated ones. Two parsers that disagree about where a request ends are what request
//! smuggling is made of, so what is ambiguous is refused: RFC 9112 sections 2.2, 3.2, 5.1, 5.2, 6.3.
//!
//! The scanner sees every byte of a head exactly once and keeps 40 bytes of each line.

/// The longest beginning of a line that matters: a framing header's name and value.
const KEPT: usize = 40;

/// What follows the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// A body of this many bytes.
    Length(u64),
    /// A chunked body.
    Chunked,
}

/// Why a head is refused.
pub type Reason = &'static str;

/// Watches one request's head go by, in whatever pieces it comes. The verdict depends on the bytes
/// alone and never on where they were cut.
#[derive(Debug)]
pub struct Scanner {
    line: [u8; KEPT],
    kept: usize,
    /// Bytes of the current line, and whether the last one was a CR.
    length: usize,
    after_cr: bool,
    first_line: bool,
    content_length: Option<u64>,
    chunked: bool,
    host: bool,
    bad: Option<Reason>,
    done: bool,
    /// Bytes seen after the head.
    beyond: u64,
}

impl Default for Scanner {
    fn default() -> Self {
        Self::new()
    }
}

impl Scanner {
    /// A scanner that has seen nothing yet.
    pub fn new() -> Self {
        Self {
            line: [0; KEPT],
            kept: 0,
            length: 0,
            after_cr: false,
            first_line: true,
            content_length: None,
            chunked: false,
            host: false,
            bad: None,
            done: false,
            beyond: 0,
        }
    }

    /// Takes the next bytes of the connection.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while !self.done && !bytes.is_empty() {
            let end = bytes.iter().position(|b| *b == b'\n');
            let part = &bytes[..end.unwrap_or(bytes.len())];
            self.line_part(part);
            match end {
                Some(end) => {
                    self.line_end();
                    bytes = &bytes[end + 1..];
                }
                None => return,
            }
        }
        self.beyond += bytes.len() as u64;
    }

    fn line_part(&mut self, part: &[u8]) {
        if part.is_empty() {
            return;
        }
        let (body, last) = (&part[..part.len() - 1], part[part.len() - 1]);
        if self.after_cr || body.contains(&b'\r') {
            self.bad = Some("bare CR in the head");
        }
        // A target has no fragment (RFC 9112 section 3.2); hyper would drop it without a word.
        if self.first_line && part.contains(&b'#') {
            self.bad = Some("fragment in the target");
        }
        self.after_cr = last == b'\r';
        let room = KEPT - self.kept;
        let taken = &part[..part.len().min(room)];
        self.line[self.kept..self.kept + taken.len()].copy_from_slice(taken);
        self.kept += taken.len();
        self.length += part.len();
    }

    fn line_end(&mut self) {
        if !self.after_cr {
            self.bad = Some("line of the head ends without CR");
        }
        let length = self.length - usize::from(self.after_cr);
        let kept = self.kept.min(length);
        let line = self.line;
        let line = &line[..kept];
        if length == 0 && !self.first_line {
            self.done = true;
        } else if self.first_line {
            // hyper skips empty lines before the request line; so do we.
            self.first_line = length == 0;
        } else {
            self.header(line, length);
        }
        self.kept = 0;
        self.length = 0;
        self.after_cr = false;
    }

    fn header(&mut self, line: &[u8], length: usize) {
        if line.first().is_some_and(|b| matches!(b, b' ' | b'\t')) {
            self.bad = Some("folded header");
            return;
        }
        let Some(colon) = line.iter().position(|b| *b == b':') else { return };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.last().is_some_and(|b| matches!(b, b' ' | b'\t')) {
            self.bad = Some("space before the colon of a header");
        }
        let whole = length <= KEPT;
        if name.eq_ignore_ascii_case(b"content-length") {
            let number = std::str::from_utf8(value)
                .ok()
                .filter(|text| whole && !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()));
            match number.and_then(|text| text.parse().ok()) {
                _ if self.content_length.is_some() => self.bad = Some("more than one Content-Length"),
                Some(number) => self.content_length = Some(number),
                None => self.bad = Some("Content-Length is not a number"),
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.chunked {
                self.bad = Some("more than one Transfer-Encoding");
            } else if !(whole && value.eq_ignore_ascii_case(b"chunked")) {
                self.bad = Some("Transfer-Encoding is not chunked");
            }
            self.chunked = true;
        } else if name.eq_ignore_ascii_case(b"host") {
            if self.host {
                self.bad = Some("more than one Host");
            }
            self.host = true;
        }
    }

    /// What follows the head that has been read, or why it is refused. `needs_host`: the request says
    /// HTTP/1.1, which demands exactly one `Host`.
    ///
    /// # Errors
    /// A few words for the log; the answer to the sender is the same for all.
    pub fn verdict(&self, needs_host: bool) -> Result<Framing, Reason> {
        if let Some(reason) = self.bad {
            return Err(reason);
        }
        if !self.done {
            // The request did not begin where the last one ended.
            return Err("request out of step");
        }
        if needs_host && !self.host {
            return Err("no Host");
        }
        match (self.chunked, self.content_length) {
            (true, Some(_)) => Err("Content-Length beside Transfer-Encoding"),
            (true, None) => Ok(Framing::Chunked),
            (false, length) => Ok(Framing::Length(length.unwrap_or(0))),
        }
    }

    /// Refuses whatever comes next on this connection.
    pub fn out_of_step(&mut self) {
        self.bad = Some("request out of step");
    }

    /// Bytes that have come after the head.
    pub fn beyond(&self) -> u64 {
        self.beyond
    }

    /// More has come than this request: the next one would begin unseen.
    pub fn overran(&self) -> bool {
        self.chunked || self.beyond > self.content_length.unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(head: &str) -> Result<Framing, Reason> {
        // However the bytes are cut, the verdict is the same.
        let whole = scan(&[head.as_bytes()]);
        let single: Vec<&[u8]> = head.as_bytes().chunks(1).collect();
        assert_eq!(scan(&single), whole, "{head:?}");
        let thirds: Vec<&[u8]> = head.as_bytes().chunks(3).collect();
        assert_eq!(scan(&thirds), whole, "{head:?}");
        whole
    }

    fn scan(parts: &[&[u8]]) -> Result<Framing, Reason> {
        let mut scanner = Scanner::new();
        parts.iter().for_each(|part| scanner.feed(part));
        scanner.verdict(true)
    }

    #[test]
    fn ordinary_heads_pass() {
        let check = |headers: &str, expected| {
            assert_eq!(verdict(&format!("POST / HTTP/1.1\r\nHost: a\r\n{headers}\r\n")), Ok(expected), "{headers}");
        };
        check("", Framing::Length(0));
        check("Content-Length: 5\r\n", Framing::Length(5));
        check("content-length:5 \r\n", Framing::Length(5));
        check("Transfer-Encoding: Chunked\r\n", Framing::Chunked);
        check(&format!("X-Long: {}\r\nContent-Length: 7\r\n", "x".repeat(100_000)), Framing::Length(7));
        assert_eq!(verdict("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), Ok(Framing::Length(0)));
    }

    #[test]
    fn ambiguous_heads_are_refused() {
        for headers in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
            "Content-Length: 5\r\nContent-Length: 5\r\n",
            "Content-Length: 5\r\nContent-Length: 6\r\n",
            "Content-Length: +5\r\n",
            "Content-Length: -5\r\n",
            "Content-Length: 5,5\r\n",
            "Content-Length: 0x5\r\n",
            "Content-Length: \r\n",
            "Content-Length: 99999999999999999999999999\r\n",
            "Content-Length : 5\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Transfer-Encoding:\x0bchunked\r\n",
            "Transfer-Encoding: identity\r\n",
            "X: a\r\n folded\r\n",
            "X: a\r\n\tTransfer-Encoding: chunked\r\n",
            "X: a\rb\r\n",
            "X: a\n",
            "Host: b\r\n",
        ] {
            let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{headers}\r\n");
            assert!(verdict(&head).is_err(), "{headers:?}");
        }
        assert_eq!(verdict("POST / HTTP/1.1\r\n\r\n"), Err("no Host"));
        assert_eq!(verdict("POST /a#b HTTP/1.1\r\nHost: a\r\n\r\n"), Err("fragment in the target"));
        assert_eq!(verdict("POST /a HTTP/1.1\r\nHost: a\r\nX: #b\r\n\r\n"), Ok(Framing::Length(0)));
    }

    #[test]
    fn what_comes_after_the_request_is_noticed() {
        let mut scanner = Scanner::new();
        scanner.feed(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}");
        assert!(!scanner.overran());
        scanner.feed(b"G");
        assert!(scanner.overran());
    }
}
