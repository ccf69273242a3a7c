//! Events of other daemons: verified, turned into usage by the rules, and, where Lago complains about an event, that one
//! parked. What is not here: signatures (`kit_delivery::signature`) and what a rule makes of an event (`rules`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use futures_util::future::try_join_all;
use kit::clock::Timestamp;
use kit::config::Problems;
use kit_delivery::cloudevents::{self, CloudEvent};
use kit_delivery::receive::{Receiver, ReceiverSettings};
use kit_delivery::signature::Unverified;
use kit_journal::engine::{Action, AuditRecord, Reader};
use kit_journal::{AppendError, DeliveryState, JournalError, NewEvent, Seq, StoredEvent};
use kit_lago::usage::{Complaint, complaints};

use crate::admit::{self, READY, SOURCE};
use crate::complained;
use crate::config::WebhooksSection;
use crate::http::{self, Intake};
use crate::metrics::{Complained, Followed, Taken};
use crate::reconcile::Books;
use crate::refusal::{Refusal, json};
use crate::rollup;
use crate::rules::{Rules, Unusable};
use crate::sender::SINK;

/// Complaints looked up and settled in one step.
const AT_ONCE: usize = 500;
/// Events under one transaction id that are looked at, as a complaint may be about any of them.
const LOOKED_AT: usize = 200;
/// Between two lines of the log about events that a rule cannot use. All are counted.
const SAID_EVERY: Duration = Duration::from_secs(60);
/// Longest sender's name in the audit trail, in characters.
const ACTOR_CHARS: usize = 256;

/// Who may send events, and what follows from them.
#[derive(Debug)]
pub(crate) struct Webhooks {
    receiver: Receiver,
    rules: Rules,
    /// When the log last said that a rule cannot use an event.
    said: Mutex<Option<Instant>>,
}

impl Webhooks {
    /// Reads the secrets; `None` without one. What is wrong goes to `problems`, without showing any.
    pub(crate) fn load(section: &WebhooksSection, problems: &mut Problems) -> Option<Self> {
        let settings = ReceiverSettings {
            variable: "USAGE_WEBHOOK_SECRET",
            path: "webhooks.secret_file",
            secret: section.secret.as_ref(),
            secret_file: section.secret_file.as_deref(),
            tolerance_seconds: section.tolerance_seconds,
        };
        let receiver = Receiver::load(settings, problems)?;
        // Mistakes in the rules were found when the configuration was read.
        let rules = Rules::read(&section.rules).unwrap_or_default();
        Some(Self { receiver, rules, said: Mutex::default() })
    }

    fn say(&self, event: &CloudEvent<'_>, unusable: &Unusable) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_none_or(|at| at.elapsed() >= SAID_EVERY) {
            *said = Some(Instant::now());
            tracing::warn!(
                event.id = %event.id, event.type = %event.event_type, reason = %unusable,
                "an event of another daemon is not counted, its rule does not fit: {unusable}"
            );
        }
    }
}

/// `POST /webhooks/events`.
pub(crate) async fn take(State(intake): State<Arc<Intake>>, request: Request) -> Response {
    match &intake.webhooks {
        Some(webhooks) => http::answered(&intake, receive(&intake, webhooks, request).await),
        None => http::no_such_path(),
    }
}

async fn receive(intake: &Intake, webhooks: &Webhooks, request: Request<Body>) -> Result<Response, Refusal> {
    let (parts, body) = request.into_parts();
    let (body, id) = webhooks.receiver.verified(&parts, body, intake.body_limit, || intake.clock.now()).await?;
    let now = intake.clock.now();
    let event = cloudevents::event(&parts.headers, &body).map_err(Refusal::NotCloudEvents)?;
    // In binary mode the attributes are headers, of which only the id is signed: under the name that our sinks give it.
    if event.is_binary && event.id != id {
        return Err(Refusal::Unsigned(Unverified::Mismatch));
    }
    if is_about_the_catalogue(&event.event_type) {
        intake.known.look_again(now);
    }
    let webhook = event.event_type.strip_prefix("lago.").zip(event.data);
    let complaints = webhook.map(|(name, body)| complaints(name, body.get())).unwrap_or_default();
    let mut followed = if complaints.is_empty() { Followed::Nothing } else { Followed::Complaint };
    let (mut admitted, mut unusable) = (Vec::new(), None);
    for counted in webhooks.rules.apply(&event) {
        let new = counted.and_then(|counted| {
            admit::admit(&counted.usage, None, now).map_err(|errors| Unusable::not_admitted(counted.code, &errors))
        });
        match new {
            Ok(new) => admitted.push(rollup::route(&intake.rollup, new)),
            Err(error) => unusable = Some(error),
        }
    }
    let count = admitted.len();
    if count > 0 {
        followed = Followed::Counted;
    }
    append(intake, admitted).await?;
    park(intake, &event, complaints, now).await.map_err(|error| {
        let error = kit::error::chain(&error);
        tracing::debug!(error = %error, "complaints of Lago not recorded: {error}");
        Refusal::Journal
    })?;
    if let Some(unusable) = unusable {
        followed = Followed::Unusable;
        webhooks.say(&event, &unusable);
    }
    intake.metrics.followed(followed);
    Ok(json(StatusCode::OK, format!("{{\"usage_events\":{count}}}")))
}

