//! Against a real RabbitMQ: one broker for what publishes and one for what consumes, because a start takes seconds.
#![allow(clippy::unwrap_used, missing_docs)]

mod burying;
mod holding;
mod hosts;
mod late;
mod publishing;
mod refusals;
mod taking;

use kit_workbench::broker::Broker;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_broker_is_understood() {
    let mut broker = Broker::start().await.unwrap();
    publishing::check(&mut broker).await;
    refusals::check(&broker).await;
    late::check(&broker).await;
    hosts::check(&broker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_broker_is_consumed_from() {
    let mut broker = Broker::start().await.unwrap();
    holding::check(&broker).await;
    burying::check(&broker).await;
    taking::check(&mut broker).await;
}
