//! Each rule refuses a file that breaks it: one good project, and one change at a time.

use std::collections::BTreeSet;

use super::{Project, RULES, lint};
use crate::project::File;

/// A neighbour, a one-shot and a sidecar that keep to everything.
const GOOD: &str = r#"
services:
  temporal:
    image: temporalio/server:${TEMPORAL_VERSION:-1.31.0}
    environment:
      DYNAMIC_CONFIG_FILE_PATH: /etc/temporal/config/dynamicconfig/production.yaml
      POSTGRES_PWD: ${TEMPORAL_DATABASE_PASSWORD:?set it in .env}
      POSTGRES_URL: postgresql://temporal:${TEMPORAL_DATABASE_PASSWORD:?set it in .env}@postgres:5432/temporal
    volumes: ["../config/temporal/production.yaml:/etc/temporal/config/dynamicconfig/production.yaml:ro"]
    networks: [outrigger-internal]
    ports: ["127.0.0.1:7233:7233"]
    depends_on:
      temporal-schema: {condition: service_completed_successfully}
    healthcheck: {test: ["CMD", "nc", "-z", "127.0.0.1", "7233"], interval: 10s, timeout: 5s, retries: 3, start_period: 60s}
    restart: unless-stopped
    security_opt: ["no-new-privileges:true"]
    cap_drop: [ALL]
    cap_add: [CHOWN]
    logging: {options: {max-size: 10m, tag: "{{.Name}}"}}
    mem_limit: 512m
    pids_limit: 256

  temporal-schema:
    image: temporalio/admin-tools:${TEMPORAL_VERSION:-1.31.0}
    command: ["sh", "/outrigger/schema.sh"]
    volumes: ["../config/temporal/schema.sh:/outrigger/schema.sh:ro"]
    networks: [outrigger-internal]
    restart: "no"
    security_opt: ["no-new-privileges:true"]
    cap_drop: [ALL]
    logging: {options: {max-size: 10m, tag: "{{.Name}}"}}
    mem_limit: 128m
    pids_limit: 64

  postgres:
    image: pgvector/pgvector:${POSTGRES_VERSION:-0.8.6-pg16}
    environment: [POSTGRES_PASSWORD_FILE=/run/secrets/postgres-password]
    secrets: [postgres-password]
    volumes: ["postgres-data:/var/lib/postgresql/data"]
    networks: [outrigger-internal]
    healthcheck: {test: ["CMD", "pg_isready"], interval: 10s, timeout: 5s, retries: 3, start_period: 60s}
    stop_grace_period: 60s
    restart: unless-stopped
    security_opt: ["no-new-privileges:true"]
    cap_drop: [ALL]
    logging: {options: {max-size: 10m, tag: "{{.Name}}"}}
    mem_limit: 512m
    pids_limit: 256

  relay:
    image: "${SIDECAR_REGISTRY:-outrigger}/relay:${SIDECAR_TAG:-0.1.0}"
    build: {context: ..}
    pull_policy: never
    profiles: [relay]
    user: "65532:65532"
    read_only: true
    tmpfs: ["/tmp:rw,noexec,nosuid,nodev,size=8m"]
    stop_grace_period: 15s
    environment:
      ADMIN_TOKEN_FILE: /run/secrets/postgres-password
    networks: [outrigger-internal]
    ports: ["${RELAY_ADDRESS:-127.0.0.1:8081}:8081"]
    healthcheck: {test: ["CMD", "/usr/bin/relay", "health"], interval: 10s, timeout: 3s, retries: 3, start_period: 10s}
    restart: unless-stopped
    security_opt: ["no-new-privileges:true"]
    cap_drop: [ALL]
    logging: {options: {max-size: 10m, tag: "{{.Name}}"}}
    mem_limit: 128m
    pids_limit: 64

volumes:
  postgres-data: {}
secrets:
  postgres-password: {file: ./secrets/postgres-password}
networks:
  outrigger-internal: {internal: true}
"#;

const EXAMPLE: &str = "# What they are.\nTEMPORAL_VERSION=1.31.0\nPOSTGRES_VERSION=0.8.6-pg16\nTEMPORAL_DATABASE_PASSWORD=\n\
                       SIDECAR_REGISTRY=outrigger\nSIDECAR_TAG=0.1.0\nRELAY_ADDRESS=127.0.0.1:8081\n";

