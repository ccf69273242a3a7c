//! What is known of the images: what may be mounted where, what may be run, and why.

use serde_json::Value;

use super::Service;

/// What an entrypoint needs that begins as root: it takes its folders over and becomes another user. Binding port 80 is
/// nginx'.
pub(crate) const CAPABILITIES: &[&str] = &["CHOWN", "DAC_OVERRIDE", "FOWNER", "NET_BIND_SERVICE", "SETGID", "SETUID"];

/// An official image.
pub(crate) struct Image {
    /// Its name without the tag.
    pub(crate) name: &'static str,
    /// Where something may be mounted: what ends in `/` and everything below it, else exactly this.
    pub(crate) mounts: &'static [&'static str],
    /// How a command may begin, and where the image has that from. An image without an entry runs its own.
    pub(crate) commands: &'static [(&'static [&'static str], &'static str)],
    /// Keeps data, so that a stop has to be given time.
    pub(crate) keeps_data: bool,
}

const fn image(
    name: &'static str,
    mounts: &'static [&'static str],
    commands: &'static [(&'static [&'static str], &'static str)],
    keeps_data: bool,
) -> Image {
    Image { name, mounts, commands, keeps_data }
}

/// The one-shots that only run a script of ours with the image's own tools.
const OUR_SCRIPT: (&[&str], &str) = (&["bash", "/outrigger/init.sh"], "psql and pg_isready of the image");

/// Every image that may be used.
pub(crate) const IMAGES: &[Image] = &[
    image("pgvector/pgvector", &["/var/lib/postgresql/data", "/outrigger/"], &[OUR_SCRIPT], true),
    image("getlago/postgres-partman", &["/var/lib/postgresql/data"], &[], true),
    image(
        "redis",
        &["/data", "/usr/local/etc/redis/redis.conf"],
        &[(&["redis-server", "/usr/local/etc/redis/redis.conf"], "the image's page: how it is given a configuration")],
        true,
    ),
    image("rabbitmq", &["/var/lib/rabbitmq", "/etc/rabbitmq/"], &[], true),
    image(
        "getlago/api",
        // The key's place is the application's own, from v1.23.0 on: getlago/lago deploy/*.yml mounts it there.
        &["/app/storage", "/app/config/keys/private.pem"],
        &[
            (&["./scripts/migrate.sh"], "getlago/lago docker-compose.yml"),
            (&["./scripts/start.api.sh"], "getlago/lago docker-compose.yml"),
            (&["./scripts/start.worker.sh"], "getlago/lago docker-compose.yml"),
            (&["./scripts/start.clock.sh"], "getlago/lago docker-compose.yml"),
        ],
        false,
    ),
    image("getlago/front", &[], &[], false),
    image("getlago/lago-gotenberg", &[], &[], false),
    image(
        "ghcr.io/goauthentik/server",
        &["/data", "/blueprints/custom", "/blueprints/outrigger/"],
        &[(&["server"], "goauthentik compose.yml"), (&["worker"], "goauthentik compose.yml")],
        false,
    ),
    image("temporalio/server", &["/etc/temporal/config/dynamicconfig/"], &[], false),
    image(
        "temporalio/admin-tools",
        &["/outrigger/"],
        &[
            (&["sh", "/outrigger/schema.sh"], "as samples-server runs its setup-postgres.sh"),
            (&["sh", "/outrigger/namespace.sh"], "as samples-server runs its create-namespace.sh"),
            (&["temporal"], "the CLI that the image is for"),
        ],
        false,
    ),
    image("temporalio/ui", &[], &[], false),
    image(
        "prom/prometheus",
        &["/etc/prometheus/", "/prometheus"],
        &[(&["--config.file=/etc/prometheus/prometheus.yml"], "options; the entrypoint is the server")],
        true,
    ),
    image(
        "prom/alertmanager",
        &["/etc/alertmanager/", "/alertmanager"],
        &[(&["--config.file=/etc/alertmanager/alertmanager.yml"], "options; the entrypoint is the server")],
        false,
    ),
    image("grafana/grafana", &["/etc/grafana/provisioning", "/var/lib/grafana"], &[], false),
    image(
        "grafana/loki",
        &["/etc/loki/", "/loki"],
        &[(&["-config.file=/etc/loki/loki.yml"], "options; the entrypoint is the server")],
        true,
    ),
    image(
        "timberio/vector",
        &["/etc/vector/", "/logs", "/var/lib/vector"],
        &[(&["--config"], "options; the entrypoint is the shipper")],
        false,
    ),
    image("oliver006/redis_exporter", &[], &[], false),
];

