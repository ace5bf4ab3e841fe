//! Log-probabilities in the three shapes that clients know: chat, legacy completions, and the
//! `prompt_logprobs` that vLLM introduced.

use serde_json::{Map, Value, json};

use super::types::{ChatLogprobs, ChatToken, ChatTopToken, LegacyLogprobs};
use crate::batch::TokenLogprob;

/// What OpenAI says of a token that has (next to) no probability; JSON knows no infinity.
const NO_PROBABILITY: f32 = -9999.0;

/// The chat shape, with at most `top` alternatives a token.
pub(super) fn chat(logprobs: &[&TokenLogprob], top: u32) -> ChatLogprobs {
    let content = logprobs
        .iter()
        .map(|entry| ChatToken {
            own: chat_token(&entry.bytes, entry.logprob),
            top_logprobs: entry
                .top
                .iter()
                .take(top as usize)
                .map(|(_, bytes, logprob)| chat_token(bytes, *logprob))
                .collect(),
        })
        .collect();
    ChatLogprobs {
        content,
        refusal: None,
    }
}

fn chat_token(bytes: &[u8], logprob: f32) -> ChatTopToken {
    ChatTopToken {
        token: String::from_utf8_lossy(bytes).into_owned(),
        logprob: finite(logprob),
        bytes: bytes.to_vec(),
    }
}

/// The legacy shape. `offset` is where the first token begins in the choice's text, in characters;
/// returned is where the last one ends. The first `hidden` tokens are not part of the text.
pub(super) fn legacy<'a>(
    logprobs: impl IntoIterator<Item = &'a TokenLogprob>,
    top: u32,
    mut offset: u64,
    hidden: usize,
) -> (LegacyLogprobs, u64) {
    let mut shape = LegacyLogprobs::default();
    for (index, entry) in logprobs.into_iter().enumerate() {
        shape.tokens.push(token_name(&entry.bytes));
        shape.text_offset.push(offset);
        // The first token of a prompt has no probability: nothing came before it.
        let known = !entry.logprob.is_nan();
        shape
            .token_logprobs
            .push(known.then(|| finite(entry.logprob)));
        shape
            .top_logprobs
            .push(known.then(|| legacy_top(entry, top)));
        if index >= hidden {
            offset += characters(&entry.bytes);
        }
    }
    (shape, offset)
}

/// The alternatives by name; the token itself is always among them.
fn legacy_top(entry: &TokenLogprob, top: u32) -> Map<String, Value> {
    let mut names: Map<String, Value> = entry
        .top
        .iter()
        .take(top as usize)
        .map(|(_, bytes, logprob)| (token_name(bytes), json!(finite(*logprob))))
        .collect();
    names.insert(token_name(&entry.bytes), json!(finite(entry.logprob)));
    names
}

/// vLLM's shape: for each prompt token an object from token id to what is known of it; null for
/// the first.
pub(super) fn prompt(logprobs: &[&TokenLogprob], top: u32) -> Vec<Option<Map<String, Value>>> {
    logprobs
        .iter()
        .map(|entry| (!entry.logprob.is_nan()).then(|| prompt_entry(entry, top)))
        .collect()
}

fn prompt_entry(entry: &TokenLogprob, top: u32) -> Map<String, Value> {
    let told = |bytes: &[u8], logprob: f32, rank: Option<usize>| {
        json!({
            "logprob": finite(logprob),
            "rank": rank,
            "decoded_token": String::from_utf8_lossy(bytes),
        })
    };
    let rank = entry.top.iter().position(|(id, ..)| *id == entry.token);
    let own = told(&entry.bytes, entry.logprob, rank.map(|index| index + 1));
    let mut ids = Map::from_iter([(entry.token.to_string(), own)]);
    for (index, (id, bytes, logprob)) in entry.top.iter().take(top as usize).enumerate() {
        ids.insert(id.to_string(), told(bytes, *logprob, Some(index + 1)));
    }
    ids
}

