//! What is done in a partition whose commands finish out of order: from which offset to commit, and what beside it.
//!
//! Owns the bookkeeping of offsets, one [`PartitionLedger`] per assigned partition, and ([`codec`]) the text form of
//! what is settled beyond the commit offset. The consumer thread holds and calls it. It must never do I/O, read a
//! clock, log, or know what a command is: offsets come in, an offset and a text come out.
//!
//! # How it is kept
//!
//! Records are read in the order of their offsets, so one offset, `next`, parts what was read from what was not. Below
//! it only what is *open* is kept: all else there is settled, be it finished, skipped, or never there (compaction,
//! transaction markers). A million finished commands behind a slow one therefore cost nothing. Above it lie the runs
//! that a restored run list calls settled; they go as `next` passes them. Every call is O(log n) in what is open, but
//! for [`PartitionLedger::metadata`], which is linear in open offsets and restored runs.
//!
//! # How much metadata there can be
//!
//! A run list that outgrows its limit could not be committed, so [`PartitionLedger::is_full`] has to tell before. It
//! looks at an upper bound that is kept up to date by each call rather than at the text: one letter for each open
//! offset (a run of n open ones takes at most n letters), the letters of each settled run between them, and the longest
//! header.
//!
//! - Settling never raises it: the open offset's letter goes, and joining the runs on both sides adds at most one.
//! - Admitting raises it by 1, plus what the settled run before grew by if offsets are missing there (by at most 14,
//!   for a hole of about 10^18; mostly by 0 or 1).
//!
//! So whoever asks before each record stays within the limit, and nothing that ends later can break it. Of the default
//! limit of 4096, the quarter above the mark holds 1024 open offsets without holes between them, 512 with a hole of up
//! to 26 before each: so many could be admitted on one answer. Below the mark there is room for 762 lone open offsets
//! with up to 18,278 settled behind each.

pub mod codec;
pub mod runs;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::ops::Range;

pub use codec::BadMetadata;
use codec::{HEADER_MAX, LETTERS_MAX, letters};
use runs::Runs;

/// What to do with a record that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Not seen before: it is open from now on. Run it, and settle it.
    New,
    /// Open already, so this is a second reading (after a seek back). Whoever has it will settle it: skip it.
    Open,
    /// Settled: by an earlier run, by a restored run list, or given up as missing when a higher one came. Skip it.
    Settled,
}

/// Which offsets of one partition are open, settled or still to be read.
///
/// It stands for one log: if a topic is deleted and made again, or its end is cut off, offsets mean other records, and
/// a new ledger is needed.
#[derive(Clone, Debug)]
pub struct PartitionLedger {
    /// Admitted and not settled; all below `next`.
    open: BTreeSet<i64>,
    /// The lowest offset that is neither open nor settled.
    next: i64,
    /// Settled by a restored run list: grows, starts above `next`, and an offset is missing before each.
    ahead: Runs,
    /// Letters of the settled runs between two open offsets.
    letters_between: usize,
    /// Letters of the runs in `ahead`, and of the open runs between them.
    letters_ahead: usize,
}

impl PartitionLedger {
    /// The most that one admission adds to the bound of the metadata.
    const ADMISSION_MAX: usize = 1 + LETTERS_MAX;

    /// Goes on from what was committed; a negative offset is taken as 0.
    ///
    /// Metadata that cannot be used is left aside, and the second value says why: what was settled beyond `offset` then
    /// runs again, which is better than to trust it and lose a command.
    pub fn restore(offset: i64, metadata: &str) -> (PartitionLedger, Option<BadMetadata>) {
        let (settled, bad) = match codec::decode(offset, metadata) {
            Ok(settled) => (settled, None),
            Err(bad) => (Vec::new(), Some(bad)),
        };
        let ahead: Runs = settled.into_iter().collect();
        let letters_ahead = letters_of(&ahead);
        let ledger =
            PartitionLedger { open: BTreeSet::new(), next: offset.max(0), ahead, letters_between: 0, letters_ahead };
        (ledger, bad)
    }

    /// Takes note of a record that was read, and says what to do with it.
    ///
    /// Offsets grow. Those between the last one and this one that are still to be read are not in the log any more, or
    /// never were records: they are settled with it. After a seek back, what was seen before is `Open` or `Settled`,
    /// never `New` a second time.
    ///
    /// `i64::MAX` is no offset a broker can give out (the end of its log would be past it); here it would come out as
    /// `New` again after it was settled: repeated, not lost.
    pub fn admit(&mut self, offset: i64) -> Admission {
        if self.open.contains(&offset) {
            return Admission::Open;
        }
        if offset >= self.next {
            self.advance(offset);
        }
        if offset < self.next {
            return Admission::Settled;
        }
        if let Some(&last) = self.open.last() {
            self.letters_between += gap_letters(last + 1, offset);
        }
        self.open.insert(offset);
        self.advance(offset.saturating_add(1));
        Admission::New
    }

