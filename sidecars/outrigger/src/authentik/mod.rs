//! `authentik`: the blueprint that an operator mounts, and whether what it makes is there and works.

mod finding;
mod installed;
mod judge;
mod notification;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use kit::client::{ClientOptions, http_client};
use kit::secret::{self, Secret};
use kit_authentik::blueprint::{self, Authentication, TokenFrom};

use crate::admin::Connection;
use crate::finding::{Finding, State, tell};
use crate::output::say;
use finding::TABLE;
use installed::Api;

/// Longest wait for one answer of Authentik. The test of a transport waits for its receiver, up to 30 s.
const ANSWER_WITHIN: Duration = Duration::from_secs(45);
/// Exit code where nothing wrong was found and not everything could be looked at.
const INCOMPLETE: u8 = 3;
/// The check that a test notification arrives.
const NOTIFICATION: &str = "notification";

/// The longest name of a check.
const CHECK_COLUMNS: usize = 13;

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Check through the API that everything the blueprint makes is there, and that a test notification arrives.
    #[command(
        after_help = "The two tokens may also be in AUTHENTIK_TOKEN and AUTHENTIK_ADMIN_TOKEN. Nothing is changed; the test \
                      notification makes an event custom_notification_test, which is delivered as every event is.\n\n\
                      Example: outrigger authentik doctor --url http://127.0.0.1:9000 --reader-token-file akadmin-token"
    )]
    Doctor(Arguments),
    /// Print the blueprint for Authentik's worker.
    #[command(after_help = "Example: outrigger authentik blueprint --token-from file > blueprints/outrigger.yaml")]
    Blueprint(BlueprintArguments),
}

/// Which Authentik, and who asks.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Authentik's address.
    #[arg(long, env = "AUTHENTIK_URL", value_name = "URL")]
    url: Option<String>,
    /// File with the token that the event forwarder uses.
    #[arg(long, env = "AUTHENTIK_TOKEN_FILE", value_name = "FILE")]
    service_token_file: Option<PathBuf>,
    /// File with an API token of somebody who may look at transports, rules, policies and tokens, and test a transport:
    /// an administrator's. Without one only what the service account sees is checked.
    #[arg(long, env = "AUTHENTIK_ADMIN_TOKEN_FILE", value_name = "FILE")]
    reader_token_file: Option<PathBuf>,
    /// Where webhooks must be sent to.
    #[arg(long, env = blueprint::URL_VARIABLE, default_value = blueprint::URL, value_name = "URL")]
    webhook_url: String,
    /// Admin address of the event forwarder, where OUTRIGGER_ADMIN is another daemon's, as in compose. Without it --admin
    /// counts, or else http://127.0.0.1:9083.
    #[arg(long, env = "OUTRIGGER_FORWARDER", value_name = "URL")]
    forwarder: Option<String>,
    /// Send no test notification.
    #[arg(long)]
    no_test: bool,
    /// Seconds that the test notification may take to the daemon.
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    wait: u64,
    /// PEM file with certificate authorities to trust beside the platform's.
    #[arg(long, env = "OUTRIGGER_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Print the page about all findings as Markdown, and ask nobody.
    #[arg(long)]
    reference: bool,
}

