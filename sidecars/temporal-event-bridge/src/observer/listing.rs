//! Asking the server: pages of closed runs, and how one of them ended.

use kit_temporal::api::filter::v1::StartTimeFilter;
use kit_temporal::api::workflow::v1::WorkflowExecutionInfo;
use kit_temporal::api::workflowservice::v1 as ws;
use kit_temporal::{ErrorClass, Temporal, TemporalError, wkt};

use super::event::{Run, rfc3339};
use super::outcome::{Ended, Kind};
use super::sweep::{ServerTime, Window};

/// Whose closed runs are listed, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listing<'a> {
    pub(crate) namespace: &'a str,
    /// A visibility query, or nothing.
    pub(crate) query: &'a str,
    pub(crate) page: u32,
}

impl Listing<'_> {
    /// One page of closed runs, the newest first, and where to go on.
    ///
    /// `ListClosedWorkflowExecutions` works on every visibility store, and its "start time filter" is applied to close
    /// times. It takes no query, so `ListWorkflowExecutions` is asked where there is one.
    ///
    /// Source: temporalio/temporal `service/frontend/workflow_handler.go`, v1.22 to v1.32; tried on 1.29.1 and 1.32.0.
    pub(crate) async fn page(
        &self,
        temporal: &Temporal,
        earliest: ServerTime,
        latest: Option<ServerTime>,
        token: Vec<u8>,
    ) -> Result<(Vec<Run>, Vec<u8>), TemporalError> {
        let page_size = i32::try_from(self.page).unwrap_or(i32::MAX);
        let namespace = self.namespace.to_owned();
        let (rows, token) = if self.query.is_empty() {
            let filter =
                StartTimeFilter { earliest_time: Some(timestamp(earliest)), latest_time: latest.map(timestamp) };
            let request = ws::ListClosedWorkflowExecutionsRequest {
                namespace,
                maximum_page_size: page_size,
                next_page_token: token,
                start_time_filter: Some(filter),
                ..Default::default()
            };
            let answer = temporal.list_closed(request).await?;
            (answer.executions, answer.next_page_token)
        } else {
            let earliest = rfc3339(earliest).unwrap_or_default();
            let mut query = format!("({}) AND CloseTime >= '{earliest}'", self.query);
            if let Some(latest) = latest.and_then(rfc3339) {
                query.push_str(&format!(" AND CloseTime <= '{latest}'"));
            }
            let request = ws::ListWorkflowExecutionsRequest { namespace, page_size, next_page_token: token, query };
            let answer = temporal.list(request).await?;
            (answer.executions, answer.next_page_token)
        };
        Ok((rows.into_iter().map(run_of).collect(), token))
    }

    /// The sweep's page.
    pub(crate) async fn of(
        &self,
        temporal: &Temporal,
        window: Window,
        token: Vec<u8>,
    ) -> Result<(Vec<Run>, Vec<u8>), TemporalError> {
        self.page(temporal, window.earliest, window.latest, token).await
    }

    /// When the newest closed run closed; `None` where nothing has closed, or all of it is forgotten.
    pub(crate) async fn newest(&self, temporal: &Temporal) -> Result<Option<ServerTime>, TemporalError> {
        let (rows, _) = self.page(temporal, ServerTime(0), None, Vec::new()).await?;
        Ok(rows.into_iter().find_map(|run| run.closed))
    }
}

/// What is known of a run that may have ended.
#[derive(Debug)]
pub(crate) enum Looked {
    /// How it ended.
    Ended(Box<(Run, Ended)>),
    /// It has not.
    Open,
    /// The server fails over this run and may not the next time.
    Troubled(Box<(Run, TemporalError)>),
}

/// How a run that is listed as closed ended.
///
/// # Errors
/// The server answers nothing about anything: nothing is known of this run.
pub(crate) async fn look(temporal: &Temporal, namespace: &str, mut run: Run) -> Result<Looked, TemporalError> {
    let close = temporal.close_event(namespace, &run.workflow_id, &run.run_id);
    let description = temporal.describe(namespace, &run.workflow_id, Some(&run.run_id));
    let (close, description) = tokio::join!(close, description);
    match &description {
        Ok(description) => {
            if let Some(info) = &description.workflow_execution_info {
                run.first_run_id = Some(info.first_run_id.clone()).filter(|id| !id.is_empty());
            }
        }
        // The end is told without it.
        Err(error) if is_about_the_run(error) => {}
        Err(error) => return Err(error.clone()),
    }
    let is_gone = matches!(&description, Err(error) if error.class == ErrorClass::NoWorkflow);
    let ended = match close {
        Ok(Some(event)) => Ended::read(event),
        Ok(None) => None,
        // Both are gone, and what the listing says is all that is left.
        Err(error) if error.class == ErrorClass::NoWorkflow && is_gone => Some(Ended::by_status(run.status)),
        Err(error) if is_about_the_run(&error) => return Ok(Looked::Troubled(Box::new((run, error)))),
        Err(error) => return Err(error),
    };
    Ok(ended.map_or(Looked::Open, |ended| Looked::Ended(Box::new((run, ended)))))
}

/// How a run ended, if it has: without `run_id` the newest run of the workflow. Strongly consistent.
///
/// # Errors
/// As [`look`]; also [`ErrorClass::NoWorkflow`], where the server does not know the run, or has forgotten it.
pub(crate) async fn look_closely(
    temporal: &Temporal,
    namespace: &str,
    workflow_id: &str,
    run_id: &str,
) -> Result<Looked, TemporalError> {
    let run_id = (!run_id.is_empty()).then_some(run_id);
    let description = temporal.describe(namespace, workflow_id, run_id).await?;
    let Some(info) = description.workflow_execution_info else { return Ok(Looked::Open) };
    if Kind::of_status(info.status()).is_none() {
        return Ok(Looked::Open);
    }
    look(temporal, namespace, run_of(info)).await
}

/// Whether only this run cannot be read, and others may.
fn is_about_the_run(error: &TemporalError) -> bool {
    matches!(error.class, ErrorClass::NoWorkflow | ErrorClass::Invalid | ErrorClass::Failed | ErrorClass::BusyWorkflow)
}

/// A row of the visibility store, or the like in a description.
fn run_of(info: WorkflowExecutionInfo) -> Run {
    let status = Kind::of_status(info.status());
    let execution = info.execution.unwrap_or_default();
    let first_run_id = Some(info.first_run_id).filter(|id| !id.is_empty());
    Run {
        workflow_id: execution.workflow_id,
        run_id: execution.run_id,
        status,
        first_run_id,
        workflow_type: info.r#type.map(|kind| kind.name).unwrap_or_default(),
        task_queue: info.task_queue,
        started: info.start_time.map(server_time),
        closed: info.close_time.map(server_time),
        parent: info.parent_execution.map(|parent| (parent.workflow_id, parent.run_id)),
        memo: info.memo.map(|memo| memo.fields).unwrap_or_default(),
        search_attributes: info.search_attributes.map(|attributes| attributes.indexed_fields).unwrap_or_default(),
    }
}

fn server_time(at: wkt::Timestamp) -> ServerTime {
    ServerTime(at.seconds.saturating_mul(1_000_000).saturating_add(i64::from(at.nanos) / 1_000))
}

fn timestamp(at: ServerTime) -> wkt::Timestamp {
    let (seconds, micros) = (at.0.div_euclid(1_000_000), at.0.rem_euclid(1_000_000));
    wkt::Timestamp { seconds, nanos: i32::try_from(micros * 1_000).unwrap_or(0) }
}
