//! A prompt's way to token ids: the chat template, the tokenizer, and their limits.

use super::checks::out_of_vocabulary;
use super::{ChatPrompt, Invalid, InvalidKind, Prompt, TextIntake};

/// See [`TextIntake::tokenize`].
pub(super) fn tokenize(
    intake: &TextIntake,
    prompt: &Prompt,
    add_special: Option<bool>,
) -> Result<Vec<u32>, Invalid> {
    match prompt {
        Prompt::Text(text) => {
            check_prompt_bytes(intake, "prompt", text.len() as u64)?;
            encode(intake, "prompt", text, add_special.unwrap_or(true))
        }
        Prompt::Chat(chat) => {
            let text = render(intake, chat)?;
            encode(intake, "messages", &text, add_special.unwrap_or(false))
        }
        Prompt::Tokens(tokens) => {
            check_tokens(intake, "prompt", tokens)?;
            Ok(tokens.clone())
        }
    }
}

/// See [`TextIntake::detokenize`].
pub(super) fn detokenize(
    intake: &TextIntake,
    field: &str,
    tokens: &[u32],
) -> Result<String, Invalid> {
    check_tokens(intake, field, tokens)?;
    intake
        .tokenizer
        .decode(tokens, false)
        .map_err(|error| Invalid::value(field, format!("cannot be decoded: {error}")))
}

fn check_tokens(intake: &TextIntake, field: &str, tokens: &[u32]) -> Result<(), Invalid> {
    const TOKEN_BYTES: u64 = size_of::<u32>() as u64;
    check_prompt_bytes(intake, field, tokens.len() as u64 * TOKEN_BYTES)?;
    let vocab_size = intake.tokenizer.vocab_size();
    match tokens.iter().find(|&&token| token >= vocab_size) {
        Some(token) => Err(out_of_vocabulary(field, token, vocab_size)),
        None => Ok(()),
    }
}

fn encode(
    intake: &TextIntake,
    field: &str,
    text: &str,
    add_special: bool,
) -> Result<Vec<u32>, Invalid> {
    intake
        .tokenizer
        .encode(text, add_special)
        .map_err(|error| Invalid::value(field, format!("cannot be tokenized: {error}")))
}

/// See [`TextIntake::render`].
pub(super) fn render(intake: &TextIntake, chat: &ChatPrompt) -> Result<String, Invalid> {
    let Some(template) = &intake.template else {
        return Err(Invalid::new(
            InvalidKind::Unsupported,
            "messages",
            "cannot be rendered: the model has no chat template",
        ));
    };
    let messages = chat.messages.as_array().map_or(0, Vec::len);
    let limit = intake.limits.max_messages;
    if messages == 0 || messages > limit {
        return Err(Invalid::value(
            "messages",
            format!("must be a list of 1 to {limit} messages (max_messages)"),
        ));
    }
    check_prompt_bytes(intake, "messages", chat.text_bytes())?;
    if chat.continue_final_message && chat.add_generation_prompt == Some(true) {
        return Err(Invalid::value(
            "continue_final_message",
            "cannot be true together with add_generation_prompt",
        ));
    }
    let add_generation_prompt = chat
        .add_generation_prompt
        .unwrap_or(!chat.continue_final_message);
    let text = template
        .render(&chat.messages, add_generation_prompt, &chat.variables)
        .map_err(|error| {
            Invalid::value(
                "messages",
                format!("are refused by the model's chat template: {error}"),
            )
        })?;
    if chat.continue_final_message {
        return reopened(text, &chat.messages);
    }
    Ok(text)
}

/// Cuts what the template writes after the last message's content.
fn reopened(mut text: String, messages: &serde_json::Value) -> Result<String, Invalid> {
    let last_content = messages
        .as_array()
        .and_then(|messages| messages.last())
        .and_then(|message| message["content"].as_str())
        .map(str::trim)
        .filter(|content| !content.is_empty());
    let end =
        last_content.and_then(|content| text.rfind(content).map(|start| start + content.len()));
    match end {
        Some(end) => {
            text.truncate(end);
            Ok(text)
        }
        None => Err(Invalid::value(
            "continue_final_message",
            "needs a last message with a text that the chat template writes out unchanged",
        )),
    }
}

fn check_prompt_bytes(intake: &TextIntake, field: &str, bytes: u64) -> Result<(), Invalid> {
    let limit = intake.limits.max_prompt_bytes;
    if bytes > limit as u64 {
        return Err(Invalid::value(
            field,
            format!("holds {bytes} bytes; the limit is {limit} (max_prompt_bytes)"),
        ));
    }
    Ok(())
}