/// Whether what the catalogue holds may have changed. Deleting a plan ends its subscriptions.
///
/// Source: getlago/lago-api `config/webhook_event_types.yml`; metrics since v1.47.0, plans since v1.32.0.
fn is_about_the_catalogue(event_type: &str) -> bool {
    ["lago.subscription.", "lago.billable_metric.", "lago.plan."].iter().any(|own| event_type.starts_with(own))
}

/// Stores what follows, each event for itself: one that is known with other content keeps none of the others out, and
/// its sender could do nothing about it.
async fn append(intake: &Intake, events: Vec<NewEvent>) -> Result<(), Refusal> {
    let own: Vec<_> = events.iter().map(|event| event.head.id).collect();
    let appended = try_join_all(events.into_iter().map(|event| intake.journal.append(event))).await;
    let appended = appended.map_err(|error: AppendError| {
        intake.metrics.taken(Taken::Unavailable, own.len() as u64);
        tracing::debug!(error = %error, "usage not taken: {error}");
        Refusal::Journal
    })?;
    for (own, appended) in own.iter().zip(&appended) {
        let taken = match appended.duplicate {
            false => Taken::Accepted,
            true if appended.id == *own => Taken::Duplicate,
            true => Taken::Contradiction,
        };
        intake.metrics.taken(taken, 1);
    }
    Ok(())
}

/// What a complaint is about.
enum Meant {
    /// Nothing that is in the journal.
    Unknown,
    /// Any of several subscriptions' events.
    Several,
    One(Seq, DeliveryState),
}

/// Parks the events that Lago complains about; most count as delivered, because Lago has answered 200 to them.
async fn park(
    intake: &Intake,
    webhook: &CloudEvent<'_>,
    complaints: Vec<Complaint>,
    now: Timestamp,
) -> Result<(), JournalError> {
    let (lost, known): (Vec<Complaint>, Vec<Complaint>) =
        complaints.into_iter().partition(|complaint| complaint.reason.is_some());
    intake.metrics.complained(Complained::Known, known.len() as u64);
    // The same complaint may come twice at once, and its event is taken out of the ledger once.
    let _alone = intake.books.taking_back.lock().await;
    for lost in lost.chunks(AT_ONCE) {
        let known = async |lost: &Complaint| {
            let mut known = intake.journal.known(SOURCE, &lost.transaction_id).await?;
            known.extend(intake.journal.known(rollup::SOURCE, &lost.transaction_id).await?);
            Ok::<_, JournalError>(known)
        };
        let positions = try_join_all(lost.iter().map(known)).await?;
        let asked: Vec<(Complaint, Vec<Seq>)> = lost
            .iter()
            .zip(positions)
            .map(|(lost, known)| (lost.clone(), known.into_iter().map(|(_, seq)| seq).take(LOOKED_AT).collect()))
            .collect();
        let read = intake.journal.browse(move |reader| {
            let meant = asked.into_iter().map(|(complaint, seqs)| Ok((meant(reader, &complaint, &seqs)?, complaint)));
            meant.collect::<Result<Vec<_>, JournalError>>()
        });
        let tried = park_those(intake, webhook, read.await?, now).await?;
        // One that Lago has confirmed meanwhile did not see its complaint.
        let read = intake.journal.browse(move |reader| {
            let meant = tried.into_iter().map(|(complaint, seq)| Ok((meant(reader, &complaint, &[seq])?, complaint)));
            meant.collect::<Result<Vec<_>, JournalError>>()
        });
        let mut meanwhile = read.await?;
        meanwhile.retain(|(meant, _)| matches!(meant, Meant::One(_, DeliveryState::Delivered)));
        park_those(intake, webhook, meanwhile, now).await?;
    }
    Ok(())
}

fn meant(reader: &mut dyn Reader, complaint: &Complaint, seqs: &[Seq]) -> Result<Meant, JournalError> {
    let mut meant = Meant::Unknown;
    let mut is_gone = false;
    for seq in seqs {
        let found = match reader.found(*seq) {
            Ok(Some(found)) => found,
            // Removed, or damaged: it cannot be parked, and whose it was is not known.
            Ok(None) | Err(JournalError::Damaged { .. }) => {
                is_gone = true;
                continue;
            }
            Err(error) => return Err(error),
        };
        let head = &found.event.head;
        let subscription = complaint.external_subscription_id.as_ref();
        let is_it = [SOURCE, rollup::SOURCE].contains(&head.source.as_str())
            && head.event_type == READY
            && head.key == complaint.transaction_id
            && subscription.is_none_or(|subscription| head.scope.as_ref() == Some(subscription));
        let Some(delivery) = found.deliveries.get(SINK).filter(|_| is_it) else { continue };
        meant = match meant {
            Meant::Unknown => Meant::One(*seq, delivery.state),
            Meant::Several | Meant::One(..) => Meant::Several,
        };
    }
    if is_gone && complaint.external_subscription_id.is_none() && matches!(meant, Meant::One(..)) {
        meant = Meant::Several;
    }
    Ok(meant)
}

