//! What a gateway's answer means: a decision over status, `Retry-After` and body, without I/O.

use std::time::Duration;

use http::{HeaderValue, StatusCode};
use kit::clock::Timestamp;
use kit::retry::parse_retry_after;

use crate::conditions::first_unmet;
use crate::config::{GatewaySection, Otherwise};
use crate::outcome::{Failure, Outcome, Verdict};

/// Bytes of a response that the delivery log keeps.
const LOGGED_BYTES: usize = 256;

/// Bytes of a response that are looked at.
pub(crate) const READ_BYTES: usize = 64 * 1024;

/// Judges an answer, of a longer one its first 64 KiB and a byte. `retry_after` is the header of that name, `now` the time it came.
pub fn judge(
    section: &GatewaySection,
    status: StatusCode,
    retry_after: Option<&HeaderValue>,
    body: &[u8],
    now: Timestamp,
) -> Outcome {
    let cap = Duration::from_secs_f64(section.retry.retry_after_max_seconds);
    let (verdict, error) = verdict(section, status, body);
    Outcome {
        verdict,
        status: Some(status.as_u16()),
        error,
        response: (verdict != Verdict::Delivered && !body.is_empty()).then(|| first_bytes(body)),
        retry_after: retry_after.and_then(|value| parse_retry_after(value.as_bytes(), now, cap)),
    }
}

fn verdict(section: &GatewaySection, status: StatusCode, body: &[u8]) -> (Verdict, Option<String>) {
    if status.is_success() {
        let unmet = match &*section.success.conditions {
            // Cut off it would not be JSON, and the gateway would be blamed for that.
            [_, ..] if body.len() > READ_BYTES => {
                Some(format!("the answer has more than {READ_BYTES} bytes, and its conditions cannot be looked at"))
            }
            conditions => first_unmet(conditions, body),
        };
        return match unmet {
            None => (Verdict::Delivered, None),
            Some(unmet) => {
                let failure = match section.success.otherwise {
                    Otherwise::Retry => Failure::Condition,
                    Otherwise::Park => Failure::ConditionRefused,
                };
                (Verdict::Failed(failure), Some(format!("answered {} but {unmet}", status.as_u16())))
            }
        };
    }
    let failure = match status.as_u16() {
        code if section.retry.statuses.contains(&code) => Failure::Busy,
        502..=504 => Failure::Unavailable,
        code if code >= 500 => Failure::Busy,
        300..=399 => Failure::Redirected,
        _ => Failure::Refused,
    };
    let text = if failure == Failure::Redirected {
        format!("answered {} and redirects are not followed: set the final URL", status.as_u16())
    } else {
        format!("answered {status}")
    };
    (Verdict::Failed(failure), Some(text))
}

/// The beginning of a response for the log: readable, without control characters.
fn first_bytes(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(LOGGED_BYTES)]);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn statuses_are_judged_as_documented() {
        let mut section = GatewaySection::default();
        section.retry.statuses.push(401);
        let check = |code: u16, expected: Verdict| {
            assert_eq!(verdict(&section, StatusCode::from_u16(code).unwrap(), b"").0, expected, "{code}");
        };
        for code in [200, 201, 202, 204, 299] {
            check(code, Verdict::Delivered);
        }
        for code in [408, 425, 429, 500, 501, 505, 599, 401] {
            check(code, Verdict::Failed(Failure::Busy));
        }
        for code in [502, 503, 504] {
            check(code, Verdict::Failed(Failure::Unavailable));
        }
        for code in [301, 302, 303, 307, 308, 304] {
            check(code, Verdict::Failed(Failure::Redirected));
        }
        for code in [400, 403, 404, 409, 410, 413, 422, 451] {
            check(code, Verdict::Failed(Failure::Refused));
        }
    }
}
