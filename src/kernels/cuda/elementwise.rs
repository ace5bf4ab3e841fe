//! Launches of `elementwise.cu`.

use candle_core::{D, DType, Result, Tensor, bail};

use super::launch::{
    ELEMENTWISE, Grid, address, expect, launch, number_type, pack_numbers, parameters, suffix,
    undefined, word,
};

parameters! {
    struct GatedParameters {
        gate: u64,
        up: u64,
        output: u64,
        width: u32,
        gate_stride: u32,
        up_stride: u32,
        padding: u32,
    }

    struct GatherParameters {
        table: u64,
        index: u64,
        output: u64,
        width: u32,
        table_rows: u32,
        number_type: u32,
        scale: f32,
    }

    struct AdvanceParameters {
        numbers: u64,
        count: u32,
        padding: u32,
    }
}

/// As the kernels' ELEMENT_THREADS.
const THREADS: usize = 256;

/// Which gate opens.
#[derive(Clone, Copy, Debug)]
pub(in crate::kernels) enum Activation {
    /// `x * sigmoid(x)`
    Silu,
    /// GELU's tanh form.
    GeluTanh,
}

/// See [`crate::kernels::activation`]. Rows may lie apart, as halves of one product do.
pub(in crate::kernels) fn gated(
    activation: Activation,
    gate: &Tensor,
    up: &Tensor,
) -> Result<Tensor> {
    let width = gate.dim(D::Minus1)?;
    let shape = gate.shape().clone();
    if up.shape() != &shape || up.dtype() != gate.dtype() {
        bail!(
            "the gate is {:?} {shape:?}, up is {:?} {:?}",
            gate.dtype(),
            up.dtype(),
            up.dims()
        );
    }
    let (gate, gate_stride) = rows_apart(gate)?;
    let (up, up_stride) = rows_apart(up)?;
    let output = undefined(shape, gate.dtype(), gate.device())?;
    let parameters = GatedParameters {
        gate: address(&gate)?,
        up: address(&up)?,
        output: address(&output)?,
        width: word(width)?,
        gate_stride: word(gate_stride)?,
        up_stride: word(up_stride)?,
        padding: 0,
    };
    let name = match activation {
        Activation::Silu => "silu_mul",
        Activation::GeluTanh => "gelu_tanh_mul",
    };
    let kernel = format!("{name}_{}", suffix(gate.dtype())?);
    let rows = gate.elem_count() / width.max(1);
    let grid = Grid {
        blocks: [
            rows,
            width.div_ceil(THREADS * pack_numbers(gate.dtype())),
            1,
        ],
        threads: THREADS,
    };
    launch(gate.device(), ELEMENTWISE, &kernel, grid, &parameters)?;
    Ok(output)
}

/// The tensor with contiguous rows an even distance apart, and the distance. Copies only where the rows are otherwise.
fn rows_apart(x: &Tensor) -> Result<(Tensor, usize)> {
    let width = x.dim(D::Minus1)?;
    if x.rank() == 2 && x.stride()[1] == 1 && x.stride()[0] >= width {
        return Ok((x.clone(), x.stride()[0]));
    }
    Ok((x.contiguous()?, width))
}

/// See [`crate::kernels::gather`]: rows of `table`, widened and scaled.
pub(in crate::kernels) fn gather_rows(
    table: &Tensor,
    index: &Tensor,
    scale: f32,
) -> Result<Tensor> {
    let (table_rows, width) = table.dims2()?;
    let rows = index.dims1()?;
    let (table, index) = (table.contiguous()?, index.contiguous()?);
    expect("the index", &index, DType::U32, &[rows])?;
    let output = undefined((rows, width), DType::F32, table.device())?;
    let parameters = GatherParameters {
        table: address(&table)?,
        index: address(&index)?,
        output: address(&output)?,
        width: word(width)?,
        table_rows: word(table_rows)?,
        number_type: number_type(table.dtype())?,
        scale,
    };
    let grid = Grid {
        blocks: [rows, width.div_ceil(4 * THREADS), 1],
        threads: THREADS,
    };
    launch(
        table.device(),
        ELEMENTWISE,
        "gather_rows",
        grid,
        &parameters,
    )?;
    Ok(output)
}

