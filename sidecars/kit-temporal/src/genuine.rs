//! Answers that are no gRPC: a proxy's own page, or another server's.
//!
//! Read as gRPC they are a broken message, which would count against the event that was sent. What their HTTP status says
//! is about everybody.

use std::task::{Context, Poll};

use futures_util::TryFutureExt as _;
use futures_util::future::MapOk;
use http::{HeaderMap, StatusCode, header};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::transport::Channel;

type Answer = http::Response<Body>;
type Asked = <Channel as Service<http::Request<Body>>>::Future;

/// A channel whose answers are gRPC.
#[derive(Clone, Debug)]
pub(crate) struct Genuine(pub(crate) Channel);

impl Service<http::Request<Body>> for Genuine {
    type Response = Answer;
    type Error = <Channel as Service<http::Request<Body>>>::Error;
    type Future = MapOk<Asked, fn(Answer) -> Answer>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        self.0.call(request).map_ok(genuine)
    }
}

fn genuine(answer: Answer) -> Answer {
    match refusal(answer.status(), answer.headers()) {
        Some(status) => status.into_http(),
        None => answer,
    }
}

/// What an answer means that is none; `None` of one that is gRPC.
///
/// Where something before Temporal fails it is as if Temporal did not answer; where it says anything else, Temporal is not
/// there. gRPC's own mapping takes what has no name in it for an unknown error, which would count against the event.
///
/// Source: grpc/grpc `doc/http-grpc-status-mapping.md`, `doc/PROTOCOL-HTTP2.md` ("Responses").
fn refusal(status: StatusCode, headers: &HeaderMap) -> Option<Status> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if kind.starts_with("application/grpc") && status == StatusCode::OK {
        return None;
    }
    let what = if kind.is_empty() { String::new() } else { format!(" ({kind})") };
    let text = format!("HTTP {}{what} instead of gRPC", status.as_u16());
    Some(match status {
        StatusCode::UNAUTHORIZED => Status::unauthenticated(text),
        StatusCode::FORBIDDEN => Status::permission_denied(text),
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Status::unavailable(text),
        status if status.is_server_error() => Status::unavailable(text),
        _ => Status::unimplemented(text),
    })
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn only_what_is_grpc_is_an_answer() {
        let code = |status: u16, kind: Option<&'static str>| {
            let kind = kind.map(|kind| (header::CONTENT_TYPE, http::HeaderValue::from_static(kind)));
            let status = StatusCode::from_u16(status).expect("a status");
            refusal(status, &kind.into_iter().collect()).map(|status| status.code())
        };
        assert_eq!((code(200, Some("application/grpc")), code(200, Some("application/grpc+proto"))), (None, None));
        for (status, expected) in [
            (200, Code::Unimplemented),
            (302, Code::Unimplemented),
            (400, Code::Unimplemented),
            (401, Code::Unauthenticated),
            (403, Code::PermissionDenied),
            (404, Code::Unimplemented),
            (429, Code::Unavailable),
            (500, Code::Unavailable),
            (502, Code::Unavailable),
            (503, Code::Unavailable),
            (504, Code::Unavailable),
        ] {
            assert_eq!(code(status, Some("text/html")), Some(expected), "{status}");
            assert_eq!(code(status, None), Some(expected), "{status}");
        }
        assert_eq!(code(503, Some("application/grpc")), Some(Code::Unavailable));
    }
}
