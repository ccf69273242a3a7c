//! Crashes that tear writes and bring them to the disk in another order.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use kit::clock::SystemClock;
use kit_journal::{Dedupe, Journal, JournalSection, NewEvent};
use kit_workbench::scratch::Scratch;
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::images::{Image, Recorder, Recording};
use outrigger_tests::journal_file;
use outrigger_tests::rig::{Mode, Rig};

use crate::syscalls::start_traceable;

/// Images of each recorded run.
const IMAGES_A_RUN: u32 = 500;
/// And so many in which no sync settles anything: some of them must be found out.
const LIES_A_RUN: u32 = 25;
/// Webhooks of a short run, and of one that fills the write-ahead log, so that it is copied back.
const SHORT: usize = 24;
const LONG: usize = 90;
/// Size of the webhooks of a long run.
const LARGE: usize = 180_000;

/// F4: of what the daemon wrote, everything before the last sync reaches the disk, and of the rest any part in
/// any order: the journal opens, has every event that was answered for, and what else it has is what came
/// next.
pub(crate) async fn torn_and_reordered_writes_leave_a_whole_journal(mut trial: Trial) -> Result<Outcome> {
    let (mut runs, mut syncs, mut events, mut more, mut lost) = (0_u32, 0, 0_u64, 0_u64, 0_u32);
    let mut done = 0;
    while done < trial.count {
        let mut rig = Rig::new(Mode::Hmac, &[]).await?;
        if let Err(error) = start_traceable(&mut rig).await {
            return Outcome::skipped_if_refused(error);
        }
        let (recording, posted) = record(&mut rig, runs % 4).await.context("record a run")?;
        syncs += recording.syncs();
        runs += 1;
        for _ in 0..IMAGES_A_RUN.min(trial.count - done) {
            trial.progress(done);
            let image = recording.image(&mut trial.random, false);
            let found = examine(&recording, &image, &posted).await.with_context(|| image.story.clone())?;
            events += found;
            more += found - image.answered.len() as u64;
            done += 1;
        }
        for _ in 0..LIES_A_RUN {
            let image = recording.image(&mut trial.random, true);
            lost += u32::from(examine(&recording, &image, &posted).await.is_err());
        }
    }
    ensure!(lost > 0, "{} disks that lied about every sync lost nothing", runs * LIES_A_RUN);
    Ok(Outcome::new(
        trial.count,
        format!(
            "{runs} runs, {syncs} syncs, {events} events found, {more} of them not answered for yet, 0 lost; \
             {lost} of {} lying disks found out",
            runs * LIES_A_RUN
        ),
    ))
}

/// A webhook that was accepted: id and body.
struct Posted {
    id: String,
    body: String,
}

/// Posts webhooks one after the other while their predecessors are delivered. Kinds: 0 fills the log, 1 ends
/// with the daemon, 2 and 3 end in the middle; 3 goes on from what a kill has left.
async fn record(rig: &mut Rig, kind: u32) -> Result<(Recording, Vec<Posted>)> {
    let mut posted = Vec::new();
    if kind == 3 {
        post(rig, SHORT, 10, &mut posted).await?;
        rig.kill().await?;
        rig.start().await?;
    }
    rig.drained().await?;
    let journal = rig.journal_path();
    let recorder = Recorder::attach(rig.process()?, &journal).await?;
    if kind == 0 {
        post(rig, LONG, LARGE, &mut posted).await?;
    } else {
        post(rig, SHORT, 10, &mut posted).await?;
        post(rig, 2, 40_000, &mut posted).await?;
    }
    if kind == 1 {
        rig.stop().await?;
        return Ok((recorder.finish().await?, posted));
    }
    let recording = recorder.finish().await?;
    rig.kill().await?;
    Ok((recording, posted))
}

async fn post(rig: &Rig, count: usize, size: usize, posted: &mut Vec<Posted>) -> Result<()> {
    for _ in 0..count {
        let number = posted.len();
        let body = format!(r#"{{"webhook_type":"fee.created","number":{number},"filler":"{}"}}"#, "x".repeat(size));
        let answer = rig.post(&format!("key-{number}"), &body).await?;
        ensure!(answer.status == 200, "{}", answer.text());
        let id = answer.json()?["id"].as_str().context("the answer has an id")?.to_owned();
        posted.push(Posted { id, body });
    }
    Ok(())
}

/// Opens the image as a daemon would; returns how many events it has.
async fn examine(recording: &Recording, image: &Image, posted: &[Posted]) -> Result<u64> {
    let folder = scratch()?;
    let path = recording.place(image, folder.path())?;
    let section = JournalSection { path: path.clone(), ..JournalSection::default() };
    let open =
        move || Journal::open(&section, Arc::new(SystemClock), &mut prometheus_client::registry::Registry::default());
    let (journal, task) = tokio::task::spawn_blocking(open).await?.context("the image cannot be opened")?;
    let result = check(&journal, image, posted).await;
    drop(journal);
    tokio::task::spawn_blocking(|| task.close()).await?;
    let found = result?;
    journal_file::check_store(&path, folder.path())?;
    Ok(found)
}

async fn check(journal: &Journal, image: &Image, posted: &[Posted]) -> Result<u64> {
    let read = journal.read(|reader| {
        let statistics = reader.statistics()?;
        let last = i64::try_from(statistics.accepted).unwrap_or(i64::MAX);
        let events = (1..=last).map(|seq| reader.event(seq)).collect::<Result<Vec<_>, _>>()?;
        Ok((statistics, events))
    });
    let (statistics, events) = read.await?;
    ensure!(events.len() <= posted.len(), "{} events of {} posted", events.len(), posted.len());
    for (event, posted) in events.iter().zip(posted) {
        let event = event.as_ref().with_context(|| format!("event {} is missing", posted.id))?;
        ensure!(event.head.id.to_string() == posted.id, "{} is in the place of {}", event.head.id, posted.id);
        ensure!(event.body == posted.body, "event {} has another body", posted.id);
    }
    for id in &image.answered {
        let Some(at) = posted.iter().position(|posted| posted.id == *id) else { bail!("nobody posted {id}") };
        ensure!(at < events.len(), "event {id}, number {} and answered for, is not among {}", at + 1, events.len());
    }
    for sink in &statistics.sinks {
        ensure!(sink.cursor <= i64::try_from(events.len())?, "more is delivered than there is: {sink:?}");
    }
    // It goes on where it was: the last one is known, another one is new.
    if let Some(event) = events.into_iter().flatten().last() {
        let (id, seq) = (event.head.id, event.seq);
        let again = NewEvent { head: event.head, body: event.body.to_vec(), dedupe: Dedupe::KeyAndBody };
        let appended = journal.append(again).await?;
        ensure!(appended.duplicate && appended.id == id && appended.seq == seq, "{id} is not known: {appended:?}");
    }
    Ok(u64::try_from(statistics.accepted)?)
}

/// In memory, so that a sync costs nothing.
fn scratch() -> Result<Folder> {
    let memory = Path::new("/dev/shm");
    if !memory.is_dir() {
        let scratch = Scratch::new("outrigger-image")?;
        return Ok(Folder { path: scratch.path().to_owned(), _scratch: Some(scratch) });
    }
    let path = memory.join(format!("outrigger-image-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir(&path)?;
    Ok(Folder { path, _scratch: None })
}

struct Folder {
    path: PathBuf,
    _scratch: Option<Scratch>,
}

impl Folder {
    fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
