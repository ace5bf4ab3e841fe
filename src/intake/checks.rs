//! Every field of a draft against its limit.

use std::collections::hash_map::RandomState;
use std::fmt::Display;
use std::hash::BuildHasher;
use std::sync::Arc;

use super::prompt::tokenize;
use super::salt::cache_salt;
use super::{Invalid, InvalidKind, Prompt, TextDraft, TextIntake};
use crate::job::{Sampling, TextJob};

/// OpenAI's range of both penalties.
const PENALTY_LIMIT: f64 = 2.0;
/// Beyond this the logits of repeated tokens are as good as gone.
const MAX_REPETITION_PENALTY: f64 = 10.0;
/// OpenAI's range of a bias: enough to force or to ban a token.
const LOGIT_BIAS_LIMIT: f64 = 100.0;

/// See [`TextIntake::job`].
pub(super) fn job(intake: &TextIntake, draft: TextDraft) -> Result<TextJob, Invalid> {
    // The cheap checks come first: nothing is tokenized for a request that is refused anyway.
    let rows = rows(intake, &draft)?;
    let min_tokens = min_tokens(intake, &draft)?;
    let stop = stop_strings(intake, &draft)?;
    let stop_token_ids = stop_token_ids(intake, &draft)?;
    let sampling = sampling(intake, &draft)?;
    let logprobs = top_logprobs(intake, draft.logprobs_name, draft.logprobs)?;
    let prompt_logprobs = top_logprobs(intake, "prompt_logprobs", draft.prompt_logprobs)?;
    let asked_tokens = asked_tokens(intake, &draft, prompt_logprobs.is_some())?;
    let keep = kept_tokens(&draft)?;
    let cache_salt = cache_salt(draft.tenant.as_deref(), draft.cache_salt.as_deref())?;

    let tokens = tokenize(intake, &draft.prompt, draft.add_special_tokens)?;
    if tokens.is_empty() {
        return Err(Invalid::value(
            prompt_field(&draft),
            "must hold at least one token",
        ));
    }
    let tokens = truncate(intake, tokens, keep, asked_tokens.unwrap_or(1));
    let max_tokens = fit(intake, &draft, tokens.len(), asked_tokens)?;
    if min_tokens > max_tokens {
        return Err(Invalid::value(
            "min_tokens",
            format!("is {min_tokens}, which is more than max_tokens, {max_tokens}"),
        ));
    }
    // Rows are ranked by their tokens' log-probabilities, which are computed only on demand.
    let ranked = rows > draft.n.map_or(1, |n| n as u32);
    Ok(TextJob {
        prompt: Arc::from(tokens),
        rows,
        max_tokens,
        min_tokens,
        ignore_eos: draft.ignore_eos.unwrap_or(false),
        stop,
        stop_token_ids,
        include_stop_str_in_output: draft.include_stop_str_in_output.unwrap_or(false),
        skip_special_tokens: draft.skip_special_tokens.unwrap_or(true),
        sampling,
        logprobs: logprobs.or(ranked.then_some(0)),
        prompt_logprobs,
        cache_salt,
    })
}

pub(super) fn rows(intake: &TextIntake, draft: &TextDraft) -> Result<u32, Invalid> {
    let limit = u64::from(intake.limits.max_choices);
    let n = whole_between("n", draft.n.unwrap_or(1), 1, limit)?;
    let best_of = whole_between("best_of", draft.best_of.unwrap_or(u64::from(n)), 1, limit)?;
    if best_of < n {
        return Err(Invalid::value(
            "best_of",
            format!("is {best_of}, which is less than n, {n}"),
        ));
    }
    Ok(best_of)
}

/// `max_tokens` if it was given, checked against what could ever be served.
fn asked_tokens(
    intake: &TextIntake,
    draft: &TextDraft,
    prompt_is_scored: bool,
) -> Result<Option<u32>, Invalid> {
    let Some(asked) = draft.max_tokens else {
        return Ok(None);
    };
    let field = draft.max_tokens_name;
    let least = u64::from(!prompt_is_scored);
    if let Some(limit) = intake.limits.max_new_tokens {
        return whole_between(field, asked, least, u64::from(limit)).map(Some);
    }
    if asked < least {
        return Err(Invalid::value(field, format!("must be at least {least}")));
    }
    u32::try_from(asked)
        .ok()
        .filter(|asked| *asked <= intake.max_context)
        .map(Some)
        .ok_or_else(|| {
            Invalid::new(
                InvalidKind::ContextLength,
                field,
                format!(
                    "is {asked}; prompt and new tokens together are limited to {} tokens, the model's context",
                    intake.max_context
                ),
            )
        })
}

fn min_tokens(intake: &TextIntake, draft: &TextDraft) -> Result<u32, Invalid> {
    whole_between(
        "min_tokens",
        draft.min_tokens.unwrap_or(0),
        0,
        u64::from(intake.max_context),
    )
}

/// How many of the prompt's last tokens are kept.
#[derive(Clone, Copy)]
enum Keep {
    All,
    Last(u64),
    AsManyAsFit,
}

