//! A real PostgreSQL server on a private port and data directory, and a pooler in front of it: from Debian's packages,
//! run by an unprivileged user, and gone when the process that started them is, however that ends.

use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::scratch::{Scratch, free_port};

/// Where Debian installs the servers, one folder a version.
const SERVERS: &str = "/usr/lib/postgresql";
/// Where Debian installs the pooler.
const POOLER: &str = "/usr/sbin/pgbouncer";
const USER: &str = "outrigger";
const PASSWORD: &str = "workbench";
/// Initialising and starting, on a slow and busy machine.
const STARTS_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Runs a program and ends it with the signal `$0` when our end of its standard input is closed, whoever closes it. Where
/// no line was written before, nobody is there any more who would remove the folder.
const KEEPER: &str = r#""$@" </dev/null & pid=$!; read -r _ || left=1; kill -"$0" "$pid" 2>/dev/null; wait "$pid"; code=$?
[ -z "$left" ] || rm -rf -- "$PWD"; exit "$code""#;

/// How a server is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Connections are closed, what is open is undone.
    Fast,
    /// As a crash would: what was committed is recovered at the next start.
    Crash,
    /// SIGKILL, as the machine would be gone: nobody is told anything, and sessions end as they notice.
    Kill,
}

/// A running server. Dropping it ends it.
#[derive(Debug)]
pub struct Database {
    scratch: Scratch,
    bin: PathBuf,
    port: u16,
    options: Vec<String>,
    keeper: Option<Child>,
}

impl Database {
    /// Makes a cluster and starts it, with these settings (`name=value`) beside the usual ones.
    ///
    /// # Errors
    /// There is no server to be found, or it does not start; what it said is in the error.
    pub fn start(options: &[&str]) -> io::Result<Self> {
        let (scratch, bin) = room()?;
        let password = scratch.write("password", PASSWORD)?;
        hand_over(&password)?;
        let mut initdb = unprivileged(&bin.join("initdb"), &scratch);
        initdb.arg("-D").arg(scratch.file("data")).args(["-U", USER, "-A", "scram-sha-256", "--no-sync"]);
        initdb.args(["--encoding=UTF8", "--locale=C"]).arg("--pwfile").arg(&password);
        let output = initdb.output()?;
        if !output.status.success() {
            return Err(io::Error::other(format!("initdb: {}", String::from_utf8_lossy(&output.stderr))));
        }
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let mut database = Self { scratch, bin, port: free_port()?, options, keeper: None };
        database.run()?;
        Ok(database)
    }

    /// Makes a standby of this one that receives all it commits (streaming, asynchronous), and starts it on this port, or on
    /// a free one; with the same settings.
    ///
    /// # Errors
    /// It cannot be copied, or does not start; what was said is in the error.
    pub fn standby(&self, port: Option<u16>) -> io::Result<Self> {
        let (scratch, bin) = room()?;
        let mut copy = unprivileged(&bin.join("pg_basebackup"), &scratch);
        copy.arg("-D").arg(scratch.file("data")).args(["-R", "-X", "stream", "-c", "fast", "--no-sync", "-d"]);
        let output = copy.arg(self.url("postgres")).stdin(Stdio::null()).output()?;
        if !output.status.success() {
            return Err(io::Error::other(format!("pg_basebackup: {}", String::from_utf8_lossy(&output.stderr))));
        }
        let port = port.map_or_else(free_port, Ok)?;
        let mut standby = Self { scratch, bin, port, options: self.options.clone(), keeper: None };
        standby.run()?;
        Ok(standby)
    }

    /// Sets something while it runs (`ALTER SYSTEM`), and returns when it counts for new transactions.
    ///
    /// # Errors
    /// What the server says.
    pub fn set(&self, name: &str, value: &str) -> io::Result<()> {
        self.sql("postgres", &format!("ALTER SYSTEM SET {name} = '{value}'"))?;
        self.sql("postgres", "SELECT pg_reload_conf()")?;
        let shown = format!("SHOW {name}");
        self.wait_until(&format!("{name} is {value:?}"), || Ok(self.sql("postgres", &shown)? == value))
    }

    /// Has every commit wait from now on until a standby has it on its disk.
    ///
    /// # Errors
    /// There is no standby that could be waited for.
    pub fn wait_for_standbys(&self) -> io::Result<()> {
        self.set("synchronous_standby_names", "*")?;
        let of_use = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync' AND state = 'streaming'";
        self.wait_until("a synchronous standby", || Ok(self.sql("postgres", of_use)? != "0"))
    }

    /// Makes a standby the primary; returns when it takes writes.
    ///
    /// # Errors
    /// It is none, or does not become it.
    pub fn promote(&self) -> io::Result<()> {
        let mut promote = unprivileged(&self.bin.join("pg_ctl"), &self.scratch);
        let output = promote.arg("promote").arg("-D").arg(self.scratch.file("data")).arg("-w").output()?;
        if !output.status.success() {
            return Err(io::Error::other(format!("pg_ctl promote: {}", String::from_utf8_lossy(&output.stderr))));
        }
        let is_standby = "SELECT pg_is_in_recovery()";
        self.wait_until("a primary", || Ok(self.sql("postgres", is_standby)? == "f"))
    }

