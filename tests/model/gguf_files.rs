//! GGUF files, written here from the fixtures the way llama.cpp's converter writes them.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use girandole::batch::Slot;
use girandole::model::device::DeviceSpec;
use girandole::model::text::TextModel;
use girandole::model::text::config::{self, DecoderConfig, Family};
use girandole::model::text::decoder::Decoder;
use girandole::model::text::options::TextOptions;
use girandole::model::text::rope::RopeScaling;
use girandole::model::text::tokenizer::TextTokenizer;
use girandole::model::text::weights::WeightSource;
use girandole::model::text::weights::dummy::DummyWeights;
use girandole::model::text::weights::gguf::{GgufFile, GgufWeights};
use girandole::model::text::weights::safetensors::SafetensorsWeights;
use std::sync::Arc;

use crate::decoding::{Decoding, Part};
use crate::goldens::{fixture, read_json};
use crate::serving::{options, plain_options};

/// Names of llama.cpp and of transformers, `{}` standing for the layer.
const NAMES: [(&str, &str); 22] = [
    ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"),
    ("output", "lm_head"),
    ("blk.{}.attn_norm", "model.layers.{}.input_layernorm"),
    ("blk.{}.attn_q", "model.layers.{}.self_attn.q_proj"),
    ("blk.{}.attn_k", "model.layers.{}.self_attn.k_proj"),
    ("blk.{}.attn_v", "model.layers.{}.self_attn.v_proj"),
    ("blk.{}.attn_qkv", "model.layers.{}.self_attn.qkv_proj"),
    ("blk.{}.attn_output", "model.layers.{}.self_attn.o_proj"),
    ("blk.{}.attn_q_norm", "model.layers.{}.self_attn.q_norm"),
    ("blk.{}.attn_k_norm", "model.layers.{}.self_attn.k_norm"),
    ("blk.{}.ffn_gate", "model.layers.{}.mlp.gate_proj"),
    ("blk.{}.ffn_up", "model.layers.{}.mlp.up_proj"),
    ("blk.{}.ffn_up", "model.layers.{}.mlp.gate_up_proj"),
    ("blk.{}.ffn_down", "model.layers.{}.mlp.down_proj"),
    (
        "blk.{}.ffn_norm",
        "model.layers.{}.pre_feedforward_layernorm",
    ),
    (
        "blk.{}.post_ffw_norm",
        "model.layers.{}.post_feedforward_layernorm",
    ),
    // After the feed-forward norms: Gemma's file has this name beside them, the others instead.
    (
        "blk.{}.post_attention_norm",
        "model.layers.{}.post_attention_layernorm",
    ),
    (
        "blk.{}.ffn_norm",
        "model.layers.{}.post_attention_layernorm",
    ),
    ("rope_freqs", "rope_freqs"),
    ("rope_factors_long", "rope_factors_long"),
    ("rope_factors_short", "rope_factors_short"),
];

fn gguf_name(name: &str, family: Family) -> String {
    let (stem, kind) = name.rsplit_once('.').expect("weight or bias");
    let layer = stem
        .strip_prefix("model.layers.")
        .and_then(|rest| rest.split_once('.'))
        .map_or("", |(layer, _)| layer);
    let is_gemma = family.is_gemma();
    let (ours, _) = NAMES
        .iter()
        .filter(|(ours, _)| is_gemma || !ours.ends_with("post_attention_norm"))
        .find(|(_, theirs)| theirs.replace("{}", layer) == stem)
        .unwrap_or_else(|| panic!("no GGUF name for {name}"));
    format!("{}.{kind}", ours.replace("{}", layer))
}

/// Rows of each head from halves to pairs: row `i` and row `i + half` become neighbours.
fn interleave(tensor: &Tensor, heads: usize) -> Tensor {
    let dims = tensor.dims().to_vec();
    let half = dims[0] / heads / 2;
    let columns = tensor.elem_count() / dims[0];
    tensor
        .reshape((heads, 2, half, columns))
        .and_then(|t| t.transpose(1, 2)?.contiguous()?.reshape(dims))
        .expect("rows of whole heads")
}

