//! How a text model is set up, and the room for keys and values that follows from it.

use super::config::DecoderConfig;
use super::decoder::{CardRoom, KvShape};
use super::kv_cache::blocks_for;
use crate::kernels::attention::BLOCK_TOKENS;
use crate::model::ModelError;
use crate::model::device::memory::MemoryShare;
use crate::model::device::{DeviceSpec, FloatType};

/// Tokens per slot that the cache has room for where nobody says how many. Most rows stay below; a
/// longer one uses the room of the others.
const DEFAULT_TOKENS_PER_SLOT: usize = 2048;

/// Bytes of keys and values that are reserved where nobody says how many tokens.
const DEFAULT_MAX_KV_BYTES: usize = 4 << 30;

/// Which part of the key-value cache is kept for prompts to come where nobody says how much. On the CPU
/// memory is taken from the system when it is first used: this bounds what an idle service stays at.
const DEFAULT_PREFIX_CACHE_PART: usize = 4;

/// How a text model is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextOptions {
    /// Rows that run at once.
    pub batch_size: u32,
    /// Positions that a row may reach, if fewer than the model allows.
    pub max_context: Option<u32>,
    /// Tokens that the key-value cache holds, all rows together. Without it: 2,048 per slot, a whole
    /// context at least, 4 GiB at most; on a card with memory of its own, what the weights leave of it.
    pub kv_cache_tokens: Option<u32>,
    /// Of such a card's memory, the part that may be in use when the model is loaded, whoever uses it.
    pub device_memory_share: MemoryShare,
    /// Tokens that the key-value cache keeps for prompts that begin alike, when no row holds them any
    /// more: at most all. 0 switches prefix caching off. Without it: a quarter of the cache.
    pub prefix_cache_tokens: Option<u32>,
    /// Format of keys and values; the device's default without it.
    pub kv_dtype: Option<FloatType>,
    /// Format of weights that are not quantised; the file's own without it.
    pub dtype: Option<FloatType>,
    /// On a card, decoding steps are recorded as CUDA graphs.
    pub cuda_graphs: bool,
}

impl Default for TextOptions {
    fn default() -> Self {
        TextOptions {
            batch_size: 16,
            max_context: None,
            kv_cache_tokens: None,
            device_memory_share: MemoryShare::default(),
            cuda_graphs: true,
            prefix_cache_tokens: None,
            kv_dtype: None,
            dtype: None,
        }
    }
}

impl TextOptions {
    /// The room for keys and values that a model gets on a device.
    ///
    /// # Errors
    /// A setting that cannot be used, with its limit.
    pub fn kv_shape(
        &self,
        config: &DecoderConfig,
        device: DeviceSpec,
    ) -> Result<KvShape, ModelError> {
        let refuse = |message: String| Err(ModelError::Load(message));
        if self.batch_size == 0 {
            return refuse("batch_size is 0; it must be at least 1".into());
        }
        let context = match self.max_context {
            None => config.max_context,
            Some(0) => return refuse("max_context is 0; it must be at least 1".into()),
            Some(asked) if asked as usize > config.max_context => {
                return refuse(format!(
                    "max_context is {asked}; the model allows {}",
                    config.max_context
                ));
            }
            Some(asked) => asked as usize,
        };
        let dtype = self.kv_dtype.unwrap_or(device.default_kv_dtype());
        if device == DeviceSpec::Cpu && dtype == FloatType::BF16 {
            return refuse("keys and values on the cpu are f32 or f16, not bf16".into());
        }
        let dtype = candle_core::DType::from(dtype);
        let bytes_per_token = config.kv_elements_per_token() * dtype.size_in_bytes();
        let tokens = match self.kv_cache_tokens {
            Some(tokens) => tokens as usize,
            None => (self.batch_size as usize * context.min(DEFAULT_TOKENS_PER_SLOT))
                .max(context)
                .min(DEFAULT_MAX_KV_BYTES / bytes_per_token),
        };
        if tokens < BLOCK_TOKENS {
            return refuse(format!(
                "the key-value cache would hold {tokens} tokens; it must hold at least {BLOCK_TOKENS}"
            ));
        }
        let blocks = blocks_for(tokens);
        if u32::try_from(blocks).is_err()
            || blocks.checked_mul(BLOCK_TOKENS * bytes_per_token).is_none()
        {
            return refuse(format!(
                "kv_cache_tokens is {tokens}, which no memory can hold"
            ));
        }
        let fills_card = device.has_own_memory() && self.kv_cache_tokens.is_none();
        let kv = KvShape {
            served_context: context.min(tokens),
            blocks,
            dtype,
            card: fills_card.then_some(CardRoom {
                share: self.device_memory_share,
                rows: self.batch_size,
            }),
        };
        // How many a card holds is seen when the weights are there.
        if kv.card.is_none() {
            self.check_prefix_cache(&kv)?;
        }
        Ok(kv)
    }

