//! Certificates of every kind, made by `openssl`, and a listener that shows one and passes the rest on
//! in the clear.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Far more than what a handshake takes.
const HANDSHAKE: Duration = Duration::from_secs(30);
/// Everything that `openssl` would otherwise take from the machine's own file.
const CONFIGURATION: &str = "[req]\ndistinguished_name=name\n[name]\n[ca]\ndefault_ca=own\n[own]\ndatabase=index\nserial=serial\n\
    new_certs_dir=.\ncertificate=ca.pem\nprivate_key=ca.key\ndefault_md=sha256\npolicy=any\nunique_subject=no\n\
    [any]\ncommonName=optional\n";
const NEW_KEY: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];

/// A certificate authority in a folder of its own.
#[derive(Debug)]
pub struct Authority {
    folder: PathBuf,
}

/// The files of a certificate and its key.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate, PEM.
    pub certificate: PathBuf,
    /// The key, PEM.
    pub key: PathBuf,
}

/// When a certificate is good: first and last moment, as `openssl ca` wants them.
#[derive(Clone, Copy, Debug)]
pub struct Validity(&'static str, &'static str);

impl Validity {
    /// Now.
    pub const NOW: Self = Self("20250101000000Z", "20491231235959Z");
    /// No longer.
    pub const PAST: Self = Self("20200101000000Z", "20201231235959Z");
    /// Not yet.
    pub const FUTURE: Self = Self("20480101000000Z", "20491231235959Z");
}

impl Authority {
    /// A new one. The folder is made.
    ///
    /// # Errors
    /// There is no `openssl`, or it refuses.
    pub fn new(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let authority = Self { folder: folder.to_owned() };
        std::fs::write(folder.join("openssl.cnf"), CONFIGURATION)?;
        std::fs::write(folder.join("index"), "")?;
        std::fs::write(folder.join("serial"), "01\n")?;
        let extensions = ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign"];
        authority.self_sign("ca", "Test authority", &extensions)?;
        Ok(authority)
    }

    /// Its own certificate, for those who trust it.
    pub fn certificate(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// A certificate for `DNS:name` or `IP:address`.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn identity(&self, name: &str, validity: Validity) -> Result<Identity> {
        self.signed(name, validity, "serverAuth")
    }

    /// A certificate that a client shows.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn client(&self, name: &str, validity: Validity) -> Result<Identity> {
        self.signed(name, validity, "clientAuth")
    }

    fn signed(&self, name: &str, validity: Validity, usage: &str) -> Result<Identity> {
        let file = file_name(name, validity.0);
        let (request, extensions) = (format!("{file}.csr"), format!("{file}.ext"));
        let text = format!("subjectAltName={name}\nbasicConstraints=CA:FALSE\nextendedKeyUsage={usage}\n");
        std::fs::write(self.folder.join(&extensions), text)?;
        let (key, certificate) = (format!("{file}.key"), format!("{file}.pem"));
        let asked = ["req", "-new", "-config", "openssl.cnf", "-subj", "/CN=test", "-keyout", &key, "-out", &request];
        self.openssl(&[&asked[..], &NEW_KEY].concat())?;
        let signed = ["ca", "-batch", "-notext", "-config", "openssl.cnf", "-in", &request];
        let times = ["-startdate", validity.0, "-enddate", validity.1, "-extfile", &extensions, "-out", &certificate];
        self.openssl(&[&signed[..], &times].concat())?;
        Ok(Identity { certificate: self.folder.join(certificate), key: self.folder.join(key) })
    }

    /// A certificate that nobody but itself vouches for.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn self_signed(&self, name: &str) -> Result<Identity> {
        let file = file_name(name, "self");
        self.self_sign(&file, "test", &[&format!("subjectAltName={name}"), "basicConstraints=critical,CA:FALSE"])?;
        let path = |ending| self.folder.join(format!("{file}.{ending}"));
        Ok(Identity { certificate: path("pem"), key: path("key") })
    }

    fn self_sign(&self, file: &str, subject: &str, extensions: &[&str]) -> Result<()> {
        let (key, certificate, subject) = (format!("{file}.key"), format!("{file}.pem"), format!("/CN={subject}"));
        let mut words = vec!["req", "-x509", "-config", "openssl.cnf", "-days", "30", "-subj", &subject];
        words.extend(["-keyout", &key, "-out", &certificate]);
        words.extend(NEW_KEY);
        for extension in extensions {
            words.extend(["-addext", extension]);
        }
        self.openssl(&words)
    }

    fn openssl(&self, arguments: &[&str]) -> Result<()> {
        let done = Command::new("openssl").args(arguments).current_dir(&self.folder).output().context("run openssl")?;
        let said = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success(), "openssl {}: {}", arguments.join(" "), said.trim());
        Ok(())
    }
}

