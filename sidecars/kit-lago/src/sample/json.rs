//! A writer for compact JSON objects that keeps the order of their fields, as Ruby hashes do.

/// An object under construction.
pub(super) struct Object {
    text: String,
}

impl Object {
    pub(super) fn new() -> Self {
        Self { text: "{".to_owned() }
    }

    /// A string.
    pub(super) fn text(&mut self, key: &str, value: &str) -> &mut Self {
        self.raw(key, &string(value))
    }

    /// A string, or null.
    pub(super) fn maybe(&mut self, key: &str, value: Option<&str>) -> &mut Self {
        match value {
            Some(value) => self.text(key, value),
            None => self.raw(key, "null"),
        }
    }

    pub(super) fn null(&mut self, key: &str) -> &mut Self {
        self.raw(key, "null")
    }

    pub(super) fn int(&mut self, key: &str, value: i64) -> &mut Self {
        self.raw(key, &value.to_string())
    }

    pub(super) fn flag(&mut self, key: &str, value: bool) -> &mut Self {
        self.raw(key, if value { "true" } else { "false" })
    }

    /// An array of values that are JSON already.
    pub(super) fn list(&mut self, key: &str, values: &[String]) -> &mut Self {
        self.raw(key, &format!("[{}]", values.join(",")))
    }

    /// A value that is JSON already.
    pub(super) fn raw(&mut self, key: &str, value: &str) -> &mut Self {
        if self.text.len() > 1 {
            self.text.push(',');
        }
        self.text.push_str(&string(key));
        self.text.push(':');
        self.text.push_str(value);
        self
    }

    pub(super) fn finish(&mut self) -> String {
        let mut text = std::mem::take(&mut self.text);
        text.push('}');
        text
    }
}

/// A JSON string.
pub(super) fn string(value: &str) -> String {
    serde_json::to_string(value).expect("a string always serialises")
}
