//! All of routing for a daemon: what is checked before the start, and what runs after it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kit::admin::Readiness;
use kit::api::Api;
use kit::clock::SharedClock;
use kit::config::Problems;
use kit::lifecycle::{Shell, exit};
use kit::run::StartError;
use kit::telemetry::Metrics;
use kit_delivery::start::{configuration, deliver, register};
use kit_delivery::{DeliveryMetrics, DispatcherSettings, SinkStatus};
use kit_journal::Journal;

use crate::built::{Builder, BuiltSink, SinkError, settings};
use crate::config::{RouteSection, Routing};
use crate::jq::{Jq, JqLimits, check_programs};
use crate::metrics::RouteMetrics;
use crate::reload::{Current, Loaded, Look, RoutesFile, Watch, read_file};
use crate::sink::{Intended, RoutedSink};
use crate::table::{Table, programs_of};

/// What routing stands on.
#[derive(Clone, Copy, Debug)]
pub struct Base<'a> {
    /// Where events are.
    pub journal: &'a Journal,
    /// The clock.
    pub clock: &'a SharedClock,
    /// Where metrics go.
    pub metrics: &'a Metrics,
    /// Where the state of the routes file is shown.
    pub readiness: &'a Readiness,
}

/// What a daemon goes on with.
pub struct Routed {
    /// What each sink is doing, by name.
    pub sinks: BTreeMap<String, Arc<Mutex<SinkStatus>>>,
    /// What the admin API shows of it.
    pub api: Api,
}

impl std::fmt::Debug for Routed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Routed").field("sinks", &self.sinks.keys()).finish_non_exhaustive()
    }
}

/// Checks what only reading files and compiling tells: secrets of the sinks, the routes and their programs.
pub(crate) fn check(routing: Routing<'_>, builder: Builder<'_>, problems: &mut Problems) {
    for error in build_sinks(routing, builder).err().into_iter().flatten() {
        problems.add(&error.path, &error.message);
    }
    let (sections, path) = match sections(routing) {
        Ok(sections) => (sections, if routing.routes.file.is_some() { "routes.file" } else { "route" }),
        Err(mistake) => return problems.add("routes.file", &mistake),
    };
    let limits = JqLimits::from(&routing.routes.jq);
    for mistake in
        compile_all(&sections.route, &sections.default_route, &routing.names(), limits).err().into_iter().flatten()
    {
        problems.add(path, &mistake);
    }
}

/// The routes in force: those of the file, or those of the configuration.
pub(crate) fn sections(routing: Routing<'_>) -> Result<RoutesFile, String> {
    match &routing.routes.file {
        Some(path) => read_file(path),
        None => Ok(RoutesFile { default_route: routing.routes.default_route.clone(), route: routing.route.to_vec() }),
    }
}

/// Compiles the routes in force and their programs.
///
/// # Errors
/// Every mistake.
pub fn compile(routing: Routing<'_>) -> Result<Table, Vec<String>> {
    let sections = sections(routing).map_err(|mistake| vec![mistake])?;
    let limits = JqLimits::from(&routing.routes.jq);
    compile_all(&sections.route, &sections.default_route, &routing.names(), limits)
}

/// Compiles routes, and every program of them in a process of its own.
pub(crate) fn compile_all(
    routes: &[RouteSection],
    default: &[String],
    sinks: &[String],
    limits: JqLimits,
) -> Result<Table, Vec<String>> {
    let (table, mut mistakes) = match Table::compile(routes, default, sinks) {
        Ok(table) => (Some(table), Vec::new()),
        Err(mistakes) => (None, mistakes),
    };
    let programs: Vec<(String, &str)> = routes
        .iter()
        .enumerate()
        .flat_map(|(nth, route)| {
            let named = format!("route {} ({})", nth + 1, route.name);
            programs_of(route).map(move |(what, program)| (format!("{named}: {what}"), program))
        })
        .collect();
    let codes: Vec<&str> = programs.iter().map(|(_, program)| *program).collect();
    for ((what, _), checked) in programs.iter().zip(check_programs(limits, &codes)) {
        mistakes.extend(checked.err().map(|mistake| format!("{what}: jq: {mistake}")));
    }
    match table {
        Some(table) if mistakes.is_empty() => Ok(table),
        _ => Err(mistakes),
    }
}