/// Writes a decoder's tensors, named as transformers names them, as a GGUF file.
pub(crate) fn write_gguf(
    path: &Path,
    config: &DecoderConfig,
    tensors: &HashMap<String, Tensor>,
    quantise: impl Fn(&str) -> GgmlDType,
) {
    let architecture = match config.family {
        Family::Mistral => Family::Llama,
        other => other,
    };
    let mut written = vec![];
    for (name, tensor) in tensors {
        let mut tensor = tensor.to_dtype(DType::F32).expect("a float tensor");
        if architecture == Family::Llama && name.contains("q_proj") {
            tensor = interleave(&tensor, config.heads);
        } else if architecture == Family::Llama && name.contains("k_proj") {
            tensor = interleave(&tensor, config.kv_heads);
        } else if config.norm_offset && name.ends_with("norm.weight") {
            tensor = (tensor + 1.0).expect("a float tensor");
        }
        let name = gguf_name(name, config.family);
        let dtype = match tensor.rank() {
            1 => GgmlDType::F32,
            _ => quantise(&name),
        };
        written.push((
            name,
            QTensor::quantize(&tensor, dtype).expect("whole blocks"),
        ));
    }
    let metadata = metadata(config, architecture);
    let metadata: Vec<_> = metadata
        .iter()
        .map(|(key, value)| (key.as_str(), value))
        .collect();
    let written: Vec<_> = written.iter().map(|(name, t)| (name.as_str(), t)).collect();
    let mut file = File::create(path).expect("the folder can be written");
    gguf_file::write(&mut file, &metadata, &written).expect("the folder can be written");
}

fn metadata(config: &DecoderConfig, architecture: Family) -> Vec<(String, Value)> {
    let number = |n: usize| Value::U32(n as u32);
    let mut values = vec![
        ("block_count", number(config.layers.len())),
        ("context_length", number(config.max_context)),
        ("embedding_length", number(config.hidden_size)),
        ("feed_forward_length", number(config.intermediate_size)),
        ("attention.head_count", number(config.heads)),
        ("attention.head_count_kv", number(config.kv_heads)),
        ("attention.key_length", number(config.head_dim)),
        ("attention.value_length", number(config.head_dim)),
        (
            "attention.layer_norm_rms_epsilon",
            Value::F32(config.norm_eps),
        ),
        ("rope.dimension_count", number(config.ropes[0].rotary_dim)),
        ("rope.freq_base", Value::F32(config.ropes[0].base)),
    ];
    let slides = |layer: &config::LayerAttention| Value::Bool(layer.window.is_some());
    if let Some(window) = config.layers.iter().find_map(|layer| layer.window) {
        values.push(("attention.sliding_window", number(window)));
        let pattern = config.layers.iter().map(slides).collect();
        values.push(("attention.sliding_window_pattern", Value::Array(pattern)));
    }
    if let Some(cap) = config.attention_softcap {
        values.push(("attn_logit_softcapping", Value::F32(cap)));
    }
    if let Some(cap) = config.logit_softcap {
        values.push(("final_logit_softcapping", Value::F32(cap)));
    }
    match &config.ropes[0].scaling {
        RopeScaling::Linear { factor } => {
            values.push(("rope.scaling.type", Value::String("linear".into())));
            values.push(("rope.scaling.factor", Value::F32(*factor)));
        }
        RopeScaling::Yarn {
            factor,
            original_context,
            ..
        } => {
            values.push(("rope.scaling.type", Value::String("yarn".into())));
            values.push(("rope.scaling.factor", Value::F32(*factor)));
            let original = number(*original_context as usize);
            values.push(("rope.scaling.original_context_length", original));
        }
        RopeScaling::Long {
            original_context,
            attention_factor,
            ..
        } => {
            let original = number(*original_context);
            values.push(("rope.scaling.original_context_length", original));
            values.push(("rope.scaling.attn_factor", Value::F32(*attention_factor)));
        }
        _ => {}
    }
    let prefixed = values
        .into_iter()
        .map(|(key, value)| (format!("{architecture}.{key}"), value));
    let name = Value::String(architecture.name().into());
    std::iter::once(("general.architecture".into(), name))
        .chain(prefixed)
        .collect()
}

