//! Who gets which partition, and what members tell each other about commands that run outside their own partitions.
//!
//! Pure. The leader of a generation calls [`assign`]; every member writes a [`Subscription`] and reads an [`Assignment`].
//! Both stand in the usual formats of Kafka's consumer protocol, so that Kafka's own tools show them; what is ours is
//! JSON in their user data.
//!
//! The assignment is sticky and cooperative (as KIP-429): a partition that is to move stays with nobody for one generation,
//! in which its owner stops starting its records, commits and joins again; until then both go on with what they keep.
//!
//! A command that still runs when its partition moves is a *claim*: its worker names the offset in each of its
//! subscriptions (`away`) until the command has ended, and then as `done`. The leader passes both on to whoever owns the
//! partition in that generation. The owner treats a claimed offset as one that runs; once nobody claims it any more and
//! it is not done, its worker is gone and the record is run again.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kafka_protocol::messages::consumer_protocol_assignment::TopicPartition as Assigned;
use kafka_protocol::messages::consumer_protocol_subscription::TopicPartition as Owned;
use kafka_protocol::messages::{ConsumerProtocolAssignment, ConsumerProtocolSubscription};
use kafka_protocol::protocol::{Decodable, Encodable};
use serde::{Deserialize, Serialize};

use super::guard::Guarded;
use super::topic_name;
use crate::broker::At;

/// How we call the way partitions are assigned; members that do not know it cannot join.
pub const PROTOCOL: &str = "airkafka-sticky";

/// Version of subscription and assignment that we write: the one with owned partitions.
const VERSION: i16 = 1;

/// Records in a row: partition, first offset, and the one after the last.
pub type Run = (i32, i64, i64);

/// What a member tells when it joins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subscription {
    /// The topic it reads.
    pub topic: String,
    /// The partitions it has, and the generation in which it got them.
    pub owned: BTreeSet<i32>,
    /// What it tells beside.
    pub said: Said,
}

/// Our part of a subscription.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// The generation in which it got what it owns.
    pub generation: i32,
    /// Whether it is about to leave, and wants no partition.
    #[serde(default)]
    pub draining: bool,
    /// Records of partitions it does not own whose command it still runs.
    #[serde(default)]
    pub away: Vec<At>,
    /// Records whose command has ended and is reported, though its partition was not its own by then.
    #[serde(default)]
    pub done: Vec<Run>,
}

/// What a member is told by the leader.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    /// Its partitions.
    pub partitions: BTreeSet<i32>,
    /// What it has to know of their records.
    pub told: Told,
}

/// Our part of an assignment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// How many members there are.
    #[serde(default)]
    pub members: usize,
    /// Records of its partitions whose command another member runs.
    #[serde(default)]
    pub running: Vec<At>,
    /// Records of its partitions whose command another member has run and reported.
    #[serde(default)]
    pub done: Vec<Run>,
    /// Partitions that nobody has in this generation, because they are about to move: nobody is told of their records.
    #[serde(default)]
    pub unowned: Vec<i32>,
}

/// Assigns `partitions` partitions; `members` by member id.
pub fn assign(members: &BTreeMap<String, Subscription>, partitions: i32) -> BTreeMap<String, Assignment> {
    let mut assigned: BTreeMap<String, Assignment> =
        members.keys().map(|id| (id.clone(), Assignment::default())).collect();
    let owners = owners(members, partitions);
    for (partition, member) in balance(members, &owners, partitions) {
        // One that has another owner is free only once that one has let it go.
        if owners.get(&partition).is_none_or(|owner| *owner == member) {
            assigned.entry(member.clone()).or_default().partitions.insert(partition);
        }
    }
    let owned: BTreeSet<i32> = assigned.values().flat_map(|assignment| assignment.partitions.iter().copied()).collect();
    let unowned: Vec<i32> = (0..partitions).filter(|partition| !owned.contains(partition)).collect();
    for (id, assignment) in &mut assigned {
        let others = || members.iter().filter(|(other, _)| *other != id).map(|(_, subscription)| &subscription.said);
        let ours = |partition: i32| assignment.partitions.contains(&partition);
        let running = others().flat_map(|said| &said.away).filter(|at| ours(at.0)).copied().collect();
        let done = others().flat_map(|said| &said.done).filter(|run| ours(run.0)).copied().collect();
        assignment.told = Told { members: members.len(), running, done, unowned: unowned.clone() };
    }
    assigned
}

