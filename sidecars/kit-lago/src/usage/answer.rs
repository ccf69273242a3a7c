//! Lago's answers about usage events: written for producers, read when Lago gives them.

use std::collections::BTreeMap;

use kit::clock::Timestamp;
use serde::de::IgnoredAny;
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

/// The code of an event that is there already.
pub const ALREADY_EXISTS: &str = "value_already_exist";
/// The field that it is said of.
pub const TRANSACTION_ID: &str = "transaction_id";

/// An event in an answer.
#[derive(Clone, Debug, Serialize)]
pub struct EventAnswer<'a> {
    /// Lago's id of the event; ours, where we answer in its place.
    pub lago_id: &'a str,
    /// The producer's id.
    pub transaction_id: &'a str,
    /// Always null: Lago finds the customer later.
    pub lago_customer_id: Option<&'a str>,
    /// Code of the billable metric.
    pub code: &'a str,
    /// When it happened.
    pub timestamp: Timestamp,
    /// Null where there is none.
    pub precise_total_amount_cents: Option<&'a str>,
    /// As sent; an empty object where there are none.
    #[serde(serialize_with = "or_empty")]
    pub properties: Option<&'a RawValue>,
    /// Always null.
    pub lago_subscription_id: Option<&'a str>,
    /// Who is billed.
    pub external_subscription_id: Option<&'a str>,
    /// When it was received; left out where that is not known yet ([`EventAnswer::finish`]).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
}

impl EventAnswer<'_> {
    /// Adds to `out` the JSON of an answer that was written without its `created_at`, with it.
    pub fn finish(json: &str, created_at: Timestamp, out: &mut String) {
        out.push_str(json.strip_suffix('}').unwrap_or(json));
        out.push_str(",\"created_at\":\"");
        out.push_str(&created_at.to_string());
        out.push_str("\"}");
    }
}

/// Source: getlago/lago-api `app/services/events/create_service.rb`: `params[:properties] || {}`.
fn or_empty<S: Serializer>(properties: &Option<&RawValue>, serializer: S) -> Result<S::Ok, S::Error> {
    match properties {
        Some(properties) => properties.serialize(serializer),
        None => serializer.serialize_map(Some(0))?.end(),
    }
}

/// The body of an answer that refuses.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ErrorAnswer<D> {
    status: u16,
    error: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_details: Option<D>,
}

impl<D> ErrorAnswer<D> {
    /// 422 with what is wrong.
    pub fn invalid(details: D) -> Self {
        let error = "Unprocessable Entity";
        Self { status: 422, error, code: Some("validation_errors"), error_details: Some(details) }
    }
}

impl ErrorAnswer<()> {
    /// A refusal without details.
    pub fn plain(status: u16, error: &'static str, code: Option<&'static str>) -> Self {
        Self { status, error, code, error_details: None }
    }
}

/// What Lago says is wrong with the events of a batch it has refused: codes by field, by place in the request.
pub type BatchErrors = BTreeMap<usize, BTreeMap<String, Vec<String>>>;

/// Reads a 422. `None` where it is not about certain events of the batch: then nothing is known about any of them.
///
/// Source: getlago/lago-api `app/services/events/create_batch_service.rb`: the keys are the places in the request as
/// texts, only those that failed, and nothing was stored (but see v1.16.0 to v1.38 and twice the same id in a batch).
pub fn batch_errors(body: &[u8], batch: usize) -> Option<BatchErrors> {
    #[derive(Deserialize)]
    struct Refused {
        code: String,
        error_details: BTreeMap<String, BTreeMap<String, Vec<String>>>,
    }
    let refused: Refused = serde_json::from_slice(body).ok()?;
    if refused.code != "validation_errors" || refused.error_details.is_empty() {
        return None;
    }
    let places = refused.error_details.into_iter();
    places
        .map(|(place, fields)| place.parse().ok().filter(|place| *place < batch).map(|place| (place, fields)))
        .collect()
}

/// Whether a 200 holds as many events as were sent: a proxy or a login page answers 200 too.
pub fn holds_events(body: &[u8], count: usize) -> bool {
    #[derive(Deserialize)]
    struct Taken {
        events: Vec<IgnoredAny>,
    }
    serde_json::from_slice::<Taken>(body).is_ok_and(|taken| taken.events.len() == count)
}

/// Whether a refusal is Lago's, in its shape: a proxy, or whatever else listens at the address, has words of its own.
///
/// Source: getlago/lago-api `app/controllers/concerns/api_errors.rb`; what Rails itself refuses has the same shape.
pub fn is_refusal(body: &[u8], status: u16) -> bool {
    #[derive(Deserialize)]
    struct Refusal {
        status: u16,
        error: String,
    }
    serde_json::from_slice::<Refusal>(body).is_ok_and(|refusal| refusal.status == status && !refusal.error.is_empty())
}

