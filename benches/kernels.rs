//! Each kernel against Candle's own way: the matrix products by format, shape and number of rows, paged attention,
//! and the small operations between them.
//!
//! `GIRANDOLE_BENCH_THREADS` sets our threads (1 when absent); for Candle set `CANDLE_NUM_THREADS` and
//! `RAYON_NUM_THREADS` to the same number.
#![allow(missing_docs, reason = "criterion's macros")]

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{DType, Device, Module, Result, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use girandole::kernels::activation::{gelu_tanh_mul, silu_mul};
use girandole::kernels::attention::{
    AttentionOptions, BLOCK_TOKENS, PagedKv, TokenLayout, paged_attention, write_kv,
};
use girandole::kernels::linear::Linear;
use girandole::kernels::norm::rms_norm;
use girandole::kernels::reference;
use girandole::kernels::rope::rope;
use girandole::kernels::threads::set_compute_threads;

const ROWS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
/// (n, k): the layers of SmolLM2-135M and its head.
const SHAPES: [(usize, usize); 3] = [(1536, 576), (576, 1536), (49152, 576)];

/// Once for all benches: the first call decides.
fn set_threads() {
    let threads = std::env::var("GIRANDOLE_BENCH_THREADS")
        .map_or(1, |count| count.parse().expect("a number"));
    set_compute_threads(threads);
}

fn products(criterion: &mut Criterion) {
    set_threads();
    for dtype in [
        GgmlDType::Q4_1,
        GgmlDType::Q8_0,
        GgmlDType::Q4_0,
        GgmlDType::Q5_0,
        GgmlDType::Q5_1,
        GgmlDType::F16,
        GgmlDType::BF16,
        GgmlDType::F32,
    ] {
        for (n, k) in SHAPES {
            compare(criterion, dtype, n, k);
        }
    }
    for dtype in [GgmlDType::Q4K, GgmlDType::Q5K, GgmlDType::Q6K] {
        compare(criterion, dtype, 2048, 2048);
    }
}

fn compare(criterion: &mut Criterion, dtype: GgmlDType, n: usize, k: usize) {
    let plain = Tensor::rand(-1f32, 1f32, (n, k), &Device::Cpu).expect("a weight");
    let weight = || QTensor::quantize(&plain, dtype).expect("a quantised weight");
    let ours = Linear::quantized(weight(), None).expect("our layer");
    let candles = QMatMul::from_qtensor(weight()).expect("candle's layer");
    let mut group = criterion.benchmark_group(format!("{dtype:?}_{k}x{n}"));
    for rows in ROWS {
        let x = Tensor::rand(-1f32, 1f32, (rows, k), &Device::Cpu).expect("an input");
        group.throughput(Throughput::ElementsAndBytes {
            elements: (2 * rows * n * k) as u64,
            bytes: (n * k * dtype.type_size() / dtype.block_size()) as u64,
        });
        group.bench_with_input(BenchmarkId::new("girandole", rows), &x, |bencher, x| {
            bencher.iter(|| ours.forward(x))
        });
        group.bench_with_input(BenchmarkId::new("candle", rows), &x, |bencher, x| {
            bencher.iter(|| candles.forward(x))
        });
    }
    group.finish();
}

/// SmolLM2-135M's attention: rows that decode at some context, and prompts.
fn attention(criterion: &mut Criterion) {
    set_threads();
    let (heads, kv_heads, head_dim) = (9, 3, 64);
    let options = AttentionOptions {
        scale: 0.125,
        window: None,
        softcap: None,
    };
    let mut group = criterion.benchmark_group("attention");
    for (name, slots, tokens, context) in [
        ("decode_8_at_200", 8, 1, 200),
        ("decode_1_at_1500", 1, 1, 1500),
        ("prefill_256", 1, 256, 256),
    ] {
        let blocks = usize::div_ceil(context, BLOCK_TOKENS);
        let tables = (0..slots)
            .map(|slot| {
                (0..blocks)
                    .map(|block| (slot * blocks + block) as u32)
                    .collect()
            })
            .collect();
        let slot_of_token = (0..slots * tokens)
            .map(|token| (token / tokens) as u32)
            .collect();
        let positions = (0..slots * tokens)
            .map(|token| (context - tokens + token % tokens) as u32)
            .collect();
        let layout = TokenLayout::new(slot_of_token, positions, tables).expect("a layout");
        let rows = |heads| {
            Tensor::rand(-1f32, 1f32, (slots * tokens, heads, head_dim), &Device::Cpu)
                .expect("rows")
        };
        let q = rows(heads);
        for dtype in [DType::F32, DType::F16] {
            let kv = PagedKv::zeros(slots * blocks, kv_heads, head_dim, dtype, &Device::Cpu)
                .expect("a store");
            write_kv(&kv, &rows(kv_heads), &rows(kv_heads), &layout).expect("a write");
            let seen: u32 = layout.positions().iter().map(|position| position + 1).sum();
            group.throughput(Throughput::Elements(
                4 * u64::from(seen) * (heads * head_dim) as u64,
            ));
            let id = |whose: &str| BenchmarkId::new(format!("{name}_{dtype:?}"), whose);
            group.bench_function(id("girandole"), |bencher| {
                bencher.iter(|| paged_attention(&q, &kv, &layout, &options));
            });
            // Candle has no paged attention on the CPU: blocks gathered, then its products and softmax per slot.
            group.bench_function(id("candle"), |bencher| {
                bencher.iter(|| reference::paged_attention(&q, &kv, &layout, &options));
            });
        }
    }
    group.finish();
}

/// The operations between the products, on eight rows of SmolLM2-135M.
fn small_operations(criterion: &mut Criterion) {
    set_threads();
    let tensor = |rows: usize, columns: usize| {
        Tensor::rand(-1f32, 1f32, (rows, columns), &Device::Cpu).expect("a tensor")
    };
    let (x, gate, up) = (tensor(8, 576), tensor(8, 1536), tensor(8, 1536));
    let weight = tensor(1, 576).flatten_all().expect("a weight");
    let (q, cos, sin) = (
        x.reshape((8, 9, 64)).expect("heads"),
        tensor(64, 32),
        tensor(64, 32),
    );
    // Candle's wants the rows of the tables that belong to the tokens, and (batch, heads, tokens, width).
    let positions = [3, 1, 4, 1, 5, 9, 2, 6];
    let ids = Tensor::new(&positions, &Device::Cpu).expect("positions");
    let rows_of = |table: &Tensor| table.index_select(&ids, 0).expect("rows");
    let candles_q = q.transpose(0, 1).and_then(|q| q.unsqueeze(0));
    let candles_q = candles_q.and_then(|q| q.contiguous()).expect("heads");
    let mut group = criterion.benchmark_group("eight_rows");
    let mut pair =
        |name: &str, ours: &dyn Fn() -> Result<Tensor>, candles: &dyn Fn() -> Result<Tensor>| {
            for (whose, run) in [("girandole", ours), ("candle", candles)] {
                let id = BenchmarkId::new(name, whose);
                group.bench_function(id, |bencher| bencher.iter(|| run().expect("a result")));
            }
        };
    pair("rms_norm", &|| rms_norm(&x, &weight, 1e-5), &|| {
        candle_nn::ops::rms_norm(&x, &weight, 1e-5)
    });
    pair("rope", &|| rope(&q, &cos, &sin, &positions), &|| {
        candle_nn::rotary_emb::rope(&candles_q, &rows_of(&cos), &rows_of(&sin))
    });
    pair("silu_mul", &|| silu_mul(&gate, &up), &|| gate.silu()? * &up);
    pair("gelu_tanh_mul", &|| gelu_tanh_mul(&gate, &up), &|| {
        gate.gelu()? * &up
    });
    group.finish();
}

criterion_group!(benches, products, attention, small_operations);
criterion_main!(benches);
