#![allow(clippy::unwrap_used)]
use std::collections::BTreeMap;

use serde::Deserialize;

use super::*;
use crate::secret::Secret;

#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Config {
    log: LogSection,
    gateway: Gateway,
}

/// Where things go.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Gateway {
    /// Base URL.
    url: Option<String>,
    /// The key.
    api_key: Option<Secret>,
    /// Parallel | requests.
    concurrency: usize,
    seconds: f64,
    delays: Vec<f64>,
    names: Vec<String>,
    on: bool,
    headers: BTreeMap<String, String>,
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            url: None,
            api_key: None,
            concurrency: 16,
            seconds: 3.0,
            delays: vec![1.0],
            names: Vec::new(),
            on: true,
            headers: BTreeMap::new(),
        }
    }
}

impl Section for Config {
    fn validate(&self, problems: &mut Problems) {
        self.log.validate("log", problems);
        if self.gateway.url.is_none() {
            problems.add("gateway.url", "must be set");
        }
    }
}

const WELL_KNOWN: [WellKnown; 4] = [
    WellKnown { env: "GATEWAY_URL", path: "gateway.url" },
    WellKnown { env: "API_KEY", path: "gateway.api_key" },
    COMMON_WELL_KNOWN[0],
    COMMON_WELL_KNOWN[1],
];

fn source(env: &[(&str, &str)]) -> Source {
    Source {
        file: None,
        env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        well_known: WELL_KNOWN.to_vec(),
    }
}

fn lines(env: &[(&str, &str)]) -> Vec<String> {
    load::<Config>(&source(env)).unwrap_err().0
}

#[test]
fn texts_are_read_by_the_type_of_the_default() {
    let config: Config = load(&source(&[
        ("GATEWAY_URL", "http://g"),
        ("API_KEY", "007"),
        ("SIDECAR_GATEWAY__CONCURRENCY", "4"),
        ("SIDECAR_GATEWAY__SECONDS", "2"),
        ("SIDECAR_GATEWAY__DELAYS", "1, 2.5,3"),
        ("SIDECAR_GATEWAY__NAMES", "1,two"),
        ("SIDECAR_GATEWAY__ON", "false"),
        ("SIDECAR_GATEWAY__HEADERS__X_KEY", "42"),
        ("LOG_LEVEL", "debug"),
        ("PATH", "/bin"),
        ("SIDECAR_TAG", "1.0"),
    ]))
    .unwrap();
    assert_eq!(config.gateway.api_key.unwrap().expose(), "007", "a key of digits stays a text");
    assert_eq!((config.gateway.concurrency, config.gateway.seconds, config.gateway.on), (4, 2.0, false));
    assert_eq!(config.gateway.delays, [1.0, 2.5, 3.0]);
    assert_eq!(config.gateway.headers["x_key"], "42");
    assert_eq!(config.log.level, "debug");
}

#[test]
fn every_mistake_is_reported_at_once_with_its_variable() {
    let lines = lines(&[
        ("SIDECAR_GATEWAY__CONCURRENCY", "many"),
        ("SIDECAR_GATEWAY__ON", "perhaps"),
        ("SIDECAR_GATEWAY__CONCURENCY", "4"),
        ("SIDECAR_NONSENSE__X", "4"),
        ("LOG_LEVEL", "loud!"),
    ]);
    assert_eq!(lines.len(), 6, "{lines:#?}");
    let has = |text: &str| assert!(lines.iter().any(|line| line.contains(text)), "{text}: {lines:#?}");
    has("SIDECAR_GATEWAY__CONCURRENCY: found string \"many\"");
    has("SIDECAR_GATEWAY__ON: found string \"perhaps\"");
    has("SIDECAR_GATEWAY__CONCURENCY: is not a setting, did you mean SIDECAR_GATEWAY__CONCURRENCY?");
    has("SIDECAR_NONSENSE: is not a setting");
    has("LOG_LEVEL: must be");
    has("GATEWAY_URL: must be set");
}

#[test]
fn secrets_are_never_shown() {
    let directory = tempfile::TempDir::new().unwrap();
    let file = directory.path().join("c.toml");
    std::fs::write(&file, "[gateway]\nurl = 'http://g'\napi_key = 123456789\nheaders = 'topsecret'\n").unwrap();
    let text = load::<Config>(&Source { file: Some(file), ..source(&[]) }).unwrap_err().to_string();
    assert!(text.contains("API_KEY: ") && text.contains("SIDECAR_GATEWAY__HEADERS: "), "{text}");
    assert!(!text.contains("123456789") && !text.contains("topsecret"), "{text}");
}

#[test]
fn a_file_that_is_not_toml_is_named_with_the_place_and_without_its_text() {
    let directory = tempfile::TempDir::new().unwrap();
    let file = directory.path().join("c.toml");
    for text in
        ["[gateway]\napi_key = \"topsecret\n", "[gateway]\napi_key = topsecret\n", "[gateway]\napi_key topsecret"]
    {
        std::fs::write(&file, text).unwrap();
        let lines = load::<Config>(&Source { file: Some(file.clone()), ..source(&[]) }).unwrap_err().0;
        assert!(lines[0].contains("c.toml: line 2"), "{lines:?}");
        assert!(!lines.concat().contains("topsecret"), "{lines:?}");
    }
}

