//! Fields that other services know and this one does not serve: accepted in the form that asks for
//! nothing, refused by name in any other.

use serde_json::{Value, json};

use crate::intake::{Fields, Invalid};

/// Fields that change no output by definition: they are for the provider's records and caches.
const WITHOUT_EFFECT: [&str; 3] = ["user", "safety_identifier", "prompt_cache_key"];

/// Reads fields of both endpoints that ask for nothing.
///
/// # Errors
/// One of them asks for something.
pub(super) fn read_shared(fields: &mut Fields) -> Result<(), Invalid> {
    for name in WITHOUT_EFFECT {
        fields.string(name)?;
    }
    fields.object("metadata")?;
    read(
        fields,
        vec![
            ("store", vec![json!(false)]),
            ("use_beam_search", vec![json!(false)]),
            ("length_penalty", vec![json!(1), json!(1.0)]),
            ("early_stopping", vec![json!(false)]),
            ("bad_words", vec![json!([])]),
            ("allowed_token_ids", vec![]),
            ("logits_processors", vec![json!([])]),
            ("spaces_between_special_tokens", vec![json!(true)]),
            ("return_tokens_as_token_ids", vec![json!(false)]),
            ("return_token_ids", vec![json!(false)]),
            ("response_format", vec![json!({"type": "text"})]),
            ("structured_outputs", vec![]),
            ("guided_json", vec![]),
            ("guided_regex", vec![]),
            ("guided_choice", vec![]),
            ("guided_grammar", vec![]),
            ("grammar", vec![]),
            ("json_schema", vec![]),
        ],
    )
}

/// Those that belong to chats only.
///
/// # Errors
/// One of them asks for something.
pub(super) fn read_chat(fields: &mut Fields) -> Result<(), Invalid> {
    let no_call = || vec![json!("none"), json!("auto")];
    read(
        fields,
        vec![
            ("tools", vec![json!([])]),
            ("tool_choice", no_call()),
            ("functions", vec![json!([])]),
            ("function_call", no_call()),
            ("parallel_tool_calls", vec![json!(true)]),
            ("modalities", vec![json!(["text"])]),
            ("audio", vec![]),
            ("prediction", vec![]),
            ("web_search_options", vec![]),
            ("reasoning_effort", vec![json!("none")]),
            ("verbosity", vec![json!("medium")]),
            ("best_of", vec![json!(1)]),
            ("echo", vec![json!(false)]),
            ("documents", vec![json!([])]),
            // A template is a program: it comes with the model, never with a request.
            ("chat_template", vec![]),
        ],
    )
}

/// Those that belong to completions only.
///
/// # Errors
/// One of them asks for something.
pub(super) fn read_completions(fields: &mut Fields) -> Result<(), Invalid> {
    read(
        fields,
        vec![("suffix", vec![json!("")]), ("prompt_embeds", vec![])],
    )
}

fn read(fields: &mut Fields, table: Vec<(&str, Vec<Value>)>) -> Result<(), Invalid> {
    table
        .iter()
        .try_for_each(|(name, accepted)| fields.only(name, accepted))
}
