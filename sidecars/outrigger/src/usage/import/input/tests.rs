#![allow(clippy::unwrap_used)]
use kit_workbench::scratch::Scratch;

use super::*;

/// Every line of a file that begins at `from`.
fn read(content: &[u8], format: Format, from: Place) -> anyhow::Result<Vec<Line>> {
    let scratch = Scratch::new("outrigger-input").unwrap();
    let file = File::open(scratch.write("input", content).unwrap()).unwrap();
    let mut lines = Lines::open(&file, format, from)?;
    std::iter::from_fn(|| lines.next().transpose()).collect()
}

fn events(content: &str, format: Format) -> Vec<String> {
    let lines = read(content.as_bytes(), format, Place::BEGIN).unwrap();
    lines.into_iter().map(|line| line.event.unwrap().json.get().to_owned()).collect()
}

const HEADER: &str = "transaction_id,external_subscription_id,code,timestamp,gb,region\n";

#[test]
fn a_record_becomes_an_event_whose_values_are_as_written() {
    let csv = format!("{HEADER}t-1,s,gb,1732000000.250,0.10,\nt-2,s,gb,2024-11-19T07:06:40Z,1e3,\"a \"\"b\"\", c\"\n");
    assert_eq!(
        events(&csv, Format::Csv),
        [
            concat!(
                r#"{"transaction_id":"t-1","external_subscription_id":"s","code":"gb","timestamp":"1732000000.250","#,
                r#""properties":{"gb":"0.10"}}"#
            ),
            concat!(
                r#"{"transaction_id":"t-2","external_subscription_id":"s","code":"gb","#,
                r#""timestamp":"2024-11-19T07:06:40Z","properties":{"gb":"1e3","region":"a \"b\", c"}}"#
            ),
        ]
    );
    let csv = "code,timestamp,transaction_id,external_customer_id,precise_total_amount_cents\nc,1,t,cus,1.50\n";
    assert_eq!(
        events(csv, Format::Csv),
        [
            r#"{"code":"c","timestamp":"1","transaction_id":"t","external_customer_id":"cus","precise_total_amount_cents":"1.50"}"#
        ]
    );
}

#[test]
fn a_line_of_json_is_sent_as_it_is() {
    let line =
        r#"{"transaction_id":"t", "external_subscription_id":"s","code":"c","timestamp":1,"properties":{"n":1.0}}"#;
    assert_eq!(events(&format!("\n{line}\r\n  \n"), Format::Jsonl), [line]);
}

#[test]
fn what_is_wrong_with_a_line_is_said_with_its_number() {
    let wrong = |content: &str, format| -> Vec<(u64, String)> {
        let lines = read(content.as_bytes(), format, Place::BEGIN).unwrap();
        let scratch = Scratch::new("outrigger-input").unwrap();
        let file = File::open(scratch.write("input", content).unwrap()).unwrap();
        let number = |line: &Line| line.piece.read(&file).unwrap().0;
        lines.into_iter().filter_map(|line| Some((number(&line), line.event.err()?))).collect()
    };
    let csv = concat!(
        "transaction_id,external_subscription_id,code,timestamp,note\r\n",
        ",s,c,1,\r\n",
        "t,s,c,1,\"two\r\nlines\"\r\n",
        "\r\n",
        "t,s,c,,\r\n",
        "t,s,c,yesterday,\r\n",
        "t,s,c,1\r\n",
        "t,,c,1,\r\n",
        "t,s,c,1,fine"
    );
    let seen = wrong(csv, Format::Csv);
    let lines: Vec<u64> = seen.iter().map(|(line, _)| *line).collect();
    assert_eq!(lines, [2, 6, 7, 8, 9], "{seen:?}");
    let begins = [
        "transaction_id is missing: give each event the id",
        "timestamp is missing",
        "timestamp: invalid_format (Unix",
        "4 fields instead of the header's 5",
        "external_subscription_id: value_is_mandatory",
    ];
    for ((_, reason), begin) in seen.iter().zip(begins) {
        assert!(reason.starts_with(begin), "{reason}");
    }

    let json = concat!(
        r#"{"external_subscription_id":"s","code":"c","timestamp":1}"#,
        "\n{\n\n[]\n",
        r#"{"transaction_id":"t","external_subscription_id":"s","code":"c"}"#
    );
    let seen = wrong(json, Format::Jsonl);
    let lines: Vec<u64> = seen.iter().map(|(line, _)| *line).collect();
    assert_eq!(lines, [1, 2, 4, 5], "{seen:?}");
    let begins = ["transaction_id is missing", "no JSON", "event: value_is_invalid", "timestamp is missing"];
    for ((_, reason), begin) in seen.iter().zip(begins) {
        assert!(reason.starts_with(begin), "{reason}");
    }
}

