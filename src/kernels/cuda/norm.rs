//! Launches of `norm.cu`.

use candle_core::{DType, Result, Tensor};

use super::launch::{
    Grid, NORM, address, address_or_null, expect, launch, parameters, suffix, undefined, word,
};

parameters! {
    struct NormParameters {
        hidden: u64,
        delta: u64,
        weight: u64,
        sum: u64,
        normed: u64,
        width: u32,
        eps: f32,
    }

    struct AddNormedParameters {
        hidden: u64,
        x: u64,
        weight: u64,
        sum: u64,
        width: u32,
        eps: f32,
    }
}

/// As the kernels' NORM_THREADS.
const MOST_THREADS: usize = 512;

/// A block for each row: whole warps, no more than the row has numbers for.
fn grid(rows: usize, width: usize) -> Grid {
    Grid {
        blocks: [rows, 1, 1],
        threads: width.next_multiple_of(32).min(MOST_THREADS),
    }
}

/// See [`crate::kernels::norm::rms_norm_to`].
pub(in crate::kernels) fn rms_norm(
    x: &Tensor,
    weight: &Tensor,
    eps: f32,
    dtype: DType,
) -> Result<Tensor> {
    let (_, normed) = norm(x, None, weight, eps, dtype)?;
    Ok(normed)
}

/// See [`crate::kernels::norm::add_rms_norm`].
pub(in crate::kernels) fn add_rms_norm(
    hidden: &Tensor,
    delta: &Tensor,
    weight: &Tensor,
    eps: f32,
    dtype: DType,
) -> Result<(Tensor, Tensor)> {
    let delta = delta.to_dtype(dtype)?.contiguous()?;
    norm(hidden, Some(&delta), weight, eps, dtype)
}

/// `hidden + delta` (where there is a delta; else `hidden` itself), and its norm.
fn norm(
    hidden: &Tensor,
    delta: Option<&Tensor>,
    weight: &Tensor,
    eps: f32,
    dtype: DType,
) -> Result<(Tensor, Tensor)> {
    let (rows, width) = hidden.dims2()?;
    let hidden = hidden.contiguous()?;
    expect("the rows", &hidden, DType::F32, &[rows, width])?;
    expect("the norm weight", weight, DType::F32, &[width])?;
    if let Some(delta) = delta {
        expect("what is added", delta, dtype, &[rows, width])?;
    }
    let device = hidden.device();
    let sum = match delta {
        Some(_) => Some(undefined((rows, width), DType::F32, device)?),
        None => None,
    };
    let normed = undefined((rows, width), dtype, device)?;
    let parameters = NormParameters {
        hidden: address(&hidden)?,
        delta: address_or_null(delta)?,
        weight: address(weight)?,
        sum: address_or_null(sum.as_ref())?,
        normed: address(&normed)?,
        width: word(width)?,
        eps,
    };
    let kernel = format!("add_rms_norm_{}", suffix(dtype)?);
    launch(device, NORM, &kernel, grid(rows, width), &parameters)?;
    Ok((sum.unwrap_or(hidden), normed))
}

/// See [`crate::kernels::norm::add_normed`].
pub(in crate::kernels) fn add_normed(
    hidden: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    eps: f32,
) -> Result<Tensor> {
    let (rows, width) = hidden.dims2()?;
    let (hidden, x) = (hidden.contiguous()?, x.contiguous()?);
    expect("the rows", &hidden, DType::F32, &[rows, width])?;
    expect("what is added", &x, x.dtype(), &[rows, width])?;
    expect("the norm weight", weight, DType::F32, &[width])?;
    let sum = undefined((rows, width), DType::F32, hidden.device())?;
    let parameters = AddNormedParameters {
        hidden: address(&hidden)?,
        x: address(&x)?,
        weight: address(weight)?,
        sum: address(&sum)?,
        width: word(width)?,
        eps,
    };
    let kernel = format!("add_normed_{}", suffix(x.dtype())?);
    launch(
        hidden.device(),
        NORM,
        &kernel,
        grid(rows, width),
        &parameters,
    )?;
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::super::emulator::{both_ways, is_skipped};
    use super::super::test_cases::{DTYPES, assert_near, tensor, tolerance, values};
    use super::*;
    use crate::kernels::norm;

    #[test]
    fn norms_equal_those_of_the_cpu() {
        if is_skipped() {
            return;
        }
        for (width, seed) in [(1, 1), (7, 2), (64, 3), (576, 4), (1000, 5), (2050, 6)] {
            for dtype in DTYPES {
                let (hidden, weight) = (tensor(&[3, width], seed), tensor(&[width], seed + 10));
                let delta = tensor(&[3, width], seed + 20).to_dtype(dtype).unwrap();
                let case = format!("width {width} {dtype:?}");
                let expected = values(&norm::rms_norm(&hidden, &weight, 1e-5).unwrap());
                let output =
                    both_ways(|| values(&rms_norm(&hidden, &weight, 1e-5, dtype).unwrap()));
                assert_near(&output, &expected, tolerance(dtype), &case);

                let wide = delta.to_dtype(DType::F32).unwrap();
                let expected_sum = (&hidden + &wide).unwrap();
                let expected = values(&norm::rms_norm(&expected_sum, &weight, 1e-5).unwrap());
                let (sum, output) = both_ways(|| {
                    let (sum, normed) =
                        add_rms_norm(&hidden, &delta, &weight, 1e-5, dtype).unwrap();
                    (values(&sum), values(&normed))
                });
                assert_eq!(sum, values(&expected_sum), "{case}");
                assert_near(&output, &expected, tolerance(dtype), &case);

                let normed = norm::rms_norm(&wide, &weight, 1e-5).unwrap();
                let expected = values(&(&hidden + normed).unwrap());
                let output =
                    both_ways(|| values(&add_normed(&hidden, &delta, &weight, 1e-5).unwrap()));
                assert_near(&output, &expected, 1e-5, &case);
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (hidden, weight) = (tensor(&[2, 8], 1), tensor(&[7], 2));
        assert!(rms_norm(&hidden, &weight, 1e-5, DType::F32).is_err());
        assert!(rms_norm(&hidden, &tensor(&[8], 2), 1e-5, DType::U32).is_err());
        assert!(add_normed(&hidden, &tensor(&[2, 7], 1), &tensor(&[8], 2), 1e-5).is_err());
    }
}
