//! A TCP proxy that spoils what passes through it: slow, held up, cut, half-closed or changed, at an
//! exact byte, and switchable while connections are open. It knows nothing of HTTP; answers that are
//! wrong as answers are the [`gateway`](crate::gateway)'s part, and so is a port that is closed.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kit::stand_in::{ANY_PORT, listen};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

const BUFFER_BYTES: usize = 16 * 1024;
/// A limited rate is spread over so many steps a second, where it has as many bytes.
const STEPS_PER_SECOND: u64 = 50;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server: requests.
    Up,
    /// From the server to the client: answers.
    Down,
}

/// What is done to one direction of a connection. Byte counts begin with the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// Everything that is read waits this long before it is passed on.
    Latency(Duration),
    /// At most so many bytes a second; at least 1.
    Rate(u64),
    /// After so many bytes the whole connection is reset, on both sides.
    Reset(u64),
    /// After so many bytes nothing more passes; the connection stays open.
    Stall(u64),
    /// After so many bytes this direction ends in an orderly way; the other one goes on.
    HalfClose(u64),
    /// The byte at this position is inverted.
    Corrupt(u64),
}

/// Decides by the number of the connection, from 1, and the direction.
pub type Plan = Arc<dyn Fn(u64, Direction) -> Fault + Send + Sync>;

/// A running proxy. Dropping it closes its port and all connections.
pub struct ChaosProxy {
    address: SocketAddr,
    link: Arc<Link>,
    _stop: DropGuard,
}

/// What the connections and the handle have in common.
struct Link {
    target: SocketAddr,
    plan: watch::Sender<Plan>,
    connections: AtomicU64,
    open: AtomicU64,
    broken: AtomicU64,
    up: AtomicU64,
    down: AtomicU64,
}

impl ChaosProxy {
    /// Listens on a free port of 127.0.0.1 and passes everything on to `target`, unspoilt.
    ///
    /// # Errors
    /// The loopback has no free port.
    pub async fn start(target: SocketAddr) -> io::Result<Self> {
        Self::start_on(ANY_PORT, target).await
    }

    /// As [`Self::start`], on an address of choice.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn start_on(address: SocketAddr, target: SocketAddr) -> io::Result<Self> {
        let listener = listen(address).await?;
        let address = listener.local_addr()?;
        let nothing: Plan = Arc::new(|_, _| Fault::None);
        let link = Arc::new(Link {
            target,
            plan: watch::Sender::new(nothing),
            connections: AtomicU64::new(0),
            open: AtomicU64::new(0),
            broken: AtomicU64::new(0),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
        });
        let stop = CancellationToken::new();
        tokio::spawn(accept(Arc::clone(&link), listener, stop.clone()));
        Ok(Self { address, link, _stop: stop.drop_guard() })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Its address as a URL without a path.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Does this to one direction from now on, and nothing to the other one; open connections are
    /// judged by what has passed on them already.
    pub fn set(&self, direction: Direction, fault: Fault) {
        self.set_plan(move |_, asked| if asked == direction { fault } else { Fault::None });
    }

    /// Lets everything pass again. What was held up goes on.
    pub fn heal(&self) {
        self.set_plan(|_, _| Fault::None);
    }

    /// Decides for each connection; as [`Self::set`] otherwise.
    pub fn set_plan(&self, plan: impl Fn(u64, Direction) -> Fault + Send + Sync + 'static) {
        self.link.plan.send_replace(Arc::new(plan));
    }

    /// Connections taken so far: the number of the last one.
    pub fn connections(&self) -> u64 {
        self.link.connections.load(Ordering::Relaxed)
    }

    /// Connections that are open.
    pub fn open(&self) -> u64 {
        self.link.open.load(Ordering::SeqCst)
    }

    /// Connections that the proxy has reset.
    pub fn broken(&self) -> u64 {
        self.link.broken.load(Ordering::Relaxed)
    }

    /// Bytes passed on this way, over all connections.
    pub fn passed(&self, direction: Direction) -> u64 {
        self.link.counter(direction).load(Ordering::Relaxed)
    }
}

impl fmt::Debug for ChaosProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChaosProxy")
            .field("address", &self.address)
            .field("target", &self.link.target)
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}