/// The fixture's tensors, with the rope factors that a GGUF file carries as tensors.
fn fixture_tensors(family: &str, config: &DecoderConfig) -> HashMap<String, Tensor> {
    let mut tensors = HashMap::new();
    for entry in std::fs::read_dir(fixture(family)).expect("the fixture is there") {
        let path: PathBuf = entry.expect("readable").path();
        if path
            .extension()
            .is_some_and(|extension| extension == "safetensors")
        {
            tensors.extend(candle_core::safetensors::load(path, &Device::Cpu).expect("readable"));
        }
    }
    let vector = |values: &[f32]| Tensor::new(values, &Device::Cpu).expect("a vector");
    let plain = config::hugging_face::parse(&serde_json::json!({
        "model_type": "llama", "hidden_size": config.hidden_size, "intermediate_size": 64,
        "num_attention_heads": config.heads, "head_dim": config.head_dim,
        "num_hidden_layers": 1, "vocab_size": 320, "max_position_embeddings": 256,
        "rope_theta": config.ropes[0].base,
    }))
    .expect("valid");
    match &config.ropes[0].scaling {
        RopeScaling::Llama3 { .. } => {
            let plain = plain.ropes[0].frequencies(256);
            let scaled = config.ropes[0].frequencies(256);
            let factors: Vec<f32> = plain.iter().zip(&scaled).map(|(p, s)| p / s).collect();
            tensors.insert("rope_freqs.weight".into(), vector(&factors));
        }
        RopeScaling::Long { short, long, .. } => {
            tensors.insert("rope_factors_short.weight".into(), vector(short));
            tensors.insert("rope_factors_long.weight".into(), vector(long));
        }
        _ => {}
    }
    tensors
}

fn load_gguf(file: &GgufFile) -> (DecoderConfig, Decoding) {
    let factors = file.rope_factors().expect("readable");
    let config = config::gguf::parse(file.content(), &factors).expect("a known family");
    let decoding = decoding(&config, &mut GgufWeights::new(file, None, &Device::Cpu));
    (config, decoding)
}

fn decoding(config: &DecoderConfig, source: &mut dyn WeightSource) -> Decoding {
    let kv = options(1)
        .kv_shape(config, DeviceSpec::Cpu)
        .expect("valid options");
    let decoder = Decoder::load(config, source, &kv).expect("complete weights");
    let mut decoding = Decoding::new(decoder, &kv, 1);
    decoding.pool.reserve(Slot(0), 64).expect("enough blocks");
    decoding
}

