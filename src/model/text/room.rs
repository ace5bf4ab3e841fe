//! How many keys and values fit on a card that is the model's own, beside its weights.
//!
//! Asked when the weights are there: what they leave, up to a share of the card's memory, becomes blocks, less what a
//! full pass takes on its way.

use candle_core::{DType, Device};

use super::config::DecoderConfig;
use super::decoder::{CardRoom, KvShape};
use super::kv_cache::blocks_for;
use crate::kernels::attention::BLOCK_TOKENS;
use crate::model::ModelError;
use crate::model::device::memory::DeviceMemory;
use crate::scheduler::MAX_BEGIN_WORK;

/// For what libraries set up when they are first needed, and for recorded steps.
const LIBRARIES_BYTES: u64 = 512 << 20;

/// Bytes that a pass of so many tokens takes on its way through a decoder, of which `logit_rows` have logits: the
/// widest places of a layer, in f32.
pub(super) fn pass_bytes(config: &DecoderConfig, tokens: usize, logit_rows: usize) -> u64 {
    /// The residual, what is added to it, and its norm in two formats.
    const HIDDEN: usize = 4;
    /// Gate, up, and their product.
    const INTERMEDIATE: usize = 3;
    /// As they come from their products, and rotated.
    const QUERY_KEY_VALUE: usize = 2;
    /// In the head's format, in f32, and those that the host is to read.
    const LOGITS: usize = 3;
    let query_key_value = (config.heads + 2 * config.kv_heads) * config.head_dim;
    let token = HIDDEN * config.hidden_size
        + INTERMEDIATE * config.intermediate_size
        + QUERY_KEY_VALUE * query_key_value;
    let numbers =
        tokens as u64 * token as u64 + logit_rows as u64 * LOGITS as u64 * config.vocab_size as u64;
    numbers * DType::F32.size_in_bytes() as u64
}

/// Blocks of all layers that the card has room for.
///
/// # Errors
/// The card does not answer, or not even one row of the served context fits.
pub(super) fn blocks_on_card(
    config: &DecoderConfig,
    kv: &KvShape,
    room: CardRoom,
    device: &Device,
) -> Result<usize, ModelError> {
    let Some(memory) = DeviceMemory::of(device)? else {
        return Ok(kv.blocks);
    };
    let found = blocks_in(config, kv, room, memory)?;
    tracing::info!(
        free_bytes = memory.free,
        total_bytes = memory.total,
        device_memory_share = %room.share,
        kv_blocks = found,
        kv_tokens = found * BLOCK_TOKENS,
        kv_bytes = found as u64 * block_bytes(config, kv),
        "what the weights leave of the card is for keys and values"
    );
    Ok(found)
}

/// The same, where the card says this of its memory.
pub(super) fn blocks_in(
    config: &DecoderConfig,
    kv: &KvShape,
    room: CardRoom,
    memory: DeviceMemory,
) -> Result<usize, ModelError> {
    let rows = room.rows as usize;
    let reserve = LIBRARIES_BYTES + pass_bytes(config, MAX_BEGIN_WORK as usize + rows, rows);
    let left = memory.left_of(room.share, reserve);
    // Block numbers are 32 bits wide, and so are the places that they hold.
    let most = (u32::MAX as usize) / BLOCK_TOKENS;
    let blocks = usize::try_from(left / block_bytes(config, kv)).map_or(most, |n| n.min(most));
    let needed = blocks_for(kv.served_context);
    if blocks < needed {
        return Err(ModelError::Load(format!(
            "the card has room for {} tokens of keys and values beside the weights ({memory} are free, \
             device_memory_share is {}, a pass takes {reserve} bytes), and a row may have {}: set max_context or \
             kv_cache_tokens",
            blocks * BLOCK_TOKENS,
            room.share,
            kv.served_context,
        )));
    }
    Ok(blocks)
}

/// Bytes of a block in all layers.
fn block_bytes(config: &DecoderConfig, kv: &KvShape) -> u64 {
    let numbers = config.kv_elements_per_token() * BLOCK_TOKENS;
    (numbers * kv.dtype.size_in_bytes()) as u64
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::device::DeviceSpec;
    use crate::model::text::config::hugging_face;
    use crate::model::text::options::TextOptions;

    const GIB: u64 = 1 << 30;

    /// The shape of Llama 3.1 8B.
    fn config() -> DecoderConfig {
        hugging_face::parse(&json!({
            "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
            "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32,
            "vocab_size": 128256, "max_position_embeddings": 131072,
        }))
        .expect("valid")
    }

    fn options(max_context: Option<u32>) -> TextOptions {
        TextOptions {
            batch_size: 256,
            max_context,
            ..TextOptions::default()
        }
    }

    fn found(options: &TextOptions, free: u64, total: u64) -> Result<usize, String> {
        let config = config();
        let kv = options
            .kv_shape(&config, DeviceSpec::Cuda(0))
            .expect("valid");
        let room = kv.card.expect("nobody said how many tokens");
        let memory = DeviceMemory { free, total };
        let blocks = blocks_in(&config, &kv, room, memory);
        blocks.map_err(|error| error.to_string())
    }

    #[test]
    fn blocks_fill_what_the_weights_leave() {
        // 128 KiB a token in f16, 4 MiB a block. 15 GiB of weights on a card of 139.
        let blocks = found(&options(None), 124 * GIB, 139 * GIB).expect("room");
        let reserve = LIBRARIES_BYTES + pass_bytes(&config(), 8192 + 256, 256);
        let expected = ((139 * GIB) / 10 * 9 - 15 * GIB - reserve) / (4 << 20);
        assert!(
            blocks.abs_diff(expected as usize) <= 1,
            "{blocks}, {expected}"
        );
        // Gate, up and product of 8,448 tokens are the most of it.
        assert!((2 * GIB..4 * GIB).contains(&reserve), "{reserve}");
        let half = TextOptions {
            device_memory_share: "0.5".parse().expect("a share"),
            ..options(None)
        };
        let fewer = found(&half, 124 * GIB, 139 * GIB).expect("room");
        let difference = (blocks - fewer) as u64 * (4 << 20);
        assert!(difference.abs_diff(139 * GIB / 10 * 4) <= 8 << 20);
    }

    #[test]
    fn a_card_that_cannot_hold_one_row_is_refused_with_what_can_be_done() {
        let error = found(&options(None), 6 * GIB, 24 * GIB).expect_err("no room");
        for words in [
            "max_context",
            "kv_cache_tokens",
            "32768",
            "device_memory_share is 0.9",
        ] {
            assert!(error.contains(words), "{error}");
        }
        let short = found(&options(Some(4096)), 7 * GIB, 24 * GIB);
        assert!(short.expect("room for short rows") >= 128);
        assert!(found(&options(Some(4096)), 0, 24 * GIB).is_err());
    }

    #[test]
    fn what_was_asked_for_is_not_measured() {
        let asked = TextOptions {
            kv_cache_tokens: Some(64_000),
            ..options(None)
        };
        let kv = asked
            .kv_shape(&config(), DeviceSpec::Cuda(0))
            .expect("valid");
        assert_eq!((kv.card, kv.blocks), (None, 2_000));
        let kv = options(None)
            .kv_shape(&config(), DeviceSpec::Cpu)
            .expect("valid");
        assert_eq!(kv.card, None);
    }
}
