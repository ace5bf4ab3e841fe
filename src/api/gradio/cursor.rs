//! Where a client stands in a session's stream: an id that says it all.
//!
//! It is `BASE.NUMBER-SEQ.NUMBER-SEQ…`: every event of the session below number `BASE` has been told, those named
//! up to their own `SEQ`, and the others not at all. So the service keeps nothing for it but the logs.

use std::collections::BTreeMap;
use std::fmt;

/// How far each event of a session has been told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cursor {
    /// All events below have been told to their end.
    pub(super) base: u64,
    /// Of the others, the last event of the log that was told.
    pub(super) seen: BTreeMap<u64, u64>,
}

impl Cursor {
    /// As many events as a session can have by any sensible setting.
    const MAX_EVENTS: usize = 4_096;

    /// Reads an id; `None` if it is none of ours.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        let mut cursor = Cursor {
            base: digits(parts.next()?)?,
            seen: BTreeMap::new(),
        };
        for part in parts {
            let (number, seq) = part.split_once('-')?;
            cursor.seen.insert(digits(number)?, digits(seq)?);
            if cursor.seen.len() > Self::MAX_EVENTS {
                return None;
            }
        }
        Some(cursor)
    }

    /// The last event that was told of the event of this number; 0 if none was.
    pub(super) fn seen(&self, number: u64) -> u64 {
        self.seen.get(&number).copied().unwrap_or(0)
    }
}

/// Digits only: `parse` would take a sign as well.
fn digits(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| plain)
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.base)?;
        self.seen
            .iter()
            .try_for_each(|(number, seq)| write!(f, ".{number}-{seq}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_survives_its_text() {
        let cursor = Cursor {
            base: 3,
            seen: [(3, 15), (5, 2)].into(),
        };
        assert_eq!(cursor.to_string(), "3.3-15.5-2");
        assert_eq!(Cursor::parse("3.3-15.5-2"), Some(cursor));
        assert_eq!(Cursor::parse("7").map(|cursor| cursor.base), Some(7));
        for wrong in [
            "", "x", "1.", "1.2", "1.2-", "1.-2", "1.+2-3", "-1", "1.2-3-4",
        ] {
            assert_eq!(Cursor::parse(wrong), None, "{wrong}");
        }
        let with = |events: u64| {
            let parts: String = (0..events).map(|number| format!(".{number}-1")).collect();
            Cursor::parse(&format!("0{parts}"))
        };
        assert!(with(4_096).is_some());
        assert_eq!(with(4_097), None);
    }
}
