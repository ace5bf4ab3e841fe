//! Prompts for flows, cut into tokens: needs no weights and no device.
//!
//! Prompts are plain text here, as in diffusers: brackets and `BREAK` have no meaning, since neither T5's states nor
//! pooled ones can be weighted. All weights are 1, and a prompt that says another is refused.

use std::path::Path;

use serde_json::Value;
use tokenizers::Tokenizer;

use super::config::{FlowConfig, FlowKind, TransformerConfig};
use crate::job::{PromptChunk, PromptTokens};
use crate::model::ModelError;
use crate::model::diffusion::config::fields::read_object;
use crate::model::diffusion::frontend::PromptReader;
use crate::model::diffusion::prompt::{
    PromptError, PromptOptions, has_weights, pad_to_chunks, tokenize,
};
use crate::model::diffusion::tokenizer::{ClipTokenizer, check_vocabulary};
use crate::model::image_frontend::Guidance;

/// What T5's tokenizers end a text with where no file says so.
const END: &str = "</s>";
/// What they fill it up with.
const PAD: &str = "<pad>";

/// The tokenizers of a flow.
pub struct FlowPrompts {
    clips: Vec<(ClipTokenizer, usize)>,
    t5: Option<T5Tokenizer>,
    t5_tokens: usize,
    /// CLIP reads the beginning of a prompt only, and there is no negative one.
    is_flux: bool,
    guidance: Guidance,
}

impl FlowPrompts {
    /// From the tokenizers of a diffusers folder.
    ///
    /// # Errors
    /// Names the file that is missing or broken.
    pub fn read(folder: &Path, config: &FlowConfig) -> Result<Self, ModelError> {
        let (clip_folders, (_, t5_folder)) = config.transformer.text_folders();
        let clips = clip_folders
            .iter()
            .zip(&config.clips)
            .map(|((_, name), clip)| {
                let tokenizer = ClipTokenizer::for_encoder(&folder.join(name), clip)?;
                Ok((tokenizer, clip.positions))
            })
            .collect::<Result<_, ModelError>>()?;
        Ok(FlowPrompts {
            clips,
            t5: match &config.t5 {
                Some(t5) => {
                    let folder = folder.join(t5_folder);
                    Some(T5Tokenizer::from_folder(&folder, t5.vocab_size)?)
                }
                None => None,
            },
            t5_tokens: config.t5_tokens,
            is_flux: matches!(config.transformer, TransformerConfig::Flux(_)),
            guidance: match config.kind() {
                FlowKind::FluxSchnell => Guidance::None,
                FlowKind::FluxDev => Guidance::Embedded,
                FlowKind::Sd3 | FlowKind::Sd35 => Guidance::Classifier,
            },
        })
    }

    /// See [`PromptReader::tokenize`].
    fn entries(&self, prompt: &str, max_chunks: usize) -> Result<Vec<PromptTokens>, PromptError> {
        if has_weights(prompt) {
            return Err(PromptError::Unweighted);
        }
        // T5 first: it is the one that bounds a prompt's length.
        let words = match &self.t5 {
            Some(t5) => Some(t5.tokenize(prompt, self.t5_tokens)?),
            None => None,
        };
        let mut entries = Vec::with_capacity(self.clips.len() + 1);
        for (tokenizer, positions) in &self.clips {
            let options = PromptOptions {
                positions: *positions,
                max_chunks: match self.is_flux {
                    true => usize::MAX,
                    false => max_chunks,
                },
                weighted: false,
            };
            let mut entry = tokenize(tokenizer, prompt, options)?;
            if self.is_flux {
                entry.chunks.truncate(1);
            }
            entries.push(entry);
        }
        let longest = entries.iter().map(|entry| entry.chunks.len()).max();
        for (encoder, entry) in entries.iter_mut().enumerate() {
            self.pad(encoder, entry, longest.unwrap_or(1));
        }
        entries.extend(words);
        Ok(entries)
    }
}

impl PromptReader for FlowPrompts {
    /// One entry for each CLIP, and one for T5 if the model has it: a chunk of [`FlowConfig::t5_tokens`].
    ///
    /// Flux's CLIP reads only the first 75 tokens of a prompt, T5 all of it; SD3's CLIPs read up to `max_chunks`
    /// chunks (at least 1), all with as many.
    fn tokenize(&self, prompt: &str, max_chunks: usize) -> Result<Vec<PromptTokens>, String> {
        let entries = self.entries(prompt, max_chunks);
        entries.map_err(|error| error.to_string())
    }

    fn pad(&self, encoder: usize, prompt: &mut PromptTokens, chunks: usize) {
        // T5's one chunk is always full.
        if let Some((tokenizer, positions)) = self.clips.get(encoder)
            && !self.is_flux
        {
            pad_to_chunks(prompt, chunks, tokenizer, *positions);
        }
    }

    fn guidance(&self) -> Guidance {
        self.guidance
    }
}

/// T5's tokenizer: pieces of words by their probability.
struct T5Tokenizer {
    pipeline: Tokenizer,
    end: u32,
    pad: u32,
}

impl T5Tokenizer {
    /// For an encoder with so many embeddings.
    fn from_folder(folder: &Path, embeddings: usize) -> Result<Self, ModelError> {
        let broken = |error: String| ModelError::Load(format!("{}: {error}", folder.display()));
        let path = folder.join("tokenizer.json");
        if !path.is_file() {
            return Err(broken(
                "there is no tokenizer.json, and spiece.model alone is not supported".into(),
            ));
        }
        let bytes = std::fs::read(&path).map_err(|error| broken(error.to_string()))?;
        let mut pipeline =
            Tokenizer::from_bytes(bytes).map_err(|error| broken(error.to_string()))?;
        pipeline
            .with_truncation(None)
            .map_err(|error| broken(error.to_string()))?;
        pipeline.with_padding(None);
        // Its entries would add up over the threads of a blocking pool and never be freed.
        let mut model = pipeline.get_model().clone();
        model.resize_cache(0);
        pipeline.with_model(model);
        check_vocabulary(folder, &pipeline, embeddings)?;
        let settings = match folder.join("tokenizer_config.json") {
            path if path.is_file() => read_object(&path)?,
            _ => serde_json::Map::new(),
        };
        let id = |name: &str, default: &str| {
            let text = settings.get(name).and_then(|value| {
                let content = value.get("content").and_then(Value::as_str);
                value.as_str().or(content)
            });
            let text = text.unwrap_or(default);
            let id = pipeline.token_to_id(text);
            id.ok_or_else(|| broken(format!("the token {text:?} is not in the vocabulary")))
        };
        let (end, pad) = (id("eos_token", END)?, id("pad_token", PAD)?);
        Ok(T5Tokenizer { pipeline, end, pad })
    }

    /// One chunk of `tokens`: the text, the end and padding.
    fn tokenize(&self, text: &str, tokens: usize) -> Result<PromptTokens, PromptError> {
        let encoding = self
            .pipeline
            .encode_fast(text, false)
            .map_err(|error| ModelError::Load(format!("cannot encode the prompt: {error}")))?;
        let mut ids = encoding.get_ids().to_vec();
        let room = tokens.saturating_sub(1).max(1);
        if ids.len() > room {
            return Err(PromptError::TooLong {
                chunks: ids.len().div_ceil(room),
                chunk_tokens: room,
                most: 1,
            });
        }
        ids.push(self.end);
        ids.resize(tokens.max(ids.len()), self.pad);
        let weights = vec![1.0; ids.len()];
        Ok(PromptTokens {
            chunks: vec![PromptChunk {
                tokens: ids,
                weights,
            }],
        })
    }
}
