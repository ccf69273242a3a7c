//! Whom the daemon trusts: certificates of the gateway and of Lago.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kit::secret::Secret;
use kit_lago::stand_in::PublicKeyServer;
use kit_workbench::chaos::ChaosProxy;
use kit_workbench::ledger::{Crash, Ledger};
use kit_workbench::raw;
use kit_workbench::scratch::{Scratch, free_port};
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::named;
use outrigger_tests::rig::{Mode, REQUEST_DEADLINE, Rig};
use outrigger_tests::tls::{Authority, TlsFront, Validity};

/// T20: a gateway with an expired, future, foreign, self-signed or otherwise wrong certificate, with an
/// old protocol or with none, gets not one request; the events wait, and go to the right one.
pub(crate) async fn a_gateway_that_cannot_prove_itself_gets_nothing(trial: Trial) -> Result<Outcome> {
    let keys = Scratch::new("outrigger-keys")?;
    let (authority, stranger) = (Authority::new(&keys.file("own"))?, Authority::new(&keys.file("other"))?);
    let port = free_port()?;
    let mut notes = String::new();
    let mut cases = 0;
    for round in 0..trial.count {
        let mut rig = Rig::new(Mode::Hmac, &[]).await?;
        let authorities = authority.certificate().display().to_string();
        // By the platform's variable, or by the setting.
        let by = if round % 2 == 0 { "SSL_CERT_FILE" } else { "SIDECAR_GATEWAY__CA_FILE" };
        rig.set(by, &authorities);
        rig.set("BRAIN_GATEWAY_URL", &format!("https://localhost:{port}"));
        rig.set("SIDECAR_GATEWAY__CIRCUIT__PROBE_MAX_SECONDS", "1");
        rig.start().await?;
        let mut ledger = Ledger::new();
        let wrong = [
            ("expired", authority.identity("DNS:localhost", Validity::PAST)?),
            ("not yet valid", authority.identity("DNS:localhost", Validity::FUTURE)?),
            ("of another host", authority.identity("DNS:gateway.example", Validity::NOW)?),
            ("of an address", authority.identity("IP:127.0.0.1", Validity::NOW)?),
            ("of a wider domain", authority.identity("DNS:*.localhost", Validity::NOW)?),
            ("self-signed", authority.self_signed("DNS:localhost")?),
            ("by a stranger", stranger.identity("DNS:localhost", Validity::NOW)?),
        ];
        for (what, identity) in &wrong {
            free(port).await?;
            let front = TlsFront::start(identity, port, rig.gateway.addr()).await?;
            refused(&rig, &mut ledger, what).await?;
            let (_, broken_off) = front.handshakes();
            ensure!(broken_off > 0, "{what}: nobody tried");
            cases += 1;
        }
        for version in ["-tls1", "-tls1_1"] {
            free(port).await?;
            let Some(_server) = old_server(&authority, port, version).await? else {
                let _ = write!(notes, "openssl cannot speak {version}; ");
                continue;
            };
            refused(&rig, &mut ledger, version).await?;
            cases += 1;
        }
        // No TLS at all, on the port where it should be.
        free(port).await?;
        let plain = ChaosProxy::start_on(SocketAddr::from(([127, 0, 0, 1], port)), rig.gateway.addr()).await?;
        refused(&rig, &mut ledger, "in the clear").await?;
        ensure!(plain.connections() > 0, "in the clear: nobody tried");
        drop(plain);
        cases += 1;
        let waiting = rig.api("/api/v1/statistics").await?["sinks"][0]["pending"].as_u64();
        ensure!(waiting == Some(ledger.sent_requests().len() as u64), "not all are waiting: {waiting:?}");

        free(port).await?;
        let right = authority.identity("DNS:localhost", Validity::NOW)?;
        let front = TlsFront::start(&right, port, rig.gateway.addr()).await?;
        let wanted = ledger.sent_requests().len() as u64;
        rig.gateway.wait_for_unique(wanted, REQUEST_DEADLINE).await.with_context(|| format!("by {by}"))?;
        ensure!(front.handshakes().0 > 0, "delivered, but not through the right gateway");
        rig.drained().await?;
        let from = kit_workbench::Moment::from_micros(0);
        ledger.crash(Crash { what: "none".to_owned(), from, until: from, in_flight: 0 });
        rig.settle(ledger, &format!("T20-{}-{round}", trial.seed)).await?;
        let _ = write!(notes, "{wanted} events waited and went to the right one, trusted by {by}; ");
    }
    Ok(Outcome::new(cases, notes.trim_end_matches("; ")))
}

