//! Folders for files that a target needs, in memory where there is such a place.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

const PREFIX: &str = "outrigger-fuzz-";

static COUNT: AtomicU64 = AtomicU64::new(0);
static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    // libFuzzer ends without cleaning up.
    for entry in std::fs::read_dir(&base).into_iter().flatten().flatten() {
        let process = entry.file_name().to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse::<u32>().ok());
        if process.is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    base.join(format!("{PREFIX}{}", std::process::id()))
});

/// Removes every file that a target still holds: before the process ends, and not earlier.
pub fn remove_files() {
    let _ = std::fs::remove_dir_all(&*ROOT);
}

/// A folder that goes with this value.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        let folder = ROOT.join(COUNT.fetch_add(1, Ordering::Relaxed).to_string());
        std::fs::create_dir_all(&folder).expect("a folder can be made");
        Self(folder)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
        // Only the last one gets the folder itself.
        let _ = std::fs::remove_dir(&*ROOT);
    }
}
