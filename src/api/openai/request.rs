//! What the bodies of both endpoints have in common.

use std::time::Duration;

use super::neutral;
use crate::intake::{Fields, Invalid, InvalidKind, TextDraft};
use crate::job::Priority;

/// A body that has been read: what to make, how to show it, and how to serve it.
#[derive(Debug)]
pub(super) struct Call {
    /// One for each prompt.
    pub(super) drafts: Vec<TextDraft>,
    /// Show log-probabilities with this many alternatives.
    pub(super) top_logprobs: Option<u32>,
    /// Show the prompt's with this many alternatives.
    pub(super) prompt_logprobs: Option<u32>,
    /// Begin each choice with the prompt.
    pub(super) echo: bool,
    /// Stream, and how.
    pub(super) stream: Option<StreamOptions>,
    /// How urgent it asks to be.
    pub(super) priority: Option<Priority>,
    /// Give up after this.
    pub(super) deadline: Option<Duration>,
}

/// `stream_options`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StreamOptions {
    pub(super) include_usage: bool,
}

/// The body's fields and the model that it names.
///
/// # Errors
/// No JSON object, or no model in it.
pub(super) fn parse(body: &[u8]) -> Result<(String, Fields), Invalid> {
    let mut fields = Fields::parse(body)?;
    let model = fields.string("model")?.ok_or_else(|| missing("model"))?;
    Ok((model, fields))
}

pub(super) fn missing(field: &str) -> Invalid {
    Invalid::new(InvalidKind::Missing, field, "is required")
}

/// Reads `stream` and `stream_options`.
///
/// # Errors
/// Wrong types; options that are not served, or that come without a stream.
pub(super) fn read_stream(fields: &mut Fields) -> Result<Option<StreamOptions>, Invalid> {
    let stream = fields.boolean("stream")?.unwrap_or(false);
    let options = match fields.nested("stream_options")? {
        None => StreamOptions::default(),
        Some(_) if !stream => {
            return Err(Invalid::value(
                "stream_options",
                "is allowed only when stream is true",
            ));
        }
        Some(mut options) => {
            let include_usage = options.boolean("include_usage")?.unwrap_or(false);
            options.only("continuous_usage_stats", &[false.into()])?;
            options.only("include_obfuscation", &[false.into()])?;
            options.finish()?;
            StreamOptions { include_usage }
        }
    };
    Ok(stream.then_some(options))
}

/// Reads `deadline_ms`.
///
/// # Errors
/// Wrong type, 0, or more than `max_deadline`.
pub(crate) fn read_deadline(
    fields: &mut Fields,
    max_deadline: Duration,
) -> Result<Option<Duration>, Invalid> {
    let most = u64::try_from(max_deadline.as_millis()).unwrap_or(u64::MAX);
    match fields.count("deadline_ms")? {
        None => Ok(None),
        Some(millis) if (1..=most).contains(&millis) => Ok(Some(Duration::from_millis(millis))),
        Some(_) => Err(Invalid::value(
            "deadline_ms",
            format!("must be between 1 and {most} (max_deadline)"),
        )),
    }
}

/// Reads `service_tier`, OpenAI's word for it, and `priority`, vLLM's: a number, the lower the more
/// urgent, of which only the sign counts here.
///
/// # Errors
/// Wrong types, an unknown tier, or two that differ.
pub(super) fn read_priority(fields: &mut Fields) -> Result<Option<Priority>, Invalid> {
    let tier = match fields.string("service_tier")?.as_deref() {
        None | Some("auto") => None,
        Some("default") => Some(Priority::Normal),
        Some("priority") => Some(Priority::Interactive),
        Some("flex") => Some(Priority::Batch),
        Some(_) => {
            return Err(Invalid::value(
                "service_tier",
                "must be one of auto, default, priority, flex",
            ));
        }
    };
    let number = fields.integer("priority")?.map(|number| match number {
        ..0 => Priority::Interactive,
        0 => Priority::Normal,
        1.. => Priority::Batch,
    });
    match (tier, number) {
        (Some(tier), Some(number)) if tier != number => Err(Invalid::value(
            "priority",
            "and service_tier ask for different classes",
        )),
        (tier, number) => Ok(tier.or(number)),
    }
}

/// Reads what both endpoints share into a draft, and refuses what then is left.
///
/// # Errors
/// A wrong type, a field that is not served, or one that is not known.
pub(super) fn finish(draft: &mut TextDraft, mut fields: Fields) -> Result<(), Invalid> {
    draft.read_shared(&mut fields)?;
    neutral::read_shared(&mut fields)?;
    fields.finish()
}

/// A number of alternatives as it will be shown; whether it is too large is intake's to say.
pub(super) fn shown(top: Option<u64>) -> Option<u32> {
    top.map(|top| u32::try_from(top).unwrap_or(u32::MAX))
}

/// Refuses a field that cannot be told piece by piece.
///
/// # Errors
/// It is `set` in a stream.
pub(super) fn not_in_streams(
    field: &str,
    set: bool,
    stream: Option<&StreamOptions>,
) -> Result<(), Invalid> {
    match stream {
        Some(_) if set => Err(Invalid::new(
            InvalidKind::Unsupported,
            field,
            "is not available in streams",
        )),
        _ => Ok(()),
    }
}
