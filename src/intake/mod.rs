//! Intake: from a draft, as a client wrote it, to a [`Job`] that is valid by construction.
//!
//! It fills in the model's defaults, holds every field against its limit, renders the chat
//! template and tokenizes. Whatever is wrong comes back as an [`Invalid`] that names the field and
//! the limit. It opens no log and knows no HTTP; a dialect in `api` reads its body into a [`Draft`] (with
//! [`Fields`], which lets no field pass unread) and asks the model's [`Intake`].

mod checks;
mod draft;
mod fields;
pub mod image;
mod limits;
pub mod picture_file;
mod prompt;
mod salt;

pub use draft::{ChatPrompt, Prompt, TextDraft};
pub use fields::{Fields, shortened};
pub use image::{ImageDefaults, ImageDraft, ImageIntake, ImageLimits};
pub use limits::{TextDefaults, TextLimits};

use std::sync::Arc;

use crate::job::{Job, TextJob};
use crate::model::text::chat_template::ChatTemplate;
use crate::model::text::tokenizer::TextTokenizer;

/// What is wrong with a request, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Invalid {
    /// The field, by the name that the client used; empty for the body as a whole.
    pub field: String,
    /// Names the field and the limit, never the text of a prompt.
    pub message: String,
    /// What kind of fault it is.
    pub kind: InvalidKind,
}

/// The kinds of [`Invalid`]; a dialect turns them into its error codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InvalidKind {
    /// The body cannot be read at all.
    Body,
    /// A value of the wrong type or beyond its limit.
    Value,
    /// A field that is missing.
    Missing,
    /// A field that is known, but not served.
    Unsupported,
    /// A field that nobody knows.
    Unknown,
    /// The prompt, with the tokens asked for, exceeds the model's context.
    ContextLength,
}

impl Invalid {
    /// A value of the wrong type or beyond its limit. `message` goes on after the field's name.
    pub fn value(field: impl Into<String>, message: impl std::fmt::Display) -> Self {
        Self::new(InvalidKind::Value, field, message)
    }

    /// A fault of the given kind. `message` goes on after the field's name.
    pub fn new(
        kind: InvalidKind,
        field: impl Into<String>,
        message: impl std::fmt::Display,
    ) -> Self {
        let field = field.into();
        let message = if field.is_empty() {
            message.to_string()
        } else {
            format!("{field} {message}")
        };
        Invalid {
            field,
            message,
            kind,
        }
    }
}

/// One model's intake: everything needed to judge a request for it. Shared by all requests.
pub enum Intake {
    /// A text model's.
    Text(Box<TextIntake>),
    /// An image model's.
    Image(ImageIntake),
}

/// A request, unchecked.
#[derive(Clone, Debug, PartialEq)]
pub enum Draft {
    /// For a text model.
    Text(TextDraft),
    /// For an image model.
    Image(ImageDraft),
}

impl Intake {
    /// Rows that the draft asks for, which admission counts before any work is done for it.
    ///
    /// # Errors
    /// A number of rows beyond its limit, or a draft for a model of another kind.
    pub fn rows(&self, draft: &Draft) -> Result<u32, Invalid> {
        match (self, draft) {
            (Intake::Text(intake), Draft::Text(draft)) => intake.rows(draft),
            (Intake::Image(intake), Draft::Image(draft)) => intake.rows(draft),
            (intake, _) => Err(intake.wrong_kind()),
        }
    }

    /// About how many tokens the prompt has, judged by its size alone.
    pub fn estimated_prompt_tokens(&self, draft: &Draft) -> u64 {
        match (self, draft) {
            (Intake::Text(intake), Draft::Text(draft)) => intake.estimated_prompt_tokens(draft),
            // Windows of fixed length, and few: nothing that a queue has to be guarded against.
            _ => 1,
        }
    }

