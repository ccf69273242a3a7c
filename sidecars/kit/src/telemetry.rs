//! Logs and metrics.
//!
//! Log lines are JSON objects with `timestamp`, `level`, `message`, `logger` and the event's fields;
//! control characters are escaped and long values cut, so that nothing a sender writes can forge or
//! flood a line.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tracing::field::{Field, Visit};
use tracing_subscriber::filter::{LevelFilter, ParseError, Targets};
use tracing_subscriber::fmt::format::{DefaultFields, Writer};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::clock::{Clock as _, SystemClock};
use crate::config::LogSection;
use crate::log_writer::LogWriter;

/// Libraries that write what passes through them into their lines: bodies never get into a log, at no level. What matters
/// of theirs is said by those who use them.
const MUTE: [&str; 1] = ["lapin"];
/// Where lines go, once logging has been started.
static WRITER: OnceLock<Arc<LogWriter>> = OnceLock::new();
/// How long the end of the process waits for whoever reads the log.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);
/// Bytes of one field's value that are kept.
const VALUE_BYTES: usize = 8 * 1024;

/// The level, or levels by module.
pub(crate) fn filter(level: &str) -> Result<Targets, ParseError> {
    let known = ["error", "warn", "info", "debug", "trace", "off"];
    let lower = level.trim().to_ascii_lowercase();
    // Names that other platforms use for the same thing.
    let lower = match lower.as_str() {
        "warning" => "warn".to_owned(),
        "critical" | "fatal" => "error".to_owned(),
        _ => lower,
    };
    if known.contains(&lower.as_str()) || level.contains('=') {
        lower.parse()
    } else {
        // A bare word would be taken for a module's name.
        format!("{lower}=?").parse()
    }
}

/// The filter without what must not be shown, whatever was asked for.
fn muted(filter: Targets) -> Targets {
    let is_mute =
        |target: &str| MUTE.iter().any(|library| target == *library || target.starts_with(&format!("{library}::")));
    let default = filter.default_level().unwrap_or(LevelFilter::OFF);
    let kept: Targets = filter.into_iter().filter(|(target, _)| !is_mute(target)).collect();
    MUTE.iter().fold(kept.with_default(default), |filter, library| filter.with_target(*library, LevelFilter::OFF))
}

/// Starts logging to standard output. Later calls do nothing, so that tests may start several daemons.
pub fn init_logs(section: &LogSection) {
    let filter = filter(&section.level).unwrap_or_else(|_| Targets::new().with_default(LevelFilter::INFO));
    let filter = muted(filter);
    let writer = WRITER.get().map_or_else(|| LogWriter::start(std::io::stdout()), |writer| Ok(Arc::clone(writer)));
    let output = match writer {
        Ok(writer) => BoxMakeWriter::new(Arc::clone(WRITER.get_or_init(|| writer))),
        // Without a thread for it whoever says something waits for the reader.
        Err(_) => BoxMakeWriter::new(std::io::stdout),
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(output);
    let registry = tracing_subscriber::registry().with(filter);
    let _ = if section.json {
        registry.with(lines.event_format(JsonLines).fmt_fields(DefaultFields::new())).try_init()
    } else {
        registry.with(lines.with_ansi(false)).try_init()
    };
    std::panic::set_hook(Box::new(|panic| {
        // Where, but not what: a panic's text may hold input.
        let place = panic.location().map_or_else(|| "unknown place".to_owned(), ToString::to_string);
        tracing::error!(place = %place, "panic at {place}");
        flush_logs();
    }));
}

/// Waits until what was logged is written, for a second at most. For whoever is about to end the process.
pub fn flush_logs() {
    if let Some(writer) = WRITER.get() {
        writer.flush(FLUSH_WITHIN);
    }
}

struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> std::fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let meta = event.metadata();
        write!(
            writer,
            "{{\"timestamp\":\"{}\",\"level\":\"{}\",\"message\":{},\"logger\":{}",
            SystemClock.now(),
            meta.level(),
            json(&fields.message),
            json(meta.target())
        )?;
        writer.write_str(&fields.others)?;
        writer.write_str("}\n")
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    /// `,"name":value` for each.
    others: String,
}

impl Fields {
    fn add(&mut self, field: &Field, value: &str) {
        let name = field.name();
        if name == "message" {
            value.clone_into(&mut self.message);
            return;
        }
        // These four are ours; an event's field of the same name steps aside.
        let suffix = if matches!(name, "timestamp" | "level" | "logger") { "_" } else { "" };
        let _ = write!(self.others, ",\"{name}{suffix}\":{value}");
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" { self.message = cut(&text).to_owned() } else { self.add(field, &json(&text)) }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" { self.message = cut(value).to_owned() } else { self.add(field, &json(value)) }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, &value.to_string());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, &value.to_string());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, &value.to_string());
    }
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(VALUE_BYTES)]
}

