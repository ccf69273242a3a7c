//! One sidecar: whether it is there, ready, and brings its events to where they belong.

use kit_workbench::metrics::Metrics;
use serde_json::Value;

use super::compose::Installed;
use super::finding::{
    NOT_READY, NOT_READY_JOURNAL, NOT_READY_KEY, NOT_READY_ROUTES, SIDECAR_AWAY, SIDECAR_OTHER, SINK_CLOSED,
    SINK_PARKED, SINK_PAUSED, SINK_SLOW, SINK_STALLED, SINK_UNKNOWN, TOKEN,
};
use super::{ANSWER_WITHIN, Asking, Check, skew};
use crate::admin::{Admin, Refusal};
use crate::finding::Finding;
use crate::sinks::{Sink, Statistics, Status, mebibytes};

/// The gauge that tells how long the oldest event of a sink has waited.
const OLDEST_PENDING: &str = "delivery_oldest_pending_seconds";
/// A gateway that takes events should not leave one for longer than the first steps of the default
/// schedule (5 s, 30 s, 2 min, 10 min).
const LONG_PENDING_SECONDS: f64 = 780.0;
/// What is to be mended where nothing is taken: of the webhook processor, of the usage tracker.
const GATEWAY: &str = "the gateway or BRAIN_GATEWAY_URL";
const LAGO: &str = "Lago, LAGO_API_URL or LAGO_API_KEY_FILE";

/// One check a sidecar: the one that is named for all commands, with its token, and the further ones without.
pub(crate) fn checks<'a>(asking: &'a Asking<'_>) -> Vec<Check<'a>> {
    let installed = Installed::of(asking.settings);
    let mut further: Vec<String> =
        list(asking.settings.get("OUTRIGGER_SIDECARS")).into_iter().map(str::to_owned).collect();
    let mut checks: Vec<Check<'a>> = Vec::new();
    let own = asking.settings.get("OUTRIGGER_ADMIN");
    let named = asking.connection.named().or(own);
    if let Some(installed) = &installed {
        further.extend(installed.sidecars());
        further.retain(|address| named.is_none_or(|named| named.trim_end_matches('/') != address));
        further.sort();
        further.dedup();
    }
    let is_off = installed.is_some_and(|installed| named.is_none_or(|named| installed.is_off(named)));
    if !is_off && (named.is_some() || further.is_empty()) {
        let own = own.map(str::to_owned);
        checks.push((
            "daemon",
            Box::pin(async move {
                match asking.connection.open_for(own.as_deref(), ANSWER_WITHIN) {
                    Ok(admin) => examine(&admin, true).await,
                    Err(error) => vec![Finding::of(&TOKEN, format!("{error:#}"))],
                }
            }),
        ));
    }
    for address in further {
        checks.push((
            "daemon",
            Box::pin(
                async move { examine(&Admin::without_token(&asking.client, &address, ANSWER_WITHIN), false).await },
            ),
        ));
    }
    checks
}

/// The parts of a list with commas or spaces between.
pub(super) fn list(text: Option<&str>) -> Vec<&str> {
    text.unwrap_or_default().split([',', ' ']).map(str::trim).filter(|part| !part.is_empty()).collect()
}

async fn examine(admin: &Admin, has_token: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    match admin.plain("/livez").await {
        Ok((200, _)) => findings.push(Finding::good("daemon", format!("answers at {}", admin.address()))),
        Ok((status, _)) => {
            return vec![Finding::of(&SIDECAR_OTHER, format!("{}: /livez answers {status}", admin.address()))];
        }
        Err(error) => return vec![Finding::of(&SIDECAR_AWAY, format!("{error:#}"))],
    }
    readiness(admin, &mut findings).await;
    let metrics = metrics(admin).await;
    if has_token {
        match admin.get::<Statistics>("/statistics", &[]).await {
            Ok(statistics) => {
                let size = mebibytes(statistics.journal_bytes);
                findings.push(Finding::good(
                    "journal",
                    format!("{} events accepted, {size:.1} MiB in use", statistics.accepted),
                ));
                for sink in &statistics.sinks {
                    let oldest = metrics.as_ref().and_then(|known| known.get(OLDEST_PENDING, &[("sink", &sink.name)]));
                    examine_sink(sink, oldest.unwrap_or(0.0), &mut findings);
                }
            }
            Err(error) => {
                let known = if is_about_token(&error) { &TOKEN } else { &NOT_READY };
                findings.push(Finding::of(known, format!("admin API: {error:#}")));
                measured_sinks(metrics.as_ref(), &mut findings);
            }
        }
    } else {
        measured_sinks(metrics.as_ref(), &mut findings);
    }
    findings.extend(skew(&format!("the daemon at {}", admin.address()), admin.date().await.as_deref()));
    findings
}

