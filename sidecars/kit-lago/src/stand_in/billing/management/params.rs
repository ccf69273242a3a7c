//! The parameters of a request, as Rails lets them through, and what is wrong with them.

use serde_json::{Value, json};

use super::{Answer, Object, refused};
use crate::stand_in::billing::answer::{VALUE_ALREADY_EXIST, VALUE_IS_MANDATORY};

pub(super) const VALUE_IS_INVALID: &str = "value_is_invalid";

/// What stands below the root key.
#[derive(Debug)]
pub(super) struct Params(pub(super) Object);

impl Params {
    pub(super) fn of(body: &[u8], root: &str) -> Result<Self, Box<Answer>> {
        let parsed = if body.is_empty() { Ok(json!({})) } else { serde_json::from_slice(body) };
        let Ok(Value::Object(mut parsed)) = parsed else { return refused(Answer::bare(400)) };
        match parsed.remove(root) {
            // An empty one counts as missing.
            Some(Value::Object(params)) if !params.is_empty() => Ok(Self(params)),
            _ => refused(Answer::missing_root_key(root)),
        }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// `null` counts as absent.
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(Value::as_str)
    }

    pub(super) fn bool(&self, name: &str) -> Option<bool> {
        self.get(name).and_then(Value::as_bool)
    }

    pub(super) fn list(&self, name: &str) -> Option<&Vec<Value>> {
        self.get(name).and_then(Value::as_array)
    }

    /// The texts of a list.
    pub(super) fn texts(&self, name: &str) -> Option<Vec<String>> {
        Some(self.list(name)?.iter().filter_map(Value::as_str).map(str::to_owned).collect())
    }

    /// Takes those of these that are there over into an object.
    pub(super) fn copy(&self, names: &[&str], into: &mut Object) {
        for name in names.iter().filter(|name| self.has(name)) {
            into.insert((*name).to_owned(), self.0[*name].clone());
        }
    }

    /// The same, and `null` for those that are not there.
    pub(super) fn copy_all(&self, names: &[&str], into: &mut Object) {
        for name in names {
            into.insert((*name).to_owned(), self.0.get(*name).cloned().unwrap_or(Value::Null));
        }
    }
}

/// What is wrong, by field.
#[derive(Debug, Default)]
pub(super) struct Wrong(Object);

impl Wrong {
    pub(super) fn add(&mut self, field: &str, code: &str) {
        self.0.entry(field.to_owned()).or_insert_with(|| json!([code]));
    }

    /// Fields that must not be blank.
    pub(super) fn mandatory(&mut self, object: &Object, names: &[&str]) {
        for name in names {
            let value = object.get(*name).unwrap_or(&Value::Null);
            if value.is_null() || value.as_str().is_some_and(|text| text.trim().is_empty()) {
                self.add(name, VALUE_IS_MANDATORY);
            }
        }
    }

    pub(super) fn one_of(&mut self, object: &Object, name: &str, known: &[&str]) {
        let value = object.get(name).and_then(Value::as_str);
        if value.is_none_or(|value| !known.contains(&value)) {
            self.add(name, VALUE_IS_INVALID);
        }
    }

    pub(super) fn currency(&mut self, object: &Object, name: &str) {
        let is_currency = |text: &str| text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_uppercase());
        if !object.get(name).and_then(Value::as_str).is_some_and(is_currency) {
            self.add(name, VALUE_IS_INVALID);
        }
    }

    /// Cents that must be at least `least`.
    pub(super) fn cents(&mut self, object: &Object, name: &str, least: u64) {
        if object.get(name).and_then(Value::as_u64).is_none_or(|cents| cents < least) {
            self.add(name, "value_is_out_of_range");
        }
    }

    pub(super) fn taken(&mut self, field: &str, is_taken: bool) {
        if is_taken {
            self.add(field, VALUE_ALREADY_EXIST);
        }
    }

    pub(super) fn done(self) -> Result<(), Box<Answer>> {
        if self.0.is_empty() { Ok(()) } else { refused(Answer::invalid(Value::Object(self.0))) }
    }
}
