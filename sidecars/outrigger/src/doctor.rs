//! `doctor`: what is wrong with a running daemon, one line each, with the fix.

use std::process::ExitCode;

use kit::clock::{Clock as _, SystemClock, Timestamp};
use kit_workbench::metrics::Metrics;
use serde::Serialize;
use serde_json::Value;

use crate::admin::{Admin, Connection};
use crate::output::{self, say};
use crate::sinks::{Sink, Statistics, mebibytes};

/// The gauge that tells how long the oldest event of a sink has waited.
const OLDEST_PENDING: &str = "delivery_oldest_pending_seconds";
/// A gateway that takes events should not leave one for longer than the first steps of the default
/// schedule (5 s, 30 s, 2 min, 10 min).
const LONG_PENDING_SECONDS: f64 = 780.0;
/// What is to be mended where nothing is taken: of the webhook processor, of the usage tracker.
const GATEWAY: &str = "the gateway or BRAIN_GATEWAY_URL";
const LAGO: &str = "Lago, LAGO_API_URL or LAGO_API_KEY_FILE";

#[derive(Debug, PartialEq, Serialize)]
struct Finding {
    ok: bool,
    what: &'static str,
    text: String,
    fix: Option<String>,
}

impl Finding {
    fn good(what: &'static str, text: impl Into<String>) -> Self {
        Self { ok: true, what, text: text.into(), fix: None }
    }

    fn bad(what: &'static str, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { ok: false, what, text: text.into(), fix: Some(fix.into()) }
    }
}

