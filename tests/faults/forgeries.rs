//! Who may write into the journal: recorded requests, and everything that only looks like one.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kit::secret::Secret;
use kit_lago::signature::{RsaSigner, sign_hmac};
use kit_workbench::process::DaemonCommand;
use kit_workbench::raw::{self, RawResponse};
use outrigger_tests::binaries;
use outrigger_tests::captures::{self, Capture};
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::rig::{DAEMON, ISSUER, Mode, REQUEST_DEADLINE, Rig};
use outrigger_tests::tokens::{b64, claims, signed, with_signature};

const RS256: &str = r#"{"alg":"RS256"}"#;

/// A rig that has the keys of the recordings.
async fn recorded(mode: Mode) -> Result<(Rig, Vec<Capture>)> {
    let mut rig = Rig::new(mode, &[]).await?;
    let captures = match mode {
        Mode::Hmac => {
            let file = rig.scratch.write("recorded", captures::HMAC_KEY)?;
            rig.set("LAGO_WEBHOOK_HMAC_KEY_FILE", &file.display().to_string());
            captures::all("hmac")?
        }
        Mode::Jwt => {
            rig.set("LAGO_WEBHOOK_PUBLIC_KEY_FILE", &captures::public_key_file().display().to_string());
            rig.set("SIDECAR_LAGO__ISSUER", captures::ISSUER);
            captures::all("jwt")?
        }
    };
    rig.start().await?;
    Ok((rig, captures))
}

/// Refuses anything but the one 401 that all forgeries get. A changed byte can make a header that is
/// no HTTP any more: then it is a 400.
fn refused(answer: &RawResponse, what: &str) -> Result<()> {
    let text = answer.text();
    ensure!(matches!(answer.status, 400 | 401), "{what}: answered {} {text}", answer.status);
    ensure!(
        answer.status == 400 || text == r#"{"error":"unauthorized"}"#,
        "{what}: the 401 tells more than it should: {text}"
    );
    Ok(())
}

async fn nothing_was_taken(rig: &Rig, before: u64) -> Result<()> {
    let taken = rig.taken().await?;
    ensure!(taken == before, "{} forgeries were accepted", taken - before);
    let stored = rig.api("/api/v1/statistics").await?["accepted"].clone();
    ensure!(stored == before, "the journal holds {stored} events, {before} were accepted");
    Ok(())
}

fn flipped(bytes: &[u8], at: usize, bit: u8) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 1 << (bit % 8);
    bytes
}

/// The recordings: all eighty are accepted and delivered byte for byte, and each of them is refused
/// with one byte of the body flipped, and with one byte of the signature flipped.
pub(crate) async fn recorded_requests_are_accepted_and_refused_with_one_byte_flipped(
    mut trial: Trial,
) -> Result<Outcome> {
    let (mut accepted, mut forged) = (0_u64, 0);
    for mode in [Mode::Hmac, Mode::Jwt] {
        let (rig, captures) = recorded(mode).await?;
        for capture in &captures {
            let signature = capture.header("X-Lago-Signature").context("a recording is signed")?.as_bytes().to_vec();
            for _ in 0..trial.count {
                let mut spoiled = capture.clone();
                let at = trial.random.usize(..spoiled.body.len());
                spoiled.body = flipped(&spoiled.body, at, trial.random.u8(..));
                let answer = raw::exchange(rig.public, &spoiled.request(None), REQUEST_DEADLINE).await?;
                refused(&answer, &format!("body byte {at}"))?;
                let at = trial.random.usize(..signature.len());
                let spoiled = flipped(&signature, at, trial.random.u8(..));
                let answer = raw::exchange(rig.public, &capture.request(Some(&spoiled)), REQUEST_DEADLINE).await?;
                refused(&answer, &format!("signature byte {at}"))?;
                forged += 2;
            }
        }
        nothing_was_taken(&rig, 0).await?;
        // After the forgeries: none of them may stand in the way of the real ones.
        for capture in &captures {
            let answer = raw::exchange(rig.public, &capture.request(None), REQUEST_DEADLINE).await?;
            ensure!(answer.status == 200, "a recorded request is answered {} {}", answer.status, answer.text());
            ensure!(answer.json()?["duplicate"] == false, "{}", answer.text());
        }
        nothing_was_taken(&rig, 40).await?;
        let received = rig.gateway.wait_for(40, REQUEST_DEADLINE).await?;
        let sent: BTreeSet<_> = captures.iter().map(|capture| kit_workbench::Digest::of(&capture.body)).collect();
        let delivered: BTreeSet<_> = received.iter().map(|received| received.data_sha256).collect();
        ensure!(sent == delivered, "the gateway got other bytes than were sent");
        accepted += 40;
    }
    Ok(Outcome::new(accepted + forged, format!("{accepted} accepted, {forged} forgeries refused")))
}

