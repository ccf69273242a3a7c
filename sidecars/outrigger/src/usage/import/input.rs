//! The lines of a file and the events in them: CSV with a header, or JSON lines as Lago takes events. One line is in
//! memory at a time.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, bail, ensure};
use clap::ValueEnum;
use csv::{ByteRecord, Position, StringRecord};
use kit::clock::Timestamp;
use kit_lago::usage::answer::in_words;
use kit_lago::usage::{FieldErrors, UsageEvent};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

/// Longest line: the tracker takes events of 256 KiB. Where it is longer, a quote is most likely not closed.
const LONGEST: u64 = 1 << 20;
/// Columns that are fields of an event; every other one is a property.
const TRANSACTION_ID: &str = "transaction_id";
const SUBSCRIPTION: &str = "external_subscription_id";
const CUSTOMER: &str = "external_customer_id";
const CODE: &str = "code";
const TIMESTAMP: &str = "timestamp";
const AMOUNT: &str = "precise_total_amount_cents";
const FIELDS: [&str; 6] = [TRANSACTION_ID, SUBSCRIPTION, CUSTOMER, CODE, TIMESTAMP, AMOUNT];

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Comma-separated, the first line names the columns.
    Csv,
    /// One event a line, as Lago takes it.
    Jsonl,
}

/// A place between two lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Bytes before it.
    pub(super) byte: u64,
    /// Number of the line after it, from 1.
    pub(super) line: u64,
}

impl Place {
    pub(super) const BEGIN: Self = Self { byte: 0, line: 1 };
}

/// One line of the file; in CSV one record, which may take several lines.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) piece: Piece,
    /// The event, or what is wrong with it.
    pub(super) event: Result<Event, String>,
}

/// A part of the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) start: Place,
    pub(super) end: Place,
}

impl Piece {
    /// What stands there, and the number of its line. What is left of the line break before it, and empty lines, are no
    /// part of it.
    pub(super) fn read(&self, file: &File) -> io::Result<(u64, Vec<u8>)> {
        let mut text = text(file, self.start.byte, self.end.byte)?;
        let is_break = |byte: &&u8| matches!(byte, b'\r' | b'\n');
        let before = text.iter().take_while(is_break).count();
        let after = text[before..].iter().rev().take_while(is_break).count();
        let lines = text[..before].iter().filter(|byte| **byte == b'\n').count();
        text.truncate(text.len() - after);
        text.drain(..before);
        Ok((self.start.line + lines as u64, text))
    }
}

/// An event that may be sent.
#[derive(Debug)]
pub(super) struct Event {
    /// As Lago takes it.
    pub(super) json: Box<RawValue>,
    pub(super) code: String,
    /// The subscription, or the customer where only that is named.
    pub(super) whose: String,
    pub(super) at: Timestamp,
}

impl Event {
    /// Checks what the tracker will check, and what an import wants beyond that.
    fn check(json: Box<RawValue>) -> Result<Self, String> {
        let event = UsageEvent::read(&json).map_err(|errors| words(&errors))?;
        if event.transaction_id.is_none() {
            return Err("transaction_id is missing: give each event the id that its producer knows it by. None is \
                        made here, because the same usage would count again with the next import"
                .to_owned());
        }
        let Some(timestamp) = &event.timestamp else {
            return Err("timestamp is missing: the event would be billed as of today".to_owned());
        };
        let at = timestamp.to_timestamp();
        let whose = event.external_subscription_id.as_ref().or(event.external_customer_id.as_ref());
        let (code, whose) = (event.code.to_string(), whose.map(ToString::to_string).unwrap_or_default());
        Ok(Self { json, code, whose, at })
    }
}

fn words(errors: &FieldErrors) -> String {
    let errors =
        errors.iter().map(|(field, codes)| ((*field).to_owned(), codes.iter().map(ToString::to_string).collect()));
    let text = in_words(&errors.collect());
    text.replace("invalid_format", "invalid_format (Unix seconds, or an ISO-8601 time with its offset)")
}

/// The lines of a file from a place on.
#[derive(Debug)]
pub(super) enum Lines {
    Csv(Box<Csv>),
    Json { reader: BufReader<File>, place: Place },
}

impl Lines {
    pub(super) fn open(file: &File, format: Format, from: Place) -> anyhow::Result<Self> {
        let mut file = file.try_clone().context("open the file once more")?;
        match format {
            Format::Csv => Ok(Self::Csv(Box::new(Csv::open(file, from)?))),
            Format::Jsonl => {
                file.seek(SeekFrom::Start(from.byte))?;
                Ok(Self::Json { reader: BufReader::with_capacity(1 << 16, file), place: from })
            }
        }
    }

    /// Where the header ends; nothing without one.
    pub(super) fn header_bytes(&self) -> u64 {
        match self {
            Self::Csv(csv) => csv.header_bytes,
            Self::Json { .. } => 0,
        }
    }

    /// The next line that is not empty.
    ///
    /// # Errors
    /// The file cannot be read on; what is wrong with a line is in the line.
    pub(super) fn next(&mut self) -> anyhow::Result<Option<Line>> {
        match self {
            Self::Csv(csv) => csv.next(),
            Self::Json { reader, place } => loop {
                let Some(line) = next_json(reader, place)? else { return Ok(None) };
                if let Some(line) = line {
                    return Ok(Some(line));
                }
            },
        }
    }
}

