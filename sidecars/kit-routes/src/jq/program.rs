//! Compiling and running a program. Only ever called in the worker.

use std::fmt::Write as _;
use std::io;

use jaq_core::data::JustLut;
use jaq_core::load::{self, Arena, File, Loader};
use jaq_core::{Compiler, Ctx, Filter, Vars, compile, unwrap_valr};
use jaq_json::{Val, read, write};

use super::Question;
use super::wire::COMPLAINT_BYTES;

/// A compiled program.
pub(super) struct Program(Filter<JustLut<Val>>);

impl Program {
    /// Compiles; it sees no file, no module and no variable.
    pub(super) fn compile(code: &str) -> Result<Self, String> {
        let definitions = jaq_core::defs().chain(jaq_std::defs()).chain(jaq_json::defs());
        let functions = jaq_core::funs().chain(jaq_std::funs()).chain(jaq_json::funs());
        let arena = Arena::default();
        let modules = Loader::new(definitions)
            .load(&arena, File { code, path: () })
            .map_err(|errors| first(errors.into_iter().map(|(_, error)| malformed(code, &error))))?;
        let compiled = Compiler::default().with_funs(functions).compile(modules);
        compiled.map(Self).map_err(|errors| {
            let undefined = errors.into_iter().flat_map(|(_, errors)| errors).map(|error| undefined(code, error));
            first(undefined)
        })
    }

    /// Runs it on one JSON document. The answer has at most `answer_bytes`.
    pub(super) fn run(&self, question: Question, input: &[u8], answer_bytes: usize) -> Result<Vec<u8>, String> {
        let input = read::parse_single(input).map_err(|error| capped(format_args!("event cannot be read: {error}")))?;
        let context = Ctx::<JustLut<Val>>::new(&self.0.lut, Vars::new([]));
        let mut values = self.0.id.run((context, input)).map(unwrap_valr);
        let value = match values.next() {
            None if question == Question::Holds => return Ok(b"false".to_vec()),
            None => return Err("gives no value, must give one".to_owned()),
            Some(value) => value.map_err(|error| capped(format_args!("{error}")))?,
        };
        match values.next() {
            None => {}
            Some(Ok(_)) => return Err("gives more than one value, must give one".to_owned()),
            Some(Err(error)) => return Err(capped(format_args!("{error}"))),
        }
        match (question, value) {
            (Question::Holds, Val::Bool(holds)) => Ok(holds.to_string().into_bytes()),
            (Question::Holds, Val::Null) => Ok(b"false".to_vec()),
            (Question::Holds, value) => Err(capped(format_args!("gives {value}, must give true or false"))),
            (_, value) => {
                let mut bytes = Bounded { bytes: Vec::new(), most: answer_bytes };
                let written = write::write(&mut bytes, &write::Pp::default(), 0, &value);
                written.map_err(|_| format!("gives more than {answer_bytes} bytes"))?;
                Ok(bytes.bytes)
            }
        }
    }
}

fn first(mut complaints: impl Iterator<Item = String>) -> String {
    complaints.next().unwrap_or_else(|| "cannot be compiled".to_owned())
}

fn malformed(code: &str, error: &load::Error<&str>) -> String {
    match error {
        load::Error::Io(errors) => {
            let path = errors.first().map_or("", |(path, _)| path);
            capped(format_args!("{}: other files cannot be loaded", place(code, path)))
        }
        load::Error::Lex(errors) => match errors.first() {
            Some((expected, found)) => capped(format_args!("{}: expected {}", place(code, found), expected.as_str())),
            None => "cannot be read".to_owned(),
        },
        load::Error::Parse(errors) => match errors.first() {
            Some((expected, found)) => capped(format_args!("{}: expected {}", place(code, found), expected.as_str())),
            None => "cannot be read".to_owned(),
        },
    }
}

fn undefined(code: &str, (found, what): compile::Error<&str>) -> String {
    let arity = match &what {
        compile::Undefined::Filter(arity) if *arity > 0 => format!("/{arity}"),
        _ => String::new(),
    };
    capped(format_args!("{}: {} {found}{arity} is not defined", place(code, found), what.as_str()))
}

/// Where in the program `part` is, which lies within it; its end, where nothing is left of it.
fn place(code: &str, part: &str) -> String {
    let within = code.as_bytes().as_ptr_range().contains(&part.as_ptr());
    let at = if within && !part.is_empty() { load::span(code, part).start } else { code.len() };
    let before = code.get(..at).unwrap_or(code);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    match line {
        1 => format!("column {column}"),
        line => format!("line {line}, column {column}"),
    }
}

