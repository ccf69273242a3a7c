//! What a disk may hold after a crash: every write that a sync has settled, and any part of the later ones.
//!
//! The writes are those of the real daemon, recorded by `strace`; the images are put together afterwards.
//! The method is that of ALICE and of SQLite's own crash tests. The shared-memory index beside a journal is
//! left out: it is made anew after a crash.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use kit_workbench::process::DaemonProcess;

use crate::strace::{self, Attached};

/// Calls that change files, settle them, or may carry an answer.
const CALLS: &str = "pwrite64,write,ftruncate,fsync,fdatasync,unlink,openat,sendto,writev";
/// The files that matter, by what is added to the journal's name.
const FILES: [&str; 2] = ["", "-wal"];

/// A recorder at work on a running daemon.
#[derive(Debug)]
pub struct Recorder {
    attached: Attached,
    journal: PathBuf,
    base: BTreeMap<PathBuf, Vec<u8>>,
}

/// One thing that happened, in order.
#[derive(Debug)]
enum Step {
    Write {
        file: PathBuf,
        at: usize,
        bytes: Vec<u8>,
    },
    Resize {
        file: PathBuf,
        size: usize,
    },
    Remove {
        file: PathBuf,
    },
    /// Everything written to it before is on the disk.
    Synced {
        file: PathBuf,
    },
    /// An answer that names an accepted event is on its way.
    Answered {
        id: String,
    },
}

/// What the daemon did to its journal.
#[derive(Debug)]
pub struct Recording {
    journal: PathBuf,
    base: BTreeMap<PathBuf, Vec<u8>>,
    steps: Vec<Step>,
}

/// What a crash leaves.
#[derive(Debug)]
pub struct Image {
    files: BTreeMap<PathBuf, Vec<u8>>,
    /// Ids of the events that were accepted before, in order.
    pub answered: Vec<String>,
    /// How it was put together.
    pub story: String,
}

impl Recorder {
    /// Records from now on. The daemon must have nothing to do.
    ///
    /// # Errors
    /// `strace` is missing or not allowed to.
    pub async fn attach(daemon: &DaemonProcess, journal: &Path) -> Result<Self> {
        let options = ["-xx", "-y", "-s", "1048576"];
        let attached = strace::watch(daemon, CALLS, &options).await?;
        let mut base = BTreeMap::new();
        for suffix in FILES {
            let file = beside(journal, suffix);
            if file.exists() {
                base.insert(file.clone(), std::fs::read(&file)?);
            }
        }
        Ok(Self { attached, journal: journal.to_owned(), base })
    }

    /// Ends the recording; the daemon goes on, if it has not ended.
    ///
    /// # Errors
    /// `strace` noted something that is not understood.
    pub async fn finish(self) -> Result<Recording> {
        let notes = self.attached.end().await?;
        let steps = parse(&notes, &self.journal)?;
        Ok(Recording { journal: self.journal, base: self.base, steps })
    }
}

impl Recording {
    /// Number of moments at which a crash may come.
    pub fn moments(&self) -> usize {
        self.steps.len() + 1
    }

    /// Number of completed syncs.
    pub fn syncs(&self) -> usize {
        self.steps.iter().filter(|step| matches!(step, Step::Synced { .. })).count()
    }

    /// An image of a crash at a random moment. With `lying`, no sync settles anything.
    pub fn image(&self, random: &mut fastrand::Rng, lying: bool) -> Image {
        let moment = random.usize(0..self.moments());
        let steps = self.steps.get(..moment).unwrap_or_default();
        let mut settled: HashMap<&Path, usize> = HashMap::new();
        for (number, step) in steps.iter().enumerate() {
            if let Step::Synced { file } = step
                && !lying
            {
                settled.insert(file, number);
            }
        }
        // From "nothing more" over "some" to "everything", and each write whole or in part.
        let (kept, torn) = (*pick(random, &[0, 10, 50, 90, 100]), *pick(random, &[0, 20, 100]));
        let unit = *pick(random, &[512, 4096]);
        let mut image = Image {
            files: self.base.clone(),
            answered: Vec::new(),
            story: format!("moment {moment}, {kept} % of later writes, {torn} % of them cut at {unit}"),
        };
        for (number, step) in steps.iter().enumerate() {
            let is_settled = |file: &PathBuf| settled.get(file.as_path()).is_some_and(|sync| number < *sync);
            match step {
                Step::Write { file, at, bytes } => {
                    let mut bytes = bytes.as_slice();
                    if !is_settled(file) {
                        if random.u32(0..100) >= kept {
                            continue;
                        }
                        if random.u32(0..100) < torn {
                            let end = random.usize(0..=bytes.len() / unit) * unit;
                            bytes = bytes.get(..end.min(bytes.len())).unwrap_or_default();
                        }
                    }
                    let content = image.files.entry(file.clone()).or_default();
                    let end = at + bytes.len();
                    if content.len() < end && !bytes.is_empty() {
                        content.resize(end, 0);
                    }
                    if let Some(place) = content.get_mut(*at..end) {
                        place.copy_from_slice(bytes);
                    }
                }
                Step::Resize { file, size } => {
                    if is_settled(file) || random.u32(0..100) < kept {
                        image.files.entry(file.clone()).or_default().resize(*size, 0);
                    }
                }
                // Nothing ever settles it: whoever removes a file must do without it or with it.
                Step::Remove { file } => {
                    if random.u32(0..100) < kept {
                        image.files.remove(file);
                    }
                }
                Step::Synced { .. } => {}
                Step::Answered { id } => image.answered.push(id.clone()),
            }
        }
        image
    }