#[test]
fn the_file_is_strict_and_the_environment_wins() {
    let directory = tempfile::TempDir::new().unwrap();
    let file = directory.path().join("c.toml");
    std::fs::write(&file, "[gateway]\nurl = 'http://file'\nconcurrency = 2\n").unwrap();
    let with = |env: &[(&str, &str)]| load::<Config>(&Source { file: Some(file.clone()), ..source(env) });
    assert_eq!(with(&[]).unwrap().gateway.concurrency, 2);
    assert_eq!(with(&[("GATEWAY_URL", "http://env")]).unwrap().gateway.url.unwrap(), "http://env");

    std::fs::write(&file, "[gateway]\nurl = 'http://file'\nnonsense = 2\n").unwrap();
    assert_eq!(with(&[]).unwrap_err().0, ["SIDECAR_GATEWAY__NONSENSE: is not a setting"]);
    std::fs::write(&file, "[gateway\n").unwrap();
    assert!(with(&[]).unwrap_err().0[0].contains("c.toml: line 1"));
    let missing = Source { file: Some("/nonexistent.toml".into()), ..source(&[("GATEWAY_URL", "http://g")]) };
    assert!(load::<Config>(&missing).unwrap_err().0[0].contains("/nonexistent.toml"));
}

#[test]
fn two_names_of_one_setting_must_agree() {
    let env = [("GATEWAY_URL", "http://a"), ("SIDECAR_GATEWAY__URL", "http://b")];
    let lines = lines(&env);
    assert!(lines[0].contains("is set differently from GATEWAY_URL"), "{lines:?}");
    assert!(load::<Config>(&source(&[("GATEWAY_URL", "http://a"), ("SIDECAR_GATEWAY__URL", "http://a")])).is_ok());
}

#[test]
fn a_value_for_a_whole_section_is_a_mistake() {
    let lines = lines(&[("GATEWAY_URL", "http://g"), ("SIDECAR_GATEWAY", "x"), ("SIDECAR_GATEWAY__ON", "true")]);
    assert_eq!(lines, ["SIDECAR_GATEWAY: is a section and not a setting; its settings are SIDECAR_GATEWAY__…"]);
}

#[test]
fn an_empty_variable_counts_as_unset() {
    let config: Config = load(&source(&[("GATEWAY_URL", "http://g"), ("LOG_LEVEL", "")])).unwrap();
    assert_eq!(config.log.level, "info");
    // Compose hands on every variable it names, also those that nobody has set.
    let config: Config = load(&source(&[("GATEWAY_URL", ""), ("SIDECAR_GATEWAY__URL", "http://g")])).unwrap();
    assert_eq!(config.gateway.url.unwrap(), "http://g");
}

#[test]
fn the_reference_names_every_setting() {
    let page = reference::<Config>("probe", &WELL_KNOWN);
    for expected in [
        "| `GATEWAY_URL` | `gateway.url` | text | – | Base URL. |",
        "| `API_KEY` | `gateway.api_key` | secret | – | The key. |",
        "| `SIDECAR_GATEWAY__CONCURRENCY` | `gateway.concurrency` | integer | `16` | Parallel \\| requests. |",
        "## `[log]`",
    ] {
        assert!(page.contains(expected), "{expected}\n{page}");
    }
}

/// A total below the grace would cut off bodies that the other setting allows.
#[test]
fn a_body_may_take_at_least_its_grace_in_all() {
    for (grace, total, expected) in [(20.0, 20.0, None), (20.0, 19.0, Some("must be at least body_timeout_seconds"))] {
        let section =
            ListenSection { body_timeout_seconds: grace, body_total_seconds: total, ..ListenSection::default() };
        let mut problems = Problems::default();

        section.validate("listen", &mut problems);

        let lines = problems.lines(&[]);
        assert_eq!(
            lines.first().map(String::as_str),
            expected.map(|said| format!("SIDECAR_LISTEN__BODY_TOTAL_SECONDS: {said}")).as_deref()
        );
    }
}

/// As where a secret cannot be had: its error says where it was looked for.
#[test]
fn a_variable_is_named_once() {
    let mut problems = Problems::default();
    problems.add("gateway.token_file", "SIDECAR_GATEWAY__TOKEN_FILE: cannot read /nope");
    problems.add("gateway.token", "SIDECAR_GATEWAY__TOKEN_FILE: is another one");
    problems.add("gateway.url", "must be set");
    let expected = [
        "SIDECAR_GATEWAY__TOKEN_FILE: cannot read /nope",
        "SIDECAR_GATEWAY__TOKEN: SIDECAR_GATEWAY__TOKEN_FILE: is another one",
        "SIDECAR_GATEWAY__URL: must be set",
    ];
    assert_eq!(problems.lines(&[]), expected);
}

/// As a daemon has it: sections of several daemons in a group, beside one of its own.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Grouped {
    process: ProcessSections,
    own: OwnSection,
}