fn kept_tokens(draft: &TextDraft) -> Result<Keep, Invalid> {
    match draft.truncate_prompt_tokens {
        None => Ok(Keep::All),
        Some(-1) => Ok(Keep::AsManyAsFit),
        Some(keep) => match u64::try_from(keep) {
            Ok(keep) if keep > 0 => Ok(Keep::Last(keep)),
            _ => Err(Invalid::value(
                "truncate_prompt_tokens",
                "must be at least 1, or -1 for as many as fit",
            )),
        },
    }
}

fn truncate(intake: &TextIntake, mut tokens: Vec<u32>, keep: Keep, new_tokens: u32) -> Vec<u32> {
    let keep = match keep {
        Keep::All => return tokens,
        Keep::Last(keep) => usize::try_from(keep).unwrap_or(usize::MAX),
        Keep::AsManyAsFit => intake.max_context.saturating_sub(new_tokens).max(1) as usize,
    };
    let surplus = tokens.len().saturating_sub(keep);
    tokens.drain(..surplus);
    tokens
}

fn prompt_field(draft: &TextDraft) -> &'static str {
    match draft.prompt {
        Prompt::Chat(_) => "messages",
        Prompt::Text(_) | Prompt::Tokens(_) => "prompt",
    }
}

/// New tokens for a prompt of `prompt_tokens` tokens, or why they do not fit the context.
fn fit(
    intake: &TextIntake,
    draft: &TextDraft,
    prompt_tokens: usize,
    asked: Option<u32>,
) -> Result<u32, Invalid> {
    let context = intake.max_context;
    let field = prompt_field(draft);
    let room = (context as usize)
        .checked_sub(prompt_tokens)
        .ok_or_else(|| {
            Invalid::new(
                InvalidKind::ContextLength,
                field,
                format!("has {prompt_tokens} tokens; the model's context is {context} tokens"),
            )
        })? as u32;
    match asked {
        Some(asked) if asked <= room => Ok(asked),
        Some(asked) => Err(Invalid::new(
            InvalidKind::ContextLength,
            draft.max_tokens_name,
            format!(
                "is {asked}, which with a prompt of {prompt_tokens} tokens exceeds the model's context of {context} tokens"
            ),
        )),
        None if room == 0 => Err(Invalid::new(
            InvalidKind::ContextLength,
            field,
            format!(
                "has {prompt_tokens} tokens, which leaves no room for a new one in the model's context of {context} tokens"
            ),
        )),
        None => {
            let default = draft.default_max_tokens.or(intake.defaults.max_tokens);
            let limit = intake.limits.max_new_tokens;
            // `min_tokens` without `max_tokens` asks for that many, whatever the default; but the
            // limit stands above it.
            let least = draft.min_tokens.map_or(1, |least| least as u32).max(1);
            let most = default.unwrap_or(u32::MAX).max(least);
            Ok(room.min(most).min(limit.unwrap_or(u32::MAX)))
        }
    }
}

fn stop_strings(intake: &TextIntake, draft: &TextDraft) -> Result<Arc<[String]>, Invalid> {
    let stop = draft.stop.as_deref().unwrap_or_default();
    let limits = &intake.limits;
    check_entries(
        "stop",
        stop.len(),
        limits.max_stop_strings,
        "max_stop_strings",
    )?;
    if stop.iter().any(String::is_empty) {
        return Err(Invalid::value("stop", "must not hold an empty string"));
    }
    if let Some(long) = stop.iter().find(|text| text.len() > limits.max_stop_bytes) {
        return Err(Invalid::value(
            "stop",
            format!(
                "holds a string of {} bytes; the limit is {} (max_stop_bytes)",
                long.len(),
                limits.max_stop_bytes
            ),
        ));
    }
    Ok(Arc::from(stop))
}

fn stop_token_ids(intake: &TextIntake, draft: &TextDraft) -> Result<Arc<[u32]>, Invalid> {
    const FIELD: &str = "stop_token_ids";
    let ids = draft.stop_token_ids.as_deref().unwrap_or_default();
    let limit = intake.limits.max_stop_token_ids;
    check_entries(FIELD, ids.len(), limit, "max_stop_token_ids")?;
    ids.iter().map(|id| token_id(intake, FIELD, *id)).collect()
}

fn sampling(intake: &TextIntake, draft: &TextDraft) -> Result<Sampling, Invalid> {
    let defaults = &intake.defaults;
    let max_temperature = f64::from(intake.limits.max_temperature);
    Ok(Sampling {
        temperature: between("temperature", draft.temperature, 0.0, max_temperature)?
            .unwrap_or(defaults.temperature),
        top_p: share("top_p", draft.top_p)?.unwrap_or(defaults.top_p),
        top_k: top_k(intake, draft.top_k)?.unwrap_or(defaults.top_k),
        min_p: between("min_p", draft.min_p, 0.0, 1.0)?.unwrap_or(defaults.min_p),
        typical_p: share("typical_p", draft.typical_p)?.unwrap_or(defaults.typical_p),
        presence_penalty: penalty("presence_penalty", draft.presence_penalty)?,
        frequency_penalty: penalty("frequency_penalty", draft.frequency_penalty)?,
        repetition_penalty: repetition_penalty(draft.repetition_penalty)?
            .unwrap_or(defaults.repetition_penalty),
        logit_bias: logit_bias(intake, draft)?,
        seed: draft.seed.unwrap_or_else(fresh_seed),
    })
}

