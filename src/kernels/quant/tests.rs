//! The kernels against their twins: bit for bit where the arithmetic is the same, within a stated bound where not.

use candle_core::Tensor;
use candle_core::quantized::{QStorage, QTensor};
use half::f16;

use super::*;
use crate::kernels::test_numbers::{bits, numbers};
use crate::kernels::tiled::{self, Product};

const DTYPES: [GgmlDType; 8] = [
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q5_0,
    GgmlDType::Q5_1,
    GgmlDType::Q8_0,
    GgmlDType::Q4K,
    GgmlDType::Q5K,
    GgmlDType::Q6K,
];

/// The smallest k of a dtype: a group.
fn granule(dtype: GgmlDType) -> usize {
    dtype.block_size()
}

fn weight(dtype: GgmlDType, n: usize, k: usize) -> QTensor {
    let plain = Tensor::from_vec(
        numbers(n * k, (n * 31 + k) as u64),
        (n, k),
        &candle_core::Device::Cpu,
    )
    .unwrap();
    QTensor::quantize(&plain, dtype).unwrap()
}

fn dequantized(weight: &QTensor) -> Vec<f32> {
    weight
        .dequantize(&candle_core::Device::Cpu)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

/// The detected set works as it does in service, spread over threads. Another is forced, so that x is quantised
/// with it too, and stays on this thread.
fn multiply(matrix: &QuantMatrix, isa: Isa, x: &[f32]) -> Vec<f32> {
    let product = Product {
        weight: matrix,
        bias: None,
        residual: None,
    };
    let multiply = || tiled::multiply(isa, x, matrix.in_features, &[product]);
    let outputs = if isa == Isa::detected() {
        multiply()
    } else {
        isa.force(multiply)
    };
    outputs.unwrap().remove(0)
}

/// x as the kernels see it: 8 bits per block of 32.
fn through_8_bits(x: &[f32]) -> Vec<f64> {
    let mut blocks = vec![ActivationBlock::EMPTY; x.len() / BLOCK];
    quantize_row(x, 0, 1, &mut blocks, 0, 1);
    blocks
        .iter()
        .flat_map(|block| block.q.map(|q| f64::from(q) * f64::from(block.scale)))
        .collect()
}

/// Every shape: (rows, n, k in groups).
fn shapes() -> Vec<(usize, usize, usize)> {
    let mut shapes = Vec::new();
    for rows in [1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 33] {
        shapes.extend([(rows, 16, 1), (rows, 33, 2), (rows, 7, 3)]);
    }
    shapes.extend([(1, 1, 1), (9, 1, 5), (2, 576, 6), (8, 48, 18)]);
    shapes
}

#[test]
fn all_instruction_sets_agree_bit_for_bit() {
    for dtype in DTYPES {
        for (rows, n, groups) in shapes() {
            let k = groups * granule(dtype);
            let matrix = QuantMatrix::pack(&weight(dtype, n, k)).unwrap();
            let x = numbers(rows * k, 7);
            let expected = multiply(&matrix, Isa::Portable, &x);
            for isa in Isa::available() {
                assert_eq!(
                    multiply(&matrix, isa, &x),
                    expected,
                    "{dtype:?} {isa:?} {rows} x {n} x {k}"
                );
            }
        }
    }
}

#[test]
fn products_equal_the_dequantised_weights_times_8_bit_activations() {
    for dtype in DTYPES {
        for (rows, n, groups) in shapes() {
            let k = groups * granule(dtype);
            let weight = weight(dtype, n, k);
            let plain = dequantized(&weight);
            let x = numbers(rows * k, 7);
            let output = multiply(&QuantMatrix::pack(&weight).unwrap(), Isa::detected(), &x);
            for (x, output) in x.chunks(k).zip(output.chunks(n)) {
                let x = through_8_bits(x);
                for (weight, output) in plain.chunks(k).zip(output) {
                    let products = || weight.iter().zip(&x).map(|(&w, x)| f64::from(w) * x);
                    let (expected, size) = (
                        products().sum::<f64>(),
                        products().map(f64::abs).sum::<f64>(),
                    );
                    let error = (f64::from(*output) - expected).abs();
                    assert!(
                        error <= 2e-6 * size.max(1.0),
                        "{dtype:?} {rows} x {n} x {k}: {output} for {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn eight_bit_activations_cost_little() {
    for dtype in DTYPES {
        let k = 1536;
        let weight = weight(dtype, 64, k);
        let plain = dequantized(&weight);
        let x = numbers(8 * k, 3);
        let output = multiply(&QuantMatrix::pack(&weight).unwrap(), Isa::detected(), &x);
        let mut errors = Vec::new();
        let mut sizes = Vec::new();
        for (x, output) in x.chunks(k).zip(output.chunks(64)) {
            for (weight, output) in plain.chunks(k).zip(output) {
                let expected: f64 = weight
                    .iter()
                    .zip(x)
                    .map(|(&w, &x)| f64::from(w) * f64::from(x))
                    .sum();
                errors.push((f64::from(*output) - expected).powi(2));
                sizes.push(expected.powi(2));
            }
        }
        let relative = (errors.iter().sum::<f64>() / sizes.iter().sum::<f64>()).sqrt();
        assert!(
            relative < 0.01,
            "{dtype:?}: root-mean-square error {relative} of the output"
        );
    }
}

#[test]
fn a_row_does_not_depend_on_its_company() {
    for dtype in DTYPES {
        let (n, k) = (35, 3 * granule(dtype));
        let matrix = QuantMatrix::pack(&weight(dtype, n, k)).unwrap();
        let x = numbers(21 * k, 5);
        for isa in Isa::available() {
            let alone: Vec<f32> = x
                .chunks(k)
                .flat_map(|x| multiply(&matrix, isa, x))
                .collect();
            for rows in [2, 5, 8, 13, 21] {
                let together = multiply(&matrix, isa, &x[..rows * k]);
                assert_eq!(together, alone[..rows * n], "{dtype:?} {isa:?} {rows} rows");
                let tail = multiply(&matrix, isa, &x[(21 - rows) * k..]);
                assert_eq!(
                    tail,
                    alone[(21 - rows) * n..],
                    "{dtype:?} {isa:?} last {rows} rows"
                );
            }
        }
    }
}

#[test]
fn rows_of_the_weight_come_back_as_candle_dequantises_them() {
    for dtype in DTYPES {
        let (n, k) = (19, 2 * granule(dtype));
        let weight = weight(dtype, n, k);
        let plain = dequantized(&weight);
        let matrix = QuantMatrix::pack(&weight).unwrap();
        for row in 0..n {
            let mut output = vec![f32::NAN; k];
            matrix.dequantize_row(row, &mut output).unwrap();
            assert_eq!(output, plain[row * k..(row + 1) * k], "{dtype:?} row {row}");
        }
        assert!(matrix.dequantize_row(n, &mut vec![0.0; k]).is_err());
    }
}

#[test]
fn a_number_that_is_not_finite_spoils_its_own_row_only() {
    for dtype in DTYPES {
        let (n, k) = (16, granule(dtype));
        let matrix = QuantMatrix::pack(&weight(dtype, n, k)).unwrap();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for isa in Isa::available() {
                let mut x = numbers(3 * k, 5);
                x[k + 3] = bad;
                let output = multiply(&matrix, isa, &x);
                let finite: Vec<bool> = output
                    .chunks(n)
                    .map(|row| row.iter().any(|y| y.is_finite()))
                    .collect();
                assert_eq!(finite, [true, false, true], "{dtype:?} {isa:?} {bad}");
                let spoiled = &output[n..2 * n];
                assert!(
                    spoiled.iter().all(|y| y.is_nan()),
                    "{dtype:?} {isa:?} {bad}"
                );
            }
        }
    }
}

/// Rows of a weight as a file has them: all `q` from the byte `quants`, factors at their ends, all f16 `scale`.
fn extreme_weight(dtype: GgmlDType, n: usize, k: usize, quants: u8, scale: f16) -> QTensor {
    let mut block = vec![quants; dtype.type_size()];
    let scales: &[usize] = match dtype {
        GgmlDType::Q4_1 | GgmlDType::Q5_1 => &[0, 2],
        GgmlDType::Q4K | GgmlDType::Q5K => {
            block[4..16].fill(0xff);
            &[0, 2]
        }
        GgmlDType::Q6K => {
            for factors in block[192..208].chunks_exact_mut(2) {
                factors.copy_from_slice(&[0x7f, 0x80]);
            }
            &[208]
        }
        _ => &[0],
    };
    for &at in scales {
        block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
    }
    let bytes = block.repeat(n * k / dtype.block_size());
    let cpu = candle_core::Device::Cpu;
    let storage = QStorage::from_data(bytes.into(), &cpu, dtype).unwrap();
    QTensor::new(storage, (n, k)).unwrap()
}

#[test]
fn extreme_weights_and_activations_do_not_overflow_the_integer_sums() {
    const N: usize = 19;
    const ROWS: usize = 9;
    for dtype in DTYPES {
        let k = 2 * granule(dtype);
        // Where the short sums of the narrow kernels are the largest: all +127 or all -127.
        let x: Vec<f32> = (0..ROWS * k).map(|i| [1.0, -1.0][i / k % 2]).collect();
        // The ends of unsigned `q`, then those of signed ones.
        for quants in [0x00, 0xff, 0x80, 0x7f] {
            for scale in [f16::from_f32(0.0123), f16::MAX] {
                let weight = extreme_weight(dtype, N, k, quants, scale);
                let plain = dequantized(&weight);
                let matrix = QuantMatrix::pack(&weight).unwrap();
                let portable = multiply(&matrix, Isa::Portable, &x);
                for isa in Isa::available() {
                    assert_eq!(
                        bits(&multiply(&matrix, isa, &x)),
                        bits(&portable),
                        "{dtype:?} {isa:?} {quants:#x} {scale}"
                    );
                }
                for (x, output) in x.chunks(k).zip(portable.chunks(N)) {
                    let x = through_8_bits(x);
                    for (weight, output) in plain.chunks(k).zip(output) {
                        let products = || weight.iter().zip(&x).map(|(&w, x)| f64::from(w) * x);
                        let (expected, size) = (
                            products().sum::<f64>(),
                            products().map(f64::abs).sum::<f64>(),
                        );
                        assert!(
                            (f64::from(*output) - expected).abs() <= 2e-6 * size,
                            "{dtype:?} {quants:#x} {scale}: {output} for {expected}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn instruction_sets_quantise_activations_to_the_same_bits() {
    let mut x = numbers(40 * BLOCK, 9);
    x[..BLOCK].fill(0.0);
    // Too small to count, subnormal, huge.
    x[BLOCK..2 * BLOCK].fill(-1e-31);
    x[2 * BLOCK..3 * BLOCK].fill(1e-40);
    x[3 * BLOCK..4 * BLOCK]
        .iter_mut()
        .for_each(|x| *x *= f32::MAX / 4.0);
    // Halves between two integers.
    for (i, x) in x[4 * BLOCK..6 * BLOCK].iter_mut().enumerate() {
        *x = i as f32 - 31.5;
    }
    x[4 * BLOCK] = 127.0;
    x[5 * BLOCK] = -127.0;
    for (zero, halves) in [(0, 1), (8, 1), (16, 1), (128, 1), (32, 2)] {
        let quantise = || {
            let mut blocks = vec![ActivationBlock::EMPTY; 3 * x.len() / BLOCK];
            quantize_row(&x, zero, halves, &mut blocks, 1, 3);
            blocks
        };
        let all = Isa::for_each(quantise);
        for blocks in &all {
            assert_eq!(*blocks, all[0], "zero {zero}, {halves} halves");
        }
        for (x, block) in x.chunks(BLOCK).zip(all[0].iter().skip(1).step_by(3)) {
            let error = |(x, q): (&f32, &i8)| (x - f32::from(*q) * block.scale).abs();
            let worst = x.iter().zip(&block.q).map(error).fold(0.0, f32::max);
            assert!(worst <= 0.5001 * block.scale + 1e-30, "{x:?} {block:?}");
            let sums: Vec<i32> = block
                .q
                .chunks(BLOCK / halves)
                .map(|q| q.iter().map(|&q| i32::from(q)).sum())
                .collect();
            assert_eq!(
                block.scaled_sum,
                block.scale * sums.iter().sum::<i32>() as f32
            );
            for (start, sum) in block.start.iter().zip(&sums) {
                assert_eq!(*start, -zero * sum);
            }
        }
    }
}
