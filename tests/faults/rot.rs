//! Files that change by themselves: flipped bits, missing ends, blank pages, files of another journal. Every
//! record has a checksum over all of it; nothing may be served that does not match.

mod parts;
mod stores;
mod tally;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use kit_journal::{BodyDigest, EventHead, EventId};
use kit_workbench::Digest;
use kit_workbench::process::ProcessError;
use outrigger_tests::experiment::{Outcome, Trial};
use outrigger_tests::picture::{MemoryFolder, Viewer};
use outrigger_tests::rig::{Mode, REQUEST_DEADLINE, Rig, START_DEADLINE};
use stores::{Files, Stores};
use tally::{PanicCounter, Tally};

const DATABASE: &str = "journal.db";
const LOG: &str = "journal.db-wal";
/// Events in the small store; the last ones are not delivered.
const EVENTS: u64 = 12;
/// Those that are in the main file when the store is killed; the others are in its log.
const IN_MAIN: u64 = 9;
/// Commits that settle what is stored, one a step.
const SETTLING: u32 = 4;
/// What a disk loses at once.
const SECTOR: usize = 512;
/// A page of the store.
const PAGE: usize = 16_384;
/// A page of the store of which every bit is flipped.
const SMALL_PAGE: usize = 1_024;
/// Kinds of parts that its files have.
const KINDS: usize = 11;
/// Cases are worked through with this stride, so that a few of them are spread over the whole. A prime, so
/// that every case has its turn.
const STRIDE: u64 = 1_000_003;

/// F10: the bits of a store are flipped one after the other, in the main file and in its log: some of every part of every
/// page before more of any.
pub(crate) async fn a_flipped_bit_is_never_served(trial: Trial) -> Result<Outcome> {
    flipped(trial, PAGE).await
}

/// F10: the same of a store that is small enough for every bit: its pages are as small as its rows, so that it has what
/// otherwise only a large one has, pages that lead to others and rows that go on elsewhere.
pub(crate) async fn a_flipped_bit_of_a_small_store_is_never_served(trial: Trial) -> Result<Outcome> {
    flipped(trial, SMALL_PAGE).await
}

async fn flipped(trial: Trial, page_size: usize) -> Result<Outcome> {
    in_memory(
        trial,
        page_size,
        move |stores| {
            let database = parts::of_database(&stores.closed.database, page_size);
            let log = parts::of_log(&stores.killed.log, page_size);
            let mut found = parts::kinds(&database);
            found.append(&mut parts::kinds(&log));
            ensure!(page_size != SMALL_PAGE || found.len() == KINDS, "the store has {found:?} only");
            Ok((parts::in_turn(&database, &log), format!("{} parts", database.len() + log.len())))
        },
        |stores, case| match case {
            Case::First(bit) => {
                let mut files = stores.closed.clone();
                flip(&mut files.database, bit)?;
                Ok(files)
            }
            Case::Second(bit) => {
                let mut files = stores.killed.clone();
                flip(&mut files.log, bit)?;
                Ok(files)
            }
        },
    )
    .await
}

/// F10: the main file and the log end anywhere.
pub(crate) async fn a_truncated_file_is_never_served(trial: Trial) -> Result<Outcome> {
    in_memory(
        trial,
        PAGE,
        |stores| spread(stores.closed.database.len() as u64, stores.killed.log.len() as u64),
        |stores, case| {
            Ok(match case {
                Case::First(length) => {
                    let mut files = stores.closed.clone();
                    files.database.truncate(usize::try_from(length)?);
                    files
                }
                Case::Second(length) => {
                    let mut files = stores.killed.clone();
                    files.log.truncate(usize::try_from(length)?);
                    files
                }
            })
        },
    )
    .await
}

