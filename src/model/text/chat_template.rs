//! Chat templates: Jinja that came with a model (never with a request), rendered within a fuel limit.

/// Why a template cannot be used or rendered.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TemplateError(pub String);

/// A model's chat template.
pub struct ChatTemplate {}

impl ChatTemplate {
    /// Parses a template. `bos` and `eos` are the texts of `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// Syntax errors, with the line.
    pub fn new(_source: &str, _bos: &str, _eos: &str) -> Result<Self, TemplateError> {
        todo!()
    }
    /// The prompt for `messages` (objects with `role` and `content`, as in OpenAI's API).
    /// `variables` are further names for the template (`chat_template_kwargs`, `tools`).
    ///
    /// # Errors
    /// What the template itself raises (`raise_exception`), or too much fuel.
    pub fn render(
        &self,
        _messages: &serde_json::Value,
        _add_generation_prompt: bool,
        _variables: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<String, TemplateError> {
        todo!()
    }
}