    /// Whether the cache, as it is, holds what is to be kept of it.
    ///
    /// # Errors
    /// It does not.
    pub fn check_prefix_cache(&self, kv: &KvShape) -> Result<(), ModelError> {
        match self.prefix_cache_tokens {
            Some(asked) if blocks_for(asked as usize) > kv.blocks => {
                Err(ModelError::Load(format!(
                    "prefix_cache_tokens is {asked}; the key-value cache holds {}",
                    kv.blocks * BLOCK_TOKENS
                )))
            }
            _ => Ok(()),
        }
    }

    /// Blocks that the prefix cache may keep, of those in `kv`: the shape that these options gave.
    pub fn prefix_cache_blocks(&self, kv: &KvShape) -> usize {
        match self.prefix_cache_tokens {
            None => kv.blocks.div_ceil(DEFAULT_PREFIX_CACHE_PART),
            Some(tokens) => blocks_for(tokens as usize),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::text::config::hugging_face;

    fn config() -> DecoderConfig {
        hugging_face::parse(&json!({
            "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
            "num_attention_heads": 9, "num_key_value_heads": 3, "num_hidden_layers": 30,
            "vocab_size": 49152, "max_position_embeddings": 8192,
        }))
        .expect("valid")
    }

    #[test]
    fn the_cache_has_room_for_a_usual_batch_and_for_one_whole_context() {
        let shape = |options: TextOptions| {
            let shape = options.kv_shape(&config(), DeviceSpec::Cpu).expect("valid");
            (shape.served_context, shape.blocks * BLOCK_TOKENS)
        };
        let batch_size = |batch_size| TextOptions {
            batch_size,
            ..TextOptions::default()
        };
        assert_eq!(shape(batch_size(16)), (8192, 16 * 2048));
        assert_eq!(shape(batch_size(1)), (8192, 8192));
        let few = TextOptions {
            kv_cache_tokens: Some(1000),
            ..TextOptions::default()
        };
        assert_eq!(shape(few), (1000, 1024));
        let (_, tokens) = shape(batch_size(1_000_000));
        // 30 layers, keys and values, 3 heads of 64 columns, 2 bytes.
        assert!(tokens * 23_040 <= DEFAULT_MAX_KV_BYTES + BLOCK_TOKENS * 23_040);
    }

    #[test]
    fn the_prefix_cache_is_a_quarter_or_what_is_asked_for() {
        let blocks = |prefix_cache_tokens| {
            let options = TextOptions {
                kv_cache_tokens: Some(1000),
                prefix_cache_tokens,
                ..TextOptions::default()
            };
            let shape = options.kv_shape(&config(), DeviceSpec::Cpu).expect("valid");
            assert_eq!(shape.blocks, 32);
            options.prefix_cache_blocks(&shape)
        };
        assert_eq!(blocks(None), 8);
        assert_eq!(blocks(Some(0)), 0);
        assert_eq!(blocks(Some(1)), 1);
        assert_eq!(blocks(Some(64)), 2);
        assert_eq!(blocks(Some(1024)), 32);
    }

    #[test]
    fn settings_out_of_range_are_refused_with_their_limit() {
        for (options, message) in [
            (
                TextOptions {
                    max_context: Some(9000),
                    ..TextOptions::default()
                },
                "max_context is 9000; the model allows 8192",
            ),
            (
                TextOptions {
                    batch_size: 0,
                    ..TextOptions::default()
                },
                "batch_size is 0; it must be at least 1",
            ),
            (
                TextOptions {
                    kv_cache_tokens: Some(8),
                    ..TextOptions::default()
                },
                "the key-value cache would hold 8 tokens; it must hold at least 32",
            ),
            (
                TextOptions {
                    kv_cache_tokens: Some(1000),
                    prefix_cache_tokens: Some(1025),
                    ..TextOptions::default()
                },
                "prefix_cache_tokens is 1025; the key-value cache holds 1024",
            ),
        ] {
            let error = options
                .kv_shape(&config(), DeviceSpec::Cpu)
                .expect_err(message);
            assert_eq!(error.to_string(), message);
        }
    }
}