/// See [`crate::kernels::gather::advance`].
pub(in crate::kernels) fn advance(numbers: &Tensor) -> Result<()> {
    let count = numbers.dims1()?;
    expect("what is advanced", numbers, DType::U32, &[count])?;
    let parameters = AdvanceParameters {
        numbers: address(numbers)?,
        count: word(count)?,
        padding: 0,
    };
    let grid = Grid {
        blocks: [count.div_ceil(THREADS), 1, 1],
        threads: THREADS,
    };
    launch(numbers.device(), ELEMENTWISE, "advance", grid, &parameters)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::super::emulator::{both_ways, is_skipped};
    use super::super::test_cases::{DTYPES, assert_near, tensor, tolerance, values};
    use super::*;
    use crate::kernels::reference;

    #[test]
    fn gates_equal_stock_operations_whole_and_as_halves() {
        if is_skipped() {
            return;
        }
        type Stock = fn(&Tensor, &Tensor) -> Result<Tensor>;
        let pairs: [(Activation, Stock); 2] = [
            (Activation::Silu, reference::silu_mul),
            (Activation::GeluTanh, reference::gelu_tanh_mul),
        ];
        // Widths with and without whole packs, and more than a block takes.
        for width in [3, 8, 100, 576, 2056] {
            for dtype in DTYPES {
                let both = (tensor(&[3, 2 * width], 7) * 3.0).unwrap();
                let both = both.to_dtype(dtype).unwrap();
                let (gate, up) = (
                    both.narrow(1, 0, width).unwrap(),
                    both.narrow(1, width, width).unwrap(),
                );
                for (activation, stock) in pairs {
                    let wide = |x: &Tensor| x.to_dtype(DType::F32).unwrap();
                    let expected = values(&stock(&wide(&gate), &wide(&up)).unwrap());
                    let halves = both_ways(|| values(&gated(activation, &gate, &up).unwrap()));
                    let case = format!("{activation:?} {width} {dtype:?}");
                    assert_near(&halves, &expected, tolerance(dtype), &case);
                    let whole = |x: &Tensor| x.contiguous().unwrap();
                    let output = values(&gated(activation, &whole(&gate), &whole(&up)).unwrap());
                    assert_eq!(output, halves, "{case}");
                }
            }
        }
        let (gate, up) = (tensor(&[2, 8], 1), tensor(&[2, 9], 1));
        assert!(gated(Activation::Silu, &gate, &up).is_err());
    }

    #[test]
    fn rows_are_gathered_and_what_is_outside_is_no_number() {
        if is_skipped() {
            return;
        }
        for width in [5, 300, 1030] {
            for dtype in DTYPES {
                let table = tensor(&[9, width], 3).to_dtype(dtype).unwrap();
                let index = Tensor::new(&[8u32, 0, 3, 3, 9], &Device::Cpu).unwrap();
                let output = both_ways(|| {
                    let rows = values(&gather_rows(&table, &index, 0.5).unwrap());
                    rows.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
                });
                let expected = table
                    .index_select(&index.narrow(0, 0, 4).unwrap(), 0)
                    .unwrap();
                for (output, expected) in output.iter().zip(values(&expected)) {
                    assert_eq!(*output, (0.5 * expected).to_bits());
                }
                assert!(
                    output[4 * width..]
                        .iter()
                        .all(|bits| f32::from_bits(*bits).is_nan())
                );
            }
        }
    }

    #[test]
    fn positions_advance_by_one() {
        if is_skipped() {
            return;
        }
        let positions: Vec<u32> = (0..300).map(|index| index * 7).collect();
        let tensor = Tensor::new(positions.clone(), &Device::Cpu).unwrap();
        advance(&tensor).unwrap();
        let expected: Vec<u32> = positions.iter().map(|position| position + 1).collect();
        assert_eq!(tensor.to_vec1::<u32>().unwrap(), expected);
    }
}
