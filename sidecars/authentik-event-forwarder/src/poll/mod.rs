//! Reading events from Authentik's API: what a webhook did not bring comes from here (ADR 0021).
//!
//! A look reads the newest page. Where that reaches back to what was read before, all is known. Where it does not, the page
//! that does is searched for, and from there the pages are read towards the newest: events are stored oldest first, and the
//! watermark moves on with each page in the commit that stores it, so that a kill loses no page. Rows move while pages are
//! read; a page counts only when it overlaps with the one before. A page that is refused look after look is read around
//! the row that is to blame.

mod around;
mod page;
mod position;
mod search;
mod turn;
mod walk;
mod window;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kit::admin::Part;
use kit::clock::{SharedClock, Timestamp};
use kit::lifecycle::StopToken;
use kit_authentik::api::{ApiError, AuthentikApi, EventPage, Filter, Version};
use kit_authentik::event::Event;
use kit_journal::{AppendError, Journal};
use tokio::time::Instant;

use crate::admit::Admission;
use crate::metrics::{By, IntakeMetrics, Taken};
use crate::names;
use crate::people::People;
use crate::seen::Seen;
pub(crate) use around::Around;
use around::Edge;
use page::{Page, Row};
use position::{Covered, Position, Progress};
use turn::Turn;
use window::Window;

/// Rows that two pages have in common at most, so that events that came in between make no gap.
const MARGIN: usize = 5;
/// Rows of a page at least: with fewer there are places where no two pages overlap.
const PAGE_AT_LEAST: usize = 16;
/// Pages in a row that bring nothing new before the look begins anew: rows move faster than they are read.
const FRUITLESS: u32 = 8;
/// Seconds after a look that failed, unless Authentik says when.
const AGAIN: [u64; 6] = [1, 1, 2, 5, 15, 30];
/// What is known of users may keep a page waiting so long.
const FOR_PEOPLE: Duration = Duration::from_secs(5);

/// How the poller behaves.
#[derive(Clone, Debug)]
pub(crate) struct PollSettings {
    pub(crate) name: String,
    pub(crate) interval: Duration,
    pub(crate) overlap: Duration,
    pub(crate) since: Option<Timestamp>,
    pub(crate) page_size: usize,
    /// Actions that are wanted, where they are named one by one; none for all.
    pub(crate) actions: Vec<String>,
}

/// Reads events, look after look.
#[derive(Debug)]
pub(crate) struct Poller {
    pub(crate) api: AuthentikApi,
    pub(crate) settings: PollSettings,
    pub(crate) journal: Journal,
    pub(crate) clock: SharedClock,
    pub(crate) admission: Arc<Admission>,
    pub(crate) people: People,
    pub(crate) seen: Arc<Seen>,
    pub(crate) metrics: IntakeMetrics,
    pub(crate) ready: Part,
    /// Until when the last look has read everything, while this process runs.
    pub(crate) covered: Option<Covered>,
    /// That Authentik's clock was ahead has been said: where only one of several servers is, it is found again and again.
    pub(crate) clock_said: bool,
    pub(crate) around: Around,
}

/// Why a look ended early.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error("events read from Authentik cannot be stored")]
    Journal(#[from] AppendError),
    #[error("the journal cannot be read")]
    Unreadable(#[source] kit_journal::JournalError),
    #[error(
        "how far events have been read cannot be understood (value {0} of the journal): another version has written it, or \
         it is damaged; run the version that wrote it, or restore the journal from a backup"
    )]
    BadProgress(String),
    #[error("rows move faster than they are read")]
    Unsteady,
}

impl LookError {
    /// Whether it may be another Authentik that answers next, such as one that was upgraded.
    fn is_of_another_session(&self) -> bool {
        // These have just changed how it is asked.
        !matches!(self, Self::Api(ApiError::TooLarge(_) | ApiError::Status(400)))
    }

    /// What Authentik says about when to come again.
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Api(ApiError::Starting { retry_after, .. } | ApiError::Throttled { retry_after }) => *retry_after,
            _ => None,
        }
    }
}

/// What is known of this Authentik while it answers.
#[derive(Debug)]
struct Session {
    filter: Filter,
    /// Rows of a page at most: this version's limit, or fewer where rows are large.
    most: usize,
    note: Option<String>,
}

impl Poller {
    /// Looks for as long as this replica is the one that does; where there is no other, always.
    pub(crate) async fn run(mut self, stop: StopToken) -> Result<(), std::convert::Infallible> {
        let turn = Turn::new(&self.journal, Position::name(&self.settings.name), self.ready.clone());
        while let Some(lease) = turn.wait(&stop).await {
            let mut end = lease.end();
            tokio::select! {
                () = stop.stopped() => {}
                () = end.lost() => {}
                () = self.keep_looking() => {}
            }
            turn.end(lease).await;
        }
        Ok(())
    }

