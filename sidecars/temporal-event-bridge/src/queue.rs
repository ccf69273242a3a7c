//! Events from a RabbitMQ queue: a message is acknowledged once its event is in the journal, and goes to the queue of dead
//! letters where a sender would get a 4xx.

use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use kit::clock::SharedClock;
use kit::config::Problems;
use kit::lifecycle::Shell;
use kit::run::StartError;
use kit::telemetry::Metrics;
use kit_amqp::{AmqpMetrics, AmqpSource, AmqpSourceSection, Message, Taken};
use kit_delivery::cloudevents;
use kit_delivery::start::configuration;

use crate::http::{Intake, Refusal, append};

/// Name of the connection in metrics and at the broker.
const SOURCE: &str = "events";
const DAEMON: &str = "temporal-event-bridge";

/// Reports what of the section cannot be used.
pub(crate) fn check(section: &AmqpSourceSection, problems: &mut Problems) {
    if !section.is_set() {
        return;
    }
    let clock = Arc::new(kit::clock::SystemClock);
    if let Err(errors) = AmqpSource::new(SOURCE, DAEMON, section, &AmqpMetrics::default(), clock) {
        for error in errors {
            problems.add(&format!("amqp_source.{}", error.path), &error.message);
        }
    }
}

/// Takes messages, if there is a queue to take them from.
pub(crate) fn start(
    shell: &mut Shell,
    section: &AmqpSourceSection,
    metrics: &Metrics,
    intake: &Arc<Intake>,
    clock: &SharedClock,
) -> Result<(), StartError> {
    if !section.is_set() {
        return Ok(());
    }
    let metrics = metrics.shared(AmqpMetrics::register);
    let source = AmqpSource::new(SOURCE, DAEMON, section, &metrics, Arc::clone(clock)).map_err(|errors| {
        configuration(errors.iter().map(|error| format!("amqp_source.{error}")).collect::<Vec<_>>().join("; "))
    })?;
    let (stop, health) = (shell.stop_token(), intake.journal.health());
    let intake = Arc::clone(intake);
    let receive = move |message: Arc<Message>| -> BoxFuture<'static, Taken> {
        let intake = Arc::clone(&intake);
        async move { take(&intake, &message).await }.boxed()
    };
    shell.spawn("event queue", source.run(stop, health, receive));
    Ok(())
}

/// Whoever may publish to the queue may start workflows: binary mode is as good as structured mode here.
async fn take(intake: &Intake, message: &Message) -> Taken {
    let headers = message.request_headers();
    let taken = match cloudevents::event(&headers, &message.body) {
        Ok(event) => append(intake, event, None).await,
        Err(not) => Err(Refusal::NotCloudEvents(not)),
    };
    match taken {
        Ok(_) => Taken::Accepted,
        Err(refusal) => {
            intake.metrics.refused(refusal.reason());
            match refusal {
                Refusal::Journal => Taken::TryLater(refusal.reason().to_owned()),
                Refusal::NotAdmitted(why) => Taken::Rejected(why.to_string()),
                Refusal::NotCloudEvents(not) => Taken::Rejected(not.to_string()),
                other => Taken::Rejected(other.reason().to_owned()),
            }
        }
    }
}
