//! The connection and the calls.
//!
//! Nothing is connected before it is asked for, and a connection that is lost is made again with the next call, for
//! ever: whether to ask is for the caller. Every call has a limit in time, and none is repeated here.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use temporalio_protos::grpc::health::v1::HealthCheckRequest;
use temporalio_protos::grpc::health::v1::health_check_response::ServingStatus;
use temporalio_protos::grpc::health::v1::health_client::HealthClient;
use temporalio_protos::temporal::api::common::v1::WorkflowExecution;
use temporalio_protos::temporal::api::enums::v1::HistoryEventFilterType;
use temporalio_protos::temporal::api::history::v1::HistoryEvent;
use temporalio_protos::temporal::api::workflowservice::v1 as ws;
use temporalio_protos::temporal::api::workflowservice::v1::workflow_service_client::WorkflowServiceClient;
use tonic::metadata::{Ascii, MetadataValue};

use crate::config::TemporalSection;
use crate::error::TemporalError;
use crate::genuine::Genuine;
use crate::setup::{Authorization, Metadata, parts};
pub use crate::setup::{SetupError, check};

/// Service whose health says that workflows can be started; the empty name says less.
const FRONTEND: &str = "temporal.api.workflowservice.v1.WorkflowService";
/// Largest answer that is read: a page of history is at most about 4 MiB.
const ANSWER_BYTES: usize = 16 << 20;
/// Largest request that a server of gRPC takes by default, and Temporal's does.
///
/// Source: grpc/grpc-go `server.go` `defaultServerMaxReceiveMessageSize`; answered with `RESOURCE_EXHAUSTED`.
const REQUEST_BYTES: usize = 4 << 20;
/// Tells the server that we follow `new_execution_run_id` ourselves. Without it the close event of a run that goes on is
/// rewritten, and the failure is not in it.
///
/// Source: temporalio/temporal `common/headers/version_checker.go`, v1.32.
const FOLLOWS_NEXT_RUN: (&str, &str) = ("supported-features", "follows-next-run-id");

/// A client of one Temporal. Cheap to clone; all clones share one connection.
#[derive(Clone, Debug)]
pub struct Temporal {
    workflows: WorkflowServiceClient<Genuine>,
    health: HealthClient<Genuine>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    namespace: String,
    authorization: Authorization,
    metadata: Metadata,
    timeout: Duration,
    /// For namespaces that may not be asked for theirs.
    retention: Option<Duration>,
}

/// Id of a workflow that nobody starts.
const NOBODY: &str = "outrigger-nobody";

/// Temporal keeps ended workflows no shorter than this.
///
/// Source: temporalio/temporal `system.namespaceMinRetentionLocal`.
pub const LEAST_RETENTION: Duration = Duration::from_secs(3600);

/// How long a namespace keeps what has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// Temporal has said so.
    Told(Duration),
    /// We may not ask, and the configuration says so.
    Configured(Duration),
    /// We may not ask, or Temporal does not say, and nobody else does: it may be [`LEAST_RETENTION`].
    Unknown,
}

impl Retention {
    /// So long at least.
    pub fn at_least(self) -> Duration {
        match self {
            Self::Told(retention) | Self::Configured(retention) => retention,
            Self::Unknown => LEAST_RETENTION,
        }
    }
}

/// Calls a method within the limit, with the client's metadata.
macro_rules! call {
    ($self:ident, $client:expr, $method:ident, $request:expr, $name:literal, $namespace:expr, $more:expr) => {{
        let timeout = $self.shared.timeout;
        let bytes = prost::Message::encoded_len(&$request);
        if bytes > REQUEST_BYTES {
            return Err(TemporalError::too_large($name, bytes, REQUEST_BYTES));
        }
        let request = $self.request($request, timeout, [Some((NAMESPACE, $namespace)), $more]).await?;
        let sent = request.metadata().get(AUTHORIZATION).cloned();
        let mut client = $client.clone();
        match tokio::time::timeout(timeout + GRACE, client.$method(request)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => {
                let error = TemporalError::of($name, &status);
                $self.heed(&error, sent).await;
                Err(error)
            }
            Err(_) => Err(TemporalError::timed_out($name, timeout)),
        }
    }};
    ($self:ident, $method:ident, $request:expr, $name:literal) => {{
        let request = $request;
        let namespace = request.namespace.clone();
        call!($self, $self.workflows, $method, request, $name, &namespace, None)
    }};
}

