//! Text of a wanted length. Common words, so that tokenizers split it as they split prose; none of it means
//! anything.

use rand_chacha::rand_core::RngCore;

const WORDS: [&str; 128] = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "company",
    "system",
    "program",
    "question",
    "work",
    "government",
    "number",
    "night",
    "point",
    "home",
    "water",
    "room",
    "mother",
    "area",
    "money",
    "story",
    "fact",
    "month",
    "lot",
    "right",
    "study",
    "book",
    "eye",
    "job",
    "word",
    "business",
    "issue",
    "side",
    "kind",
    "head",
    "house",
    "service",
    "friend",
    "father",
    "power",
    "hour",
    "game",
    "line",
    "end",
    "member",
    "law",
    "car",
    "city",
    "name",
    "team",
    "minute",
    "idea",
    "body",
    "back",
    "parent",
    "face",
    "others",
    "level",
    "office",
    "door",
    "health",
    "person",
    "art",
    "war",
    "history",
    "party",
    "result",
    "change",
    "morning",
    "reason",
    "research",
    "girl",
    "guy",
    "moment",
    "air",
    "teacher",
    "force",
    "education",
    "foot",
    "boy",
    "age",
    "policy",
    "music",
    "market",
    "sense",
    "nation",
    "plan",
    "college",
    "interest",
    "death",
    "course",
    "someone",
    "experience",
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "that",
    "for",
    "it",
    "as",
    "was",
    "with",
    "be",
    "by",
    "on",
    "not",
    "he",
];

/// Appends words until `text` has grown by `length` bytes; the last one may be cut.
pub fn append(text: &mut String, length: usize, random: &mut impl RngCore) {
    let end = text.len() + length;
    while text.len() < end {
        // Seven bits of each number choose a word.
        let mut bits = random.next_u64();
        for _ in 0..9 {
            text.push_str(WORDS[(bits & 127) as usize]);
            text.push(' ');
            bits >>= 7;
        }
    }
    text.truncate(end);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::load::{Purpose, random};

    #[test]
    fn a_text_is_as_long_as_wanted_and_never_the_same() {
        let text = |ordinal, length| {
            let mut text = "> ".to_owned();
            append(&mut text, length, &mut random(1, Purpose::Asks, ordinal));
            text
        };
        for length in [0, 1, 40, 1000] {
            assert_eq!(text(0, length).len(), 2 + length);
        }
        assert_eq!(text(0, 100), text(0, 100));
        assert_ne!(text(0, 100), text(1, 100));
    }
}
