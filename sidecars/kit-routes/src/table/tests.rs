#![allow(clippy::unwrap_used)]

use kit::clock::Timestamp;
use kit_journal::EventId;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::config::WhenSection;

fn event(event_type: &str, body: &str) -> StoredEvent {
    let head = EventHead {
        json: true,
        tenant: Some("t1".to_owned()),
        alias: (event_type == "lago.old").then(|| "lago.new".to_owned()),
        ..EventHead::new(EventId::derive("test", event_type, None), "lago/acme", event_type, "invoice/1", "key")
    };
    StoredEvent { seq: 1, at: Timestamp::from_millis(0), head, body: body.to_owned().into() }
}

fn sinks() -> Vec<String> {
    ["gateway", "audit", "billing"].map(str::to_owned).to_vec()
}

fn route(name: &str, types: &[&str], to: &[&str]) -> RouteSection {
    RouteSection {
        name: name.to_owned(),
        types: types.iter().map(|glob| (*glob).to_owned()).collect(),
        to: to.iter().map(|sink| (*sink).to_owned()).collect(),
        drop: to.is_empty(),
        ..RouteSection::default()
    }
}

fn when(field: &str) -> WhenSection {
    WhenSection { field: field.to_owned(), ..WhenSection::default() }
}

fn table(routes: &[RouteSection], default: &[&str]) -> Table {
    let default: Vec<String> = default.iter().map(|sink| (*sink).to_owned()).collect();
    Table::compile(routes, &default, &sinks()).unwrap()
}

/// The decision at each sink in a letter: Delivered, Filtered, Unrouted, X dropped, ? asks a filter.
fn letters(table: &Table, event: &StoredEvent) -> String {
    (0..3)
        .map(|sink| match table.walk(sink, event, |_| None) {
            Walk::Done(Decision::Deliver { .. }) => 'D',
            Walk::Done(Decision::Filtered) => 'F',
            Walk::Done(Decision::Unrouted) => 'U',
            Walk::Done(Decision::Dropped(_)) => 'X',
            Walk::Asks(_) => '?',
        })
        .collect()
}

#[test]
fn without_routes_everything_goes_everywhere_or_by_the_default_route() {
    assert_eq!(letters(&table(&[], &[]), &event("lago.a", "{}")), "DDD");
    assert_eq!(letters(&table(&[], &["audit"]), &event("lago.a", "{}")), "UDU");
}

#[test]
fn each_route_that_matches_adds_its_sinks_and_the_default_takes_the_rest() {
    let table = table(
        &[route("invoices", &["lago.invoice.*"], &["billing"]), route("all", &["lago.*.created"], &["audit"])],
        &["gateway"],
    );
    for (event_type, expected) in [
        ("lago.invoice.created", "FDD"),
        ("lago.invoice.voided", "FFD"),
        ("lago.fee.created", "FDF"),
        ("lago.fee.updated", "DUU"),
    ] {
        assert_eq!(letters(&table, &event(event_type, "{}")), expected, "{event_type}");
    }
}

#[test]
fn a_drop_takes_what_no_route_before_it_has_matched() {
    let routes = [
        route("keep", &["lago.invoice.created"], &["billing"]),
        route("noise", &["lago.invoice.*"], &[]),
        route("late", &["*"], &["audit"]),
    ];
    let table = table(&routes, &[]);
    assert_eq!(letters(&table, &event("lago.invoice.created", "{}")), "FDD", "the route after the drop adds its sink");
    assert_eq!(letters(&table, &event("lago.invoice.voided", "{}")), "XXX");
    assert_eq!(letters(&table, &event("lago.fee.created", "{}")), "FDF");
}

#[test]
fn the_alias_of_a_type_matches_too() {
    let table = table(&[route("new", &["lago.new"], &["audit"])], &["gateway"]);
    assert_eq!(letters(&table, &event("lago.old", "{}")), "FDF");
    assert_eq!(letters(&table, &event("lago.older", "{}")), "DUU");
}