const AUTHORIZATION: &str = "authorization";
/// Temporal Cloud finds the namespace by it.
const NAMESPACE: &str = "temporal-namespace";
/// The server is told the limit and says so itself when it is over; this is how much later nobody waits any more.
const GRACE: Duration = Duration::from_millis(500);

impl Temporal {
    /// A client as the section says; `place` is where that is in the configuration. Nothing is connected yet.
    ///
    /// Needs the runtime, which its connection will live in.
    ///
    /// # Errors
    /// All settings that cannot be used.
    pub fn new(place: &str, section: &TemporalSection, version: &str) -> Result<Self, Vec<SetupError>> {
        let (endpoint, authorization, metadata) = parts(place, section, version)?;
        if !section.uses_tls() && section.oauth.token_url.is_some() {
            tracing::warn!(
                "access tokens go to Temporal unencrypted: set TEMPORAL_TLS=true, unless the network is your own"
            );
        }
        let channel = Genuine(endpoint.connect_lazy());
        let workflows = WorkflowServiceClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES);
        let shared = Shared {
            namespace: section.namespace.clone(),
            authorization,
            metadata,
            timeout: section.request_timeout(),
            retention: section.retention(),
        };
        Ok(Self { workflows, health: HealthClient::new(channel), shared: Arc::new(shared) })
    }

    /// The namespace of the configuration.
    pub fn namespace(&self) -> &str {
        &self.shared.namespace
    }

    /// Starts a workflow. Asked twice with the same `request_id` it is started once, as long as the run is retained and no
    /// other one has followed it under the same id.
    ///
    /// # Errors
    /// [`TemporalError`], as of every call.
    pub async fn start(
        &self,
        request: ws::StartWorkflowExecutionRequest,
    ) -> Result<ws::StartWorkflowExecutionResponse, TemporalError> {
        call!(self, start_workflow_execution, request, "StartWorkflowExecution")
    }

    /// Signals a workflow that is running. A second signal with the same `request_id` is swallowed by the same run.
    ///
    /// # Errors
    /// [`TemporalError`].
    pub async fn signal(&self, request: ws::SignalWorkflowExecutionRequest) -> Result<(), TemporalError> {
        call!(self, signal_workflow_execution, request, "SignalWorkflowExecution").map(drop)
    }

    /// Signals a workflow, which is started where it is not running. Up to 1.32.0 the same request starts it a second
    /// time when the first run has ended in between.
    ///
    /// # Errors
    /// [`TemporalError`].
    pub async fn signal_with_start(
        &self,
        request: ws::SignalWithStartWorkflowExecutionRequest,
    ) -> Result<ws::SignalWithStartWorkflowExecutionResponse, TemporalError> {
        call!(self, signal_with_start_workflow_execution, request, "SignalWithStartWorkflowExecution")
    }

    /// Asks a workflow to end itself.
    ///
    /// # Errors
    /// [`TemporalError`].
    pub async fn cancel(&self, request: ws::RequestCancelWorkflowExecutionRequest) -> Result<(), TemporalError> {
        call!(self, request_cancel_workflow_execution, request, "RequestCancelWorkflowExecution").map(drop)
    }

    /// Ends a workflow.
    ///
    /// # Errors
    /// [`TemporalError`].
    pub async fn terminate(&self, request: ws::TerminateWorkflowExecutionRequest) -> Result<(), TemporalError> {
        call!(self, terminate_workflow_execution, request, "TerminateWorkflowExecution").map(drop)
    }

    /// What a run is doing; without `run_id` the newest one of the workflow. Strongly consistent.
    ///
    /// # Errors
    /// [`TemporalError`].
    pub async fn describe(
        &self,
        namespace: &str,
        workflow_id: &str,
        run_id: Option<&str>,
    ) -> Result<ws::DescribeWorkflowExecutionResponse, TemporalError> {
        let request = ws::DescribeWorkflowExecutionRequest {
            namespace: namespace.to_owned(),
            execution: Some(execution(workflow_id, run_id)),
        };
        call!(self, describe_workflow_execution, request, "DescribeWorkflowExecution")
    }

    /// A page of runs by a query. Eventually consistent.
    ///
    /// # Errors
    /// [`TemporalError`].
    pub async fn list(
        &self,
        request: ws::ListWorkflowExecutionsRequest,
    ) -> Result<ws::ListWorkflowExecutionsResponse, TemporalError> {
        call!(self, list_workflow_executions, request, "ListWorkflowExecutions")
    }

    /// A page of closed runs; its time filter is one of close times, and works on every visibility store.
    ///
    /// # Errors
    /// [`TemporalError`].
    pub async fn list_closed(
        &self,
        request: ws::ListClosedWorkflowExecutionsRequest,
    ) -> Result<ws::ListClosedWorkflowExecutionsResponse, TemporalError> {
        call!(self, list_closed_workflow_executions, request, "ListClosedWorkflowExecutions")
    }

    /// The event that closed a run, as it was written: with `new_execution_run_id` where the chain goes on. `None` while
    /// the run is open.
    ///
    /// # Errors
    /// [`TemporalError`].
    pub async fn close_event(
        &self,
        namespace: &str,
        workflow_id: &str,
        run_id: &str,
    ) -> Result<Option<HistoryEvent>, TemporalError> {
        let request = ws::GetWorkflowExecutionHistoryRequest {
            namespace: namespace.to_owned(),
            execution: Some(execution(workflow_id, Some(run_id))),
            history_event_filter_type: HistoryEventFilterType::CloseEvent as i32,
            skip_archival: true,
            ..Default::default()
        };
        let more = Some(FOLLOWS_NEXT_RUN);
        let answer = call!(
            self,
            self.workflows,
            get_workflow_execution_history,
            request,
            "GetWorkflowExecutionHistory",
            namespace,
            more
        )?;
        let last = answer.history.and_then(|history| history.events.into_iter().next_back());
        Ok(last.filter(is_close))
    }

    /// A page of a run's history, the newest event first.
    ///
    /// # Errors
    /// [`TemporalError`].
    pub async fn history_backwards(
        &self,
        request: ws::GetWorkflowExecutionHistoryReverseRequest,
    ) -> Result<ws::GetWorkflowExecutionHistoryReverseResponse, TemporalError> {
        call!(self, get_workflow_execution_history_reverse, request, "GetWorkflowExecutionHistoryReverse")
    }

    /// Who polls a task queue, and how much waits there.
    ///
    /// # Errors
    /// [`TemporalError`].
    pub async fn describe_task_queue(
        &self,
        request: ws::DescribeTaskQueueRequest,
    ) -> Result<ws::DescribeTaskQueueResponse, TemporalError> {
        call!(self, describe_task_queue, request, "DescribeTaskQueue")
    }

    /// Whether workflows can be started at all; says nothing about any namespace.
    ///
    /// # Errors
    /// [`TemporalError`].
    pub async fn is_serving(&self) -> Result<bool, TemporalError> {
        let request = HealthCheckRequest { service: FRONTEND.to_owned() };
        let answer = call!(self, self.health, check, request, "Health/Check", self.namespace(), None)?;
        Ok(answer.status() == ServingStatus::Serving)
    }

    /// What a namespace is like, its retention among it.
    ///
    /// # Errors
    /// [`TemporalError`]; [`crate::ErrorClass::NoNamespace`] where there is none.
    pub async fn describe_namespace(&self, name: &str) -> Result<ws::DescribeNamespaceResponse, TemporalError> {
        let request = ws::DescribeNamespaceRequest { namespace: name.to_owned(), ..Default::default() };
        call!(self, describe_namespace, request, "DescribeNamespace")
    }

    /// How long a namespace keeps what has ended. Where we may do everything else and not ask for this, the configuration
    /// tells.
    ///
    /// # Errors
    /// [`TemporalError`]; [`crate::ErrorClass::Denied`] only where nothing may be asked with these credentials.
    pub async fn retention(&self, namespace: &str) -> Result<Retention, TemporalError> {
        match self.describe_namespace(namespace).await {
            Ok(answer) => Ok(told(&answer).map_or_else(|| self.retention_untold(), Retention::Told)),
            Err(error) if error.may_not_be_asked() => {
                // Of credentials that are refused altogether nothing is known, neither this.
                match self.describe(namespace, NOBODY, None).await {
                    Err(error) if error.class != crate::ErrorClass::NoWorkflow => Err(error),
                    _ => Ok(self.retention_untold()),
                }
            }
            Err(error) => Err(error),
        }
    }

    fn retention_untold(&self) -> Retention {
        self.shared.retention.map_or(Retention::Unknown, Retention::Configured)
    }

    async fn request<T>(
        &self,
        message: T,
        timeout: Duration,
        more: [Option<(&'static str, &str)>; 2],
    ) -> Result<tonic::Request<T>, TemporalError> {
        let mut request = tonic::Request::new(message);
        request.set_timeout(timeout);
        let metadata = request.metadata_mut();
        for (name, value) in &self.shared.metadata {
            metadata.insert(name.clone(), value.clone());
        }
        let header = match &self.shared.authorization {
            Authorization::Nobody => None,
            Authorization::Key(header) => Some(header.clone()),
            Authorization::Tokens(tokens) => {
                Some(tokens.token().await.map_err(|why| TemporalError::no_credentials(&why))?)
            }
        };
        if let Some(mut header) = header.and_then(|header| MetadataValue::try_from(header.as_bytes()).ok()) {
            header.set_sensitive(true);
            metadata.insert(AUTHORIZATION, header);
        }
        for (name, value) in more.into_iter().flatten() {
            if let Ok(value) = MetadataValue::try_from(value) {
                metadata.insert(name, value);
            }
        }
        Ok(request)
    }

    /// A token that was refused is fetched anew the next time.
    async fn heed(&self, error: &TemporalError, sent: Option<MetadataValue<Ascii>>) {
        let Authorization::Tokens(tokens) = &self.shared.authorization else { return };
        let header = sent.and_then(|sent| HeaderValue::from_bytes(sent.as_bytes()).ok());
        if let Some(header) = header.filter(|_| error.class == crate::ErrorClass::Denied) {
            tokens.forget(&header).await;
        }
    }
}

fn told(namespace: &ws::DescribeNamespaceResponse) -> Option<Duration> {
    let kept = namespace.config.as_ref()?.workflow_execution_retention_ttl.as_ref()?;
    u64::try_from(kept.seconds).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs)
}

/// A run of a workflow, or the newest one.
pub fn execution(workflow_id: &str, run_id: Option<&str>) -> WorkflowExecution {
    WorkflowExecution { workflow_id: workflow_id.to_owned(), run_id: run_id.unwrap_or_default().to_owned() }
}

fn is_close(event: &HistoryEvent) -> bool {
    use temporalio_protos::temporal::api::history::v1::history_event::Attributes;
    matches!(
        event.attributes,
        Some(
            Attributes::WorkflowExecutionCompletedEventAttributes(_)
                | Attributes::WorkflowExecutionFailedEventAttributes(_)
                | Attributes::WorkflowExecutionTimedOutEventAttributes(_)
                | Attributes::WorkflowExecutionCanceledEventAttributes(_)
                | Attributes::WorkflowExecutionTerminatedEventAttributes(_)
                | Attributes::WorkflowExecutionContinuedAsNewEventAttributes(_)
        )
    )
}
