//! One connection: made when it is needed, thrown away when it fails, driven by a small runtime of its own so that
//! whoever uses it may block.
//!
//! Nothing of the session is relied on – no prepared statement, no setting, no lock outlives its transaction – so that
//! a pooler in transaction mode may stand between.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

use super::address::Address;
use super::hosts;
use super::tls::Tls;
use crate::error::JournalError;

/// Longer than that no question is waited for.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(15);

/// A parameter and its type.
pub(super) type Param<'a> = (Box<dyn ToSql + Sync + 'a>, Type);

/// One statement with its parameters. In the text `@` stands for the schema: `@events`.
pub(super) struct Statement<'a> {
    pub(super) sql: String,
    pub(super) params: Vec<Param<'a>>,
}

/// A parameter that is sent as this type.
pub(super) fn param<'a>(value: impl ToSql + Sync + 'a, type_: Type) -> Param<'a> {
    (Box::new(value), type_)
}

/// A connection to the journal's database.
pub(super) struct Link {
    pub(super) address: Arc<Address>,
    tls: Tls,
    within: Duration,
    runtime: Option<Runtime>,
    client: Option<(Client, JoinHandle<()>)>,
    /// What was begun in this connection goes on in it, and in no other one.
    bound: bool,
}

impl Link {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// TLS cannot be set up, or the process has no room for a runtime.
    pub(super) fn new(address: Arc<Address>) -> Result<Self, JournalError> {
        Self::answering_within(address, ANSWER_WITHIN)
    }

    /// As [`Link::new`], for questions that are answered sooner: no answer is waited for longer than `within`.
    ///
    /// # Errors
    /// As [`Link::new`].
    pub(super) fn answering_within(address: Arc<Address>, within: Duration) -> Result<Self, JournalError> {
        let tls = Tls::new(&address.trust).map_err(JournalError::Unavailable)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(JournalError::Sync)?;
        Ok(Self { address, tls, within, runtime: Some(runtime), client: None, bound: false })
    }

    /// From here on the connection is not made anew: a transaction is open in it.
    pub(super) fn bind(&mut self) {
        self.bound = true;
    }

    /// Does something with the connection, making one where there is none. One that fails is thrown away.
    ///
    /// # Errors
    /// Those of `work`, or that there is no connection to be had, or that it takes too long.
    pub(super) fn with<T>(
        &mut self,
        work: impl AsyncFnOnce(&Speaker<'_>) -> Result<T, JournalError>,
    ) -> Result<T, JournalError> {
        let within = self.within;
        let mut answer = Err(JournalError::NoAnswer);
        match self.connected() {
            Err(error) => answer = Err(error),
            Ok((runtime, speaker)) => {
                let work = pin!(async { answer = work(&speaker).await });
                wait(runtime, within, work);
            }
        }
        if answer.as_ref().is_err_and(JournalError::is_connection_lost) {
            self.let_go();
        }
        answer
    }

    /// Makes a connection where there is none. Apart from [`Link::with`], of which there is one for each kind of `work`.
    fn connected(&mut self) -> Result<(&Runtime, Speaker<'_>), JournalError> {
        let Self { address, tls, runtime, client, bound, .. } = self;
        let Some(runtime) = runtime else { return Err(JournalError::Unavailable("it has stopped".to_owned())) };
        if client.as_ref().is_none_or(|(client, _)| client.is_closed()) {
            if *bound {
                return Err(JournalError::NoAnswer);
            }
            *client = None;
            let made = runtime.block_on(async {
                let (made, connection) =
                    tokio::time::timeout(ANSWER_WITHIN, hosts::connect(address, tls, ANSWER_WITHIN))
                        .await
                        .unwrap_or(Err(JournalError::NoAnswer))?;
                // What it says is said to whoever asks next.
                Ok::<_, JournalError>((made, tokio::spawn(async move { drop(connection.await) })))
            });
            *client = Some(made?);
        }
        let Some((client, _)) = client else { return Err(JournalError::NoAnswer) };
        Ok((runtime, Speaker { client, schema: &address.schema }))
    }

    /// Closes the connection now, and with it whatever transaction is open in it.
    pub(super) fn let_go(&mut self) {
        if let (Some(runtime), Some((_, task))) = (&self.runtime, self.client.take()) {
            task.abort();
            drop(runtime.block_on(task));
        }
    }

    /// As [`Link::with`], once more where the connection was lost: for what may be done twice. What got no answer in its
    /// time is not asked again: the database may be busy with it still.
    ///
    /// # Errors
    /// As [`Link::with`].
    pub(super) fn again<T>(
        &mut self,
        work: impl AsyncFn(&Speaker<'_>) -> Result<T, JournalError>,
    ) -> Result<T, JournalError> {
        let had = self.client.is_some();
        match self.with(&work) {
            Err(error) if had && error.is_connection_lost() && !matches!(error, JournalError::NoAnswer) => {
                self.with(&work)
            }
            result => result,
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.client = None;
        // May happen on a thread that must not block.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Drives `work` to its end, but no longer than that.
fn wait(runtime: &Runtime, within: Duration, work: Pin<&mut dyn Future<Output = ()>>) {
    drop(runtime.block_on(async { tokio::time::timeout(within, work).await }));
}

/// Says things to the database in the journal's schema.
pub(super) struct Speaker<'a> {
    client: &'a Client,
    schema: &'a str,
}

impl Speaker<'_> {
    fn text(&self, sql: &str) -> String {
        sql.replace('@', &format!("{}.", self.schema))
    }

    /// The schema's name.
    pub(super) fn schema(&self) -> &str {
        self.schema
    }

    /// Statements without parameters or results, in one message.
    pub(super) async fn batch(&self, sql: &str) -> Result<(), JournalError> {
        Ok(self.client.batch_execute(&self.text(sql)).await?)
    }

    /// One statement's rows.
    pub(super) async fn query(&self, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>, JournalError> {
        let params: Vec<(&(dyn ToSql + Sync), Type)> =
            params.iter().map(|(value, type_)| (&**value as &(dyn ToSql + Sync), type_.clone())).collect();
        Ok(self.client.query_typed(&self.text(sql), &params).await?)
    }

    /// The one row of a statement, if there is one.
    pub(super) async fn query_opt(&self, sql: &str, params: &[Param<'_>]) -> Result<Option<Row>, JournalError> {
        Ok(self.query(sql, params).await?.into_iter().next())
    }

    /// One statement; how many rows it changed.
    pub(super) async fn execute(&self, statement: &Statement<'_>) -> Result<u64, JournalError> {
        let params: Vec<(&(dyn ToSql + Sync), Type)> =
            statement.params.iter().map(|(value, type_)| (&**value as &(dyn ToSql + Sync), type_.clone())).collect();
        Ok(self.client.execute_typed(&self.text(&statement.sql), &params).await?)
    }
}

/// Something that is being said, and its answer.
pub(super) type Saying<'a, T> = Pin<Box<dyn Future<Output = Result<T, JournalError>> + 'a>>;

/// Lets all of these begin in their order before it waits for the first: what they say goes out together, and the
/// database answers in that order.
pub(super) async fn together<T>(mut futures: Vec<Saying<'_, T>>) -> Result<Vec<T>, JournalError> {
    let mut results: Vec<Option<Result<T, JournalError>>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        let mut waiting = false;
        for (future, result) in futures.iter_mut().zip(&mut results) {
            if result.is_none() {
                match future.as_mut().poll(cx) {
                    Poll::Ready(ready) => *result = Some(ready),
                    Poll::Pending => waiting = true,
                }
            }
        }
        if waiting { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    results.into_iter().flatten().collect()
}
