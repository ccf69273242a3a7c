//! Events from a RabbitMQ queue: a message is acknowledged once its event is in the journal, and goes to the queue of dead
//! letters where a sender would get a 4xx.

use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use kit_amqp::{AmqpSourceSection, Inbox, Message, Taken};
use kit_delivery::cloudevents;

use crate::http::{Intake, Refusal, append};

/// The queue, if there is one to take messages from.
pub(crate) fn inbox(section: &AmqpSourceSection) -> Inbox<'_> {
    Inbox { daemon: "temporal-event-bridge", name: "events", section }
}

/// What takes its messages.
pub(crate) fn taker(intake: &Arc<Intake>) -> impl Fn(Arc<Message>) -> BoxFuture<'static, Taken> + use<> {
    let intake = Arc::clone(intake);
    move |message| {
        let intake = Arc::clone(&intake);
        async move { take(&intake, &message).await }.boxed()
    }
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
