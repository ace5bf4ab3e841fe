//! A folder with a model that is broken in one place.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use girandole::model::Model;
use girandole::model::device::DeviceSpec;
use girandole::model::text::TextModel;
use girandole::model::text::decoder::Decoder;
use girandole::model::text::tokenizer::TextTokenizer;
use girandole::model::text::weights::safetensors::SafetensorsWeights;

use crate::goldens::{config, fixture};
use crate::serving::options;

/// The tiny Llama with one token's embedding not a number.
pub(crate) fn model_with_nan_embedding(token: usize, slots: u32) -> Box<dyn Model> {
    let folder = tempfile::tempdir().expect("a folder");
    let mut tensors: HashMap<String, Tensor> =
        candle_core::safetensors::load(fixture("llama").join("model.safetensors"), &Device::Cpu)
            .expect("the fixture");
    let name = "model.embed_tokens.weight";
    let mut rows: Vec<Vec<f32>> = tensors[name].to_vec2().expect("f32 rows");
    rows[token].fill(f32::NAN);
    tensors.insert(name.into(), Tensor::new(rows, &Device::Cpu).expect("rows"));
    candle_core::safetensors::save(&tensors, folder.path().join("model.safetensors"))
        .expect("the folder can be written");

    let config = config("llama");
    let options = options(slots);
    let kv = options.kv_shape(&config, DeviceSpec::Cpu).expect("valid");
    let mut source =
        SafetensorsWeights::open(folder.path(), None, &Device::Cpu).expect("just written");
    let decoder = Decoder::load(&config, &mut source, &kv).expect("complete");
    let tokenizer = Arc::new(TextTokenizer::bytes(config.vocab_size as u32));
    let kept = options.prefix_cache_blocks(&kv);
    Box::new(TextModel::new(decoder, tokenizer, slots, &kv, kept))
}
