//! What a broker sends, before lapin sees it: frames within the size we asked for, and bodies within ours.
//!
//! lapin waits for the end of a frame however long it says it is, and collects a body however large (4.12.3,
//! `src/io_loop.rs`, `src/message.rs`). Nothing is decoded here but frame headers and the size in content headers.
//!
//! Source: AMQP 0-9-1 specification, sections 2.3.5 and 2.3.5.2.

/// Bytes before a frame's payload: type, channel, size.
const HEAD: usize = 7;
/// Bytes of a content header up to and with the size of the body: class, weight, size.
const SIZED: usize = 12;
const FRAME_END: u8 = 0xCE;
const METHOD: u8 = 1;
const CONTENT_HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;

/// What is wrong with what the broker sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadFrame {
    #[error("this is no AMQP 0-9-1 broker: a frame of type {0}")]
    Type(u8),
    #[error("the broker sent a frame of {0} bytes, more than was agreed")]
    Large(usize),
    #[error("the broker sent a frame without its end")]
    End,
    #[error("the broker sent a content header of {0} bytes")]
    Header(usize),
    #[error("the broker sent a message of {0} bytes, more than is taken")]
    Body(u64),
}

/// Looks at a stream of frames in pieces of any size.
#[derive(Debug)]
pub(crate) struct Scanner {
    frame_max: usize,
    body_max: u64,
    state: State,
    /// The beginning of a frame or of its payload, as far as it came.
    start: [u8; SIZED],
    have: usize,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Head,
    Sized { left: usize },
    Payload { left: usize, kind: u8 },
    End,
}

impl Scanner {
    /// Frames of at most so many bytes, their own eight included, and bodies of at most so many.
    pub(crate) fn new(frame_max: usize, body_max: u64) -> Self {
        Self { frame_max, body_max, state: State::Head, start: [0; SIZED], have: 0 }
    }

    /// Looks at the next bytes; returns how many of them are of bodies.
    ///
    /// # Errors
    /// [`BadFrame`]. Nothing of such a stream can be believed.
    pub(crate) fn look(&mut self, mut bytes: &[u8]) -> Result<usize, BadFrame> {
        let mut bodies = 0;
        while !bytes.is_empty() {
            match self.state {
                State::Head => {
                    if !self.gather(&mut bytes, HEAD) {
                        break;
                    }
                    let [kind, _, _, a, b, c, d, ..] = self.start;
                    if ![METHOD, CONTENT_HEADER, BODY, HEARTBEAT].contains(&kind) {
                        return Err(BadFrame::Type(kind));
                    }
                    let size = u32::from_be_bytes([a, b, c, d]) as usize;
                    if size > self.frame_max - HEAD - 1 {
                        return Err(BadFrame::Large(size));
                    }
                    self.state = match (kind, size) {
                        (CONTENT_HEADER, size) if size < SIZED => return Err(BadFrame::Header(size)),
                        (CONTENT_HEADER, size) => State::Sized { left: size - SIZED },
                        (_, 0) => State::End,
                        (kind, left) => State::Payload { left, kind },
                    };
                }
                State::Sized { left } => {
                    if !self.gather(&mut bytes, SIZED) {
                        break;
                    }
                    let [_, _, _, _, size @ ..] = self.start;
                    let size = u64::from_be_bytes(size);
                    if size > self.body_max {
                        return Err(BadFrame::Body(size));
                    }
                    self.state = if left == 0 { State::End } else { State::Payload { left, kind: CONTENT_HEADER } };
                }
                State::Payload { left, kind } => {
                    let here = left.min(bytes.len());
                    bytes = &bytes[here..];
                    if kind == BODY {
                        bodies += here;
                    }
                    self.state = if here == left { State::End } else { State::Payload { left: left - here, kind } };
                }
                State::End => {
                    if bytes[0] != FRAME_END {
                        return Err(BadFrame::End);
                    }
                    bytes = &bytes[1..];
                    self.state = State::Head;
                }
            }
        }
        Ok(bodies)
    }

    /// Fills the start with so many bytes; true once all of them are there.
    fn gather(&mut self, bytes: &mut &[u8], wanted: usize) -> bool {
        let here = (wanted - self.have).min(bytes.len());
        self.start[self.have..self.have + here].copy_from_slice(&bytes[..here]);
        *bytes = &bytes[here..];
        self.have += here;
        let complete = self.have == wanted;
        if complete {
            self.have = 0;
        }
        complete
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![kind, 0, 1];
        frame.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
        frame.extend(payload);
        frame.push(FRAME_END);
        frame
    }

    fn content_header(size: u64) -> Vec<u8> {
        let mut payload = vec![0, 60, 0, 0];
        payload.extend(size.to_be_bytes());
        payload.extend([0, 0]);
        frame(CONTENT_HEADER, &payload)
    }

    #[test]
    fn a_stream_is_judged_alike_however_it_is_cut() {
        let stream = [
            frame(METHOD, b"method"),
            content_header(5),
            frame(BODY, b"abc"),
            frame(BODY, b"de"),
            frame(HEARTBEAT, b""),
        ]
        .concat();
        for piece in 1..=stream.len() {
            let mut scanner = Scanner::new(4096, 5);
            let bodies: usize = stream.chunks(piece).map(|bytes| scanner.look(bytes).unwrap()).sum();
            assert_eq!(bodies, 5, "pieces of {piece}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_as_soon_as_it_shows() {
        let check = |stream: &[u8], expected: BadFrame| {
            for piece in [1, 3, stream.len()] {
                let mut scanner = Scanner::new(64, 5);
                let result = stream.chunks(piece).find_map(|bytes| scanner.look(bytes).err());
                assert_eq!(result, Some(expected), "pieces of {piece}");
            }
        };
        check(b"HTTP/1.1 400 Bad Request\r\n\r\n", BadFrame::Type(b'H'));
        check(b"AMQP\0\0\x09\x01", BadFrame::Type(b'A'));
        check(&[METHOD, 0, 1, 0, 0, 0, 57], BadFrame::Large(57));
        check(&[BODY, 0, 1, 255, 255, 255, 255], BadFrame::Large(u32::MAX as usize));
        check(&frame(CONTENT_HEADER, &[0; 11]), BadFrame::Header(11));
        check(&content_header(6), BadFrame::Body(6));
        check(&content_header(u64::MAX), BadFrame::Body(u64::MAX));
        let mut unended = frame(METHOD, b"x");
        *unended.last_mut().unwrap() = 0;
        check(&unended, BadFrame::End);
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let mut random = fastrand::Rng::with_seed(19);
        for _ in 0..20_000 {
            let mut scanner = Scanner::new(256, 64);
            let mut stream = [frame(METHOD, b"method"), content_header(3), frame(BODY, b"abc")].concat();
            for _ in 0..random.usize(0..4) {
                let at = random.usize(0..stream.len());
                stream[at] = random.u8(..);
            }
            stream.truncate(random.usize(..=stream.len()));
            for bytes in stream.chunks(random.usize(1..9)) {
                if scanner.look(bytes).is_err() {
                    break;
                }
            }
        }
    }
}
