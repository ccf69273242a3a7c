//! What daemon and worker say to each other: lengths as big-endian words, then bytes.
//!
//! A request is the question, the bound on the answer, the lengths of program and input, and both; an answer is one
//! byte, 0 where the program did what was asked of it, and a text with its length.

use std::io::{self, Read, Write};

use super::{PROGRAM_BYTES, Question};

/// Bytes of a request before the program.
const HEAD: usize = 13;
/// Largest input: more than any intake takes, with its envelope.
const INPUT_BYTES: usize = 256 << 20;
/// Bytes of an answer before its text.
pub(super) const ANSWER_HEAD: usize = 5;
/// Longest complaint of a program.
pub(super) const COMPLAINT_BYTES: usize = 400;

/// One request.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) question: Question,
    pub(super) answer_bytes: usize,
    pub(super) program: String,
    pub(super) input: Vec<u8>,
}

/// The request as bytes.
pub(super) fn request(question: Question, answer_bytes: usize, program: &str, input: &[u8]) -> Vec<u8> {
    let word = |length: usize| u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    let mut bytes = Vec::with_capacity(HEAD + program.len() + input.len());
    bytes.push(match question {
        Question::Compiles => 0,
        Question::Holds => 1,
        Question::Value => 2,
    });
    bytes.extend(word(answer_bytes));
    bytes.extend(word(program.len()));
    bytes.extend(word(input.len()));
    bytes.extend(program.as_bytes());
    bytes.extend(input);
    bytes
}

/// Reads a request; `None` where there will be no more.
pub(super) fn read_request(from: &mut impl Read) -> io::Result<Option<Request>> {
    let mut head = [0; HEAD];
    match from.read_exact(&mut head) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize;
    let question = match head[0] {
        0 => Question::Compiles,
        1 => Question::Holds,
        2 => Question::Value,
        _ => return Err(io::ErrorKind::InvalidData.into()),
    };
    let (answer_bytes, program, input) = (word(1), word(5), word(9));
    if program > PROGRAM_BYTES || input > INPUT_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut read = |length: usize| {
        let mut bytes = vec![0; length];
        from.read_exact(&mut bytes).map(|()| bytes)
    };
    let program = String::from_utf8(read(program)?).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok(Some(Request { question, answer_bytes, program, input: read(input)? }))
}

/// Writes an answer at once.
pub(super) fn write_answer(to: &mut impl Write, answer: &Result<Vec<u8>, String>) -> io::Result<()> {
    let (kind, text) = match answer {
        Ok(text) => (0, text.as_slice()),
        Err(text) => (1, text.as_bytes()),
    };
    let mut bytes = vec![kind];
    bytes.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend(text);
    to.write_all(&bytes)?;
    to.flush()
}

/// What the head of an answer says: whether it is a value, and how long it is.
pub(super) fn answer_head(head: [u8; ANSWER_HEAD]) -> (bool, usize) {
    (head[0] == 0, u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_request_is_read_as_it_was_written_and_one_cut_off_is_an_end() {
        let bytes = request(Question::Value, 77, ".data", b"{\"data\":1}");

        let read = read_request(&mut bytes.as_slice()).unwrap().unwrap();
        assert_eq!((read.question, read.answer_bytes), (Question::Value, 77));
        assert_eq!((read.program.as_str(), read.input.as_slice()), (".data", &b"{\"data\":1}"[..]));
        assert!(read_request(&mut &bytes[..5]).unwrap().is_none());
        assert!(read_request(&mut &bytes[..20]).is_err());
    }

    #[test]
    fn lengths_that_nobody_sends_are_refused_before_they_are_allocated() {
        let mut bytes = request(Question::Holds, 1, ".", b"{}");
        bytes[9..13].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(read_request(&mut bytes.as_slice()).is_err());
    }

    #[test]
    fn an_answer_is_read_as_it_was_written() {
        for (answer, expected) in [(Ok(b"true".to_vec()), (true, 4)), (Err("no".to_owned()), (false, 2))] {
            let mut bytes = Vec::new();
            write_answer(&mut bytes, &answer).unwrap();
            assert_eq!(answer_head(bytes[..ANSWER_HEAD].try_into().unwrap()), expected);
        }
    }
}
