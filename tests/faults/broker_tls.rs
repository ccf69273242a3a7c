//! A broker behind TLS: believed where an authority that is trusted vouches for its name, and not otherwise.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use kit::clock::Timestamp;
use kit::secret::Secret;
use kit_amqp::{AmqpMetrics, AmqpSection, AmqpSink};
use kit_delivery::{Failure, Sink as _, Verdict};
use kit_journal::{EventHead, EventId, StoredEvent};
use kit_workbench::broker::Broker;
use kit_workbench::scratch::{Scratch, free_ports};
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::tls::{Authority, Validity};

fn section(port: u16, host: &str, ca_file: Option<PathBuf>) -> AmqpSection {
    AmqpSection {
        url: Some(Secret::from(format!("amqps://{host}:{port}"))),
        ca_file,
        queues: BTreeMap::from([("all".to_owned(), vec!["#".to_owned()])]),
        ..AmqpSection::default()
    }
}

fn event(number: u32) -> StoredEvent {
    let id = EventId::derive("lago/a", &number.to_string(), None);
    StoredEvent {
        seq: i64::from(number),
        at: Timestamp::from_millis(1_700_000_000_000),
        head: EventHead { json: true, ..EventHead::new(id, "lago/a", "lago.x", "invoice/1", number.to_string()) },
        body: bytes::Bytes::from_static(b"{}"),
    }
}

/// T20: a real broker with certificates of an own authority: published to where that one is trusted, and nothing is said,
/// not even the password, where another one is, or none, or the certificate is for another name or of another time.
pub(crate) async fn a_broker_is_believed_by_its_certificate_alone(trial: Trial) -> Result<Outcome> {
    if !Broker::is_installed() {
        return Ok(Outcome::skipped("there is no RabbitMQ on this machine"));
    }
    let scratch = Scratch::new("broker-tls")?;
    let (own, other) = (Authority::new(&scratch.file("own"))?, Authority::new(&scratch.file("other"))?);
    let identities = [
        own.identity("IP:127.0.0.1", Validity::NOW)?,
        own.identity("DNS:broker.example", Validity::NOW)?,
        own.identity("IP:127.0.0.1", Validity::PAST)?,
    ];
    let mut brokers = Vec::new();
    for identity in &identities {
        let [port] = free_ports()?;
        let shown = |path: &Path| path.display().to_string();
        let settings = [
            format!("listeners.ssl.1 = 127.0.0.1:{port}"),
            format!("ssl_options.cacertfile = {}", shown(&own.certificate())),
            format!("ssl_options.certfile = {}", shown(&identity.certificate)),
            format!("ssl_options.keyfile = {}", shown(&identity.key)),
        ];
        brokers.push((Broker::start_with(&settings).await?, port));
    }
    let (trusted, untrusted) = (Some(own.certificate()), Some(other.certificate()));
    // Which broker, by which name, whom we trust, and whether it is believed.
    let cases = [
        (0, "127.0.0.1", &trusted, true),
        (0, "127.0.0.1", &untrusted, false),
        (0, "127.0.0.1", &None, false),
        (0, "localhost", &trusted, false),
        (1, "127.0.0.1", &trusted, false),
        (2, "127.0.0.1", &trusted, false),
    ];
    let mut said = BTreeMap::new();
    for round in 0..trial.count {
        trial.progress(round);
        for (case, (broker, host, ca_file, is_believed)) in cases.iter().enumerate() {
            let section = section(brokers[*broker].1, host, (*ca_file).clone());
            let sink = AmqpSink::new("rabbitmq", "test", &section, &AmqpMetrics::default())
                .map_err(|errors| anyhow::anyhow!("{}", errors[0]))?;
            let outcome = sink.deliver(&event(round)).await;
            match (outcome.verdict, is_believed) {
                (Verdict::Delivered, true) => {}
                (Verdict::Failed(Failure::Unreachable), false) => {
                    let text = outcome.error.unwrap_or_default();
                    ensure!(text.contains("certificate"), "case {case}: {text}");
                    said.insert(case, text);
                }
                _ => anyhow::bail!("case {case}: {outcome:?}"),
            }
        }
    }
    ensure!(said.len() == cases.len() - 1, "{said:?}");
    Ok(Outcome::new(
        trial.count as usize * cases.len(),
        format!("{} kinds refused, each naming the certificate", said.len()),
    ))
}