/// Who owns each partition now. Of two that believe they do, the one of the later generation; of the same one, nobody.
fn owners(members: &BTreeMap<String, Subscription>, partitions: i32) -> BTreeMap<i32, &String> {
    let mut claims: BTreeMap<i32, Vec<(i32, &String)>> = BTreeMap::new();
    for (id, subscription) in members {
        for &partition in subscription.owned.iter().filter(|&&partition| partition < partitions) {
            claims.entry(partition).or_default().push((subscription.said.generation, id));
        }
    }
    claims.into_iter().filter_map(|(partition, claims)| Some((partition, latest(&claims)?))).collect()
}

fn latest<'a>(claims: &[(i32, &'a String)]) -> Option<&'a String> {
    let newest = claims.iter().map(|(generation, _)| *generation).max()?;
    let mut of_newest = claims.iter().filter(|(generation, _)| *generation == newest);
    let (_, owner) = of_newest.next()?;
    of_newest.next().is_none().then_some(*owner)
}

/// The member each partition should have in the end: as evenly as can be, with as few moves as that allows.
fn balance<'a>(
    members: &'a BTreeMap<String, Subscription>,
    owners: &BTreeMap<i32, &'a String>,
    partitions: i32,
) -> BTreeMap<i32, &'a String> {
    // Who drains gets something only if nobody else is there: somebody has to keep account of what is done.
    let staying = members.iter().filter(|(_, subscription)| !subscription.said.draining).map(|(id, _)| id);
    let mut takers: Vec<&String> = staying.collect();
    if takers.is_empty() {
        takers = members.keys().collect();
    }
    let Ok(count) = usize::try_from(partitions) else { return BTreeMap::new() };
    if takers.is_empty() {
        return BTreeMap::new();
    }
    let (least, mut with_one_more) = (count / takers.len(), count % takers.len());
    let mut target = BTreeMap::new();
    let mut loads: BTreeMap<&String, usize> = BTreeMap::new();
    let owned_by = |member: &String| -> Vec<i32> {
        owners.iter().filter(|(_, owner)| **owner == member).map(|(&partition, _)| partition).collect()
    };
    // Keep what is owned, up to a fair share; those that own most may keep one more.
    takers.sort_by_key(|member| (std::cmp::Reverse(owned_by(member).len()), *member));
    for &member in &takers {
        let owned = owned_by(member);
        let mut share = least;
        if owned.len() > least && with_one_more > 0 {
            with_one_more -= 1;
            share += 1;
        }
        for &partition in owned.iter().take(share) {
            target.insert(partition, member);
        }
        loads.insert(member, owned.len().min(share));
    }
    // What is left goes to whoever has least.
    for partition in 0..partitions {
        if target.contains_key(&partition) {
            continue;
        }
        let least_loaded = loads.iter().min_by_key(|(member, load)| (**load, **member)).map(|(member, _)| *member);
        if let Some(member) = least_loaded {
            target.insert(partition, member);
            *loads.entry(member).or_default() += 1;
        }
    }
    target
}

impl Subscription {
    /// Its bytes on the wire.
    pub fn encode(&self) -> Bytes {
        let topic = topic_name(&self.topic);
        let owned = Owned::default().with_topic(topic.clone()).with_partitions(self.owned.iter().copied().collect());
        let subscription = ConsumerProtocolSubscription::default()
            .with_topics(vec![topic.0])
            .with_owned_partitions(vec![owned])
            .with_user_data(Some(user_data(&self.said)));
        versioned(&subscription)
    }

