//! SentencePiece's byte-pair encoding, for GGUF vocabularies of the kind "llama".
//!
//! A text is one piece with its spaces written as `▁`. From single characters up, the two neighbours
//! whose joined text has the best score are joined, the leftmost first among equals, until no joined
//! text is in the vocabulary. A character that is not in the vocabulary becomes one token per byte.
//! (The `tokenizers` crate ranks *merges*, which differs where several pairs make the same text, so
//! it isn't used here.)

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use aho_corasick::{AhoCorasick, MatchKind};

use super::TokenizerError;

/// What a token of the vocabulary is to the encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PieceKind {
    /// Found by joining.
    Normal,
    /// Stands for one byte.
    Byte(u8),
    /// Recognised as a whole where it is written out.
    Added,
    /// The same, with the white space after it.
    AddedStrippingRight,
    /// Never made.
    Unused,
}

/// One token of the vocabulary; its id is its place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece<'a> {
    pub(super) text: &'a str,
    pub(super) score: f32,
    pub(super) kind: PieceKind,
}

/// What is done to spaces before encoding.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spaces {
    /// A space is put before a text, and before what follows an added token.
    pub(super) prefix: bool,
    /// Runs of spaces become one, and none is left at either end.
    pub(super) collapse: bool,
}

/// The encoder.
pub(super) struct SentencePiece {
    ids: HashMap<Box<str>, u32>,
    scores: Vec<f32>,
    fallback: Fallback,
    added: AhoCorasick,
    /// For each pattern of `added`: its id, and whether it takes the white space after it.
    added_ids: Vec<(u32, bool)>,
    spaces: Spaces,
}

/// What a character that is not in the vocabulary becomes.
enum Fallback {
    Bytes(Box<[u32; 256]>),
    Unknown(u32),
}

impl SentencePiece {
    /// # Errors
    /// A vocabulary with neither all byte tokens nor an unknown token.
    pub(super) fn new(
        pieces: &[Piece<'_>],
        unknown: Option<u32>,
        spaces: Spaces,
    ) -> Result<Self, TokenizerError> {
        let mut ids = HashMap::with_capacity(pieces.len());
        let mut byte_ids = [None; 256];
        let mut added_texts = Vec::new();
        let mut added_ids = Vec::new();
        for (id, piece) in (0..).zip(pieces) {
            match piece.kind {
                PieceKind::Normal => {
                    ids.insert(Box::from(piece.text), id);
                }
                PieceKind::Byte(byte) => byte_ids[usize::from(byte)] = Some(id),
                PieceKind::Added | PieceKind::AddedStrippingRight if !piece.text.is_empty() => {
                    added_texts.push(piece.text);
                    added_ids.push((id, piece.kind == PieceKind::AddedStrippingRight));
                }
                PieceKind::Added | PieceKind::AddedStrippingRight | PieceKind::Unused => {}
            }
        }
        let added = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(added_texts)
            .map_err(|error| TokenizerError(format!("cannot index the special tokens: {error}")))?;
        Ok(SentencePiece {
            ids,
            scores: pieces.iter().map(|piece| piece.score).collect(),
            fallback: Fallback::new(byte_ids, unknown)?,
            added,
            added_ids,
            spaces,
        })
    }

    /// Appends the ids of `text`.
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>) {
        let mut rest = 0;
        for found in self.added.find_iter(text) {
            // A match may begin in white space that the one before it took.
            if found.start() < rest {
                continue;
            }
            self.encode_plain(&text[rest..found.start()], ids);
            let (id, strips_right) = self.added_ids[found.pattern().as_usize()];
            ids.push(id);
            rest = found.end();
            if strips_right {
                let is_space = |character| matches!(character, ' ' | '\t'..='\r');
                rest = text.len() - text[rest..].trim_start_matches(is_space).len();
            }
        }
        self.encode_plain(&text[rest..], ids);
    }

    /// Appends the ids of a text without added tokens.
    fn encode_plain(&self, text: &str, ids: &mut Vec<u32>) {
        let text = self.spaces.normalise(text);
        let mut unknown_before = false;
        for piece in Merging::new(self, &text).run() {
            let id = self.ids.get(piece).copied();
            match (id, &self.fallback) {
                (Some(id), _) => ids.push(id),
                (None, Fallback::Bytes(byte_ids)) => {
                    ids.extend(piece.bytes().map(|byte| byte_ids[usize::from(byte)]));
                }
                // A run of unknown characters is one unknown token.
                (None, Fallback::Unknown(_)) if unknown_before => {}
                (None, Fallback::Unknown(unknown)) => ids.push(*unknown),
            }
            unknown_before = id.is_none();
        }
    }
}

