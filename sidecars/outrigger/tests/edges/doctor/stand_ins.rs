//! Parties that answer what a test wants: HTTP, gRPC, Redis, and TLS with certificates of every kind.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Answers by path; 404 where there is none.
type Answers = Arc<Mutex<BTreeMap<String, (u16, String)>>>;

/// An HTTP server whose answers can be changed. Dropping it closes its port.
pub(crate) struct Http {
    pub(crate) address: SocketAddr,
    answers: Answers,
    date: Arc<Mutex<Option<String>>>,
    task: JoinHandle<()>,
}

impl Http {
    pub(crate) async fn start(answers: &[(&str, u16, &str)]) -> Self {
        let known: Answers = Arc::default();
        let date: Arc<Mutex<Option<String>>> = Arc::default();
        let (asked, said) = (Arc::clone(&known), Arc::clone(&date));
        let app = Router::new().fallback(move |request: Request| {
            let (status, body) =
                asked.lock().unwrap().get(request.uri().path()).cloned().unwrap_or((404, String::new()));
            let mut response = Response::builder().status(status);
            if let Some(date) = said.lock().unwrap().clone() {
                response = response.header("date", date);
            }
            std::future::ready(response.body(Body::from(body)).unwrap())
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        let server = Self { address, answers: known, date, task };
        answers.iter().for_each(|(path, status, body)| server.answer(path, *status, body));
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn answer(&self, path: &str, status: u16, body: &str) {
        self.answers.lock().unwrap().insert(path.to_owned(), (status, body.to_owned()));
    }

    /// Says this date instead of the present one.
    pub(crate) fn date(&self, date: Option<&str>) {
        *self.date.lock().unwrap() = date.map(str::to_owned);
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How a call of gRPC ends.
#[derive(Clone, Debug)]
pub(crate) enum Ends {
    /// With a message.
    With(&'static [u8]),
    /// With a code and a text.
    Refused(u32, &'static str),
}

/// A gRPC server whose answers can be changed, by the call's path. Dropping it closes its port.
pub(crate) struct Grpc {
    pub(crate) address: SocketAddr,
    answers: Arc<Mutex<BTreeMap<String, Ends>>>,
    task: JoinHandle<()>,
}

impl Grpc {
    pub(crate) async fn start(answers: &[(&str, Ends)]) -> Self {
        let known: Arc<Mutex<BTreeMap<String, Ends>>> = Arc::default();
        let asked = Arc::clone(&known);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let asked = Arc::clone(&asked);
                tokio::spawn(async move {
                    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        let ends = asked.lock().unwrap().get(request.uri().path()).cloned();
                        grpc_answer(respond, ends.unwrap_or(Ends::Refused(12, "unknown method")));
                    }
                });
            }
        });
        let server = Self { address, answers: known, task };
        answers.iter().for_each(|(path, ends)| server.answer(path, ends.clone()));
        server
    }

    pub(crate) fn answer(&self, path: &str, ends: Ends) {
        self.answers.lock().unwrap().insert(path.to_owned(), ends);
    }
}

impl Drop for Grpc {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn grpc_answer(mut respond: h2::server::SendResponse<Bytes>, ends: Ends) {
    let head = http::Response::builder().status(200).header("content-type", "application/grpc");
    match ends {
        Ends::With(message) => {
            let mut body = respond.send_response(head.body(()).unwrap(), false).unwrap();
            // Not compressed, and how long it is.
            let mut frame = vec![0];
            frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
            frame.extend(message);
            body.send_data(frame.into(), false).unwrap();
            let trailers = [(http::HeaderName::from_static("grpc-status"), http::HeaderValue::from_static("0"))];
            body.send_trailers(trailers.into_iter().collect()).unwrap();
        }
        Ends::Refused(code, text) => {
            let head = head.header("grpc-status", code).header("grpc-message", text);
            respond.send_response(head.body(()).unwrap(), true).unwrap();
        }
    }
}

/// Answers commands by their first word.
pub(crate) struct Redis {
    pub(crate) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Redis {
    /// With this password, and this to say of its memory.
    pub(crate) async fn start(password: &'static str, memory: &'static str) -> Self {
        Self::answering(move |words, is_in| match words {
            ["AUTH", given] if *given == password => (b"+OK\r\n".to_vec(), true),
            ["AUTH", ..] => (b"-WRONGPASS invalid username-password pair or user is disabled.\r\n".to_vec(), false),
            _ if !is_in => (b"-NOAUTH Authentication required.\r\n".to_vec(), false),
            ["PING"] => (b"+PONG\r\n".to_vec(), true),
            _ => (format!("${}\r\n{memory}\r\n", memory.len()).into_bytes(), true),
        })
        .await
    }

    /// With answers of any kind, to the words of a command and whether the client is logged in.
    pub(crate) async fn answering(answer: impl Fn(&[&str], bool) -> (Vec<u8>, bool) + Clone + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let answer = answer.clone();
                tokio::spawn(async move {
                    let (mut is_in, mut buffer) = (false, [0; 4096]);
                    // A command arrives at once: it is written at once, and is short.
                    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                        let words: Vec<&str> =
                            text.split("\r\n").skip(2).step_by(2).filter(|word| !word.is_empty()).collect();
                        let (bytes, now_in) = answer(&words, is_in);
                        is_in = now_in;
                        if stream.write_all(&bytes).await.is_err() {
                            break;
                        }
                    }
                });
            }
        });
        Self { address, task }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Everything that `openssl` would otherwise take from the machine's own file.
const CONFIGURATION: &str = "[req]\ndistinguished_name=name\n[name]\n[ca]\ndefault_ca=own\n[own]\ndatabase=index\n\
    serial=serial\nnew_certs_dir=.\ncertificate=ca.pem\nprivate_key=ca.key\ndefault_md=sha256\npolicy=any\n\
    unique_subject=no\n[any]\ncommonName=optional\n";
const NEW_KEY: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];

/// A certificate authority in a folder.
pub(crate) struct Authority(PathBuf);

impl Authority {
    pub(crate) fn new(folder: &Path) -> Self {
        std::fs::write(folder.join("openssl.cnf"), CONFIGURATION).unwrap();
        std::fs::write(folder.join("index"), "").unwrap();
        std::fs::write(folder.join("serial"), "01\n").unwrap();
        let own = Self(folder.to_owned());
        own.self_sign("ca", &["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign"]);
        own
    }

    pub(crate) fn certificate(&self) -> String {
        self.0.join("ca.pem").display().to_string()
    }

    /// A certificate for `localhost` of this name, good between these moments (`20250101000000Z`).
    pub(crate) fn identity(&self, name: &str, from: &str, until: &str) -> (PathBuf, PathBuf) {
        std::fs::write(self.0.join("ext"), format!("subjectAltName=DNS:{name}\nbasicConstraints=CA:FALSE\n")).unwrap();
        let asked =
            ["req", "-new", "-config", "openssl.cnf", "-subj", "/CN=test", "-keyout", "own.key", "-out", "own.csr"];
        self.openssl(&[&asked[..], &NEW_KEY].concat());
        let signed = ["ca", "-batch", "-notext", "-config", "openssl.cnf", "-in", "own.csr", "-extfile", "ext"];
        self.openssl(&[&signed[..], &["-startdate", from, "-enddate", until, "-out", "own.pem"]].concat());
        (self.0.join("own.pem"), self.0.join("own.key"))
    }

    /// A certificate for `localhost` that nobody but itself vouches for.
    pub(crate) fn self_signed(&self) -> (PathBuf, PathBuf) {
        self.self_sign("alone", &["subjectAltName=DNS:localhost", "basicConstraints=critical,CA:FALSE"]);
        (self.0.join("alone.pem"), self.0.join("alone.key"))
    }

    fn self_sign(&self, file: &str, extensions: &[&str]) {
        let (key, certificate) = (format!("{file}.key"), format!("{file}.pem"));
        let mut words = vec!["req", "-x509", "-config", "openssl.cnf", "-days", "30", "-subj", "/CN=test"];
        words.extend(["-keyout", &key, "-out", &certificate]);
        words.extend(NEW_KEY);
        extensions.iter().for_each(|extension| words.extend(["-addext", extension]));
        self.openssl(&words);
    }

    fn openssl(&self, arguments: &[&str]) {
        let done = Command::new("openssl").args(arguments).current_dir(&self.0).output().unwrap();
        assert!(done.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    }
}

/// Shows a certificate to whoever connects. Dropping it closes its port.
pub(crate) struct Tls {
    pub(crate) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Tls {
    pub(crate) async fn start((certificate, key): (PathBuf, PathBuf)) -> Self {
        let chain = vec![CertificateDer::from_pem_file(certificate).unwrap()];
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::from_pem_file(key).unwrap())
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let acceptor = acceptor.clone();
                tokio::spawn(async move { acceptor.accept(stream).await.map(drop) });
            }
        });
        Self { address, task }
    }

    pub(crate) fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        self.task.abort();
    }
}
