//! What both Kafka clients do alike when they read.

use std::collections::VecDeque;

use log::warn;

use super::{Event, Position, Record};

/// Makes events of the records of several partitions: from each in turn, so that a long backlog in one does not hold up
/// the others.
pub fn in_turn(mut partitions: Vec<VecDeque<Record>>, events: &mut Vec<Event>) {
    while partitions.iter().any(|records| !records.is_empty()) {
        events.extend(partitions.iter_mut().filter_map(VecDeque::pop_front).map(Event::Record));
    }
}

/// Says that reading cannot go on at `at`, and goes on at `earliest`, since it is worse to lose than to repeat.
pub fn warn_of_gap(at: &Position, earliest: i64) {
    let why = if at.offset < earliest {
        format!("retention has deleted {} offset(s) that were never run", earliest - at.offset)
    } else {
        "the topic was made anew or has lost its end".into()
    };
    warn!("{at} does not exist: {why}; going on at {earliest}");
}