/// T1: valid requests with one byte of body or signature changed, at random places.
pub(crate) async fn no_changed_byte_gets_through(mut trial: Trial) -> Result<Outcome> {
    for mode in [Mode::Hmac, Mode::Jwt] {
        let (rig, captures) = recorded(mode).await?;
        for case in 0..trial.count / 2 {
            trial.progress(case);
            let capture = &captures[trial.random.usize(..captures.len())];
            let signature = capture.header("X-Lago-Signature").context("a recording is signed")?.as_bytes();
            let at = trial.random.usize(..signature.len() + capture.body.len());
            let bit = trial.random.u8(..);
            let request = if at < signature.len() {
                capture.request(Some(&flipped(signature, at, bit)))
            } else {
                let mut spoiled = capture.clone();
                spoiled.body = flipped(&capture.body, at - signature.len(), bit);
                spoiled.request(None)
            };
            let answer = raw::exchange(rig.public, &request, REQUEST_DEADLINE).await?;
            refused(&answer, &format!("{mode:?}, byte {at}, bit {}", bit % 8))?;
        }
        nothing_was_taken(&rig, 0).await?;
    }
    Ok(Outcome::new(trial.count, "0 accepted"))
}

/// Sends every token with the same body; all must be refused and leave nothing behind.
async fn all_refused(rig: &Rig, body: &str, tokens: &[(String, String)]) -> Result<()> {
    for (what, token) in tokens {
        let answer = rig.post_signed("forged", body, token).await.with_context(|| what.clone())?;
        refused(&answer, what)?;
    }
    nothing_was_taken(rig, 0).await?;
    // The key of the forgeries is not poisoned: a real webhook under it is new (T18).
    let answer = rig.post("forged", body).await?;
    ensure!(answer.status == 200 && answer.json()?["duplicate"] == false, "{} {}", answer.status, answer.text());
    Ok(())
}