    async fn keep_looking(&mut self) {
        let mut session = None;
        let mut failures = 0;
        let mut said = String::new();
        loop {
            let wait = match self.look(&mut session).await {
                Ok(()) => {
                    if !said.is_empty() {
                        said.clear();
                        tracing::info!("Authentik's events can be read again");
                    }
                    failures = 0;
                    let stepped_over = self.around.end();
                    match stepped_over.as_deref().or(session.as_ref().and_then(|session| session.note.as_deref())) {
                        Some(note) => self.ready.set_ready_but(note),
                        None => self.ready.set_ready(),
                    }
                    self.metrics.polls.succeeded.set(self.clock.now().as_millis() / 1000);
                    // After a long look Authentik has a rest too.
                    self.settings.interval
                }
                Err(error) => {
                    let usual = Duration::from_secs(AGAIN[failures.min(AGAIN.len() - 1)]);
                    failures += 1;
                    // Not before the time that it has named.
                    let least = error.retry_after().unwrap_or(usual.mul_f64(0.8));
                    let wait = least.mul_f64(1.0 + 0.4 * fastrand::f64());
                    let text = kit::error::chain(&error);
                    // Webhooks are taken all the same: ready, and something about it is to be known.
                    self.ready.set_ready_but(&format!("events are only taken from webhooks: {text}"));
                    if text != said {
                        tracing::warn!(error = %text, "Authentik's events cannot be read, trying again: {text}");
                        said = text;
                    }
                    if error.is_of_another_session() {
                        session = None;
                    }
                    wait
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// Learns which Authentik this is.
    async fn meet(&self) -> Result<Session, LookError> {
        let version = self.count(self.api.version().await)?;
        // Only what it has written itself must not come back; a failure is no reason to read nothing.
        if let Ok(account) = self.count(self.api.own_account().await) {
            let is_own = self.admission.rules.is_own(&account);
            self.people.set_own_pk(if is_own { account.pk } else { 0 });
            if !is_own {
                let name = &account.username;
                tracing::warn!(
                    "AUTHENTIK_TOKEN is of {name}, which is no service account: its changes are taken as a person's; use \
                     the token that the blueprint makes"
                );
            }
        }
        let note = (version < Version::OLDEST)
            .then(|| format!("Authentik {version} is older than {}, with which this was tried", Version::OLDEST));
        if let Some(note) = &note {
            tracing::warn!(authentik.version = %version, "{note}");
        }
        tracing::info!(authentik.version = %version, "reading events from Authentik {version}");
        let filter = Filter::at_least(&self.settings.actions, version);
        Ok(Session { filter, most: self.settings.page_size, note })
    }

    /// Reads everything that is new.
    async fn look(&mut self, session: &mut Option<Session>) -> Result<(), LookError> {
        let progress = self.progress().await?;
        let session = match session {
            Some(session) => session,
            None => session.insert(self.meet().await?),
        };
        self.around.begin();
        let asked = Instant::now();
        let far_enough = match progress {
            Progress::Read(position) => Some(position.floor(None, self.settings.overlap)),
            Progress::Started { .. } => None,
        };
        let first = self.first_page(session, far_enough).await?;
        let mut position = match progress {
            Progress::Read(position) => self.timely(position, &first, asked).await?,
            Progress::Started { started } => self.begin(started, session, &first).await?,
        };
        let covered = self.covered.map(|covered| covered.by(first.now, asked));
        let floor = position.floor(covered, self.settings.overlap);
        if first.reaches(floor) {
            let now = first.now;
            self.take(first, floor, &mut position).await?;
            self.covered = Some(Covered { time: now, at: asked });
            return Ok(());
        }
        let mut page = self.oldest_page(session, floor, first.count).await?;
        let mut asked = asked;
        let mut edge = None;
        loop {
            let (is_newest, is_empty, now) = (page.window.page == 1, page.is_empty(), page.now);
            let reached = Edge::of(&page, edge);
            self.take(page, floor, &mut position).await?;
            if is_newest {
                self.covered = Some(Covered { time: now, at: asked });
                return Ok(());
            }
            // Nothing on it: rows were deleted meanwhile. The next look finds where to go on.
            if is_empty {
                return Ok(());
            }
            asked = Instant::now();
            page = self.newer_page(session, floor, reached).await?;
            edge = Some(reached);
        }
    }

    /// How far events have been read. That nothing has been is recorded before anything is asked: what happens while
    /// Authentik cannot answer is to be taken too.
    async fn progress(&self) -> Result<Progress, LookError> {
        let name = Position::name(&self.settings.name);
        let stored = self.journal.read({
            let name = name.clone();
            move |reader| reader.value(&name)
        });
        let Some(stored) = stored.await.map_err(LookError::Unreadable)? else {
            let started = Progress::Started { started: self.clock.now() };
            self.record(Vec::new(), started).await?;
            return Ok(started);
        };
        let progress = Progress::read(&stored).ok_or(LookError::BadProgress(name))?;
        self.show(progress);
        Ok(progress)
    }

    /// The first look ever that was answered.
    async fn begin(&self, started: Timestamp, session: &Session, first: &Page) -> Result<Position, LookError> {
        let mut newest = first.newest().map(|newest| newest.time().min(first.now));
        if session.filter != Filter::None {
            // What is not wanted now has happened before the start all the same: it is not to come when it is wanted one day.
            let any = match self.count(self.api.events(1, 1, &Filter::None).await) {
                Ok(any) => {
                    let now = page::time_there(any.server_time, first.now);
                    page::rows(any.events, now).first().map(|row| row.at.time().min(now))
                }
                Err(_) => Some(started),
            };
            newest = newest.max(any);
        }
        let from_now_on = || Position::from_now_on(started, newest, self.settings.overlap);
        let position = self.settings.since.map_or_else(from_now_on, Position::since);
        tracing::info!(origin = %position.origin, "events of Authentik are taken from {} on", position.origin);
        self.record(Vec::new(), Progress::Read(position)).await?;
        Ok(position)
    }

    /// The position, unless it lies in the future: then Authentik's clock was ahead, and it goes back.
    async fn timely(&mut self, position: Position, first: &Page, asked: Instant) -> Result<Position, LookError> {
        let latest = first.now.max(self.settings.since.unwrap_or_default());
        let timely = position.timely(latest, self.covered.map(|covered| covered.by(latest, asked)));
        if timely.is_corrected {
            let (ahead, back) = (position.watermark, timely.position.watermark);
            if !std::mem::replace(&mut self.clock_said, true) {
                tracing::warn!(
                    "events were read up to {ahead}, which is in the future: Authentik's clock was ahead; reading again from {back}"
                );
            }
            self.record(Vec::new(), Progress::Read(timely.position)).await?;
        }
        Ok(timely.position)
    }

    /// The newest page, with as many rows as this Authentik gives.
    async fn first_page(&mut self, session: &mut Session, floor: Option<Timestamp>) -> Result<Page, LookError> {
        let page = self.page(session, Window::first(session.most), floor).await?;
        if page.has_next && page.len < page.window.size && page.len > 0 {
            session.most = page.len;
            return Ok(Page { window: Window::first(session.most), ..page });
        }
        Ok(page)
    }

    /// The next page towards the newest: one that goes on from the edge, and leaves none out between.
    async fn newer_page(&mut self, session: &mut Session, floor: Timestamp, edge: Edge) -> Result<Page, LookError> {
        let Edge { newest, stepped_over, offset, mut count } = edge;
        // From the older end the row keeps its place while events come.
        let older = count.saturating_sub(offset);
        let mut margin = (session.most / 16).clamp(1, MARGIN);
        for _ in 0..FRUITLESS {
            let window = Window::around(count.saturating_sub(older), margin, session.most);
            let page = self.page(session, window, Some(floor)).await?;
            let overlaps = match newest {
                Some(newest) if stepped_over < margin => page.joins(newest),
                // Behind so many rows that are stepped over it is not seen again; the place has to do.
                _ => page.count <= older + window.start() + window.size,
            };
            let is_newer =
                page.newest().is_some_and(|other| newest.is_none_or(|newest| other.created > newest.created));
            let goes_on = is_newer || window.start() + older < page.count;
            if overlaps && (goes_on || window.page == 1) {
                return Ok(page);
            }
            if page.count == count && !overlaps {
                margin *= 2;
            }
            count = page.count;
        }
        Err(LookError::Unsteady)
    }

    async fn page(
        &mut self,
        session: &mut Session,
        window: Window,
        floor: Option<Timestamp>,
    ) -> Result<Page, LookError> {
        let now = self.clock.now();
        let answer = self.api.events(window.page, window.size, &session.filter).await;
        let answer = match self.count(answer) {
            Ok(answer) => answer,
            // Past the end, which has come nearer meanwhile.
            Err(ApiError::NotFound) if window.page > 1 => {
                return Ok(Page::empty(window, now));
            }
            Err(ApiError::TooLarge(bytes)) if session.most > PAGE_AT_LEAST => {
                session.most = (session.most / 2).max(PAGE_AT_LEAST);
                return Err(ApiError::TooLarge(bytes).into());
            }
            // It does not know an action that is asked for: all are read, and judged here.
            Err(ApiError::Status(400)) if session.filter != Filter::None => {
                session.filter = Filter::None;
                return Err(ApiError::Status(400).into());
            }
            Err(error) => return self.refused(session, window, floor, error).await,
        };
        let EventPage { events, count, has_next, server_time } = answer;
        let now = page::time_there(server_time, now);
        Ok(Page { window, len: events.len(), rows: page::rows(events, now), count, has_next, now, gaps: Vec::new() })
    }

    /// Stores what is new on a page, oldest first, with how far has been read.
    async fn take(&mut self, page: Page, floor: Timestamp, position: &mut Position) -> Result<(), LookError> {
        self.say_gaps(&page.gaps, floor);
        let advanced = page.newest().map_or(*position, |newest| position.advanced(newest.time(), page.now));
        let rows = page.rows.into_iter().rev();
        let new: Vec<Row> = rows.filter(|row| !row.at.is_before(floor) && !self.seen.contains(row.at.pk)).collect();
        self.ask_for_people(&new).await;
        let (mut events, mut about) = (Vec::with_capacity(new.len()), Vec::with_capacity(new.len()));
        for row in &new {
            let event = match Event::read(row.raw.get()) {
                Ok(event) => event,
                Err(error) => {
                    events.push(row.kept(&self.admission));
                    about.push((row.at.pk, Err(error), false));
                    continue;
                }
            };
            let known = self.people.known(&event);
            match self.admission.event(&event, self.people.own_pk(), known.as_deref()) {
                Ok(new) => {
                    let unenriched = known.is_none() && self.people.wants(&event);
                    events.push(new);
                    about.push((event.pk, Ok(event.action), unenriched));
                }
                Err(excluded) => {
                    // Once: it comes again with every look of the overlap.
                    self.seen.add(event.pk);
                    self.metrics.excluded(By::Poll, excluded);
                }
            }
        }
        if events.is_empty() && advanced == *position {
            return Ok(());
        }
        let appended = self.record(events, Progress::Read(advanced)).await?;
        *position = advanced;
        for ((pk, action, unenriched), appended) in about.into_iter().zip(appended) {
            self.seen.add(pk);
            if appended.duplicate {
                self.metrics.taken(By::Poll, Taken::Duplicate);
                continue;
            }
            match action {
                Ok(action) => self.metrics.accepted(By::Poll, &action),
                Err(error) => {
                    self.metrics.taken(By::Poll, Taken::Unreadable);
                    self.metrics.polls.unreadable.inc();
                    tracing::error!(error = %error, "event {pk} of Authentik's API cannot be read, it is kept as it is and parked: {error}");
                }
            }
            if unenriched {
                self.metrics.unenriched.inc();
            }
        }
        Ok(())
    }

    async fn record(
        &self,
        events: Vec<kit_journal::NewEvent>,
        progress: Progress,
    ) -> Result<Vec<kit_journal::Appended>, AppendError> {
        let count = events.len();
        let value = (Position::name(&self.settings.name), progress.to_stored());
        let appended = self.journal.append_recording(events, vec![value]).await.inspect_err(|_| {
            (0..count).for_each(|_| self.metrics.taken(By::Poll, Taken::Unavailable));
        })?;
        self.show(progress);
        Ok(appended)
    }

    fn show(&self, progress: Progress) {
        if let Progress::Read(position) = progress {
            self.metrics.polls.watermark.set(position.watermark.as_millis() / 1000);
        }
    }

    /// Asks for the users of a page of whom nothing is known; events wait for that, but not long.
    async fn ask_for_people(&self, rows: &[Row]) {
        if !self.people.is_on() {
            return;
        }
        let events = rows.iter().filter_map(|row| Event::read(row.raw.get()).ok());
        // All of them first: what is asked for then is newer than every change of this page.
        let events = events.inspect(|event| self.people.notice(event));
        let pks: BTreeSet<i64> = events.filter_map(|event| names::person(&event)).collect();
        let asked = self.people.ask(&self.api, &self.metrics.polls, pks.into_iter());
        match tokio::time::timeout(FOR_PEOPLE, asked).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let error = kit::error::chain(&error);
                tracing::warn!(error = %error, "users cannot be read, their events go without: {error}");
            }
            Err(_) => tracing::warn!("users take too long to read, their events go without"),
        }
    }

    fn count<T>(&self, answer: Result<T, ApiError>) -> Result<T, ApiError> {
        self.metrics.polls.requests.inc();
        if let Err(error) = &answer
            && !matches!(error, ApiError::NotFound)
        {
            self.metrics.polls.failures.inc();
        }
        answer
    }
}
