//! What each request asks for, from a seed.

use std::fmt::Write as _;

use rand_chacha::rand_core::RngCore;

use super::conversations::Conversations;
use super::{Lengths, PictureLoad, Planned, Purpose, random, words};

/// Texts that are asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct TextLoad {
    /// Prompt tokens, those of the chat template included.
    pub input_tokens: Lengths,
    /// New tokens.
    pub output_tokens: Lengths,
    /// Questions from a file instead; the answers are as long as those in the file.
    pub conversations: Option<Conversations>,
    /// The share of a prompt's tokens that an earlier prompt began with, 0 to 1. With 0 no two prompts begin
    /// alike.
    pub prefix_share: f64,
    /// How many different beginnings there are.
    pub prefixes: u32,
}

/// Whose words they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The user's.
    User,
    /// The model's.
    Assistant,
}

/// One request for text.
#[derive(Clone, Debug, PartialEq)]
pub struct TextAsk {
    /// The conversation so far; the last message is the question.
    pub messages: Vec<(Role, String)>,
    /// New tokens wanted.
    pub output_tokens: u32,
    /// For sampling.
    pub seed: u32,
}

/// One request for a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct PictureAsk {
    /// What to draw.
    pub prompt: String,
    /// Width and height in pixels.
    pub size: Option<(u32, u32)>,
    /// Denoising steps.
    pub steps: Option<u32>,
    /// Guidance.
    pub guidance_scale: Option<f64>,
    /// Partial pictures.
    pub previews: u32,
    /// Of the noise.
    pub seed: u32,
}

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub enum Ask {
    /// For text.
    Text(TextAsk),
    /// For a picture.
    Picture(PictureAsk),
}

/// How the server's tokenizer splits our words; told by the server's own counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenScale {
    /// Bytes of text to a token.
    pub bytes_per_token: f64,
    /// Tokens that the chat template adds.
    pub template_tokens: f64,
}

impl Default for TokenScale {
    /// Common English words.
    fn default() -> Self {
        TokenScale {
            bytes_per_token: 5.5,
            template_tokens: 0.0,
        }
    }
}

impl TokenScale {
    /// From two prompts: bytes that were sent and tokens that the server counted. `None` if they do not fit
    /// together.
    pub fn fitted(short: (usize, u32), long: (usize, u32)) -> Option<Self> {
        let bytes = long.0.checked_sub(short.0)? as f64;
        let tokens = f64::from(long.1.checked_sub(short.1).filter(|tokens| *tokens > 0)?);
        let bytes_per_token = bytes / tokens;
        let template_tokens = (f64::from(short.1) - short.0 as f64 / bytes_per_token).max(0.0);
        (bytes_per_token > 0.0).then_some(TokenScale {
            bytes_per_token,
            template_tokens,
        })
    }

    fn bytes(&self, tokens: u32) -> usize {
        ((f64::from(tokens) - self.template_tokens).max(1.0) * self.bytes_per_token).round()
            as usize
    }

    fn tokens(&self, bytes: usize) -> u32 {
        (bytes as f64 / self.bytes_per_token).round().max(1.0) as u32
    }
}

/// The kind of load.
#[derive(Clone, Debug, PartialEq)]
pub enum Load {
    /// Texts.
    Text(TextLoad),
    /// Pictures.
    Pictures(PictureLoad),
}

/// Makes requests.
#[derive(Clone, Debug)]
pub struct Asks {
    load: Load,
    seed: u64,
    /// Stands at the beginning of every prompt (or of every shared beginning), so that a server's cache knows
    /// nothing of this run's prompts from an earlier one.
    salt: String,
    scale: TokenScale,
}

impl Asks {
    /// Requests of this load.
    pub fn new(load: Load, seed: u64, salt: impl Into<String>, scale: TokenScale) -> Self {
        Asks {
            load,
            seed,
            salt: salt.into(),
            scale,
        }
    }

    /// The request that was planned. `history` is the conversation before it: questions and answers.
    pub fn ask(&self, planned: &Planned, history: &[(Role, String)]) -> Ask {
        let mut numbers = random(self.seed, Purpose::Asks, planned.ordinal);
        match &self.load {
            Load::Pictures(load) => {
                let kind = load.draw(&mut numbers);
                let mut prompt = format!("{} ", self.mark(planned.ordinal));
                words::append(&mut prompt, 60, &mut numbers);
                Ask::Picture(PictureAsk {
                    prompt,
                    size: kind.size,
                    steps: kind.steps,
                    guidance_scale: load.guidance_scale,
                    previews: load.previews,
                    seed: numbers.next_u32() >> 1,
                })
            }
            Load::Text(load) => {
                let (question, output_tokens) = self.text(load, planned, &mut numbers);
                let mut messages = history.to_vec();
                messages.push((Role::User, question));
                Ask::Text(TextAsk {
                    messages,
                    output_tokens,
                    seed: numbers.next_u32() >> 1,
                })
            }
        }
    }

