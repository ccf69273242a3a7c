//! What a power cut may leave: every write of a daemon to its journal is recorded, and for any moment the disk
//! is put together again from what was synced by then and any part of what was not.
//!
//! The model is harsher than common file systems: writes after the last sync of their file may be missing, be
//! there in any order, in pieces of a sector or a page, or be noise; a name may be missing until its folder
//! was synced.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use kit_workbench::process::DaemonCommand;

/// The calls that change files or make them durable. SQLite writes with no other.
const CALLS: &str = "openat,write,pwrite64,pwritev,ftruncate,fallocate,rename,unlink,fsync,fdatasync";
/// Longer than any write of the journal.
const LONGEST: &str = "4194304";

/// The command, with every change of a file written to `log`. The process is the daemon's own.
pub fn recorded(command: DaemonCommand, log: &Path) -> DaemonCommand {
    let mut arguments: Vec<std::ffi::OsString> =
        ["-D", "-f", "-qq", "--seccomp-bpf", "-ttt", "-xx", "-y", "-s", LONGEST].map(Into::into).to_vec();
    arguments.extend(["-e".into(), format!("trace={CALLS}").into(), "-e".into(), "signal=none".into()]);
    arguments.extend(["-o".into(), log.into(), "--".into()]);
    command.wrapped("strace", arguments)
}

/// Something that happened to a file or to the folder.
#[derive(Clone, Debug)]
pub enum Step {
    /// The file is there from now on, if it was not before.
    Create(Arc<str>),
    /// The name is gone.
    Remove(Arc<str>),
    /// Bytes at a place.
    Write(Arc<str>, u64, Arc<[u8]>),
    /// The file is that long.
    Resize(Arc<str>, u64),
    /// Everything written to the file before is on the disk.
    Sync(Arc<str>),
    /// All names are on the disk.
    SyncFolder,
}

/// What a daemon did to the files of one journal, in order; each with when it began, in microseconds since
/// 1970, before it had any effect.
#[derive(Debug, Default)]
pub struct Recording {
    /// The steps.
    pub steps: Vec<(u64, Step)>,
}

impl Recording {
    /// Adds what `log` says about the files whose name begins with `journal` in its folder. Its lock and its
    /// shared memory are no part of it: both are made anew by every start.
    ///
    /// # Errors
    /// The log is not understood, or something was done that the model does not know.
    ///
    /// A write that a kill cut off may have been done all the same, or a part of it: the files have to be as
    /// the daemon left them.
    pub fn add(&mut self, log: &Path, journal: &Path) -> Result<()> {
        let folder = journal.parent().context("the journal has no folder")?.to_str().context("folder is not text")?;
        let name = journal.file_name().and_then(|name| name.to_str()).context("the journal has no name")?;
        let names = ["", "-wal", "-journal"].map(|suffix| Arc::from(format!("{name}{suffix}")));
        let text = std::fs::read_to_string(log)?;
        let mut begun: HashMap<&str, (u64, &str)> = HashMap::new();
        let mut ends: Vec<(u64, String)> = Vec::new();
        for line in text.lines() {
            let (thread, rest) = line.split_once(' ').context("a line without a thread")?;
            let (time, call) = rest.trim_start().split_once(' ').context("a line without a time")?;
            let time = micros(time)?;
            if let Some(first) = call.strip_suffix(" <unfinished ...>") {
                begun.insert(thread, (time, first));
                continue;
            }
            let whole;
            let (time, call) = match call.strip_prefix("<... ") {
                Some(resumed) => {
                    let (time, first) = begun.remove(thread).context("a call that was never begun")?;
                    let (_, rest) = resumed.split_once('>').context("a call that does not go on")?;
                    whole = format!("{first}{rest}");
                    (time, whole.as_str())
                }
                None => (time, call),
            };
            if let Some(call) = call.strip_suffix(" = ?") {
                let call = call.trim_end().strip_suffix(')').unwrap_or(call);
                ends.push((time, call.strip_suffix(" <unfinished ...>").unwrap_or(call).to_owned()));
                continue;
            }
            let step = step(call, folder, &names).with_context(|| call.chars().take(200).collect::<String>())?;
            self.steps.extend(step.map(|step| (time, step)));
        }
        ends.extend(begun.into_values().map(|(time, call)| (time, call.to_owned())));
        for (time, call) in &ends {
            let step = cut_off(call, folder, journal, &names)?;
            self.steps.extend(step.map(|step| (*time, step)));
        }
        Ok(())
    }
}