    /// Turns a draft into a job. Takes time, so call it on the blocking pool.
    ///
    /// # Errors
    /// The first fault found, with its field and limit.
    pub fn job(&self, draft: Draft) -> Result<Job, Invalid> {
        match (self, draft) {
            (Intake::Text(intake), Draft::Text(draft)) => intake.job(draft).map(Job::Text),
            (Intake::Image(intake), Draft::Image(draft)) => intake.job(draft).map(Job::Image),
            (intake, _) => Err(intake.wrong_kind()),
        }
    }

    /// The intake of a text model.
    ///
    /// # Errors
    /// The model draws pictures.
    pub fn text(&self) -> Result<&TextIntake, Invalid> {
        match self {
            Intake::Text(intake) => Ok(intake),
            Intake::Image(_) => Err(self.wrong_kind()),
        }
    }

    /// The intake of an image model.
    ///
    /// # Errors
    /// The model continues texts.
    pub fn image(&self) -> Result<&ImageIntake, Invalid> {
        match self {
            Intake::Image(intake) => Ok(intake),
            Intake::Text(_) => Err(self.wrong_kind()),
        }
    }

    fn wrong_kind(&self) -> Invalid {
        let what = match self {
            Intake::Text(_) => "names a model that continues texts and draws no pictures",
            Intake::Image(_) => "names a model that draws pictures and continues no texts",
        };
        Invalid::new(InvalidKind::Value, "model", what)
    }
}

/// One text model's intake.
pub struct TextIntake {
    /// The model's tokenizer.
    pub tokenizer: Arc<TextTokenizer>,
    /// The model's chat template, if it has one.
    pub template: Option<ChatTemplate>,
    /// Tokens that a row may hold: prompt and new tokens together.
    pub max_context: u32,
    /// What a request that leaves a field out gets.
    pub defaults: TextDefaults,
    /// How far a request may go.
    pub limits: TextLimits,
}

impl TextIntake {
    /// About how many tokens the prompt has, judged by its size alone: what admission counts
    /// before anything is tokenized.
    pub fn estimated_prompt_tokens(&self, draft: &TextDraft) -> u64 {
        let estimate = match &draft.prompt {
            // Byte-level vocabularies average three to four bytes a token on prose.
            Prompt::Text(text) => text.len() as u64 / 3 + 1,
            Prompt::Tokens(tokens) => tokens.len() as u64,
            Prompt::Chat(chat) => chat.text_bytes() / 3 + 1,
        };
        estimate.min(u64::from(self.max_context))
    }

    /// Rows that the draft asks for, which admission counts before anything is tokenized.
    ///
    /// # Errors
    /// `n` or `best_of` beyond their limits.
    pub fn rows(&self, draft: &TextDraft) -> Result<u32, Invalid> {
        checks::rows(self, draft)
    }

    /// Turns a draft into a job. Tokenizes, so call it on the blocking pool.
    ///
    /// # Errors
    /// The first fault found, with its field and limit.
    pub fn job(&self, draft: TextDraft) -> Result<TextJob, Invalid> {
        checks::job(self, draft)
    }

    /// The prompt's token ids, with no limit but `max_prompt_bytes` applied.
    ///
    /// # Errors
    /// No chat template, a template that refuses the messages, or a prompt that is too large.
    pub fn tokenize(
        &self,
        prompt: &Prompt,
        add_special: Option<bool>,
    ) -> Result<Vec<u32>, Invalid> {
        prompt::tokenize(self, prompt, add_special)
    }

    /// The text of token ids that came in `field`, special tokens written out.
    ///
    /// # Errors
    /// An id beyond the vocabulary, or more than `max_prompt_bytes` at four bytes an id.
    pub fn detokenize(&self, field: &str, tokens: &[u32]) -> Result<String, Invalid> {
        prompt::detokenize(self, field, tokens)
    }

    /// The prompt that the model's chat template makes of messages.
    ///
    /// # Errors
    /// No chat template, or one that refuses the messages.
    pub fn render(&self, chat: &ChatPrompt) -> Result<String, Invalid> {
        prompt::render(self, chat)
    }
}

#[cfg(test)]
mod tests;
