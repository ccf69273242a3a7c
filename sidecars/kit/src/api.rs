//! Parts of the admin API, each with its description in OpenAPI. The descriptions are texts beside the code, and a test
//! of each part compares them with what the code says: to put them together from types at every start was a fiftieth of
//! a daemon, for something that nobody may ever ask for.

use axum::Router;
use serde_json::{Map, Value, json};

/// Routes, and what describes them.
#[derive(Clone, Debug, Default)]
pub struct Api {
    /// The routes, below `/api/v1`.
    pub routes: Router,
    /// OpenAPI documents in JSON with their paths, and the schemas that these refer to.
    pub described: Vec<&'static str>,
}

impl Api {
    /// These and those.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        self.described.extend(other.described);
        Self { routes: self.routes.merge(other.routes), described: self.described }
    }
}

/// What the whole is.
#[derive(Clone, Copy, Debug)]
pub struct Title {
    /// The daemon.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// In a sentence or two.
    pub text: &'static str,
}

/// The OpenAPI document, in JSON.
pub(crate) fn document(title: Title, described: &[&str]) -> String {
    let (mut paths, mut schemas) = (Map::new(), Map::new());
    for part in described {
        // A test of each part reads it.
        let mut part: Value = serde_json::from_str(part).unwrap_or_default();
        for (all, own) in [(&mut paths, "/paths"), (&mut schemas, "/components/schemas")] {
            if let Some(Value::Object(own)) = part.pointer_mut(own).map(Value::take) {
                all.extend(own);
            }
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": title.name,
            "description": title.text,
            "version": title.version,
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "paths": paths,
        "components": { "schemas": schemas },
    })
    .to_string()
}

/// Lists the routes of a part once: `part(state)` serves them with the committed document beside them, and a test compares that
/// document with what the same handlers say by their `#[utoipa::path]`. With `OUTRIGGER_WRITE_API=1` the test writes it anew.
///
/// ```text
/// kit::api_routes! { ApiState, "src/api/openapi.json":
///     get "/events" => views::list_events, post "/deliveries/replay" => actions::replay }
/// ```
#[macro_export]
macro_rules! api_routes {
    ($state:ty, $file:literal: $($method:ident $path:literal => $handler:path),+ $(,)?) => {
        fn part(state: $state) -> $crate::api::Api {
            let routes = ::axum::Router::new()$(.route($path, ::axum::routing::$method($handler)))+;
            let described = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/", $file));
            $crate::api::Api { routes: routes.with_state(state), described: vec![described] }
        }

        #[cfg(test)]
        #[test]
        fn the_routes_are_described_as_they_are() {
            let document = ::utoipa_axum::router::OpenApiRouter::<$state>::new()
                $(.routes(::utoipa_axum::routes!($handler)))+
                .into_openapi();
            let document = ::serde_json::to_value(document).expect("a document is JSON");
            let listed = [$(($path, stringify!($method))),+];
            for (path, method) in listed {
                assert!(document["paths"][path].get(method).is_some(), "{method} {path} is what its handler says");
            }
            let described = ::serde_json::json!({ "paths": document["paths"], "components": document["components"] });
            let described = format!("{described:#}\n");
            let file = concat!(env!("CARGO_MANIFEST_DIR"), "/", $file);
            if ::std::env::var_os("OUTRIGGER_WRITE_API").is_some() {
                ::std::fs::write(file, &described).expect("the file can be written");
            } else {
                assert_eq!(described, ::std::fs::read_to_string(file).expect("the document is there"));
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_together() {
        let parts = [
            r#"{"paths": {"/a": {"get": {}}}, "components": {"schemas": {"A": {"type": "string"}}}}"#,
            r#"{"paths": {"/b": {"post": {}}}, "components": {}}"#,
        ];
        let title = Title { name: "probe", version: "1.2.3", text: "A probe." };
        let document: Value = serde_json::from_str(&document(title, &parts)).unwrap_or_default();
        assert_eq!(document["paths"], json!({ "/a": { "get": {} }, "/b": { "post": {} } }));
        assert_eq!(document["components"], json!({ "schemas": { "A": { "type": "string" } } }));
        assert_eq!((&document["info"]["title"], &document["info"]["version"]), (&json!("probe"), &json!("1.2.3")));
    }
}