    fn wait_until(&self, what: &str, mut holds: impl FnMut() -> io::Result<bool>) -> io::Result<()> {
        let deadline = Instant::now() + STARTS_WITHIN;
        while !holds()? {
            if Instant::now() > deadline {
                return Err(io::Error::other(format!("{what}: not within {STARTS_WITHIN:?}\n{}", self.log())));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Starts it again after [`Database::end`], on the same port.
    ///
    /// # Errors
    /// As [`Database::start`].
    pub fn run(&mut self) -> io::Result<()> {
        let mut keeper = unprivileged(Path::new("/bin/sh"), &self.scratch);
        keeper.args(["-c", KEEPER, "QUIT"]).arg(self.bin.join("postgres")).arg("-D").arg(self.scratch.file("data"));
        keeper.args(["-p", &self.port.to_string(), "-k"]).arg(self.scratch.path());
        let usual =
            ["listen_addresses=127.0.0.1", "shared_buffers=64MB", "max_connections=80", "logging_collector=off"];
        for option in usual.into_iter().chain(self.options.iter().map(String::as_str)) {
            keeper.args(["-c", option]);
        }
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.scratch.file("log"))?;
        keeper.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
        self.keeper = Some(keeper.spawn()?);
        let deadline = Instant::now() + STARTS_WITHIN;
        while self.sql("postgres", "SELECT 1").is_err() {
            if Instant::now() > deadline {
                return Err(io::Error::other(format!("the server does not start:\n{}", self.log())));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Ends it and waits until it is gone.
    ///
    /// # Errors
    /// It cannot be signalled, or does not end.
    pub fn end(&mut self, how: End) -> io::Result<()> {
        let signal = match how {
            End::Fast => Signal::INT,
            End::Crash => Signal::QUIT,
            End::Kill => Signal::KILL,
        };
        if let Some(pid) = self.pid() {
            kill_process(pid, signal)?;
        }
        if how == End::Kill {
            // It leaves its file of the process id behind.
            return self.keeper.take().map_or(Ok(()), |mut keeper| let_go(&mut keeper));
        }
        self.close()
    }

    /// Process id of the server.
    pub fn pid(&self) -> Option<Pid> {
        let file = std::fs::read_to_string(self.scratch.file("data").join("postmaster.pid")).ok()?;
        Pid::from_raw(file.lines().next()?.trim().parse().ok()?)
    }

    fn close(&mut self) -> io::Result<()> {
        let Some(mut keeper) = self.keeper.take() else { return Ok(()) };
        let deadline = Instant::now() + STARTS_WITHIN;
        // Whoever asked nicely gets time for that.
        while self.pid().is_some() && Instant::now() < deadline {
            std::thread::sleep(LOOK_EVERY);
        }
        let_go(&mut keeper)
    }

    /// Makes an empty database.
    ///
    /// # Errors
    /// The server refuses.
    pub fn create(&self, name: &str) -> io::Result<()> {
        self.sql("postgres", &format!("CREATE DATABASE {name}")).map(drop)
    }

    /// The URL of a database.
    pub fn url(&self, database: &str) -> String {
        url(self.port, database)
    }

    /// The URL of a database that is on this server or on `other`, whichever takes writes.
    pub fn url_of_both(&self, other: &Self, database: &str) -> String {
        let both = format!("127.0.0.1:{},127.0.0.1:{}/", self.port, other.port);
        let url = self.url(database).replace(&format!("127.0.0.1:{}/", self.port), &both);
        format!("{url}?target_session_attrs=read-write")
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Runs statements in one transaction, and returns what they say: a row a line, columns with `|` between.
    ///
    /// # Errors
    /// What the server says.
    pub fn sql(&self, database: &str, statements: &str) -> io::Result<String> {
        let mut psql = Command::new(self.bin.join("psql"));
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", statements, &self.url(database)]).env_clear();
        let output = psql.stdin(Stdio::null()).output()?;
        if !output.status.success() {
            return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.scratch.file("log")).unwrap_or_default()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if let Some(mut keeper) = self.keeper.take() {
            let _ = let_go(&mut keeper);
        }
    }
}

/// pgbouncer in front of a [`Database`]. Dropping it ends it.
#[derive(Debug)]
pub struct Pooler {
    _scratch: Scratch,
    port: u16,
    keeper: Child,
}

impl Pooler {
    /// Starts it in this pool mode: `transaction`, `session` or `statement`.
    ///
    /// # Errors
    /// It is not installed or does not start.
    pub fn start(database: &Database, mode: &str) -> io::Result<Self> {
        let scratch = Scratch::new("pgbouncer")?;
        let port = free_port()?;
        let users = scratch.write("users", format!("\"{USER}\" \"{PASSWORD}\"\n"))?;
        let settings = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {}\npool_mode = {mode}\n\
             default_pool_size = 4\nmax_client_conn = 200\nlogfile = {}\n",
            database.port,
            users.display(),
            scratch.file("log").display()
        );
        let settings = scratch.write("pgbouncer.ini", settings)?;
        for path in [scratch.path(), &users, &settings] {
            hand_over(path)?;
        }
        let mut keeper = unprivileged(Path::new("/bin/sh"), &scratch);
        keeper.args(["-c", KEEPER, "TERM", POOLER, "-q"]).arg(&settings);
        let mut keeper = keeper.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let deadline = Instant::now() + STARTS_WITHIN;
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            if keeper.try_wait()?.is_some() || Instant::now() > deadline {
                let mut said = String::new();
                let _ = let_go(&mut keeper);
                if let Some(mut stderr) = keeper.stderr.take() {
                    stderr.read_to_string(&mut said)?;
                }
                return Err(io::Error::other(format!("{POOLER} does not start: {said}")));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(Self { _scratch: scratch, port, keeper })
    }

    /// The URL of a database behind it.
    pub fn url(&self, database: &str) -> String {
        url(self.port, database)
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = let_go(&mut self.keeper);
    }
}

fn url(port: u16, database: &str) -> String {
    format!("postgres://{USER}:{PASSWORD}@127.0.0.1:{port}/{database}")
}

/// A folder of its own for a server, and where the programs are.
fn room() -> io::Result<(Scratch, PathBuf)> {
    let scratch = Scratch::new("postgres")?;
    let bin = newest_server()?;
    hand_over(scratch.path())?;
    Ok((scratch, bin))
}

fn newest_server() -> io::Result<PathBuf> {
    let missing = || io::Error::other("no PostgreSQL server in /usr/lib/postgresql: apt-get install postgresql-15");
    let versions = std::fs::read_dir(SERVERS).map_err(|_| missing())?;
    let newest = versions
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|version| Path::new(SERVERS).join(format!("{version}/bin/postgres")).exists())
        .max();
    newest.map(|version| Path::new(SERVERS).join(format!("{version}/bin"))).ok_or_else(missing)
}

/// User and group that servers run as where we are root, which they refuse to be: Debian's `postgres`, or nobody.
/// `None` where we are somebody else.
pub fn server_user() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let found = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == "postgres").then_some(())?;
        Some((fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?))
    });
    Some(found.unwrap_or((65_534, 65_534)))
}

fn hand_over(path: &Path) -> io::Result<()> {
    match server_user() {
        Some((user, group)) => chown(path, Some(user), Some(group)),
        None => Ok(()),
    }
}

/// Ends what a keeper keeps, and leaves the folder to its owner here.
fn let_go(keeper: &mut Child) -> io::Result<()> {
    if let Some(mut stdin) = keeper.stdin.take() {
        // It may have ended by itself.
        let _ = stdin.write_all(b"\n");
    }
    keeper.wait().map(drop)
}

fn unprivileged(program: &Path, scratch: &Scratch) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").current_dir(scratch.path());
    if let Some((user, group)) = server_user() {
        command.uid(user).gid(group);
    }
    command
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Tests keep a server in a static, which nothing drops.
    #[test]
    fn what_nobody_is_left_to_remove_is_removed() {
        let mut database = Database::start(&[]).unwrap();
        let folder = database.scratch.path().to_owned();
        assert!(folder.join("data").is_dir());
        let mut keeper = database.keeper.take().unwrap();

        drop(keeper.stdin.take());

        keeper.wait().unwrap();
        assert!(!folder.exists());
    }

    #[test]
    fn what_is_ended_can_be_run_again() {
        let mut database = Database::start(&[]).unwrap();
        database.create("kept").unwrap();
        database.end(End::Crash).unwrap();
        database.run().unwrap();
        assert_eq!(database.sql("kept", "SELECT 1").unwrap(), "1");
    }

    #[test]
    fn a_standby_takes_over_with_all_that_was_committed() {
        let mut primary = Database::start(&[]).unwrap();
        let standby = primary.standby(None).unwrap();
        primary.wait_for_standbys().unwrap();
        primary.sql("postgres", "CREATE TABLE kept AS SELECT 7 AS n").unwrap();

        primary.end(End::Kill).unwrap();
        standby.promote().unwrap();

        assert_eq!(standby.sql("postgres", "DELETE FROM kept RETURNING n").unwrap(), "7");
        assert!(primary.sql("postgres", "SELECT 1").is_err());
        // The place of the first one is free for the next standby.
        let next = standby.standby(Some(primary.port())).unwrap();
        assert_eq!(next.sql("postgres", "SELECT pg_is_in_recovery()").unwrap(), "t");
    }
}
