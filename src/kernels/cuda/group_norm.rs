//! Launches of `group_norm.cu`.

use candle_core::{DType, Result, Tensor, bail};

use super::launch::{
    GROUP_NORM, Grid, address, address_or_null, expect, launch, pack_numbers, parameters, suffix,
    undefined, word,
};

parameters! {
    struct GroupNormParameters {
        x: u64,
        added: u64,
        weight: u64,
        bias: u64,
        sums: u64,
        output: u64,
        channels: u32,
        groups: u32,
        pixels: u32,
        parts: u32,
        part_numbers: u32,
        silu: u32,
        eps: f32,
        padding: u32,
    }
}

/// As the kernels' GROUP_NORM_THREADS.
const THREADS: usize = 256;

/// Numbers of a group that a block takes: some packs for each of its threads.
const PART_NUMBERS: usize = 8192;

/// A group's parts at most: one thread adds them up.
const MOST_PARTS: usize = 64;

/// What is normalised, and how.
#[derive(Clone, Copy, Debug)]
pub(in crate::kernels) struct GroupNormOptions {
    pub(in crate::kernels) groups: usize,
    pub(in crate::kernels) eps: f32,
    pub(in crate::kernels) silu: bool,
}

/// x: (rows, channels, height, width), contiguous; added: (rows, channels), of x's dtype, added first; weight, bias:
/// (channels,) f32 -> as x.
pub(in crate::kernels) fn group_norm(
    x: &Tensor,
    added: Option<&Tensor>,
    weight: &Tensor,
    bias: &Tensor,
    options: GroupNormOptions,
) -> Result<Tensor> {
    let (rows, channels, height, width) = x.dims4()?;
    let dtype = x.dtype();
    expect("the pictures", x, dtype, &[rows, channels, height, width])?;
    expect("the norm weight", weight, DType::F32, &[channels])?;
    expect("the norm bias", bias, DType::F32, &[channels])?;
    if let Some(added) = added {
        expect("what is added", added, dtype, &[rows, channels])?;
    }
    if options.groups == 0 || channels % options.groups != 0 {
        bail!(
            "{channels} channels cannot be cut into {} groups",
            options.groups
        );
    }
    let pixels = height * width;
    let group_numbers = channels / options.groups * pixels;
    let part_numbers = group_numbers
        .div_ceil(MOST_PARTS)
        .max(PART_NUMBERS)
        .next_multiple_of(pack_numbers(dtype));
    let parts = group_numbers.div_ceil(part_numbers);
    let output = undefined(x.shape(), dtype, x.device())?;
    let sums = undefined((rows * options.groups, parts, 2), DType::F32, x.device())?;
    let parameters = GroupNormParameters {
        x: address(x)?,
        added: address_or_null(added)?,
        weight: address(weight)?,
        bias: address(bias)?,
        sums: address(&sums)?,
        output: address(&output)?,
        channels: word(channels)?,
        groups: word(options.groups)?,
        pixels: word(pixels)?,
        parts: word(parts)?,
        part_numbers: word(part_numbers)?,
        silu: u32::from(options.silu),
        eps: options.eps,
        padding: 0,
    };
    let grid = Grid {
        blocks: [parts, rows * options.groups, 1],
        threads: THREADS,
    };
    for name in ["sum_groups", "normalise_groups"] {
        let kernel = format!("{name}_{}", suffix(dtype)?);
        launch(x.device(), GROUP_NORM, &kernel, grid, &parameters)?;
    }
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::super::emulator::{both_ways, is_skipped};
    use super::super::test_cases::{DTYPES, assert_near, tensor, tolerance, values};
    use super::*;
    use crate::kernels::image::stock;

    #[test]
    fn norms_equal_stock_operations() {
        if is_skipped() {
            return;
        }
        // Pixels that make whole packs and that do not; groups of one part, and of several.
        for (channels, groups, height, width) in [
            (1, 1, 1, 3),
            (6, 3, 5, 7),
            (32, 32, 8, 8),
            (8, 4, 72, 64),
            (4, 2, 67, 65),
        ] {
            for dtype in DTYPES {
                // A mean that is large beside the spread, where the type can tell them apart.
                let mean = if dtype == DType::F32 { 30.0 } else { 1.0 };
                let x = (tensor(&[2, channels, height, width], 1) + mean).unwrap();
                let x = x.to_dtype(dtype).unwrap();
                let added = tensor(&[2, channels], 4).to_dtype(dtype).unwrap();
                let (weight, bias) = (tensor(&[channels], 2), tensor(&[channels], 3));
                for silu in [false, true] {
                    for added in [None, Some(&added)] {
                        let options = GroupNormOptions {
                            groups,
                            eps: 1e-5,
                            silu,
                        };
                        let output = both_ways(|| {
                            values(&group_norm(&x, added, &weight, &bias, options).unwrap())
                        });
                        let wide = |x: &Tensor| x.to_dtype(DType::F32).unwrap();
                        let mut expected = wide(&x);
                        if let Some(added) = added {
                            let added = wide(added).reshape((2, channels, 1, 1)).unwrap();
                            expected = expected.broadcast_add(&added).unwrap();
                        }
                        let last = stock::channels_last(&expected).unwrap();
                        let normed =
                            stock::group_norm(&last, &weight, &bias, groups, 1e-5).unwrap();
                        expected = stock::channels_first(&normed).unwrap();
                        if silu {
                            expected = expected.silu().unwrap();
                        }
                        let case = format!("{channels} {groups} {height} {width} {dtype:?} {silu}");
                        let tolerance = tolerance(dtype).max(5e-5);
                        assert_near(&output, &values(&expected), tolerance, &case);
                    }
                }
            }
        }
    }
}
