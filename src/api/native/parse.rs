//! From the body of a submission to a draft.

use std::sync::Arc;
use std::time::Duration;

use super::parse_image;
use crate::api::error::ApiError;
use crate::api::openai::{read_chat, read_deadline};
use crate::api::{AppState, ServedModel};
use crate::intake::{Draft, Fields, Intake, Invalid, InvalidKind, Prompt, TextDraft};
use crate::job::Priority;

/// A submission, read but not checked.
pub(super) struct Submission {
    pub(super) model: Arc<ServedModel>,
    pub(super) draft: Draft,
    pub(super) deadline: Option<Duration>,
    pub(super) priority: Option<Priority>,
    pub(super) detach: bool,
}

/// Reads the body.
///
/// # Errors
/// No JSON object, no such model, a wrong type, an unknown field, not exactly one kind of prompt.
pub(super) fn parse(state: &AppState, body: &[u8]) -> Result<Submission, ApiError> {
    let mut fields = Fields::parse(body)?;
    let model = fields.string("model")?;
    let model = Arc::clone(state.model(model.as_deref())?);
    let draft = match &model.intake {
        Intake::Text(_) => Draft::Text(text(&mut fields)?),
        Intake::Image(_) => Draft::Image(parse_image::draft(&mut fields)?),
    };
    let deadline = read_deadline(&mut fields, state.config.max_deadline)?;
    let detach = fields.boolean("detach")?.unwrap_or(false);
    let priority = priority(&mut fields)?;
    fields.finish()?;
    Ok(Submission {
        model,
        draft,
        deadline,
        priority,
        detach,
    })
}

fn priority(fields: &mut Fields) -> Result<Option<Priority>, Invalid> {
    const FIELD: &str = "priority";
    let known = |name: String| {
        Priority::from_name(&name)
            .ok_or_else(|| Invalid::value(FIELD, "must be one of interactive, normal, batch"))
    };
    fields.string(FIELD)?.map(known).transpose()
}

fn text(fields: &mut Fields) -> Result<TextDraft, Invalid> {
    let mut draft = TextDraft::new(prompt(fields)?);
    draft.best_of = fields.count("best_of")?;
    draft.logprobs = fields.count("logprobs")?;
    draft.read_shared(fields)?;
    Ok(draft)
}

fn prompt(fields: &mut Fields) -> Result<Prompt, Invalid> {
    let text = fields.string("prompt")?.map(Prompt::Text);
    // An id beyond 32 bits is beyond every vocabulary, and refused as such by intake.
    let token_id = |id: &u64| u32::try_from(*id).unwrap_or(u32::MAX);
    let tokens = fields
        .counts("tokens")?
        .map(|ids| Prompt::Tokens(ids.iter().map(token_id).collect()));
    let messages = match fields.take("messages") {
        None => None,
        Some(messages) => Some(Prompt::Chat(read_chat(messages, fields)?)),
    };
    let mut given = [("prompt", text), ("tokens", tokens), ("messages", messages)]
        .into_iter()
        .filter_map(|(name, prompt)| Some((name, prompt?)));
    match (given.next(), given.next()) {
        (Some((_, prompt)), None) => Ok(prompt),
        (Some((first, _)), Some((second, _))) => {
            Err(Invalid::value(second, format!("excludes {first}")))
        }
        (None, _) => Err(Invalid::new(
            InvalidKind::Missing,
            "prompt",
            "is missing: give prompt, tokens or messages",
        )),
    }
}
