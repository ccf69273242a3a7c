//! What lies where in the files of a store, so that a few flipped bits hit something of everything: most of a page is
//! empty, and most of the rest is text.
//!
//! Source: the SQLite file format, sections 1.3 to 1.6 and 4.1.

use std::collections::{BTreeMap, BTreeSet};

use super::{Case, STRIDE};

const FILE_HEADER: usize = 100;
const LOG_HEADER: usize = 32;
const FRAME_HEADER: usize = 24;

/// What a byte belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    FileHeader,
    PageHeader,
    CellPointers,
    /// Length, row number, child page and the types of a row's columns.
    CellHead,
    CellBody,
    /// A cell of a page that leads to other pages.
    InnerCell,
    /// Which page a row, or a list of pages, goes on at.
    Link,
    Overflow,
    Unused,
    LogHeader,
    FrameHeader,
}

/// The bytes of a file by page, or by frame of the log, and kind.
pub(super) type Parts = BTreeMap<(usize, Kind), Vec<usize>>;

pub(super) fn of_database(file: &[u8], page_size: usize) -> Parts {
    let mut parts = Parts::new();
    for (number, page) in file.chunks(page_size).enumerate() {
        sort_page(&mut parts, number, number * page_size, page, number == 0);
    }
    parts
}

pub(super) fn of_log(file: &[u8], page_size: usize) -> Parts {
    let mut parts = Parts::new();
    let (header, frames) = file.split_at(file.len().min(LOG_HEADER));
    parts.insert((0, Kind::LogHeader), (0..header.len()).collect());
    for (number, frame) in frames.chunks(FRAME_HEADER + page_size).enumerate() {
        let at = LOG_HEADER + number * (FRAME_HEADER + page_size);
        let (header, page) = frame.split_at(frame.len().min(FRAME_HEADER));
        parts.insert((number, Kind::FrameHeader), (at..at + header.len()).collect());
        let is_first = number_at(header, 0, 4) == Some(1);
        sort_page(&mut parts, number, at + header.len(), page, is_first);
    }
    parts
}

/// All bits of both files, so that any beginning of the list has as much of every part as of every other one.
pub(super) fn in_turn(database: &Parts, log: &Parts) -> Vec<Case> {
    type Make = fn(u64) -> Case;
    let (first, second): (Make, Make) = (Case::First, Case::Second);
    let all = database.values().map(|bytes| (first, bytes)).chain(log.values().map(|bytes| (second, bytes)));
    let mut open: Vec<(Make, &[usize])> = all.map(|(make, bytes)| (make, bytes.as_slice())).collect();
    let mut cases = Vec::new();
    for turn in 0_u64.. {
        open.retain(|(_, bytes)| turn < bytes.len() as u64 * 8);
        if open.is_empty() {
            break;
        }
        cases.extend(open.iter().map(|(make, bytes)| {
            let bit = turn * STRIDE % (bytes.len() as u64 * 8);
            make(bytes[usize::try_from(bit / 8).unwrap_or(0)] as u64 * 8 + bit % 8)
        }));
    }
    cases
}

pub(super) fn kinds(parts: &Parts) -> BTreeSet<Kind> {
    parts.keys().map(|(_, kind)| *kind).collect()
}

fn sort_page(parts: &mut Parts, number: usize, at: usize, page: &[u8], is_first: bool) {
    let mut kinds = vec![Kind::Unused; page.len()];
    // What is not laid out as it should be counts as unused.
    let _ = mark(page, is_first, &mut kinds);
    for (offset, kind) in kinds.into_iter().enumerate() {
        parts.entry((number, kind)).or_default().push(at + offset);
    }
}

fn mark(page: &[u8], is_first: bool, kinds: &mut [Kind]) -> Option<()> {
    let mut set = |from: usize, length: usize, kind: Kind| -> Option<()> {
        kinds.get_mut(from..from + length)?.fill(kind);
        Some(())
    };
    let header = if is_first { FILE_HEADER } else { 0 };
    set(0, header, Kind::FileHeader)?;
    let (is_inner, is_table) = match page.get(header)? {
        2 => (true, false),
        5 => (true, true),
        10 => (false, false),
        13 => (false, true),
        _ => {
            set(4, page.len() - 4, Kind::Overflow)?;
            return set(0, 4, Kind::Link);
        }
    };
    let pointers = header + if is_inner { 12 } else { 8 };
    set(header, pointers - header, Kind::PageHeader)?;
    let cells = number_at(page, header + 3, 2)?;
    set(pointers, 2 * cells, Kind::CellPointers)?;
    for cell in 0..cells {
        let start = number_at(page, pointers + 2 * cell, 2)?;
        let mut at = start + if is_inner { 4 } else { 0 };
        let mut payload = 0;
        if !(is_inner && is_table) {
            payload = varint(page, &mut at)?;
        }
        if is_table {
            varint(page, &mut at)?;
        }
        if payload == 0 {
            set(start, at - start, Kind::InnerCell)?;
            continue;
        }
        let here = here(payload, page.len(), is_table);
        let types = varint(page, &mut at.clone())?.min(here);
        let head = if is_inner { Kind::InnerCell } else { Kind::CellHead };
        set(start, at - start + types, head)?;
        set(at + types, here - types, Kind::CellBody)?;
        if here < payload {
            set(at + here, 4, Kind::Link)?;
        }
    }
    Some(())
}

/// How much of a payload lies in its own page.
fn here(payload: usize, page: usize, is_table: bool) -> usize {
    let least = (page - 12) * 32 / 255 - 23;
    let most = if is_table { page - 35 } else { (page - 12) * 64 / 255 - 23 };
    if payload <= most {
        return payload;
    }
    let fitting = least + (payload - least) % (page - 4);
    if fitting <= most { fitting } else { least }
}

fn number_at(bytes: &[u8], at: usize, length: usize) -> Option<usize> {
    Some(bytes.get(at..at + length)?.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
}

fn varint(bytes: &[u8], at: &mut usize) -> Option<usize> {
    let mut number = 0_usize;
    for _ in 0..8 {
        let byte = *bytes.get(*at)?;
        *at += 1;
        number = number << 7 | usize::from(byte & 0x7f);
        if byte < 0x80 {
            return Some(number);
        }
    }
    let last = *bytes.get(*at)?;
    *at += 1;
    Some(number << 8 | usize::from(last))
}