/// The next line, `Some(None)` for an empty one.
fn next_json(reader: &mut BufReader<File>, place: &mut Place) -> anyhow::Result<Option<Option<Line>>> {
    let mut text = Vec::new();
    let read = reader.take(LONGEST + 1).read_until(b'\n', &mut text)? as u64;
    if read == 0 {
        return Ok(None);
    }
    let start = *place;
    ensure!(read <= LONGEST, "line {} is longer than 1 MiB", start.line);
    *place = Place { byte: start.byte + read, line: start.line + 1 };
    if text.iter().all(u8::is_ascii_whitespace) {
        return Ok(Some(None));
    }
    let json = serde_json::from_slice::<Box<RawValue>>(text.trim_ascii()).map_err(|error| format!("no JSON: {error}"));
    Ok(Some(Some(Line { piece: Piece { start, end: *place }, event: json.and_then(Event::check) })))
}

/// CSV, from a place on.
#[derive(Debug)]
pub(super) struct Csv {
    reader: csv::Reader<Bounded<File>>,
    columns: Vec<String>,
    header_bytes: u64,
    record: ByteRecord,
}

impl Csv {
    fn open(mut file: File, from: Place) -> anyhow::Result<Self> {
        file.rewind()?;
        let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(Bounded { inner: file, left: LONGEST });
        let header = reader.headers().context("read the header")?;
        let columns: Vec<String> = header.iter().map(|name| name.trim().to_owned()).collect();
        check_columns(&columns)?;
        let header_bytes = reader.position().byte();
        if from.byte > header_bytes {
            let mut position = Position::new();
            position.set_byte(from.byte).set_line(from.line);
            reader.seek(position)?;
        }
        Ok(Self { reader, columns, header_bytes, record: ByteRecord::new() })
    }

    fn next(&mut self) -> anyhow::Result<Option<Line>> {
        self.reader.get_mut().left = LONGEST;
        let before = self.place();
        let is_there = self.reader.read_byte_record(&mut self.record);
        if !is_there.with_context(|| format!("read the file from line {} on", before.line))? {
            return Ok(None);
        }
        let event = self.event();
        Ok(Some(Line { piece: Piece { start: before, end: self.place() }, event }))
    }

    fn place(&self) -> Place {
        Place { byte: self.reader.position().byte(), line: self.reader.position().line() }
    }

    fn event(&self) -> Result<Event, String> {
        let (wanted, has) = (self.columns.len(), self.record.len());
        if has != wanted {
            return Err(format!("{has} fields instead of the header's {wanted}"));
        }
        let record = StringRecord::from_byte_record(self.record.clone()).map_err(|_| "not UTF-8".to_owned())?;
        let row = Row { columns: &self.columns, record: &record };
        let json = serde_json::to_string(&row).and_then(RawValue::from_string);
        json.map_err(|error| error.to_string()).and_then(Event::check)
    }
}

fn check_columns(columns: &[String]) -> anyhow::Result<()> {
    let has = |name: &str| columns.iter().any(|column| column == name);
    for name in [TRANSACTION_ID, CODE, TIMESTAMP] {
        ensure!(has(name), "the header has no column {name}; it has: {}", shown(columns));
    }
    ensure!(has(SUBSCRIPTION) || has(CUSTOMER), "the header has no column {SUBSCRIPTION}; it has: {}", shown(columns));
    for (place, name) in columns.iter().enumerate() {
        ensure!(!name.is_empty(), "column {} has no name", place + 1);
        if columns[..place].contains(name) {
            bail!("the header has the column {} twice", crate::output::safe(name));
        }
    }
    Ok(())
}

fn shown(columns: &[String]) -> String {
    let text = columns.join(", ");
    let cut: Cow<'_, str> = if text.chars().count() > 200 { text.chars().take(200).collect() } else { text.into() };
    crate::output::safe(&cut)
}

/// A record as Lago's event. What a cell holds stays a text; an empty cell is nothing.
struct Row<'a> {
    columns: &'a [String],
    record: &'a StringRecord,
}

impl Row<'_> {
    fn cells(&self, fields: bool) -> impl Iterator<Item = (&str, &str)> {
        let cells = self.columns.iter().map(String::as_str).zip(self.record);
        cells.filter(move |(name, value)| FIELDS.contains(name) == fields && !value.is_empty())
    }
}

impl Serialize for Row<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap as _;
        struct Properties<'a>(&'a Row<'a>);
        impl Serialize for Properties<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_map(self.0.cells(false))
            }
        }
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in self.cells(true) {
            map.serialize_entry(name, value)?;
        }
        if self.cells(false).next().is_some() {
            map.serialize_entry("properties", &Properties(self))?;
        }
        map.end()
    }
}

/// A reader that ends with an error where one record wants more than it may have.
#[derive(Debug)]
pub(super) struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(io::Error::other("a record is longer than 1 MiB: is a quote not closed?"));
        }
        let read = self.inner.read(buffer)?;
        self.left = self.left.saturating_sub(read as u64);
        Ok(read)
    }
}

impl<R: Seek> Seek for Bounded<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}

/// What stands in a file between two places.
pub(super) fn text(file: &File, from: u64, to: u64) -> io::Result<Vec<u8>> {
    let mut text = vec![0; usize::try_from(to.saturating_sub(from)).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut text, from)?;
    Ok(text)
}

#[cfg(test)]
mod tests;
