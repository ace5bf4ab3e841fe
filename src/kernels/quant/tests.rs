//! The kernels against their twins: bit for bit where the arithmetic is the same, within a stated bound where not.

use candle_core::Tensor;
use candle_core::quantized::QTensor;

use super::*;
use crate::kernels::test_numbers::{largest, numbers};
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

fn multiply(matrix: &QuantMatrix, isa: Isa, x: &[f32]) -> Vec<f32> {
    let product = Product {
        weight: matrix,
        bias: None,
        residual: None,
    };
    tiled::multiply(isa, x, matrix.in_features, &[product])
        .unwrap()
        .remove(0)
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
            }
        }
    }
}

#[test]
fn extreme_weights_and_activations_do_not_overflow_the_integer_sums() {
    for dtype in DTYPES {
        let k = 2 * granule(dtype);
        // All at the end of the range, where 16-bit sums of the narrow kernels are the largest.
        let plain = Tensor::full(1f32, (16, k), &candle_core::Device::Cpu).unwrap();
        for plain in [plain.clone(), plain.neg().unwrap()] {
            let weight = QTensor::quantize(&plain, dtype).unwrap();
            let expected: f32 = dequantized(&weight)[..k].iter().sum();
            let matrix = QuantMatrix::pack(&weight).unwrap();
            for isa in Isa::available() {
                for output in multiply(&matrix, isa, &vec![1f32; k]) {
                    assert!(
                        largest(&[output - expected]) < 1e-4 * k as f32,
                        "{dtype:?} {isa:?}: {output} for {expected}"
                    );
                }
            }
        }
    }
}