#[test]
fn conditions_look_at_envelope_and_body() {
    let body = r#"{"invoice":{"status":"paid","cents":100,"fees":[{"code":"a"}],"none":null}}"#;
    let check = |condition: WhenSection, expected: bool| {
        let name = format!("{condition:?}");
        let routes = [RouteSection { when: vec![condition], ..route("r", &[], &["audit"]) }];
        assert_eq!(letters(&table(&routes, &["gateway"]), &event("lago.a", body)) == "FDF", expected, "{name}");
    };
    let equals = |field: &str, value: serde_json::Value| WhenSection { equals: Some(value), ..when(field) };
    check(equals("data.invoice.status", json!("paid")), true);
    check(equals("data.invoice.status", json!("open")), false);
    check(equals("data.invoice.cents", json!(100.0)), true);
    check(equals("data.invoice.fees.0.code", json!("a")), true);
    check(equals("data.invoice.none", json!(null)), true);
    check(equals("tenantid", json!("t1")), true);
    check(equals("source", json!("lago/other")), false);
    check(WhenSection { one_of: Some(vec![json!("open"), json!("paid")]), ..when("data.invoice.status") }, true);
    check(WhenSection { exists: Some(true), ..when("data.invoice.due") }, false);
    check(WhenSection { exists: Some(false), ..when("data.invoice.due") }, true);
    check(WhenSection { exists: Some(false), ..when("typealias") }, true);
    check(WhenSection { not: Some(json!("paid")), ..when("data.invoice.status") }, false);
    check(WhenSection { not: Some(json!("paid")), ..when("data.invoice.due") }, true);
}

#[test]
fn a_body_that_is_not_json_has_no_fields() {
    let mut event = event("lago.a", "\u{1}\u{2}");
    event.head.json = false;
    let routes = [RouteSection {
        when: vec![WhenSection { exists: Some(false), ..when("data") }],
        ..route("binary", &[], &["audit"])
    }];
    assert_eq!(letters(&table(&routes, &["gateway"]), &event), "FDF");
}

#[test]
fn a_filter_is_asked_for_only_where_it_changes_anything() {
    let maybe = RouteSection { filter: Some(".data.x".to_owned()), ..route("maybe", &[], &["audit"]) };
    assert_eq!(letters(&table(std::slice::from_ref(&maybe), &["gateway"]), &event("lago.a", "{}")), "??U");
    let after = [route("sure", &[], &["gateway"]), maybe.clone()];
    assert_eq!(letters(&table(&after, &[]), &event("lago.a", "{}")), "D?F");
    let drops = [maybe, route("noise", &["lago.a"], &[])];
    let table = table(&drops, &["gateway"]);
    assert_eq!(letters(&table, &event("lago.a", "{}")), "???", "it decides between filtered and dropped");

    let told =
        |said: bool| (0..3).map(|sink| table.walk(sink, &event("lago.a", "{}"), |_| Some(said))).collect::<Vec<_>>();
    let audit = Walk::Done(Decision::Deliver { route: Some(0), transform: None });
    assert_eq!(told(true), [Walk::Done(Decision::Filtered), audit, Walk::Done(Decision::Filtered)]);
    assert!(told(false).iter().all(|walk| *walk == Walk::Done(Decision::Dropped(1))));
}

