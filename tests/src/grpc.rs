//! A proxy that speaks gRPC's HTTP/2 between a client and a server, asks for a token, and can answer as a proxy does whose
//! server is away.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response, StatusCode};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

/// What the proxy does with a call.
#[derive(Clone, Debug)]
pub enum Does {
    /// Passes it on.
    Forward,
    /// Passes it on where its `authorization` is this; otherwise `UNAUTHENTICATED`, as a server with an authorizer.
    Authorize(String),
    /// Passes it on, but for calls of this method: those are `PERMISSION_DENIED`, as a server with an authorizer answers
    /// whoever may do some things and not others.
    Refuse(&'static str),
    /// Answers with this status and a page, and passes nothing on.
    Page(u16),
}

#[derive(Debug)]
struct Shared {
    does: Does,
    /// `authorization` of the calls, where they had any.
    seen: Vec<String>,
    paged: u64,
}

/// A proxy before a server. Dropping it closes its port and all connections.
#[derive(Debug)]
pub struct GrpcProxy {
    address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
    _stop: DropGuard,
}

impl GrpcProxy {
    /// A proxy on a free port of 127.0.0.1 before this server.
    ///
    /// # Errors
    /// There is no port.
    pub async fn start(target: SocketAddr, does: Does) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("bind the proxy's port")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Mutex::new(Shared { does, seen: Vec::new(), paged: 0 }));
        let stop = CancellationToken::new();
        tokio::spawn({
            let (stop, shared) = (stop.clone(), Arc::clone(&shared));
            async move {
                while let Some(Ok((stream, _))) = stop.run_until_cancelled(listener.accept()).await {
                    let (stop, shared) = (stop.clone(), Arc::clone(&shared));
                    // However a connection ends: its client makes another.
                    tokio::spawn(async move { stop.run_until_cancelled(serve(stream, target, shared)).await });
                }
            }
        });
        Ok(Self { address, shared, _stop: stop.drop_guard() })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Does something else with calls from now on.
    pub fn set(&self, does: Does) {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).does = does;
    }

    /// The `authorization` of every call that had any, in their order.
    pub fn authorizations(&self) -> Vec<String> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).seen.clone()
    }

    /// How many calls got a page.
    pub fn paged(&self) -> u64 {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).paged
    }
}

async fn serve(stream: TcpStream, target: SocketAddr, shared: Arc<Mutex<Shared>>) -> Result<()> {
    let mut inside = h2::server::handshake(stream).await?;
    let (outside, connection) = h2::client::handshake(TcpStream::connect(target).await?).await?;
    tokio::spawn(connection);
    while let Some(call) = inside.accept().await {
        let (request, respond) = call?;
        let (outside, shared) = (outside.clone(), Arc::clone(&shared));
        // A call that is broken off is broken off on both sides.
        tokio::spawn(async move { drop(answer(request, respond, outside, shared).await) });
    }
    Ok(())
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    outside: SendRequest<Bytes>,
    shared: Arc<Mutex<Shared>>,
) -> Result<()> {
    let shown = request.headers().get("authorization").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let does = {
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.seen.extend(shown.clone());
        shared.paged += u64::from(matches!(shared.does, Does::Page(_)));
        shared.does.clone()
    };
    match does {
        Does::Page(status) => {
            let page =
                format!("<html><head><title>{status}</title></head><body><h1>{status}</h1><hr>nginx</body></html>");
            let head = Response::builder().status(StatusCode::from_u16(status)?).header("content-type", "text/html");
            respond.send_response(head.body(())?, false)?.send_data(page.into(), true)?;
            return Ok(());
        }
        Does::Authorize(wanted) if shown.as_deref() != Some(&wanted) => {
            let head = Response::builder().header("content-type", "application/grpc");
            let head = head.header("grpc-status", "16").header("grpc-message", "Request unauthorized.");
            respond.send_response(head.body(())?, true)?;
            return Ok(());
        }
        Does::Refuse(method) if request.uri().path().rsplit('/').next() == Some(method) => {
            let head = Response::builder().header("content-type", "application/grpc");
            let head = head.header("grpc-status", "7").header("grpc-message", "Request unauthorized.");
            respond.send_response(head.body(())?, true)?;
            return Ok(());
        }
        Does::Forward | Does::Refuse(_) | Does::Authorize(_) => {}
    }
    let (head, body) = request.into_parts();
    let mut forwarded = Request::builder().method(head.method).uri(head.uri);
    if let Some(headers) = forwarded.headers_mut() {
        *headers = head.headers;
    }
    let (answered, mut to_server) = outside.ready().await?.send_request(forwarded.body(())?, false)?;
    let (bytes, trailers) = whole(body).await?;
    send(&mut to_server, bytes, trailers)?;
    let (head, body) = answered.await?.into_parts();
    let is_over = body.is_end_stream();
    let mut to_client = respond.send_response(Response::from_parts(head, ()), is_over)?;
    if !is_over {
        let (bytes, trailers) = whole(body).await?;
        send(&mut to_client, bytes, trailers)?;
    }
    Ok(())
}

/// All of a message: calls here have one.
async fn whole(mut body: RecvStream) -> Result<(Bytes, Option<HeaderMap>)> {
    let mut bytes = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        bytes.extend_from_slice(&chunk);
    }
    Ok((bytes.into(), body.trailers().await?))
}

fn send(to: &mut SendStream<Bytes>, bytes: Bytes, trailers: Option<HeaderMap>) -> Result<()> {
    match trailers {
        Some(trailers) => {
            to.send_data(bytes, false)?;
            to.send_trailers(trailers)?;
        }
        None => to.send_data(bytes, true)?,
    }
    Ok(())
}