/// Whether all that is wrong with an event is that it is there already.
pub fn is_known(fields: &BTreeMap<String, Vec<String>>) -> bool {
    let is_known = |codes: &Vec<String>| !codes.is_empty() && codes.iter().all(|code| code == ALREADY_EXISTS);
    fields.len() == 1 && fields.get(TRANSACTION_ID).is_some_and(is_known)
}

/// The codes as one text: `code: value_is_mandatory`.
pub fn in_words(fields: &BTreeMap<String, Vec<String>>) -> String {
    printable(
        &fields.iter().map(|(field, codes)| format!("{field}: {}", codes.join(", "))).collect::<Vec<_>>().join("; "),
    )
}

/// The beginning of a text without control characters.
pub(super) fn printable(text: &str) -> String {
    text.chars().take(500).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_refusal_of_lagos_is_told_from_one_of_a_proxy() {
        for (body, status, expected) in [
            (r#"{"status":400,"error":"BadRequest: param is missing or the value is empty: events"}"#, 400, true),
            (r#"{"status":405,"error":"Method Not Allowed","code":"x"}"#, 405, true),
            (r#"{"status":400,"error":"Bad Request"}"#, 421, false),
            (r#"{"message":"no Route matched with those values"}"#, 404, false),
            ("<html><body>400 plain HTTP request was sent to HTTPS port</body></html>", 400, false),
            ("", 400, false),
        ] {
            assert_eq!(is_refusal(body.as_bytes(), status), expected, "{status} {body}");
        }
    }

    #[test]
    fn a_refused_batch_says_which_events_are_wrong() {
        let body = br#"{"status":422,"error":"Unprocessable Entity","code":"validation_errors",
            "error_details":{"1":{"transaction_id":["value_already_exist"]},"12":{"code":["value_is_mandatory"]}}}"#;

        let errors = batch_errors(body, 13).unwrap();

        assert_eq!(errors.keys().copied().collect::<Vec<_>>(), [1, 12]);
        assert!(is_known(&errors[&1]) && !is_known(&errors[&12]));
        assert_eq!(in_words(&errors[&12]), "code: value_is_mandatory");
    }

    #[test]
    fn an_answer_about_nothing_certain_is_not_taken_for_one() {
        for body in [
            "",
            "null",
            "{}",
            r#"{"code":"validation_errors","error_details":{}}"#,
            r#"{"code":"validation_errors","error_details":{"events":["too_many_events"]}}"#,
            r#"{"code":"validation_errors","error_details":{"5":{"code":["x"]}}}"#,
            r#"{"code":"validation_errors","error_details":{"-1":{"code":["x"]}}}"#,
            r#"{"code":"validation_errors","error_details":{"transaction_id":["value_already_exist"]}}"#,
            r#"{"code":"provider_error","error_details":{"0":{"code":["x"]}}}"#,
        ] {
            assert_eq!(batch_errors(body.as_bytes(), 5), None, "{body}");
        }
    }

    #[test]
    fn only_an_event_with_no_other_fault_is_known() {
        let fields = |json: &str| serde_json::from_str(json).unwrap();
        assert!(is_known(&fields(r#"{"transaction_id":["value_already_exist"]}"#)));
        for other in [
            r#"{"transaction_id":[]}"#,
            r#"{"transaction_id":["value_already_exist","value_is_mandatory"]}"#,
            r#"{"transaction_id":["value_already_exist"],"code":["value_is_mandatory"]}"#,
            r#"{"code":["value_already_exist"]}"#,
            "{}",
        ] {
            assert!(!is_known(&fields(other)), "{other}");
        }
    }

    #[test]
    fn refusals_are_written_as_lago_writes_them() {
        let text = |answer: &ErrorAnswer<()>| serde_json::to_string(answer).unwrap();
        assert_eq!(text(&ErrorAnswer::plain(401, "Unauthorized", None)), r#"{"status":401,"error":"Unauthorized"}"#);
        assert_eq!(
            text(&ErrorAnswer::plain(404, "Not Found", Some("event_not_found"))),
            r#"{"status":404,"error":"Not Found","code":"event_not_found"}"#
        );
        let details = BTreeMap::from([("code", ["value_is_mandatory"])]);
        assert_eq!(
            serde_json::to_string(&ErrorAnswer::invalid(details)).unwrap(),
            concat!(
                r#"{"status":422,"error":"Unprocessable Entity","code":"validation_errors","#,
                r#""error_details":{"code":["value_is_mandatory"]}}"#
            )
        );
    }
}