#[test]
fn the_first_route_that_leads_to_a_sink_decides_its_transform() {
    let transform = |code: &str| BTreeMap::from([("audit".to_owned(), code.to_owned())]);
    let routes = [
        RouteSection { transform: transform(".first"), ..route("one", &["lago.a*"], &["audit"]) },
        RouteSection { transform: transform(".second"), ..route("two", &[], &["audit"]) },
    ];
    let table = table(&routes, &[]);
    let by = |event_type: &str| match table.walk(1, &event(event_type, "{}"), |_| None) {
        Walk::Done(Decision::Deliver { transform, .. }) => transform.unwrap().to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!((by("lago.a").as_str(), by("lago.b").as_str()), (".first", ".second"));
}

#[test]
fn every_mistake_is_told_with_its_route() {
    let mut wrong = route("Bad Name", &["lago.{a,b}"], &["nowhere"]);
    wrong.drop = true;
    wrong.transform = BTreeMap::from([("audit".to_owned(), ".".to_owned())]);
    wrong.when = vec![when("data..x"), when("type"), WhenSection { equals: Some(json!([1])), ..when("type") }];
    let mistakes =
        Table::compile(&[route("a", &[], &["audit"]), route("a", &[], &["audit"]), wrong], &["x".to_owned()], &sinks())
            .unwrap_err();
    for expected in [
        "route 2 (a): has the name of another route",
        "route 3 (Bad Name): name must be",
        "either sinks in to, or drop = true",
        "\"nowhere\" is not a sink; there is gateway, audit, billing",
        "transform.audit is for a sink that is not in to",
        "'{' cannot be in a type",
        "condition 1: field \"data..x\"",
        "condition 2: exactly one of",
        "condition 3: values must be",
        "default_route: \"x\" is not a sink",
    ] {
        assert!(mistakes.iter().any(|mistake| mistake.contains(expected)), "{expected}: {mistakes:#?}");
    }
    assert_eq!(mistakes.len(), 10, "{mistakes:#?}");
}

#[test]
fn types_that_senders_invent_are_not_remembered_without_end() {
    let table = table(&[route("r", &["lago.*"], &["audit"])], &[]);
    for n in 0..5_000 {
        assert_eq!(letters(&table, &event(&format!("lago.x{n}"), "{}")), "FDF");
    }
    assert_eq!(table.by_type.read().unwrap().len(), TYPES);
}

/// The same question answered as the documentation says it, without any of the table's shortcuts.
fn by_the_book(routes: &[RouteSection], default: &[&str], event: &StoredEvent, answers: &[bool], sink: &str) -> char {
    let (mut matched, mut led) = (false, false);
    for (nth, route) in routes.iter().enumerate() {
        let globs = route.types.is_empty()
            || route.types.iter().any(|glob| WildMatch::new(glob).matches(&event.head.event_type));
        if !globs || (route.filter.is_some() && !answers[nth]) {
            continue;
        }
        if route.drop {
            if !matched {
                return 'X';
            }
            continue;
        }
        matched = true;
        led |= route.to.iter().any(|name| name == sink);
    }
    match (led, matched) {
        (true, _) => 'D',
        (false, true) => 'F',
        (false, false) if default.is_empty() || default.contains(&sink) => 'D',
        (false, false) => 'F',
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_table_says_what_the_documentation_says(
        shapes in prop::collection::vec((0..4_usize, 0..8_u8, any::<bool>(), any::<bool>()), 0..8),
        default in 0..8_u8,
        event_type in 0..3_usize,
    ) {
        let globs: [&[&str]; 4] = [&[], &["lago.a"], &["lago.b", "lago.c"], &["lago.*"]];
        let names = |bits: u8| -> Vec<&str> {
            ["gateway", "audit", "billing"].into_iter().enumerate().filter(|(n, _)| bits >> n & 1 == 1).map(|(_, name)| name).collect()
        };
        let routes: Vec<RouteSection> = shapes.iter().enumerate().map(|(n, (glob, to, filter, _))| RouteSection {
            filter: filter.then(|| ".".to_owned()),
            ..route(&format!("r{n}"), globs[*glob], &names(*to))
        }).collect();
        let answers: Vec<bool> = shapes.iter().map(|(.., answer)| *answer).collect();
        let default = names(default);
        let table = table(&routes, &default);
        let event = event(["lago.a", "lago.b", "other"][event_type], "{}");
        for (number, sink) in ["gateway", "audit", "billing"].into_iter().enumerate() {
            let found = match table.walk(number, &event, |route| Some(answers[route])) {
                Walk::Done(Decision::Deliver { .. }) => 'D',
                Walk::Done(Decision::Filtered | Decision::Unrouted) => 'F',
                Walk::Done(Decision::Dropped(_)) => 'X',
                Walk::Asks(route) => panic!("route {route} was answered"),
            };
            prop_assert_eq!(found, by_the_book(&routes, &default, &event, &answers, sink), "{} {:?}", sink, routes);
            // What is decided without asking is what is decided after asking.
            if let Walk::Done(early) = table.walk(number, &event, |_| None) {
                prop_assert_eq!(Walk::Done(early), table.walk(number, &event, |route| Some(answers[route])));
            }
        }
    }
}
