//! Where alerts go.

use crate::files;
use crate::tools::{run, run_in};

const CONFIG: &str = "config/alertmanager/alertmanager.yml";

#[test]
fn amtool_takes_the_configuration_and_every_alert_goes_to_the_gateway() {
    let (ok, said) = run("amtool", &["check-config", CONFIG]);
    assert!(ok, "{said}");
    for rule in files::rules() {
        let labels = [format!("alertname={}", rule.name), format!("severity={}", rule.severity.unwrap())];
        let config = format!("--config.file={CONFIG}");
        let arguments = ["config", "routes", "test", &config, &labels[0], &labels[1], "daemon=lago-usage-tracker"];
        let (ok, said) = run_in(outrigger_tests::binaries::repository(), "amtool", &arguments);
        assert!(ok && said.trim() == "gateway", "{labels:?} go to {said}");
    }
}
