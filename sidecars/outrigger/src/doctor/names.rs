//! Public names: whether DNS leads somewhere, whether TLS is spoken there, and whom the certificate is for and until when.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use kit::error::chain;
use rustls_platform_verifier::Verifier;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use url::Url;

use super::finding::{
    CERTIFICATE_EXPIRED, CERTIFICATE_NAME, CERTIFICATE_NONE, CERTIFICATE_SOON, CERTIFICATE_TRUST, NAME, NAME_AWAY,
    SETTING,
};
use super::sidecar::list;
use super::{ANSWER_WITHIN, Asking};
use crate::finding::Finding;

const CHECK: &str = "public-name";
/// Let's Encrypt renews 30 days before: with so few left, it was not.
const SOON_DAYS: i64 = 14;
/// The last second of the year 9999: every certificate has expired by then, and the refusal says when.
const FAR: Duration = Duration::from_secs(253_402_300_799);
/// Addresses of one name that are said.
const SHOWN_ADDRESSES: usize = 3;
/// Names that are asked; each is a connection.
const MOST_NAMES: usize = 50;
/// Settings whose https addresses are public names too.
const ADDRESSES: [&str; 4] = ["LAGO_API_URL", "LAGO_WEBHOOK_URL", "AUTHENTIK_URL", "BRAIN_GATEWAY_URL"];

/// What carries bytes.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

pub(crate) async fn examine(asking: &Asking<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut places: Vec<(String, u16)> = Vec::new();
    for (nth, text) in list(asking.settings.get("OUTRIGGER_PUBLIC_URLS")).into_iter().enumerate() {
        let url = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
        match place_of(&url) {
            Some(place) => places.push(place),
            None => findings
                .push(Finding::of(&SETTING, format!("OUTRIGGER_PUBLIC_URLS: number {} is no https address", nth + 1))),
        }
    }
    places.extend(ADDRESSES.iter().filter_map(|name| place_of(asking.settings.get(name)?)));
    places.sort();
    places.dedup();
    if let Some(more) = places.len().checked_sub(MOST_NAMES).filter(|more| *more > 0) {
        let text = format!("{more} more than {MOST_NAMES} names are not looked at");
        findings.push(Finding::unknown(CHECK, text, "ask for them by themselves: OUTRIGGER_PUBLIC_URLS"));
        places.truncate(MOST_NAMES);
    }
    if places.is_empty() && findings.is_empty() {
        return vec![Finding::unset(
            CHECK,
            "OUTRIGGER_PUBLIC_URLS (https://billing.example.com,https://auth.example.com)",
        )];
    }
    let asked = join_all(places.iter().map(|(host, port)| look(host, *port, asking))).await;
    findings.extend(asked);
    findings
}

/// The hosts that are named as public.
pub(super) fn named(asking: &Asking<'_>) -> Vec<String> {
    let urls = list(asking.settings.get("OUTRIGGER_PUBLIC_URLS")).into_iter();
    let full = urls.map(|text| if text.contains("://") { text.to_owned() } else { format!("https://{text}") });
    full.filter_map(|url| Some(place_of(&url)?.0)).collect()
}

fn place_of(url: &str) -> Option<(String, u16)> {
    let url = Url::parse(url).ok().filter(|url| url.scheme() == "https")?;
    Some((url.host_str()?.trim_matches(['[', ']']).to_owned(), url.port_or_known_default()?))
}

async fn look(host: &str, port: u16, asking: &Asking<'_>) -> Finding {
    let shown = if port == 443 { host.to_owned() } else { format!("{host}:{port}") };
    let looked_up = tokio::time::timeout(ANSWER_WITHIN, tokio::net::lookup_host((host, port))).await;
    let addresses: Vec<_> = match looked_up {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(_)) => Vec::new(),
        Err(_) => return Finding::of(&NAME, format!("{shown}: DNS does not answer")),
    };
    if addresses.is_empty() {
        return Finding::of(&NAME, format!("{shown} is not known to DNS"));
    }
    let ips: Vec<String> = addresses.iter().take(SHOWN_ADDRESSES).map(|address| address.ip().to_string()).collect();
    let shown = format!("{shown} ({})", ips.join(", "));
    let tcp = match tokio::time::timeout(ANSWER_WITHIN, TcpStream::connect(&addresses[..])).await {
        Ok(Ok(tcp)) => tcp,
        Ok(Err(error)) => return Finding::of(&NAME_AWAY, format!("{shown}: {error}")),
        Err(_) => return Finding::of(&NAME_AWAY, format!("{shown}: no answer within {} s", ANSWER_WITHIN.as_secs())),
    };
    match tokio::time::timeout(ANSWER_WITHIN, certificate(tcp, host, asking)).await {
        Ok(Ok(seen)) => judge(&shown, &seen, asking.now.as_millis() / 1000),
        Ok(Err(error)) => Finding::of(&CERTIFICATE_NONE, format!("{shown}: {}", chain(&error))),
        Err(_) => Finding::of(&CERTIFICATE_NONE, format!("{shown}: no TLS within {} s", ANSWER_WITHIN.as_secs())),
    }
}

