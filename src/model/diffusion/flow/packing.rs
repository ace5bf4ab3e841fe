//! Latents as a sequence of tokens, each a square of pixels, and back.

use candle_core::{DType, Tensor, bail};

use super::config::PATCH;

/// x: (rows, h, w, c) -> (rows, h/2 * w/2, 4 c): a square of pixels as one token, channel by channel. `expected`: channels
/// that the network was made for.
pub(super) fn pack(x: &Tensor, expected: usize) -> candle_core::Result<Tensor> {
    let (rows, height, width, channels) = x.dims4()?;
    if channels != expected {
        bail!("this network takes latents of {expected} channels, not {channels}");
    }
    if !height.is_multiple_of(PATCH) || !width.is_multiple_of(PATCH) || height * width == 0 {
        bail!("a latent of {height}x{width} cannot be cut into squares of {PATCH}x{PATCH}");
    }
    let (down, across) = (height / PATCH, width / PATCH);
    x.reshape(&[rows, down, PATCH, across, PATCH, channels][..])?
        .permute([0, 1, 3, 5, 2, 4])?
        .contiguous()?
        .reshape((rows, down * across, PATCH * PATCH * channels))
}

/// In which order the numbers of an output token stand.
#[derive(Clone, Copy)]
pub(super) enum TokenOrder {
    /// Channel by channel, as they go in.
    ChannelsFirst,
    /// Pixel by pixel.
    ChannelsLast,
}

/// x: (rows, h/2 * w/2, 4 c) -> (rows, h, w, c) f32
pub(super) fn unpack(
    x: &Tensor,
    height: usize,
    width: usize,
    order: TokenOrder,
) -> candle_core::Result<Tensor> {
    let (rows, _, numbers) = x.dims3()?;
    let channels = numbers / (PATCH * PATCH);
    let (down, across) = (height / PATCH, width / PATCH);
    let x = x.to_dtype(DType::F32)?;
    let x = match order {
        TokenOrder::ChannelsFirst => x
            .reshape(&[rows, down, across, channels, PATCH, PATCH][..])?
            .permute([0, 1, 4, 2, 5, 3])?,
        TokenOrder::ChannelsLast => x
            .reshape(&[rows, down, across, PATCH, PATCH, channels][..])?
            .permute([0, 1, 3, 2, 4, 5])?,
    };
    x.contiguous()?.reshape((rows, height, width, channels))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn packing_can_be_undone() {
        let values: Vec<f32> = (0..2 * 4 * 6 * 3).map(|value| value as f32).collect();
        let x = Tensor::from_vec(values, (2, 4, 6, 3), &Device::Cpu).expect("small");
        let packed = pack(&x, 3).expect("even");
        assert_eq!(packed.dims(), [2, 6, 12]);
        let back = unpack(&packed, 4, 6, TokenOrder::ChannelsFirst).expect("even");
        let flat = |x: &Tensor| x.flatten_all().and_then(|x| x.to_vec1::<f32>());
        assert_eq!(flat(&back).expect("small"), flat(&x).expect("small"));
        assert!(pack(&x.narrow(1, 0, 3).expect("there"), 3).is_err(), "odd");
        assert!(pack(&x, 4).is_err(), "other channels");
    }
}
