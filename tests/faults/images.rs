//! Crash images: what a power cut may leave behind at any moment, from whatever was not synced yet. Every image
//! is opened with the daemon's own code.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use kit_journal::Seq;
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::images::{Disk, Recording, Step, recorded};
use outrigger_tests::picture::{MemoryFolder, Picture, Viewer};
use outrigger_tests::rig::{Mode, REQUEST_DEADLINE, Rig, START_DEADLINE};

use crate::syscalls::start_traceable;

/// Images that are made of one recording.
const IMAGES: u32 = 500;
/// Images of a disk that lies, of which some must show a loss.
const LIES: u64 = 60;
/// Requests after which the log is certainly copied back: each commit writes some pages, and a thousand are enough.
const LONG: usize = 400;
/// Requests at once.
const SENDERS: usize = 4;

/// F4: of every moment of a daemon's life – two starts on an empty and on a closed journal, a kill and a
/// recovery, with webhooks, deliveries and checkpoints – a cut leaves a journal that opens, holds every event
/// whose 2xx was read before, and nothing but a beginning of what was accepted.
pub(crate) async fn every_crash_image_opens_and_holds_what_was_acknowledged(mut trial: Trial) -> Result<Outcome> {
    let mut rig = Rig::new(Mode::Hmac, &[]).await?;
    if let Err(error) = start_traceable(&mut rig).await {
        return Outcome::skipped_if_refused(error);
    }
    drop(rig);
    let (mut done, mut recordings, mut lost_by_lies, mut totals) = (0, 0, 0, Totals::default());
    while done < trial.count {
        trial.progress(done);
        let images = IMAGES.min(trial.count - done);
        // Now and then so many commits that one of them copies the log back.
        let mut history = record(&mut trial, recordings % 4 == 3).await.context("record")?;
        let seed = trial.random.u64(..);
        let (lost, seen) = tokio::task::spawn_blocking(move || -> Result<_> {
            history.read_end()?;
            // The proof that a loss would be noticed.
            let lost = history.count_lost(LIES, seed)?;
            Ok((lost, history.check_images(images, seed)?))
        })
        .await?
        .with_context(|| format!("recording {recordings}, seed {}", trial.seed))?;
        totals.add(seen);
        lost_by_lies += lost;
        recordings += 1;
        done += images;
    }
    ensure!(lost_by_lies > 0, "a disk that lies loses nothing: the images prove nothing");
    Ok(Outcome::new(
        trial.count,
        format!(
            "{recordings} recordings, {} of the images with writes missing, {} with acknowledged events, 0 lost; \
             {lost_by_lies} losses noticed on a disk that lies",
            totals.uncertain, totals.acknowledged
        ),
    ))
}

/// What one daemon did, what its clients were told, and what came of it.
struct History {
    recording: Recording,
    /// When the answer with this event's id was read, in microseconds since 1970.
    acknowledged: Vec<(u64, String)>,
    /// The journal in the end.
    end: Picture,
    /// When the answer of the event at this position was read.
    positions: Vec<(u64, u64)>,
    files: BTreeMap<String, Vec<u8>>,
}