/// T2: tokens of another algorithm than the configured one, however it is spelled.
pub(crate) async fn no_other_algorithm_is_accepted(_: Trial) -> Result<Outcome> {
    let rig = Rig::started(Mode::Jwt, &[]).await?;
    let (signer, body) = (rig.signer()?, r#"{"webhook_type":"fee.created"}"#);
    let claims = claims(body, ISSUER);
    let pem = signer.public_pem();
    let message = |header: &str| format!("{}.{}", b64(header), b64(&claims));
    let mut tokens: Vec<(String, String)> = Vec::new();
    // Nothing, or nonsense, instead of a signature.
    for alg in ["none", "None", "NONE", "nOnE", "", "null", "RS256", "HS256"] {
        let header = format!(r#"{{"alg":"{alg}"}}"#);
        tokens.push((format!("{alg}, empty signature"), format!("{}.", message(&header))));
        tokens.push((format!("{alg}, no signature"), message(&header)));
        tokens.push((format!("{alg}, zeros"), with_signature(&header, &claims, [0; 256])));
    }
    // The public key as a secret: what a verifier does that believes the header.
    for alg in ["HS256", "HS384", "HS512", "hs256", "RS256"] {
        for key in [pem.clone(), pem.trim_end().to_owned(), pem.replace('\n', "\r\n")] {
            let header = format!(r#"{{"alg":"{alg}","typ":"JWT"}}"#);
            let mac = STANDARD.decode(sign_hmac(&Secret::from(key), message(&header).as_bytes()))?;
            tokens.push((format!("{alg} with the public key"), with_signature(&header, &claims, mac)));
        }
    }
    // A right RS256 signature under a header that says something else.
    for alg in [
        "RS384",
        "RS512",
        "PS256",
        "PS384",
        "PS512",
        "ES256",
        "ES384",
        "ES512",
        "EdDSA",
        "HS256",
        "rs256",
        "Rs256",
        "RS256 ",
        " RS256",
        "RS256\\u0000",
        "none",
        "",
    ] {
        let header = format!(r#"{{"alg":"{alg}"}}"#);
        tokens.push((format!("header says {alg:?}"), signed(&signer, &header, &claims)?));
    }
    for header in [
        "{}",
        r#"{"typ":"JWT"}"#,
        r#"{"alg":null}"#,
        r#"{"alg":256}"#,
        r#"{"alg":["RS256"]}"#,
        r#"{"ALG":"RS256"}"#,
        r#"{"alg":"none","alg":"none"}"#,
        "[]",
        "null",
        r#""RS256""#,
        "",
        "{",
        "not json",
    ] {
        tokens.push((format!("header {header}"), signed(&signer, header, &claims)?));
    }
    all_refused(&rig, body, &tokens).await?;
    Ok(Outcome::new(tokens.len(), "0 accepted"))
}

/// T3: a token that brings, names or points to its own key is judged by the configured one.
pub(crate) async fn no_key_that_a_token_brings_is_used(_: Trial) -> Result<Outcome> {
    let rig = Rig::started(Mode::Jwt, &[]).await?;
    let attacker = tokio::task::spawn_blocking(RsaSigner::generate).await??;
    let body = r#"{"webhook_type":"fee.created"}"#;
    let claims = claims(body, ISSUER);
    let der: String = attacker.public_pem().lines().filter(|line| !line.starts_with('-')).collect();
    let url = rig.gateway.url();
    let own = rig.scratch.write("attacker.pem", attacker.public_pem())?.display().to_string();
    let extras = [
        format!(r#""jwk":{{"kty":"RSA","n":"{der}","e":"AQAB"}}"#),
        r#""jwk":{"kty":"oct","k":""}"#.to_owned(),
        r#""jwk":null"#.to_owned(),
        format!(r#""jku":"{url}/keys.json""#),
        format!(r#""jku":"{url}@127.0.0.1/keys.json","kid":"1""#),
        format!(r#""x5u":"{url}/cert.pem""#),
        format!(r#""x5c":["{der}"]"#),
        r#""x5c":[]"#.to_owned(),
        r#""x5t":"AAAA""#.to_owned(),
        r#""x5t#S256":"AAAA""#.to_owned(),
        format!(r#""kid":"{own}""#),
        r#""kid":"../../../../dev/null""#.to_owned(),
        r#""kid":"/proc/self/environ""#.to_owned(),
        r#""kid":"' UNION SELECT 'key' --""#.to_owned(),
        r#""kid":"; ls |""#.to_owned(),
        r#""kid":"default""#.to_owned(),
        r#""kid":"""#.to_owned(),
        r#""kid":0"#.to_owned(),
        r#""kid":null"#.to_owned(),
        r#""kid":["a"]"#.to_owned(),
        r#""crit":["kid"],"kid":"a""#.to_owned(),
        r#""crit":[]"#.to_owned(),
        r#""b64":false,"crit":["b64"]"#.to_owned(),
        r#""zip":"DEF""#.to_owned(),
        r#""enc":"A256GCM""#.to_owned(),
        r#""cty":"JWT""#.to_owned(),
        r#""typ":"JWT""#.to_owned(),
        format!(r#""jku":"file://{own}""#),
        format!(r#""x5u":"file://{own}""#),
        r#""typ":"at+jwt""#.to_owned(),
    ];
    let mut tokens = Vec::new();
    for extra in extras {
        tokens.push((extra.clone(), signed(&attacker, &format!(r#"{{"alg":"RS256",{extra}}}"#), &claims)?));
    }
    all_refused(&rig, body, &tokens).await?;
    // The one genuine webhook at the end is the only request that may have reached it.
    rig.gateway.wait_for(1, REQUEST_DEADLINE).await?;
    ensure!(rig.gateway.counts().received == 1, "somebody looked a key up");
    Ok(Outcome::new(tokens.len(), "0 accepted, no key looked up"))
}

/// T3: a file that holds no usable public key stops the start, with the variable and the file.
pub(crate) async fn no_weak_or_wrong_key_file_is_taken(_: Trial) -> Result<Outcome> {
    let folder = binaries::repository().join("sidecars/kit-lago/tests/fixtures/keys");
    let rig = Rig::new(Mode::Jwt, &[]).await?;
    let signer = rig.signer()?;
    let mut files = vec![
        rig.scratch.write("empty.pem", "")?,
        rig.scratch.write("private.pem", signer.private_pem()?.expose())?,
        rig.scratch.write("text.pem", "not a key")?,
    ];
    let mut good = 0;
    for entry in std::fs::read_dir(&folder)? {
        let path = entry?.path();
        match path.file_name().and_then(|name| name.to_str()) {
            Some("rsa-2048.pem" | "rsa-2048-pkcs1.pem" | "rsa-exponent-3.pem") => good += 1,
            Some(name) if !name.ends_with(".md") => files.push(path),
            _ => {}
        }
    }
    for file in &files {
        let command = check(&rig)?.env("LAGO_WEBHOOK_PUBLIC_KEY_FILE", file.display().to_string());
        let mut process = command.spawn()?;
        let exit = process.wait(REQUEST_DEADLINE).await?;
        let said = process.stderr();
        let name = file.display().to_string();
        ensure!(exit.code == Some(78), "{name}: {exit}");
        ensure!(said.lines().count() == 1 && said.starts_with("LAGO_WEBHOOK_PUBLIC_KEY_FILE: "), "{name}: {said}");
        ensure!(!said.contains("BEGIN PRIVATE") && !said.contains("MII"), "{name}: the key is shown: {said}");
    }
    ensure!(files.len() >= 12 && good > 0, "{} bad key files, {good} good ones", files.len());
    Ok(Outcome::new(files.len(), "each refused by name, exit 78"))
}

/// The rig's daemon, asked only whether its configuration is right.
fn check(rig: &Rig) -> Result<DaemonCommand> {
    Ok(DaemonCommand::new(binaries::daemon(DAEMON)?).args(["--check-config"]).envs(rig.environment().to_vec()))
}

/// T4: claims that are missing, of another type, doubled, or about another body.
pub(crate) async fn no_claim_but_lagos_own_is_accepted(_: Trial) -> Result<Outcome> {
    let rig = Rig::started(Mode::Jwt, &[]).await?;
    let signer = rig.signer()?;
    let body = r#"{"webhook_type":"fee.created","amount":"1.10"}"#;
    let quoted = serde_json::Value::from(body).to_string();
    let iss = format!(r#""iss":"{ISSUER}""#);
    let mut tokens = Vec::new();
    let mut push = |claims: String| -> Result<()> {
        tokens.push((claims.clone(), signed(&signer, RS256, &claims)?));
        Ok(())
    };
    // No such data.
    push(format!("{{{iss}}}"))?;
    push("{}".to_owned())?;
    for data in [
        "null",
        "true",
        "1",
        "[]",
        "{}",
        r#""""#,
        body,
        &format!("[{quoted}]"),
        r#""{\"webhook_type\":\"fee.created\"}""#,
        r#""{\"webhook_type\":\"fee.created\",\"amount\":\"1.1\"}""#,
        r#""{\"amount\":\"1.10\",\"webhook_type\":\"fee.created\"}""#,
        r#"" {\"webhook_type\":\"fee.created\",\"amount\":\"1.10\"}""#,
        r#""{\"webhook_type\":\"fee.created\",\"amount\":\"1.10\"}\n""#,
        r#""{\"webhook_type\": \"fee.created\",\"amount\":\"1.10\"}""#,
        r#""{\"webhook_type\":\"fee.created\",\"amount\":\"1.10\"}\u0000""#,
    ] {
        push(format!(r#"{{"data":{data},{iss}}}"#))?;
    }
    // Somebody else's issuer, or none.
    push(format!(r#"{{"data":{quoted}}}"#))?;
    for other in [
        r#""http://lago-api:3001""#,
        r#""HTTP://LAGO-API:3000""#,
        r#""http://lago-api:3000/""#,
        r#""""#,
        "null",
        "1",
        "{}",
        "[]",
        r#"["http://lago-api:3000"]"#,
        r#"["http://evil","http://lago-api:3000"]"#,
    ] {
        push(format!(r#"{{"data":{quoted},"iss":{other}}}"#))?;
    }
    // Twice, so that two readers could differ.
    push(format!(r#"{{"data":{quoted},"data":"x",{iss}}}"#))?;
    push(format!(r#"{{"data":"x","data":{quoted},{iss}}}"#))?;
    push(format!(r#"{{"data":{quoted},"iss":"http://evil",{iss}}}"#))?;
    push(format!(r#"{{"data":{quoted},{iss},"iss":"http://evil"}}"#))?;
    // Not an object.
    for claims in [
        "[]",
        "null",
        "1",
        "",
        "{",
        &quoted,
        &format!(r#"[{{"data":{quoted},{iss}}}]"#),
        &format!(r#"{{"data":{quoted},{iss}}} {{}}"#),
    ] {
        push(claims.to_owned())?;
    }
    // Three parts, in this alphabet, and nothing more.
    let right = rig.sign(body)?;
    for (what, token) in [
        ("two tokens", format!("{right},{right}")),
        ("a fourth part", format!("{right}.")),
        ("padding", format!("{right}=")),
        ("the other alphabet", right.replace('-', "+").replace('_', "/") + "+"),
        ("a scheme", format!("Bearer {right}")),
        ("quotes", format!("\"{right}\"")),
        ("a space inside", right.replacen('.', ". ", 1)),
        ("only dots", "..".to_owned()),
        ("nothing", String::new()),
        ("JSON serialisation", format!(r#"{{"payload":"{}"}}"#, right.split('.').nth(1).unwrap_or_default())),
    ] {
        tokens.push((what.to_owned(), token));
    }
    all_refused(&rig, body, &tokens).await?;
    Ok(Outcome::new(tokens.len(), "0 accepted"))
}