/// F10: a sector, a page of memory or a page of the store is blank, in the main file and in the log.
pub(crate) async fn a_blank_page_is_never_served(trial: Trial) -> Result<Outcome> {
    let blanks = |length: usize| [SECTOR, 4_096, PAGE].map(|size| length.div_ceil(size));
    in_memory(
        trial,
        PAGE,
        move |stores| {
            let all = |file: &[u8]| blanks(file.len()).iter().sum::<usize>() as u64;
            spread(all(&stores.closed.database), all(&stores.killed.log))
        },
        move |stores, case| {
            let blank = |file: &mut Vec<u8>, case: u64| -> Result<()> {
                let (mut number, sizes) = (usize::try_from(case)?, [SECTOR, 4_096, PAGE]);
                for (size, many) in sizes.into_iter().zip(blanks(file.len())) {
                    if number < many {
                        let end = file.len().min((number + 1) * size);
                        file.get_mut(number * size..end).context("no such page")?.fill(0);
                        return Ok(());
                    }
                    number -= many;
                }
                bail!("no such page")
            };
            let mut files = if matches!(case, Case::First(_)) { stores.closed.clone() } else { stores.killed.clone() };
            match case {
                Case::First(case) => blank(&mut files.database, case)?,
                Case::Second(case) => blank(&mut files.log, case)?,
            }
            Ok(files)
        },
    )
    .await
}

/// F10: files of another journal, of another time or of nothing at all beside the right ones.
pub(crate) async fn a_swapped_file_is_never_served(_: Trial) -> Result<Outcome> {
    tokio::task::spawn_blocking(|| {
        let stores = Stores::make()?;
        let other = Stores::made_with("other", PAGE)?;
        let garbage: Vec<u8> = (0..200_000_u32).map(|n| n.to_le_bytes()[0] ^ 0x5a).collect();
        let (closed, killed) = (&stores.closed, &stores.killed);
        let cases: Vec<(&str, Vec<u8>, Vec<u8>)> = vec![
            ("the log of a killed journal beside its closed self", closed.database.clone(), killed.log.clone()),
            ("the log is missing", killed.database.clone(), Vec::new()),
            ("the log of another journal", closed.database.clone(), other.killed.log.clone()),
            ("another journal's main file", other.closed.database.clone(), killed.log.clone()),
            ("another killed journal's main file", other.killed.database.clone(), killed.log.clone()),
            ("the log is the main file", closed.database.clone(), closed.database.clone()),
            ("the main file is the log", killed.log.clone(), closed.database.clone()),
            ("the main file is empty", Vec::new(), killed.log.clone()),
            ("both are empty", Vec::new(), Vec::new()),
            ("the log is noise", closed.database.clone(), garbage.clone()),
            ("the main file is noise", garbage.clone(), killed.log.clone()),
            ("the log begins twice", closed.database.clone(), [killed.log.as_slice(), &killed.log].concat()),
        ];
        let viewer = Viewer::new()?;
        let folder = MemoryFolder::new()?;
        let mut tally = Tally::default();
        let expected: BTreeSet<Digest> = [&stores, &other].iter().flat_map(|stores| stores.bodies()).collect();
        for (what, database, log) in &cases {
            folder.put([(DATABASE, database.as_slice()), (LOG, log)])?;
            let looked = viewer.look(&folder.file(DATABASE), EVENTS);
            if *what == "the main file is empty" {
                // Opened as it is, the log with all that was accepted would be removed.
                ensure!(looked.is_err(), "{what}, and it goes on as if nothing had been there");
                ensure!(std::fs::read(folder.file(LOG))? == *log, "{what}, and its log is touched");
            }
            match looked {
                Err(_) => tally.refused += 1,
                Ok(picture) => {
                    // With another journal's file there may be its events: whole ones.
                    for seen in picture.events.values().chain(picture.delivered.values()) {
                        ensure!(expected.contains(&seen.body_sha256), "{what}: a body of nobody is served");
                        check_identity(&seen.head, seen.body_sha256).context(*what)?;
                    }
                    tally.add(&picture, &stores);
                }
            }
        }
        Ok(Outcome::new(cases.len(), format!("0 wrong bodies; {tally}")))
    })
    .await?
}

