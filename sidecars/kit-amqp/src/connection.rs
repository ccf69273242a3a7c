//! One connection to the broker: made with a limit on time, watched, and cut off when it is let go of.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_rs::Runtime;
use futures_util::StreamExt as _;
use lapin::types::LongString;
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo, SASLMechanism};
use lapin::{AsyncTcpStream, Channel, Connection, ConnectionProperties, ErrorKind, Event};
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::address::{Endpoint, Host};
use crate::config::AmqpSetupError;
use crate::error::AmqpError;
use crate::metrics::ConnectionMetrics;
use crate::scan::Scanner;
use crate::transport::{Guard, Kit, Transport, Wire};

/// Largest frame that is agreed to where only we publish. lapin keeps two buffers of 32 frames a connection (4.12.3,
/// `src/io_loop.rs`), so that the usual 128 KiB would be eight megabytes; bodies are cut into frames anyway.
pub(crate) const FRAME_MAX: u32 = 32 << 10;
/// Largest frame that is agreed to where others publish: the properties of a message, its headers among them, are one
/// frame whatever was agreed with its consumer, and RabbitMQ takes 128 KiB of them from whoever asks for no less.
pub(crate) const FRAME_MAX_OF_OTHERS: u32 = 128 << 10;
/// Channels of a connection at most: one for each window, and a few.
const CHANNEL_MAX: u16 = 64;
/// How long a farewell may take.
const FAREWELL: Duration = Duration::from_millis(500);

/// What is taken from a broker at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Bytes of a frame, its own eight included.
    pub(crate) frame: u32,
    /// Bytes of a body.
    pub(crate) body: usize,
    /// Bytes of bodies that lie here at a time, and one body more.
    pub(crate) held: usize,
}

/// Makes connections to one broker, which may be at several hosts.
pub(crate) struct Connector {
    endpoint: Endpoint,
    /// With the names that the hosts' certificates are for, in their order.
    tls: Option<(TlsConnector, Vec<ServerName<'static>>)>,
    /// The host that is asked first: the one after the last that took us. The first time it is left to chance, because not all
    /// connections of all daemons are to go to one server.
    first: AtomicUsize,
    /// Name that the broker shows.
    name: String,
    sizes: Sizes,
    pub(crate) metrics: ConnectionMetrics,
}

impl Connector {
    /// Connections called `name`, on which no more than `sizes` comes in.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub(crate) fn new(
        endpoint: Endpoint,
        name: String,
        sizes: Sizes,
        metrics: ConnectionMetrics,
    ) -> Result<Self, AmqpSetupError> {
        let tls = if endpoint.tls { Some(tls(&endpoint)?) } else { None };
        let first = AtomicUsize::new(fastrand::usize(..endpoint.hosts.len().max(1)));
        Ok(Self { endpoint, tls, first, name, sizes, metrics })
    }