    /// Reads what a member has written; `None`: it is not one of ours.
    pub fn decode(bytes: Bytes, topic: &str) -> Option<Subscription> {
        let (version, bytes) = split_version(bytes)?;
        let read = ConsumerProtocolSubscription::decode(&mut Guarded::new(bytes, false), version.clamp(0, 3)).ok()?;
        let said = serde_json::from_slice(read.user_data.as_deref()?).ok()?;
        let owned = read.owned_partitions.iter().filter(|owned| owned.topic.0.as_str() == topic);
        let owned =
            owned.flat_map(|owned| owned.partitions.iter().copied()).filter(|&partition| partition >= 0).collect();
        Some(Subscription { topic: topic.into(), owned, said })
    }
}

impl Assignment {
    /// Its bytes on the wire.
    pub fn encode(&self, topic: &str) -> Bytes {
        let partitions = Assigned::default()
            .with_topic(topic_name(topic))
            .with_partitions(self.partitions.iter().copied().collect());
        let assignment = ConsumerProtocolAssignment::default()
            .with_assigned_partitions(vec![partitions])
            .with_user_data(Some(user_data(&self.told)));
        versioned(&assignment)
    }

    /// Reads what the leader has written. Empty bytes are no partitions: the leader did not know us.
    pub fn decode(bytes: Bytes, topic: &str) -> Option<Assignment> {
        if bytes.is_empty() {
            return Some(Assignment::default());
        }
        let (version, bytes) = split_version(bytes)?;
        let read = ConsumerProtocolAssignment::decode(&mut Guarded::new(bytes, false), version.clamp(0, 3)).ok()?;
        let told = serde_json::from_slice(read.user_data.as_deref()?).ok()?;
        let partitions = read.assigned_partitions.iter().filter(|assigned| assigned.topic.0.as_str() == topic);
        let partitions = partitions
            .flat_map(|assigned| assigned.partitions.iter().copied())
            .filter(|&partition| partition >= 0)
            .collect();
        Some(Assignment { partitions, told })
    }
}

fn user_data(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).expect("numbers always serialise").into()
}

fn versioned(message: &impl Encodable) -> Bytes {
    let mut bytes = VERSION.to_be_bytes().to_vec();
    message.encode(&mut bytes, VERSION).expect("the fields we set are those of this version");
    bytes.into()
}

