//! The kernels of text models, each with numbers that it meets and with awkward ones.

use candle_core::quantized::{GgmlDType, QTensor, ggml_file};
use candle_core::{DType, Device, Tensor};

use super::check::{Check, Group, Place, Run, Twin};
use super::inputs::{numbers, tensor, values, weight};
use crate::kernels::activation::{gelu_tanh_mul, silu_mul};
use crate::kernels::attention::{
    AttentionOptions, BLOCK_TOKENS, PagedKv, TokenLayout, paged_attention, write_kv,
};
use crate::kernels::embedding::Embedding;
use crate::kernels::linear::Linear;
use crate::kernels::norm::rms_norm;
use crate::kernels::rope::rope;
use crate::model::ModelError;

/// Sums in f32, in another order.
const F32: f64 = 2e-5;
/// Products of weights in f16 with inputs rounded to f16, summed in f32.
const F16: f64 = 2e-3;
/// The same in bf16.
const BF16: f64 = 1.6e-2;
/// Inputs rounded to 8 bits on both sides, each in its own way.
const QUANTISED: f64 = 3e-2;

/// Rows of inputs: one, a decode batch, a prompt.
const ROWS: [usize; 3] = [1, 33, 200];

pub(super) fn checks() -> Vec<Check> {
    let mut checks = Vec::new();
    small(&mut checks);
    linears(&mut checks);
    attentions(&mut checks);
    checks
}

pub(super) fn kernel(
    name: String,
    allowed: f64,
    run: impl Fn(&Place) -> Result<Vec<f32>, ModelError> + 'static,
) -> Check {
    Check {
        group: Group::Kernel,
        name,
        allowed,
        run: Box::new(run) as Run,
        twin: Twin::Processor,
    }
}

/// What a number format allows.
pub(super) fn allowed(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => F16,
        DType::BF16 => BF16,
        _ => F32,
    }
}

pub(super) const fn name_of(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => "f16",
        DType::BF16 => "bf16",
        _ => "f32",
    }
}

fn small(checks: &mut Vec<Check>) {
    for (rows, width) in [(1, 576), (33, 4096), (200, 77)] {
        let name = format!("rms norm, {rows} x {width}");
        checks.push(kernel(name, F32, move |place| {
            let x = tensor(place, (rows, width), 1, DType::F32)?;
            let weight = tensor(place, width, 2, DType::F32)?;
            Ok(values(&rms_norm(&x, &weight, 1e-5)?)?)
        }));
    }
    for (width, half) in [(64, 32), (128, 64), (96, 48), (80, 16)] {
        let name = format!("rope, 33 tokens, heads of {width}, {} turned", 2 * half);
        checks.push(kernel(name, F32, move |place| {
            let x = tensor(place, (33, 3, width), 3, DType::F32)?;
            let angles = tensor(place, (100, half), 4, DType::F32)?;
            let positions: Vec<u32> = (0..33).map(|token| token * 37 % 100).collect();
            let (cos, sin) = (angles.cos()?, angles.sin()?);
            Ok(values(&rope(&x, &cos, &sin, &positions)?)?)
        }));
    }
    type Gated = fn(&Tensor, &Tensor) -> candle_core::Result<Tensor>;
    for (name, gated) in [("silu", silu_mul as Gated), ("gelu", gelu_tanh_mul)] {
        for rows in ROWS {
            let name = format!("{name}(gate) * up, {rows} x 1537");
            checks.push(kernel(name, F32, move |place| {
                let gate = (tensor(place, (rows, 1537), 5, DType::F32)? * 8.0)?;
                let up = tensor(place, (rows, 1537), 6, DType::F32)?;
                Ok(values(&gated(&gate, &up)?)?)
            }));
        }
    }
}

/// The formats of llama.cpp's files that Candle multiplies on a card.
const FORMATS: [GgmlDType; 10] = [
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
];

fn linears(checks: &mut Vec<Check>) {
    let ids = |place: &Place| Tensor::new(&[95u32, 0, 17, 17, 16], &place.device);
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for rows in ROWS {
            let name = format!("product, {rows} x 512 x 96, {}", name_of(dtype));
            checks.push(kernel(name, allowed(dtype), move |place| {
                let bias = tensor(place, 96, 8, DType::F32)?;
                let layer = Linear::dense(weight(place, (96, 512), 7, dtype)?, Some(bias))?;
                let x = tensor(place, (rows, 512), 9, dtype)?;
                Ok(values(&layer.forward(&x)?)?)
            }));
        }
        let name = format!("embedding, {}", name_of(dtype));
        checks.push(kernel(name, 0.0, move |place| {
            let table = Embedding::dense(weight(place, (96, 512), 7, dtype)?)?;
            Ok(values(&table.forward(&ids(place)?)?)?)
        }));
    }
    for format in FORMATS {
        for rows in ROWS {
            let name = format!("product, {rows} x 512 x 96, {format:?}");
            checks.push(kernel(name, QUANTISED, move |place| {
                let layer = Linear::quantized(quantised(place, format)?, None)?;
                let x = tensor(place, (rows, 512), 9, DType::F32)?;
                Ok(values(&layer.forward(&x)?)?)
            }));
        }
        checks.push(kernel(
            format!("embedding, {format:?}"),
            F32,
            move |place| {
                let table = Embedding::quantized(quantised(place, format)?)?;
                Ok(values(&table.forward(&ids(place)?)?)?)
            },
        ));
    }
}

