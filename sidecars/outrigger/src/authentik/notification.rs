//! Whether a test notification arrives: Authentik's server sends one and says how it was answered, and the daemon's metrics
//! say whether it was the daemon.

use std::time::Duration;

use kit_workbench::metrics::Metrics;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::finding::{Finding, READER_REFUSED, TEST_FAILED, TEST_LOST, TEST_REFUSED};
use super::installed::Api;
use crate::admin::{Admin, Connection};

const CHECK: &str = "notification";
/// Between two looks at the metrics.
const BETWEEN_LOOKS: Duration = Duration::from_millis(200);

/// What the daemon says of webhooks.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Seen {
    taken: f64,
    refused: f64,
}

/// Sends a test notification, and waits until the daemon counts it.
pub(super) async fn test(api: &Api<'_>, transport: &Value, connection: &Connection, wait: Duration) -> Finding {
    let pk = transport["pk"].as_str().unwrap_or_default();
    let admin = connection.open_forwarder().ok();
    let before = seen(admin.as_ref()).await;
    let answer = match api.post(&format!("events/transports/{pk}/test/")).await {
        Ok(answer) => answer,
        Err(finding) => return finding,
    };
    let refused = async || match before {
        Some(before) => seen(admin.as_ref()).await.is_some_and(|after| after.refused > before.refused),
        None => false,
    };
    match answer.status {
        200 => {}
        401 | 403 => {
            return Finding::of(&READER_REFUSED, format!("the test of the transport is answered {}", answer.status));
        }
        _ if refused().await => return Finding::of(&TEST_REFUSED, "the event forwarder refuses the test notification"),
        _ => {
            // The text may hold the URL, with a password in it.
            let text = answer.body.as_ref().and_then(Value::as_str).unwrap_or_default();
            let status = text.get(..3).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
            let known = if matches!(status, Some("401" | "403")) { &TEST_REFUSED } else { &TEST_FAILED };
            return Finding::of(
                known,
                match status {
                    Some(status) => format!("the test notification is answered {status}"),
                    None => {
                        "the test notification finds nobody: no such name, no connection, TLS, or no answer".to_owned()
                    }
                },
            );
        }
    }
    let Some(before) = before else {
        let address = admin.as_ref().map_or("--admin", Admin::address);
        return Finding::unknown(
            CHECK,
            format!(
                "Authentik takes the test notification for delivered; the event forwarder does not answer at {address}"
            ),
            "give its admin address with --admin (OUTRIGGER_ADMIN), or look at its log",
        );
    };
    let deadline = Instant::now() + wait;
    loop {
        if let Some(after) = seen(admin.as_ref()).await
            && after.taken > before.taken
        {
            return Finding::good(CHECK, "a test notification arrives");
        }
        if Instant::now() >= deadline {
            return Finding::of(&TEST_LOST, format!("not counted by the event forwarder within {} s", wait.as_secs()));
        }
        sleep(BETWEEN_LOOKS).await;
    }
}

/// `None` where the daemon does not answer, or is another one.
async fn seen(admin: Option<&Admin>) -> Option<Seen> {
    let (status, body) = admin?.plain("/metrics").await.ok()?;
    let metrics = Metrics::parse(std::str::from_utf8(&body).ok()?).ok().filter(|_| status == 200)?;
    metrics.series("authentik_events_total").next()?;
    let taken = |result| metrics.sum("authentik_events_total", &[("by", "webhook"), ("result", result)]);
    Some(Seen {
        taken: ["accepted", "duplicate", "excluded"].into_iter().map(taken).sum(),
        refused: metrics.sum("authentik_webhooks_refused_total", &[]),
    })
}