/// Gives those whose events are being tried, or may be by now: they are parked when Lago says that it has them.
async fn park_those(
    intake: &Intake,
    webhook: &CloudEvent<'_>,
    meant: Vec<(Meant, Complaint)>,
    now: Timestamp,
) -> Result<Vec<(Complaint, Seq)>, JournalError> {
    let mut reasons: BTreeMap<String, Vec<Seq>> = BTreeMap::new();
    let (mut ambiguous, mut confirmed, mut tried) = (Vec::new(), Vec::new(), Vec::new());
    let (mut notes, mut unknown): (Vec<Action>, Vec<String>) = (Vec::new(), Vec::new());
    for (meant, complaint) in meant {
        let what = match meant {
            Meant::Unknown => {
                unknown.push(complaint.transaction_id);
                Complained::Unknown
            }
            Meant::Several => {
                ambiguous.push(complaint.transaction_id);
                Complained::Ambiguous
            }
            Meant::One(seq, state @ (DeliveryState::Delivered | DeliveryState::Pending)) => {
                match state {
                    DeliveryState::Delivered => confirmed.push(seq),
                    // Lago's 200 is on its way to the journal.
                    _ => intake.books.leave_out(seq),
                }
                let reason = complaint.reason.unwrap_or_default();
                // Who has it sent again is told by Lago that it is there.
                notes.push(intake.books.complaints().note(seq, &reason));
                reasons.entry(complained::sentence(&reason)).or_default().push(seq);
                Complained::Parked
            }
            // Given up, and Lago has it; or this complaint has come before.
            Meant::One(seq, DeliveryState::Retrying | DeliveryState::Parked) => {
                notes.push(intake.books.complaints().note(seq, complaint.reason.as_deref().unwrap_or_default()));
                tried.push((complaint, seq));
                Complained::Unchanged
            }
            Meant::One(..) => Complained::Unchanged,
        };
        // What is parked is counted when it is.
        if what != Complained::Parked {
            intake.metrics.complained(what, 1);
        }
    }
    if !ambiguous.is_empty() {
        tracing::warn!(
            count = ambiguous.len(),
            "Lago cannot use {} events whose transaction ids several subscriptions have: none of them is parked",
            ambiguous.len()
        );
    }
    if !unknown.is_empty() {
        tracing::warn!(
            count = unknown.len(),
            "Lago complains about {} events that are not in the journal, or not any more: the audit trail names them",
            unknown.len()
        );
    }
    if reasons.is_empty() && ambiguous.is_empty() && unknown.is_empty() {
        if !notes.is_empty() {
            intake.journal.act(notes).await?;
        }
        return Ok(tried);
    }
    let by_reason: BTreeMap<&String, usize> = reasons.iter().map(|(reason, seqs)| (reason, seqs.len())).collect();
    // At most as many as are settled in one step.
    let detail = serde_json::json!({ "sink": SINK, "webhook": webhook.id, "events": by_reason, "ambiguous": ambiguous,
        "unknown": unknown });
    let actor = webhook.source.chars().take(ACTOR_CHARS).collect();
    let audit = AuditRecord { at: now, actor, action: "deliveries.park".to_owned(), detail };
    let why = reasons.keys().next().cloned().unwrap_or_default();
    let parks = reasons.into_iter().map(|(reason, seqs)| Action::Park { sink: SINK.to_owned(), seqs, reason });
    let mut actions: Vec<Action> = parks.collect();
    let parks = actions.len();
    // Lago has said after all that it does not count them.
    let read = intake.journal.browse(move |reader| confirmed.into_iter().map(|seq| reader.event(seq)).collect());
    let events: Vec<Option<StoredEvent>> = read.await?;
    let events: Vec<StoredEvent> = events.into_iter().flatten().collect();
    let (taken, remembered) = Books::taken(&events, intake.known.current().catalogue.as_deref());
    actions.extend(remembered);
    actions.extend(notes);
    actions.push(Action::Audit(audit));
    let outcomes = intake.journal.act(actions).await?;
    let changed: u64 = outcomes.iter().take(parks).map(|outcome| outcome.changed).sum();
    intake.metrics.complained(Complained::Parked, changed);
    intake.books.take_back(taken);
    if changed > 0 {
        tracing::error!(
            count = changed, reason = %why, sink = SINK,
            "{changed} events parked as dead letters after Lago had taken them: {why}"
        );
    }
    Ok(tried)
}