/// `1795256979.543281`
fn micros(text: &str) -> Result<u64> {
    let (seconds, micros) = text.split_once('.').context("not a time")?;
    Ok(seconds.parse::<u64>()? * 1_000_000 + micros.parse::<u64>()?)
}

fn step(call: &str, folder: &str, names: &[Arc<str>; 3]) -> Result<Option<Step>> {
    let Some((name, rest)) = call.split_once('(') else { return Ok(None) };
    // What failed has done nothing, and what was cut off by the daemon's end neither.
    let Some((arguments, result)) = rest.rsplit_once(" = ") else { return Ok(None) };
    if result.starts_with(['-', '?']) {
        return Ok(None);
    }
    let arguments = arguments.trim_end().strip_suffix(')').context("arguments without an end")?;
    let path = match name {
        "openat" | "unlink" => {
            let quoted = arguments.split('"').nth(1).context("no path")?;
            String::from_utf8(unhex(quoted)?)?
        }
        // Of both names the first: nothing here is renamed, which is made sure of.
        "rename" => String::from_utf8(unhex(arguments.split('"').nth(1).context("no path")?)?)?,
        _ => match arguments.split_once('<').and_then(|(_, path)| path.split_once('>')) {
            Some((_, after)) if after.starts_with("(deleted)") => return Ok(None),
            // A socket or a pipe prints as it is.
            Some((path, _)) if path.starts_with("\\x") => String::from_utf8(unhex(path)?)?,
            _ => return Ok(None),
        },
    };
    if path == folder {
        return Ok(matches!(name, "fsync" | "fdatasync").then_some(Step::SyncFolder));
    }
    let inside = path.strip_prefix(folder).and_then(|rest| rest.strip_prefix('/'));
    let Some(file) = inside.and_then(|inside| names.iter().find(|name| ***name == *inside)) else { return Ok(None) };
    let file = Arc::clone(file);
    let last = || -> Result<u64> { Ok(arguments.rsplit(", ").next().context("no argument")?.parse()?) };
    Ok(match name {
        "openat" => arguments.contains("O_CREAT").then_some(Step::Create(file)),
        "unlink" => Some(Step::Remove(file)),
        "pwrite64" => {
            let bytes = unhex(arguments.split('"').nth(1).context("no bytes")?)?;
            let written: usize = result.trim().parse()?;
            ensure!(bytes.len() == written, "{written} of {} bytes were written", bytes.len());
            Some(Step::Write(file, last()?, bytes.into()))
        }
        "ftruncate" => Some(Step::Resize(file, last()?)),
        "fsync" | "fdatasync" => Some(Step::Sync(file)),
        other => bail!("{other} on {file}"),
    })
}

/// What a write has done whose end the daemon did not live to see: as much of it as is in the file. What was
/// there before cannot be told from it, and need not be.
fn cut_off(call: &str, folder: &str, journal: &Path, names: &[Arc<str>; 3]) -> Result<Option<Step>> {
    if !call.starts_with("pwrite64(") {
        return Ok(None);
    }
    let length = call.rsplit(", ").nth(1).context("a write without a length")?;
    let Some(Step::Write(file, at, bytes)) = step(&format!("{call}) = {length}"), folder, names)? else {
        return Ok(None);
    };
    let present = std::fs::read(journal.with_file_name(&*file)).unwrap_or_default();
    let present = present.get(place(at)..).unwrap_or_default();
    let done = present.iter().zip(&*bytes).take_while(|(present, written)| present == written).count();
    Ok(bytes.get(..done).filter(|done| !done.is_empty()).map(|done| Step::Write(file, at, done.into())))
}

/// `\x2f\x74` to bytes.
fn unhex(text: &str) -> Result<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).context("not a hexadecimal digit");
    let mut bytes = Vec::with_capacity(text.len() / 4);
    for four in text.as_bytes().chunks(4) {
        let [b'\\', b'x', high, low] = four else { bail!("not a byte: {four:?}") };
        bytes.push(u8::try_from(digit(*high)? * 16 + digit(*low)?)?);
    }
    Ok(bytes)
}

