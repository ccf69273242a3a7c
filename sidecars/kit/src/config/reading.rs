//! From a tree of values to the types. figment's own reader tries every kind of value wherever one is read, and has the
//! places of values looked up on the way: for each section that is some twenty kilobytes of code. This one asks what the
//! type wants; what a mistake says is the same.

use std::collections::btree_map;
use std::fmt::Display;

use figment::error::Kind;
use figment::value::{Dict, Empty, Num, Value};
use serde::de::value::MapAccessDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, Expected, IntoDeserializer, MapAccess, SeqAccess,
    Unexpected, Visitor,
};

/// A value that is not what it must be.
#[derive(Debug, thiserror::Error)]
#[error("{}: {kind}", .path.join("."))]
pub struct Mistake {
    /// Where it is: names of settings, and positions in lists.
    pub path: Vec<String>,
    /// What is wrong with it.
    pub kind: Kind,
}

/// Reads a type from values.
///
/// # Errors
/// The first value that is not what it must be.
pub fn from_values<T: DeserializeOwned>(values: &Value) -> Result<T, Mistake> {
    T::deserialize(Reader(values)).map_err(|error| *error.0)
}

/// In a box: a result is moved through every level that is read.
#[derive(Debug)]
struct Error(Box<Mistake>);

impl Error {
    fn within(mut self, name: &str) -> Self {
        self.0.path.insert(0, name.to_owned());
        self
    }
}

impl From<Kind> for Error {
    fn from(kind: Kind) -> Self {
        Self(Box::new(Mistake { path: Vec::new(), kind }))
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: Display>(message: T) -> Self {
        Kind::Message(message.to_string()).into()
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Kind::InvalidType(found.into(), expected.to_string()).into()
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Kind::InvalidValue(found.into(), expected.to_string()).into()
    }

    fn invalid_length(found: usize, expected: &dyn Expected) -> Self {
        Kind::InvalidLength(found, expected.to_string()).into()
    }

    fn unknown_variant(found: &str, expected: &'static [&'static str]) -> Self {
        Kind::UnknownVariant(found.to_owned(), expected).into()
    }

    fn unknown_field(found: &str, expected: &'static [&'static str]) -> Self {
        Kind::UnknownField(found.to_owned(), expected).into()
    }

    fn missing_field(field: &'static str) -> Self {
        Kind::MissingField(field.into()).into()
    }

    fn duplicate_field(field: &'static str) -> Self {
        Kind::DuplicateField(field).into()
    }
}

#[derive(Clone, Copy)]
struct Reader<'a>(&'a Value);

enum Number {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
}

fn number(number: Num) -> Number {
    if let Some(float) = number.to_f64() {
        return Number::Float(float);
    }
    match number.to_u128() {
        Some(number) if let Ok(number) = u64::try_from(number) => Number::Unsigned(number),
        _ => Number::Signed(i64::try_from(number.to_i128().unwrap_or(i128::MAX)).unwrap_or(i64::MAX)),
    }
}

impl<'de> Reader<'de> {
    fn wrong(self, expected: &dyn Expected) -> Error {
        Kind::InvalidType(self.0.to_actual(), expected.to_string()).into()
    }

    /// A text, a truth value or a number, whichever is there: what does not want it says so.
    fn scalar<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::String(_, text) => visitor.visit_str(text),
            Value::Bool(_, word) => visitor.visit_bool(*word),
            Value::Num(_, found) => match number(*found) {
                Number::Unsigned(found) => visitor.visit_u64(found),
                Number::Signed(found) => visitor.visit_i64(found),
                Number::Float(found) => visitor.visit_f64(found),
            },
            _ => Err(self.wrong(&visitor)),
        }
    }
}

macro_rules! scalars {
    ($($name:ident)*) => {$(
        fn $name<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            self.scalar(visitor)
        }
    )*};
}

impl<'de> Deserializer<'de> for Reader<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Empty(_, Empty::Unit) => visitor.visit_unit(),
            Value::Empty(_, Empty::None) => visitor.visit_none(),
            Value::Char(_, found) => visitor.visit_char(*found),
            Value::Dict(..) => self.deserialize_map(visitor),
            Value::Array(..) => self.deserialize_seq(visitor),
            _ => self.scalar(visitor),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Dict(_, members) => visitor.visit_map(Members::of(members)),
            _ => Err(self.wrong(&visitor)),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_map(visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(_, elements) => visitor.visit_seq(Elements { all: elements, next: 0 }),
            _ => Err(self.wrong(&visitor)),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Empty(..) => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            Value::String(_, name) => visitor.visit_enum(name.as_str().into_deserializer()),
            Value::Dict(_, members) => visitor.visit_enum(MapAccessDeserializer::new(Members::of(members))),
            _ => Err(self.wrong(&visitor)),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    scalars! {
        deserialize_bool deserialize_str deserialize_string deserialize_u8 deserialize_u16 deserialize_u32
        deserialize_u64 deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_f32 deserialize_f64
    }

    serde::forward_to_deserialize_any! {
        char bytes byte_buf unit unit_struct tuple_struct identifier ignored_any
    }
}

