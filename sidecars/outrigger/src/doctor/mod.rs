//! `doctor`: what is wrong with the sidecars and with what they stand beside, one line each, with the fix.
//!
//! Every check is a question with a limit of its own, all are asked side by side, and none changes anything. Not here: what
//! is measured over time, which is for Prometheus.

mod authentik;
mod compose;
mod finding;
mod lago;
mod names;
mod page;
mod postgres;
mod redis;
mod rsa;
mod settings;
mod sidecar;
mod temporal;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use futures_util::future::join_all;
use kit::client::{ClientOptions, http_client};
use kit::clock::{Clock as _, SystemClock, Timestamp};

use crate::admin::Connection;
use crate::finding::{Finding, State, tell};
use crate::output::say;
use finding::CLOCK;
pub(crate) use rsa::served_key;
use settings::Settings;

/// Longest wait for one answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Longest time for one check, whatever it asks; all run side by side.
const CHECK_WITHIN: Duration = Duration::from_secs(30);
/// Clocks that differ by less are said to agree.
const SKEW_SECONDS: i64 = 30;

/// The longest name of a check.
const CHECK_COLUMNS: usize = 16;

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// File with lines NAME=value, for example compose/.env; the environment wins over it.
    #[arg(long, value_name = "FILE")]
    env_file: Option<PathBuf>,
    /// PEM file with certificate authorities to trust beside the platform's.
    #[arg(long, env = "OUTRIGGER_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Print the page about all findings as Markdown, and ask nobody.
    #[arg(long)]
    reference: bool,
}

/// What every check needs.
pub(crate) struct Asking<'a> {
    settings: &'a Settings,
    connection: &'a Connection,
    client: reqwest::Client,
    ca_file: Option<PathBuf>,
    now: Timestamp,
}

pub(crate) async fn run(arguments: Arguments, connection: &Connection, json: bool) -> anyhow::Result<ExitCode> {
    if arguments.reference {
        say!("{}", page::page().trim_end());
        return Ok(ExitCode::SUCCESS);
    }
    let settings = Settings::read(arguments.env_file.as_deref())?;
    let options = ClientOptions {
        read_timeout: ANSWER_WITHIN,
        total_timeout: ANSWER_WITHIN,
        ca_file: arguments.ca_file.clone(),
        ..ClientOptions::default()
    };
    let asking = Asking {
        settings: &settings,
        connection,
        client: http_client(&options)?,
        ca_file: arguments.ca_file,
        now: SystemClock.now(),
    };
    let findings = examine(&asking).await;
    let healthy = !findings.iter().any(Finding::is_bad);
    tell(&findings, Some(healthy), json, CHECK_COLUMNS)?;
    if !json {
        say!("{}", summary(&findings));
    }
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A check on its way, with the name it is known by should it never end.
type Check<'a> = (&'static str, Pin<Box<dyn Future<Output = Vec<Finding>> + Send + 'a>>);

/// Everything, the worst first.
async fn examine(asking: &Asking<'_>) -> Vec<Finding> {
    let mut checks: Vec<Check<'_>> = vec![
        ("lago", Box::pin(lago::examine(asking))),
        ("lago-worker", Box::pin(lago::worker(asking))),
        ("postgres", Box::pin(postgres::examine(asking))),
        ("redis", Box::pin(redis::examine(asking))),
        ("authentik", Box::pin(authentik::examine(asking))),
        ("temporal", Box::pin(temporal::examine(asking))),
        ("public-name", Box::pin(names::examine(asking))),
        ("webhook-attempts", Box::pin(async { vec![lago::attempts(asking)] })),
    ];
    checks.extend(sidecar::checks(asking));
    let limited = checks.into_iter().map(|(name, check)| limited(name, CHECK_WITHIN, check));
    let mut findings: Vec<Finding> = join_all(limited).await.into_iter().flatten().collect();
    findings.sort_by_key(|finding| finding.state);
    findings
}

/// What a check finds in time; later it is unknown.
async fn limited(name: &'static str, within: Duration, check: impl Future<Output = Vec<Finding>>) -> Vec<Finding> {
    tokio::time::timeout(within, check).await.unwrap_or_else(|_| {
        let text = format!("no result within {} s", within.as_secs());
        vec![Finding::unknown(name, text, "ask again; what answers, answers slowly")]
    })
}

fn summary(findings: &[Finding]) -> String {
    let count = |state: State| findings.iter().filter(|finding| finding.state == state).count();
    format!(
        "{} wrong, {} to look at, {} unknown, {} as they should be, {} not checked",
        count(State::Fail),
        count(State::Warn),
        count(State::Unknown),
        count(State::Ok),
        count(State::NotChecked)
    )
}

/// What a `Date` header says beside this machine's clock; nothing where there is none.
fn skew(who: &str, date: Option<&str>) -> Option<Finding> {
    let theirs = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(date?).ok()?;
    let skew = (SystemClock.now().as_millis() - theirs.as_millisecond()).abs() / 1000;
    Some(if skew <= SKEW_SECONDS {
        Finding::good("clock", format!("the clocks of {who} and of this machine agree"))
    } else {
        Finding::of(&CLOCK, format!("the clocks of {who} and of this machine are {skew} s apart"))
    })
}