/// A change of a file's content that is not certain to be on the disk.
#[derive(Clone, Debug)]
enum Change {
    Write(u64, Arc<[u8]>),
    Resize(u64),
}

#[derive(Clone, Debug, Default)]
struct Content {
    /// What is certainly on the disk.
    synced: Vec<u8>,
    /// What came after.
    unsynced: Vec<Change>,
}

#[derive(Clone, Debug, Default)]
struct Name {
    /// The content that certainly has the name.
    synced: Option<usize>,
    /// What the name stood for after that.
    unsynced: Vec<Option<usize>>,
}

impl Name {
    fn current(&self) -> Option<usize> {
        self.unsynced.last().copied().unwrap_or(self.synced)
    }
}

/// A disk at one moment of a recording.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    names: BTreeMap<Arc<str>, Name>,
    contents: Vec<Content>,
    /// Syncs do nothing: the disk lies.
    pub lies: bool,
}

/// The files of an image, by name.
pub type Image = BTreeMap<Arc<str>, Vec<u8>>;

impl Disk {
    /// The next thing happens.
    ///
    /// # Errors
    /// Something is done to a file that is not there.
    pub fn step(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Create(file) => {
                if self.current(file).is_none() {
                    self.contents.push(Content::default());
                    let content = self.contents.len() - 1;
                    self.names.entry(Arc::clone(file)).or_default().unsynced.push(Some(content));
                }
            }
            Step::Remove(file) => self.names.entry(Arc::clone(file)).or_default().unsynced.push(None),
            Step::Write(file, at, bytes) => {
                self.content(file)?.unsynced.push(Change::Write(*at, Arc::clone(bytes)));
            }
            Step::Resize(file, length) => self.content(file)?.unsynced.push(Change::Resize(*length)),
            Step::Sync(_) | Step::SyncFolder if self.lies => {}
            Step::Sync(file) => {
                let content = self.content(file)?;
                for change in std::mem::take(&mut content.unsynced) {
                    apply(&mut content.synced, &change);
                }
            }
            Step::SyncFolder => {
                for name in self.names.values_mut() {
                    name.synced = name.current();
                    name.unsynced.clear();
                }
            }
        }
        Ok(())
    }

    fn current(&self, file: &str) -> Option<usize> {
        self.names.get(file).and_then(Name::current)
    }

    fn content(&mut self, file: &str) -> Result<&mut Content> {
        let current = self.current(file).with_context(|| format!("{file} is written to and not there"))?;
        self.contents.get_mut(current).context("no such content")
    }

    /// Whether anything is not certain to be on the disk.
    pub fn is_certain(&self) -> bool {
        self.names.values().all(|name| {
            let content = name.current().and_then(|current| self.contents.get(current));
            name.unsynced.is_empty() && content.is_none_or(|content| content.unsynced.is_empty())
        })
    }

    /// The files as everybody sees them while there is power.
    pub fn visible(&self) -> Image {
        self.image(
            |name| name.current(),
            |content| {
                let mut bytes = content.synced.clone();
                content.unsynced.iter().for_each(|change| apply(&mut bytes, change));
                bytes
            },
        )
    }

    /// The files as a cut may leave them.
    pub fn cut(&self, random: &mut fastrand::Rng) -> Image {
        let kept = Kept::any(random);
        let random = std::cell::RefCell::new(random);
        self.image(
            |name| {
                let later = random.borrow_mut().usize(0..=name.unsynced.len());
                later.checked_sub(1).and_then(|last| name.unsynced.get(last).copied()).unwrap_or(name.synced)
            },
            |content| kept.of(content, &mut random.borrow_mut()),
        )
    }

    fn image(&self, choose: impl Fn(&Name) -> Option<usize>, bytes: impl Fn(&Content) -> Vec<u8>) -> Image {
        let files = self.names.iter().filter_map(|(file, name)| {
            let content = self.contents.get(choose(name)?)?;
            Some((Arc::clone(file), bytes(content)))
        });
        files.collect()
    }
}

