//! One connection to the broker: made with a limit on time, watched, and cut off when it is let go of.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_rs::Runtime;
use futures_util::StreamExt as _;
use lapin::types::LongString;
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo, SASLMechanism};
use lapin::{AsyncTcpStream, Channel, Connection, ConnectionProperties, ErrorKind, Event};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::config::{AmqpSetupError, Endpoint};
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

/// Makes connections to one broker.
pub(crate) struct Connector {
    endpoint: Endpoint,
    tls: Option<(TlsConnector, ServerName<'static>)>,
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
        Ok(Self { endpoint, tls, name, sizes, metrics })
    }

    /// Host and port, for people.
    pub(crate) fn address(&self) -> String {
        format!("{}:{}", self.endpoint.host, self.endpoint.port)
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
        let guard = Arc::new(Guard::default());
        let connected = tokio::time::timeout(self.endpoint.connect_timeout, self.open(&guard)).await;
        let opened = match connected {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(self.describe(&error)),
            Err(_) => {
                let limit = self.endpoint.connect_timeout;
                Err(AmqpError::Lost(format!("no connection to {} within {limit:?}", self.address())))
            }
        };
        match opened {
            Ok(connection) => {
                self.metrics.connects.inc();
                Ok(Link::new(connection, guard, self.metrics.clone()))
            }
            Err(error) => {
                // The thread that lapin has begun for it ends only with the stream.
                guard.cut();
                self.metrics.failures.inc();
                Err(error)
            }
        }
    }

    async fn open(&self, guard: &Arc<Guard>) -> lapin::Result<Connection> {
        let address = (self.endpoint.host.clone(), self.endpoint.port);
        let stream = TcpStream::connect(address).await.map_err(ioerror)?;
        stream.set_nodelay(true).map_err(ioerror)?;
        let wire = match &self.tls {
            None => Wire::Plain(stream),
            Some((connector, name)) => {
                Wire::Tls(Box::new(connector.connect(name.clone(), stream).await.map_err(ioerror)?))
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
        Connection::connector(self.uri(), Runtime::new(Kit::current()), give, options).await
    }

    fn uri(&self) -> AMQPUri {
        let endpoint = &self.endpoint;
        AMQPUri {
            scheme: if endpoint.tls { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo {
                    username: endpoint.username.clone(),
                    password: endpoint.password.expose().to_owned(),
                },
                host: endpoint.host.clone(),
                port: endpoint.port,
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

    fn describe(&self, error: &lapin::Error) -> AmqpError {
        let chain = kit::error::chain(error);
        match AmqpError::from_lapin(error) {
            AmqpError::Refused(text) => AmqpError::Refused(format!(
                "{text} (user {} at {}, virtual host {})",
                self.endpoint.username,
                self.address(),
                self.endpoint.vhost
            )),
            _ => AmqpError::Lost(format!("cannot connect to {}: {chain}", self.address())),
        }
    }
}

fn ioerror(error: io::Error) -> lapin::Error {
    ErrorKind::IOError(Arc::new(error)).into()
}

fn tls(endpoint: &Endpoint) -> Result<(TlsConnector, ServerName<'static>), AmqpSetupError> {
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
    let name = ServerName::try_from(endpoint.host.clone())
        .map_err(|_| problem("url", "names a host that no certificate can be for".to_owned()))?;
    Ok((TlsConnector::from(Arc::new(config)), name))
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
