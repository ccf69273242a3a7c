//! Lago: whether it is there, takes the key, ticks, works, and sends its webhooks to where they are taken.

use std::path::PathBuf;
use std::time::Duration;

use kit::config::{Source, read};
use kit::error::chain;
use kit::secret::Secret;
use kit_lago::api::{ApiError, LagoApi};
use kit_lago::exchange::{Exchange, Place};
use kit_lago::management::Object;
use kit_lago::shown_url;
use lago_webhook_processor::config::{Config, Signature, well_known};
use reqwest::Method;
use serde_json::Value;
use url::Url;

use super::compose::{Installed, PROCESSOR};
use super::finding::{
    ATTEMPTS, ENDPOINT_ALGORITHM, ENDPOINT_MISSING, ENDPOINT_NOTHING, ENDPOINT_PATH, ENDPOINT_TWICE, LAGO_AWAY,
    LAGO_CLOCK, LAGO_FAILS, LAGO_HEALTH_HIDDEN, LAGO_KEY_LACKS, LAGO_KEY_REFUSED, LAGO_OTHER, LAGO_UNHEALTHY,
    LAGO_WORKER_AWAY, LAGO_WORKER_UNHEALTHY, SETTING,
};
use super::{Asking, limited, names, rsa, skew};
use crate::finding::Finding;

/// Longest time for one of the parts that come after the first questions.
const PART_WITHIN: Duration = Duration::from_secs(10);
/// Of that, the time for what its clock has done: what is seen by then is said.
const CLOCK_WITHIN: Duration = Duration::from_secs(8);
/// What the clock did longer ago than that says nothing about today.
const RECENT_HOURS: u64 = 26;
/// With fewer attempts Lago gives up within five hours: getlago/lago-api `app/services/webhooks/send_http_service.rb`.
const ATTEMPTS_FOR_A_NIGHT: u32 = 10;
/// Where worker and clock are, for those who wonder.
const LOOK_AT_THE_CLOCK: &str =
    "docker-compose ps lago-clock; docker-compose logs --tail 20 lago-clock shows one line a job";

/// Everything that is asked of Lago's API: whether it is there and takes the key first, without which there is no second.
pub(crate) async fn examine(asking: &Asking<'_>) -> Vec<Finding> {
    let (mut findings, usable) = reached(asking).await;
    let (api, place) = match &usable {
        Ok((api, url, key)) => (Some(api), Some((url.as_str(), key))),
        Err(said) => {
            findings.extend(["lago-clock", "webhook-endpoint"].map(|check| said.finding(check)));
            (None, None)
        }
    };
    let clock = async { if let Some(api) = api { vec![clock(api, asking).await] } else { Vec::new() } };
    let endpoint = async { if let Some(api) = api { endpoint(api, asking).await } else { Vec::new() } };
    // A slow answer to one of them should not cost what is known of the others.
    let (clock, endpoint, rsa) = tokio::join!(
        limited("lago-clock", PART_WITHIN, clock),
        limited("webhook-endpoint", PART_WITHIN, endpoint),
        limited("rsa-key", PART_WITHIN, rsa::examine(asking, place)),
    );
    findings.extend(clock.into_iter().chain(endpoint).chain(rsa));
    findings
}