fn file_name(name: &str, kind: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).chain(kind.chars()).collect()
}

/// A listener with TLS before a gateway without. Dropping it closes its port and all connections.
#[derive(Debug)]
pub struct TlsFront {
    address: SocketAddr,
    shaken: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
    _stop: DropGuard,
}

impl TlsFront {
    /// Shows this certificate on a port of 127.0.0.1 (0: a free one) and passes on to `target`.
    ///
    /// # Errors
    /// The certificate cannot be used, or the port not be bound.
    pub async fn start(identity: &Identity, port: u16, target: SocketAddr) -> Result<Self> {
        Self::start_for(identity, port, target, None).await
    }

    /// The same before a server that speaks HTTP/2, for clients that show a certificate of this authority, where one is named.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn http2(identity: &Identity, target: SocketAddr, clients: Option<&Authority>) -> Result<Self> {
        Self::start_for(identity, 0, target, Some(clients)).await
    }

    async fn start_for(
        identity: &Identity,
        port: u16,
        target: SocketAddr,
        http2: Option<Option<&Authority>>,
    ) -> Result<Self> {
        let key = PrivateKeyDer::from_pem_file(&identity.key).context("read the key")?;
        let certificate = CertificateDer::from_pem_file(&identity.certificate).context("read the certificate")?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config =
            ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
        let config = match http2.flatten() {
            None => config.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(CertificateDer::from_pem_file(authority.certificate()).context("read the authority")?)?;
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
                config.with_client_cert_verifier(verifier)
            }
        };
        let mut config = config.with_single_cert(vec![certificate], key)?;
        if http2.is_some() {
            config.alpn_protocols = vec![b"h2".to_vec()];
        }
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.context("bind the TLS port")?;
        let address = listener.local_addr()?;
        let (shaken, refused) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let stop = CancellationToken::new();
        tokio::spawn({
            let (stop, shaken, refused) = (stop.clone(), Arc::clone(&shaken), Arc::clone(&refused));
            async move {
                while let Some(Ok((stream, _))) = stop.run_until_cancelled(listener.accept()).await {
                    let (acceptor, stop) = (acceptor.clone(), stop.clone());
                    let (shaken, refused) = (Arc::clone(&shaken), Arc::clone(&refused));
                    tokio::spawn(async move {
                        let Ok(Ok(mut inside)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await else {
                            refused.fetch_add(1, Ordering::Relaxed);
                            return;
                        };
                        shaken.fetch_add(1, Ordering::Relaxed);
                        let Ok(mut outside) = TcpStream::connect(target).await else { return };
                        // However it ends: what was passed on shows at the target.
                        let _ =
                            stop.run_until_cancelled(tokio::io::copy_bidirectional(&mut inside, &mut outside)).await;
                    });
                }
            }
        });
        Ok(Self { address, shaken, refused, _stop: stop.drop_guard() })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Handshakes that the client finished, and those it broke off.
    pub fn handshakes(&self) -> (u64, u64) {
        (self.shaken.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed))
    }
}