impl Link {
    fn counter(&self, direction: Direction) -> &AtomicU64 {
        match direction {
            Direction::Up => &self.up,
            Direction::Down => &self.down,
        }
    }
}

async fn accept(link: Arc<Link>, listener: TcpListener, stop: CancellationToken) {
    let handle = |client| {
        let number = link.connections.fetch_add(1, Ordering::Relaxed) + 1;
        link.open.fetch_add(1, Ordering::SeqCst);
        let link = Arc::clone(&link);
        async move {
            connection(&link, number, client).await;
            link.open.fetch_sub(1, Ordering::SeqCst);
        }
    };
    kit::stand_in::accept(listener, stop, "the chaos proxy", handle).await;
}

async fn connection(link: &Link, number: u64, mut client: TcpStream) {
    let Ok(mut server) = TcpStream::connect(link.target).await else {
        reset(&client);
        return;
    };
    // Bytes are passed on as they come: what a fault counts must not wait in the kernel.
    let _ = client.set_nodelay(true).and(server.set_nodelay(true));
    let result = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let up = pump(link, number, Direction::Up, from_client, to_server);
        let down = pump(link, number, Direction::Down, from_server, to_client);
        tokio::try_join!(up, down)
    };
    if let Err(end) = result {
        if matches!(end, End::Reset) {
            link.broken.fetch_add(1, Ordering::Relaxed);
        }
        // Either a fault wants it, or one side has reset and the other one is to see that.
        reset(&client);
        reset(&server);
    }
}

/// With no time to linger, closing sends RST and discards what is unsent.
fn reset(stream: &TcpStream) {
    if let Err(error) = stream.set_zero_linger() {
        tracing::debug!(%error, "connection is gone before its reset");
    }
}