/// Why the rest is not asked.
enum NotAsked {
    Nobody(&'static str),
    Because(&'static str, &'static str),
}

impl NotAsked {
    fn finding(&self, check: &'static str) -> Finding {
        match self {
            Self::Nobody(variables) => Finding::unset(check, variables),
            Self::Because(text, see) => Finding::unknown(check, *text, *see),
        }
    }
}

/// A Lago that can be asked, with its address and key; or why there is none.
type Reached = Result<(LagoApi, String, Secret), NotAsked>;

async fn reached(asking: &Asking<'_>) -> (Vec<Finding>, Reached) {
    let Some(url) = asking.settings.get("LAGO_API_URL") else {
        let nobody = NotAsked::Nobody("LAGO_API_URL and LAGO_API_KEY_FILE");
        let findings = vec![Finding::unset("lago", "LAGO_API_URL"), nobody.finding("lago-key")];
        return (findings, Err(nobody));
    };
    let mut findings = Vec::new();
    let key = asking.settings.secret("LAGO_API_KEY").unwrap_or_else(|error| {
        findings.push(Finding::of(&SETTING, chain(&error)));
        None
    });
    // Health needs no key, and none is sent there.
    let given = key.clone().unwrap_or_else(|| Secret::from("none".to_owned()));
    let api = match LagoApi::new(asking.client.clone(), url, &given) {
        Ok(api) => api,
        Err(error) => {
            findings.push(Finding::of(&SETTING, error.to_string()));
            return (
                findings,
                Err(NotAsked::Because("not asked: a setting cannot be used", "see what is said of setting")),
            );
        }
    };
    let (health, is_there) = health(&api).await;
    findings.extend(health);
    if !is_there {
        let away = NotAsked::Because("not asked: Lago's API is not there", "see what is said of lago");
        findings.push(away.finding("lago-key"));
        return (findings, Err(away));
    }
    let Some(key) = key else {
        let nobody = NotAsked::Nobody("LAGO_API_KEY_FILE (or LAGO_API_KEY)");
        findings.push(nobody.finding("lago-key"));
        return (findings, Err(nobody));
    };
    let taken = takes_key(&api).await;
    // Without a permission it is a key all the same, which may have others.
    let is_taken = taken.id.is_none_or(|id| id == LAGO_KEY_LACKS.id);
    findings.push(taken);
    if is_taken {
        (findings, Ok((api, url.to_owned(), key)))
    } else {
        (findings, Err(NotAsked::Because("not asked: Lago does not take the key", "see what is said of lago-key")))
    }
}

/// Whether it is Lago that answers, and whether its API can be asked more.
async fn health(api: &LagoApi) -> (Vec<Finding>, bool) {
    let answer = match api.exchange(Method::GET, Place::Plain("health"), None).await {
        Ok(answer) => answer,
        Err(error) => return (vec![Finding::of(&LAGO_AWAY, chain(&error))], false),
    };
    let version = answer.body.get("version").and_then(Value::as_str);
    let mut findings: Vec<Finding> = skew("Lago", answer.date.as_deref()).into_iter().collect();
    let (finding, is_there) = match (answer.status, version) {
        (status @ 502..=504, _) => {
            (Finding::of(&LAGO_AWAY, format!("/health: a proxy answers {status} in Lago's place")), false)
        }
        (200, Some(version)) => (Finding::good("lago", format!("Lago {version} answers and has its database")), true),
        (500, _) if answer.body.get("message").and_then(Value::as_str) == Some("Unhealthy") => {
            (Finding::of(&LAGO_UNHEALTHY, "/health answers 500: the database does not answer Lago"), false)
        }
        (status @ 500.., _) => (Finding::of(&LAGO_FAILS, format!("/health answers {status}")), false),
        (status, _) => {
            // Where only /api is let through, the API's own "not found" has Lago's shape. This is no health check of any version.
            let below = api.exchange(Method::GET, Place::Api("health"), None).await;
            match below {
                Ok(Exchange { status: 404, body, .. }) if body["code"] == "resource_not_found" => {
                    let text = format!("/health answers {status}, and /api/v1/ is Lago's");
                    (Finding::of(&LAGO_HEALTH_HIDDEN, text), true)
                }
                _ => (Finding::of(&LAGO_OTHER, format!("/health answers {status}, and not as Lago does")), false),
            }
        }
    };
    findings.push(finding);
    (findings, is_there)
}

async fn takes_key(api: &LagoApi) -> Finding {
    match api.exchange(Method::GET, Place::Api("webhook_endpoints?per_page=1"), None).await {
        Ok(Exchange { status: 200, .. }) => Finding::good("lago-key", "Lago takes LAGO_API_KEY"),
        Ok(Exchange { status: 401, .. }) => Finding::of(&LAGO_KEY_REFUSED, "Lago refuses LAGO_API_KEY (401)"),
        Ok(Exchange { status: 403, body, .. }) => {
            let code = body["code"].as_str().unwrap_or("no code");
            Finding::of(&LAGO_KEY_LACKS, format!("LAGO_API_KEY may not read webhook endpoints (403, {code})"))
        }
        Ok(Exchange { status: status @ 502..=504, .. }) => {
            Finding::of(&LAGO_AWAY, format!("/api/v1/webhook_endpoints: a proxy answers {status} in Lago's place"))
        }
        Ok(Exchange { status: status @ 500.., .. }) => {
            Finding::of(&LAGO_FAILS, format!("/api/v1/webhook_endpoints answers {status}"))
        }
        Ok(answer) => Finding::of(&LAGO_OTHER, format!("/api/v1/webhook_endpoints answers {}", answer.status)),
        Err(error) => Finding::of(&LAGO_AWAY, chain(&error)),
    }
}

/// What Lago's clock has done. Where there was nothing for it to do, nobody can tell.
async fn clock(api: &LagoApi, asking: &Asking<'_>) -> Finding {
    let traces = api.clock_traces(asking.now, CLOCK_WITHIN).await;
    if let Some(first) = traces.undone.first() {
        let more = match traces.undone.len() - 1 {
            0 => String::new(),
            more => format!(", and {more} more"),
        };
        return Finding::of(&LAGO_CLOCK, format!("{}: {}{more}", first.at, first.what));
    }
    let unseen = traces.unseen.first().map(|(what, error)| {
        let why = error.as_ref().map_or_else(|| "no answer in time".to_owned(), |error| chain(error));
        format!("{what} cannot be seen: {why}")
    });
    let Some(done) = traces.done else {
        if let Some(unseen) = unseen {
            return Finding::unknown("lago-clock", unseen, LOOK_AT_THE_CLOCK);
        }
        return Finding::unknown("lago-clock", "nothing that the clock would have had to do", LOOK_AT_THE_CLOCK);
    };
    let hours = asking.now.since(done.at).as_secs() / 3_600;
    let unseen = unseen.map(|unseen| format!("; {unseen}")).unwrap_or_default();
    let text = format!("last seen to work after {}: {}{unseen}", done.at, done.what);
    if hours <= RECENT_HOURS {
        Finding::good("lago-clock", text)
    } else {
        Finding::unknown("lago-clock", format!("{text}; nothing was due since"), LOOK_AT_THE_CLOCK)
    }
}

/// The worker's own answer: getlago/lago-api `config/initializers/sidekiq.rb`; on 0.0.0.0 from v1.30.0 on.
pub(crate) async fn worker(asking: &Asking<'_>) -> Vec<Finding> {
    let Some(url) = asking.settings.get("OUTRIGGER_LAGO_WORKER_URL") else {
        return vec![Finding::unset("lago-worker", "OUTRIGGER_LAGO_WORKER_URL (http://lago-worker:8080)")];
    };
    vec![match asking.client.get(url).send().await {
        Ok(answer) if answer.status().is_success() => {
            Finding::good("lago-worker", "the worker answers, and Redis answers it")
        }
        Ok(answer) => Finding::of(&LAGO_WORKER_UNHEALTHY, format!("it answers {}", answer.status().as_u16())),
        Err(error) => {
            let text = format!("{}; before v1.30.0 it answers only in its own container", chain(&error.without_url()));
            Finding::of(&LAGO_WORKER_AWAY, text)
        }
    }]
}

/// How long Lago tries.
pub(crate) fn attempts(asking: &Asking<'_>) -> Finding {
    let Some(text) = asking.settings.get("LAGO_WEBHOOK_ATTEMPTS") else {
        return Finding::unset(
            "webhook-attempts",
            "LAGO_WEBHOOK_ATTEMPTS, as Lago's worker has it (3 where it has none, which lasts 21 s)",
        );
    };
    match text.parse::<u32>() {
        Ok(attempts) if attempts >= ATTEMPTS_FOR_A_NIGHT => {
            Finding::good("webhook-attempts", format!("{attempts} attempts, {}", lasting(attempts)))
        }
        Ok(attempts) => Finding::of(&ATTEMPTS, format!("{attempts} attempts, {}", lasting(attempts))),
        Err(_) => Finding::of(&SETTING, "LAGO_WEBHOOK_ATTEMPTS is not a number"),
    }
}

/// Lago waits n⁴ + 2 s after the nth attempt, and up to 15 % longer.
fn lasting(attempts: u32) -> String {
    let seconds: u64 = (1..u64::from(attempts.min(60))).map(|n| n.pow(4) + 2).sum();
    match seconds {
        0..120 => format!("over {seconds} s"),
        120..7_200 => format!("over {} min", seconds / 60),
        _ => format!("over {} h", seconds / 3_600),
    }
}

/// What the webhook processor takes: paths with their signatures, and what is wrong with what says so.
fn intakes(asking: &Asking<'_>) -> (Vec<(String, Option<Signature>)>, Vec<String>) {
    let mut env: Vec<(String, String)> = asking
        .settings
        .all()
        .filter(|(name, _)| name.starts_with("SIDECAR_LAGO__") || name.starts_with("LAGO_WEBHOOK_"))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    // The compose file's name for it.
    let named = asking.settings.get("LAGO_WEBHOOK_SIGNATURE");
    if let Some(signature) = named.filter(|_| asking.settings.get("SIDECAR_LAGO__SIGNATURE").is_none()) {
        env.push(("SIDECAR_LAGO__SIGNATURE".to_owned(), signature.to_owned()));
    }
    let file: Option<PathBuf> = asking.settings.path("LAGO_WEBHOOK_PROCESSOR_CONFIG");
    let (config, mut lines) = read::<Config>(&Source { file, env, well_known: well_known() });
    // The rest of its configuration is not here, and not asked about.
    lines.retain(|line| ["SIDECAR_LAGO__", "LAGO_WEBHOOK_", "--config"].iter().any(|begin| line.starts_with(begin)));
    (config.lago.intakes(), lines)
}

async fn endpoint(api: &LagoApi, asking: &Asking<'_>) -> Vec<Finding> {
    if Installed::of(asking.settings).is_some_and(|installed| !installed.has(PROCESSOR)) {
        return vec![Finding::not_checked("webhook-endpoint", "lago-webhook-processor in COMPOSE_PROFILES")];
    }
    let (intakes, lines) = intakes(asking);
    if !lines.is_empty() {
        return lines.into_iter().map(|line| Finding::of(&SETTING, line)).collect();
    }
    let endpoints = match api.first_page("webhook_endpoints?per_page=100").await {
        Ok(endpoints) => endpoints,
        Err(error @ ApiError::Denied(403)) => {
            return vec![Finding::unknown("webhook-endpoint", chain(&error), "see what is said of lago-key")];
        }
        Err(error) => return vec![Finding::unknown("webhook-endpoint", chain(&error), "ask again")],
    };
    let wanted = asking.settings.get("LAGO_WEBHOOK_URL");
    judge(&endpoints, &intakes, wanted, &names::named(asking))
}

/// Every endpoint that leads to the processor, beside what the processor takes. Without `wanted` those lead there that have a
/// path of the processor's; the host is only taken for its own where it is the compose file's or one of `public`.
fn judge(
    endpoints: &[Object],
    intakes: &[(String, Option<Signature>)],
    wanted: Option<&str>,
    public: &[String],
) -> Vec<Finding> {
    let paths = || intakes.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>().join(" or ");
    let path_of = |url: &str| Url::parse(url).map(|url| url.path().to_owned()).unwrap_or_default();
    let is_like = |one: &str, other: &str| one.trim_end_matches('/') == other.trim_end_matches('/');
    let leads = |endpoint: &&Object| {
        let url = text(endpoint, "webhook_url");
        wanted.map_or_else(
            || intakes.iter().any(|(known, _)| is_like(known, &path_of(url))),
            |wanted| is_like(url, wanted),
        )
    };
    let leading: Vec<&Object> = endpoints.iter().filter(leads).collect();
    if leading.is_empty() {
        let known: Vec<String> = endpoints.iter().map(|endpoint| shown_url(text(endpoint, "webhook_url"))).collect();
        let known =
            if known.is_empty() { "Lago has none".to_owned() } else { format!("Lago has {}", known.join(", ")) };
        let wanted = wanted.map_or_else(paths, shown_url);
        return vec![Finding::of(&ENDPOINT_MISSING, format!("no webhook endpoint leads to {wanted}: {known}"))];
    }
    let mut findings: Vec<Finding> = Vec::new();
    for endpoint in &leading {
        let (url, algorithm) = (text(endpoint, "webhook_url"), text(endpoint, "signature_algo"));
        let (shown, path) = (shown_url(url), path_of(url));
        let Some((_, signature)) = intakes.iter().find(|(known, _)| *known == path) else {
            let text = format!("{shown}: the webhook processor takes {}, and nothing at {path}", paths());
            findings.push(Finding::of(&ENDPOINT_PATH, text));
            continue;
        };
        let has_no_types = endpoint.get("event_types").and_then(Value::as_array).is_some_and(Vec::is_empty);
        let host = Url::parse(url).ok().and_then(|url| url.host_str().map(str::to_owned)).unwrap_or_default();
        findings.push(match signature {
            _ if has_no_types => Finding::of(&ENDPOINT_NOTHING, format!("{shown} is sent no type of event")),
            Some(signature) if name_of(*signature) != algorithm => Finding::of(
                &ENDPOINT_ALGORITHM,
                format!("{shown} is signed with {algorithm}, the webhook processor checks {}", name_of(*signature)),
            ),
            None => Finding::unknown(
                "webhook-endpoint",
                format!("{shown} is signed with {algorithm}; nobody says what the webhook processor checks"),
                "set SIDECAR_LAGO__SIGNATURE (compose: LAGO_WEBHOOK_SIGNATURE) or LAGO_WEBHOOK_PROCESSOR_CONFIG for the doctor too",
            ),
            Some(_) if wanted.is_none() && host != PROCESSOR && !public.contains(&host) => Finding::unknown(
                "webhook-endpoint",
                format!("{shown}, {algorithm}, as the webhook processor checks it; nobody says whether {host} is where that listens"),
                "set LAGO_WEBHOOK_URL to the address that Lago reaches the webhook processor at",
            ),
            Some(_) => {
                Finding::good("webhook-endpoint", format!("{shown}, {algorithm}, as the webhook processor checks it"))
            }
        });
    }
    if leading.len() > 1 {
        let all: Vec<String> = leading.iter().map(|endpoint| shown_url(text(endpoint, "webhook_url"))).collect();
        findings.push(Finding::of(&ENDPOINT_TWICE, all.join(", ")));
    }
    findings
}

fn text<'a>(endpoint: &'a Object, name: &str) -> &'a str {
    endpoint.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn name_of(signature: Signature) -> &'static str {
    match signature {
        Signature::Hmac => "hmac",
        Signature::Jwt => "jwt",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_last_as_long_as_lago_makes_them() {
        assert_eq!(lasting(3), "over 21 s");
        assert_eq!(lasting(10), "over 4 h");
        assert_eq!(lasting(15), "over 35 h");
        assert_eq!(lasting(0), "over 0 s");
    }
}
