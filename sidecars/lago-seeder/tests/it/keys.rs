//! The RSA key in files, as a set-up container handles it.

use std::os::unix::fs::PermissionsExt as _;

use kit_lago::signature::LagoPrivateKey;
use kit_workbench::scratch::Scratch;
use lago_seeder::keys::{Arguments, Finding, examine};

fn mode(path: &std::path::Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[track_caller]
fn finding<'a>(findings: &'a [Finding], what: &str) -> &'a Finding {
    findings.iter().find(|finding| finding.what == what).unwrap_or_else(|| panic!("no {what} in {findings:#?}"))
}

#[test]
fn a_key_is_made_once_and_each_form_of_it_is_written() {
    let scratch = Scratch::new("lago-keys").unwrap();
    let arguments = Arguments {
        file: Some(scratch.file("private.pem")),
        create: true,
        bits: 2048,
        env_file: Some(scratch.file("lago.env")),
        public_file: Some(scratch.file("public.pem")),
        lago_version: Some("v1.23.0".to_owned()),
    };

    let first = examine(&arguments, None);
    let written: Vec<String> = ["private.pem", "lago.env", "public.pem"]
        .map(|name| std::fs::read_to_string(scratch.file(name)).unwrap())
        .into();
    let second = examine(&arguments, None);

    assert!(first.iter().chain(&second).all(|finding| finding.ok), "{first:#?} {second:#?}");
    assert_eq!((mode(&scratch.file("private.pem")), mode(&scratch.file("lago.env"))), (0o600, 0o600));
    let key = LagoPrivateKey::from_pem(&written[0]).unwrap();
    let value = written[1].strip_prefix("LAGO_RSA_PRIVATE_KEY=").unwrap().trim_end();
    assert_eq!(LagoPrivateKey::from_variable(value).unwrap().public_key(), key.public_key());
    assert_eq!(written[2], key.public_key().to_pem());
    assert!(finding(&first, "forms").text.contains("takes the file at /app/config/keys/private.pem"));
    assert!(finding(&second, "env file").text.contains("holds it already"));
    let left = std::fs::read_dir(scratch.path()).unwrap().count();
    assert_eq!(left, 3, "nothing is left beside them");
}

#[test]
fn a_file_that_holds_something_else_is_left_alone() {
    let scratch = Scratch::new("lago-keys").unwrap();
    let env = scratch.write(".env", "DATABASE_URL=x\n").unwrap();
    let file = scratch.write("private.pem", "not a key").unwrap();
    let arguments =
        |file| Arguments { file, create: true, bits: 2048, env_file: Some(env.clone()), ..Arguments::default() };

    let wrong = examine(&arguments(Some(file.clone())), None);
    let right = examine(&arguments(Some(scratch.file("new.pem"))), None);

    assert!(!finding(&wrong, "file").ok && finding(&wrong, "file").text.contains("this is no PEM"));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "not a key");
    let env_file = finding(&right, "env file");
    assert!(!env_file.ok && env_file.text.contains("is left alone"), "{env_file:?}");
    assert_eq!(std::fs::read_to_string(&env).unwrap(), "DATABASE_URL=x\n");
}

#[test]
fn two_that_make_the_same_file_end_with_one_key() {
    let scratch = Scratch::new("lago-keys").unwrap();
    let arguments =
        Arguments { file: Some(scratch.file("private.pem")), create: true, bits: 2048, ..Arguments::default() };

    let found: Vec<Vec<Finding>> = std::thread::scope(|scope| {
        let both = [(); 2].map(|()| scope.spawn(|| examine(&arguments, None)));
        both.map(|one| one.join().unwrap()).into()
    });

    assert!(found.iter().flatten().all(|finding| finding.ok), "{found:#?}");
    assert_eq!(finding(&found[0], "key"), finding(&found[1], "key"), "both look at the same key in the end");
}

#[test]
fn the_variable_is_judged_beside_the_file() {
    let scratch = Scratch::new("lago-keys").unwrap();
    let (one, other) = (LagoPrivateKey::generate(2048).unwrap(), LagoPrivateKey::generate(2048).unwrap());
    let file = Some(scratch.write("private.pem", one.pem().expose()).unwrap());
    let arguments = Arguments { file, ..Arguments::default() };
    let judged = |value: &str| finding(&examine(&arguments, Some(value)), "variable").clone();

    assert!(judged(one.variable().expose()).ok);
    let differs = judged(other.variable().expose());
    assert!(!differs.ok && differs.text.contains("are different keys"), "{differs:?}");
    let raw = judged(one.pem().expose());
    assert!(!raw.ok && raw.text.contains("gets junk"), "{raw:?}");
    let value = one.variable();
    let (begin, end) = value.expose().split_at(60);
    let lines = judged(&format!("{begin}\n{end}"));
    assert!(!lines.ok && lines.text.contains("several lines"), "{lines:?}");
    let nothing = examine(&Arguments::default(), None);
    assert!(!nothing[0].ok && nothing[0].fix.as_deref().unwrap().contains("--create"));
    let version = examine(&Arguments { lago_version: Some("latest".to_owned()), ..arguments.clone() }, None);
    assert!(!version[0].ok && version[0].text.contains("no version"));
}

#[test]
fn a_file_alone_is_nothing_to_a_lago_that_reads_no_file() {
    let scratch = Scratch::new("lago-keys").unwrap();
    let of = |version: &str, env_file| {
        let file = Some(scratch.file("private.pem"));
        let lago_version = Some(version.to_owned());
        examine(&Arguments { file, create: true, bits: 2048, env_file, lago_version, ..Arguments::default() }, None)
    };

    let alone = of("v1.16.0", None);

    let forms = finding(&alone, "forms");
    assert!(!forms.ok && forms.text.contains("it would not start"), "{forms:?}");
    assert!(finding(&of("v1.16.0", Some(scratch.file("lago.env"))), "forms").ok);
    assert!(finding(&of("v1.23.0", None), "forms").ok, "that one reads it");
}
