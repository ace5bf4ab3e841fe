//! Whose turn it is, of the groups that cannot share a pass.
//!
//! Turns go round: the group that has gone without a pass for longest has the next, whatever its size,
//! and one that has just formed comes before the one that has just run. So no row waits for more
//! passes than there are other groups when it could go on, however many come and go meanwhile, and
//! all rows step at one pace.

use std::collections::BTreeMap;

use crate::batch::BatchKey;

/// Rows that may be planned into one pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Group {
    /// All that finish, whatever their keys, one of them in each pass: so there is one decoding at
    /// most between two steps of anybody else. A row that has finished is gone, and only as a group
    /// can they be said to have had their turn. First here: of two with equal claims, it has a picture to
    /// hand over and a slot to give back.
    Finishing,
    /// Rows with this key that begin or iterate.
    Stepping(BatchKey),
}

/// When a group last had a pass, or else was formed. The later, the weaker is its claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    step: u64,
    ran: bool,
}

/// The claims of all groups that have rows.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    claims: BTreeMap<Group, Claim>,
}

impl Turns {
    /// The group whose turn it is in step number `step`, of those that rows belong to; with each row
    /// comes the order of its admission, which decides between equal claims.
    pub(crate) fn next(
        &mut self,
        step: u64,
        rows: impl Iterator<Item = (Group, u64)>,
    ) -> Option<Group> {
        let mut present: BTreeMap<Group, u64> = BTreeMap::new();
        for (group, ticket) in rows {
            let first = present.entry(group).or_insert(ticket);
            *first = ticket.min(*first);
        }
        self.claims.retain(|group, _| present.contains_key(group));
        let formed = Claim {
            step: step.saturating_sub(1),
            ran: false,
        };
        for group in present.keys() {
            self.claims.entry(*group).or_insert(formed);
        }
        let urgency = |group: Group, claim: Claim| {
            let stepping = group != Group::Finishing;
            (claim, stepping, present[&group])
        };
        let (&next, claim) = self
            .claims
            .iter_mut()
            .min_by_key(|(group, claim)| urgency(**group, **claim))?;
        *claim = Claim { step, ran: true };
        Some(next)
    }
}

/// A row of a group that could iterate now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stepper {
    /// Number of its last part in a pass, counted over all rows: that of a step alone would prefer the same rows
    /// among equals again and again.
    pub(crate) last_part: u64,
    /// Order of admission.
    pub(crate) ticket: u64,
    /// Units of its next step.
    pub(crate) work: u32,
}

/// Of a group's rows, those that take part in a pass of at most `limit` units. Whoever has gone without a pass for
/// longest comes first, so that all move on at one pace; nobody overtakes a row that does not fit, and one takes
/// part whatever it needs.
pub(crate) fn rotate<T>(mut rows: Vec<(Stepper, T)>, limit: u32) -> Vec<T> {
    rows.sort_unstable_by_key(|(row, _)| *row);
    let mut left = limit;
    let mut taken = 0;
    for (row, _) in &rows {
        match left.checked_sub(row.work) {
            Some(rest) => left = rest,
            None if taken == 0 => left = 0,
            None => break,
        }
        taken += 1;
    }
    rows.truncate(taken);
    rows.into_iter().map(|(_, row)| row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who has each pass, where the groups that have rows before each are given: `F` finishes, letters
    /// step.
    fn check(present: &[&str], wanted: &str) {
        let mut turns = Turns::default();
        let group = |letter| match letter {
            'F' => Group::Finishing,
            letter => Group::Stepping(BatchKey(letter as u64)),
        };
        let found: String = (1..)
            .zip(present)
            .map(|(step, letters)| {
                let rows = letters.chars().map(group).zip(1..);
                match turns.next(step, rows) {
                    None => '-',
                    Some(Group::Finishing) => 'F',
                    Some(Group::Stepping(key)) => char::from(key.0 as u8),
                }
            })
            .collect();
        assert_eq!(found, wanted, "{present:?}");
    }

    #[test]
    fn groups_go_round_whatever_their_size() {
        check(&["", "abc", "aaabc", "abbbc", "abc", "abc"], "-abcab");
    }

    #[test]
    fn a_newcomer_has_its_first_pass_before_anybody_has_a_second() {
        check(&["a", "a", "ab", "ab", "ab"], "aabab");
        // However many come: each waits for those that were there, and nobody waits for two of them
        // that came one after the other.
        check(&["a", "ab", "abc", "abcd", "abcde", "abcde"], "abacbd");
    }

    #[test]
    fn who_comes_and_goes_gains_nothing() {
        check(&["ab", "abc", "ab", "abc", "ab", "abc"], "ababab");
    }

    /// Who steps in each pass, of rows of this work, where a pass has room for `limit`.
    fn check_rotation(work: &[u32], limit: u32, wanted: &[&[usize]]) {
        let mut last = vec![0; work.len()];
        let mut parts = 0;
        for (step, wanted) in (1..).zip(wanted) {
            let rows = (0..work.len()).map(|row| {
                let stepper = Stepper {
                    last_part: last[row],
                    ticket: row as u64,
                    work: work[row],
                };
                (stepper, row)
            });
            let taken = rotate(rows.collect(), limit);
            assert_eq!(taken, *wanted, "pass {step}");
            for row in taken {
                parts += 1;
                last[row] = parts;
            }
        }
    }

    #[test]
    fn rows_beyond_a_passes_work_take_turns() {
        check_rotation(&[1; 3], 4, &[&[0, 1, 2], &[0, 1, 2]]);
        check_rotation(&[1; 5], 2, &[&[0, 1], &[2, 3], &[4, 0], &[1, 2], &[3, 4]]);
        // A guided row waits for its place and is not overtaken.
        check_rotation(&[1, 2, 1], 2, &[&[0], &[1], &[2, 0], &[1]]);
        // One that is too large for any pass has one to itself.
        check_rotation(&[9, 1], 2, &[&[0], &[1], &[0]]);
    }

    #[test]
    fn endings_and_steps_alternate_while_rows_end_in_every_pass() {
        check(&["a", "aF", "aF", "aF", "aF", "a"], "aFaFaa");
        // The earlier group has waited for longer than those that have just come to their end.
        check(&["ab", "abF", "abF", "abF", "abF", "abF"], "abFabF");
    }
}
