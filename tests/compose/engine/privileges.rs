//! T21: what a container may, as the engine and the kernel say it, and as a shell inside finds it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use outrigger_tests::experiment::{Outcome, Trial};
use rustix::process::Pid;
use serde_json::{Value, json};

use crate::engine::{Engine, TAG, engine, run};
use crate::site::{ALL, PROCESSOR, Site, is_absent};

const MIB: u64 = 1 << 20;

/// What `docker inspect` and `/proc` say of every sidecar.
pub(crate) async fn containers_are_unprivileged_as_inspected(_trial: Trial) -> Result<Outcome> {
    let engine = match engine().await {
        Ok(engine) => engine,
        Err(outcome) => return outcome,
    };
    let site = Site::new(engine, &[("COMPOSE_PROFILES", &ALL.join(","))])?;
    site.up().await?;
    let mut checks = 0;
    for (service, port) in ALL.into_iter().zip(["8081/tcp", "8082/tcp", "8083/tcp", "8084/tcp"]) {
        let sidecar = site.sidecar(service).await?;
        let (seen, host) = (&sidecar.seen, &sidecar.seen["HostConfig"]);
        let expected = [
            ("Config.User", &seen["Config"]["User"], json!("65532:65532")),
            ("Privileged", &host["Privileged"], json!(false)),
            ("ReadonlyRootfs", &host["ReadonlyRootfs"], json!(true)),
            ("CapDrop", &host["CapDrop"], json!(["ALL"])),
            ("CapAdd", &host["CapAdd"], Value::Null),
            ("SecurityOpt", &host["SecurityOpt"], json!(["no-new-privileges:true"])),
            ("PidsLimit", &host["PidsLimit"], json!(64)),
            ("Memory", &host["Memory"], json!(128 * MIB)),
            ("MemorySwap", &host["MemorySwap"], json!(128 * MIB)),
            ("PidMode", &host["PidMode"], json!("")),
            ("IpcMode", &host["IpcMode"], json!("private")),
            ("Devices", &host["Devices"], Value::Null),
            ("RestartPolicy", &host["RestartPolicy"]["Name"], json!("unless-stopped")),
            ("Tmpfs", &host["Tmpfs"], json!({"/tmp": "rw,noexec,nosuid,nodev,size=8m,mode=1777"})),
            ("StopTimeout", &seen["Config"]["StopTimeout"], json!(15)),
            (
                "LogConfig",
                &host["LogConfig"]["Config"],
                json!({"max-size": "10m", "max-file": "3", "tag": "{{.Name}}"}),
            ),
        ];
        checks += expected.len();
        for (what, found, wanted) in expected {
            ensure!(*found == wanted, "{service}: {what} is {found}, not {wanted}");
        }
        let published: Vec<&String> = host["PortBindings"].as_object().context("no ports")?.keys().collect();
        ensure!(published == [port], "{service} publishes {published:?}");
        ensure!(host["PortBindings"][port][0]["HostIp"] == "127.0.0.1", "{service} is published to everybody");
        mounts(service, &seen["Mounts"])?;
        kernel(service, sidecar.pid().await?)?;
        let environment = seen["Config"]["Env"].to_string();
        for secret in ["gateway-signing-secret", "usage-producer-token", "lago-api-key"] {
            ensure!(!environment.contains(&site.secret(secret)?), "{service} has {secret} in its environment");
        }
    }
    let internal = engine.inspect(&site.name("outrigger-internal")).await?;
    ensure!(internal["Internal"] == true, "the internal network leads outside");
    site.remove().await?;
    Ok(Outcome::new(checks, ""))
}

/// The volume, the configuration and the secrets: nothing else of the host.
fn mounts(service: &str, mounts: &Value) -> Result<()> {
    let mut writable = Vec::new();
    for mount in mounts.as_array().context("no mounts")? {
        let target = mount["Destination"].as_str().unwrap_or_default();
        let source = mount["Source"].as_str().unwrap_or_default();
        let known = target == "/var/lib/outrigger"
            || target == "/etc/outrigger/config.toml"
            || target.starts_with("/run/secrets/");
        ensure!(known, "{service} has {source} at {target}");
        ensure!(!source.ends_with(".sock"), "{service} has the socket {source}");
        if mount["RW"] == true {
            writable.push((target, mount["Type"].as_str().unwrap_or_default()));
        }
    }
    ensure!(writable == [("/var/lib/outrigger", "volume")], "{service} may write to {writable:?}");
    Ok(())
}