/// A JSON string in which nothing can change how a terminal shows the line.
fn json(text: &str) -> String {
    let quoted = serde_json::to_string(cut(text)).unwrap_or_else(|_| "\"\"".to_owned());
    // JSON lets through DEL, C1 controls, what has no width, and the marks that turn the reading
    // direction around.
    let risky = |c: char| {
        matches!(c, '\u{7f}'..='\u{9f}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    if !quoted.contains(risky) {
        return quoted;
    }
    quoted.chars().fold(String::with_capacity(quoted.len()), |mut out, c| {
        if risky(c) {
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
        out
    })
}

/// Writes one line to standard error, for messages before logging has begun.
pub(crate) fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// What anybody can make us say is said at most so often.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// Lets something be said once a minute.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<Option<Instant>>);

impl Seldom {
    /// Whether it may be said now; then not again for a while.
    pub fn may(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let may = last.is_none_or(|last| last.elapsed() >= SAY_EVERY);
        if may {
            *last = Some(Instant::now());
        }
        may
    }
}

/// The daemon's metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
    shared: Mutex<HashMap<TypeId, Box<dyn Any + Send>>>,
}

impl Metrics {
    /// A registry with the process's own figures and the build's.
    pub fn new(daemon: &'static str, version: &'static str) -> Self {
        let mut registry = Registry::default();
        registry.register(
            "build",
            "Name and version of the daemon",
            Info::new([("daemon", daemon), ("version", version)]),
        );
        registry.register_collector(Box::new(Process));
        Self { registry: Mutex::new(registry), shared: Mutex::default() }
    }

    /// Registers metrics.
    pub fn with_registry<T>(&self, register: impl FnOnce(&mut Registry) -> T) -> T {
        register(&mut self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Metrics that several parts of a daemon have together: registered by the first that asks.
    pub fn shared<T: Clone + Send + 'static>(&self, register: impl FnOnce(&mut Registry) -> T) -> T {
        let mut shared = self.shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let known = shared.get(&TypeId::of::<T>()).and_then(|known| known.downcast_ref::<T>()).cloned();
        known.unwrap_or_else(|| {
            let new = self.with_registry(register);
            shared.insert(TypeId::of::<T>(), Box::new(new.clone()));
            new
        })
    }

    /// Everything as OpenMetrics text.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if prometheus_client::encoding::text::encode(&mut text, &registry).is_err() {
            tracing::error!("metrics cannot be written");
        }
        text
    }

    /// Content type of [`Metrics::render`].
    pub const CONTENT_TYPE: &'static str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
}

/// The process as the kernel sees it, under the names every dashboard knows.
#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let now = SystemClock.now().as_millis() as f64 / 1000.0;
        let mut gauge = |name: &str, help: &str, value: f64| -> std::fmt::Result {
            let metric = ConstGauge::new(value);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        gauge("process_clock_seconds", "What the process takes for now, in seconds since 1970", now)?;
        let Ok(process) = procfs::process::Process::myself() else { return Ok(()) };
        if let Ok(status) = process.status() {
            #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
            let rss = status.vmrss.unwrap_or(0) as f64 * 1024.0;
            gauge("process_resident_memory_bytes", "Resident memory", rss)?;
            #[expect(clippy::cast_precision_loss, reason = "a small number")]
            gauge("process_threads", "Threads", status.threads as f64)?;
        }
        if let Ok(count) = process.fd_count() {
            #[expect(clippy::cast_precision_loss, reason = "a small number")]
            gauge("process_open_fds", "Open file descriptors", count as f64)?;
        }
        if let Ok(stat) = process.stat() {
            if let Ok(boot) = procfs::boot_time_secs() {
                #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
                let start = boot as f64 + stat.starttime as f64 / procfs::ticks_per_second() as f64;
                gauge("process_start_time_seconds", "Start of the process, in seconds since 1970", start)?;
            }
            #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
            let seconds = (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64;
            let metric = ConstCounter::new(seconds);
            metric.encode(encoder.encode_descriptor(
                "process_cpu_seconds",
                "User and system CPU time",
                None,
                metric.metric_type(),
            )?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn libraries_that_show_bodies_are_mute_at_every_level() {
        use tracing::Level;
        for level in ["trace", "lapin=trace", "lapin::message=debug,info", "lapin"] {
            let filter = muted(filter(level).unwrap_or_else(|_| Targets::new().with_default(LevelFilter::INFO)));
            assert!(!filter.would_enable("lapin::message", &Level::ERROR), "{level}");
        }
        assert!(muted(filter("warn").unwrap()).would_enable("kit_amqp::sink", &Level::WARN));
        assert!(muted(filter("lapinski=debug").unwrap()).would_enable("lapinski", &Level::DEBUG));
    }

    #[test]
    fn levels_are_words_or_lists_of_modules() {
        for good in ["info", "INFO", "debug", "warning", "critical", "info,kit=debug", "off"] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["loud!", "chatty", "", "info=nonsense"] {
            assert!(filter(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn nothing_in_a_value_breaks_out_of_its_line() {
        let nasty = "a\nb\r\u{1b}[31m\u{202e}\u{9b}\"}{\u{2028}\u{61c}\u{200b}\u{2060}\u{feff}";
        let written = json(nasty);
        assert!(written.is_ascii() && !written.contains(|c: char| c.is_control()), "{written}");
        assert_eq!(serde_json::from_str::<String>(&written).unwrap(), nasty);
        assert!(json(&"é".repeat(VALUE_BYTES)).len() <= VALUE_BYTES + 2);
    }

    #[test]
    fn the_process_describes_itself_under_the_usual_names() {
        let text = Metrics::new("probe", "1.0").render();
        for name in [
            "process_resident_memory_bytes",
            "process_open_fds",
            "process_cpu_seconds_total",
            "process_start_time_seconds",
            "process_clock_seconds",
            "build_info",
        ] {
            assert!(text.contains(&format!("\n{name}")), "{name}\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
