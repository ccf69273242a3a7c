//! Whether the time of a comparison tells how much of a guess was right: Welch's t-test on two classes
//! of inputs, after Reparaz, Balasch and Verbauwhede, "Dude, is my code constant time?" (2016).

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kit::secret::Secret;
use kit_authentik::envelope::{BEARER_PREFIX, SIGNATURE_PREFIX};
use kit_authentik::signature::{Secrets, sign};
use kit_lago::signature::{HmacKeys, sign_hmac};
use outrigger_tests::experiment::{Outcome, Trial};

/// Above this the two classes differ for sure.
const LIMIT: f64 = 4.5;
/// Inputs of a class: enough that no cache or predictor learns them by heart.
const INPUTS: usize = 256;
/// Shares of the samples that are kept, the fastest first: what an interrupt made slow says nothing.
const KEPT: [f64; 4] = [0.5, 0.8, 0.95, 1.0];

/// The larger of |t| over all crops, with as many samples of either class in a random order.
fn largest_t(samples: u32, random: &mut fastrand::Rng, mut run: impl FnMut(bool, usize) -> bool) -> f64 {
    let mut times: Vec<(u32, bool)> = Vec::with_capacity(samples as usize * 2);
    // The first ones warm up.
    for nth in 0..samples * 2 + 2_000 {
        let (class, input) = (random.bool(), random.usize(..INPUTS));
        let begin = Instant::now();
        let result = run(class, input);
        let took = begin.elapsed();
        black_box(result);
        if nth >= 2_000 {
            times.push((u32::try_from(took.as_nanos()).unwrap_or(u32::MAX), class));
        }
    }
    times.sort_unstable();
    // Whoever took as long as the slowest that is kept is kept too: where a clock is coarse, thousands are, and to leave out some
    // of those would be to choose between the classes.
    let crops = KEPT.map(|share| {
        let slowest = times[((times.len() - 1) as f64 * share) as usize].0;
        &times[..times.partition_point(|(time, _)| *time <= slowest)]
    });
    crops.into_iter().map(|kept| t(kept).abs()).fold(0.0, f64::max)
}

/// Welch's t of the two classes' means.
fn t(samples: &[(u32, bool)]) -> f64 {
    let moments = |class: bool| {
        let of_class = || samples.iter().filter(|(_, c)| *c == class).map(|(time, _)| f64::from(*time));
        let count = of_class().count() as f64;
        let mean = of_class().sum::<f64>() / count;
        let variance = of_class().map(|time| (time - mean).powi(2)).sum::<f64>() / (count - 1.0);
        (mean, variance / count)
    };
    let ((mean, error), (other, other_error)) = (moments(false), moments(true));
    (mean - other) / (error + other_error).sqrt().max(f64::MIN_POSITIVE)
}

/// A leak is there every time; one value in a hundred thousand is above the limit by chance.
fn measured(samples: u32, random: &mut fastrand::Rng, mut run: impl FnMut(bool, usize) -> bool) -> f64 {
    let mut least = f64::INFINITY;
    for more in [1, 2, 4] {
        least = least.min(largest_t(samples * more, random, &mut run));
        if least < LIMIT {
            break;
        }
    }
    least
}

fn bytes(random: &mut fastrand::Rng, count: usize) -> Vec<u8> {
    (0..count).map(|_| random.u8(..)).collect()
}

fn text(random: &mut fastrand::Rng, count: usize) -> String {
    (0..count).map(|_| random.alphanumeric()).collect()
}

/// `genuine` with its last byte changed: all but one were right.
fn nearly(genuine: &[u8]) -> Vec<u8> {
    let mut guess = genuine.to_vec();
    if let Some(last) = guess.last_mut() {
        *last ^= 1;
    }
    guess
}

/// T6: how long it takes to refuse a signature or a secret does not tell how much of it was right. The
/// same measurement finds a plain `==` out.
pub(crate) async fn no_comparison_tells_how_much_was_right(mut trial: Trial) -> Result<Outcome> {
    tokio::task::spawn_blocking(move || compare_all(&mut trial)).await?
}