    /// An open offset is done for good. `false` if it was not open: not ours, or settled before; nothing changes then.
    pub fn settle(&mut self, offset: i64) -> bool {
        if !self.open.remove(&offset) {
            return false;
        }
        let below = self.open.range(..offset).next_back().copied();
        let above = self.open.range(offset..).next().copied();
        if let Some(below) = below {
            self.letters_between -= gap_letters(below + 1, offset);
        }
        if let Some(above) = above {
            self.letters_between -= gap_letters(offset + 1, above);
        }
        if let (Some(below), Some(above)) = (below, above) {
            self.letters_between += gap_letters(below + 1, above);
        }
        true
    }

    /// Offsets that were settled elsewhere, or before this ledger was restored, whether they were read here yet or not.
    /// `false`: all of them were known to be.
    pub fn settle_elsewhere(&mut self, run: Range<i64>) -> bool {
        let open: Vec<i64> = self.open.range(run.clone()).copied().collect();
        for &offset in &open {
            self.settle(offset);
        }
        let ahead = run.start.max(self.next)..run.end;
        let news = !self.ahead.covers(&ahead);
        if news {
            self.ahead.insert(ahead);
            self.letters_ahead = letters_of(&self.ahead);
            self.advance(self.next); // it may be the very next one
        }
        news || !open.is_empty()
    }

    /// Whether an offset is settled.
    pub fn is_settled(&self, offset: i64) -> bool {
        (offset < self.next && !self.open.contains(&offset)) || self.ahead.covers(&(offset..offset.saturating_add(1)))
    }

    /// What is settled from `offset` on, as runs.
    pub fn settled_from(&self, offset: i64) -> Runs {
        let mut settled = self.ahead.clone();
        settled.insert(offset..self.next);
        self.open.range(offset..).for_each(|&open| settled.remove(open..open.saturating_add(1)));
        settled.remove(i64::MIN..offset);
        settled
    }

    /// The offset to commit: the lowest that is not settled; with nothing open, the next one expected. Never decreases.
    pub fn position(&self) -> i64 {
        self.oldest_open().unwrap_or(self.next)
    }

    /// How many offsets are open.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// The lowest open offset.
    pub fn oldest_open(&self) -> Option<i64> {
        self.open.first().copied()
    }

    /// What to commit beside [`position`](Self::position): the run list of what is settled beyond it, empty if nothing
    /// is.
    pub fn metadata(&self) -> String {
        let ends = self.open.iter().copied().skip(1).chain([self.next]);
        let between = self.open.iter().zip(ends).map(|(open, end)| open.saturating_add(1)..end);
        codec::encode(self.position(), between.filter(|run| !run.is_empty()).chain(self.ahead.iter().cloned()))
    }

    /// Whether to admit no new record for now, because the metadata may come to take over 75 % of `limit` characters;
    /// ask before each record. 0 means that metadata is not kept at all: never full.
    ///
    /// Two exceptions keep a ledger that was restored near its limit from standing still. With nothing open it is never
    /// full, since no command's end could make room. And while a lone open offset of the restored list comes next, it
    /// is full only at the limit itself: that offset is in the text already, admitted or not.
    pub fn is_full(&self, limit: usize) -> bool {
        if limit == 0 || self.open.is_empty() {
            return false;
        }
        let bound = self.metadata_bound();
        if bound + Self::ADMISSION_MAX > limit {
            return true;
        }
        let next_is_listed = self.ahead.first().is_some_and(|run| run.start - self.next == 1);
        bound > limit - limit.div_ceil(4) && !next_is_listed
    }

    /// An upper bound of the length of the metadata, now and after any of what is open was settled.
    fn metadata_bound(&self) -> usize {
        let after_open = self.open.last().map_or(0, |&last| gap_letters(last.saturating_add(1), self.next));
        let before_ahead = self.ahead.first().map_or(0, |run| gap_letters(self.next, run.start));
        HEADER_MAX + self.open.len() + self.letters_between + after_open + before_ahead + self.letters_ahead
    }

    /// Takes everything below `to` as read, and then what the restored list calls settled from there on.
    fn advance(&mut self, to: i64) {
        self.next = to;
        while let Some(run) = self.ahead.first().filter(|run| run.start <= to).cloned() {
            self.ahead.pop_first();
            self.letters_ahead -= run_letters(&run);
            if let Some(following) = self.ahead.first() {
                self.letters_ahead -= gap_letters(run.end, following.start);
            }
            self.next = self.next.max(run.end);
        }
    }
}

/// What was committed as settled: everything below the position, and the run list beyond.
pub fn committed_runs(position: i64, metadata: &str) -> Runs {
    let mut runs: Runs = codec::decode(position, metadata).unwrap_or_default().into_iter().collect();
    runs.insert(i64::MIN..position);
    runs
}

/// Letters for the offsets from `start` up to `end`, which is not one of them; 0 if there are none.
fn gap_letters(start: i64, end: i64) -> usize {
    letters(u64::try_from(end - start).unwrap_or(0))
}

/// Letters of the runs and of what is open between them.
fn letters_of(runs: &Runs) -> usize {
    let between = runs.iter().zip(runs.iter().skip(1)).map(|(one, next)| gap_letters(one.end, next.start));
    runs.iter().map(run_letters).chain(between).sum()
}

fn run_letters(run: &Range<i64>) -> usize {
    gap_letters(run.start, run.end)
}
