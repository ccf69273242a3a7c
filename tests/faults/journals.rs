//! Two daemons and one journal; a journal from the future.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kit_workbench::process::DaemonProcess;
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::rig::{Mode, REQUEST_DEADLINE, Rig};
use tokio::task::JoinSet;

/// A second process must know within this time that it is not wanted.
const REFUSAL_LIMIT: Duration = Duration::from_secs(2);
/// Journals that several start on at the same time.
const LANES: u32 = 3;
/// Where SQLite keeps `user_version` in the file's header, four bytes, big-endian.
/// Source: the SQLite file format, section 1.3.
const USER_VERSION: std::ops::Range<usize> = 60..64;

/// F30: of several daemons started at once on one journal exactly one runs, the others exit with 75
/// within two seconds; when it is killed, the next one runs. Most of a round is patience: some go on beside each other, each
/// with a journal of its own.
pub(crate) async fn one_process_writes_a_journal(mut trial: Trial) -> Result<Outcome> {
    let rounds = trial.count;
    let mut lanes = JoinSet::new();
    for lane in 0..LANES {
        lanes.spawn(rounds_of_one_journal((lane..rounds).step_by(LANES as usize), trial.random.fork()));
    }
    let (mut refused, mut slowest, mut finished) = (0, Duration::ZERO, 0);
    while let Some(lane) = lanes.join_next().await {
        let (of_lane, its_slowest) = lane??;
        refused += of_lane;
        slowest = slowest.max(its_slowest);
        finished += 1;
        trial.progress(rounds * finished / LANES);
    }
    Ok(Outcome::new(rounds, format!("{refused} refused with 75, after {} ms at most", slowest.as_millis())))
}

async fn rounds_of_one_journal(
    rounds: impl Iterator<Item = u32>,
    mut random: fastrand::Rng,
) -> Result<(u32, Duration)> {
    let mut rig = Rig::new(Mode::Hmac, &[]).await?;
    // Each on ports of its own: it is the journal that tells them apart.
    rig.set("SIDECAR_LISTEN__PUBLIC", "127.0.0.1:0");
    rig.set("SIDECAR_LISTEN__ADMIN", "127.0.0.1:0");
    let (mut refused, mut slowest) = (0, Duration::ZERO);
    for round in rounds {
        let many = random.usize(2..=5);
        let command = rig.command()?;
        let begin = Instant::now();
        let mut running: Vec<DaemonProcess> = Vec::new();
        for _ in 0..many {
            running.push(command.spawn()?);
        }
        let mut holder = None;
        for mut process in running {
            match process.address("admin", REQUEST_DEADLINE).await {
                Ok(_) => {
                    ensure!(holder.is_none(), "round {round}: two of {many} run on one journal");
                    holder = Some(process);
                }
                Err(_) => {
                    let exit = process.wait(REQUEST_DEADLINE).await?;
                    ensure!(exit.code == Some(75), "round {round}: {exit}: {}", process.stderr());
                    slowest = slowest.max(begin.elapsed());
                    ensure!(slowest <= REFUSAL_LIMIT, "round {round}: refused after {slowest:?}");
                    ensure!(process.stderr().lines().count() == 1, "{}", process.stderr());
                    refused += 1;
                }
            }
        }
        holder.with_context(|| format!("round {round}: none of {many} runs"))?.kill9().await?;
    }
    Ok((refused, slowest))
}

/// F29: a journal that a newer version has written is refused with 76 and left as it is.
pub(crate) async fn a_newer_journal_is_refused_untouched(_: Trial) -> Result<Outcome> {
    let mut rig = Rig::started(Mode::Hmac, &[]).await?;
    rig.post("k", r#"{"webhook_type":"fee.created"}"#).await?;
    rig.stop().await?;
    let path = rig.journal_path();
    let mut bytes = std::fs::read(&path)?;
    ensure!(bytes.starts_with(b"SQLite format 3\0"), "the journal is no SQLite file");
    bytes[USER_VERSION].copy_from_slice(&999_u32.to_be_bytes());
    std::fs::write(&path, &bytes)?;
    for _ in 0..3 {
        let mut process = rig.command()?.spawn()?;
        let exit = process.wait(REQUEST_DEADLINE).await?;
        let said = process.stderr();
        ensure!(exit.code == Some(76), "{exit}: {said}");
        ensure!(said.lines().count() == 1, "{said}");
        ensure!(std::fs::read(&path)? == bytes, "the file was touched");
    }
    Ok(Outcome::new(3_u64, "exit 76, not a byte changed"))
}

/// F1: a kill at a random moment of the very first start leaves something that the next start can use.
pub(crate) async fn a_kill_during_the_first_start_leaves_a_usable_journal(mut trial: Trial) -> Result<Outcome> {
    let mut rig = Rig::new(Mode::Hmac, &[]).await?;
    for round in 0..trial.count {
        trial.progress(round);
        let path = rig.scratch.file(&format!("state/{round}.db"));
        rig.set("SIDECAR_JOURNAL__PATH", &path.display().to_string());
        let mut process = rig.command()?.spawn()?;
        let moment = Duration::from_micros(trial.random.u64(0..=25_000));
        tokio::time::sleep(moment).await;
        process.kill9().await?;
        rig.start().await.with_context(|| format!("killed {moment:?} into the first start"))?;
        rig.stop().await?;
    }
    Ok(Outcome::new(trial.count, "each started again"))
}