    /// Writes an image into an empty folder; returns the journal's path there.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn place(&self, image: &Image, folder: &Path) -> Result<PathBuf> {
        for (file, content) in &image.files {
            let name = file.file_name().context("a file has a name")?;
            std::fs::write(folder.join(name), content)?;
        }
        Ok(folder.join(self.journal.file_name().context("the journal has a name")?))
    }
}

fn pick<'a, T>(random: &mut fastrand::Rng, choices: &'a [T]) -> &'a T {
    &choices[random.usize(0..choices.len())]
}

fn beside(journal: &Path, suffix: &str) -> PathBuf {
    let mut name = journal.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Reads what `strace -f -xx -y` noted.
fn parse(notes: &str, journal: &Path) -> Result<Vec<Step>> {
    let files = FILES.map(|suffix| beside(journal, suffix));
    let ours = |path: &[u8]| files.iter().find(|file| file.as_os_str().as_encoded_bytes() == path).cloned();
    let mut steps = Vec::new();
    // Syncs that a thread has begun, by its number.
    let mut syncing: HashMap<&str, PathBuf> = HashMap::new();
    for line in notes.lines() {
        let (thread, call) = line.split_once(' ').with_context(|| format!("no call: {line:.200}"))?;
        let call = call.trim_start();
        if call.starts_with("<... ") {
            if let Some(file) = syncing.remove(thread) {
                ensure!(call.ends_with("= 0"), "a sync failed: {call}");
                steps.push(Step::Synced { file });
            }
            continue;
        }
        let Some((name, arguments)) = call.split_once('(') else { continue };
        let is_over = !call.ends_with("<unfinished ...>");
        let file = || ours(&annotated(arguments));
        match name {
            "pwrite64" | "write" => {
                let Some(file) = file() else {
                    steps.extend(answer(arguments));
                    continue;
                };
                ensure!(name == "pwrite64", "{call:.200} says not where it writes");
                let bytes = strings(arguments).into_iter().next().context("a write has bytes")?;
                let (length, at) = lasts(arguments).with_context(|| format!("{call:.100}"))?;
                ensure!(length == bytes.len(), "{length} bytes are written, {} are noted", bytes.len());
                steps.push(Step::Write { file, at, bytes });
            }
            "ftruncate" => {
                let Some(file) = file() else { continue };
                let size = arguments.split([',', ')', '<']).rfind(|part| part.trim().parse::<usize>().is_ok());
                let size = size.and_then(|size| size.trim().parse().ok()).context("a size")?;
                steps.push(Step::Resize { file, size });
            }
            "unlink" => {
                let path = strings(arguments).into_iter().next().unwrap_or_default();
                steps.extend(ours(&path).filter(|_| !call.contains("= -1")).map(|file| Step::Remove { file }));
            }
            "fsync" | "fdatasync" => {
                let Some(file) = file() else { continue };
                if is_over {
                    ensure!(call.ends_with("= 0"), "a sync failed: {call}");
                    steps.push(Step::Synced { file });
                } else {
                    syncing.insert(thread, file);
                }
            }
            "sendto" | "writev" => steps.extend(answer(arguments)),
            "openat" => {}
            _ => bail!("nobody asked for {name}"),
        }
    }
    Ok(steps)
}

/// The answer to a webhook, if that is what is being sent.
fn answer(arguments: &str) -> Option<Step> {
    let sent = strings(arguments).concat();
    if !sent.starts_with(b"HTTP/1.1 200") {
        return None;
    }
    let text = String::from_utf8_lossy(&sent);
    let (_, rest) = text.split_once(r#"{"id":""#)?;
    let (id, rest) = rest.split_once('"')?;
    rest.starts_with(r#","duplicate""#).then(|| Step::Answered { id: id.to_owned() })
}

/// The path behind the descriptor that is the first argument.
fn annotated(arguments: &str) -> Vec<u8> {
    let path = arguments.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map_or("", |(path, _)| path);
    plain(path)
}

/// The strings among the arguments.
fn strings(arguments: &str) -> Vec<Vec<u8>> {
    arguments.split('"').skip(1).step_by(2).map(plain).collect()
}

/// The last two numbers of a `pwrite64`: length and offset.
fn lasts(arguments: &str) -> Option<(usize, usize)> {
    let (_, numbers) = arguments.rsplit_once('"')?;
    let mut numbers = numbers.split([',', ')', '<', ' ']).filter(|part| !part.is_empty());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Undoes `-xx`.
fn plain(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len() / 4);
    let mut rest = text.as_bytes();
    loop {
        match rest {
            [b'\\', b'x', high, low, tail @ ..] => {
                let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
                bytes.push(digit(*high).unwrap_or(0) << 4 | digit(*low).unwrap_or(0));
                rest = tail;
            }
            [byte, tail @ ..] => {
                bytes.push(*byte);
                rest = tail;
            }
            [] => return bytes,
        }
    }
}
