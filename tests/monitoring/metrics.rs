//! What can be asked for: the lists of what the neighbours' exporters show, and a proxy by which Prometheus finds them and the
//! daemons under the names of its configuration.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use kit_workbench::raw;
use outrigger_tests::rig::REQUEST_DEADLINE;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::files;

/// Who answers for a target.
#[derive(Clone, Debug)]
pub(crate) enum Answers {
    /// Whoever listens there.
    At(SocketAddr),
    /// The same text every time.
    Text(String),
}

/// Targets of Prometheus' configuration, by `host:port`.
pub(crate) type Targets = Arc<Mutex<BTreeMap<String, Answers>>>;

/// A list of a neighbour's metrics, in the format in which they are exposed.
pub(crate) fn neighbour(name: &str) -> String {
    files::read(&format!("tests/monitoring/neighbours/{name}.prom"))
}

/// A proxy for HTTP that knows these targets, and no others.
pub(crate) async fn proxy(targets: Targets) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let targets = Arc::clone(&targets);
            // Whoever breaks off comes again.
            tokio::spawn(async move { drop(serve(stream, &targets).await) });
        }
    });
    address
}

async fn serve(mut stream: TcpStream, targets: &Targets) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() > 64 << 10 || stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let url = head.split(' ').nth(1).unwrap_or_default().trim_start_matches("http://");
    let (host, path) = url.split_once('/').unwrap_or((url, ""));
    let answers = targets.lock().unwrap().get(host).cloned();
    let (status, kind, body) = match answers {
        Some(Answers::Text(text)) => (200, "text/plain; version=0.0.4".to_owned(), text.into_bytes()),
        Some(Answers::At(address)) => match raw::get(address, &format!("/{path}"), REQUEST_DEADLINE).await {
            Ok(answer) => {
                (answer.status, answer.header("content-type").unwrap_or("text/plain").to_owned(), answer.body.to_vec())
            }
            Err(_) => (502, "text/plain".to_owned(), Vec::new()),
        },
        None => (502, "text/plain".to_owned(), format!("no target {host} is known").into_bytes()),
    };
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status} -\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&body).await?;
    stream.shutdown().await
}

/// What a new version of an image exposes has to be looked at again.
#[test]
fn the_lists_are_of_the_versions_that_compose_starts() {
    let example = files::read("compose/.env.example");
    let lists = files::in_folder("tests/monitoring/neighbours", ".prom");
    assert!(lists.len() > 3);
    for path in lists {
        let (name, text) = (files::name(&path), std::fs::read_to_string(&path).unwrap());
        let line =
            |key: &str| text.lines().find_map(|line| line.strip_prefix(&format!("# {key}: "))).map(str::to_owned);
        assert!(line("source").is_some_and(|source| source.len() > 10), "{name} does not say where it is from");
        let version = line("version").unwrap_or_else(|| panic!("{name} has no version"));
        assert!(
            example.lines().any(|line| line == version),
            "{name} is of {version}, which compose/.env.example no longer has: look at what the new version exposes"
        );
    }
}