/// Builds the further sinks of the configuration.
///
/// # Errors
/// All settings that cannot be used.
pub fn build_sinks(
    routing: Routing<'_>,
    builder: Builder<'_>,
) -> Result<Vec<(BuiltSink, DispatcherSettings)>, Vec<SinkError>> {
    let mut errors = Vec::new();
    let mut sinks = Vec::new();
    for (name, section) in routing.sinks {
        match builder.build(name, section) {
            Ok(sink) => sinks.push((sink, settings(section))),
            Err(more) => errors.extend(more),
        }
    }
    if errors.is_empty() { Ok(sinks) } else { Err(errors) }
}

/// Makes every sink known to the journal and starts delivering to all of them, as the routes say. `own` are the
/// daemon's own sinks, in the order of [`Routing::own`]. What they do not want of the journal's events is passed by and only
/// counted, whatever the routes say.
///
/// # Errors
/// The configuration cannot be used, or the journal cannot write the sinks down.
pub(crate) async fn start(
    shell: &mut Shell,
    base: Base<'_>,
    builder: Builder<'_>,
    routing: Routing<'_>,
    own: Vec<(BuiltSink, DispatcherSettings)>,
    intended: Intended,
) -> Result<Routed, StartError> {
    let Base { journal, clock, metrics, readiness } = base;
    let all = |texts: Vec<String>| configuration(texts.join("; "));
    let hangups = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup());
    let hangups = hangups
        .map_err(|error| StartError { code: exit::DIED, message: format!("SIGHUP cannot be received: {error}") })?;
    let further =
        build_sinks(routing, builder).map_err(|errors| all(errors.iter().map(ToString::to_string).collect()))?;
    let file = routing.routes.file.as_ref().map(|path| (path.clone(), Look::at(path)));
    let sections = sections(routing).map_err(configuration)?;
    let (names, limits) = (routing.names(), JqLimits::from(&routing.routes.jq));
    // Programs were compiled by the check before the start; one that has changed since fails by itself.
    let table = Table::compile(&sections.route, &sections.default_route, &names).map_err(all)?;
    let jq = Arc::new(Jq::new(limits));
    let current = Current::new(Loaded { table, jq, sections }, clock.now());
    let route_metrics = metrics.with_registry(RouteMetrics::register);
    // A daemon may have sinks of its own beside these.
    let delivery_metrics = metrics.shared(DeliveryMetrics::register);
    route_metrics.prepare(&current.get().table);

    register(journal, &names.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    let mut sinks = BTreeMap::new();
    for (number, (sink, settings)) in own.into_iter().chain(further).enumerate() {
        sink.keep(shell);
        let sink = RoutedSink::new(sink, number, current.clone(), route_metrics.clone()).intended(intended);
        let name = names.get(number).cloned().unwrap_or_default();
        sinks.insert(name, deliver(shell, Arc::new(sink), journal, clock, settings, &delivery_metrics));
    }
    let ready = readiness.part("routes");
    ready.set_ready();
    let watch = Watch {
        current: current.clone(),
        file,
        every: Duration::try_from_secs_f64(routing.routes.look_seconds).unwrap_or(Duration::from_secs(2)),
        sinks: names,
        limits,
        metrics: route_metrics,
        ready,
        clock: Arc::clone(clock),
        hangups,
    };
    shell.spawn("routes", watch.run(shell.stop_token()));
    Ok(Routed { sinks, api: crate::api::api(current, routing.routes.file.clone()) })
}