    fn text(
        &self,
        load: &TextLoad,
        planned: &Planned,
        numbers: &mut impl RngCore,
    ) -> (String, u32) {
        if let Some(conversations) = &load.conversations {
            // A user keeps to one conversation while it has questions.
            let first = planned.ordinal - u64::from(planned.turn).min(planned.ordinal);
            let which = random(
                self.seed,
                Purpose::Asks,
                planned.user.map_or(first, u64::from),
            )
            .next_u64();
            let which = which.wrapping_add(planned.user.map_or(0, |_| planned.ordinal / 97));
            let exchanges = &conversations.all[(which % conversations.all.len() as u64) as usize];
            let exchange = &exchanges[planned.turn as usize % exchanges.len()];
            let question = match planned.turn {
                0 => format!("{} {}", self.mark(planned.ordinal), exchange.question),
                _ => exchange.question.clone(),
            };
            return (question, self.scale.tokens(exchange.answer_bytes));
        }
        let drawn_input = load.input_tokens.draw(numbers);
        let drawn_output = load.output_tokens.draw(numbers);
        let bytes = self
            .scale
            .bytes(planned.input_tokens.unwrap_or(drawn_input));
        let output_tokens = planned.output_tokens.unwrap_or(drawn_output).max(1);
        let mut text = String::with_capacity(bytes + 32);
        let shared = (bytes as f64 * load.prefix_share).round() as usize;
        if shared > 0 && planned.turn == 0 {
            let which = numbers.next_u64() % u64::from(load.prefixes.max(1));
            let mut prefix = random(self.seed, Purpose::Prefixes, which);
            let _ = write!(text, "{}-{which} ", self.salt);
            let rest = shared.saturating_sub(text.len());
            words::append(&mut text, rest, &mut prefix);
        }
        text.push_str(&self.mark(planned.ordinal));
        text.push(' ');
        let rest = bytes.saturating_sub(text.len());
        words::append(&mut text, rest, numbers);
        (text, output_tokens)
    }

    /// What no other prompt begins with. Bits of the number come in a mixed order: the prompts' very first
    /// tokens already differ.
    fn mark(&self, ordinal: u64) -> String {
        let mixed = random(self.seed, Purpose::Asks, ordinal).next_u32();
        format!("{mixed:08x}{}{ordinal:x}", self.salt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Time;

    fn planned(ordinal: u64) -> Planned {
        Planned {
            ordinal,
            user: None,
            turn: 0,
            intended: Time::ZERO,
            input_tokens: None,
            output_tokens: None,
        }
    }

    fn texts(prefix_share: f64, prefixes: u32, salt: &str) -> Vec<String> {
        let load = Load::Text(TextLoad {
            input_tokens: Lengths::Fixed(100),
            output_tokens: Lengths::Fixed(10),
            conversations: None,
            prefix_share,
            prefixes,
        });
        let scale = TokenScale {
            bytes_per_token: 5.0,
            template_tokens: 20.0,
        };
        let asks = Asks::new(load, 1, salt, scale);
        (0..50)
            .map(|ordinal| match asks.ask(&planned(ordinal), &[]) {
                Ask::Text(ask) => ask.messages[0].1.clone(),
                Ask::Picture(_) => panic!("a picture"),
            })
            .collect()
    }

    fn shared(one: &str, other: &str) -> usize {
        one.bytes()
            .zip(other.bytes())
            .take_while(|(one, other)| one == other)
            .count()
    }

    #[test]
    fn prompts_have_their_length_and_begin_apart() {
        let texts = texts(0.0, 1, "ab");
        for (index, text) in texts.iter().enumerate() {
            assert_eq!(text.len(), 400);
            for other in &texts[..index] {
                assert!(shared(text, other) < 8, "{text:.20} {other:.20}");
            }
        }
    }

    #[test]
    fn a_wanted_share_begins_alike_within_a_run_only() {
        let one = texts(0.5, 1, "ab");
        for other in &one[1..] {
            assert!(
                (200..210).contains(&shared(&one[0], other)),
                "{}",
                shared(&one[0], other)
            );
        }
        assert_eq!(shared(&one[0], &texts(0.5, 1, "cd")[0]), 0);
        let beginnings: std::collections::BTreeSet<String> = texts(0.5, 4, "ab")
            .iter()
            .map(|text| text[..150].to_owned())
            .collect();
        assert_eq!(beginnings.len(), 4);
    }

    #[test]
    fn the_scale_is_fitted_from_two_counts() {
        // 30 tokens of template, 4 bytes a token.
        let scale = TokenScale::fitted((400, 130), (4000, 1030)).unwrap();
        assert_eq!(
            scale,
            TokenScale {
                bytes_per_token: 4.0,
                template_tokens: 30.0
            }
        );
        assert_eq!(scale.bytes(130), 400);
        assert_eq!(TokenScale::fitted((400, 130), (4000, 130)), None);
        assert_eq!(TokenScale::fitted((400, 130), (400, 131)), None);
    }
}