fn penalty(field: &str, value: Option<f64>) -> Result<f32, Invalid> {
    Ok(between(field, value, -PENALTY_LIMIT, PENALTY_LIMIT)?.unwrap_or(0.0))
}

fn repetition_penalty(value: Option<f64>) -> Result<Option<f32>, Invalid> {
    above_zero("repetition_penalty", value, MAX_REPETITION_PENALTY)
}

/// A probability mass: above 0, up to 1.
fn share(field: &str, value: Option<f64>) -> Result<Option<f32>, Invalid> {
    above_zero(field, value, 1.0)
}

fn top_k(intake: &TextIntake, value: Option<i64>) -> Result<Option<u32>, Invalid> {
    let vocab_size = intake.tokenizer.vocab_size();
    match value {
        None => Ok(None),
        Some(-1) => Ok(Some(0)),
        Some(value) => match u32::try_from(value) {
            Ok(value) if value <= vocab_size => Ok(Some(value)),
            _ => Err(Invalid::value(
                "top_k",
                format!(
                    "must be between 1 and {vocab_size}, the size of the vocabulary, or 0 or -1 to switch it off"
                ),
            )),
        },
    }
}

fn logit_bias(intake: &TextIntake, draft: &TextDraft) -> Result<Arc<[(u32, f32)]>, Invalid> {
    const FIELD: &str = "logit_bias";
    let entries = draft.logit_bias.as_deref().unwrap_or_default();
    let limit = intake.limits.max_logit_bias;
    check_entries(FIELD, entries.len(), limit, "max_logit_bias")?;
    entries
        .iter()
        .map(|(key, bias)| {
            let id = key
                .parse()
                .map_err(|_| Invalid::value(FIELD, "must have token ids as its names"))?;
            let id = token_id(intake, FIELD, id)?;
            let bias = between(FIELD, Some(*bias), -LOGIT_BIAS_LIMIT, LOGIT_BIAS_LIMIT)?;
            Ok((id, bias.unwrap_or_default()))
        })
        .collect()
}

fn top_logprobs(
    intake: &TextIntake,
    field: &str,
    value: Option<u64>,
) -> Result<Option<u32>, Invalid> {
    let limit = u64::from(intake.limits.max_top_logprobs);
    value
        .map(|value| whole_between(field, value, 0, limit))
        .transpose()
}

fn token_id(intake: &TextIntake, field: &str, id: u64) -> Result<u32, Invalid> {
    let vocab_size = intake.tokenizer.vocab_size();
    u32::try_from(id)
        .ok()
        .filter(|id| *id < vocab_size)
        .ok_or_else(|| out_of_vocabulary(field, id, vocab_size))
}

pub(super) fn out_of_vocabulary(field: &str, id: impl Display, vocab_size: u32) -> Invalid {
    Invalid::value(
        field,
        format!("holds token id {id}; the vocabulary has {vocab_size} ids, from 0"),
    )
}

fn check_entries(field: &str, entries: usize, limit: usize, name: &str) -> Result<(), Invalid> {
    if entries > limit {
        return Err(Invalid::value(
            field,
            format!("has {entries} entries; the limit is {limit} ({name})"),
        ));
    }
    Ok(())
}

fn whole_between(field: &str, value: u64, least: u64, most: u64) -> Result<u32, Invalid> {
    u32::try_from(value)
        .ok()
        .filter(|_| (least..=most).contains(&value))
        .ok_or_else(|| Invalid::value(field, format!("must be between {least} and {most}")))
}

fn between(field: &str, value: Option<f64>, least: f64, most: f64) -> Result<Option<f32>, Invalid> {
    match value {
        // Written so that NaN falls through to the refusal.
        Some(value) if value >= least && value <= most => Ok(Some(value as f32)),
        Some(_) => Err(Invalid::value(
            field,
            format!("must be between {least} and {most}"),
        )),
        None => Ok(None),
    }
}

fn above_zero(field: &str, value: Option<f64>, most: f64) -> Result<Option<f32>, Invalid> {
    match value {
        // What is not zero must not become zero on the way to 32 bits.
        Some(value) if value > 0.0 && value <= most => {
            Ok(Some((value as f32).max(f32::MIN_POSITIVE)))
        }
        Some(_) => Err(Invalid::value(
            field,
            format!("must be above 0 and at most {most}"),
        )),
        None => Ok(None),
    }
}

/// A seed that nobody has chosen. 53 bits, so that clients which keep numbers as doubles can send
/// it back unchanged.
fn fresh_seed() -> u64 {
    RandomState::new().hash_one(()) >> 11
}
