//! TLS to a real server: whom each `sslmode` believes.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use kit_workbench::database::Database;
use kit_workbench::scratch::Scratch;

use crate::bench::{open, section_at};

fn openssl(arguments: &str, directory: &Scratch) {
    let output = Command::new("openssl").args(arguments.split(' ')).current_dir(directory.path()).output().unwrap();
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn each_mode_believes_whom_it_should() {
    let files = Scratch::new("tls").unwrap();
    // The server's user reads them; there is no secret of anybody in them.
    std::fs::set_permissions(files.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    for ca in ["ca", "stranger"] {
        openssl(
            &format!("req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={ca} -keyout {ca}.key -out {ca}.pem"),
            &files,
        );
    }
    openssl("req -newkey rsa:2048 -nodes -subj /CN=db -keyout server.key -out server.csr", &files);
    files.write("names", "subjectAltName=DNS:localhost\n").unwrap();
    openssl(
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out server.pem",
        &files,
    );
    let (cert, key) = (files.file("server.pem"), files.file("server.key"));
    // PostgreSQL takes a key of root's that its group may read, or one of its own that nobody else may.
    let mut own = Command::new("chown");
    own.arg("postgres").arg(&key).arg(&cert);
    let is_root = own.status().is_ok_and(|status| status.success());
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert!(is_root || Command::new("id").arg("-u").output().is_ok(), "run as root or as the server's user");
    let options = ["ssl=on", &format!("ssl_cert_file={}", cert.display()), &format!("ssl_key_file={}", key.display())];
    let server = Database::start(&options).unwrap();
    server.create("j").unwrap();
    let url = server.url("j");
    let named = url.replace("127.0.0.1", "localhost");
    let (ca, stranger) = (files.file("ca.pem"), files.file("stranger.pem"));
    let connect = |url: &str, options: String| open(&section_at(format!("{url}?{options}"))).map(drop);

    for (url, options, believed) in [
        (&url, "sslmode=require".to_owned(), true),
        (&url, "sslmode=prefer".to_owned(), true),
        (&url, format!("sslmode=verify-ca&sslrootcert={}", ca.display()), true),
        (&url, format!("sslmode=verify-ca&sslrootcert={}", stranger.display()), false),
        (&named, format!("sslmode=verify-full&sslrootcert={}", ca.display()), true),
        (&url, format!("sslmode=verify-full&sslrootcert={}", ca.display()), false),
        (&named, "sslmode=verify-full".to_owned(), false),
    ] {
        let result = connect(url, options.clone());
        assert_eq!(result.is_ok(), believed, "{options}: {:?}", result.err().map(|error| kit::error::chain(&error)));
    }
    let seen = "SELECT count(*) FROM pg_stat_ssl WHERE ssl";
    let section = section_at(format!("{url}?sslmode=require"));
    let opened = open(&section).unwrap();
    assert_ne!(server.sql("postgres", seen).unwrap(), "0", "the connection is encrypted");
    drop(opened);
}
