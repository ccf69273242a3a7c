//! What is installed in compose. Its files give the doctor the variables of everything that they know; which of it is there is
//! only in the add-ons that are on and in the files that are used, and what is not there should not be missed.

use super::settings::Settings;

/// The add-ons, with the ports of their admin listeners.
const SIDECARS: [(&str, u16); 4] = [
    (PROCESSOR, 9081),
    ("lago-usage-tracker", 9082),
    ("authentik-event-forwarder", 9083),
    ("temporal-event-bridge", 9084),
];
/// The add-on that takes Lago's webhooks.
pub(super) const PROCESSOR: &str = "lago-webhook-processor";
/// Add-ons that use Lago's API.
const WITH_KEY: [&str; 2] = ["lago-usage-tracker", "lago-seeder"];

/// The add-ons that are on and the files that are used.
#[derive(Debug)]
pub(super) struct Installed {
    add_ons: Vec<String>,
    files: Vec<String>,
}

impl Installed {
    /// `COMPOSE_PROFILES` and `COMPOSE_FILE`, as the service `outrigger` hands them on; nothing outside of compose.
    pub(super) fn of(settings: &Settings) -> Option<Self> {
        let files = settings.get("OUTRIGGER_COMPOSE_FILE")?;
        let parts = |text: &str| text.split([',', ':']).map(str::trim).map(str::to_owned).collect::<Vec<_>>();
        let name = |path: String| path.rsplit('/').next().map(str::to_owned).unwrap_or_default();
        Some(Self {
            add_ons: parts(settings.get("OUTRIGGER_COMPOSE_PROFILES").unwrap_or_default()),
            files: parts(files).into_iter().map(name).collect(),
        })
    }

    /// Whether an add-on is on.
    pub(super) fn has(&self, add_on: &str) -> bool {
        self.add_ons.iter().any(|own| own == add_on || own == "*")
    }

    fn uses(&self, file: &str) -> bool {
        self.files.iter().any(|own| own == file)
    }

    /// Admin addresses of the sidecars that are on.
    pub(super) fn sidecars(&self) -> Vec<String> {
        let on = SIDECARS.iter().filter(|(name, _)| self.has(name));
        on.map(|(name, port)| format!("http://{name}:{port}")).collect()
    }

    /// Whether an admin address is that of a sidecar that is not on.
    pub(super) fn is_off(&self, address: &str) -> bool {
        let of = |(name, port): &(&str, u16)| format!("http://{name}:{port}") == address.trim_end_matches('/');
        SIDECARS.iter().any(|sidecar| of(sidecar) && !self.has(sidecar.0))
    }

    /// Variables of what is not there.
    pub(super) fn left_out(&self, settings: &Settings) -> Vec<&'static str> {
        let mut names = Vec::new();
        let mut without = |is_there: bool, variables: &[&'static str]| {
            if !is_there {
                names.extend(variables);
            }
        };
        let (has_lago, takes_webhooks) = (self.uses("lago.yml"), self.has(PROCESSOR));
        let needs_key = has_lago || WITH_KEY.iter().any(|add_on| self.has(add_on));
        without(needs_key || takes_webhooks, &["LAGO_API_URL"]);
        without(needs_key, &["LAGO_API_KEY_FILE"]);
        without(has_lago, &["OUTRIGGER_LAGO_WORKER_URL", "LAGO_WEBHOOK_ATTEMPTS"]);
        without(takes_webhooks, &["LAGO_WEBHOOK_SIGNATURE", "LAGO_WEBHOOK_PROCESSOR_CONFIG"]);
        let is_hmac = settings.get("LAGO_WEBHOOK_SIGNATURE") == Some("hmac");
        without(takes_webhooks && !is_hmac, &["LAGO_WEBHOOK_PUBLIC_KEY_FILE"]);
        without(self.uses("infrastructure.yml"), &["REDIS_HOST", "REDIS_PORT", "REDIS_PASSWORD_FILE"]);
        let forwards = self.has("authentik-event-forwarder");
        without(forwards || self.uses("authentik.yml"), &["AUTHENTIK_URL"]);
        // Authentik knows that token by the blueprint that comes with the add-on.
        without(forwards, &["AUTHENTIK_TOKEN_FILE"]);
        let has_temporal = self.uses("temporal.yml") || self.uses("temporal-cloud.yml");
        without(has_temporal || self.has("temporal-event-bridge"), &["TEMPORAL_ADDRESS"]);
        names
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn installed(add_ons: &str, files: &str) -> Installed {
        let known = [("OUTRIGGER_COMPOSE_PROFILES", add_ons), ("OUTRIGGER_COMPOSE_FILE", files)];
        Installed::of(&Settings::of(&known)).unwrap()
    }

    #[test]
    fn what_is_not_installed_is_not_asked() {
        let check = |add_ons: &str, files: &str, absent: &[&str], there: &[&str]| {
            let left_out = installed(add_ons, files).left_out(&Settings::default());
            for name in absent {
                assert!(left_out.contains(name), "{add_ons} {files}: {name} in {left_out:?}");
            }
            for name in there {
                assert!(!left_out.contains(name), "{add_ons} {files}: {name} in {left_out:?}");
            }
        };
        let all = "infrastructure.yml:lago.yml:authentik.yml:temporal.yml:sidecars.yml";
        check("*", all, &[], &["LAGO_API_KEY_FILE", "REDIS_HOST", "AUTHENTIK_TOKEN_FILE", "TEMPORAL_ADDRESS"]);
        check("", "sidecars.yml", &["LAGO_API_URL", "REDIS_HOST", "AUTHENTIK_URL", "TEMPORAL_ADDRESS"], &[]);
        let webhooks = ["LAGO_API_URL", "LAGO_WEBHOOK_PUBLIC_KEY_FILE"];
        check(PROCESSOR, "sidecars.yml", &["LAGO_API_KEY_FILE", "OUTRIGGER_LAGO_WORKER_URL"], &webhooks);
        check("lago-usage-tracker", "sidecars.yml", &["LAGO_WEBHOOK_SIGNATURE"], &["LAGO_API_KEY_FILE"]);
        check("", "/srv/compose/authentik.yml", &["AUTHENTIK_TOKEN_FILE"], &["AUTHENTIK_URL"]);
        check("temporal-event-bridge", "sidecars.yml", &["AUTHENTIK_URL"], &["TEMPORAL_ADDRESS"]);
    }

    #[test]
    fn sidecars_that_are_off_are_not_missed() {
        let own = installed("lago-usage-tracker,lago-seeder", "sidecars.yml");

        assert_eq!(own.sidecars(), ["http://lago-usage-tracker:9082"]);
        assert!(own.is_off("http://lago-webhook-processor:9081") && !own.is_off("http://lago-usage-tracker:9082/"));
        assert!(!own.is_off("http://elsewhere:9081"), "what somebody names is asked");
        assert!(Installed::of(&Settings::default()).is_none(), "nothing is left out elsewhere");
    }
}