/// Which part of the writes after the last sync is on the disk.
#[derive(Clone, Copy, Debug)]
enum Kept {
    Nothing,
    Everything,
    /// Up to somewhere in the middle of one, in pieces of so many bytes.
    Beginning(usize),
    /// Any of them.
    Some,
    /// Any pieces of so many bytes.
    Pieces(usize),
    /// As [`Kept::Pieces`], and where the file has grown over pieces that are not there, there is noise.
    Noise(usize),
}

impl Kept {
    fn any(random: &mut fastrand::Rng) -> Self {
        let size = if random.bool() { 512 } else { 4_096 };
        match random.u8(0..10) {
            0 => Self::Nothing,
            1 => Self::Everything,
            2..=4 => Self::Beginning(size),
            5 => Self::Some,
            6..=7 => Self::Pieces(size),
            _ => Self::Noise(size),
        }
    }

    fn of(self, content: &Content, random: &mut fastrand::Rng) -> Vec<u8> {
        let mut bytes = content.synced.clone();
        let changes = &content.unsynced;
        let many = random.usize(0..=changes.len());
        match self {
            Self::Nothing => {}
            Self::Everything => changes.iter().for_each(|change| apply(&mut bytes, change)),
            Self::Beginning(size) => {
                changes.iter().take(many).for_each(|change| apply(&mut bytes, change));
                if let Some(Change::Write(at, torn)) = changes.get(many) {
                    let pieces = random.usize(0..=torn.len() / size);
                    put(&mut bytes, *at, torn.get(..pieces * size).unwrap_or_default());
                }
            }
            Self::Some => changes.iter().filter(|_| random.bool()).for_each(|change| apply(&mut bytes, change)),
            Self::Pieces(size) => keep_pieces(&mut bytes, changes, size, random),
            Self::Noise(size) => {
                let end = changes.iter().fold(bytes.len(), |end, change| match change {
                    Change::Write(at, written) => end.max(place(*at) + written.len()),
                    Change::Resize(_) => end,
                });
                let old = bytes.len();
                bytes.resize(end, 0);
                random.fill(bytes.get_mut(old..).unwrap_or_default());
                keep_pieces(&mut bytes, changes, size, random);
            }
        }
        bytes
    }
}

fn keep_pieces(bytes: &mut Vec<u8>, changes: &[Change], size: usize, random: &mut fastrand::Rng) {
    // Sometimes most of them, sometimes few.
    let share = random.f64();
    for change in changes {
        match change {
            Change::Resize(_) if random.bool() => apply(bytes, change),
            Change::Resize(_) => {}
            Change::Write(at, written) => {
                for (number, piece) in written.chunks(size).enumerate() {
                    if random.f64() < share {
                        put(bytes, *at + (number * size) as u64, piece);
                    }
                }
            }
        }
    }
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(at, written) => put(bytes, *at, written),
        Change::Resize(length) => bytes.resize(place(*length), 0),
    }
}

fn put(bytes: &mut Vec<u8>, at: u64, written: &[u8]) {
    let (at, end) = (place(at), place(at) + written.len());
    if !written.is_empty() && bytes.len() < end {
        bytes.resize(end, 0);
    }
    if let Some(target) = bytes.get_mut(at..end) {
        target.copy_from_slice(written);
    }
}

