//! What may happen between a replica and its database: a proxy that looks at what is said, and somebody else's
//! transaction that keeps a row or a table.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType};

use crate::bench::{server, wait_until};

/// What becomes of something that a client has said.
pub(crate) enum Fate {
    Passed,
    /// Another text of the same length.
    Changed(Vec<u8>),
    /// The connection ends before the server hears it.
    Cut,
    /// Nobody hears it, and nobody says so.
    Swallowed,
}

/// Stands in front of the server until the process ends; the URL of a database behind it.
pub(crate) fn proxied(database: &str, fate: impl Fn(&[u8]) -> Fate + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = listener.local_addr().unwrap().port();
    let (fate, behind) = (Arc::new(fate), server().port());
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let fate = Arc::clone(&fate);
            let upstream = TcpStream::connect(("127.0.0.1", behind)).unwrap();
            let answers = (upstream.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || pass(answers, &|_: &[u8]| Fate::Passed));
            std::thread::spawn(move || pass((client, upstream), &*fate));
        }
    });
    server().url(database).replace(&format!(":{behind}/"), &format!(":{own}/"))
}

fn pass((mut from, mut to): (TcpStream, TcpStream), fate: &dyn Fn(&[u8]) -> Fate) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let said = &buffer[..read];
        let passed = match fate(said) {
            Fate::Passed => to.write_all(said),
            Fate::Changed(other) => to.write_all(&other),
            Fate::Cut => break,
            Fate::Swallowed => Ok(()),
        };
        if passed.is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

pub(crate) fn holds(said: &[u8], text: &str) -> bool {
    said.windows(text.len()).any(|window| window == text.as_bytes())
}

/// Somebody's transaction that stays open.
pub(crate) struct Keeping(Child);

impl Keeping {
    /// Does this within a transaction, and leaves it open until this is dropped.
    pub(crate) fn of(database: &str, sql: &str) -> Self {
        let mut psql = Command::new("psql");
        psql.args(["-XAtq", &server().url(database)]).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut psql = psql.stderr(Stdio::null()).spawn().unwrap();
        writeln!(psql.stdin.as_mut().unwrap(), "BEGIN; {sql};").unwrap();
        let idle = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'
            AND application_name = 'psql' AND datname = current_database()";
        wait_until(Duration::from_secs(30), || server().sql(database, idle).unwrap() == "1");
        Self(psql)
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Lets go of what is kept after a while, from a thread of its own.
pub(crate) fn let_go_after(kept: Keeping, wait: Duration) -> std::thread::JoinHandle<Instant> {
    std::thread::spawn(move || {
        std::thread::sleep(wait);
        drop(kept);
        Instant::now()
    })
}

/// A port at which nobody answers, not even that nobody is there: its queue of connections is full.
pub(crate) struct Silent {
    listener: OwnedFd,
    waiting: Vec<TcpStream>,
}

impl Silent {
    pub(crate) fn port(&self) -> u16 {
        let address = rustix::net::getsockname(&self.listener).unwrap();
        SocketAddrV4::try_from(address).unwrap().port()
    }
}

pub(crate) fn silent_port() -> Silent {
    let listener = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&listener, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let mut silent = Silent { listener, waiting: Vec::new() };
    let address = (Ipv4Addr::LOCALHOST, silent.port()).into();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
        silent.waiting.push(stream);
        assert!(silent.waiting.len() < 100, "it goes on taking connections");
    }
    silent
}
