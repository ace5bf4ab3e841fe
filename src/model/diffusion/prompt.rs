//! Prompts as people write them for the Stable Diffusion web UI: weights, and any length.
//!
//! `(word)` weighs 1.1, `((word))` 1.21, `[word]` 1 / 1.1, `(word:1.3)` 1.3; a backslash takes a bracket
//! literally; brackets that are never closed count as closed at the end. `BREAK` ends a chunk. A chunk is 75
//! tokens between a beginning and an end, filled up with padding: as many as the encoder has positions.

use super::tokenizer::ClipTokenizer;
use crate::job::{PromptChunk, PromptTokens};
use crate::model::ModelError;

/// What a pair of round brackets multiplies by, and a pair of square ones divides by.
const BRACKET_WEIGHT: f64 = 1.1;
/// The largest weight, to either side of 0: far beyond what still draws a picture.
const MAX_WEIGHT: f64 = 100.0;
/// Brackets of one kind that may be open at once, so that a piece is weighted so many times at most. Round ones come to
/// [`MAX_WEIGHT`] long before.
const MAX_NESTING: usize = 100;
/// Ends a chunk, in capitals and as a word of its own.
const BREAK: &str = "BREAK";

/// A part of a prompt.
#[derive(Clone, Debug, PartialEq)]
enum Piece {
    /// Text of one weight.
    Text { text: String, weight: f64 },
    /// The chunk ends here.
    Break,
}

/// Why a prompt cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// The product of a place's weights is out of range.
    #[error("has a weight of {0}; weights must be -{MAX_WEIGHT} to {MAX_WEIGHT}")]
    Weight(f64),
    /// Brackets in brackets.
    #[error("has brackets in brackets, deeper than {MAX_NESTING}")]
    Nesting,
    /// A weight where none can be taken.
    #[error("holds a weight such as (word:1.3); this model's text encoders take none")]
    Unweighted,
    /// More text than is allowed.
    #[error("takes {chunks} chunks of {chunk_tokens} tokens; at most {most} are allowed")]
    TooLong {
        /// Chunks that it would take.
        chunks: usize,
        /// Tokens of one, without beginning and end.
        chunk_tokens: usize,
        /// Chunks that are allowed.
        most: usize,
    },
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] ModelError),
}

/// How a prompt becomes chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptOptions {
    /// Tokens of a chunk with beginning and end: the encoder's positions, 77.
    pub positions: usize,
    /// The most chunks of one prompt. At least 1.
    pub max_chunks: usize,
    /// Brackets and `BREAK` have their meaning; otherwise they are text like any other.
    pub weighted: bool,
}

/// Cuts a prompt into weighted chunks for one encoder. There is always one chunk; an empty prompt's is all padding.
///
/// # Errors
/// Weights out of range, or more chunks than allowed.
pub fn tokenize(
    tokenizer: &ClipTokenizer,
    prompt: &str,
    options: PromptOptions,
) -> Result<PromptTokens, PromptError> {
    let pieces = match options.weighted {
        true => pieces(prompt)?,
        false => vec![Piece::Text {
            text: prompt.to_string(),
            weight: 1.0,
        }],
    };
    let mut chunks = Chunks::new(tokenizer, options);
    for piece in pieces {
        match piece {
            Piece::Break => chunks.close(),
            Piece::Text { text, weight } => {
                for token in tokenizer.encode(&text)? {
                    chunks.push(token, weight as f32);
                }
            }
        }
    }
    chunks.finish()
}

/// Puts empty chunks behind a prompt until it has `count` of them, so that two prompts can share a pass.
pub fn pad_to_chunks(
    prompt: &mut PromptTokens,
    count: usize,
    tokenizer: &ClipTokenizer,
    positions: usize,
) {
    while prompt.chunks.len() < count {
        prompt.chunks.push(framed(tokenizer, &[], positions));
    }
}

/// The chunks of a prompt in the making.
struct Chunks<'a> {
    tokenizer: &'a ClipTokenizer,
    options: PromptOptions,
    done: Vec<PromptChunk>,
    open: Vec<(u32, f32)>,
    /// Chunks that were too many to keep.
    excess: usize,
}

impl<'a> Chunks<'a> {
    fn new(tokenizer: &'a ClipTokenizer, options: PromptOptions) -> Self {
        Chunks {
            tokenizer,
            options,
            done: Vec::new(),
            open: Vec::new(),
            excess: 0,
        }
    }

    fn chunk_tokens(&self) -> usize {
        self.options.positions.saturating_sub(2).max(1)
    }

    fn push(&mut self, token: u32, weight: f32) {
        if self.open.len() == self.chunk_tokens() {
            self.close();
        }
        self.open.push((token, weight));
    }

    fn close(&mut self) {
        let open = std::mem::take(&mut self.open);
        if self.done.len() == self.options.max_chunks {
            self.excess += 1;
        } else {
            self.done
                .push(framed(self.tokenizer, &open, self.options.positions));
        }
    }