/// Why both directions end at once.
enum End {
    Reset,
    Gone,
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

/// Passes one direction on until its end.
async fn pump(
    link: &Link,
    number: u64,
    direction: Direction,
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
) -> Result<(), End> {
    let mut plans = link.plan.subscribe();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut passed: u64 = 0;
    loop {
        let fault = {
            let plan = Arc::clone(&plans.borrow_and_update());
            plan(number, direction)
        };
        let room = match fault {
            Fault::Reset(bytes) if passed >= bytes => return Err(End::Reset),
            Fault::HalfClose(bytes) if passed >= bytes => {
                to.shutdown().await?;
                return Ok(());
            }
            Fault::Stall(bytes) if passed >= bytes => {
                // The sender lives as long as the link.
                let _ = plans.changed().await;
                continue;
            }
            Fault::Reset(bytes) | Fault::HalfClose(bytes) | Fault::Stall(bytes) => bytes - passed,
            Fault::Rate(per_second) => (per_second / STEPS_PER_SECOND).max(1),
            Fault::None | Fault::Latency(_) | Fault::Corrupt(_) => u64::MAX,
        };
        let room = usize::try_from(room).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES);
        let read = tokio::select! {
            read = from.read(&mut buffer[..room]) => read?,
            _ = plans.changed() => continue,
        };
        if read == 0 {
            to.shutdown().await?;
            return Ok(());
        }
        match fault {
            Fault::Latency(pause) => tokio::time::sleep(pause).await,
            Fault::Rate(per_second) => {
                tokio::time::sleep(Duration::from_secs_f64(read as f64 / per_second.max(1) as f64)).await;
            }
            Fault::Corrupt(at) => {
                let nth = at.checked_sub(passed).and_then(|nth| usize::try_from(nth).ok());
                if let Some(byte) = nth.and_then(|nth| buffer[..read].get_mut(nth)) {
                    *byte = !*byte;
                }
            }
            _ => {}
        }
        to.write_all(&buffer[..read]).await?;
        passed += read as u64;
        link.counter(direction).fetch_add(read as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::Ipv4Addr;
    use std::time::Instant;

    use super::*;

    /// A server that sends everything back, and says goodbye when the client has ended.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut reader, mut writer) = stream.split();
                    let _ = tokio::io::copy(&mut reader, &mut writer).await;
                    let _ = writer.write_all(b"bye").await;
                });
            }
        });
        address
    }

    async fn proxy() -> ChaosProxy {
        ChaosProxy::start(echo().await).await.unwrap()
    }

    /// Sends ten bytes, ends, and returns what came back.
    async fn talk(proxy: &ChaosProxy) -> io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(proxy.addr()).await?;
        stream.write_all(b"0123456789").await?;
        stream.shutdown().await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.map(|_| answer)
    }

    #[tokio::test]
    async fn what_is_not_spoilt_passes_whole_with_its_end() {
        let proxy = proxy().await;
        assert_eq!(talk(&proxy).await.unwrap(), b"0123456789bye");
        assert_eq!((proxy.connections(), proxy.broken()), (1, 0));
        assert_eq!((proxy.passed(Direction::Up), proxy.passed(Direction::Down)), (10, 13));
    }

    #[tokio::test]
    async fn a_reset_comes_after_the_very_byte_in_either_direction() {
        let proxy = proxy().await;
        for (number, direction) in [Direction::Up, Direction::Down].into_iter().enumerate() {
            for bytes in [0, 1, 9] {
                let before = proxy.passed(direction);
                proxy.set(direction, Fault::Reset(bytes));
                let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
                let _ = stream.write_all(b"0123456789").await;
                let mut answer = Vec::new();
                let end = stream.read_to_end(&mut answer).await.unwrap_err();
                assert_eq!(end.kind(), io::ErrorKind::ConnectionReset, "{number}");
                assert_eq!(proxy.passed(direction) - before, bytes);
            }
        }
        assert_eq!(proxy.broken(), 6);
    }

    #[tokio::test]
    async fn a_stalled_connection_goes_on_when_it_is_healed() {
        let proxy = proxy().await;
        proxy.set(Direction::Down, Fault::Stall(4));
        let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
        stream.write_all(b"0123456789").await.unwrap();
        let mut part = [0; 4];
        stream.read_exact(&mut part).await.unwrap();
        let more = tokio::time::timeout(Duration::from_millis(50), stream.read(&mut part)).await;
        assert!(more.is_err(), "held up after four bytes");

        proxy.heal();

        let mut rest = [0; 6];
        stream.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"456789");
    }

    #[tokio::test]
    async fn an_open_idle_connection_is_reset_at_once() {
        let proxy = proxy().await;
        let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        stream.read_exact(&mut [0]).await.unwrap();

        proxy.set(Direction::Up, Fault::Reset(1));

        assert_eq!(stream.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn one_direction_ends_while_the_other_goes_on() {
        let proxy = proxy().await;
        proxy.set(Direction::Up, Fault::HalfClose(3));
        let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
        stream.write_all(b"0123456789").await.unwrap();
        let mut answer = [0; 6];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"012bye");
    }

    #[tokio::test]
    async fn one_byte_is_changed_and_no_other() {
        let proxy = proxy().await;
        proxy.set(Direction::Up, Fault::Corrupt(3));
        let answer = talk(&proxy).await.unwrap();
        assert_eq!(answer[..3], *b"012");
        assert_eq!(answer[3], !b'3');
        assert_eq!(answer[4..], *b"456789bye");
    }

    #[tokio::test]
    async fn latency_and_rate_take_their_time() {
        let proxy = proxy().await;
        for (fault, least) in [(Fault::Latency(Duration::from_millis(80)), 80), (Fault::Rate(100), 90)] {
            proxy.set(Direction::Down, fault);
            let begin = Instant::now();
            assert_eq!(talk(&proxy).await.unwrap(), b"0123456789bye");
            assert!(begin.elapsed() >= Duration::from_millis(least), "{fault:?}: {:?}", begin.elapsed());
        }
    }

    #[tokio::test]
    async fn a_plan_tells_connections_apart() {
        let proxy = proxy().await;
        proxy.set_plan(|number, _| if number == 1 { Fault::Reset(0) } else { Fault::None });
        talk(&proxy).await.unwrap_err();
        assert_eq!(talk(&proxy).await.unwrap(), b"0123456789bye");
        while proxy.open() > 0 {
            tokio::task::yield_now().await;
        }
    }
}
