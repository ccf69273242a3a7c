//! A receiver that takes requests down byte for byte.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What it does with a request.
#[derive(Clone, Debug)]
pub(super) enum Manner {
    /// Answers with this status.
    Status(u16),
    /// Sends elsewhere.
    Redirect(u16, &'static str),
    /// Reads, and never answers.
    Hang,
}

pub(super) struct Receiver {
    pub(super) url: String,
    manner: Arc<Mutex<Manner>>,
    requests: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Receiver {
    pub(super) async fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/webhooks/authentik", listener.local_addr().unwrap());
        let manner = Arc::new(Mutex::new(manner));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (shared, taken) = (Arc::clone(&manner), Arc::clone(&requests));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, Arc::clone(&shared), Arc::clone(&taken)));
            }
        });
        Self { url, manner, requests, task }
    }

    pub(super) fn set(&self, manner: Manner) {
        *self.manner.lock().unwrap() = manner;
    }

    /// Heads and bodies, with `receiver` for the address.
    pub(super) fn requests(&self) -> Vec<String> {
        let address = self.url.strip_prefix("http://").unwrap().split('/').next().unwrap().to_owned();
        self.requests.lock().unwrap().iter().map(|text| text.replace(&address, "receiver")).collect()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(mut stream: TcpStream, manner: Arc<Mutex<Manner>>, requests: Arc<Mutex<Vec<String>>>) {
    let mut bytes = Vec::new();
    let whole = loop {
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return;
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length =
            head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).map_or(0, |n| n.parse().unwrap());
        if body.len() == length {
            break text;
        }
    };
    requests.lock().unwrap().push(whole);
    let manner = manner.lock().unwrap().clone();
    let head = match manner {
        Manner::Hang => return std::future::pending().await,
        Manner::Status(status) => format!("HTTP/1.1 {status} Told\r\nContent-Length: 4\r\n\r\ntold"),
        Manner::Redirect(status, to) => {
            format!("HTTP/1.1 {status} Gone\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n")
        }
    };
    let _ = stream.write_all(head.as_bytes()).await;
    let _ = stream.flush().await;
}