impl Fallback {
    fn new(byte_ids: [Option<u32>; 256], unknown: Option<u32>) -> Result<Self, TokenizerError> {
        if byte_ids.iter().all(Option::is_some) {
            return Ok(Fallback::Bytes(Box::new(
                byte_ids.map(Option::unwrap_or_default),
            )));
        }
        unknown.map(Fallback::Unknown).ok_or_else(|| {
            TokenizerError(
                "the vocabulary has neither all 256 byte tokens nor an unknown token".to_owned(),
            )
        })
    }
}

impl Spaces {
    fn normalise(self, text: &str) -> String {
        let mut words = String::new();
        if text.is_empty() {
            return words;
        }
        if self.prefix {
            words.push('▁');
        }
        if self.collapse {
            let parts: Vec<&str> = text.split(' ').filter(|part| !part.is_empty()).collect();
            words.push_str(&parts.join("▁"));
        } else {
            words.push_str(&text.replace(' ', "▁"));
        }
        words
    }
}

/// A text on its way from single characters to pieces.
struct Merging<'a> {
    pieces: &'a SentencePiece,
    text: &'a str,
    symbols: Vec<Symbol>,
    candidates: BinaryHeap<Candidate>,
}

/// A stretch of the text, linked to its neighbours by index. Joined into its left neighbour, it
/// stays in place with no length.
struct Symbol {
    start: usize,
    len: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

/// Two neighbours that may be joined.
struct Candidate {
    score: f32,
    left: usize,
    right: usize,
    /// Length of both when this was noted; another length means that one has changed since.
    len: usize,
}

impl<'a> Merging<'a> {
    fn new(pieces: &'a SentencePiece, text: &'a str) -> Self {
        let count = text.chars().count();
        let symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(index, (start, character))| Symbol {
                start,
                len: character.len_utf8(),
                previous: index.checked_sub(1),
                next: Some(index + 1).filter(|&next| next < count),
            })
            .collect();
        let mut merging = Merging {
            pieces,
            text,
            symbols,
            candidates: BinaryHeap::new(),
        };
        for left in 0..count.saturating_sub(1) {
            merging.note(left, left + 1);
        }
        merging
    }

    /// Joins what can be joined; returns the pieces left, in order.
    fn run(mut self) -> impl Iterator<Item = &'a str> {
        while let Some(candidate) = self.candidates.pop() {
            if self.is_current(&candidate) {
                self.join(&candidate);
            }
        }
        let text = self.text;
        self.symbols
            .into_iter()
            .filter(|symbol| symbol.len > 0)
            .map(move |symbol| &text[symbol.start..symbol.start + symbol.len])
    }

    fn note(&mut self, left: usize, right: usize) {
        let start = self.symbols[left].start;
        let len = self.symbols[left].len + self.symbols[right].len;
        if let Some(&id) = self.pieces.ids.get(&self.text[start..start + len]) {
            self.candidates.push(Candidate {
                score: self.pieces.scores[id as usize],
                left,
                right,
                len,
            });
        }
    }

    fn is_current(&self, candidate: &Candidate) -> bool {
        let (left, right) = (
            &self.symbols[candidate.left],
            &self.symbols[candidate.right],
        );
        left.len > 0 && right.len > 0 && left.len + right.len == candidate.len
    }

    fn join(&mut self, candidate: &Candidate) {
        let Candidate { left, right, .. } = *candidate;
        self.symbols[left].len = candidate.len;
        self.symbols[right].len = 0;
        let next = self.symbols[right].next;
        self.symbols[left].next = next;
        if let Some(next) = next {
            self.symbols[next].previous = Some(left);
            self.note(left, next);
        }
        if let Some(previous) = self.symbols[left].previous {
            self.note(previous, left);
        }
    }
}

impl Ord for Candidate {
    /// The best score is the greatest; among equals the leftmost.
    fn cmp(&self, other: &Self) -> Ordering {
        self.score
            .total_cmp(&other.score)
            .then_with(|| other.left.cmp(&self.left))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}