/// F10: a daemon with a rotten journal starts and delivers what is whole, parks the rest with a reason, or
/// ends with one line. What comes to the gateway is what was once sent.
pub(crate) async fn a_rotten_journal_never_reaches_the_gateway(mut trial: Trial) -> Result<Outcome> {
    let stores = tokio::task::spawn_blocking(Stores::make).await??;
    let bodies: BTreeSet<Digest> = stores.bodies().collect();
    let (mut refused, mut delivered, mut parked) = (0, 0, 0);
    for round in 0..trial.count {
        trial.progress(round);
        let mut rig = Rig::new(Mode::Hmac, &[]).await?;
        let mut files = stores.closed.clone();
        // Into the bodies themselves every other time: elsewhere most of the file is empty.
        if round % 2 == 0 {
            let body = stores.undelivered_body()?;
            let at = files.database.windows(body.len()).position(|window| window == body.as_bytes());
            let at = at.context("the body is not in one piece")? + trial.random.usize(0..body.len());
            flip(&mut files.database, at as u64 * 8 + trial.random.u64(0..8))?;
        } else {
            for _ in 0..4 {
                let bits = files.database.len() as u64 * 8;
                flip(&mut files.database, trial.random.u64(0..bits))?;
            }
        }
        std::fs::write(rig.journal_path(), &files.database)?;
        let command = rig.command()?;
        rig.spawn(&command)?;
        let admin = rig.admin;
        match rig.process()?.wait_ready(admin, START_DEADLINE).await {
            Ok(_) => {
                if round % 2 == 0 {
                    // One of three is damaged.
                    rig.gateway.wait_for_unique(2, REQUEST_DEADLINE).await?;
                    let row = until_parked(&rig).await?;
                    ensure!(row.contains("damaged"), "parked with the reason {row}");
                    parked += 1;
                } else {
                    let settled = rig.post("after", r#"{"webhook_type":"fee.created"}"#).await?;
                    ensure!(matches!(settled.status, 200 | 503), "{} {}", settled.status, settled.text());
                }
                let (exit, _) = rig.stop().await?;
                ensure!(exit.code == Some(0), "{exit} after a stop");
            }
            Err(ProcessError::Ended { exit, .. }) => {
                let said = rig.process()?.stderr();
                ensure!(matches!(exit.code, Some(1 | 76 | 78)), "{exit}: {said}");
                ensure!(said.lines().count() == 1, "not one line: {said}");
                refused += 1;
            }
            Err(error) => return Err(error).context("start with a rotten journal"),
        }
        let after = Digest::of(br#"{"webhook_type":"fee.created"}"#);
        for received in rig.gateway.received() {
            ensure!(
                bodies.contains(&received.data_sha256) || received.data_sha256 == after,
                "round {round}: the gateway got a body that nobody sent: {received:?}"
            );
            delivered += 1;
        }
        let mut ledger = kit_workbench::ledger::Ledger::new();
        rig.scan(&mut ledger)?;
        let report = ledger.check(&kit_workbench::ledger::Expectations { sinks: Vec::new(), ..Default::default() });
        ensure!(report.is_clean(), "round {round}: {report}");
    }
    Ok(Outcome::new(trial.count, format!("{delivered} delivered whole, {parked} parked as damaged, {refused} refused")))
}

/// The reason of the one dead letter that is new.
async fn until_parked(rig: &Rig) -> Result<String> {
    let begin = std::time::Instant::now();
    loop {
        let statistics = rig.api("/api/v1/statistics").await?;
        let found = rig.api("/api/v1/sinks").await?;
        if statistics["sinks"][0]["parked"].as_u64() == Some(2) {
            let log = std::fs::read_to_string(rig.scratch.file("daemon.log"))?;
            // Its line comes a moment after it is counted.
            if log.contains("cannot be delivered") {
                return Ok(log.lines().filter(|line| line.contains("cannot be delivered")).collect());
            }
        }
        ensure!(begin.elapsed() < REQUEST_DEADLINE, "nothing is parked: {statistics} {found}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// A case of the first kind, in the closed store's main file, or of the second, in the killed one's log.
#[derive(Clone, Copy, Debug)]
enum Case {
    First(u64),
    Second(u64),
}

fn flip(file: &mut [u8], bit: u64) -> Result<()> {
    let byte = usize::try_from(bit / 8)?;
    *file.get_mut(byte).with_context(|| format!("the file has no byte {byte}"))? ^= 1 << (bit % 8);
    Ok(())
}

/// All cases of both kinds, so that any beginning of the list is spread over the whole.
fn spread(first: u64, second: u64) -> Result<(Vec<Case>, String)> {
    let all = first + second;
    let places = (0..all).map(|number| u128::from(number) * u128::from(STRIDE) % u128::from(all));
    let cases = places.map(|place| {
        let place = u64::try_from(place)?;
        Ok(if place < first { Case::First(place) } else { Case::Second(place - first) })
    });
    Ok((cases.collect::<Result<_>>()?, "equal steps".to_owned()))
}

/// The id says what the body must be.
fn check_identity(head: &EventHead, body_sha256: Digest) -> Result<()> {
    let derived = EventId::derive(&head.source, &head.key, Some(&BodyDigest(body_sha256.0)));
    ensure!(derived == head.id, "{} is not the id of what is served with it", head.id);
    Ok(())
}

/// Works through a list of cases on every core: each is made, opened, read, and compared with what was once
/// stored. With the list comes how it is spread.
async fn in_memory(
    trial: Trial,
    page_size: usize,
    list: impl Fn(&Stores) -> Result<(Vec<Case>, String)> + Send + 'static,
    make: impl Fn(&Stores, Case) -> Result<Files> + Send + Sync + 'static,
) -> Result<Outcome> {
    tokio::task::spawn_blocking(move || {
        let stores = Stores::made_with("rot", page_size)?;
        let (cases, how) = list(&stores)?;
        let all = cases.len() as u64;
        let from = u64::from(trial.offset).min(all);
        let count = u64::from(trial.count).min(all - from);
        let panics = PanicCounter::start();
        let (next, total) = (AtomicU64::new(0), Mutex::new((Tally::default(), Tally::default())));
        let work = || -> Result<()> {
            let (viewer, folder) = (Viewer::new()?, MemoryFolder::new()?);
            let (mut main, mut log) = (Tally::default(), Tally::default());
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    break;
                }
                trial.progress(u32::try_from(number).unwrap_or(u32::MAX));
                let case = *cases.get(usize::try_from(from + number)?).context("no such case")?;
                let files = make(&stores, case)?;
                let tally = if matches!(case, Case::First(_)) { &mut main } else { &mut log };
                look(&viewer, &folder, &files, &stores, tally).with_context(|| format!("{case:?}"))?;
            }
            let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
            total.0.merge(&main);
            total.1.merge(&log);
            Ok(())
        };
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
            workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow::anyhow!("a look panicked"))?)
        })?;
        let panicked = panics.count();
        ensure!(panicked == 0, "{panicked} panics");
        let (main, log) = total.into_inner().unwrap_or_else(PoisonError::into_inner);
        // What is in the log has checksums of SQLite's own, over everything that was written before.
        ensure!(log.untold == 0, "a damaged log shows something that never was: {log}");
        let share = if count == all { "all of them".to_owned() } else { format!("of {all}") };
        Ok(Outcome::new(count, format!("{share}, in {how}, 0 wrong bodies, 0 panics; main file: {main}; log: {log}")))
    })
    .await?
}

/// Opens one damaged journal; fails when anything is served that is not what was stored.
fn look(viewer: &Viewer, folder: &MemoryFolder, files: &Files, stores: &Stores, tally: &mut Tally) -> Result<()> {
    files.put(folder)?;
    match viewer.look(&folder.file(DATABASE), EVENTS) {
        Ok(picture) => {
            for (what, served) in [("shown", &picture.events), ("delivered", &picture.delivered)] {
                for (seq, seen) in served {
                    let stored = stores.picture.events.get(seq);
                    ensure!(stored == Some(seen), "event {seq} is {what} as {seen:?}, and was {stored:?}");
                }
            }
            // Otherwise its position would be given once more.
            let last = picture.events.last_key_value().map_or(0, |(seq, _)| *seq);
            ensure!(
                u64::try_from(last)? <= picture.accepted || !picture.complaints.is_empty(),
                "event {last} is there, and only {} count as accepted",
                picture.accepted
            );
            tally.add(&picture, stores);
        }
        Err(_) => tally.refused += 1,
    }
    Ok(())
}