async fn record(trial: &mut Trial, large: bool) -> Result<History> {
    let mut rig = Rig::new(Mode::Hmac, &[]).await?;
    let mut history = History {
        recording: Recording::default(),
        acknowledged: Vec::new(),
        positions: Vec::new(),
        end: Picture::default(),
        files: BTreeMap::new(),
    };
    for session in 0..3 {
        let log = rig.scratch.file(&format!("log-{session}"));
        let command = recorded(rig.command()?, &log);
        rig.spawn(&command)?;
        let admin = rig.admin;
        rig.process()?.wait_ready(admin, START_DEADLINE).await?;
        let long = large && session == 0;
        let mut rounds = if long { LONG } else { trial.random.usize(2..8) };
        // The log is copied back beside the commits, and on a fast machine many come before that. Once it has begun, some more.
        let journal = rig.journal_path();
        let length = || std::fs::metadata(&journal).map(|file| file.len());
        let (before, mut is_copied, mut round) = (length()?, !long, 0);
        while round < rounds {
            let at_once = if long { 1 } else { trial.random.usize(1..=SENDERS) };
            let sizes: Vec<usize> = (0..at_once).map(|_| if long { 100 } else { size_of_body(trial) }).collect();
            let posts = sizes.into_iter().enumerate().map(|(number, size)| {
                let rig = &rig;
                async move {
                    let name = format!("{session}-{round}-{number}");
                    let body = format!(r#"{{"name":"{name}","text":"{}"}}"#, "x".repeat(size));
                    let answer = rig.post(&name, &body).await?;
                    let read = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?;
                    ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
                    let id = answer.json()?["id"].as_str().context("no id")?.to_owned();
                    Ok((read, id))
                }
            });
            history.acknowledged.extend(try_join_all(posts).await?);
            round += 1;
            if round == rounds && !is_copied && round < 10 * LONG {
                is_copied = length()? != before;
                rounds += LONG / 10;
            }
        }
        if session == 1 {
            // Only the daemon: what records it has to write down the rest.
            let pid = rig.process()?.pid().to_string();
            let killed = Command::new("kill").args(["-KILL", &pid]).status()?;
            ensure!(killed.success(), "the daemon cannot be killed");
            rig.process()?.wait(REQUEST_DEADLINE).await?;
        } else {
            let (exit, _) = rig.stop().await?;
            ensure!(exit.code == Some(0), "{exit}");
        }
        wait_until_written(&log).await?;
        history.recording.add(&log, &rig.journal_path())?;
        history.files = files(&rig)?;
        history.check_recording().with_context(|| format!("life {}", session + 1))?;
        ensure!(!long || history.copied_back(), "the log was never copied back while webhooks came");
    }
    Ok(history)
}

/// The journal's files as they are.
fn files(rig: &Rig) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for suffix in ["", "-wal", "-journal"] {
        let name = format!("journal.db{suffix}");
        match std::fs::read(rig.scratch.file(&format!("state/{name}"))) {
            Ok(bytes) => drop(files.insert(name, bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(files)
}

/// Mostly small, sometimes over several pages.
fn size_of_body(trial: &mut Trial) -> usize {
    if trial.random.u8(0..8) == 0 { trial.random.usize(10_000..60_000) } else { trial.random.usize(10..3_000) }
}

/// Waits until the recorder has ended: it holds the file open to the last.
async fn wait_until_written(log: &std::path::Path) -> Result<()> {
    let begin = std::time::Instant::now();
    loop {
        let mut open = false;
        for process in std::fs::read_dir("/proc")? {
            // Processes come and go, and others have nothing but numbers for us.
            let Ok(files) = std::fs::read_dir(process?.path().join("fd")) else { continue };
            open |= files.flatten().any(|file| std::fs::read_link(file.path()).is_ok_and(|target| target == log));
        }
        if !open {
            return Ok(());
        }
        ensure!(begin.elapsed() < REQUEST_DEADLINE, "the recorder does not end");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What many images came to.
#[derive(Clone, Copy, Default)]
struct Totals {
    uncertain: u64,
    acknowledged: u64,
}

impl Totals {
    fn add(&mut self, other: Self) {
        self.uncertain += other.uncertain;
        self.acknowledged += other.acknowledged;
    }
}

impl History {
    /// Whether the main file was written to between two answers.
    fn copied_back(&self) -> bool {
        let (first, last) = (self.acknowledged.first(), self.acknowledged.last());
        self.recording.steps.iter().any(|(time, step)| {
            matches!(step, Step::Write(file, ..) if &**file == "journal.db")
                && first.is_some_and(|(read, _)| read < time)
                && last.is_some_and(|(read, _)| time < read)
        })
    }

    /// The recording is whole: played again it leads to the very files that are there.
    fn check_recording(&self) -> Result<()> {
        let mut disk = Disk::default();
        for (_, step) in &self.recording.steps {
            disk.step(step)?;
        }
        let visible = disk.visible();
        let names: Vec<&str> = visible.keys().map(AsRef::as_ref).collect();
        ensure!(names == self.files.keys().map(String::as_str).collect::<Vec<_>>(), "recorded: {names:?}");
        for (name, bytes) in &self.files {
            ensure!(visible.get(name.as_str()) == Some(bytes), "{name} is not what was recorded");
        }
        Ok(())
    }

    /// Reads what the journal shows in the end.
    fn read_end(&mut self) -> Result<()> {
        let folder = MemoryFolder::new()?;
        folder.put(self.files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())))?;
        ensure!(self.acknowledged.len() as u64 >= 6, "{} events", self.acknowledged.len());
        self.end = Viewer::new()?.look(&folder.file("journal.db"), self.acknowledged.len() as u64)?;
        ensure!(self.end.complaints.is_empty(), "{:?}", self.end.complaints);
        let known: BTreeMap<String, Seq> =
            self.end.events.iter().map(|(seq, seen)| (seen.head.id.to_string(), *seq)).collect();
        for (read, id) in &self.acknowledged {
            let seq = known.get(id).with_context(|| format!("{id} is lost without a cut"))?;
            self.positions.push((*read, u64::try_from(*seq)?));
        }
        Ok(())
    }

    /// Makes and opens images at random moments, on every core.
    fn check_images(&self, count: u32, seed: u64) -> Result<Totals> {
        let (history, uncertain, acknowledged) = (self, AtomicU64::new(0), AtomicU64::new(0));
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
        let work = |core: u64| -> Result<()> {
            let mut random = fastrand::Rng::with_seed(seed ^ core);
            let own = u64::from(count) / cores + u64::from(core < u64::from(count) % cores);
            history.images(own, &mut random, false, |disk, required, image, result| {
                uncertain.fetch_add(u64::from(!disk.is_certain()), Ordering::Relaxed);
                acknowledged.fetch_add(u64::from(required > 0), Ordering::Relaxed);
                result.with_context(|| {
                    let sizes: Vec<_> = image.iter().map(|(name, bytes)| (name, bytes.len())).collect();
                    format!("files {sizes:?}, {required} events acknowledged")
                })
            })
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..cores).map(|core| scope.spawn(move || work(core))).collect();
            workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow::anyhow!("a look panicked"))?)
        })?;
        Ok(Totals { uncertain: uncertain.into_inner(), acknowledged: acknowledged.into_inner() })
    }

    /// How many images of a disk whose syncs do nothing show a loss.
    fn count_lost(&self, count: u64, seed: u64) -> Result<u64> {
        let mut lost = 0;
        self.images(count, &mut fastrand::Rng::with_seed(seed), true, |_, _, _, result| {
            lost += u64::from(result.is_err());
            Ok(())
        })?;
        Ok(lost)
    }

    fn images(
        &self,
        count: u64,
        random: &mut fastrand::Rng,
        lies: bool,
        mut judge: impl FnMut(&Disk, u64, &outrigger_tests::images::Image, Result<()>) -> Result<()>,
    ) -> Result<()> {
        let steps = &self.recording.steps;
        let mut moments: Vec<usize> = (0..count).map(|_| random.usize(0..=steps.len())).collect();
        moments.sort_unstable();
        let (viewer, folder) = (Viewer::new()?, MemoryFolder::new()?);
        let mut disk = Disk::default();
        disk.lies = lies;
        let mut played = 0;
        for moment in moments {
            for (_, step) in steps.get(played..moment).unwrap_or_default() {
                disk.step(step)?;
            }
            played = moment;
            // The moment ends when the next step begins; until then answers were read.
            let until = steps.get(moment).map_or(u64::MAX, |(time, _)| *time);
            let required = self.required(until);
            let image = disk.cut(random);
            folder.put(image.iter().map(|(name, bytes)| (name.as_ref(), bytes.as_slice())))?;
            let result = match viewer.look(&folder.file("journal.db"), required) {
                Ok(picture) => self.compare(&picture, required),
                Err(error) => Err(anyhow::Error::from(error)),
            };
            judge(&disk, required, &image, result.with_context(|| format!("cut after step {moment}")))?;
        }
        Ok(())
    }

    /// The last position whose event was acknowledged by then.
    fn required(&self, until: u64) -> u64 {
        self.positions.iter().filter(|(read, _)| *read < until).map(|(_, seq)| *seq).max().unwrap_or(0)
    }

    fn compare(&self, picture: &Picture, required: u64) -> Result<()> {
        ensure!(picture.complaints.is_empty(), "{:?}", picture.complaints);
        ensure!(picture.accepted >= required, "{} events, {required} were acknowledged", picture.accepted);
        for seq in 1..=Seq::try_from(picture.accepted)? {
            let seen = picture.events.get(&seq);
            ensure!(seen.is_some(), "event {seq} of {} is missing", picture.accepted);
            ensure!(seen == self.end.events.get(&seq), "event {seq} is {seen:?}");
        }
        ensure!(picture.unknown.is_empty(), "the keys of {:?} are missing", picture.unknown);
        for row in &picture.sinks {
            let last = Seq::try_from(picture.accepted)?;
            let sum = row.delivered + row.pending(last) + row.parked + row.dropped + row.filtered;
            ensure!(sum == row.accepted(last), "the counters do not add up: {row:?}, {last} accepted");
        }
        Ok(())
    }
}