/// What a server showed.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// What is wrong with it today.
    wrong: Option<CertificateError>,
    /// Something else than the certificate.
    other: Option<String>,
    /// Its last second.
    not_after: Option<i64>,
}

fn judge(shown: &str, seen: &Seen, now: i64) -> Finding {
    let days = seen.not_after.map(|last| (last - now).div_euclid(86_400));
    let of = |known, what: &str| Finding::of(known, format!("{shown}: {what}"));
    match &seen.wrong {
        Some(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            let ago = days.map_or_else(String::new, |days| format!(" {} days ago", -days));
            of(&CERTIFICATE_EXPIRED, &format!("its certificate expired{ago}"))
        }
        Some(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }) => {
            of(&CERTIFICATE_NAME, "its certificate is for another name")
        }
        Some(CertificateError::UnknownIssuer) => {
            of(&CERTIFICATE_TRUST, "nobody who is trusted vouches for its certificate")
        }
        Some(other) => of(&CERTIFICATE_TRUST, &format!("its certificate is refused: {other}")),
        None if seen.other.is_some() => of(
            &CERTIFICATE_TRUST,
            &format!("its certificate is refused: {}", seen.other.as_deref().unwrap_or_default()),
        ),
        None => match days {
            Some(days) if days < SOON_DAYS => of(&CERTIFICATE_SOON, &format!("its certificate expires in {days} days")),
            Some(days) => Finding::good(CHECK, format!("{shown}: certificate good for {days} more days")),
            None => Finding::good(CHECK, format!("{shown}: certificate good")),
        },
    }
}

/// Looks at the certificate that a server shows. Whatever it is, the handshake goes on: nothing is sent over it.
async fn certificate(tcp: TcpStream, host: &str, asking: &Asking<'_>) -> io::Result<Seen> {
    let looking = Arc::new(Looking { verifier: verifier(asking)?, seen: Mutex::default() });
    let _stream = connect(tcp, host, Arc::clone(&looking) as Arc<dyn ServerCertVerifier>).await?;
    let seen = looking.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
    seen.ok_or_else(|| io::Error::other("it shows no certificate"))
}

/// An encrypted connection to a server that is who it says.
pub(super) async fn encrypted(tcp: TcpStream, host: &str, asking: &Asking<'_>) -> io::Result<TlsStream<TcpStream>> {
    connect(tcp, host, Arc::new(verifier(asking)?)).await
}

/// As the platform trusts, and those of `--ca-file`.
fn verifier(asking: &Asking<'_>) -> io::Result<Verifier> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let made = match &asking.ca_file {
        Some(file) => {
            let certificates = CertificateDer::pem_file_iter(file).map_err(io::Error::other)?;
            let certificates: Vec<_> = certificates.collect::<Result<_, _>>().map_err(io::Error::other)?;
            Verifier::new_with_extra_roots(certificates, provider)
        }
        None => Verifier::new(provider),
    };
    made.map_err(io::Error::other)
}

async fn connect(
    tcp: TcpStream,
    host: &str,
    verifier: Arc<dyn ServerCertVerifier>,
) -> io::Result<TlsStream<TcpStream>> {
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await
}

/// Lets every certificate pass, and remembers what is to be said of it.
#[derive(Debug)]
struct Looking {
    verifier: Verifier,
    seen: Mutex<Option<Seen>>,
}

impl ServerCertVerifier for Looking {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = |at| self.verifier.verify_server_cert(certificate, intermediates, name, ocsp, at);
        let mut seen = Seen::default();
        match verified(now) {
            Ok(_) => {}
            Err(Error::InvalidCertificate(wrong)) => seen.wrong = Some(wrong),
            Err(other) => seen.other = Some(other.to_string()),
        }
        // The date is judged first, so that it is told of the others too.
        if let Err(Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) =
            verified(UnixTime::since_unix_epoch(FAR))
        {
            seen.not_after = i64::try_from(not_after.as_secs()).ok();
        }
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