#[derive(Args, Debug)]
pub(crate) struct BlueprintArguments {
    /// How webhooks prove themselves.
    #[arg(long, value_enum, default_value = "hmac", conflicts_with = "tenant_claim")]
    authentication: Proof,
    /// From where the worker has the API token: the variable OUTRIGGER_AUTHENTIK_TOKEN, or a file (2025.8 and later).
    #[arg(long, value_enum, default_value = "variable", conflicts_with = "tenant_claim")]
    token_from: From,
    /// Print the other one: the scope that puts tenant_id into tokens.
    #[arg(long)]
    tenant_claim: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Proof {
    /// Signed, in a header (2025.4 and later) and in the body (every version).
    Hmac,
    /// The secret in a header; 2025.4 and later.
    Bearer,
    /// The secret in the body.
    BodySecret,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum From {
    Variable,
    File,
}

pub(crate) async fn run(verb: Verb, connection: &Connection, json: bool) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Doctor(arguments) => doctor(&arguments, connection, json).await,
        Verb::Blueprint(arguments) => {
            say!("{}", text(&arguments).trim_end());
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn text(arguments: &BlueprintArguments) -> String {
    if arguments.tenant_claim {
        return blueprint::render_tenant_claim();
    }
    let authentication = match arguments.authentication {
        Proof::Hmac => Authentication::Hmac,
        Proof::Bearer => Authentication::Bearer,
        Proof::BodySecret => Authentication::BodySecret,
    };
    let token = match arguments.token_from {
        From::Variable => TokenFrom::Variable,
        From::File => TokenFrom::File,
    };
    blueprint::render(authentication, token)
}

async fn doctor(arguments: &Arguments, connection: &Connection, json: bool) -> anyhow::Result<ExitCode> {
    if arguments.reference {
        say!("{}", page().trim_end());
        return Ok(ExitCode::SUCCESS);
    }
    let findings = examine(arguments, connection).await?;
    let healthy = verdict(&findings, arguments.no_test);
    tell(&findings, healthy, json, CHECK_COLUMNS)?;
    Ok(match healthy {
        Some(true) => ExitCode::SUCCESS,
        Some(false) => ExitCode::FAILURE,
        None => ExitCode::from(INCOMPLETE),
    })
}

/// Whether all is well; nothing, where that cannot be said. Who asked for no test has not missed it.
fn verdict(findings: &[Finding], no_test: bool) -> Option<bool> {
    if findings.iter().any(Finding::is_bad) {
        return Some(false);
    }
    let is_missed = |finding: &Finding| match finding.state {
        State::Unknown => true,
        State::NotChecked => !(no_test && finding.check == NOTIFICATION),
        State::Fail | State::Warn | State::Ok => false,
    };
    if findings.iter().any(is_missed) { None } else { Some(true) }
}

/// All findings, the worst first.
async fn examine(arguments: &Arguments, connection: &Connection) -> anyhow::Result<Vec<Finding>> {
    let Some(url) = &arguments.url else {
        anyhow::bail!("which Authentik? give --url (AUTHENTIK_URL), for example http://127.0.0.1:9000");
    };
    let options = ClientOptions {
        read_timeout: ANSWER_WITHIN,
        total_timeout: ANSWER_WITHIN,
        ca_file: arguments.ca_file.clone(),
        ..ClientOptions::default()
    };
    let client = http_client(&options)?;
    let service = token("AUTHENTIK_TOKEN", "--service-token-file", arguments.service_token_file.as_deref())?;
    let reader = token("AUTHENTIK_ADMIN_TOKEN", "--reader-token-file", arguments.reader_token_file.as_deref())?;
    if service.is_none() && reader.is_none() {
        anyhow::bail!("no token: give --service-token-file (AUTHENTIK_TOKEN_FILE), --reader-token-file, or both");
    }
    let mut findings = Vec::new();
    match &service {
        Some(token) => findings.extend(installed::ask_as_service(&Api::new(&client, url, token)).await),
        None => findings.push(Finding::not_checked("token", "give --service-token-file (AUTHENTIK_TOKEN_FILE)")),
    }
    match &reader {
        Some(token) => findings.extend(configuration(&Api::new(&client, url, token), arguments, connection).await),
        None => findings.push(Finding::not_checked(
            "configuration",
            "give --reader-token-file (AUTHENTIK_ADMIN_TOKEN_FILE): transport, mappings, rule, policy, token and the test",
        )),
    }
    // Where Authentik is away, both have met that.
    findings.sort_by_key(|finding| finding.state);
    findings.dedup();
    Ok(findings)
}

/// What only somebody with more rights sees.
async fn configuration(api: &Api<'_>, arguments: &Arguments, connection: &Connection) -> Vec<Finding> {
    let installed = match installed::read(api).await {
        Ok(installed) => installed,
        Err(finding) => return vec![finding],
    };
    let mut findings = judge::judge(&installed, &arguments.webhook_url);
    match &installed.transport {
        Some(_) if arguments.no_test => findings.push(Finding::not_checked(NOTIFICATION, "leave out --no-test")),
        Some(transport) => {
            let wait = Duration::from_secs(arguments.wait);
            findings.push(match connection.open_forwarder(arguments.forwarder.as_deref()) {
                Ok(admin) => notification::test(api, transport, &admin, wait).await,
                Err(error) => Finding::unknown(NOTIFICATION, format!("{error:#}"), "mend what is named"),
            });
        }
        None => findings.push(Finding::unknown(NOTIFICATION, "there is no transport to test", finding::APPLY)),
    }
    findings
}

fn token(name: &str, file_name: &str, file: Option<&std::path::Path>) -> anyhow::Result<Option<Secret>> {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty()).map(Secret::from);
    // A file that is named wins over a variable that is merely there.
    Ok(secret::resolve(name, value.as_ref().filter(|_| file.is_none()), file_name, file)?)
}

/// The page about the findings.
fn page() -> String {
    const HEAD: &str = "# Findings of `outrigger authentik doctor`\n\n\
        Generated by `outrigger authentik doctor --reference`. It asks Authentik's API, changes nothing, sends one test\n\
        notification, and ends with 0 where everything is as it should be, with 1 where something is not, and with 3 where\n\
        nothing wrong was found and not everything could be looked at: without one of the two tokens, or where the event\n\
        forwarder does not answer (`--forwarder`). `--no-test` leaves out the notification and does not count as that.\n\n\
        `--json` prints `{outrigger, healthy, findings: [{state, check, id, text, fix}]}`; `healthy` is true, false, or null\n\
        for the third; `state` is `fail`, `warn`, `unknown`, `ok` or\n\
        `not_checked`, and `id` is one of these.\n\n";
    let rows = TABLE.iter().map(|known| {
        let bad = if known.state == State::Fail { "FAIL" } else { "warn" };
        format!("| `{}` | {bad} | {} | {} |\n", known.id, known.what, known.fix)
    });
    format!("{HEAD}| Finding | | Means | What mends it |\n|---|---|---|---|\n{}", rows.collect::<String>())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_page_about_the_findings_is_generated() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/authentik-doctor.md");
        assert_eq!(std::fs::read_to_string(path).unwrap().trim_end(), page().trim_end());
    }
}