pub(crate) async fn run(connection: &Connection, json: bool) -> anyhow::Result<ExitCode> {
    let findings = examine(connection).await;
    let healthy = findings.iter().all(|finding| finding.ok);
    if json {
        output::json(&findings)?;
    } else {
        for finding in &findings {
            let mark = if finding.ok { "ok  " } else { "FAIL" };
            let fix = finding.fix.as_deref().map(|fix| format!(" → {fix}")).unwrap_or_default();
            say!("{mark} {:<10} {}{fix}", finding.what, output::safe(&finding.text));
        }
    }
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn examine(connection: &Connection) -> Vec<Finding> {
    let admin = match connection.open() {
        Ok(admin) => admin,
        Err(error) => return vec![Finding::bad("token", format!("{error:#}"), "name a file that holds the token")],
    };
    let mut findings = Vec::new();
    match admin.plain("/livez").await {
        Ok((200, _)) => findings.push(Finding::good("daemon", format!("answers at {}", admin.address()))),
        Ok((status, _)) => {
            findings.push(Finding::bad(
                "daemon",
                format!("/livez answers {status}"),
                "is this a daemon's admin address?",
            ));
            return findings;
        }
        Err(error) => {
            findings.push(Finding::bad(
                "daemon",
                format!("{error:#}"),
                "start it, or give its SIDECAR_LISTEN__ADMIN address with --admin",
            ));
            return findings;
        }
    }
    readiness(&admin, &mut findings).await;
    match admin.get::<Statistics>("/statistics", &[]).await {
        Ok(statistics) => {
            let size = mebibytes(statistics.journal_bytes);
            findings.push(Finding::good(
                "journal",
                format!("{} events accepted, {size:.1} MiB in use", statistics.accepted),
            ));
            let metrics = metrics(&admin).await;
            for sink in &statistics.sinks {
                let oldest = metrics.as_ref().and_then(|known| known.get(OLDEST_PENDING, &[("sink", &sink.name)]));
                examine_sink(sink, oldest.unwrap_or(0.0), &mut findings);
            }
        }
        Err(error) => findings.push(Finding::bad(
            "token",
            format!("{error:#}"),
            "give --token-file with the file of SIDECAR_ADMIN__TOKEN_FILE",
        )),
    }
    clock(&admin, &mut findings).await;
    findings
}

async fn readiness(admin: &Admin, findings: &mut Vec<Finding>) {
    let report: Value = match admin.plain("/readyz").await {
        Ok((_, body)) => serde_json::from_slice(&body).unwrap_or_default(),
        Err(error) => {
            findings.push(Finding::bad("ready", format!("{error:#}"), "look at the daemon's log"));
            return;
        }
    };
    for (part, state) in report["parts"].as_object().into_iter().flatten() {
        let state = state.as_str().unwrap_or("unknown");
        let text = format!("{part}: {state}");
        if state == "ready" {
            findings.push(Finding::good("ready", text));
            continue;
        }
        let fix = match part.as_str() {
            "journal" => "make room or restore the disk; the daemon goes on by itself",
            "routes" => "see `problem` of GET /api/v1/routes, and try the file with outrigger route test",
            "key" => "check LAGO_API_URL and LAGO_API_KEY_FILE, or set LAGO_WEBHOOK_PUBLIC_KEY_FILE",
            _ => "look at the daemon's log",
        };
        findings.push(Finding::bad("ready", text, fix));
    }
}

async fn metrics(admin: &Admin) -> Option<Metrics> {
    let (_, body) = admin.plain("/metrics").await.ok()?;
    Metrics::parse(&String::from_utf8_lossy(&body)).ok()
}

fn examine_sink(sink: &Sink, oldest_pending_seconds: f64, findings: &mut Vec<Finding>) {
    let name = &sink.name;
    let is_lago = name == "lago";
    let status = sink.status.as_ref();
    let error = status.and_then(|s| s.last_error.as_deref()).unwrap_or("no error known");
    let mut fine = true;
    let mut bad = |text: String, fix: String| {
        fine = false;
        findings.push(Finding::bad("sink", text, fix));
    };
    if sink.paused {
        bad(format!("{name} is paused, {} events wait", sink.pending), format!("outrigger sinks resume {name}"));
    }
    if status.is_some_and(|status| status.circuit != "closed") {
        bad(
            format!("{name} does not take events, {} wait: {error}", sink.pending),
            format!("mend {}; deliveries go on by themselves", if is_lago { LAGO } else { GATEWAY }),
        );
    }
    if status.is_some_and(|status| status.stalled) {
        bad(
            format!("{name} is stalled: {} deliveries wait for another attempt, nothing new is fetched", sink.retrying),
            "outrigger events list --state retrying, then mend what refuses them or drop the first of each subject"
                .to_owned(),
        );
    }
    let usable = !sink.paused && status.is_some_and(|status| status.circuit == "closed");
    if usable && oldest_pending_seconds > LONG_PENDING_SECONDS {
        let minutes = oldest_pending_seconds / 60.0;
        bad(
            format!("{name}: the oldest of {} pending events has waited {minutes:.0} min: {error}", sink.pending),
            "outrigger events list --state retrying shows which; the reason is at outrigger events show ID".to_owned(),
        );
    }
    if status.is_none() {
        bad(
            format!("{name} is not configured any more, {} events wait for it", sink.pending),
            format!("configure it again, or give up what is kept for it: outrigger sinks forget {name}"),
        );
    }
    if sink.parked > 0 {
        bad(
            format!("{name} has {} dead letters", sink.parked),
            if is_lago {
                "outrigger usage parked, then redrive or drop"
            } else {
                "outrigger dead-letters list, then replay or drop"
            }
            .to_owned(),
        );
    }
    if fine {
        findings.push(Finding::good("sink", format!("{name}: {} delivered, {} pending", sink.delivered, sink.pending)));
    }
}

/// A wrong clock makes receivers refuse signatures: Standard Webhooks allows five minutes.
async fn clock(admin: &Admin, findings: &mut Vec<Finding>) {
    let Some(theirs) = admin.server_time().await else { return };
    let skew = (SystemClock.now().as_millis() - theirs.as_millis()).abs() / 1000;
    if skew <= 30 {
        findings.push(Finding::good("clock", "the daemon's and this host's clocks agree"));
    } else {
        findings.push(Finding::bad(
            "clock",
            format!("the daemon's clock and this host's are {skew} s apart"),
            "set both by NTP: receivers refuse signatures that are five minutes off",
        ));
    }
}

impl Admin {
    /// The daemon's time, from the Date header.
    async fn server_time(&self) -> Option<Timestamp> {
        let date = self.date().await?;
        let seconds = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(&date).ok()?;
        Some(Timestamp::from_millis(seconds.as_millisecond()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sinks::Status;

    fn sink() -> Sink {
        Sink {
            name: "gateway".to_owned(),
            accepted: 10,
            delivered: 7,
            pending: 3,
            retrying: 1,
            parked: 0,
            dropped: 0,
            filtered: 0,
            paused: false,
            status: Some(Status {
                circuit: "closed".to_owned(),
                in_flight: 0,
                stalled: false,
                standby: false,
                last_error: Some("answered 503".to_owned()),
                last_error_at: None,
            }),
        }
    }

    fn check(change: impl Fn(&mut Sink), oldest_seconds: f64, expected: &[&str]) {
        let mut sink = sink();
        change(&mut sink);
        let mut findings = Vec::new();

        examine_sink(&sink, oldest_seconds, &mut findings);

        let bad: Vec<&Finding> = findings.iter().filter(|finding| !finding.ok).collect();
        assert_eq!(bad.len(), expected.len(), "{findings:?}");
        for (finding, text) in bad.iter().zip(expected) {
            assert!(finding.text.contains(text), "{text:?} is not in {finding:?}");
            assert!(finding.fix.is_some(), "{finding:?}");
        }
        assert!(!findings.is_empty());
    }

    #[test]
    fn a_sink_that_works_is_fine_whatever_it_met_before() {
        check(|_| {}, 5.0, &[]);
    }

    #[test]
    fn each_trouble_is_one_line() {
        check(|sink| sink.paused = true, 3600.0, &["paused, 3 events wait"]);
        check(|sink| sink.parked = 4, 0.0, &["4 dead letters"]);
        check(|_| {}, 1800.0, &["waited 30 min: answered 503"]);
        check(|sink| sink.status = None, 0.0, &["not configured any more"]);
        let stalled = |sink: &mut Sink| {
            if let Some(status) = &mut sink.status {
                status.stalled = true;
            }
        };
        check(stalled, 0.0, &["stalled: 1 deliveries wait"]);
        let open = |sink: &mut Sink| {
            if let Some(status) = &mut sink.status {
                status.circuit = "open".to_owned();
            }
        };
        check(open, 3600.0, &["does not take events, 3 wait: answered 503"]);
        check(
            |sink| {
                open(sink);
                sink.parked = 1;
                sink.paused = true;
            },
            0.0,
            &["paused", "does not take events", "1 dead letters"],
        );
    }
}