/// The sinks as far as metrics tell of them.
fn measured_sinks(metrics: Option<&Metrics>, findings: &mut Vec<Finding>) {
    let Some(metrics) = metrics else { return };
    for (labels, _) in metrics.series("delivery_pending") {
        let Some(name) = labels.get("sink") else { continue };
        let oldest = metrics.get(OLDEST_PENDING, &[("sink", name)]).unwrap_or(0.0);
        examine_sink(&measured(metrics, name), oldest, findings);
    }
}

/// Whether a token mends it, and not the daemon.
fn is_about_token(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Refusal::NoToken | Refusal::Status { status: 401 | 403, .. }))
}

/// A sink as far as its metrics tell it, for which nobody needs a token.
fn measured(metrics: &Metrics, name: &str) -> Sink {
    let gauge = |what: &str| metrics.get(what, &[("sink", name)]).unwrap_or(0.0);
    let count = |what: &str| gauge(what).max(0.0) as u64;
    let circuit = if gauge("delivery_circuit_open") > 0.0 { "open" } else { "closed" };
    Sink {
        name: name.to_owned(),
        accepted: count("delivery_accepted"),
        delivered: count("delivery_delivered"),
        pending: count("delivery_pending"),
        // Metrics do not tell how many of them were tried.
        retrying: 0,
        parked: count("delivery_parked"),
        dropped: count("delivery_dropped"),
        filtered: count("delivery_filtered"),
        paused: gauge("delivery_paused") > 0.0,
        status: Some(Status {
            circuit: circuit.to_owned(),
            in_flight: 0,
            stalled: gauge("delivery_stalled") > 0.0,
            standby: false,
            last_error: None,
            last_error_at: None,
        }),
    }
}

async fn readiness(admin: &Admin, findings: &mut Vec<Finding>) {
    let report: Value = match admin.plain("/readyz").await {
        Ok((_, body)) => serde_json::from_slice(&body).unwrap_or_default(),
        Err(error) => {
            findings.push(Finding::of(&NOT_READY, format!("{error:#}")));
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
        let known = match part.as_str() {
            "journal" => &NOT_READY_JOURNAL,
            "routes" => &NOT_READY_ROUTES,
            "key" => &NOT_READY_KEY,
            _ => &NOT_READY,
        };
        findings.push(Finding::of(known, text));
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
    let mut bad = Vec::new();
    if sink.paused {
        let text = format!("{name} is paused, {} events wait", sink.pending);
        bad.push(Finding::of(&SINK_PAUSED, text).mended_by(format!("outrigger sinks resume {name}")));
    }
    if status.is_some_and(|status| status.circuit != "closed") {
        let text = format!("{name} does not take events, {} wait: {error}", sink.pending);
        let mend = if is_lago { LAGO } else { GATEWAY };
        bad.push(Finding::of(&SINK_CLOSED, text).mended_by(format!("mend {mend}; deliveries go on by themselves")));
    }
    if status.is_some_and(|status| status.stalled) {
        let waiting = if sink.retrying == 0 { String::new() } else { format!("{} ", sink.retrying) };
        let text = format!("{name} is stalled: {waiting}deliveries wait for another attempt, nothing new is fetched");
        bad.push(Finding::of(&SINK_STALLED, text));
    }
    let usable = !sink.paused && status.is_some_and(|status| status.circuit == "closed");
    if usable && oldest_pending_seconds > LONG_PENDING_SECONDS {
        let minutes = oldest_pending_seconds / 60.0;
        let text =
            format!("{name}: the oldest of {} pending events has waited {minutes:.0} min: {error}", sink.pending);
        bad.push(Finding::of(&SINK_SLOW, text));
    }
    if status.is_none() {
        let text = format!("{name} is not configured any more, {} events wait for it", sink.pending);
        let fix = format!("configure it again, or give up what is kept for it: outrigger sinks forget {name}");
        bad.push(Finding::of(&SINK_UNKNOWN, text).mended_by(fix));
    }
    if sink.parked > 0 {
        let look = if is_lago {
            "outrigger usage parked, then redrive or drop"
        } else {
            "outrigger dead-letters list, then replay or drop"
        };
        bad.push(Finding::of(&SINK_PARKED, format!("{name} has {} dead letters", sink.parked)).mended_by(look));
    }
    if bad.is_empty() {
        bad.push(Finding::good("sink", format!("{name}: {} delivered, {} pending", sink.delivered, sink.pending)));
    }
    findings.append(&mut bad);
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

        let bad: Vec<&Finding> = findings.iter().filter(|finding| finding.id.is_some()).collect();
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