    fn finish(mut self) -> Result<PromptTokens, PromptError> {
        if !self.open.is_empty() || self.done.is_empty() {
            self.close();
        }
        if self.excess > 0 {
            return Err(PromptError::TooLong {
                chunks: self.done.len() + self.excess,
                chunk_tokens: self.chunk_tokens(),
                most: self.options.max_chunks,
            });
        }
        Ok(PromptTokens { chunks: self.done })
    }
}

/// Beginning, these tokens, end, and padding up to `positions`.
fn framed(tokenizer: &ClipTokenizer, inside: &[(u32, f32)], positions: usize) -> PromptChunk {
    let mut tokens = vec![tokenizer.bos()];
    let mut weights = vec![1.0];
    for (token, weight) in inside {
        tokens.push(*token);
        weights.push(*weight);
    }
    tokens.push(tokenizer.eos());
    tokens.resize(positions.max(tokens.len()), tokenizer.pad());
    weights.resize(tokens.len(), 1.0);
    PromptChunk { tokens, weights }
}

/// Reads brackets, weights and breaks.
///
/// # Errors
/// A weight out of range, or brackets nested too deep.
fn pieces(prompt: &str) -> Result<Vec<Piece>, PromptError> {
    let mut reader = Reader::default();
    let mut rest = prompt;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '\\' => {
                // What follows a backslash is text, if it has a meaning to be freed from.
                let next = rest[1..].chars().next();
                let literal = next.filter(|next| "()[]\\".contains(*next));
                reader.text(&literal.map_or("\\".into(), String::from));
                1 + literal.map_or(0, char::len_utf8)
            }
            '(' => {
                open(&mut reader.round, reader.pieces.len())?;
                1
            }
            '[' => {
                open(&mut reader.square, reader.pieces.len())?;
                1
            }
            ')' if !reader.round.is_empty() => {
                reader.close_round(BRACKET_WEIGHT);
                1
            }
            ']' if !reader.square.is_empty() => {
                reader.close_square();
                1
            }
            ':' => match explicit_weight(rest).filter(|_| !reader.round.is_empty()) {
                Some((weight, length)) => {
                    reader.close_round(weight);
                    length
                }
                None => {
                    reader.text(":");
                    1
                }
            },
            _ => {
                let end = rest[first.len_utf8()..]
                    .find(['\\', '(', ')', '[', ']', ':'])
                    .map_or(rest.len(), |end| end + first.len_utf8());
                reader.text_with_breaks(&rest[..end]);
                end
            }
        };
        rest = &rest[length..];
    }
    reader.finish()
}

/// A bracket opens before the piece of this number.
fn open(brackets: &mut Vec<usize>, piece: usize) -> Result<(), PromptError> {
    if brackets.len() == MAX_NESTING {
        return Err(PromptError::Nesting);
    }
    brackets.push(piece);
    Ok(())
}

/// Whether the prompt says a weight in numbers, `(word:1.3)`. Bare brackets may be meant as text.
pub fn has_weights(prompt: &str) -> bool {
    let mut open = 0usize;
    let mut escaped = false;
    for (at, letter) in prompt.char_indices() {
        match letter {
            _ if escaped => {
                escaped = false;
                continue;
            }
            '(' => open += 1,
            ')' => open = open.saturating_sub(1),
            ':' if open > 0 && explicit_weight(&prompt[at..]).is_some() => return true,
            _ => {}
        }
        escaped = letter == '\\';
    }
    false
}

/// `:1.3)` at the beginning of a text: the weight, and how long it is written.
fn explicit_weight(text: &str) -> Option<(f64, usize)> {
    let inside = text.strip_prefix(':')?;
    // Stops at the first sign that no weight is written with, so that a row of colons costs little.
    let end =
        inside.find(|c: char| !(c.is_ascii_digit() || "+-.".contains(c) || c.is_whitespace()))?;
    if !inside[end..].starts_with(')') {
        return None;
    }
    let written = inside[..end].trim();
    let digits = written.strip_prefix(['+', '-']).unwrap_or(written);
    let is_plain = digits.chars().all(|c| c.is_ascii_digit() || c == '.');
    let weight = written.parse::<f64>().ok().filter(|_| is_plain)?;
    Some((weight, 1 + end + 1))
}

/// Pieces so far, and where the brackets that are open began.
#[derive(Default)]
struct Reader {
    pieces: Vec<Piece>,
    round: Vec<usize>,
    square: Vec<usize>,
}

impl Reader {
    fn text(&mut self, text: &str) {
        self.pieces.push(Piece::Text {
            text: text.to_string(),
            weight: 1.0,
        });
    }

    /// A text without brackets, in which `BREAK` may stand.
    fn text_with_breaks(&mut self, text: &str) {
        let mut rest = text;
        while let Some(at) = find_break(rest) {
            let before = rest[..at].trim_end();
            if !before.is_empty() {
                self.text(before);
            }
            self.pieces.push(Piece::Break);
            rest = rest[at + BREAK.len()..].trim_start();
        }
        if !rest.is_empty() {
            self.text(rest);
        }
    }

    fn close_round(&mut self, weight: f64) {
        if let Some(start) = self.round.pop() {
            self.multiply(start, weight);
        }
    }