#[test]
fn a_header_without_what_an_event_needs_is_refused() {
    for (header, naming) in [
        ("external_subscription_id,code,timestamp", "no column transaction_id"),
        ("transaction_id,external_subscription_id,timestamp", "no column code"),
        ("transaction_id,external_subscription_id,code", "no column timestamp"),
        ("transaction_id,code,timestamp", "no column external_subscription_id"),
        ("transaction_id;external_subscription_id;code;timestamp", "it has: transaction_id;external"),
        ("transaction_id,external_subscription_id,code,timestamp,gb,gb", "gb twice"),
        ("transaction_id,external_subscription_id,code,timestamp,", "column 5 has no name"),
        ("", "no column transaction_id"),
    ] {
        let error = read(header.as_bytes(), Format::Csv, Place::BEGIN).unwrap_err().to_string();
        assert!(error.contains(naming), "{header}: {error}");
    }
    let marked = format!("\u{feff}{HEADER}t,s,c,1,,\n");
    assert_eq!(events(&marked, Format::Csv).len(), 1, "a byte order mark is no part of the first name");
}

/// Whatever the line breaks and quotes: an import that ended anywhere goes on with the next line, and the pieces between
/// the places are the lines.
#[test]
fn reading_goes_on_from_the_end_of_any_line() {
    for content in [
        format!("{HEADER}t-1,s,c,1,,\nt-2,s,c,1,\"a\nb\",\nt-3,s,c,1,,\n"),
        format!("{HEADER}t-1,s,c,1,,\r\n\r\nt-2,s,c,1,\"a\r\nb\",\r\n\r\nt-3,s,c,1,,")
            .replace("region\n", "region\r\n"),
        format!("\u{feff}{HEADER}t-1,s,c,1,\u{fc},\n\n\nt-2,s,c,1,\"\",\nt-3,s,c,1,,\n\n"),
    ] {
        let scratch = Scratch::new("outrigger-input").unwrap();
        let file = File::open(scratch.write("input", &content).unwrap()).unwrap();
        let all = read(content.as_bytes(), Format::Csv, Place::BEGIN).unwrap();
        assert_eq!(all.len(), 3, "{content:?}");
        for (done, line) in all.iter().enumerate() {
            let rest = read(content.as_bytes(), Format::Csv, line.piece.end).unwrap();
            let seen = |lines: &[Line]| -> Vec<(Place, Place, String)> {
                let one = |line: &Line| {
                    (line.piece.start, line.piece.end, line.event.as_ref().unwrap().json.get().to_owned())
                };
                lines.iter().map(one).collect()
            };
            assert_eq!(seen(&rest), seen(&all[done + 1..]), "{content:?} after {done}");
            let (_, text) = line.piece.read(&file).unwrap();
            let text = String::from_utf8(text).unwrap();
            assert!(text.starts_with(&format!("t-{}", done + 1)) && !text.ends_with(['\r', '\n']), "{text:?}");
        }
    }
    let event =
        |n: u8| format!(r#"{{"transaction_id":"t-{n}","external_subscription_id":"s","code":"c","timestamp":1}}"#);
    let content = format!("{}\n\n{}\r\n{}", event(1), event(2), event(3));
    let all = read(content.as_bytes(), Format::Jsonl, Place::BEGIN).unwrap();
    for (done, line) in all.iter().enumerate() {
        assert_eq!(read(content.as_bytes(), Format::Jsonl, line.piece.end).unwrap().len(), 2 - done);
    }
    assert_eq!(all.iter().map(|line| line.piece.start.line).collect::<Vec<_>>(), [1, 3, 4]);
}

/// A quote that is never closed would make the rest of the file one cell.
#[test]
fn no_line_takes_the_memory_of_the_file() {
    let long = "x".repeat(3 << 20);
    let error = read(format!("{HEADER}t,s,c,1,\"{long}").as_bytes(), Format::Csv, Place::BEGIN).unwrap_err();
    assert!(format!("{error:#}").contains("is a quote not closed"), "{error:#}");
    let error = read(long.as_bytes(), Format::Jsonl, Place::BEGIN).unwrap_err();
    assert!(error.to_string().contains("line 1 is longer than 1 MiB"), "{error:#}");
}