fn logits(decoding: &Decoding) -> Vec<f32> {
    let tokens: Vec<u32> = (0..40).map(|i| i * 37 % 256).collect();
    let part = Part {
        slot: 0,
        first_position: 0,
        tokens: &tokens,
    };
    decoding.pass(&[part]).concat()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

/// The fixture as a GGUF file gives the logits of the fixture as safetensors.
fn check(family: &str) {
    let config = config::hugging_face::parse(&read_json(&fixture(family).join("config.json")))
        .expect("a known family");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    let tensors = fixture_tensors(family, &config);
    write_gguf(&path, &config, &tensors, |_| GgmlDType::F32);
    let file = GgufFile::open(&path).expect("just written");
    let (from_gguf, in_gguf) = load_gguf(&file);
    // A GGUF file has no place for this one; see the parser.
    let config = DecoderConfig {
        attention_scale: from_gguf.attention_scale,
        ..config
    };
    let mut source = SafetensorsWeights::open(&fixture(family), None, &Device::Cpu)
        .expect("the fixture has weights");
    let in_safetensors = decoding(&config, &mut source);
    let difference = largest_difference(&logits(&in_gguf), &logits(&in_safetensors));
    assert!(difference < 1e-4, "{family}: {difference}");
}

#[test]
fn every_family_reads_the_same_from_gguf() {
    for family in [
        "llama",
        "llama-tied-bias",
        "llama3-rope",
        "llama-linear-rope",
        "llama-yarn",
        "mistral",
        "qwen2",
        "qwen3",
        "phi3",
        "phi3-longrope",
        "gemma2",
        "gemma3",
    ] {
        check(family);
    }
}

/// A Llama wide enough for every block format, with random weights.
fn wide_config() -> DecoderConfig {
    config::hugging_face::parse(&serde_json::json!({
        "model_type": "llama", "hidden_size": 256, "intermediate_size": 256,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
        "num_hidden_layers": 1, "vocab_size": 272, "max_position_embeddings": 512,
        "tie_word_embeddings": true,
    }))
    .expect("valid")
}

/// Its tensors, as transformers would name them.
fn wide_tensors(config: &DecoderConfig) -> HashMap<String, Tensor> {
    use girandole::model::text::names::Matrix;
    use girandole::model::text::weights::Weight;
    let mut source = DummyWeights::new(config, 5, DType::F32, &Device::Cpu);
    let mut tensors = HashMap::new();
    for matrix in [
        Matrix::Embedding,
        Matrix::Query,
        Matrix::Key,
        Matrix::Value,
        Matrix::AttentionOutput,
        Matrix::Gate,
        Matrix::Up,
        Matrix::Down,
    ] {
        let place = source.naming().matrix(config, matrix, 0);
        let Ok(Weight::Dense(tensor)) = source.matrix(&place) else {
            panic!("random weights are dense");
        };
        tensors.insert(place.weight(), tensor);
    }
    for norm in [
        "model.norm",
        "model.layers.0.input_layernorm",
        "model.layers.0.post_attention_layernorm",
    ] {
        let ones = Tensor::ones(config.hidden_size, DType::F32, &Device::Cpu).expect("ones");
        tensors.insert(format!("{norm}.weight"), ones);
    }
    tensors
}

/// The tensors as a file in `dtype` would give them back.
fn through(dtype: GgmlDType, tensors: &HashMap<String, Tensor>) -> HashMap<String, Tensor> {
    tensors
        .iter()
        .map(|(name, tensor)| {
            let restored = match tensor.rank() {
                1 => tensor.clone(),
                _ => QTensor::quantize(tensor, dtype)
                    .and_then(|quantised| quantised.dequantize(&Device::Cpu))
                    .expect("whole blocks"),
            };
            (name.clone(), restored)
        })
        .collect()
}

#[test]
fn every_quantisation_gives_the_model_that_its_values_give() {
    let config = wide_config();
    let tensors = wide_tensors(&config);
    let folder = tempfile::tempdir().expect("a folder");
    for dtype in [
        GgmlDType::F32,
        GgmlDType::F16,
        GgmlDType::BF16,
        GgmlDType::Q4_0,
        GgmlDType::Q4_1,
        GgmlDType::Q5_0,
        GgmlDType::Q5_1,
        GgmlDType::Q8_0,
        GgmlDType::Q2K,
        GgmlDType::Q3K,
        GgmlDType::Q4K,
        GgmlDType::Q5K,
        GgmlDType::Q6K,
    ] {
        let path = folder.path().join(format!("{dtype:?}.gguf"));
        write_gguf(&path, &config, &tensors, |_| dtype);
        let (_, quantised) = load_gguf(&GgufFile::open(&path).expect("just written"));
        let path = folder.path().join(format!("{dtype:?}-restored.gguf"));
        write_gguf(&path, &config, &through(dtype, &tensors), |_| {
            GgmlDType::F32
        });
        let (_, restored) = load_gguf(&GgufFile::open(&path).expect("just written"));
        let difference = largest_difference(&logits(&quantised), &logits(&restored));
        // Logits reach ± 4. Products with quantised weights round their other side to 8 bits too.
        let tolerance = match dtype {
            GgmlDType::F32 => 0.0,
            GgmlDType::F16 | GgmlDType::BF16 => 1e-3,
            _ => 0.1,
        };
        assert!(difference <= tolerance, "{dtype:?}: {difference}");
    }
}

/// A model with its linear layers in one format and its tied embedding in another.
fn quantised_model(linear: GgmlDType, embedding: GgmlDType, options: &TextOptions) -> TextModel {
    let config = wide_config();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    write_gguf(&path, &config, &wide_tensors(&config), |name| {
        if name == "token_embd.weight" {
            embedding
        } else {
            linear
        }
    });
    let file = GgufFile::open(&path).expect("just written");
    let kv = options.kv_shape(&config, DeviceSpec::Cpu).expect("valid");
    let mut source = GgufWeights::new(&file, None, &Device::Cpu);
    let decoder = Decoder::load(&config, &mut source, &kv).expect("complete");
    let tokenizer = Arc::new(TextTokenizer::bytes(config.vocab_size as u32));
    let kept = options.prefix_cache_blocks(&kv);
    TextModel::new(decoder, tokenizer, options.batch_size, &kv, kept)
}

#[test]
fn a_row_in_company_equals_the_row_alone_with_quantised_weights() {
    for (linear, embedding) in [
        (GgmlDType::Q4_1, GgmlDType::Q8_0),
        (GgmlDType::Q8_0, GgmlDType::Q8_0),
        (GgmlDType::Q4K, GgmlDType::Q6K),
    ] {
        let mut model = quantised_model(linear, embedding, &options(crate::company::SLOTS));
        let mut plain = quantised_model(linear, embedding, &plain_options(1));
        for seed in 30..33 {
            crate::company::check_company(&mut model, &mut plain, seed);
        }
    }
}

#[test]
fn a_file_that_is_not_what_it_says_is_refused_by_name() {
    let config = wide_config();
    let tensors = wide_tensors(&config);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    let refuse = |change: &dyn Fn(&mut HashMap<String, Tensor>)| {
        let mut tensors = tensors.clone();
        change(&mut tensors);
        write_gguf(&path, &config, &tensors, |_| GgmlDType::F32);
        let file = GgufFile::open(&path).expect("just written");
        let kv = options(1)
            .kv_shape(&config, DeviceSpec::Cpu)
            .expect("valid");
        let mut source = GgufWeights::new(&file, None, &Device::Cpu);
        let loaded = Decoder::load(&config, &mut source, &kv);
        loaded.err().expect("not loadable").to_string()
    };
    let down = "model.layers.0.mlp.down_proj.weight";
    assert_eq!(
        refuse(&|tensors| drop(tensors.remove(down))),
        "the model has no tensor blk.0.ffn_down.weight"
    );
    assert_eq!(
        refuse(&|tensors| {
            let narrow = tensors[down].narrow(1, 0, 128).and_then(|t| t.contiguous());
            tensors.insert(down.into(), narrow.expect("128 of 256 columns"));
        }),
        "tensor blk.0.ffn_down.weight has shape [256, 128]; expected [256, 256]"
    );
    assert_eq!(
        refuse(&|tensors| {
            let extra = tensors[down].clone();
            tensors.insert("model.layers.1.mlp.down_proj.weight".into(), extra);
        }),
        "the model has 1 tensors that llama does not know: blk.1.ffn_down.weight"
    );
}

#[test]
fn a_file_cut_short_is_refused() {
    let config = wide_config();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    write_gguf(&path, &config, &wide_tensors(&config), |_| GgmlDType::Q8_0);
    let whole = std::fs::read(&path).expect("just written");
    for len in [0, 3, 20, 100, 1000, whole.len() / 2, whole.len() - 4096] {
        std::fs::write(&path, &whole[..len]).expect("writable");
        let refused = GgufFile::open(&path).and_then(|file| {
            let kv = options(1).kv_shape(&config, DeviceSpec::Cpu)?;
            let mut source = GgufWeights::new(&file, None, &Device::Cpu);
            Decoder::load(&config, &mut source, &kv)
        });
        assert!(refused.is_err(), "{len} bytes of {}", whole.len());
    }
}
