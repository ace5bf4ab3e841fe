//! From the sums of a product to its output: what is added, and where it goes.

use std::ops::Range;

use candle_core::{Device, Result, Tensor};

use super::panel::COLUMNS;
use crate::kernels::isa::per_isa;
use crate::kernels::shared_output::SharedOutput;
use crate::kernels::simd::Vector;
use crate::kernels::tensor_data::with_slice;

/// What is added to a product, in this order.
#[derive(Clone, Copy, Default)]
pub(super) struct Addends<'a> {
    /// (out,)
    pub bias: Option<&'a [f32]>,
    /// (rows, out)
    pub per_row: Option<&'a [f32]>,
    /// (pixels, out)
    pub residual: Option<&'a [f32]>,
}

/// Which part of the output sums are.
pub(super) struct Place {
    pub pixels: Range<usize>,
    pub tiles: Range<usize>,
    /// Columns of the output.
    pub out: usize,
    /// Pixels of a row.
    pub row_pixels: usize,
}

per_isa! {
    /// sums: (tiles, pixels, 16), plus the addends, into the columns that exist.
    pub(super) fn store(place: &Place, sums: &[[f32; COLUMNS]], addends: &Addends<'_>, output: &SharedOutput<'_>) = store_body<Vector>;
}

#[inline(always)]
fn store_body<V: Vector>(
    place: &Place,
    sums: &[[f32; COLUMNS]],
    addends: &Addends<'_>,
    output: &SharedOutput<'_>,
) {
    let (out, count) = (place.out, place.pixels.len());
    for (index, pixel) in place.pixels.clone().enumerate() {
        for (tile_index, tile) in place.tiles.clone().enumerate() {
            let sum = &sums[tile_index * count + index];
            let first = tile * COLUMNS;
            let row = pixel / place.row_pixels * out + first;
            let at = pixel * out + first;
            write_tile(V::load(sum), first, row, at, out, addends, output);
        }
    }
}

/// Sixteen columns from `first`, plus the addends, of which the row's and the pixel's begin at `row` and `at`, to `at`.
/// Columns that do not exist are left out.
#[inline(always)]
pub(super) fn write_tile<V: Vector>(
    total: V,
    first: usize,
    row: usize,
    at: usize,
    out: usize,
    addends: &Addends<'_>,
    output: &SharedOutput<'_>,
) {
    let columns = COLUMNS.min(out - first);
    let mut stored = [0f32; COLUMNS];
    if columns == COLUMNS {
        let mut total = total;
        if let Some(bias) = addends.bias {
            total = total.add(load(bias, first));
        }
        if let Some(per_row) = addends.per_row {
            total = total.add(load(per_row, row));
        }
        if let Some(residual) = addends.residual {
            total = total.add(load(residual, at));
        }
        total.store(&mut stored);
        output.write_array(at, &stored);
        return;
    }
    total.store(&mut stored);
    let stored = &mut stored[..columns];
    for (addend, at) in [
        (addends.bias, first),
        (addends.per_row, row),
        (addends.residual, at),
    ] {
        if let Some(addend) = addend {
            for (total, addend) in stored.iter_mut().zip(&addend[at..at + columns]) {
                *total += addend;
            }
        }
    }
    output.write(at, stored);
}

#[inline(always)]
fn load<V: Vector>(from: &[f32], at: usize) -> V {
    match from[at..].first_chunk() {
        Some(from) => V::load(from),
        None => V::splat(0.0),
    }
}

/// A product as a tensor.
///
/// # Errors
/// When the tensors are not f32 on the CPU.
pub(super) fn multiply_tensor(
    multiply: impl FnOnce(&[f32], &Addends<'_>) -> Vec<f32>,
    x: &Tensor,
    bias: Option<&Tensor>,
    per_row: Option<&Tensor>,
    residual: Option<&Tensor>,
    shape: &[usize],
) -> Result<Tensor> {
    let output = with_slice::<f32, _>(x, |x| {
        with_optional(bias, |bias| {
            with_optional(per_row, |per_row| {
                with_optional(residual, |residual| {
                    let addends = Addends {
                        bias,
                        per_row,
                        residual,
                    };
                    Ok(multiply(x, &addends))
                })
            })
        })
    })?;
    Tensor::from_vec(output, shape, &Device::Cpu)
}

pub(super) fn with_optional<R>(
    tensor: Option<&Tensor>,
    body: impl FnOnce(Option<&[f32]>) -> Result<R>,
) -> Result<R> {
    match tensor {
        Some(tensor) => with_slice::<f32, _>(tensor, |values| body(Some(values))),
        None => body(None),
    }
}
