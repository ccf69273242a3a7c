//! Success judged by the body: a gateway may answer 200 to an event that it ignored.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One condition on a JSON response body. Exactly one of `equals`, `in` and `exists` is set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// JSON Pointer (RFC 6901) to the value, for example `/status`.
    pub pointer: String,
    /// The value must be this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub equals: Option<Value>,
    /// The value must be one of these.
    #[serde(default, rename = "in", skip_serializing_if = "Option::is_none")]
    pub one_of: Option<Vec<Value>>,
    /// The value must be there (`true`) or must not be there (`false`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exists: Option<bool>,
}

impl Condition {
    /// What is wrong with the condition itself, if anything is.
    pub(crate) fn mistake(&self) -> Option<&'static str> {
        let kinds =
            [self.equals.is_some(), self.one_of.is_some(), self.exists.is_some()].into_iter().filter(|set| *set);
        if !(self.pointer.is_empty() || self.pointer.starts_with('/')) {
            Some("pointer must be a JSON Pointer such as /status")
        } else if kinds.count() != 1 {
            Some("exactly one of equals, in and exists must be set")
        } else {
            None
        }
    }

    fn holds(&self, body: Option<&Value>) -> bool {
        let found = body.and_then(|body| body.pointer(&self.pointer));
        match (&self.equals, &self.one_of, self.exists) {
            (Some(wanted), _, _) => found == Some(wanted),
            (_, Some(wanted), _) => found.is_some_and(|found| wanted.contains(found)),
            (_, _, Some(wanted)) => found.is_some() == wanted,
            (None, None, None) => false,
        }
    }
}

/// The first condition that the body does not meet, as a sentence. A body that is not JSON has no
/// values.
pub(crate) fn first_unmet(conditions: &[Condition], body: &[u8]) -> Option<String> {
    if conditions.is_empty() {
        return None;
    }
    let body: Option<Value> = serde_json::from_slice(body).ok();
    conditions.iter().find(|condition| !condition.holds(body.as_ref())).map(|condition| {
        let wanted = match (&condition.equals, &condition.one_of, condition.exists) {
            (Some(value), _, _) => format!("to be {value}"),
            (_, Some(values), _) => format!("to be one of {}", Value::Array(values.clone())),
            (_, _, Some(true)) => "to exist".to_owned(),
            _ => "not to exist".to_owned(),
        };
        let found = match &body {
            None => "the body is not JSON".to_owned(),
            Some(body) => match body.pointer(&condition.pointer) {
                None => "it is not there".to_owned(),
                Some(value) => format!("it is {}", value.to_string().chars().take(80).collect::<String>()),
            },
        };
        // JSON escapes only some of them, and this text goes to logs and terminals.
        format!("expected {} {wanted}, but {found}", condition.pointer).replace(char::is_control, " ")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn equals(pointer: &str, value: Value) -> Condition {
        Condition { pointer: pointer.to_owned(), equals: Some(value), ..Condition::default() }
    }

    #[test]
    fn the_reference_gateway_ignoring_an_event_is_not_success() {
        let conditions = [
            equals("/status", json!("processed")),
            Condition {
                pointer: "/executions/0/result/status".to_owned(),
                one_of: Some(vec![json!("started"), json!("simulated")]),
                ..Condition::default()
            },
        ];
        let check = |body: &str, met: bool| {
            assert_eq!(first_unmet(&conditions, body.as_bytes()).is_none(), met, "{body}");
        };

        check(r#"{"status":"processed","matches":1,"executions":[{"result":{"status":"started"}}]}"#, true);
        check(r#"{"status":"ignored"}"#, false);
        check(r#"{"status":"processed","matches":1,"executions":[]}"#, false);
        check(r#"{"status":"processed","executions":[{"result":{"status":"error"}}]}"#, false);
        check("not json", false);
        check("", false);
    }

    #[test]
    fn what_is_told_about_a_value_holds_no_control_characters() {
        let told = first_unmet(&[equals("/status", json!("ok"))], "{\"status\":\"\u{9b}\u{7f}\"}".as_bytes());
        assert_eq!(told.as_deref(), Some("expected /status to be \"ok\", but it is \"  \""));
    }

    #[test]
    fn absence_can_be_a_condition() {
        let condition = Condition { pointer: "/error".to_owned(), exists: Some(false), ..Condition::default() };
        assert!(first_unmet(std::slice::from_ref(&condition), b"{}").is_none());
        assert!(first_unmet(&[condition], br#"{"error":null}"#).is_some());
    }

    #[test]
    fn a_condition_says_one_thing() {
        assert!(Condition { pointer: "status".into(), exists: Some(true), ..Condition::default() }.mistake().is_some());
        assert!(Condition { pointer: "/a".into(), ..Condition::default() }.mistake().is_some());
        assert!(equals("/a", json!(1)).mistake().is_none());
    }
}