/// Its own.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct OwnSection {
    /// A number.
    number: u64,
}

impl Section for Grouped {
    const GROUPS: &'static [&'static str] = &["process"];

    fn validate(&self, problems: &mut Problems) {
        self.process.validate(problems);
    }
}

#[test]
fn the_sections_of_a_group_stand_beside_the_others() {
    let directory = tempfile::TempDir::new().unwrap();
    let file = directory.path().join("c.toml");
    std::fs::write(&file, "[listen]\nmax_connections = 7\n[own]\nnumber = 3\n").unwrap();
    let env = [("SIDECAR_STOP__DRAIN_SECONDS", "2"), ("LOG_LEVEL", "debug")];

    let config: Grouped = load(&Source { file: Some(file), ..source(&env) }).unwrap();

    assert_eq!((config.process.listen.max_connections, config.own.number), (7, 3));
    assert_eq!((config.process.stop.drain_seconds, config.process.log.level.as_str()), (2.0, "debug"));
    let page = reference::<Grouped>("probe", &WELL_KNOWN);
    let sections: Vec<&str> = page.lines().filter(|line| line.starts_with("## ")).collect();
    assert_eq!(sections, ["## `[admin]`", "## `[listen]`", "## `[log]`", "## `[own]`", "## `[stop]`"]);
    assert!(page.contains("\n## `[listen]`\n\nAddresses and limits of the two listeners.\n"), "{page}");
    assert!(page.contains("| `SIDECAR_STOP__DRAIN_SECONDS` | `stop.drain_seconds` | number | `8.0` |"), "{page}");
}

#[test]
fn a_mistake_in_a_group_is_told_with_its_variable_and_the_rest_is_read() {
    let env = [
        ("SIDECAR_LISTEN__MAX_CONNECTIONS", "many"),
        ("SIDECAR_LISTEN__MAX_CONECTIONS", "4"),
        ("SIDECAR_LISTEN__PUBLIC", "nowhere"),
        ("SIDECAR_ADMIN", "x"),
        ("SIDECAR_LISTENS__PUBLIC", "0.0.0.0:1"),
        ("SIDECAR_PROCESS__LISTEN__PUBLIC", "0.0.0.0:1"),
        ("SIDECAR_OWN__NUMBER", "5"),
    ];

    let (config, mut lines) = read::<Grouped>(&source(&env));

    assert_eq!(config.own.number, 5);
    lines.sort();
    let expected = [
        "SIDECAR_ADMIN: is a section and not a setting; its settings are SIDECAR_ADMIN__…",
        "SIDECAR_LISTENS: is not a setting, did you mean SIDECAR_LISTEN?",
        "SIDECAR_LISTEN__MAX_CONECTIONS: is not a setting, did you mean SIDECAR_LISTEN__MAX_CONNECTIONS?",
        "SIDECAR_LISTEN__MAX_CONNECTIONS: found string \"many\", must be usize",
        "SIDECAR_LISTEN__PUBLIC: must be an address and a port, for example 0.0.0.0:8080",
        "SIDECAR_PROCESS: is not a setting",
    ];
    assert_eq!(lines, expected);
}

#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Ruled {
    rule: Vec<Rule>,
}

#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Rule {
    name: String,
    action: Act,
    count: u32,
    limits: Limits,
}

#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Act {
    #[default]
    Start,
    Signal,
}

#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Limits {
    most: u32,
}

impl Section for Ruled {
    fn validate(&self, problems: &mut Problems) {
        for (number, rule) in (1..).zip(&self.rule) {
            if rule.count == 0 {
                problems.add("rule", &format!("rule {number} ({}): count must be set", rule.name));
            }
        }
    }
}

#[test]
fn each_mistake_in_a_list_of_sections_is_told_with_its_element() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("rules.toml");
    let text = r#"
        rule = [
            { name = "a", coutn = 1, action = "strat" },
            { name = "b", action = "signal" },
            { count = "many", limits = { least = 1, most = "x" } },
            { name = "d", count = 4 },
        ]
    "#;
    std::fs::write(&file, text).unwrap();
    let source = Source { file: Some(file), ..source(&[]) };

    let (config, mut lines) = read::<Ruled>(&source);

    lines.sort();
    assert_eq!(
        lines,
        [
            "SIDECAR_RULE: rule 1 (a): action: \"strat\" is not one of start, signal",
            "SIDECAR_RULE: rule 1 (a): coutn is not a setting, did you mean count?",
            "SIDECAR_RULE: rule 2 (b): count must be set",
            "SIDECAR_RULE: rule 3: count: found string \"many\", must be u32",
            "SIDECAR_RULE: rule 3: limits.least is not a setting",
            "SIDECAR_RULE: rule 3: limits.most: found string \"x\", must be u32",
        ]
    );
    assert_eq!(
        config.rule.iter().map(|rule| (rule.count, rule.limits.most)).collect::<Vec<_>>(),
        [(0, 0), (0, 0), (0, 0), (4, 0)]
    );
    assert!(matches!(config.rule[1].action, Act::Signal));
}
