//! Replays the committed corpora and regressions, and mutations of both, on a stable toolchain.
//!
//! `cargo test --test replay -- NAME` replays one target, `OUTRIGGER_SEED` repeats a run,
//! `OUTRIGGER_MUTATIONS` sets how many mutations a target gets.

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use outrigger_fuzz::{TARGETS, Target};

/// No corpus is larger than this …
const CORPUS_FILES: usize = 50;
/// … or has more bytes.
const CORPUS_BYTES: usize = 200 * 1024;

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    if std::env::args().any(|argument| argument == "--list") {
        for target in TARGETS {
            say(&format!("{}: test\n", target.name));
        }
        return ExitCode::SUCCESS;
    }
    let seed = number("OUTRIGGER_SEED").unwrap_or_else(|| fastrand::u64(..));
    say(&format!("OUTRIGGER_SEED={seed}\n"));
    let (mut passed, mut failed, mut left_out) = (0, 0, 0);
    for target in TARGETS {
        if !wanted.is_empty() && !wanted.iter().any(|word| target.name.contains(word.as_str())) {
            left_out += 1;
            continue;
        }
        let started = Instant::now();
        let (word, note) = match replay(target, seed) {
            Ok(note) => ("ok", note),
            Err(reason) => ("FAILED", reason),
        };
        say(&format!("{:<16} {word:<7} {note}, {:.1} s\n", target.name, started.elapsed().as_secs_f64()));
        if word == "ok" { passed += 1 } else { failed += 1 }
    }
    outrigger_fuzz::remove_files();
    let word = if failed == 0 { "ok" } else { "FAILED" };
    say(&format!(
        "\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; {left_out} filtered out\n"
    ));
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn replay(target: &Target, seed: u64) -> Result<String, String> {
    let corpus = inputs(&folder("corpus").join(target.name))?;
    let bytes: usize = corpus.iter().map(|(_, data)| data.len()).sum();
    if corpus.is_empty() || corpus.len() > CORPUS_FILES || bytes > CORPUS_BYTES {
        return Err(format!("its corpus has {} files and {bytes} bytes", corpus.len()));
    }
    let regressions = inputs(&folder("regressions").join(target.name)).unwrap_or_default();
    for (path, data) in corpus.iter().chain(&regressions) {
        attempt(target, data).map_err(|()| format!("{}", path.display()))?;
    }
    let mutations = number("OUTRIGGER_MUTATIONS").unwrap_or(u64::from(target.mutations));
    let mut random = fastrand::Rng::with_seed(seed ^ u64::from_le_bytes(name_bytes(target.name)));
    let known: Vec<&[u8]> = corpus.iter().chain(&regressions).map(|(_, data)| data.as_slice()).collect();
    for nth in 0..mutations {
        let data = mutate(&known, &mut random);
        attempt(target, &data).map_err(|()| {
            let kept = std::env::temp_dir().join(format!("fuzz-{}-{seed}-{nth}", target.name));
            let note = std::fs::write(&kept, &data).map_or_else(|e| e.to_string(), |()| kept.display().to_string());
            format!("mutation {nth} of seed {seed}, kept as {note}")
        })?;
    }
    Ok(format!("{} inputs, {} regressions, {mutations} mutations", corpus.len(), regressions.len()))
}

/// The panic has been shown by its hook.
fn attempt(target: &Target, data: &[u8]) -> Result<(), ()> {
    catch_unwind(AssertUnwindSafe(|| outrigger_fuzz::run(target.run, data))).map_err(|_| ())
}

/// One of the known inputs, changed in one to four places, or grown together with another.
fn mutate(known: &[&[u8]], random: &mut fastrand::Rng) -> Vec<u8> {
    const INTERESTING: [u8; 12] = [0, 1, 0x7f, 0x80, 0xff, b'\n', b'\r', b'"', b'.', b':', b' ', b'='];
    let mut data = random.choice(known).map(|data| data.to_vec()).unwrap_or_default();
    for _ in 0..random.usize(1..=4) {
        let at = random.usize(0..=data.len());
        let end = data.len().min(at + random.usize(0..=16));
        match random.u8(0..7) {
            0 if at < data.len() => data[at] ^= 1 << random.u8(0..8),
            1 if at < data.len() => data[at] = random.choice(INTERESTING).unwrap_or_default(),
            2 => data.insert(at, random.choice(INTERESTING).unwrap_or_default()),
            3 => drop(data.drain(at..end)),
            4 => data.truncate(at),
            5 => {
                let piece = data[at..end].to_vec();
                let to = random.usize(0..=data.len());
                data.splice(to..to, piece);
            }
            _ => {
                let other = random.choice(known).copied().unwrap_or_default();
                let from = random.usize(0..=other.len());
                data.truncate(at);
                data.extend_from_slice(&other[from..]);
            }
        }
    }
    data
}

/// The files of a folder in the order of their names.
fn inputs(folder: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>, String> {
    let wrong = |error: std::io::Error| format!("{}: {error}", folder.display());
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .map_err(wrong)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .map_err(wrong)?;
    paths.sort();
    paths.into_iter().map(|path| std::fs::read(&path).map(|data| (path, data)).map_err(wrong)).collect()
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn name_bytes(name: &str) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
    bytes
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn say(text: &str) {
    let mut out = std::io::stdout();
    // A closed pipe is no reason to fail.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