/// A token's text; where it is no whole text, its bytes as OpenAI writes them, so that different
/// tokens keep different names.
fn token_name(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |name, byte| {
            name + &format!("\\x{byte:02x}")
        }),
    }
}

/// Characters that begin in these bytes.
fn characters(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|&&byte| byte & 0xC0 != 0x80).count() as u64
}

fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() {
        logprob.max(NO_PROBABILITY)
    } else {
        NO_PROBABILITY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(token: u32, bytes: &[u8], logprob: f32, top: &[(u32, &str, f32)]) -> TokenLogprob {
        TokenLogprob {
            token,
            bytes: bytes.to_vec(),
            logprob,
            top: top
                .iter()
                .map(|(id, text, logprob)| (*id, text.as_bytes().to_vec(), *logprob))
                .collect(),
        }
    }

    #[test]
    fn legacy_offsets_count_characters_and_split_ones_once() {
        let entries = [
            entry(9, b"<s>", f32::NAN, &[]),
            entry(1, "hé".as_bytes(), -0.5, &[(1, "hé", -0.5), (2, "b", -1.0)]),
            entry(3, b"\xE2\x82", -2.0, &[(2, "b", -1.0)]),
            entry(4, b"\xAC", f32::NEG_INFINITY, &[]),
            entry(5, b"!", -0.25, &[]),
        ];
        let (shape, end) = legacy(&entries, 1, 10, 1);
        assert_eq!(shape.text_offset, [10, 10, 12, 13, 13]);
        assert_eq!(end, 14);
        assert_eq!(
            shape.tokens,
            ["<s>", "hé", "bytes:\\xe2\\x82", "bytes:\\xac", "!"]
        );
        assert_eq!(
            shape.token_logprobs,
            [
                None,
                Some(-0.5),
                Some(-2.0),
                Some(NO_PROBABILITY),
                Some(-0.25)
            ]
        );
        assert_eq!(
            serde_json::to_value(&shape.top_logprobs).expect("plain data"),
            json!([
                null,
                {"hé": -0.5},
                {"b": -1.0, "bytes:\\xe2\\x82": -2.0},
                {"bytes:\\xac": -9999.0},
                {"!": -0.25},
            ])
        );
    }

    #[test]
    fn the_chat_shape_shows_as_many_alternatives_as_asked_for() {
        let entry = entry(
            1,
            b"a",
            -0.5,
            &[(1, "a", -0.5), (2, "b", -1.0), (3, "c", -3.0)],
        );
        assert_eq!(
            serde_json::to_value(chat(&[&entry], 2)).expect("plain data"),
            json!({
                "content": [{
                    "token": "a", "logprob": -0.5, "bytes": [97],
                    "top_logprobs": [
                        {"token": "a", "logprob": -0.5, "bytes": [97]},
                        {"token": "b", "logprob": -1.0, "bytes": [98]},
                    ],
                }],
                "refusal": null,
            })
        );
    }

    #[test]
    fn prompt_logprobs_tell_the_rank_where_it_is_known() {
        let first = entry(7, b"x", f32::NAN, &[]);
        let known = entry(2, b"b", -1.0, &[(1, "a", -0.5), (2, "b", -1.0)]);
        let far = entry(3, b"c", -9.0, &[(1, "a", -0.5)]);
        assert_eq!(
            serde_json::to_value(prompt(&[&first, &known, &far], 1)).expect("plain data"),
            json!([
                null,
                {"2": {"logprob": -1.0, "rank": 2, "decoded_token": "b"},
                 "1": {"logprob": -0.5, "rank": 1, "decoded_token": "a"}},
                {"3": {"logprob": -9.0, "rank": null, "decoded_token": "c"},
                 "1": {"logprob": -0.5, "rank": 1, "decoded_token": "a"}},
            ])
        );
    }
}