/// A text cut to the length of a complaint, whatever values it shows. Control characters are none that a log or a
/// terminal should see.
fn capped(text: std::fmt::Arguments<'_>) -> String {
    struct Capped(String);
    impl std::fmt::Write for Capped {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            for c in text.chars() {
                if self.0.len() + c.len_utf8() > COMPLAINT_BYTES - '…'.len_utf8() {
                    self.0.push('…');
                    return Err(std::fmt::Error);
                }
                self.0.push(if c.is_control() { ' ' } else { c });
            }
            Ok(())
        }
    }
    let mut text_so_far = Capped(String::new());
    // An error is only the bound.
    let _ = text_so_far.write_fmt(text);
    text_so_far.0
}

/// Takes no more than so many bytes.
struct Bounded {
    bytes: Vec<u8>,
    most: usize,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.most - self.bytes.len() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const EVENT: &[u8] =
        br#"{"type":"lago.invoice.created","data":{"invoice":{"id":"i1","cents":10000000000000000001}}}"#;

    fn value(code: &str) -> Result<String, String> {
        let bytes = Program::compile(code)?.run(Question::Value, EVENT, 100)?;
        Ok(String::from_utf8(bytes).unwrap())
    }

    fn holds(code: &str) -> Result<String, String> {
        let bytes = Program::compile(code)?.run(Question::Holds, EVENT, 100)?;
        Ok(String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn a_transform_gives_one_value_with_numbers_as_they_were_sent() {
        let check = |code: &str, expected: &str| assert_eq!(value(code).as_deref(), Ok(expected), "{code}");
        check(".data.invoice", r#"{"id":"i1","cents":10000000000000000001}"#);
        check("{id: .data.invoice.id, kind: (.type | split(\".\") | last)}", r#"{"id":"i1","kind":"created"}"#);
        check("\"é\\u0001\"", "\"é\\u0001\"");
        check(".data.invoice.id | @base64", "\"aTE=\"");
        check("0 | todate", "\"1970-01-01T00:00:00Z\"");
    }

    #[test]
    fn what_gives_no_value_or_several_or_too_much_fails() {
        let check = |code: &str, expected: &str| assert_eq!(value(code), Err(expected.to_owned()), "{code}");
        check("empty", "gives no value, must give one");
        check("1, 2", "gives more than one value, must give one");
        check("[range(100)]", "gives more than 100 bytes");
        check("error(\"not this one\")", "\"not this one\"");
        check(".type.x", "cannot index \"lago.invoice.created\" with \"x\"");
    }

    #[test]
    fn a_filter_says_true_or_not() {
        for (code, expected) in [
            (".type | startswith(\"lago.\")", "true"),
            (".data.invoice.id == \"i2\"", "false"),
            (".data.nothing", "false"),
            ("empty", "false"),
            ("select(.type == \"other\")", "false"),
        ] {
            assert_eq!(holds(code).as_deref(), Ok(expected), "{code}");
        }
        assert!(holds(".data.invoice.id").unwrap_err().contains("must give true or false"));
        assert!(holds("true, false").is_err());
    }

    #[test]
    fn a_complaint_about_a_large_value_is_short_and_fit_for_a_terminal() {
        let code = "(\"a\" * 100000) + \"\\u001b[2J\" | error";
        let complaint = value(code).unwrap_err();
        assert!(complaint.len() <= COMPLAINT_BYTES && complaint.ends_with('…'), "{complaint}");
        assert!(!value("error(\"a\\u001b[2Jb\")").unwrap_err().contains(char::is_control));
    }

    #[test]
    fn what_cannot_be_compiled_is_told_with_its_place() {
        let check = |code: &str, expected: &str| {
            let complaint = Program::compile(code).map(drop).unwrap_err();
            assert!(complaint.contains(expected), "{code}: {complaint}");
        };
        check(".data |", "column 8");
        check("{a: [1, 2}", "column");
        check(".a | nosuch(1)", "column 6: filter nosuch/1 is not defined");
        check("\n $nothing", "line 2, column 2: variable $nothing is not defined");
        check("include \"a\"; .", "other files cannot be loaded");
        check("input", "filter input is not defined");
    }

    #[test]
    fn the_environment_is_empty_in_a_program_of_the_worker_and_nothing_can_be_read() {
        // The variables of this test are those of the test runner; the worker's are cleared by whoever starts it.
        assert!(value("input_filename").is_err() && value("$__prog_args").is_err());
    }
}