/// What is known of a service's image.
pub(crate) fn known(service: &Service<'_>) -> Option<&'static Image> {
    let name = image_name(service.text("image")?).0;
    IMAGES.iter().find(|image| image.name == name)
}

/// The name and the tag or digest of an image: a colon before the last slash is a registry's port.
pub(crate) fn image_name(image: &str) -> (&str, Option<&str>) {
    let from = image.find("${").unwrap_or(image.len());
    let slash = image[..from].rfind('/').map_or(0, |at| at + 1);
    match image[slash..].find(['@', ':']) {
        Some(at) => (&image[..slash + at], Some(&image[slash + at + 1..])),
        None => (image, None),
    }
}

/// Something that is mounted.
pub(crate) struct Mount<'a> {
    pub(crate) source: &'a str,
    pub(crate) target: &'a str,
    pub(crate) read_only: bool,
}

impl Mount<'_> {
    /// A folder or file of the host, and no volume.
    pub(crate) fn is_bind(&self) -> bool {
        self.source.starts_with(['.', '/', '~', '$'])
    }
}

/// The volumes of a service, in the short form; the long form is written with the same three things.
pub(crate) fn mounts<'a>(service: &Service<'a>) -> Vec<Mount<'a>> {
    let volumes = service.get("volumes").and_then(Value::as_array).into_iter().flatten();
    let of = |volume: &'a Value| {
        if let Some(text) = volume.as_str() {
            // A colon within `${…}` belongs to the variable.
            let start = if text.starts_with("${") { text.find('}').unwrap_or(0) } else { 0 };
            let (source, rest) = text[start..]
                .split_once(':')
                .map_or((text, ""), |(source, rest)| (&text[..start + source.len()], rest));
            let (target, mode) = rest.split_once(':').unwrap_or((rest, ""));
            Mount {
                source,
                target: if rest.is_empty() { source } else { target },
                read_only: mode.split(',').any(|m| m == "ro"),
            }
        } else {
            let text = |key: &str| volume[key].as_str().unwrap_or("");
            Mount { source: text("source"), target: text("target"), read_only: volume["read_only"] == true }
        }
    };
    volumes.map(of).collect()
}

/// Secrets that are mounted somewhere else than `/run/secrets`.
pub(crate) fn secret_targets<'a>(service: &Service<'a>) -> Vec<&'a str> {
    let secrets = service.get("secrets").and_then(Value::as_array).into_iter().flatten();
    secrets.filter_map(|secret| secret["target"].as_str()).filter(|target| target.starts_with('/')).collect()
}

/// The names of a service's secrets.
pub(crate) fn secrets<'a>(service: &Service<'a>) -> Vec<&'a str> {
    let secrets = service.get("secrets").and_then(Value::as_array).into_iter().flatten();
    secrets.filter_map(|secret| secret.as_str().or_else(|| secret["source"].as_str())).collect()
}

/// Parts of names that mean a secret.
const SECRET_WORDS: &[&str] =
    &["PASSWORD", "PASS", "PWD", "SECRET", "TOKEN", "KEY", "SALT", "LICENSE", "CREDENTIAL", "AUTH"];

/// Whether a variable of this name holds a secret itself, and not the path of one.
pub(crate) fn is_secret(name: &str) -> bool {
    let parts: Vec<_> = name.split(['_', '.']).filter(|part| !part.is_empty()).collect();
    parts.iter().any(|part| SECRET_WORDS.contains(part)) && parts.last() != Some(&"FILE")
}

/// Says what stands in a service as it is and should not: keys in variables, in URLs, in commands.
pub(crate) fn literal_secrets(service: &Service<'_>) -> Vec<String> {
    let mut found = Vec::new();
    for (name, value) in service.environment() {
        let literal = !value.is_empty() && !value.starts_with("file:///run/secrets/") && !is_variable(&value);
        if is_secret(&name) && literal {
            found.push(format!("{name} has a value of its own: ${{NAME:?…}} from .env, or a file in /run/secrets"));
        }
        if let Some(password) = password_of(&value).filter(|password| !password.is_empty() && !is_variable(password)) {
            found.push(format!(
                "the address in {name} holds a password ({} characters): ${{NAME:?…}} from .env",
                password.len()
            ));
        }
    }
    let words = service.list("command");
    for pair in words.windows(2) {
        let option = pair[0].trim_start_matches('-').to_uppercase();
        if (option == "REQUIREPASS" || is_secret(&option.replace('-', "_"))) && !is_variable(pair[1]) {
            found.push(format!("its command has a value for {}: ${{NAME:?…}} from .env", pair[0]));
        }
    }
    found
}

/// `${NAME}`, `${NAME:?…}` or `${NAME:-}`, and nothing else: a default would be a secret that everybody knows.
fn is_variable(value: &str) -> bool {
    let Some(inner) = value.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')) else { return false };
    let rest = inner.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_');
    !inner.contains("${")
        && (rest.is_empty() || rest == ":-" || rest == "-" || rest.starts_with(":?") || rest.starts_with('?'))
}

/// The password of an address `scheme://user:password@host`.
fn password_of(value: &str) -> Option<&str> {
    let (_, rest) = value.split_once("://")?;
    // A message within `${…:?…}` may hold anything: the authority ends at the last @.
    let (authority, _) = rest.rsplit_once('@')?;
    authority.split_once(':').map(|(_, password)| password)
}
