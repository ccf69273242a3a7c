//! Sinks made of their sections. Another kind of sink is another variant here and in [`SinkSection`].

use std::convert::Infallible;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use kit::clock::SharedClock;
use kit::lifecycle::Shell;
use kit_amqp::{AmqpMetrics, AmqpSection, AmqpSink};
use kit_delivery::{Batching, DispatcherSettings, GatewaySection, HttpSink, Outcome, Preview, Sink};
use kit_journal::{Seq, StoredEvent};

use crate::config::SinkSection;

/// A sink of one of the kinds there are.
#[derive(Debug)]
pub enum BuiltSink {
    /// By HTTP.
    Http(Box<HttpSink>),
    /// To an exchange. Shared with the task that keeps its connection.
    Amqp(Arc<AmqpSink>),
}

/// A setting that a sink cannot be built with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct SinkError {
    /// Path of the setting in the configuration.
    pub path: String,
    /// What is wrong and how to mend it.
    pub message: String,
}

/// What sinks are built with beside their sections.
#[derive(Clone, Copy, Debug)]
pub struct Builder<'a> {
    /// The daemon's name: what a broker shows as the application.
    pub daemon: &'static str,
    /// The clock.
    pub clock: &'a SharedClock,
    /// Where connections to brokers are shown.
    pub amqp: &'a AmqpMetrics,
}

impl Builder<'_> {
    /// The sink of a section of `[sinks]`; reads every file that its section names.
    ///
    /// # Errors
    /// All settings that cannot be used.
    pub fn build(&self, name: &str, section: &SinkSection) -> Result<BuiltSink, Vec<SinkError>> {
        let at = format!("sinks.{name}");
        match section {
            SinkSection::Http(section) => self.http(&at, name, section).map(Box::new).map(BuiltSink::Http),
            SinkSection::Amqp(section) => self.amqp(&at, name, section),
        }
    }

    /// A sink by HTTP whose settings are at `at` in the configuration.
    ///
    /// # Errors
    /// All settings that cannot be used.
    pub fn http(&self, at: &str, name: &str, section: &GatewaySection) -> Result<HttpSink, Vec<SinkError>> {
        HttpSink::at(at, name, section, Arc::clone(self.clock)).map_err(|errors| {
            let error = |error: kit_delivery::HttpSinkError| (error.path.to_string(), error.message);
            placed(at, errors.into_iter().map(error))
        })
    }

    /// A sink to a broker whose settings are at `at` in the configuration.
    ///
    /// # Errors
    /// All settings that cannot be used.
    pub fn amqp(&self, at: &str, name: &str, section: &AmqpSection) -> Result<BuiltSink, Vec<SinkError>> {
        let sink = AmqpSink::new(name, self.daemon, section, self.amqp);
        sink.map(Arc::new)
            .map(BuiltSink::Amqp)
            .map_err(|errors| placed(at, errors.into_iter().map(|error| (error.path.to_owned(), error.message))))
    }
}

fn placed(at: &str, errors: impl Iterator<Item = (String, String)>) -> Vec<SinkError> {
    errors.map(|(path, message)| SinkError { path: format!("{at}.{path}"), message }).collect()
}

impl BuiltSink {
    /// What would be sent, without sending it.
    pub fn preview(&self, event: &StoredEvent) -> Preview {
        match self {
            Self::Http(sink) => sink.preview(event),
            Self::Amqp(sink) => sink.preview(event),
        }
    }

    /// Starts what a sink has running beside its deliveries.
    pub(crate) fn keep(&self, shell: &mut Shell) {
        let Self::Amqp(sink) = self else { return };
        let (sink, stop) = (Arc::clone(sink), shell.stop_token());
        shell.spawn_in_background(&format!("connection of {}", sink.name()), async move {
            sink.keep_connected(stop).await;
            Ok::<(), Infallible>(())
        });
    }

    fn inner(&self) -> &dyn Sink {
        match self {
            Self::Http(sink) => &**sink,
            Self::Amqp(sink) => &**sink,
        }
    }
}

/// How a dispatcher works for a sink of this section.
pub(crate) fn settings(section: &SinkSection) -> DispatcherSettings {
    match section {
        SinkSection::Http(section) => DispatcherSettings::from(&**section),
        SinkSection::Amqp(section) => DispatcherSettings::from(&**section),
    }
}

impl Sink for BuiltSink {
    fn name(&self) -> &str {
        self.inner().name()
    }

    fn batching(&self) -> Batching {
        self.inner().batching()
    }

    fn repeats(&self) -> bool {
        self.inner().repeats()
    }

    fn deliver_all<'a>(&'a self, events: &'a [Arc<StoredEvent>]) -> BoxFuture<'a, Vec<Outcome>> {
        self.inner().deliver_all(events)
    }

    fn recording(&self, delivered: &[Seq]) -> Vec<(String, Vec<u8>)> {
        self.inner().recording(delivered)
    }

    fn deliver<'a>(&'a self, event: &'a StoredEvent) -> BoxFuture<'a, Outcome> {
        self.inner().deliver(event)
    }
}