    fn close_square(&mut self) {
        if let Some(start) = self.square.pop() {
            self.multiply(start, 1.0 / BRACKET_WEIGHT);
        }
    }

    fn multiply(&mut self, start: usize, factor: f64) {
        for piece in &mut self.pieces[start..] {
            if let Piece::Text { weight, .. } = piece {
                *weight *= factor;
            }
        }
    }

    fn finish(mut self) -> Result<Vec<Piece>, PromptError> {
        while !self.round.is_empty() {
            self.close_round(BRACKET_WEIGHT);
        }
        while !self.square.is_empty() {
            self.close_square();
        }
        let mut merged: Vec<Piece> = Vec::new();
        for piece in self.pieces {
            if let Piece::Text { weight, .. } = piece
                && (weight.is_nan() || weight.abs() > MAX_WEIGHT)
            {
                return Err(PromptError::Weight(weight));
            }
            // A word that a literal bracket cut in two must be tokenized as one.
            match (merged.last_mut(), piece) {
                (
                    Some(Piece::Text { text, weight }),
                    Piece::Text {
                        text: more,
                        weight: same,
                    },
                ) if *weight == same => text.push_str(&more),
                (_, piece) => merged.push(piece),
            }
        }
        Ok(merged)
    }
}

/// Where `BREAK` stands as a word of its own.
fn find_break(text: &str) -> Option<usize> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(BREAK).map(|(at, _)| at).find(|&at| {
        !text[..at].chars().next_back().is_some_and(is_word)
            && !text[at + BREAK.len()..].chars().next().is_some_and(is_word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(prompt: &str) -> Vec<(String, f64)> {
        pieces(prompt)
            .expect("valid")
            .into_iter()
            .map(|piece| match piece {
                Piece::Break => ("<break>".to_string(), 0.0),
                Piece::Text { text, weight } => (text, (weight * 1e6).round() / 1e6),
            })
            .collect()
    }

    fn expected(pieces: &[(&str, f64)]) -> Vec<(String, f64)> {
        pieces
            .iter()
            .map(|(text, weight)| ((*text).to_string(), *weight))
            .collect()
    }

    #[test]
    fn brackets_mean_what_the_web_ui_says() {
        for (prompt, wanted) in [
            ("normal text", &[("normal text", 1.0)][..]),
            (
                "an (important) word",
                &[("an ", 1.0), ("important", 1.1), (" word", 1.0)],
            ),
            ("(unbalanced", &[("unbalanced", 1.1)]),
            (r"\(literal\]", &[("(literal]", 1.0)]),
            ("(unnecessary)(parens)", &[("unnecessaryparens", 1.1)]),
            (
                "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
                &[
                    ("a ", 1.0),
                    ("house", 1.573),
                    (" ", 1.1),
                    ("on", 1.0),
                    (" a ", 1.1),
                    ("hill", 0.55),
                    (", sun, ", 1.1),
                    ("sky", 1.4641),
                    (".", 1.1),
                ],
            ),
            ("a:1.3) b", &[("a:1.3) b", 1.0)]),
            ("(a:b)", &[("a:b", 1.1)]),
            ("(a: -1.5 )", &[("a", -1.5)]),
            ("(a:1.2.3)", &[("a:1.2.3", 1.1)]),
            ("(a:inf)", &[("a:inf", 1.1)]),
            ("(a:.5)", &[("a", 0.5)]),
            ("[[a]]", &[("a", 0.826446)]),
            (r"tail\", &[(r"tail\", 1.0)]),
            (r"a\n", &[(r"a\n", 1.0)]),
            ("a BREAK b", &[("a", 1.0), ("<break>", 0.0), ("b", 1.0)]),
            ("a BREAKB b_BREAK", &[("a BREAKB b_BREAK", 1.0)]),
            ("(a BREAK b:2)", &[("a", 2.0), ("<break>", 0.0), ("b", 2.0)]),
            ("", &[]),
            ("()", &[]),
            ("雪 (月:1.2)", &[("雪 ", 1.0), ("月", 1.2)]),
        ] {
            assert_eq!(parsed(prompt), expected(wanted), "{prompt}");
        }
    }

    #[test]
    fn hostile_weights_are_errors() {
        let nines = "9".repeat(400);
        for prompt in [
            "(a:101)".to_string(),
            format!("(a:{nines})"),
            "((a:50):50)".to_string(),
            format!("{}a", "(".repeat(50)),
            format!("(b:0) ((a:{nines}):0)"),
        ] {
            let error = pieces(&prompt).expect_err(&prompt[..7]).to_string();
            assert!(error.contains("weights must be"), "{error}");
        }
        assert!(pieces(&"[".repeat(100)).expect("valid").is_empty());
        for hostile in ["(a", "[a", "((b)", "(a:0)[a"] {
            let error = pieces(&hostile.repeat(32_768)).expect_err(hostile);
            assert!(matches!(error, PromptError::Nesting), "{hostile}: {error}");
        }
        assert_eq!(
            parsed(&"(a:0)".repeat(1000)).len(),
            1,
            "one after the other"
        );
    }
}