fn split_version(mut bytes: Bytes) -> Option<(i16, Bytes)> {
    let version = i16::from_be_bytes(*bytes.first_chunk::<2>()?);
    Some((version, bytes.split_off(2)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn member(owned: &[i32]) -> Subscription {
        let said = Said { generation: 1, ..Said::default() };
        Subscription { topic: "t".into(), owned: owned.iter().copied().collect(), said }
    }

    fn members(list: &[(&str, Subscription)]) -> BTreeMap<String, Subscription> {
        list.iter().map(|(id, member)| (id.to_string(), member.clone())).collect()
    }

    fn partitions_of(assigned: &BTreeMap<String, Assignment>) -> BTreeMap<&str, Vec<i32>> {
        assigned.iter().map(|(id, a)| (id.as_str(), a.partitions.iter().copied().collect())).collect()
    }

    #[test]
    fn a_newcomer_gets_its_share_once_it_has_been_let_go() {
        let first = assign(&members(&[("a", member(&[0, 1, 2, 3])), ("b", member(&[]))]), 4);
        assert_eq!(partitions_of(&first), [("a", vec![0, 1]), ("b", vec![])].into());
        assert_eq!(first["b"].told.unowned, [2, 3]);
        let then = assign(&members(&[("a", member(&[0, 1])), ("b", member(&[]))]), 4);
        assert_eq!(partitions_of(&then), [("a", vec![0, 1]), ("b", vec![2, 3])].into());
    }

    #[test]
    fn nothing_moves_where_shares_are_fair() {
        let fair = members(&[("a", member(&[0, 3])), ("b", member(&[1])), ("c", member(&[2]))]);
        assert_eq!(partitions_of(&assign(&fair, 4)), [("a", vec![0, 3]), ("b", vec![1]), ("c", vec![2])].into());
        let more = members(&[("a", member(&[0])), ("b", member(&[])), ("c", member(&[]))]);
        assert_eq!(partitions_of(&assign(&more, 1)), [("a", vec![0]), ("b", vec![]), ("c", vec![])].into());
    }

    #[test]
    fn who_drains_lets_go_unless_nobody_else_is_there() {
        let mut draining = member(&[0, 1]);
        draining.said.draining = true;
        let alone = members(&[("a", draining.clone())]);
        assert_eq!(partitions_of(&assign(&alone, 2)), [("a", vec![0, 1])].into());
        let both = members(&[("a", draining), ("b", member(&[]))]);
        assert_eq!(partitions_of(&assign(&both, 2)), [("a", vec![]), ("b", vec![])].into());
    }

    #[test]
    fn of_two_owners_the_later_one_counts_and_of_equal_ones_none() {
        let mut stale = member(&[0]);
        stale.said.generation = 0;
        let assigned = assign(&members(&[("a", stale), ("b", member(&[0]))]), 1);
        assert_eq!(partitions_of(&assigned), [("a", vec![]), ("b", vec![0])].into());
        let equal = assign(&members(&[("a", member(&[0])), ("b", member(&[0]))]), 1);
        assert_eq!(equal.values().map(|a| a.partitions.len()).sum::<usize>(), 1);
    }

    #[test]
    fn owners_are_told_what_others_run_and_have_run() {
        let mut away = member(&[]);
        away.said.away = vec![(0, 7), (1, 8)];
        away.said.done = vec![(0, 5, 6)];
        let assigned = assign(&members(&[("a", away), ("b", member(&[0]))]), 2);
        assert_eq!(
            assigned["b"].told,
            Told { members: 2, running: vec![(0, 7)], done: vec![(0, 5, 6)], unowned: vec![] }
        );
        assert_eq!(assigned["a"].partitions, [1].into());
        assert_eq!(assigned["a"].told.running, [], "its own it knows");
    }

    #[test]
    fn what_is_written_is_read() {
        let mut subscription = member(&[3, 5]);
        subscription.said = Said { generation: 9, draining: true, away: vec![(1, 2)], done: vec![(3, 4, 9)] };
        assert_eq!(Subscription::decode(subscription.encode(), "t"), Some(subscription));
        let assignment = Assignment {
            partitions: [1, 2].into(),
            told: Told { members: 3, running: vec![(1, 9)], done: vec![], unowned: vec![4] },
        };
        assert_eq!(Assignment::decode(assignment.encode("t"), "t"), Some(assignment));
        assert_eq!(Assignment::decode(Bytes::new(), "t"), Some(Assignment::default()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// From any state, rounds of assigning and letting go end in a fair share for everyone, no partition ever has two
        /// owners, and nothing moves any more after that.
        #[test]
        fn it_settles_evenly(count in 0..20i32, owners in proptest::collection::vec(0..7usize, 20), drains in proptest::collection::vec(any::<bool>(), 6)) {
            let names = ["a", "b", "c", "d", "e", "f"];
            let mut state: BTreeMap<String, Subscription> = BTreeMap::new();
            for (index, name) in names.iter().enumerate() {
                let owned: Vec<i32> = (0..count).filter(|&p| owners[p as usize] == index).collect();
                let mut one = member(&owned);
                one.said.draining = drains[index] && index > 0;
                state.insert(name.to_string(), one);
            }
            for round in 0..4 {
                let assigned = assign(&state, count);
                let all: Vec<i32> = assigned.values().flat_map(|a| a.partitions.iter().copied()).collect();
                prop_assert_eq!(all.len(), all.iter().collect::<BTreeSet<_>>().len());
                let before = state.clone();
                for (id, assignment) in &assigned {
                    for partition in &assignment.partitions {
                        let other = before.iter().any(|(o, s)| o != id && s.owned.contains(partition));
                        prop_assert!(!other, "{} moved while it was owned", partition);
                    }
                    state.get_mut(id).unwrap().owned = assignment.partitions.clone();
                }
                if round >= 2 {
                    prop_assert_eq!(&state, &before);
                    prop_assert_eq!(all.len(), count as usize);
                }
            }
            let loads: Vec<usize> = state.values().filter(|s| !s.said.draining).map(|s| s.owned.len()).collect();
            prop_assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1);
        }

        #[test]
        fn rubbish_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Subscription::decode(Bytes::from(bytes.clone()), "t");
            let _ = Assignment::decode(Bytes::from(bytes), "t");
        }
    }
}