    /// Hosts and ports, for people.
    pub(crate) fn address(&self) -> String {
        self.endpoint.hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    /// The virtual host, for people.
    pub(crate) fn vhost(&self) -> &str {
        &self.endpoint.vhost
    }

    /// A new connection.
    ///
    /// # Errors
    /// Nothing answers in time, or the broker refuses us.
    pub(crate) async fn connect(&self) -> Result<Link, AmqpError> {
        let connected = self.connect_to_any(Instant::now() + self.endpoint.connect_timeout).await;
        match &connected {
            Ok(_) => self.metrics.connects.inc(),
            Err(_) => self.metrics.failures.inc(),
        };
        connected
    }

    /// Each host gets its share of the time that is left, and so does each of its addresses.
    async fn connect_to_any(&self, until: Instant) -> Result<Link, AmqpError> {
        let hosts = &self.endpoint.hosts;
        let first = self.first.load(Ordering::Relaxed);
        let mut failed = Vec::new();
        for (place, host) in hosts.iter().enumerate().cycle().skip(first).take(hosts.len()) {
            let left = u32::try_from(hosts.len() - failed.len()).unwrap_or(u32::MAX);
            let until = Instant::now() + until.saturating_duration_since(Instant::now()) / left;
            let connected = match self.look_up(host, until).await {
                Ok(addresses) => self.connect_to_one((place, host), addresses, until).await,
                Err(error) => Err(error),
            };
            match connected {
                Ok(link) => {
                    self.first.store((place + 1) % hosts.len(), Ordering::Relaxed);
                    return Ok(link);
                }
                Err(error) => failed.push(error),
            }
        }
        Err(all_of(failed))
    }

    /// The addresses of a host, in an order of chance: not all connections of all daemons are to go to one server.
    async fn look_up(&self, host: &Host, until: Instant) -> Result<Vec<SocketAddr>, AmqpError> {
        let cannot = |why: &dyn std::fmt::Display| AmqpError::Lost(format!("cannot find {host}: {why}"));
        let found = match tokio::time::timeout_at(until, lookup_host((host.name.as_str(), host.port))).await {
            Ok(found) => found.map_err(|error| cannot(&error))?,
            Err(_) => return Err(cannot(&"no answer in time")),
        };
        let mut seen = HashSet::new();
        let mut addresses: Vec<SocketAddr> = found.filter(|address| seen.insert(*address)).collect();
        if addresses.is_empty() {
            return Err(cannot(&"the name has no address"));
        }
        let first = fastrand::usize(..addresses.len());
        addresses.rotate_left(first);
        Ok(addresses)
    }

    /// Each of them gets its share of the time that is left: one that says nothing is not to stand in the way of the others.
    async fn connect_to_one(
        &self,
        (place, host): (usize, &Host),
        addresses: Vec<SocketAddr>,
        until: Instant,
    ) -> Result<Link, AmqpError> {
        let mut failed = None;
        let mut left = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
        for address in addresses {
            let share = until.saturating_duration_since(Instant::now()) / left.max(1);
            left -= 1;
            let guard = Arc::new(Guard::default());
            let error = match tokio::time::timeout(share, self.open((place, host), address, &guard)).await {
                Ok(Ok(connection)) => return Ok(Link::new(connection, guard, self.metrics.clone())),
                Ok(Err(error)) => self.describe(host, &error),
                Err(_) => AmqpError::Lost(format!("no connection to {host} ({address}) within {share:?}")),
            };
            // The thread that lapin has begun for it ends only with the stream.
            guard.cut();
            if matches!(error, AmqpError::Refused(_)) {
                return Err(error);
            }
            failed = Some(error);
        }
        Err(failed.unwrap_or_else(|| AmqpError::Lost(format!("no address of {host}"))))
    }

    async fn open(
        &self,
        (place, host): (usize, &Host),
        address: SocketAddr,
        guard: &Arc<Guard>,
    ) -> lapin::Result<Connection> {
        let stream = TcpStream::connect(address).await.map_err(ioerror)?;
        stream.set_nodelay(true).map_err(ioerror)?;
        let wire = match &self.tls {
            None => Wire::Plain(stream),
            Some((connector, names)) => {
                let name = names.get(place).cloned();
                let name = name.ok_or_else(|| ioerror(io::Error::from(io::ErrorKind::NotFound)))?;
                Wire::Tls(Box::new(connector.connect(name, stream).await.map_err(ioerror)?))
            }
        };
        let scanner = Scanner::new(self.sizes.frame as usize, self.sizes.body as u64);
        let transport = Transport::new(wire, Arc::clone(guard), scanner, self.sizes.held);
        // It is taken once: lapin is not to connect again by itself.
        let transport = std::sync::Mutex::new(Some(transport));
        let give = async move |_, _| {
            let taken = transport.lock().ok().and_then(|mut transport| transport.take());
            taken.map(AsyncTcpStream::Plain).ok_or_else(|| ioerror(io::Error::from(io::ErrorKind::NotConnected)))
        };
        let options = ConnectionProperties::default().with_connection_name(LongString::from(self.name.as_str()));
        Connection::connector(self.uri(host), Runtime::new(Kit::current()), give, options).await
    }

    fn uri(&self, host: &Host) -> AMQPUri {
        let endpoint = &self.endpoint;
        AMQPUri {
            scheme: if endpoint.tls { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo {
                    username: endpoint.username.clone(),
                    password: endpoint.password.expose().to_owned(),
                },
                host: host.name.clone(),
                port: host.port,
            },
            vhost: endpoint.vhost.clone(),
            query: AMQPQueryString {
                frame_max: Some(self.sizes.frame),
                channel_max: Some(CHANNEL_MAX),
                heartbeat: Some(endpoint.heartbeat_seconds),
                connection_timeout: None,
                auth_mechanism: Some(SASLMechanism::Plain),
            },
        }
    }

    fn describe(&self, host: &Host, error: &lapin::Error) -> AmqpError {
        let chain = kit::error::chain(error);
        match AmqpError::from_lapin(error) {
            AmqpError::Refused(text) => AmqpError::Refused(format!(
                "{text} (user {} at {host}, virtual host {})",
                self.endpoint.username, self.endpoint.vhost
            )),
            _ => AmqpError::Lost(format!("cannot connect to {host}: {chain}")),
        }
    }
}

/// What became of all hosts. One that refuses us is up, and says what a person has to mend.
fn all_of(failed: Vec<AmqpError>) -> AmqpError {
    let is_refused = failed.iter().any(|error| matches!(error, AmqpError::Refused(_)));
    let said = |error: &AmqpError| match error {
        AmqpError::Refused(text) => text.clone(),
        other => other.to_string(),
    };
    let text = failed.iter().map(said).collect::<Vec<_>>().join("; ");
    if is_refused { AmqpError::Refused(text) } else { AmqpError::Lost(text) }
}

fn ioerror(error: io::Error) -> lapin::Error {
    ErrorKind::IOError(Arc::new(error)).into()
}

fn tls(endpoint: &Endpoint) -> Result<(TlsConnector, Vec<ServerName<'static>>), AmqpSetupError> {
    let problem = |path: &'static str, message: String| AmqpSetupError { path, message };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = &endpoint.ca_file {
        let shown = path.display();
        let certificates =
            CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(|error| {
                problem("ca_file", format!("cannot read certificate authorities from {shown}: {error}"))
            })?;
        if roots.add_parsable_certificates(certificates).0 == 0 {
            return Err(problem("ca_file", format!("{shown} holds no PEM certificates")));
        }
    }
    if roots.is_empty() {
        return Err(problem(
            "ca_file",
            "there are no certificate authorities: set it, or mount a bundle at /etc/ssl/certs/ca-certificates.crt"
                .to_owned(),
        ));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| problem("url", error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = |host: &Host| {
        ServerName::try_from(host.name.clone())
            .map_err(|_| problem("url", "names a host that no certificate can be for".to_owned()))
    };
    let names = endpoint.hosts.iter().map(name).collect::<Result<_, _>>()?;
    Ok((TlsConnector::from(Arc::new(config)), names))
}

/// A connection. Letting go of it ends it at once.
#[derive(Debug)]
pub(crate) struct Link {
    connection: Connection,
    guard: Arc<Guard>,
    lost: watch::Receiver<bool>,
    /// Why the broker blocks what is published; `None` while it does not.
    blocked: watch::Receiver<Option<String>>,
    watching: tokio::task::JoinHandle<()>,
    /// Its gauges are another connection's by now, or nobody's.
    gone: Arc<AtomicBool>,
    metrics: ConnectionMetrics,
}

impl Link {
    fn new(connection: Connection, guard: Arc<Guard>, metrics: ConnectionMetrics) -> Self {
        let (lose, lost) = watch::channel(false);
        let (block, blocked) = watch::channel(None);
        let gone = Arc::new(AtomicBool::new(false));
        metrics.connected.set(1);
        let mut events = Box::pin(connection.events_listener());
        let watching = tokio::spawn({
            let (metrics, gone) = (metrics.clone(), Arc::clone(&gone));
            async move {
                while let Some(event) = events.next().await {
                    match event {
                        Event::ConnectionBlocked(reason) => {
                            metrics.blocked.set(1);
                            tracing::warn!(reason = %reason, "the broker blocks what is published: {reason}");
                            block.send_replace(Some(reason));
                        }
                        Event::ConnectionUnblocked => {
                            metrics.blocked.set(0);
                            tracing::info!("the broker takes what is published again");
                            block.send_replace(None);
                        }
                        // A channel's errors come here too; the connection outlives those.
                        Event::Error(error) if !error.is_amqp_soft_error() => break,
                        _ => {}
                    }
                }
                leave(&gone, &metrics);
                lose.send_replace(true);
            }
        });
        Self { connection, guard, lost, blocked, watching, gone, metrics }
    }

    /// Whether it is there, as far as is known.
    pub(crate) fn is_up(&self) -> bool {
        !*self.lost.borrow() && !self.gone.load(Ordering::Acquire) && self.connection.status().connected()
    }

    /// Waits until it is gone.
    pub(crate) async fn lost(&self) {
        let mut lost = self.lost.clone();
        // Whoever watched it is gone too, if not even that is said.
        let _ = lost.wait_for(|lost| *lost).await;
    }

    /// Why the broker blocks what is published.
    pub(crate) fn blocked(&self) -> Option<String> {
        self.blocked.borrow().clone()
    }

    /// Waits until the broker does not block, or `limit` is over.
    pub(crate) async fn unblocked(&self, limit: Duration) {
        let mut blocked = self.blocked.clone();
        let _ = tokio::time::timeout(limit, blocked.wait_for(Option::is_none)).await;
    }

    /// Ends it at once, whoever else still holds it.
    pub(crate) fn cut(&self) {
        self.watching.abort();
        self.guard.cut();
        leave(&self.gone, &self.metrics);
    }

    /// Bytes of a frame that was agreed on, its own eight included.
    pub(crate) fn frame_max(&self) -> usize {
        self.connection.configuration().frame_max() as usize
    }

    /// The distance of heartbeats that was agreed on; zero where there are none.
    pub(crate) fn heartbeat(&self) -> Duration {
        Duration::from_secs(u64::from(self.connection.configuration().heartbeat()))
    }

    /// The switch of the connection, and what lies here of it.
    pub(crate) fn guard(&self) -> &Arc<Guard> {
        &self.guard
    }

    /// A new channel.
    ///
    /// # Errors
    /// The connection does not give one within `limit`.
    pub(crate) async fn channel(&self, limit: Duration) -> Result<Channel, AmqpError> {
        within(limit, "open a channel", self.connection.create_channel()).await
    }

    /// Says farewell, so that the broker does not note a broken connection, and ends it.
    pub(crate) async fn close(&self) {
        let _ = tokio::time::timeout(FAREWELL, self.connection.close(200, "bye".into())).await;
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.cut();
    }
}

/// Sets a connection's gauges back, once.
fn leave(gone: &AtomicBool, metrics: &ConnectionMetrics) {
    if !gone.swap(true, Ordering::AcqRel) {
        metrics.connected.set(0);
        metrics.blocked.set(0);
    }
}

/// Waits for an answer of the broker, with a limit.
///
/// # Errors
/// [`AmqpError`]; without an answer, [`AmqpError::Lost`].
pub(crate) async fn within<T>(
    limit: Duration,
    what: &str,
    call: impl Future<Output = lapin::Result<T>>,
) -> Result<T, AmqpError> {
    match tokio::time::timeout(limit, call).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(AmqpError::Lost(format!("the broker did not {what} within {limit:?}"))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::net::TcpSocket;

    use super::*;
    use crate::config::AmqpSection;
    use crate::metrics::AmqpMetrics;

    /// Takes connections until its queue of them is full, and says nothing: as an address whose machine is gone.
    async fn silent() -> (tokio::net::TcpListener, Vec<TcpStream>) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let mut waiting = Vec::new();
        let connecting = || TcpStream::connect(listener.local_addr().unwrap());
        while let Ok(stream) = tokio::time::timeout(Duration::from_millis(300), connecting()).await {
            waiting.push(stream.unwrap());
            assert!(waiting.len() < 100, "it goes on taking connections");
        }
        (listener, waiting)
    }

    /// Of three servers of a name one is gone, one takes connections and says nothing, and the last one is well.
    #[tokio::test]
    async fn addresses_that_say_nothing_leave_time_for_one_that_does() {
        let (gone, _waiting) = silent().await;
        let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let well = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addresses = [&gone, &mute, &well].map(|listener| listener.local_addr().unwrap());
        let begin = Instant::now();
        let heard = tokio::spawn(async move {
            let (mut stream, _) = well.accept().await.unwrap();
            let asked_after = begin.elapsed();
            let mut header = [0; 8];
            tokio::io::AsyncReadExt::read_exact(&mut stream, &mut header).await.unwrap();
            (header, asked_after)
        });
        let section = AmqpSection {
            url: Some("amqp://mq".to_owned().into()),
            connect_timeout_seconds: 4.5,
            ..AmqpSection::default()
        };
        let sizes = Sizes { frame: FRAME_MAX, body: 1024, held: usize::MAX };
        let metrics = AmqpMetrics::default().of("test");
        let connector = Connector::new(section.endpoint().unwrap(), "test".to_owned(), sizes, metrics).unwrap();

        let host = connector.endpoint.hosts[0].clone();
        let until = Instant::now() + connector.endpoint.connect_timeout;
        let connected = tokio::time::timeout(
            Duration::from_secs(30),
            connector.connect_to_one((0, &host), addresses.into(), until),
        );
        assert!(connected.await.unwrap().is_err(), "this one is no broker either");

        let (header, asked_after) = tokio::time::timeout(Duration::from_secs(30), heard).await.unwrap().unwrap();
        assert_eq!(&header, b"AMQP\0\0\x09\x01");
        assert!(asked_after < connector.endpoint.connect_timeout, "only after {asked_after:?}");
    }
}