fn place(at: u64) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn written(disk: &mut Disk, file: &str, at: u64, bytes: &[u8]) {
        disk.step(&Step::Write(file.into(), at, bytes.into())).unwrap();
    }

    #[test]
    fn only_what_was_synced_is_certain() {
        let mut disk = Disk::default();
        disk.step(&Step::Create("a".into())).unwrap();
        written(&mut disk, "a", 0, &[1; 8_192]);
        disk.step(&Step::Sync("a".into())).unwrap();
        disk.step(&Step::SyncFolder).unwrap();
        assert!(disk.is_certain());
        written(&mut disk, "a", 4_096, &[2; 8_192]);
        assert!(!disk.is_certain());

        let mut random = fastrand::Rng::with_seed(1);
        let (mut old, mut new, mut torn) = (0, 0, 0);
        for _ in 0..1_000 {
            let bytes = disk.cut(&mut random).remove("a").unwrap();
            assert_eq!(bytes[..4_096], [1; 4_096], "what was synced and not written again");
            match bytes.len() {
                8_192 if bytes[4_096..] == [1; 4_096] => old += 1,
                12_288 if bytes[4_096..] == [2; 8_192] => new += 1,
                _ => torn += 1,
            }
        }
        assert!(old > 50 && new > 50 && torn > 50, "{old} {new} {torn}");
        assert_eq!(disk.visible()["a"][4_096..], [2; 8_192]);
    }

    #[test]
    fn a_name_may_be_missing_until_its_folder_is_synced() {
        let mut disk = Disk::default();
        disk.step(&Step::Create("a".into())).unwrap();
        written(&mut disk, "a", 0, b"content");
        disk.step(&Step::Sync("a".into())).unwrap();
        let mut random = fastrand::Rng::with_seed(1);
        let there = (0..100).filter(|_| disk.cut(&mut random).contains_key("a")).count();
        assert!((20..80).contains(&there), "{there}");
        disk.step(&Step::SyncFolder).unwrap();
        disk.step(&Step::Remove("a".into())).unwrap();
        let there = (0..100).filter(|_| disk.cut(&mut random).contains_key("a")).count();
        assert!((20..80).contains(&there), "{there}");
        assert!(disk.visible().is_empty());
    }

    #[test]
    fn a_write_that_was_cut_off_counts_as_far_as_it_went() {
        let hex = |text: &str| text.bytes().fold(String::new(), |all, byte| format!("{all}\\x{byte:02x}"));
        let scratch = kit_workbench::scratch::Scratch::new("images-cut-off").unwrap();
        let journal = scratch.write("j.db", "..abX").unwrap();
        let path = hex(journal.to_str().unwrap());
        for end in [" <unfinished ...>", " <unfinished ...>) = ?", ")      = ?"] {
            let log = format!("7 1.000001 pwrite64(3<{path}>, \"{}\", 3, 2{end}\n", hex("abc"));
            let log = scratch.write("log", log).unwrap();
            let mut recording = Recording::default();
            recording.add(&log, &journal).unwrap();
            let [(_, Step::Write(_, at, bytes))] = &recording.steps[..] else { panic!("{end}: {recording:?}") };
            assert_eq!((*at, &**bytes), (2, b"ab".as_slice()));
        }
    }

    #[test]
    fn recorded_calls_are_understood() {
        let hex = |text: &str| text.bytes().fold(String::new(), |all, byte| format!("{all}\\x{byte:02x}"));
        let (folder, file) = (hex("/s"), hex("/s/j.db"));
        let log = format!(
            "7 1.000001 openat(AT_FDCWD<{folder}>, \"{file}\", O_RDWR|O_CREAT|O_CLOEXEC, 0644) = 3<{file}>\n\
             7 1.000002 pwrite64(3<{file}>, \"{}\", 3, 5 <unfinished ...>\n\
             8 1.000003 write(4<anon_inode:[eventfd]>, \"\\x01\", 1) = 1\n\
             7 1.000004 <... pwrite64 resumed>) = 3\n\
             7 1.000005 fdatasync(3<{file}>)         = 0\n\
             7 1.000006 fsync(9<{folder}>) = 0\n\
             7 1.000007 ftruncate(3<{file}>, 2) = 0\n\
             7 1.000008 unlink(\"{}\") = -1 ENOENT (No such file or directory)\n\
             7 1.000009 fdatasync(3<{file}> <unfinished ...>) = ?\n",
            hex("abc"),
            hex("/s/j.db-wal"),
        );
        let scratch = kit_workbench::scratch::Scratch::new("images-test").unwrap();
        let path = scratch.write("log", log).unwrap();
        let mut recording = Recording::default();
        recording.add(&path, Path::new("/s/j.db")).unwrap();

        let mut disk = Disk::default();
        recording.steps.iter().for_each(|(_, step)| disk.step(step).unwrap());
        assert_eq!(recording.steps.len(), 5, "{recording:?}");
        assert_eq!(recording.steps[1].0, 1_000_002, "when it began");
        assert_eq!(disk.visible()["j.db"], [0, 0]);
        assert_eq!(disk.contents[0].synced, b"\0\0\0\0\0abc");
    }
}