/// (96, 512), quantised on the host: the same blocks on every place.
fn quantised(place: &Place, format: GgmlDType) -> candle_core::Result<QTensor> {
    let plain = Tensor::from_vec(numbers(96 * 512, 7), (96, 512), &Device::Cpu)?;
    let blocks = QTensor::quantize(&plain, format)?;
    ggml_file::qtensor_from_ggml(format, &blocks.data()?, vec![96, 512], &place.device)
}

/// A pass: for each slot where its queries begin, and how many they are.
#[derive(Clone, Copy)]
struct Pass {
    name: &'static str,
    slots: &'static [(usize, usize)],
}

const PASSES: [Pass; 4] = [
    Pass {
        name: "a row",
        slots: &[(70, 1)],
    },
    Pass {
        name: "five rows",
        slots: &[(0, 1), (31, 1), (32, 1), (500, 1), (999, 1)],
    },
    Pass {
        name: "a row at 5000",
        slots: &[(5000, 1)],
    },
    Pass {
        name: "two prompts and two rows",
        slots: &[(0, 77), (41, 1), (100, 64), (7, 1)],
    },
];

/// How the heads are, and what differs between models.
#[derive(Clone, Copy)]
struct Heads {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
    softcap: Option<f32>,
}

impl Heads {
    const fn plain(heads: usize, kv_heads: usize, head_dim: usize) -> Self {
        Heads {
            heads,
            kv_heads,
            head_dim,
            window: None,
            softcap: None,
        }
    }
}

const HEADS: [Heads; 7] = [
    Heads::plain(4, 4, 64),
    Heads::plain(9, 3, 64),
    Heads::plain(8, 1, 128),
    Heads::plain(4, 2, 32),
    Heads::plain(4, 2, 96),
    Heads::plain(4, 2, 256),
    Heads {
        window: Some(40),
        softcap: Some(2.0),
        ..Heads::plain(4, 2, 64)
    },
];

fn attentions(checks: &mut Vec<Check>) {
    for heads in HEADS {
        for pass in PASSES {
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let limits = match (heads.window, heads.softcap) {
                    (None, None) => String::new(),
                    _ => ", window and softcap".to_owned(),
                };
                let name = format!(
                    "attention, {}, {}/{} heads of {}{limits}, K/V in {}",
                    pass.name,
                    heads.heads,
                    heads.kv_heads,
                    heads.head_dim,
                    name_of(dtype)
                );
                checks.push(kernel(name, allowed(dtype), move |place| {
                    attend(place, heads, pass, dtype)
                }));
            }
        }
    }
}

/// Fills the pages of each slot up to its queries, then stores the pass's own keys and values and attends. Keys and
/// values are numbers that `dtype` holds, so that the processor may keep them in f32.
fn attend(place: &Place, heads: Heads, pass: Pass, dtype: DType) -> Result<Vec<f32>, ModelError> {
    let tables = block_tables(pass);
    let blocks = tables.iter().map(Vec::len).sum::<usize>() + 1;
    let kept = if place.is_cpu() { DType::F32 } else { dtype };
    let kv = PagedKv::zeros(blocks, heads.kv_heads, heads.head_dim, kept, &place.device)?;
    let tokens_of = |range: fn((usize, usize)) -> std::ops::Range<usize>| {
        let (mut slots, mut positions) = (Vec::new(), Vec::new());
        for (slot, &part) in pass.slots.iter().enumerate() {
            for position in range(part) {
                slots.push(slot as u32);
                positions.push(position as u32);
            }
        }
        TokenLayout::new(slots, positions, tables.clone())
    };
    let before = tokens_of(|(first, _)| 0..first)?;
    let own = tokens_of(|(first, count)| first..first + count)?;
    let shape = |layout: &TokenLayout, heads: usize, width| (layout.tokens(), heads, width);
    for (layout, seed) in [(&before, 10), (&own, 12)] {
        if layout.tokens() > 0 {
            let shape = shape(layout, heads.kv_heads, heads.head_dim);
            let k = tensor(place, shape, seed, dtype)?;
            let v = tensor(place, shape, seed + 1, dtype)?;
            write_kv(&kv, &k, &v, layout)?;
        }
    }
    let q = tensor(place, shape(&own, heads.heads, heads.head_dim), 14, dtype)?;
    let options = AttentionOptions {
        // Sharper than usual, so that one wrong key shows.
        scale: 4.0 / (heads.head_dim as f32).sqrt(),
        window: heads.window,
        softcap: heads.softcap,
    };
    Ok(values(&paged_attention(&q, &kv, &own, &options)?)?)
}

/// Blocks of the slots, scattered over the store. Block 0 is nobody's.
fn block_tables(pass: Pass) -> Vec<Vec<u32>> {
    let needed: Vec<usize> = pass
        .slots
        .iter()
        .map(|(first, count)| (first + count).div_ceil(BLOCK_TOKENS))
        .collect();
    let mut free: Vec<u32> = (1..=needed.iter().sum::<usize>() as u32).collect();
    let mut tables = vec![Vec::new(); needed.len()];
    // In turns, from the back: neighbours in a table are no neighbours in the store.
    for index in 0..needed.iter().copied().max().unwrap_or(0) {
        for (table, needed) in tables.iter_mut().zip(&needed) {
            if index < *needed
                && let Some(block) = free.pop()
            {
                table.push(block);
            }
        }
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_has_one_owner() {
        for pass in PASSES {
            let mut blocks: Vec<u32> = block_tables(pass).concat();
            let count = blocks.len();
            blocks.sort_unstable();
            blocks.dedup();
            assert_eq!(blocks.len(), count, "{}", pass.name);
            assert!(!blocks.contains(&0), "{}", pass.name);
        }
    }
}
