//! Scratch folders and free ports for runs on the loopback.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

pub use kit::stand_in::ports::free_port;
use tempfile::TempDir;

/// Name of the environment variable that keeps scratch folders for a look afterwards.
pub const KEEP_VARIABLE: &str = "WORKBENCH_KEEP";

/// A folder of its own that disappears with the value – unless `WORKBENCH_KEEP` is set, or the
/// thread is panicking: then a test has failed, and what it left on disk is the evidence.
#[derive(Debug)]
pub struct Scratch {
    // `None` only inside `drop`.
    dir: Option<TempDir>,
    path: PathBuf,
}

impl Scratch {
    /// Makes an empty folder, readable by its owner only, whose name begins with `prefix`.
    ///
    /// # Errors
    /// Those of creating a folder in the system's temporary directory (`TMPDIR`).
    pub fn new(prefix: &str) -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix(&format!("{prefix}-")).tempdir()?;
        Ok(Self { path: dir.path().to_owned(), dir: Some(dir) })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of `name` inside the folder; nothing is created.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a file inside the folder, readable by its owner only (it may be a key), and returns
    /// its path.
    ///
    /// # Errors
    /// Those of creating and writing the file.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> io::Result<PathBuf> {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;

        let path = self.file(name);
        std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)?
            .write_all(content.as_ref())?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let keep = std::thread::panicking() || std::env::var_os(KEEP_VARIABLE).is_some();
        if let (true, Some(dir)) = (keep, self.dir.take()) {
            let path = dir.keep();
            tracing::warn!(path = %path.display(), "scratch folder is kept");
        }
    }
}

/// Several different free ports at once; see [`free_port`].
///
/// # Errors
/// When the loopback has not enough free ports.
pub fn free_ports<const N: usize>() -> io::Result<[u16; N]> {
    let mut ports = [0; N];
    for port in &mut ports {
        *port = free_port()?;
    }
    Ok(ports)
}

/// [`free_port`] as an address on 127.0.0.1.
///
/// # Errors
/// When the loopback has no free port.
pub fn free_address() -> io::Result<SocketAddr> {
    Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeSet;
    use std::net::TcpListener;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_scratch_folder_goes_with_its_value() {
        let scratch = Scratch::new("workbench-test").unwrap();
        let file = scratch.write("key", b"secret").unwrap();
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let path = scratch.path().to_owned();

        drop(scratch);

        assert!(!path.exists());
    }

    #[test]
    fn a_failed_test_leaves_its_folder_as_evidence() {
        let path = std::thread::spawn(|| {
            let scratch = Scratch::new("workbench-kept").unwrap();
            std::panic::panic_any(scratch.path().to_owned());
        });
        // The panic's payload is produced before the folder is dropped during unwinding.
        let path = *path.join().unwrap_err().downcast::<PathBuf>().unwrap();

        assert!(path.exists());
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn free_ports_differ_and_can_be_bound() {
        let ports = free_ports::<16>().unwrap();

        assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), 16);
        TcpListener::bind((Ipv4Addr::LOCALHOST, ports[0])).unwrap();
    }
}
