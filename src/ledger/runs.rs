//! A set of offsets as runs: sorted, apart from each other, none empty.

use std::collections::VecDeque;
use std::ops::Range;

/// The set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runs(VecDeque<Range<i64>>);

impl Runs {
    /// Adds a run; those that touch become one.
    pub fn insert(&mut self, run: Range<i64>) {
        if run.is_empty() {
            return;
        }
        let first = self.0.partition_point(|other| other.end < run.start);
        let last = self.0.partition_point(|other| other.start <= run.end);
        let touched = self.0.drain(first..last);
        let joined = touched.fold(run, |joined, other| joined.start.min(other.start)..joined.end.max(other.end));
        self.0.insert(first, joined);
    }

    /// Takes a run out.
    pub fn remove(&mut self, run: Range<i64>) {
        if run.is_empty() {
            return;
        }
        let first = self.0.partition_point(|other| other.end <= run.start);
        let last = self.0.partition_point(|other| other.start < run.end);
        let touched: Vec<Range<i64>> = self.0.drain(first..last).collect();
        let left = touched.first().map(|other| other.start..run.start.min(other.end));
        let right = touched.last().map(|other| run.end.max(other.start)..other.end);
        for rest in [right, left].into_iter().flatten().filter(|rest| !rest.is_empty()) {
            self.0.insert(first, rest);
        }
    }

    /// Whether all of a run is in it.
    pub fn covers(&self, run: &Range<i64>) -> bool {
        let candidate = self.0.partition_point(|ours| ours.end <= run.start);
        run.is_empty() || self.0.get(candidate).is_some_and(|ours| ours.start <= run.start && run.end <= ours.end)
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The runs, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = &Range<i64>> + Clone {
        self.0.iter()
    }

    /// The lowest run.
    pub fn first(&self) -> Option<&Range<i64>> {
        self.0.front()
    }

    /// Takes the lowest run out.
    pub fn pop_first(&mut self) -> Option<Range<i64>> {
        self.0.pop_front()
    }
}

impl FromIterator<Range<i64>> for Runs {
    fn from_iter<T: IntoIterator<Item = Range<i64>>>(runs: T) -> Self {
        let mut all = Runs::default();
        runs.into_iter().for_each(|run| all.insert(run));
        all
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn agrees_with_a_plain_set(steps in proptest::collection::vec((any::<bool>(), 0..40i64, 0..8i64), 0..40)) {
            let (mut runs, mut set) = (Runs::default(), BTreeSet::new());
            for (insert, start, length) in steps {
                if insert {
                    runs.insert(start..start + length);
                    set.extend(start..start + length);
                } else {
                    runs.remove(start..start + length);
                    set.retain(|offset| !(start..start + length).contains(offset));
                }
                let flat: Vec<i64> = runs.iter().cloned().flatten().collect();
                prop_assert_eq!(flat, set.iter().copied().collect::<Vec<_>>());
                let apart = runs.iter().zip(runs.iter().skip(1)).all(|(one, next)| one.end < next.start);
                prop_assert!(apart && runs.iter().all(|run| !run.is_empty()));
                let covers = |run: Range<i64>| runs.covers(&run) == run.clone().all(|offset| set.contains(&offset));
                prop_assert!((0..50).all(|offset| (0..5).all(|length| covers(offset..offset + length))));
            }
        }
    }
}