/// What the kernel lets the process do, and what it sees of the file system.
fn kernel(service: &str, pid: Pid) -> Result<()> {
    let proc = Path::new("/proc").join(pid.as_raw_nonzero().to_string());
    let status = std::fs::read_to_string(proc.join("status"))?;
    let fields: BTreeMap<&str, String> = status
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name, value.split_whitespace().collect::<Vec<_>>().join(" ")))
        .collect();
    let none = "0000000000000000";
    let wanted = [
        ("Uid", "65532 65532 65532 65532"),
        ("Gid", "65532 65532 65532 65532"),
        ("CapInh", none),
        ("CapPrm", none),
        ("CapEff", none),
        ("CapBnd", none),
        ("CapAmb", none),
        ("NoNewPrivs", "1"),
        // Filtered: the engine's own list of calls.
        ("Seccomp", "2"),
    ];
    for (name, value) in wanted {
        ensure!(fields.get(name).is_some_and(|found| found == value), "{service}: {name} is {:?}", fields.get(name));
    }
    ensure!(
        fields.get("Groups").is_none_or(|groups| groups.is_empty() || groups == "65532"),
        "{service}: {:?}",
        fields.get("Groups")
    );
    let mounts = std::fs::read_to_string(proc.join("mountinfo"))?;
    let mut writable = BTreeSet::new();
    for line in mounts.lines() {
        let mut words = line.split(' ').skip(4);
        let (target, options) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let has = |option: &str| options.split(',').any(|given| given == option);
        if !has("ro") && !target.starts_with("/proc") && !target.starts_with("/dev") && !target.starts_with("/sys") {
            writable.insert(target);
            ensure!(target != "/tmp" || (has("noexec") && has("nosuid") && has("nodev")), "{service}: {line}");
        }
    }
    // The engine makes these three files for every container; they belong to root. So does /sys, see the attempts.
    let expected = BTreeSet::from(["/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/tmp", "/var/lib/outrigger"]);
    ensure!(writable.is_subset(&expected), "{service} may write to {writable:?}");
    Ok(())
}

/// Attempts of somebody who has got hold of the process, one `name=yes` or `name=no` a line.
const ATTEMPTS: &str = r#"
b=/probe/busybox
try() { name=$1; shift; if "$@" >/dev/null 2>&1; then echo "$name=yes"; else echo "$name=no"; fi; }
try keep-state $b touch /var/lib/outrigger/mine
try write-root $b touch /mine
try write-binaries $b touch /usr/bin/mine
try write-users $b sh -c 'echo root2::0:0::/: >>/etc/passwd'
try write-hosts $b sh -c 'echo 127.0.0.1 brain-gateway >>/etc/hosts'
try write-secrets $b touch /run/secrets/mine
try write-groups $b touch /sys/fs/cgroup/mine
$b mkdir -p /tmp 2>/dev/null
$b cp /probe/am-i-root /tmp/mine && $b chmod 755 /tmp/mine
try run-from-tmp $b sh -c '/tmp/mine; [ $? -lt 2 ]'
try set-uid-root /probe/set-uid-root
$b cp /probe/am-i-root /var/lib/outrigger/owned
try give-away $b chown 1:1 /var/lib/outrigger/owned
try make-device $b mknod /var/lib/outrigger/disk b 254 0
try mount $b mount -t tmpfs none /var/lib/outrigger
try raw-socket $b ping -c 1 -W 1 127.0.0.1
try engine-socket $b test -e /var/run/docker.sock -o -e /run/docker.sock
try many-processes $b sh -c 'i=0; while [ $i -lt 100 ]; do /probe/busybox sleep 2 & i=$((i+1)); done; exit 0'
"#;
/// Attempts that succeed with these rights taken away again: else they would prove nothing.
const ONLY_WITHOUT: [&str; 11] = [
    "write-root",
    "write-binaries",
    "write-users",
    "write-hosts",
    "run-from-tmp",
    "give-away",
    "make-device",
    "mount",
    "raw-socket",
    "many-processes",
    "write-secrets",
];

