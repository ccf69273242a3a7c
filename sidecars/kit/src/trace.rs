//! Traces by OTLP, when `OTEL_EXPORTER_OTLP_ENDPOINT` is set; nothing at all otherwise.
//!
//! A span continues the W3C trace context that came in and gives the one to pass on. The variables of
//! the OpenTelemetry specification apply (`OTEL_EXPORTER_OTLP_…`, `OTEL_TRACES_SAMPLER`,
//! `OTEL_RESOURCE_ATTRIBUTES`); the protocol is OTLP over HTTP with protobuf.

use std::sync::OnceLock;
use std::time::Duration;

use opentelemetry::trace::{
    Span as _, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId, TraceState,
    Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

static TRACES: OnceLock<(SdkTracerProvider, SdkTracer)> = OnceLock::new();

/// How long the last spans may take to be sent at the end.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);

/// Starts exporting where the environment asks for it. Blocks shortly; call it outside the runtime.
pub fn init(daemon: &'static str, version: &'static str) {
    let asked = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];
    if !asked.iter().any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty())) {
        return;
    }
    // As every client of ours: no proxy from the environment, no redirects. The exporter gives no limit to a client that it
    // has not made.
    let client = reqwest::blocking::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(export_timeout(|name| std::env::var(name).ok()))
        .build();
    let client = match client {
        Ok(client) => client,
        Err(error) => {
            tracing::error!(error = %error, "traces cannot be exported: {error}");
            return;
        }
    };
    let exporter = match SpanExporter::builder().with_http().with_http_client(client).build() {
        Ok(exporter) => exporter,
        Err(error) => {
            // Traces are a convenience: without them the daemon does its work all the same.
            tracing::error!(error = %error, "traces cannot be exported: {error}");
            return;
        }
    };
    let resource = Resource::builder()
        .with_service_name(std::env::var("OTEL_SERVICE_NAME").unwrap_or_else(|_| daemon.to_owned()))
        .with_attribute(KeyValue::new("service.version", version))
        .build();
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
    let tracer = provider.tracer(daemon);
    if TRACES.set((provider, tracer)).is_ok() {
        tracing::info!("traces are exported by OTLP");
    }
}

/// The specification's variables, in milliseconds, and its default.
fn export_timeout(variable: impl Fn(&str) -> Option<String>) -> Duration {
    let set = |name| variable(name).and_then(|value| value.trim().parse().ok());
    let millis = set("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT").or_else(|| set("OTEL_EXPORTER_OTLP_TIMEOUT"));
    Duration::from_millis(millis.unwrap_or(10_000))
}

/// Sends what is left. Blocks for at most two seconds.
pub fn flush() {
    if let Some((provider, _)) = TRACES.get()
        && let Err(error) = provider.shutdown_with_timeout(FLUSH_WITHIN)
    {
        tracing::warn!(error = %error, "the last traces were not sent: {error}");
    }
}

/// What a span is to its neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Answers a request from outside.
    Server,
    /// Sends a request to somebody else.
    Client,
}

/// A span, or nothing where traces are off. It ends when it is dropped.
pub struct Span(Option<opentelemetry_sdk::trace::Span>);

impl std::fmt::Debug for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Span").field(&self.0.is_some()).finish()
    }
}

impl Span {
    /// Begins a span within the trace of `traceparent`, or a new trace.
    pub fn begin(name: &'static str, kind: Kind, traceparent: Option<&str>) -> Self {
        let Some((_, tracer)) = TRACES.get() else { return Self(None) };
        let parent = match traceparent.and_then(parse) {
            Some(context) => Context::new().with_remote_span_context(context),
            None => Context::new(),
        };
        let kind = match kind {
            Kind::Server => SpanKind::Server,
            Kind::Client => SpanKind::Client,
        };
        Self(Some(tracer.span_builder(name).with_kind(kind).start_with_context(tracer, &parent)))
    }

    /// Adds an attribute.
    pub fn set(&mut self, name: &'static str, value: impl Into<opentelemetry::Value>) {
        if let Some(span) = &mut self.0 {
            span.set_attribute(KeyValue::new(name, value));
        }
    }

    /// As [`Span::set`], for a value that costs something to make.
    pub fn set_with<T: Into<opentelemetry::Value>>(&mut self, name: &'static str, value: impl FnOnce() -> T) {
        if self.0.is_some() {
            self.set(name, value());
        }
    }

    /// Marks the span as failed.
    pub fn fail(&mut self, reason: &str) {
        if let Some(span) = &mut self.0 {
            span.set_status(Status::error(reason.to_owned()));
        }
    }

    /// The trace context to pass on; `None` where traces are off.
    pub fn traceparent(&self) -> Option<String> {
        let context = self.0.as_ref()?.span_context();
        Some(format!("00-{}-{}-{:02x}", context.trace_id(), context.span_id(), context.trace_flags().to_u8()))
    }
}

/// Reads a `traceparent` of version 00.
fn parse(text: &str) -> Option<SpanContext> {
    let parts: Vec<&str> = text.split('-').collect();
    let [version, trace, span, flags] = parts[..] else { return None };
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let flags = u8::from_str_radix(flags, 16).ok()?;
    let valid = version == "00" && trace != TraceId::INVALID && span != SpanId::INVALID;
    valid.then(|| SpanContext::new(trace, span, TraceFlags::new(flags), true, TraceState::default()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_trace_context_is_read_and_nonsense_is_not() {
        let context = parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").unwrap();
        assert_eq!(context.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert!(context.is_remote() && context.trace_flags().is_sampled());
        for bad in [
            "",
            "00-x-y-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn without_an_endpoint_there_is_nothing_to_pass_on() {
        let mut span = Span::begin("test", Kind::Server, None);
        span.set("a", 1);
        span.fail("no");
        assert_eq!(span.traceparent(), None);
    }
}
