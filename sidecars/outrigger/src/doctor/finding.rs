//! Everything that `outrigger doctor` looks at and can find.

use crate::finding::findings;

findings! {
    SETTING = Fail "setting" "setting": "a setting of the doctor cannot be used, such as a secret's file that cannot be read"
        => "mend the variable that is named";

    SIDECAR_AWAY = Fail "daemon" "sidecar-away": "a sidecar does not answer on its admin address"
        => "start it, or give its SIDECAR_LISTEN__ADMIN address with --admin (OUTRIGGER_ADMIN, OUTRIGGER_SIDECARS)";
    SIDECAR_OTHER = Fail "daemon" "sidecar-other": "what answers there is no sidecar"
        => "is this a daemon's admin address? SIDECAR_LISTEN__ADMIN, not SIDECAR_LISTEN__PUBLIC";
    TOKEN = Fail "token" "token": "the admin API refuses the token, or there is none"
        => "give --token-file with the file of SIDECAR_ADMIN__TOKEN_FILE";
    NOT_READY_JOURNAL = Fail "ready" "journal-not-ready": "a sidecar cannot write its journal"
        => "make room or restore the disk; the daemon goes on by itself";
    NOT_READY_ROUTES = Fail "ready" "routes-not-ready": "a routes file cannot be read again; the old routes are in force"
        => "see `problem` of GET /api/v1/routes, and try the file with outrigger route test";
    NOT_READY_KEY = Fail "ready" "key-not-ready": "the webhook processor has no key to verify with"
        => "check LAGO_API_URL and LAGO_API_KEY_FILE, or set LAGO_WEBHOOK_PUBLIC_KEY_FILE";
    NOT_READY = Fail "ready" "part-not-ready": "another part of a sidecar is not ready"
        => "look at the daemon's log";
    SINK_PAUSED = Fail "sink" "sink-paused": "a sink is paused"
        => "outrigger sinks resume NAME";
    SINK_CLOSED = Fail "sink" "sink-closed": "a sink does not take events; they wait"
        => "mend the gateway or BRAIN_GATEWAY_URL (of the usage tracker: Lago, LAGO_API_URL or LAGO_API_KEY_FILE); deliveries go on by themselves";
    SINK_STALLED = Fail "sink" "sink-stalled": "so many deliveries of a sink wait for another attempt that nothing new is fetched"
        => "outrigger events list --state retrying, then mend what refuses them or drop the first of each subject";
    SINK_SLOW = Fail "sink" "sink-slow": "the oldest event of a sink waits for longer than the first steps of the retry schedule"
        => "outrigger events list --state retrying shows which; the reason is at outrigger events show ID";
    SINK_UNKNOWN = Fail "sink" "sink-unconfigured": "events wait for a sink that is not configured any more"
        => "configure it again, or give up what is kept for it: outrigger sinks forget NAME";
    SINK_PARKED = Fail "sink" "dead-letters": "there are dead letters"
        => "outrigger dead-letters list, then replay or drop (of the usage tracker: outrigger usage parked, then redrive or drop)";

    LAGO_AWAY = Fail "lago" "lago-away": "Lago does not answer at LAGO_API_URL"
        => "docker-compose ps lago-api; docker-compose logs --tail 50 lago-api; is LAGO_API_URL what this machine reaches?";
    LAGO_UNHEALTHY = Fail "lago" "lago-unhealthy": "Lago's /health says that its database does not answer"
        => "docker-compose ps lago-postgres; docker-compose logs --tail 50 lago-api";
    LAGO_HEALTH_HIDDEN = Warn "lago" "lago-health-hidden": "Lago's API is there, and its /health is not: a proxy lets only /api pass"
        => "let the proxy pass /health too, or set LAGO_API_URL to Lago itself; /api/v1/health does not exist in any version";
    LAGO_OTHER = Fail "lago" "lago-other": "what answers at LAGO_API_URL is not Lago's API"
        => "set LAGO_API_URL to Lago's API (http://lago-api:3000), not to its front end";
    LAGO_FAILS = Fail "lago-key" "lago-fails": "Lago's API answers with an error of its own"
        => "docker-compose logs --tail 50 lago-api; docker-compose ps lago-migrate: has it ended well?";
    LAGO_KEY_REFUSED = Fail "lago-key" "lago-key-refused": "Lago refuses LAGO_API_KEY (401)"
        => "copy the key from Lago (Developers, API keys) into LAGO_API_KEY_FILE and restart the sidecars; Lago v1.16 to v1.19 seeds it only with LAGO_API_KEY beside LAGO_ORG_API_KEY";
    LAGO_KEY_LACKS = Fail "lago-key" "lago-key-lacks-permission": "LAGO_API_KEY lacks a permission in Lago (403)"
        => "in Lago, Developers, API keys: give the key the permission that is named";
    LAGO_CLOCK = Fail "lago-clock" "lago-clock-silent": "what Lago's clock should have done long ago is not done"
        => "docker-compose up -d lago-clock lago-worker; docker-compose logs --tail 50 lago-clock";
    LAGO_WORKER_AWAY = Fail "lago-worker" "lago-worker-away": "Lago's worker does not answer: no webhooks are sent and no events are counted"
        => "docker-compose up -d lago-worker; docker-compose logs --tail 50 lago-worker";
    LAGO_WORKER_UNHEALTHY = Fail "lago-worker" "lago-worker-unhealthy": "Lago's worker says that it is not alive: Redis does not answer it"
        => "docker-compose ps redis; docker-compose restart lago-worker";
    ENDPOINT_MISSING = Fail "webhook-endpoint" "webhook-endpoint-missing": "Lago has no webhook endpoint that leads to the webhook processor"
        => "outrigger lago apply --catalogue config/lago/catalogue.toml, with the endpoint in it; or in Lago: Developers, Webhooks";
    ENDPOINT_PATH = Fail "webhook-endpoint" "webhook-endpoint-path": "the endpoint's path is none that the webhook processor takes: every webhook is answered 404"
        => "register exactly the path that is named, without a slash at the end; where a proxy rewrites it, all is well";
    ENDPOINT_TWICE = Warn "webhook-endpoint" "webhook-endpoint-twice": "several endpoints lead to the webhook processor: Lago sends each of its webhooks to every one of them, and each counts as an event of its own"
        => "keep one: delete the others in Lago, Developers, Webhooks";
    ENDPOINT_ALGORITHM = Fail "webhook-endpoint" "webhook-endpoint-algorithm": "the endpoint's signature is not the one that the webhook processor checks: every webhook is refused with 401"
        => "set SIDECAR_LAGO__SIGNATURE (compose: LAGO_WEBHOOK_SIGNATURE) to that of the endpoint, or the endpoint's signature_algo to it";
    ENDPOINT_NOTHING = Fail "webhook-endpoint" "webhook-endpoint-takes-nothing": "the endpoint's list of event types is empty: nothing is sent to it"
        => "set the endpoint's event_types to [\"*\"], or take them out of the catalogue: outrigger lago apply";
    ATTEMPTS = Warn "webhook-attempts" "webhook-attempts-few": "LAGO_WEBHOOK_ATTEMPTS is so low that Lago gives a webhook up within minutes, and nothing ever sends it again"
        => "set LAGO_WEBHOOK_ATTEMPTS=15 on Lago's worker (a day and a half) and restart it; 3 is its default and lasts 21 seconds";
    RSA_FORM = Fail "rsa-key" "rsa-key-form": "the RSA key is not in a form that Lago takes"
        => "outrigger lago keys --file private.pem --env-file lago.env writes it as Lago wants it";
    RSA_TWO = Fail "rsa-key" "rsa-key-two": "LAGO_RSA_PRIVATE_KEY and the key's file are different keys"
        => "keep one of them: from v1.23.0 on Lago takes the file where it is there";
    RSA_NOT_SERVED = Fail "rsa-key" "rsa-key-not-served": "Lago signs with another key than the one that is configured"
        => "restart Lago's api, worker and clock together, with the same key; docs/runbooks/rotating-secrets.md";
    RSA_NOT_VERIFIED = Fail "rsa-key" "rsa-key-not-verified": "the webhook processor's public key is not the one that Lago serves: every webhook is refused with 401"
        => "put Lago's key into LAGO_WEBHOOK_PUBLIC_KEY_FILE (outrigger lago keys --file private.pem --public-file FILE) and restart the processor";

    POSTGRES_AWAY = Fail "postgres" "postgres-away": "PostgreSQL does not answer at DATABASE_URL"
        => "docker-compose ps postgres; is DATABASE_URL what this machine reaches?";
    POSTGRES_REFUSED = Fail "postgres" "postgres-refused": "PostgreSQL answers and refuses: user, password, database or TLS"
        => "mend DATABASE_URL; compose/up sets the passwords of roles again: docker-compose up postgres-init";
    POSTGRES_READ_ONLY = Fail "postgres" "postgres-read-only": "the PostgreSQL server takes no writes"
        => "name the primary in DATABASE_URL; several hosts with commas between are asked in turn";
    REDIS_AWAY = Fail "redis" "redis-away": "Redis does not answer: Lago sends no webhooks and counts no events"
        => "docker-compose ps redis; docker-compose logs --tail 50 redis";
    REDIS_PASSWORD = Fail "redis" "redis-password": "Redis refuses the password, or wants one"
        => "set REDIS_PASSWORD (or REDIS_PASSWORD_FILE) to what redis-server was started with";
    REDIS_CROWDED = Fail "redis" "redis-crowded": "Redis takes no further connections: maxclients is reached"
        => "restart what leaks connections, or raise maxclients in config/redis/redis.conf; once it lets somebody in, docker-compose exec redis redis-cli CLIENT LIST shows who has them";
    REDIS_OTHER = Fail "redis" "redis-other": "what answers there is not Redis, or not ready"
        => "is REDIS_URL the address of Redis? While it reads its file it says LOADING: wait";
    REDIS_EVICTS = Warn "redis" "redis-evicts": "Redis may evict keys: jobs of Lago, webhooks among them, would vanish unsent"
        => "set maxmemory-policy noeviction in config/redis/redis.conf";
    REDIS_FULL = Fail "redis" "redis-full": "Redis' memory is full, and it refuses writes"
        => "raise maxmemory in config/redis/redis.conf and REDIS_MEMORY in .env; find what grows: docker-compose exec redis redis-cli -n 5 --bigkeys";

    AUTHENTIK_AWAY = Fail "authentik" "authentik-away": "Authentik does not answer at AUTHENTIK_URL"
        => "docker-compose ps authentik-server; docker-compose logs --tail 50 authentik-server";
    AUTHENTIK_NOT_READY = Fail "authentik" "authentik-not-ready": "Authentik is alive and not ready: its database (up to 2025.8 also Redis) does not answer"
        => "docker-compose ps postgres; docker-compose logs --tail 50 authentik-server";
    AUTHENTIK_TOKEN = Fail "authentik" "authentik-token": "Authentik refuses AUTHENTIK_TOKEN"
        => "in Authentik: Directory, Tokens and App passwords; copy the key into AUTHENTIK_TOKEN_FILE";

    TEMPORAL_AWAY = Fail "temporal" "temporal-away": "Temporal does not answer at TEMPORAL_ADDRESS"
        => "docker-compose ps temporal; docker-compose logs --tail 50 temporal: a DYNAMIC_CONFIG_FILE_PATH that names no file keeps it from starting";
    TEMPORAL_REFUSED = Fail "temporal" "temporal-refused": "Temporal refuses us: no credentials, or wrong ones"
        => "set TEMPORAL_API_KEY_FILE, or the client certificate in TEMPORAL_TLS_CLIENT_CERT_PATH and _KEY_PATH";
    TEMPORAL_NOT_SERVING = Fail "temporal" "temporal-not-serving": "Temporal's frontend answers and does not serve: it waits for its database or its other services"
        => "docker-compose logs --tail 50 temporal; docker-compose ps postgres";
    TEMPORAL_NAMESPACE = Fail "temporal" "temporal-namespace": "Temporal has no such namespace"
        => "temporal operator namespace create -n NAME --retention 72h; or mend TEMPORAL_NAMESPACE";
    TEMPORAL_DYNAMIC = Warn "temporal" "temporal-dynamic-config": "Temporal is told to read the dynamic configuration that its image brings: yours is not read, and from 1.30 on the image has none"
        => "set DYNAMIC_CONFIG_FILE_PATH to the file that is mounted, as compose/temporal.yml does; a relative path begins at /etc/temporal";

    NAME = Fail "public-name" "name-unknown": "a public name leads nowhere"
        => "make a DNS record for it (A or AAAA) that leads to this host";
    NAME_AWAY = Fail "public-name" "name-away": "nobody answers at a public name"
        => "docker-compose ps of the proxy; are ports 80 and 443 open?";
    CERTIFICATE_NONE = Fail "public-name" "certificate-none": "no TLS is spoken at a public name"
        => "see the proxy's log; Traefik: entrypoint websecure and tls=true for the router";
    CERTIFICATE_EXPIRED = Fail "public-name" "certificate-expired": "a certificate has expired"
        => "renew it and reload the proxy; Traefik: see its log for acme";
    CERTIFICATE_SOON = Warn "public-name" "certificate-expires-soon": "a certificate expires within 14 days and was not renewed"
        => "renew it: those of Let's Encrypt are renewed 30 days before by themselves, so see the proxy's log for acme";
    CERTIFICATE_NAME = Fail "public-name" "certificate-name": "a certificate is for another name"
        => "is the router's Host rule the public name? A proxy shows its default certificate otherwise";
    CERTIFICATE_TRUST = Fail "public-name" "certificate-untrusted": "nobody who is trusted vouches for a certificate"
        => "serve the whole chain, or trust the authority with --ca-file";

    CLOCK = Fail "clock" "clock-skew": "two clocks differ: receivers refuse signatures that are five minutes off, and usage is billed by timestamps"
        => "set both by NTP: timedatectl set-ntp true";
}

