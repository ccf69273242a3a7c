//! A gateway's answer judged: three digits of status, a line of `Retry-After`, the body.
//!
//! Promises: only a 2xx that meets every condition is a delivery; nobody makes us wait longer than
//! the cap; what is kept for the log is short and without control characters.

use std::sync::LazyLock;
use std::time::Duration;

use http::{HeaderValue, StatusCode};
use kit::clock::Timestamp;
use kit_delivery::config::{GatewaySection, Otherwise, SuccessSection};
use kit_delivery::{Failure, Verdict, answer};
use serde_json::Value;

use crate::parts::first_line;

static PLAIN: LazyLock<GatewaySection> = LazyLock::new(GatewaySection::default);
static CONDITIONS: LazyLock<GatewaySection> = LazyLock::new(|| {
    let conditions = [
        r#"{"pointer": "/status", "in": ["processed", "started", 1]}"#,
        r#"{"pointer": "/error", "exists": false}"#,
        r#"{"pointer": "/results/0/ok", "equals": true}"#,
    ];
    let conditions = conditions.iter().map(|text| serde_json::from_str(text).expect("a condition"));
    let success = SuccessSection { conditions: conditions.collect(), otherwise: Otherwise::Park };
    GatewaySection { success, ..GatewaySection::default() }
});

/// Judges the answer with and without conditions.
///
/// # Panics
/// The judgement is wrong.
pub fn target(data: &[u8]) {
    let (status, rest) = data.split_at(data.len().min(3));
    let Ok(status) = StatusCode::from_bytes(status) else { return };
    let (retry_after, body) = first_line(rest);
    let retry_after = HeaderValue::from_bytes(retry_after).ok();
    for section in [&*PLAIN, &*CONDITIONS] {
        let outcome =
            answer::judge(section, status, retry_after.as_ref(), body, Timestamp::from_millis(1_795_233_600_000));

        let met = section.success.conditions.is_empty() || meets(body);
        assert_eq!(outcome.verdict == Verdict::Delivered, status.is_success() && met, "{outcome:?}");
        assert_eq!(outcome.status, Some(status.as_u16()));
        assert_eq!(outcome.error.is_none(), outcome.verdict == Verdict::Delivered);
        assert!(outcome.retry_after.is_none_or(|wait| wait <= Duration::from_secs(3_600)));
        for text in [&outcome.error, &outcome.response].into_iter().flatten() {
            assert!(text.len() <= 1_024 && !text.contains(char::is_control), "{text:?}");
        }
        if status.is_redirection() {
            assert_eq!(outcome.verdict, Verdict::Failed(Failure::Redirected));
        }
    }
}

/// The conditions above, in other words.
fn meets(body: &[u8]) -> bool {
    let Ok(body) = serde_json::from_slice::<Value>(body) else { return false };
    let status = ["processed", "started"].iter().any(|word| body["status"] == *word) || body["status"] == 1;
    // A JSON Pointer's 0 may be a name.
    let results = &body["results"];
    let first = results.get(0).or_else(|| results.get("0"));
    status && body.get("error").is_none() && first.is_some_and(|first| first["ok"] == true)
}