/// T20: a Lago behind an authority of one's own is believed where the configuration names that authority, and not else.
pub(crate) async fn a_lago_behind_an_own_authority_gives_its_key(_: Trial) -> Result<Outcome> {
    const API_KEY: &str = "lago-api-key";
    let keys = Scratch::new("outrigger-keys")?;
    let authority = Authority::new(&keys.file("own"))?;
    let mut rig = Rig::new(Mode::Jwt, &[]).await?;
    let lago = PublicKeyServer::start(rig.signer()?.public_pem(), Secret::from(API_KEY.to_owned())).await?;
    let identity = authority.identity("DNS:localhost", Validity::NOW)?;
    let front = TlsFront::start(&identity, 0, lago.address()).await?;
    rig.set("LAGO_WEBHOOK_PUBLIC_KEY_FILE", "");
    rig.set("LAGO_API_URL", &format!("https://localhost:{}", front.addr().port()));
    rig.set("LAGO_API_KEY", API_KEY);

    let command = rig.command()?;
    rig.spawn(&command)?;
    let admin = rig.admin;
    let begin = Instant::now();
    while front.handshakes().1 == 0 {
        ensure!(begin.elapsed() < REQUEST_DEADLINE, "Lago is not asked");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let ready = loop {
        match raw::get(admin, "/readyz", REQUEST_DEADLINE).await {
            Ok(ready) => break ready,
            Err(error) => ensure!(begin.elapsed() < REQUEST_DEADLINE, "nobody is there: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    ensure!(ready.status == 503, "a Lago of nobody's is believed: {}", ready.text());
    rig.kill().await?;

    rig.set("SIDECAR_LAGO__CA_FILE", &authority.certificate().display().to_string());
    rig.start().await?;
    let answer = rig.post("key-1", r#"{"webhook_type":"fee.created","fee":{}}"#).await?;
    ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
    Ok(Outcome::new(2_u64, "its key is fetched with lago.ca_file only"))
}

/// Waits until nobody listens on the port: whoever was just dropped takes a moment.
async fn free(port: u16) -> Result<()> {
    let deadline = Instant::now() + REQUEST_DEADLINE;
    while tokio::net::TcpListener::bind(("127.0.0.1", port)).await.is_err() {
        ensure!(Instant::now() < deadline, "port {port} stays taken");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Sends an event, waits until it has been tried in vain, and sees that the gateway has not got it.
async fn refused(rig: &Rig, ledger: &mut Ledger, what: &str) -> Result<()> {
    let tried =
        || async { anyhow::Ok(rig.metrics().await?.sum("delivery_attempts_total", &[("outcome", "unreachable")])) };
    let before = tried().await?;
    named::send(rig, ledger, &what.replace(' ', "-")).await?;
    let deadline = Instant::now() + REQUEST_DEADLINE;
    // Two: the first may have begun with the gateway before.
    while tried().await? < before + 2.0 {
        ensure!(Instant::now() < deadline, "{what}: no attempt has failed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let counts = rig.gateway.counts();
    ensure!(counts.received == 0, "{what}: {} requests reached the gateway", counts.received);
    Ok(())
}

/// A server that speaks an old version only, with a certificate that would be right; `None` where
/// openssl is missing or no longer knows the version.
async fn old_server(authority: &Authority, port: u16, version: &str) -> Result<Option<tokio::process::Child>> {
    let identity = authority.identity("DNS:localhost", Validity::NOW)?;
    let server = tokio::process::Command::new("openssl")
        .args(["s_server", "-quiet", "-www", version, "-cipher", "ALL:@SECLEVEL=0"])
        .args(["-accept", &format!("127.0.0.1:{port}"), "-cert"])
        .arg(&identity.certificate)
        .arg("-key")
        .arg(&identity.key)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    let Ok(mut server) = server else { return Ok(None) };
    let deadline = Instant::now() + REQUEST_DEADLINE;
    while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        if server.try_wait()?.is_some() {
            return Ok(None);
        }
        ensure!(Instant::now() < deadline, "openssl does not listen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(Some(server))
}
