//! The scanner beside hyper: the input is what a connection brings, head first.
//!
//! Promises: the verdict does not depend on how the bytes are cut; where the scanner and the parser
//! inside hyper both take a head, they agree on where it ends and on what follows it; and a head
//! without ambiguity is not refused.

use kit::serve::scan::{Framing, Scanner};

use crate::parts::fold;

/// The longest line of a framing header that the scanner takes.
const LONGEST_FRAMING_LINE: usize = 40;

/// Scans the bytes in several cuts and compares the verdict with that of the other parser.
///
/// # Panics
/// The verdicts differ.
pub fn target(data: &[u8]) {
    let whole = scan(data, |_| data.len());
    assert_eq!(scan(data, |_| 1), whole, "a byte at a time");
    for round in 1..4_u64 {
        let mut random = fastrand::Rng::with_seed(fold(data) ^ round);
        let most = 1 << (2 * round);
        assert_eq!(scan(data, |_| random.usize(1..=most)), whole, "in pieces of up to {most} bytes");
    }
    compare(data, whole);
}

/// What a scanner says: the verdict, the bytes after the head, and whether there are too many.
type Said = (Result<Framing, &'static str>, u64, bool);

fn scan(data: &[u8], mut next: impl FnMut(usize) -> usize) -> Said {
    let mut scanner = Scanner::new();
    let mut rest = data;
    while !rest.is_empty() {
        let (part, after) = rest.split_at(next(rest.len()).clamp(1, rest.len()));
        scanner.feed(part);
        rest = after;
    }
    let said = scanner.verdict(false);
    if scanner.verdict(true).is_ok() {
        assert_eq!(scanner.verdict(true), said, "asking for a Host only refuses more");
    }
    (said, scanner.beyond(), scanner.overran())
}

fn compare(data: &[u8], (verdict, beyond, overran): Said) {
    let mut headers = [httparse::EMPTY_HEADER; 100];
    let mut request = httparse::Request::new(&mut headers);
    let Ok(parsed) = request.parse(data) else { return };
    let httparse::Status::Complete(length) = parsed else {
        assert!(verdict.is_err(), "the scanner is done with a head that hyper waits for: {verdict:?}");
        return;
    };
    let expected = framing(&data[..length], data, request.headers);
    assert_eq!(verdict.ok(), expected, "scanner {verdict:?}");
    if let Some(framing) = expected {
        assert_eq!(beyond, (data.len() - length) as u64, "the head ends elsewhere");
        let room = if let Framing::Length(length) = framing { beyond <= length } else { false };
        assert_eq!(overran, !room);
    }
}

/// The framing by RFC 9112, or `None` where there is any doubt.
fn framing(head: &[u8], data: &[u8], headers: &[httparse::Header<'_>]) -> Option<Framing> {
    let bare = |nth: usize| match head[nth] {
        b'\n' => nth == 0 || head[nth - 1] != b'\r',
        b'\r' => head.get(nth + 1) != Some(&b'\n'),
        _ => false,
    };
    if (0..head.len()).any(bare) {
        return None;
    }
    let line_length = |header: &httparse::Header<'_>| {
        let start = header.name.as_ptr().addr() - data.as_ptr().addr();
        head[start..].iter().position(|byte| *byte == b'\r').unwrap_or(head.len() - start)
    };
    let named = |name: &'static str| headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name));
    if named("host").count() > 1 {
        return None;
    }
    let (mut lengths, mut codings) = (named("content-length"), named("transfer-encoding"));
    match (lengths.next(), codings.next(), lengths.next(), codings.next()) {
        (None, None, None, None) => Some(Framing::Length(0)),
        (Some(length), None, None, None) if line_length(length) <= LONGEST_FRAMING_LINE => {
            let text = std::str::from_utf8(length.value.trim_ascii()).ok()?;
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|_| digits).map(Framing::Length)
        }
        (None, Some(coding), None, None) if line_length(coding) <= LONGEST_FRAMING_LINE => {
            coding.value.trim_ascii().eq_ignore_ascii_case(b"chunked").then_some(Framing::Chunked)
        }
        _ => None,
    }
}
