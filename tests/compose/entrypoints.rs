//! What the official images' entrypoints do as root, done with exactly the capabilities that the compose files leave them: on
//! a folder as the service itself leaves it, so at the second start as well.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::process::{Command, Output};

use kit_workbench::scratch::Scratch;

use crate::combinations::skip;
use crate::project::{self, File};

/// A service whose image takes its folder over as root, the file that starts it, and the folder that it keeps to itself.
const TAKING_OVER: [(&str, &str, &str); 4] = [
    // With `appendonly yes`: the entrypoint of redis sets the umask to 0077 (since 6.2) before Redis makes it.
    ("infrastructure.yml", "redis", "appendonlydir"),
    ("infrastructure.yml", "postgres", "base"),
    ("infrastructure.yml", "rabbitmq", "mnesia"),
    ("lago.yml", "lago-postgres", "base"),
];

/// The step that docker-library's entrypoints have in common (docker-library/redis `docker-entrypoint.sh`, postgres
/// `docker_create_db_directories`, rabbitmq `docker-entrypoint.sh`): the folder is taken over, then root gives itself up.
/// `su-exec` and `gosu` do what `setpriv` does here.
const TAKE_OVER: &str = r#"set -e
find . \! -user "$1" -exec chown "$1" '{}' +
exec setpriv --reuid="$1" --regid="$1" --clear-groups touch "$2/written-by-the-service"
"#;

/// Nobody of this machine.
const SERVICE: u32 = 64_999;

fn take_over(folder: &Path, kept: &str, capabilities: &[String]) -> Output {
    let capabilities: String = capabilities.iter().map(|name| format!(",+{}", name.to_lowercase())).collect();
    let mut command = Command::new("setpriv");
    command.arg(format!("--bounding-set=-all{capabilities}")).arg("--inh-caps=-all").arg("--no-new-privs");
    command.args(["sh", "-c", TAKE_OVER, "entrypoint", &SERVICE.to_string(), kept]).current_dir(folder);
    command.output().unwrap()
}

#[test]
fn a_service_starts_again_over_what_it_has_left() {
    if !rustix::process::geteuid().is_root() {
        return skip("only root can give capabilities up; no entrypoint is held against those of its service");
    }
    for (file, service, kept) in TAKING_OVER {
        let file = File::parse(file, &project::read(file)).unwrap();
        let services = file.section("services");
        let given: Vec<String> = services[service]["cap_add"]
            .as_array()
            .unwrap_or(&Vec::new())
            .iter()
            .map(|name| name.as_str().unwrap().to_owned())
            .collect();
        // Below a folder that everybody may pass, as `/` is in a container.
        let scratch = Scratch::new("entrypoint").unwrap();
        fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let data = scratch.file("data");
        fs::create_dir(&data).unwrap();

        let first = {
            fs::create_dir(data.join(kept)).unwrap();
            take_over(&data, kept, &given)
        };
        fs::set_permissions(data.join(kept), fs::Permissions::from_mode(0o700)).unwrap();
        // As `docker cp` or somebody by hand leaves it.
        fs::write(data.join("restored"), "").unwrap();
        chown(data.join("restored"), Some(0), Some(0)).unwrap();
        let second = take_over(&data, kept, &given);

        for (start, output) in [("first", first), ("second", second)] {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "the {start} start of {service} with {given:?} ends: {said}");
        }
    }
}
