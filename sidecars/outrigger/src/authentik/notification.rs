//! Whether a test notification arrives: Authentik's server sends one and says how it was answered, and the daemon's metrics
//! say whether it was the daemon.

use std::collections::BTreeMap;
use std::time::Duration;

use kit_workbench::metrics::Metrics;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::finding::{
    READER_REFUSED, TEST_FAILED, TEST_LOST, TEST_REFUSED, TEST_UNAVAILABLE, TEST_UNMAPPED, TEST_UNPROVEN,
    TEST_UNREADABLE,
};
use super::installed::Api;
use crate::admin::Admin;
use crate::finding::{Finding, Known};

const CHECK: &str = "notification";
/// Between two looks at the metrics.
const BETWEEN_LOOKS: Duration = Duration::from_millis(200);
/// Why webhooks are refused, as `authentik_webhooks_refused_total` has it, and what that means here. Any other reason is
/// one of the request itself.
const REASONS: [(&str, &Known); 6] = [
    ("mismatch", &TEST_REFUSED),
    ("malformed_proof", &TEST_REFUSED),
    ("missing_proof", &TEST_UNPROVEN),
    ("not_an_envelope", &TEST_UNPROVEN),
    ("journal", &TEST_UNAVAILABLE),
    ("stopping", &TEST_UNAVAILABLE),
];

/// What the daemon has counted of webhooks.
#[derive(Clone, Debug, Default, PartialEq)]
struct Seen {
    taken: f64,
    unmapped: f64,
    unreadable: f64,
    refused: BTreeMap<String, f64>,
}

/// Why the daemon's counters cannot be read.
enum Unseen {
    Away,
    Another,
}

impl Seen {
    /// What the daemon has counted since, other than that it took a webhook.
    fn trouble(&self, after: &Self) -> Option<Finding> {
        let refused =
            after.refused.iter().find(|(reason, count)| **count > self.refused.get(*reason).copied().unwrap_or(0.0));
        if let Some((reason, _)) = refused {
            let known = REASONS.iter().find(|(name, _)| name == reason).map_or(&TEST_FAILED, |(_, known)| *known);
            return Some(Finding::of(known, format!("the event forwarder refuses the test notification: {reason}")));
        }
        if after.unmapped > self.unmapped {
            return Some(Finding::of(&TEST_UNMAPPED, "the test notification has Authentik's own body"));
        }
        (after.unreadable > self.unreadable)
            .then(|| Finding::of(&TEST_UNREADABLE, "the event forwarder cannot read the test notification"))
    }
}

/// Sends a test notification, and waits until the daemon counts it.
pub(super) async fn test(api: &Api<'_>, transport: &Value, admin: &Admin, wait: Duration) -> Finding {
    let pk = transport["pk"].as_str().unwrap_or_default();
    let before = seen(admin).await;
    let answer = match api.post(&format!("events/transports/{pk}/test/")).await {
        Ok(answer) => answer,
        Err(finding) => return finding,
    };
    match (answer.status, &before) {
        (401 | 403, _) => {
            Finding::of(&READER_REFUSED, format!("the test of the transport is answered {}", answer.status))
        }
        (200, Ok(before)) => counted(before, admin, wait).await,
        (200, Err(unseen)) => {
            let who = match unseen {
                Unseen::Away => format!("the event forwarder does not answer at {}", admin.address()),
                Unseen::Another => format!("what answers at {} is not the event forwarder", admin.address()),
            };
            let text = format!("Authentik takes the test notification for delivered; {who}");
            Finding::unknown(CHECK, text, "give its admin address with --forwarder (OUTRIGGER_FORWARDER)")
        }
        (_, before) => {
            let after = seen(admin).await;
            let trouble =
                before.as_ref().ok().zip(after.as_ref().ok()).and_then(|(before, after)| before.trouble(after));
            trouble.unwrap_or_else(|| undelivered(answer.body.as_ref()))
        }
    }
}

/// What Authentik says where the daemon has nothing to say. The text itself may hold the URL, with a password in it.
fn undelivered(body: Option<&Value>) -> Finding {
    let text = body.and_then(Value::as_str).unwrap_or_default();
    let status = text.get(..3).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
    let text = match status {
        Some("401") => {
            "the test notification is answered 401; authentik_webhooks_refused_total{reason} says why".to_owned()
        }
        Some(status) => format!("the test notification is answered {status}"),
        None => "the test notification finds nobody: no such name, no connection, TLS, or no answer".to_owned(),
    };
    Finding::of(&TEST_FAILED, text)
}

/// Waits until the daemon has counted it, one way or another.
async fn counted(before: &Seen, admin: &Admin, wait: Duration) -> Finding {
    let deadline = Instant::now() + wait;
    loop {
        if let Ok(after) = seen(admin).await {
            if after.taken > before.taken {
                return Finding::good(CHECK, "a test notification arrives");
            }
            if let Some(trouble) = before.trouble(&after) {
                return trouble;
            }
        }
        if Instant::now() >= deadline {
            return Finding::of(&TEST_LOST, format!("not counted by the event forwarder within {} s", wait.as_secs()));
        }
        sleep(BETWEEN_LOOKS).await;
    }
}

async fn seen(admin: &Admin) -> Result<Seen, Unseen> {
    let (status, body) = admin.plain("/metrics").await.map_err(|_| Unseen::Away)?;
    let text = std::str::from_utf8(&body).ok().filter(|_| status == 200).ok_or(Unseen::Another)?;
    let metrics = Metrics::parse(text).map_err(|_| Unseen::Another)?;
    if metrics.series("authentik_events_total").next().is_none() {
        return Err(Unseen::Another);
    }
    let by_webhook = |result| metrics.sum("authentik_events_total", &[("by", "webhook"), ("result", result)]);
    let refused = metrics.series("authentik_webhooks_refused_total");
    Ok(Seen {
        taken: ["accepted", "duplicate", "excluded"].into_iter().map(by_webhook).sum(),
        unmapped: metrics.sum("authentik_webhooks_unmapped_total", &[]),
        unreadable: by_webhook("unreadable"),
        refused: refused.filter_map(|(labels, count)| Some((labels.get("reason")?.to_string(), count))).collect(),
    })
}
