//! The admin API's view of the routes.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use kit::api::Api;
use serde::Serialize;
use utoipa::ToSchema;

use crate::reload::Current;

/// The routes in force.
#[derive(Debug, Serialize, ToSchema)]
struct RoutesView {
    /// The file they come from; none where the configuration has them.
    file: Option<String>,
    /// Since when they are in force.
    since: String,
    /// Why the file as it is now is not in force.
    problem: Option<String>,
    /// Sinks that get what no route has matched.
    default_route: Vec<String>,
    /// The routes, in their order.
    routes: Vec<RouteView>,
}

/// One route.
#[derive(Debug, Serialize, ToSchema)]
struct RouteView {
    /// Its name.
    name: String,
    /// Globs of event types; all, when empty.
    types: Vec<String>,
    /// Number of conditions.
    conditions: usize,
    /// Its filter, a jq program.
    filter: Option<String>,
    /// Sinks that get the event.
    to: Vec<String>,
    /// Transforms, jq programs, by sink.
    transform: std::collections::BTreeMap<String, String>,
    /// It gives events up.
    drop: bool,
}

#[derive(Clone, Debug)]
struct RoutesState {
    current: Current,
    file: Arc<Option<PathBuf>>,
}

kit::api_routes! { RoutesState, "src/openapi.json": get "/routes" => show }

pub(crate) fn api(current: Current, file: Option<PathBuf>) -> Api {
    let state = RoutesState { current, file: Arc::new(file) };
    part(state)
}

/// The routes in force.
#[utoipa::path(get, path = "/routes", tag = "routes", responses((status = 200, body = RoutesView)))]
async fn show(State(state): State<RoutesState>) -> Json<RoutesView> {
    let (loaded, news) = (state.current.get(), state.current.news());
    let sinks = loaded.table.sinks();
    let default = match loaded.sections.default_route.as_slice() {
        [] => sinks.to_vec(),
        named => named.to_vec(),
    };
    let routes = loaded.sections.route.iter().map(|route| RouteView {
        name: route.name.clone(),
        types: route.types.clone(),
        conditions: route.when.len(),
        filter: route.filter.clone(),
        to: route.to.clone(),
        transform: route.transform.clone(),
        drop: route.drop,
    });
    Json(RoutesView {
        file: state.file.as_ref().as_ref().map(|path| path.display().to_string()),
        since: news.since.to_string(),
        problem: news.problem,
        default_route: default,
        routes: routes.collect(),
    })
}