struct Members<'a> {
    left: btree_map::Iter<'a, String, Value>,
    last: Option<(&'a str, &'a Value)>,
}

impl<'a> Members<'a> {
    fn of(members: &'a Dict) -> Self {
        Self { left: members.iter(), last: None }
    }
}

impl<'de> MapAccess<'de> for Members<'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        self.last = self.left.next().map(|(name, value)| (name.as_str(), value));
        let Some((name, _)) = self.last else { return Ok(None) };
        seed.deserialize(name.into_deserializer()).map(Some).map_err(|error: Error| error.within(name))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let Some((name, value)) = self.last else { return Err(de::Error::custom("a value without a name")) };
        seed.deserialize(Reader(value)).map_err(|error| error.within(name))
    }
}

struct Elements<'a> {
    all: &'a [Value],
    next: usize,
}

impl<'de> SeqAccess<'de> for Elements<'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some(element) = self.all.get(self.next) else { return Ok(None) };
        let place = self.next;
        self.next += 1;
        seed.deserialize(Reader(element)).map(Some).map_err(|error| error.within(&place.to_string()))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.all.len() - self.next)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use figment::Figment;
    use figment::providers::Serialized;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Choice {
        Plain,
        Other(u8),
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(i64),
        Texts(Vec<String>),
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        small: u8,
        signed: i32,
        part: f64,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        inner: Inner,
        list: Vec<Inner>,
        by_name: BTreeMap<String, bool>,
        choice: Choice,
        either: Either,
        maybe: Option<String>,
    }

    const GOOD: &str = "choice = 'plain'\neither = ['a']\nlist = [{ small = 1, signed = -1, part = 2 }]\n\
                        inner = { small = 255, signed = 3, part = 0.5 }\nby_name = { a = true }\n";

    fn values(text: &str) -> Value {
        Value::serialize(toml::from_str::<toml::Table>(text).unwrap()).unwrap()
    }

    /// What this says, and what figment's own reader says, of a good configuration with one thing else.
    fn both(from: &str, to: &str) -> (String, String) {
        let text = GOOD.replace(from, to);
        assert_ne!(text, GOOD, "{from} is in it");
        let values = values(&text);
        let mistake = from_values::<Outer>(&values).unwrap_err();
        let theirs = Figment::from(Serialized::defaults(&values)).extract::<Outer>().unwrap_err();
        (format!("{:?} {}", mistake.path, mistake.kind), format!("{:?} {}", theirs.path, theirs.kind))
    }

    #[test]
    fn what_is_good_is_read_as_figment_reads_it() {
        for text in [
            GOOD.to_owned(),
            GOOD.replace("'plain'", "{ other = 3 }").replace("['a']", "-4"),
            format!("maybe = 'there'\n{GOOD}"),
        ] {
            let values = values(&text);
            let read: Outer = from_values(&values).unwrap();
            assert_eq!(read, Figment::from(Serialized::defaults(&values)).extract::<Outer>().unwrap());
        }
    }

    #[test]
    fn a_mistake_has_the_place_and_the_text_that_figment_gives_it() {
        for (from, to) in [
            ("small = 255", "small = 256"),
            ("small = 255", "small = -1"),
            ("small = 255", "small = 'many'"),
            ("small = 255", "small = 0.5"),
            ("small = 255", "small = []"),
            ("small = 255", "small = {}"),
            ("small = 255", "little = 255"),
            ("small = 255,", ""),
            ("part = 2", "part = 'x'"),
            ("signed = -1", "signed = 3000000000"),
            ("a = true", "a = 'yes'"),
            ("'plain'", "'odd'"),
            ("'plain'", "true"),
            ("'plain'", "{ other = 300 }"),
            ("'plain'", "{ strange = 1 }"),
            ("either = ['a']", "either = { a = 1 }"),
            ("inner = { small = 255, signed = 3, part = 0.5 }", "inner = 3"),
            ("by_name = { a = true }", "by_name = [1]"),
            ("list = [{", "maybe = 3\nlist = [{"),
        ] {
            let (ours, theirs) = both(from, to);
            assert_eq!(ours, theirs, "{to}");
        }
    }
}