const GENERATED: &str = "# name kind\npostgres-password hex32\n";

/// The rules that a project breaks, with what they say.
fn refused(file: &str, example: &str, generated: &str) -> Vec<(&'static str, String)> {
    let files = [File::parse("test.yml", file).unwrap()];
    let findings = lint(&Project { files: &files, example, generated });
    findings.into_iter().map(|finding| (finding.rule, finding.to_string())).collect()
}

/// Within a service: what is replaced by what. An empty first part adds a line.
struct Break(&'static str, &'static str, &'static str, &'static str);

const BREAKS: &[Break] = &[
    // All services.
    Break("no-socket", "relay", "", "volumes: [\"/var/run/docker.sock:/var/run/docker.sock:ro\"]"),
    Break("no-socket", "postgres", "volumes: [\"", "volumes: [\"/var/run/docker.sock:/outrigger/engine:ro\", \""),
    Break("no-socket", "temporal-schema", "volumes: [\"", "volumes: [\"/run:/outrigger/run:ro\", \""),
    Break("no-privilege", "temporal", "", "privileged: true"),
    Break("no-privilege", "temporal", "", "network_mode: host"),
    Break("no-privilege", "temporal", "", "pid: host"),
    Break("no-privilege", "relay", "", "devices: [\"/dev/kmsg:/dev/kmsg\"]"),
    Break("no-privilege", "temporal", "cap_add: [CHOWN]", "cap_add: [SYS_ADMIN]"),
    Break("least-privilege", "temporal", "    cap_drop: [ALL]\n", ""),
    Break("least-privilege", "relay", "cap_drop: [ALL]", "cap_drop: [NET_RAW]"),
    Break("least-privilege", "relay", "    security_opt: [\"no-new-privileges:true\"]\n", ""),
    Break("least-privilege", "relay", "", "cap_add: [CHOWN]"),
    Break("logging-limits", "relay", "options: {max-size: 10m, tag: \"{{.Name}}\"}", "driver: json-file"),
    Break("logging-tag", "relay", ", tag: \"{{.Name}}\"", ""),
    Break("logging-tag", "postgres", "{{.Name}}", "{{.ID}}"),
    Break("limits", "temporal", "    mem_limit: 512m\n", ""),
    Break("limits", "relay", "    pids_limit: 64\n", ""),
    Break("restart-policy", "temporal", "restart: unless-stopped", "restart: always"),
    Break("restart-policy", "postgres", "    restart: unless-stopped\n", ""),
    Break("restart-policy", "temporal-schema", "restart: \"no\"", "restart: on-failure"),
    // YAML makes a boolean of it, and an engine then takes it for nothing.
    Break("restart-policy", "temporal-schema", "restart: \"no\"", "restart: false"),
    Break("networks", "temporal", "networks: [outrigger-internal]", "networks: [elsewhere]"),
    Break("networks", "temporal", "    networks: [outrigger-internal]\n", ""),
    Break("secrets", "postgres", "secrets: [postgres-password]", "secrets: [other]"),
    Break("no-literal-secret", "temporal", "${TEMPORAL_DATABASE_PASSWORD:?set it in .env}\n", "hunter2\n"),
    Break(
        "no-literal-secret",
        "temporal",
        "temporal:${TEMPORAL_DATABASE_PASSWORD:?set it in .env}@",
        "temporal:hunter2@",
    ),
    Break("no-literal-secret", "temporal", "PASSWORD:?set it in .env}\n", "PASSWORD:-hunter2}\n"),
    Break(
        "no-literal-secret",
        "postgres",
        "POSTGRES_PASSWORD_FILE=/run/secrets/postgres-password",
        "POSTGRES_PASSWORD=hunter2",
    ),
    Break("no-literal-secret", "temporal-schema", "schema.sh\"]\n", "schema.sh\", \"--password\", \"hunter2\"]\n"),
    // Official services.
    Break("no-build", "temporal", "", "build: {context: .}"),
    Break("pinned-image", "temporal", ":${TEMPORAL_VERSION:-1.31.0}", ":latest"),
    Break("pinned-image", "temporal", ":${TEMPORAL_VERSION:-1.31.0}", ""),
    Break("pinned-image", "temporal", ":${TEMPORAL_VERSION:-1.31.0}", ":1.31.0"),
    Break("pinned-image", "postgres", "POSTGRES_VERSION:-0.8.6-pg16", "POSTGRES_VERSION:-pg16"),
    Break("pinned-image", "postgres", "POSTGRES_VERSION:-0.8.6-pg16", "POSTGRES_VERSION:-latest"),
    Break(
        "no-code-mount",
        "temporal",
        "volumes: [\"",
        "volumes: [\"../config/server:/usr/local/bin/temporal-server:ro\", \"",
    ),
    Break("no-code-mount", "postgres", "volumes: [\"", "volumes: [\"code:/usr/lib/postgresql\", \""),
    Break(
        "no-code-mount",
        "postgres",
        "secrets: [postgres-password]",
        "secrets: [{source: postgres-password, target: /etc/passwd}]",
    ),
    Break("no-code-mount", "temporal-schema", "/schema.sh:ro", "/schema.sh"),
    Break("own-command", "temporal-schema", "[\"sh\", \"/outrigger/schema.sh\"]", "[\"sh\", \"-c\", \"true\"]"),
    Break("own-command", "postgres", "", "command: [\"postgres\", \"-c\", \"fsync=off\"]"),
    Break("own-command", "temporal", "", "entrypoint: [\"sh\"]"),
    Break("own-command", "temporal", "temporalio/server:", "example/server:"),
    Break(
        "health-check",
        "temporal",
        "healthcheck: {test: [\"CMD\", \"nc\", \"-z\", \"127.0.0.1\", \"7233\"]",
        "x: {test: [\"CMD\"]",
    ),
    Break("health-check", "temporal", "test: [\"CMD\", \"nc\", \"-z\", \"127.0.0.1\", \"7233\"]", "test: [\"NONE\"]"),
    Break("health-check", "postgres", ", start_period: 60s", ""),
    Break("health-check", "relay", "[\"CMD\", \"/usr/bin/relay\", \"health\"]", "[\"CMD-SHELL\", \"relay health\"]"),
    Break("loopback-ports", "temporal", "127.0.0.1:7233:7233", "7233:7233"),
    Break("loopback-ports", "temporal", "127.0.0.1:7233:7233", "0.0.0.0:7233:7233"),
    Break("loopback-ports", "relay", ":-127.0.0.1:8081", ":-8081"),
    Break("stop-grace", "postgres", "    stop_grace_period: 60s\n", ""),
    Break(
        "temporal-dynamic-config",
        "temporal",
        "      DYNAMIC_CONFIG_FILE_PATH: /etc/temporal/config/dynamicconfig/production.yaml\n",
        "",
    ),
    Break(
        "temporal-dynamic-config",
        "temporal",
        "PATH: /etc/temporal/config/dynamicconfig/production",
        "PATH: /etc/temporal/config/dynamicconfig/docker",
    ),
    // Sidecars.
    Break("sidecar-user", "relay", "    user: \"65532:65532\"\n", ""),
    Break("sidecar-user", "relay", "65532:65532", "0:0"),
    Break("sidecar-user", "relay", "65532:65532", "nobody:nogroup"),
    Break("sidecar-read-only", "relay", "    read_only: true\n", ""),
    Break("sidecar-tmpfs", "relay", "noexec,", ""),
    Break("sidecar-tmpfs", "relay", ",size=8m", ""),
    Break("sidecar-tmpfs", "relay", "    tmpfs: [\"/tmp:rw,noexec,nosuid,nodev,size=8m\"]\n", ""),
    Break("sidecar-grace", "relay", "    stop_grace_period: 15s\n", ""),
    Break(
        "sidecar-secrets",
        "relay",
        "ADMIN_TOKEN_FILE: /run/secrets/postgres-password",
        "ADMIN_TOKEN: ${TEMPORAL_DATABASE_PASSWORD:?}",
    ),
    Break("sidecar-admin", "relay", "}:8081\"]", "}:8081\", \"127.0.0.1:9081:9081\"]"),
    Break("sidecar-profile", "relay", "    profiles: [relay]\n", ""),
    Break("sidecar-profile", "relay", "profiles: [relay]", "profiles: [all]"),
    Break("sidecar-image", "relay", "    pull_policy: never\n", ""),
    Break("sidecar-image", "relay", "pull_policy: never", "pull_policy: missing"),
    Break("sidecar-order", "relay", "", "depends_on: [postgres]"),
];

