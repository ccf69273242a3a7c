//! Ports of 127.0.0.1 that nobody is given by chance: for what comes back on the address it had, for addresses that must be
//! known before there is a listener, and for those where nobody may ever listen.
//!
//! The kernel's own choice does not do for these. A port that nobody listens on at this moment goes to the next socket that
//! asks for any, and every connection that goes out asks for one – even the connection to that very port, which then talks to
//! itself. So these are taken from below the kernel's range (`ip_local_port_range` in ip(7)), a hundred at a time, and a name
//! that only one process can have keeps each hundred for it: that of a socket in the abstract namespace (unix(7)), which is
//! apart in each network namespace, as ports are, and is gone with its process.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Mutex, PoisonError};

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

/// Below are the ports of well-known services.
const LOWEST: u16 = 10_000;
/// Ports that are taken at a time.
const BLOCK: u16 = 100;
const KERNELS_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// The ports of this process.
static POOL: Mutex<Pool> = Mutex::new(Pool { names: Vec::new(), fresh: VecDeque::new(), given: VecDeque::new() });

struct Pool {
    /// Held until the process ends, however it ends.
    names: Vec<UnixDatagram>,
    fresh: VecDeque<u16>,
    /// Oldest first.
    given: VecDeque<u16>,
}

/// A port of 127.0.0.1 that nobody listens on, and that neither the kernel nor another process that asks here gives away while
/// this process lives. Where there are no such ports, one of the kernel's.
///
/// # Errors
/// When the loopback has no free port at all.
pub fn free_port() -> io::Result<u16> {
    let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        while let Some(port) = pool.fresh.pop_front() {
            if is_free(port) {
                pool.given.push_back(port);
                return Ok(port);
            }
        }
        if !pool.take_block() {
            break;
        }
    }
    // All are given out: those that were given first are most likely of no more use.
    for _ in 0..pool.given.len() {
        pool.given.rotate_left(1);
        if let Some(port) = pool.given.back().copied().filter(|port| is_free(*port)) {
            return Ok(port);
        }
    }
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

impl Pool {
    /// Whether there is a block that no process has.
    fn take_block(&mut self) -> bool {
        let blocks = u32::from(below().saturating_sub(LOWEST) / BLOCK);
        if blocks == 0 {
            return false;
        }
        // Processes begin to look at different places.
        let begin = std::process::id() % blocks;
        for block in (begin..blocks).chain(0..begin) {
            let Ok(name) = take_name(block) else {
                continue;
            };
            self.names.push(name);
            let first = LOWEST + u16::try_from(block).unwrap_or_default() * BLOCK;
            self.fresh.extend(first..first + BLOCK);
            return true;
        }
        false
    }
}

fn take_name(block: u32) -> io::Result<UnixDatagram> {
    UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(format!("outrigger-ports-{block}"))?)
}

/// Bound and not listened on: a child that is being started has a copy of this socket until it becomes another program, and
/// one that listens would keep the port for as long. One that does not is in nobody's way who sets `SO_REUSEADDR`, as servers do.
fn is_free(port: u16) -> bool {
    let bound = || {
        let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
    };
    bound().is_ok()
}

/// The first port that the kernel gives away by itself.
fn below() -> u16 {
    let range = std::fs::read_to_string(KERNELS_RANGE).unwrap_or_default();
    // Linux's default.
    range.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(32_768)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeSet;
    use std::process::Command;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_port_is_given_once_and_never_one_of_the_kernels() {
        let ports: Vec<u16> = (0..250).map(|_| free_port().unwrap()).collect();

        assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), 250);
        assert!(ports.iter().all(|port| (LOWEST..below()).contains(port)), "{ports:?}");
    }

    #[test]
    fn a_port_where_somebody_listens_is_not_given() {
        let held: Vec<_> =
            (0..10).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, free_port().unwrap())).unwrap()).collect();

        let next: BTreeSet<u16> = (0..250).map(|_| free_port().unwrap()).collect();

        assert!(held.iter().all(|held| !next.contains(&held.local_addr().unwrap().port())));
    }

    #[test]
    fn a_port_is_free_whatever_is_being_started() {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        Command::new("true").status().unwrap();
                    }
                });
            }
            let bound: Vec<_> =
                (0..3000).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, free_port().unwrap()))).collect();
            over.store(true, Ordering::Relaxed);
            let refused = bound.iter().filter(|bound| bound.is_err()).count();
            assert_eq!(refused, 0, "of {}", bound.len());
        });
    }

    #[test]
    fn what_this_process_has_no_other_takes() {
        let port = free_port().unwrap();

        let taken = take_name(u32::from((port - LOWEST) / BLOCK)).unwrap_err();

        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
    }
}
