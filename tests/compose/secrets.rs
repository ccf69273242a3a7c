//! `compose/make-secrets`: what it makes, what it leaves, and what it says of secrets that cannot work.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::process::{Command, Output};

use kit_workbench::scratch::Scratch;
use outrigger_tests::binaries::repository;

use crate::combinations::skip;

const LAGO_HERE: &str = "infrastructure.yml:lago.yml:sidecars.yml";
/// An operator who is not root, and whose umask is strict.
const OPERATOR: u32 = 64_998;

/// A folder as `compose/` is, with a key pair, a token, and a secret that only the operator knows.
fn folder() -> Scratch {
    let folder = Scratch::new("compose").unwrap();
    fs::create_dir(folder.file("secrets")).unwrap();
    fs::copy(repository().join("compose/make-secrets"), folder.file("make-secrets")).unwrap();
    folder.write("secrets/generated", "# comment\nlago-rsa rsa\ntoken hex32\ngateway-key empty\n").unwrap();
    folder
}

fn make(folder: &Scratch, files: &str) -> Output {
    Command::new("bash").arg(folder.file("make-secrets")).arg(files).output().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn secret(folder: &Scratch, name: &str) -> String {
    fs::read_to_string(folder.file("secrets").join(name)).unwrap()
}

fn mode(folder: &Scratch, name: &str) -> u32 {
    fs::metadata(folder.file(name)).unwrap().permissions().mode() & 0o777
}

/// The public half of what is in `lago-rsa`, by openssl.
fn public_half(folder: &Scratch) -> String {
    let output = Command::new("openssl").args(["pkey", "-pubout", "-in"]).arg(folder.file("secrets/lago-rsa")).output();
    String::from_utf8(output.unwrap().stdout).unwrap()
}

#[test]
fn secrets_are_made_once_and_belong_together() {
    let folder = folder();

    let first = make(&folder, LAGO_HERE);
    let made = ["lago-rsa", "lago-rsa.pub", "token", "gateway-key"].map(|name| secret(&folder, name));
    let second = make(&folder, LAGO_HERE);

    assert!(first.status.success() && second.status.success(), "{} {}", said(&first), said(&second));
    assert_eq!(said(&second), "");
    assert_eq!(made, ["lago-rsa", "lago-rsa.pub", "token", "gateway-key"].map(|name| secret(&folder, name)));
    assert_eq!(secret(&folder, "lago-rsa.pub"), public_half(&folder));
    assert_eq!((mode(&folder, "secrets"), mode(&folder, "secrets/token")), (0o700, 0o644));
    assert!(!said(&first).contains(&secret(&folder, "token")), "{}", said(&first));
}

#[test]
fn a_new_private_key_has_a_new_public_half() {
    for lost in ["removed", "emptied"] {
        let folder = folder();
        make(&folder, LAGO_HERE);
        let before = secret(&folder, "lago-rsa.pub");
        if lost == "removed" {
            fs::remove_file(folder.file("secrets/lago-rsa")).unwrap();
        } else {
            fs::write(folder.file("secrets/lago-rsa"), "").unwrap();
        }

        let output = make(&folder, LAGO_HERE);

        assert!(output.status.success(), "{}", said(&output));
        assert_ne!(secret(&folder, "lago-rsa.pub"), before, "{lost}: the old public half stays");
        assert_eq!(secret(&folder, "lago-rsa.pub"), public_half(&folder), "{lost}");
    }
}

#[test]
fn keys_that_do_not_belong_together_are_named() {
    let folder = folder();
    make(&folder, LAGO_HERE);
    let old = secret(&folder, "lago-rsa.pub");
    let genrsa = Command::new("openssl").args(["genrsa", "2048"]).output().unwrap();
    // An operator's own key, in the place of the one that was made.
    fs::write(folder.file("secrets/lago-rsa"), genrsa.stdout).unwrap();

    let here = make(&folder, LAGO_HERE);
    let elsewhere = make(&folder, "sidecars.yml:core.yml");
    // Where only an overlay of that ending is used, no Lago runs.
    let overlay = make(&folder, "infrastructure.yml:shared-lago.yml");
    // In the middle of a change both are there.
    fs::write(folder.file("secrets/lago-rsa.pub"), format!("{old}{}", public_half(&folder))).unwrap();
    let both = make(&folder, LAGO_HERE);
    let mut encode = Command::new("openssl");
    encode.args(["base64", "-A", "-in"]).arg(folder.file("secrets/lago-rsa.pub"));
    fs::write(folder.file("secrets/lago-rsa.pub"), encode.output().unwrap().stdout).unwrap();
    let lago_s_form = make(&folder, LAGO_HERE);

    assert!(!here.status.success(), "Lago signs with what nobody knows, and that is no mistake");
    assert!(
        said(&here).contains("every webhook would be refused") && said(&here).contains("Remove secrets/lago-rsa.pub")
    );
    for output in [&elsewhere, &overlay] {
        assert!(output.status.success() && said(output).contains("right for a Lago elsewhere"), "{}", said(output));
    }
    for output in [both, lago_s_form] {
        assert_eq!((output.status.success(), said(&output).as_str()), (true, ""));
    }
}

#[test]
fn a_secret_can_be_written_by_its_owner_and_read_by_containers() {
    if !rustix::process::geteuid().is_root() {
        return skip("only root can become an operator who is not; modes of secrets are not looked at");
    }
    let folder = folder();
    for path in [folder.path().to_owned(), folder.file("secrets"), folder.file("secrets/generated")] {
        chown(path, Some(OPERATOR), Some(OPERATOR)).unwrap();
    }
    let as_operator = |script: &str| {
        let id = OPERATOR.to_string();
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]);
        command.args(["sh", "-c", &format!("umask 077; {script}")]).current_dir(folder.path());
        command.output().unwrap()
    };

    let first = as_operator("bash ./make-secrets");
    let write = as_operator("printf key >secrets/gateway-key && rm secrets/token && printf mine >secrets/token");
    let before = mode(&folder, "secrets/token");
    let second = as_operator("bash ./make-secrets");
    let third = as_operator("bash ./make-secrets");

    assert!(first.status.success(), "{}", said(&first));
    assert!(write.status.success(), "its owner cannot write a secret: {}", said(&write));
    assert_eq!((before, mode(&folder, "secrets/token")), (0o600, 0o644), "no container can read it");
    assert!(second.status.success() && said(&second).contains("secrets/token had the mode 600"), "{}", said(&second));
    assert_eq!(said(&third), "");
    assert_eq!((secret(&folder, "token"), secret(&folder, "gateway-key")), ("mine".to_owned(), "key".to_owned()));
    // Somebody else's cannot be mended, and is named.
    fs::set_permissions(folder.file("secrets/token"), fs::Permissions::from_mode(0o600)).unwrap();
    chown(folder.file("secrets/token"), Some(0), Some(0)).unwrap();
    let refused = as_operator("bash ./make-secrets");
    assert!(
        !refused.status.success() && said(&refused).contains("secrets/token has the mode 600"),
        "{}",
        said(&refused)
    );
}