#[test]
fn a_good_project_is_left_alone() {
    assert_eq!(refused(GOOD, EXAMPLE, GENERATED), []);
}

#[test]
fn every_rule_refuses_what_breaks_it() {
    let mut shown: BTreeSet<&str> = BTreeSet::new();
    for Break(rule, service, from, to) in BREAKS {
        let start = GOOD.find(&format!("\n  {service}:\n")).unwrap() + format!("\n  {service}:\n").len();
        let rest = &GOOD[start..];
        let end = rest.find("\n\n").unwrap();
        let (body, rest) = rest.split_at(end + 1);
        let changed = if from.is_empty() { format!("    {to}\n{body}") } else { body.replacen(from, to, 1) };
        assert_ne!(changed, body, "{rule}: nothing of {service} is replaced by {to:?}");

        let refused = refused(&format!("{}{changed}{rest}", &GOOD[..start]), EXAMPLE, GENERATED);

        let ours: Vec<_> = refused.iter().filter(|(of, _)| of == rule).collect();
        assert!(!ours.is_empty(), "{rule} does not refuse {to:?} in {service}; found {refused:?}");
        for (_, message) in ours {
            assert!(message.contains("compose/test.yml: ") && message.contains(service), "{message}");
            assert!(!message.contains("hunter2"), "a finding shows the password: {message}");
        }
        shown.insert(rule);
    }
    for (rule, file, example, generated) in PROJECT_BREAKS {
        let refused = refused(&file(), example, generated);
        assert!(refused.iter().any(|(of, _)| of == rule), "{rule} does not refuse; found {refused:?}");
        shown.insert(rule);
    }
    let missing: Vec<_> = RULES.iter().map(|(rule, _)| *rule).filter(|rule| !shown.contains(rule)).collect();
    assert!(missing.is_empty(), "nothing shows that these refuse: {missing:?}");
}

