//! Bodies that readers of JSON stumble over.

/// CloudEvents type of a body that names none, or that readers would not agree about.
const UNKNOWN: &str = "lago.unknown";
const FEE: &str = "lago.fee.created";
/// Nesting that ends a reader that calls itself.
const DEEP: usize = 100_000;

/// One body and the type that its event has.
pub(super) struct Trap {
    pub(super) name: &'static str,
    pub(super) body: Vec<u8>,
    pub(super) event_type: &'static str,
    /// Blanks around the document are lost where it is put into another one.
    pub(super) blanks: bool,
}

fn trap(name: &'static str, body: impl Into<Vec<u8>>, event_type: &'static str) -> Trap {
    let body = body.into();
    let blanks = body.trim_ascii() != body;
    Trap { name, body, event_type, blanks }
}

/// A body that is right but for what it holds in addition.
pub(super) fn fee(more: &str) -> String {
    format!(r#"{{"webhook_type":"fee.created","object_type":"fee","fee":{{"lago_id":"f-1"}},{more}}}"#)
}

pub(super) fn traps() -> Vec<Trap> {
    let nested = |open: &str, close: &str| open.repeat(DEEP) + &close.repeat(DEEP);
    let objects = r#"{"a":"#.repeat(DEEP) + "1" + &"}".repeat(DEEP);
    vec![
        trap("deep arrays beside the payload", fee(&format!(r#""x":{}"#, nested("[", "]"))), FEE),
        trap("deep objects beside the payload", fee(&format!(r#""x":{objects}"#)), FEE),
        trap("a deep payload", format!(r#"{{"webhook_type":"fee.created","object_type":"fee","fee":{objects}}}"#), FEE),
        trap("a deep type", format!(r#"{{"webhook_type":{},"object_type":"fee"}}"#, nested("[", "]")), UNKNOWN),
        trap("deep arrays alone", nested("[", "]"), UNKNOWN),
        trap("deep arrays without an end", "[".repeat(DEEP), UNKNOWN),
        trap("a number beyond a double", fee(r#""x":1e400"#), FEE),
        trap("a number below a double", fee(r#""x":-1e400,"y":1e-400"#), FEE),
        trap("an integer that a double rounds", fee(r#""x":9007199254740993"#), FEE),
        trap("an integer beyond 64 bits", fee(r#""x":123456789012345678901234567890"#), FEE),
        trap("a number of a hundred thousand digits", fee(&format!(r#""x":0.{}"#, "3".repeat(100_000))), FEE),
        trap("minus zero", fee(r#""x":-0,"y":-0.0,"z":0e0"#), FEE),
        trap("digits that a printer would drop", fee(r#""x":1.10,"y":1E5,"z":100000.0"#), FEE),
        trap("NaN", fee(r#""x":NaN"#), UNKNOWN),
        trap("Infinity", fee(r#""x":-Infinity"#), UNKNOWN),
        trap("hexadecimal", fee(r#""x":0x10"#), UNKNOWN),
        trap("a leading zero", fee(r#""x":01"#), UNKNOWN),
        trap("a plus sign", fee(r#""x":+1"#), UNKNOWN),
        trap("a comma too many", fee(r#""x":1,"#), UNKNOWN),
        trap("a comment", fee(r#"/* */"x":1"#), UNKNOWN),
        trap("single quotes", fee("'x':1"), UNKNOWN),
        trap("the type twice", fee(r#""webhook_type":"invoice.created""#), UNKNOWN),
        trap("the same type twice", fee(r#""webhook_type":"fee.created""#), UNKNOWN),
        trap("the type twice, once escaped", fee("\"webhook\\u005ftype\":\"invoice.created\""), UNKNOWN),
        trap("the object's type twice", fee(r#""object_type":"invoice""#), UNKNOWN),
        trap("the organisation twice", fee(r#""organization_id":"a","organization_id":"b""#), FEE),
        trap("the payload twice", fee(r#""fee":{"lago_id":"f-2"}"#), FEE),
        trap("any other key twice", fee(r#""x":1,"x":2"#), FEE),
        trap("a type that is a number", r#"{"webhook_type":5,"object_type":"fee","fee":{}}"#, UNKNOWN),
        trap("a type that is null", r#"{"webhook_type":null,"object_type":null}"#, UNKNOWN),
        trap("a type that is a list", r#"{"webhook_type":["fee.created"],"object_type":"fee"}"#, UNKNOWN),
        trap("an empty type", r#"{"webhook_type":"","object_type":""}"#, UNKNOWN),
        trap("numbers as texts", fee(r#""x":"9007199254740993","y":"1e400","z":"-0""#), FEE),
        trap("a payload that is a number", r#"{"webhook_type":"fee.created","object_type":"fee","fee":1e400}"#, FEE),
        trap(
            "ids that are numbers",
            r#"{"webhook_type":"fee.created","object_type":"fee","fee":{"lago_id":9007199254740993}}"#,
            FEE,
        ),
        trap("half a surrogate pair", fee(r#""x":"\ud800""#), FEE),
        trap("half a surrogate pair as the type", r#"{"webhook_type":"\ud800","object_type":"fee"}"#, UNKNOWN),
        trap("a NUL in a text", fee("\"x\":\"\\u0000\""), FEE),
        trap("a bare control character", fee("\"x\":\"\u{1}\""), UNKNOWN),
        trap("a byte order mark", "\u{feff}".to_owned() + &fee(r#""x":1"#), UNKNOWN),
        trap("UTF-16", fee(r#""x":1"#).encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>(), UNKNOWN),
        trap(
            "bytes that are no UTF-8",
            [fee(r#""x":"~""#).replace('~', "").as_bytes(), &[0xff, 0xfe]].concat(),
            UNKNOWN,
        ),
        trap("no UTF-8 inside a text", no_utf8(&[0xff]), UNKNOWN),
        trap("an overlong slash", no_utf8(&[0xc0, 0xaf]), UNKNOWN),
        trap("a surrogate in UTF-8", no_utf8(&[0xed, 0xa0, 0x80]), UNKNOWN),
        trap("a code point beyond the last", no_utf8(&[0xf4, 0x90, 0x80, 0x80]), UNKNOWN),
        trap("two documents", fee(r#""x":1"#) + &fee(r#""x":2"#), UNKNOWN),
        trap("a tail", fee(r#""x":1"#) + "x", UNKNOWN),
        trap("a NUL at the end", fee(r#""x":1"#) + "\0", UNKNOWN),
        trap("blanks around", format!("\r\n\t {} \r\n\t", fee(r#""x":1"#)), FEE),
        trap("a text", r#""fee.created""#, UNKNOWN),
        trap("a number", "1e400", UNKNOWN),
        trap("null", "null", UNKNOWN),
        trap("an empty object", "{}", UNKNOWN),
        trap("an empty key", r#"{"":1}"#, UNKNOWN),
        trap("not quite empty", " ", UNKNOWN),
        trap("a NUL", "\0", UNKNOWN),
        trap("markup", "<?xml version=\"1.0\"?><!DOCTYPE x [<!ENTITY a \"b\">]><x>&a;</x>", UNKNOWN),
        trap("a form", "webhook_type=fee.created&object_type=fee", UNKNOWN),
        trap(
            "ten thousand keys",
            fee(&(0..10_000).map(|n| format!(r#""k{n}":{n}"#)).collect::<Vec<_>>().join(",")),
            FEE,
        ),
        trap("a prototype", fee(r#""__proto__":{"webhook_type":"x"},"constructor":{}"#), FEE),
    ]
}

fn no_utf8(bytes: &[u8]) -> Vec<u8> {
    let text = fee(r#""x":"~""#);
    let (before, after) = text.split_once('~').unwrap_or_default();
    [before.as_bytes(), bytes, after.as_bytes()].concat()
}