/// What is looked at, what switches it on, and what for.
pub(crate) const CHECKS: &[(&str, &str, &str)] = &[
    (
        "daemon",
        "OUTRIGGER_ADMIN (one sidecar, looked into; http://127.0.0.1:9081 where no sidecar is named), OUTRIGGER_SIDECARS (further ones); in compose by itself those of COMPOSE_PROFILES",
        "`/livez` of each sidecar's admin address",
    ),
    ("ready", "as daemon", "`/readyz`: which part is not ready"),
    ("token", "OUTRIGGER_TOKEN_FILE", "whether the admin API takes the token"),
    ("journal", "OUTRIGGER_TOKEN_FILE", "how many events, how much space"),
    (
        "sink",
        "OUTRIGGER_TOKEN_FILE; of the further ones their metrics",
        "paused, refusing, stalled, slow, dead letters",
    ),
    ("lago", "LAGO_API_URL", "`/health`, told apart from `/api/v1/health`, which does not exist; the version"),
    ("lago-key", "LAGO_API_KEY or LAGO_API_KEY_FILE", "whether Lago takes the key"),
    (
        "lago-clock",
        "as lago-key",
        "what only Lago's clock does: activated subscriptions, finalised and overdue invoices, invoices of periods that have ended. Where there was nothing to do, nothing can be seen, and it says so",
    ),
    (
        "lago-worker",
        "OUTRIGGER_LAGO_WORKER_URL (http://lago-worker:8080)",
        "the worker's own answer; from v1.30.0 on others reach it",
    ),
    (
        "webhook-endpoint",
        "as lago-key; LAGO_WEBHOOK_URL for the exact address; the webhook processor's own variables or LAGO_WEBHOOK_PROCESSOR_CONFIG for its signature",
        "whether an endpoint leads to the webhook processor, with the signature that it checks",
    ),
    ("webhook-attempts", "LAGO_WEBHOOK_ATTEMPTS, as Lago's worker has it", "for how long Lago tries"),
    (
        "rsa-key",
        "OUTRIGGER_LAGO_RSA_KEY_FILE, LAGO_RSA_PRIVATE_KEY, LAGO_WEBHOOK_PUBLIC_KEY_FILE",
        "the form of the key, and whether Lago serves its public half",
    ),
    ("postgres", "DATABASE_URL or DATABASE_URL_FILE", "a log-in, and whether it takes writes"),
    (
        "redis",
        "REDIS_URL, or REDIS_HOST and REDIS_PORT; REDIS_PASSWORD or REDIS_PASSWORD_FILE",
        "`PING`, memory, and whether anything may be evicted",
    ),
    (
        "authentik",
        "AUTHENTIK_URL; AUTHENTIK_TOKEN or AUTHENTIK_TOKEN_FILE",
        "`/-/health/live/` and `/-/health/ready/`; whether the token is taken",
    ),
    (
        "temporal",
        "TEMPORAL_ADDRESS, TEMPORAL_NAMESPACE and what else of TEMPORAL_* a client needs; DYNAMIC_CONFIG_FILE_PATH as Temporal has it",
        "gRPC health of the frontend, whether the namespace is there, and which dynamic configuration is read",
    ),
    (
        "public-name",
        "OUTRIGGER_PUBLIC_URLS, and what is https among LAGO_API_URL, LAGO_WEBHOOK_URL, AUTHENTIK_URL and BRAIN_GATEWAY_URL",
        "DNS, and the certificate: names, trust, days left",
    ),
    ("clock", "with daemon and lago", "the `Date` of what they answer beside this machine's clock"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::State;

    #[test]
    fn every_row_has_a_name_of_its_own_and_a_check_that_is_described() {
        let mut ids: Vec<&str> = TABLE.iter().map(|known| known.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), TABLE.len());
        for known in TABLE {
            let is_described = known.check == "setting" || CHECKS.iter().any(|(check, ..)| *check == known.check);
            assert!(is_described, "{}", known.id);
            assert!(matches!(known.state, State::Fail | State::Warn), "{}", known.id);
        }
    }
}