fn compare_all(trial: &mut Trial) -> Result<Outcome> {
    let (samples, random) = (trial.count, &mut trial.random);

    // Both classes are wrong signatures that look alike; one is the genuine one but for its last byte.
    let key = Secret::from(text(random, 36));
    let keys = HmacKeys::new(vec![key.clone(), Secret::from(text(random, 36))])?;
    let bodies: Vec<Vec<u8>> = (0..INPUTS).map(|_| bytes(random, 64)).collect();
    let genuine: Vec<Vec<u8>> =
        bodies.iter().map(|body| STANDARD.decode(sign_hmac(&key, body))).collect::<Result<_, _>>()?;
    let headers: Vec<[String; 2]> = (0..INPUTS)
        .map(|nth| [nearly(&genuine[nth]), nearly(&genuine[(nth + 1) % INPUTS])].map(|mac| STANDARD.encode(mac)))
        .collect();
    let accepted =
        (0..INPUTS).any(|nth| (0..2).any(|c| keys.verify(Some(headers[nth][c].as_bytes()), &bodies[nth]).is_ok()));
    ensure!(!accepted, "a wrong signature was accepted");
    ensure!(keys.verify(Some(STANDARD.encode(&genuine[0]).as_bytes()), &bodies[0]).is_ok(), "the right one was not");
    let mac = measured(samples, random, |class, nth| {
        keys.verify(Some(headers[nth][usize::from(class)].as_bytes()), &bodies[nth]).is_ok()
    });
    ensure!(mac < LIMIT, "the time to refuse a signature tells how much of it was right: |t| = {mac:.1}");

    // Tokens: right but for the last character, or for the first.
    let secrets: Vec<Secret> = (0..INPUTS).map(|_| Secret::from(text(random, 1_024))).collect();
    // Both lie in memory alike, and either may come first there: where caches are scarce that would tell the classes apart.
    let guess = |secret: &Secret, place: usize| {
        let mut guess = secret.expose().to_owned();
        guess.replace_range(place..=place, "~");
        Secret::from(guess)
    };
    let guesses: Vec<[Secret; 2]> = secrets
        .iter()
        .map(|secret| {
            let last = secret.expose().len() - 1;
            if random.bool() {
                [guess(secret, last), guess(secret, 0)]
            } else {
                let first = guess(secret, 0);
                [guess(secret, last), first]
            }
        })
        .collect();
    let token = measured(samples, random, |class, nth| {
        black_box(&secrets[nth]) == black_box(&guesses[nth][usize::from(class)])
    });
    ensure!(token < LIMIT, "the time to refuse a secret tells how much of it was right: |t| = {token:.1}");

    // The measurement itself: the same inputs, compared in the way that is forbidden.
    let naive = largest_t(samples, random, |class, nth| {
        black_box(secrets[nth].expose()) == black_box(guesses[nth][usize::from(class)].expose())
    });
    ensure!(naive > LIMIT, "a plain comparison is not found out: |t| = {naive:.1}");
    Ok(Outcome::new(
        samples * 2,
        format!("samples each; |t| {mac:.1} for signatures, {token:.1} for secrets, {naive:.0} for a plain =="),
    ))
}

/// T6 of Authentik's proofs: as [`no_comparison_tells_how_much_was_right`], of the signature over a body and of the secret
/// itself, as the event forwarder compares them.
pub(crate) async fn no_proof_of_authentiks_tells_how_much_was_right(mut trial: Trial) -> Result<Outcome> {
    tokio::task::spawn_blocking(move || compare_authentiks(&mut trial)).await?
}

fn compare_authentiks(trial: &mut Trial) -> Result<Outcome> {
    let (samples, random) = (trial.count, &mut trial.random);
    let secret = Secret::from(text(random, 64));
    let secrets = Secrets::new(&[secret.clone(), Secret::from(text(random, 64))])?;
    let bodies: Vec<Vec<u8>> = (0..INPUTS).map(|_| bytes(random, 64)).collect();
    // The last digit is changed within hexadecimal: another one would be refused for its form.
    let last = |hex: &str| {
        let other = if hex.ends_with('0') { '1' } else { '0' };
        format!("{SIGNATURE_PREFIX}{}{other}", &hex[..hex.len() - 1])
    };
    let genuine: Vec<String> = bodies.iter().map(|body| sign(&secret, body)).collect();
    let headers: Vec<[String; 2]> =
        (0..INPUTS).map(|nth| [last(&genuine[nth]), last(&genuine[(nth + 1) % INPUTS])]).collect();
    let verify =
        |class: usize, nth: usize| secrets.verify_header(Some(headers[nth][class].as_bytes()), &bodies[nth]).is_ok();
    ensure!(!(0..INPUTS).any(|nth| verify(0, nth) || verify(1, nth)), "a wrong signature was accepted");
    let right = format!("{SIGNATURE_PREFIX}{}", genuine[0]);
    ensure!(secrets.verify_header(Some(right.as_bytes()), &bodies[0]).is_ok(), "the right one was not");
    let mac = measured(samples, random, |class, nth| verify(usize::from(class), nth));
    ensure!(mac < LIMIT, "the time to refuse a signature tells how much of it was right: |t| = {mac:.1}");

    // Right but for the last character, or for the first.
    let many: Vec<(Secrets, [String; 2])> = (0..INPUTS)
        .map(|_| {
            let secret = text(random, 64);
            let wrong = |place: usize| {
                let mut guess = secret.clone();
                guess.replace_range(place..=place, "~");
                format!("{BEARER_PREFIX}{guess}")
            };
            Ok((Secrets::new(&[Secret::from(secret.clone())])?, [wrong(secret.len() - 1), wrong(0)]))
        })
        .collect::<Result<_>>()?;
    let bearer = measured(samples, random, |class, nth| {
        many[nth].0.verify_bearer(Some(many[nth].1[usize::from(class)].as_bytes())).is_ok()
    });
    ensure!(bearer < LIMIT, "the time to refuse a secret tells how much of it was right: |t| = {bearer:.1}");
    Ok(Outcome::new(samples * 2, format!("samples each; |t| {mac:.1} for signatures, {bearer:.1} for the secret")))
}