/// What is wrong beyond one service.
type ProjectBreak = (&'static str, fn() -> String, &'static str, &'static str);

const PROJECT_BREAKS: &[ProjectBreak] = &[
    ("networks", || GOOD.replace("internal: true", "internal: false"), EXAMPLE, GENERATED),
    ("secrets", || GOOD.to_owned(), EXAMPLE, "# nothing\n"),
    ("clock", || GOOD.replace("  temporal:\n", "  lago-worker:\n"), EXAMPLE, GENERATED),
    ("explained", || GOOD.to_owned(), "# What they are.\nTEMPORAL_VERSION=1.31.0\n", GENERATED),
    ("explained", || GOOD.to_owned(), "TEMPORAL_VERSION=1.31.0\n", GENERATED),
    ("explained", || GOOD.to_owned(), "# What they are.\nSIDECAR_TAG=0.1.0\nSIDECAR_TAG=0.1.0\n", GENERATED),
    ("used", || GOOD.to_owned(), "# What they are.\nOLD_VERSION=1.0\n", GENERATED),
    ("one-default", || GOOD.replacen("TEMPORAL_VERSION:-1.31.0", "TEMPORAL_VERSION:-1.30.0", 1), EXAMPLE, GENERATED),
];

#[test]
fn an_overlay_is_not_asked_for_what_the_file_under_it_has() {
    let overlay = "services:\n  postgres:\n    networks: [outrigger-internal]\nnetworks:\n  outrigger-internal: {internal: true}\n";
    assert_eq!(refused(overlay, "", GENERATED), []);
}

#[test]
fn a_key_that_stands_twice_is_refused() {
    let error = File::parse("test.yml", "services:\n  a: {}\n  a: {}\n").unwrap_err();
    assert!(error.contains("compose/test.yml") && error.to_lowercase().contains("duplicate"), "{error}");
}