/// The same settings, with a shell in place of the daemon: nothing outside the volume can be written, nothing gained.
/// With all rights each attempt succeeds, so that a refusal means something.
pub(crate) async fn nothing_in_a_container_can_be_written_or_gained(_trial: Trial) -> Result<Outcome> {
    let engine = match engine().await {
        Ok(engine) => engine,
        Err(outcome) => return outcome,
    };
    let probe = engine.file("probe");
    make_probe(engine, &probe).await?;
    let image = format!("outrigger/{PROCESSOR}:{TAG}");
    let mount = format!("{}:/probe:ro", probe.display());
    let shell = ["--entrypoint", "/probe/busybox", &image, "sh", "/probe/attempts"];
    let plain = |rights: &[&str]| -> Vec<String> {
        let words = ["run", "--rm", "--volume", &mount].into_iter().chain(rights.iter().copied()).chain(shell);
        words.map(str::to_owned).collect()
    };
    // Not --privileged: that wants rights which this machine may not have itself.
    let all = ["--user=0", "--cap-add=SYS_ADMIN", "--security-opt=seccomp=unconfined", "--tmpfs=/run/secrets"];
    let free = answers(&engine.docker(plain(&all)).await?)?;
    for name in ONLY_WITHOUT {
        ensure!(free[name], "{name} does not even succeed with all rights");
    }
    let set_uid = answers(&engine.docker(plain(&["--user", "65532:65532"])).await?)?;
    ensure!(set_uid["set-uid-root"], "a set-uid binary does not work where nothing forbids it");

    let site = Site::new(engine, &[("COMPOSE_PROFILES", &ALL.join(","))])?;
    site.up().await?;
    site.set("COMPOSE_FILE", "sidecars.yml:standins.yml:probe.yml")?;
    let mut checks = 0;
    for service in ALL {
        let overlay = json!({"services": {service: {
            "entrypoint": ["/probe/busybox", "sh", "/probe/attempts"], "volumes": [mount],
        }}});
        // JSON is YAML.
        std::fs::write(site.file("probe.yml"), overlay.to_string())?;
        let found = answers(&site.compose(&["run", "--rm", "-T", service]).await?)?;
        ensure!(found["keep-state"], "{service} cannot write its journal's folder");
        let gained: Vec<&String> =
            found.iter().filter(|(name, yes)| **yes && *name != "keep-state").map(|(name, _)| name).collect();
        ensure!(gained.is_empty(), "{service}: {gained:?} succeed");
        checks += found.len();
    }
    site.set("COMPOSE_FILE", "sidecars.yml:standins.yml")?;
    ensure!(is_absent(Path::new("/mine")), "an attempt has reached the host");
    site.remove().await?;
    Ok(Outcome::new(checks, "each succeeds with all rights"))
}

/// A shell, the attempts, and a program that ends with 0 where it is root, once plain and once set-uid.
async fn make_probe(engine: &Engine, folder: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::create_dir(folder)?;
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    std::fs::copy(busybox.context("busybox is missing (Debian: busybox-static)")?, folder.join("busybox"))?;
    std::fs::write(folder.join("attempts"), ATTEMPTS)?;
    std::fs::write(folder.join("root.c"), "#include <unistd.h>\nint main(void) { return geteuid() != 0; }\n")?;
    let mut compile = engine.command("cc");
    compile.args(["-static", "-o", "am-i-root", "root.c"]).current_dir(folder);
    run(compile).await.context("compile a program")?;
    std::fs::copy(folder.join("am-i-root"), folder.join("set-uid-root"))?;
    std::fs::set_permissions(folder.join("set-uid-root"), std::fs::Permissions::from_mode(0o4755))?;
    Ok(())
}

fn answers(said: &str) -> Result<BTreeMap<String, bool>> {
    let found: BTreeMap<String, bool> = said
        .lines()
        .filter_map(|line| line.trim().split_once('='))
        .map(|(name, answer)| (name.to_owned(), answer == "yes"))
        .collect();
    ensure!(found.len() == ATTEMPTS.lines().filter(|line| line.starts_with("try ")).count(), "the shell says {said}");
    Ok(found)
}
