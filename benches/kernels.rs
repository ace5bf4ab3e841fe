//! The matrix products against Candle's own, by format, shape and number of rows.
//!
//! `GIRANDOLE_BENCH_THREADS` sets our threads (1 when absent); for Candle set `CANDLE_NUM_THREADS` and
//! `RAYON_NUM_THREADS` to the same number.
#![allow(missing_docs, reason = "criterion's macros")]

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Module, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use girandole::kernels::linear::Linear;
use girandole::kernels::threads::set_compute_threads;

const ROWS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
/// (n, k): the layers of SmolLM2-135M and its head.
const SHAPES: [(usize, usize); 3] = [(1536, 576), (576, 1536), (49152, 576)];

fn products(criterion: &mut Criterion) {
    let threads = std::env::var("GIRANDOLE_BENCH_THREADS")
        .map_or(1, |count| count.parse().expect("a number"));
    set_compute_threads(threads);
    for dtype in [
        GgmlDType::Q4_1,
        GgmlDType::Q8_0,
        GgmlDType::Q4_0,
        GgmlDType::Q5_0,
        GgmlDType::F16,
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

criterion_group!(benches, products);
criterion_main!(benches);
