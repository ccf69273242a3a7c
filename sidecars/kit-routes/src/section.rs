//! Reading a sink's section: its `type` says which settings it has. By hand, because what serde derives for such a
//! choice forgets where a mistake is, and reads no number from the environment.

use figment::Figment;
use figment::error::Kind;
use figment::providers::Serialized;
use figment::value::{Dict, Num, Value};
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize};

use crate::config::SinkSection;

impl<'de> Deserialize<'de> for SinkSection {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut members = Dict::deserialize(deserializer)?;
        let kind = members.remove("type");
        match kind.as_ref().and_then(Value::as_str) {
            Some("http") => read(members).map(|section| Self::Http(Box::new(section))).map_err(D::Error::custom),
            Some("amqp") => read(members).map(|section| Self::Amqp(Box::new(section))).map_err(D::Error::custom),
            _ => Err(D::Error::custom("type must be http or amqp")),
        }
    }
}

/// Reads a section; every mistake in it, with its place, but never with its value.
fn read<T: Serialize + DeserializeOwned + Default>(members: Dict) -> Result<T, String> {
    let defaults =
        Figment::from(Serialized::defaults(T::default())).find_value("").unwrap_or_else(|_| Dict::new().into());
    let mut members = Value::from(members);
    adapt(&mut members, &defaults);
    let mut mistakes = Vec::new();
    // Every round takes one value out.
    while mistakes.len() < 100 {
        if !matches!(members, Value::Dict(..)) {
            break;
        }
        let error = match kit::config::from_values::<T>(&members) {
            Ok(section) if mistakes.is_empty() => return Ok(section),
            Ok(_) => break,
            Err(error) => error,
        };
        let mut path = error.path.clone();
        let wrong = match &error.kind {
            Kind::UnknownField(name, _) => {
                if path.last() != Some(name) {
                    path.push(name.clone());
                }
                "is not a setting".to_owned()
            }
            Kind::InvalidType(_, expected) | Kind::InvalidValue(_, expected) => format!("must be {expected}"),
            Kind::UnknownVariant(_, expected) => format!("must be one of {}", expected.join(", ")),
            kind => kind.to_string(),
        };
        mistakes.push(format!("{} {wrong}", path.join(".")));
        if !take_out(&mut members, &path) {
            break;
        }
    }
    Err(mistakes.join("; "))
}

/// Makes numbers, truth values and lists of texts where the default is one: the environment knows only texts.
fn adapt(value: &mut Value, default: &Value) {
    let adapted = match (&mut *value, default) {
        (Value::Dict(_, members), Value::Dict(_, defaults)) => {
            for (name, member) in members {
                if let Some(default) = defaults.get(name) {
                    adapt(member, default);
                }
            }
            return;
        }
        (Value::String(_, text), Value::Num(_, Num::F32(_) | Num::F64(_))) => text.parse::<f64>().ok().map(Value::from),
        (Value::String(_, text), Value::Num(..)) => text.parse::<u64>().ok().map(Value::from),
        (Value::String(_, text), Value::Bool(..)) => text.parse::<bool>().ok().map(Value::from),
        (Value::String(_, text), Value::Array(_, likes)) => Some(kit::config::list(text, likes.first())),
        _ => None,
    };
    if let Some(adapted) = adapted {
        *value = adapted;
    }
}

/// Takes out the value at a path; what holds it, where it is in a list.
fn take_out(value: &mut Value, path: &[String]) -> bool {
    let (Value::Dict(_, members), Some((first, rest))) = (value, path.split_first()) else { return false };
    match members.get_mut(first) {
        Some(inner @ Value::Dict(..)) if !rest.is_empty() => take_out(inner, rest) || members.remove(first).is_some(),
        Some(_) => members.remove(first).is_some(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn section(text: &str) -> Result<SinkSection, String> {
        Figment::from(Serialized::defaults(toml::from_str::<toml::Table>(text).unwrap()))
            .extract()
            .map_err(|error: figment::Error| error.to_string())
    }

    #[test]
    fn numbers_may_be_texts_as_in_the_environment() {
        let text = "type = \"http\"\nurl = \"http://a\"\nconcurrency = \"3\"\nretry.retry_after_max_seconds = \"2.5\"\n\
                    retry.schedule_seconds = \"0.5, 2\"\n";
        let SinkSection::Http(section) = section(text).unwrap() else { unreachable!("it is by HTTP") };
        assert_eq!((section.concurrency, section.url.as_deref()), (3, Some("http://a")));
        assert!((section.retry.retry_after_max_seconds - 2.5).abs() < f64::EPSILON);
        assert_eq!(section.retry.schedule_seconds, [0.5, 2.0]);
    }

    #[test]
    fn lists_may_be_texts_as_in_the_environment() {
        let text = "type = \"http\"\nurl = \"http://a\"\nretry.schedule_seconds = \"[0.5, 2]\"\n\
                    success.conditions = '[{ pointer = \"/status\", equals = \"ok\" }]'\n";
        let SinkSection::Http(section) = section(text).unwrap() else { unreachable!("it is by HTTP") };
        assert_eq!(section.retry.schedule_seconds, [0.5, 2.0]);
        assert_eq!(section.success.conditions.len(), 1);
    }

    #[test]
    fn every_mistake_has_its_place_and_no_value() {
        let text = "type = \"http\"\nurll = \"x\"\nconcurrency = \"many\"\nformat = \"xml\"\ntimeout.read_seconds = \"s3cret\"\n";
        let told = section(text).unwrap_err();
        for expected in [
            "urll is not a setting",
            "concurrency must be",
            "format must be one of cloudevents-structured",
            "timeout.read_seconds must be",
        ] {
            assert!(told.contains(expected), "{expected}: {told}");
        }
        assert!(!told.contains("s3cret") && !told.contains("many"), "{told}");
        assert!(section("url = \"http://a\"").unwrap_err().contains("type must be http or amqp"));
    }

    #[test]
    fn a_broker_has_the_settings_of_amqp() {
        let text = "type = \"amqp\"\nurl = \"amqp://broker\"\nwindow = \"64\"\ndeclare = \"false\"\n\
                    queues.audit = \"a.*, b.#\"\n";
        let SinkSection::Amqp(read) = section(text).unwrap() else { unreachable!("it is a broker") };
        assert_eq!((read.window, read.declare), (64, false));
        assert_eq!(read.queues["audit"], ["a.*", "b.#"]);
        assert!(section("type = \"amqp\"\npath = \"/x\"\n").unwrap_err().contains("path is not a setting"));
    }

    #[test]
    fn what_is_written_is_read_again() {
        let written = section("type = \"http\"\nurl = \"http://a\"\nformat = \"raw\"\n").unwrap();
        let table = toml::Table::try_from(&written).unwrap();
        assert_eq!(table["type"].as_str(), Some("http"));
        assert_eq!(section(&table.to_string()).unwrap(), written);
    }
}
