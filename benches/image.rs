//! Each operation of picture models against Candle's own way, at the shapes of Stable Diffusion 1.5 at 512 x 512 pixels,
//! for one row and for four.
//!
//! `GIRANDOLE_BENCH_THREADS` sets our threads (1 when absent); for Candle set `CANDLE_NUM_THREADS` and
//! `RAYON_NUM_THREADS` to the same number.
#![allow(missing_docs, reason = "criterion's macros")]

use std::time::Duration;

use candle_core::{Device, Module, Result, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use girandole::kernels::image::{
    Conv2d, ConvOptions, GroupNorm, Padding, attention, geglu, linear, stock,
};
use girandole::kernels::linear::Linear;
use girandole::kernels::threads::set_compute_threads;

const ROWS: [usize; 2] = [1, 4];

/// Once for all benches: the first call decides.
fn set_threads() {
    let threads = std::env::var("GIRANDOLE_BENCH_THREADS")
        .map_or(1, |count| count.parse().expect("a number"));
    set_compute_threads(threads);
}

fn random(shape: &[usize]) -> Tensor {
    Tensor::randn(0f32, 1f32, shape, &Device::Cpu).expect("a tensor")
}

/// Measures ours and Candle's, each `operations` long.
fn pair(
    criterion: &mut Criterion,
    name: &str,
    operations: usize,
    ours: &dyn Fn() -> Result<Tensor>,
    candles: &dyn Fn() -> Result<Tensor>,
) {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(10);
    group.warm_up_time(Duration::from_millis(300));
    group.measurement_time(Duration::from_secs(1));
    group.throughput(Throughput::Elements(operations as u64));
    for (whose, run) in [("girandole", ours), ("candle", candles)] {
        group.bench_function(BenchmarkId::from_parameter(whose), |bencher| {
            bencher.iter(|| run().expect("a result"));
        });
    }
    group.finish();
}

fn convolutions(criterion: &mut Criterion) {
    set_threads();
    for (pixels, channels, out, kernel) in [
        (64, 320, 320, 3),
        (32, 640, 640, 3),
        (16, 1280, 1280, 3),
        (8, 1280, 1280, 3),
        (64, 640, 320, 1),
        (128, 512, 512, 3),
    ] {
        let padding = kernel / 2;
        let options = ConvOptions {
            stride: 1,
            padding: Padding::Same(padding),
        };
        let weight = random(&[out, channels, kernel, kernel]);
        let conv = Conv2d::new(weight.clone(), None, options).expect("a convolution");
        for rows in ROWS {
            let x = random(&[rows, pixels, pixels, channels]);
            let first = stock::channels_first(&x).expect("an input");
            pair(
                criterion,
                &format!("conv{kernel}_{rows}x{pixels}x{pixels}_{channels}_{out}"),
                2 * rows * pixels * pixels * channels * out * kernel * kernel,
                &|| conv.forward(&x),
                &|| first.conv2d(&weight, padding, 1, 1, 1),
            );
        }
    }
}

fn norms(criterion: &mut Criterion) {
    set_threads();
    for (pixels, channels) in [(64, 320), (16, 1280), (256, 256)] {
        let (weight, bias) = (random(&[channels]), random(&[channels]));
        let candles = candle_nn::GroupNorm::new(weight.clone(), bias.clone(), channels, 32, 1e-5);
        let candles = candles.expect("candle's norm");
        let norm = GroupNorm::new(weight, bias, 32, 1e-5).expect("our norm");
        for rows in ROWS {
            let x = random(&[rows, pixels, pixels, channels]);
            let first = stock::channels_first(&x).expect("an input");
            pair(
                criterion,
                &format!("group_norm_silu_{rows}x{pixels}x{pixels}_{channels}"),
                x.elem_count(),
                &|| norm.forward_silu(&x),
                &|| candles.forward(&first)?.silu(),
            );
        }
    }
}

fn attentions(criterion: &mut Criterion) {
    set_threads();
    for (queries, keys, heads, head_dim) in [
        (4096, 4096, 8, 40),
        (4096, 77, 8, 40),
        (1024, 1024, 8, 80),
        (256, 256, 8, 160),
        (4096, 4096, 1, 512),
    ] {
        let scale = (head_dim as f32).powf(-0.5);
        for rows in ROWS {
            let q = random(&[rows, queries, heads * head_dim]);
            let k = random(&[rows, keys, heads * head_dim]);
            pair(
                criterion,
                &format!("attention_{rows}x{queries}x{keys}_{heads}x{head_dim}"),
                4 * rows * queries * keys * heads * head_dim,
                &|| attention(&q, &k, &k, heads, scale, None),
                &|| stock::attention(&q, &k, &k, heads, scale, None),
            );
        }
    }
}

fn feed_forward(criterion: &mut Criterion) {
    set_threads();
    for (tokens, channels) in [(4096, 320), (1024, 640), (256, 1280)] {
        let weight = random(&[8 * channels, channels]);
        let layer = Linear::dense(weight.clone(), None).expect("a layer");
        let candles = candle_nn::Linear::new(weight, None);
        for rows in ROWS {
            let x = random(&[rows, tokens, channels]);
            pair(
                criterion,
                &format!("linear_geglu_{rows}x{tokens}_{channels}"),
                16 * rows * tokens * channels * channels,
                &|| geglu(&linear(&layer, &x)?),
                &|| {
                    let both = candles.forward(&x)?;
                    let width = 4 * channels;
                    let gate = both.narrow(2, width, width)?.gelu_erf()?;
                    both.narrow(2, 0, width)? * gate
                },
            );
        }
    }
}

criterion_group!(benches, convolutions, norms, attentions, feed_forward);
criterion_main!(benches);
