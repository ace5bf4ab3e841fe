//! Convolutions of 3 x 3 by Winograd's F(2 x 2, 3 x 3): four outputs from sixteen products per channel in place of
//! thirty-six (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016).
//!
//! Squares of 4 x 4 pixels, two apart, are transformed; in each of their sixteen places a product of squares with channels
//! is taken as in [`super::product`]; and the sums are transformed back. The transforms add and subtract alone, so little
//! is lost to rounding. The weights take sixteen numbers in place of nine.
#![allow(unsafe_code, reason = "outputs are not zeroed before they are filled")]

use std::cell::RefCell;
use std::ops::Range;

use candle_core::{DType, Result, Tensor, bail};

use super::finish::{Addends, write_tile};
use super::panel::{Begin, COLUMNS, PIXEL_STRIDE, SEGMENT_INPUTS, Segment, multiply};
use super::tasks::Tasks;
use crate::kernels::isa::per_isa;
use crate::kernels::lines::{Lines, bytes_mut, floats};
use crate::kernels::shared_output::{SharedOutput, filled};
use crate::kernels::simd::Vector;
use crate::kernels::tensor_data::with_slice;
use crate::kernels::threads;

/// Places of a square.
const PLACES: usize = 16;
/// Squares of a task, and the most tiles: inputs and sums of both lie in the second-level cache.
const TASK_SQUARES: usize = 42;
const TASK_TILES: usize = 8;

/// A weight of shape (out, in, 3, 3), transformed: per block of channels (16 places, tiles, channels, 16).
pub(super) struct WinogradWeight {
    out: usize,
    channels: usize,
    lines: Lines,
}

impl std::fmt::Debug for WinogradWeight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WinogradWeight[{} -> {}]", self.channels, self.out)
    }
}

impl WinogradWeight {
    /// Transforms a weight of shape (out, in, 9), on the CPU, of any float dtype.
    ///
    /// # Errors
    /// When the shape is another, or there is no memory.
    pub(super) fn pack(weight: &Tensor) -> Result<Self> {
        let (out, channels, 9) = weight.dims3()? else {
            bail!("a kernel of shape {:?} is not 3 x 3", weight.dims());
        };
        let tiles = out.div_ceil(COLUMNS);
        let mut lines = Lines::zeroed(PLACES * tiles * channels)?;
        let weight = weight.to_dtype(DType::F32)?;
        with_slice::<f32, _>(&weight, |weight| {
            let (kernels, _) = weight.as_chunks::<9>();
            let block_lines = PLACES * tiles * SEGMENT_INPUTS;
            threads::for_each_chunk(&mut lines, block_lines, |block, lines| {
                let len = lines.len() / (PLACES * tiles);
                let bytes = bytes_mut(lines);
                for column in 0..out {
                    for input in 0..len {
                        let kernel = &kernels[column * channels + block * SEGMENT_INPUTS + input];
                        for (place, value) in transform_kernel(kernel).iter().enumerate() {
                            let line = (place * tiles + column / COLUMNS) * len + input;
                            let at = (line * COLUMNS + column % COLUMNS) * size_of::<f32>();
                            bytes[at..at + size_of::<f32>()].copy_from_slice(&value.to_ne_bytes());
                        }
                    }
                }
            });
            Ok(())
        })?;
        Ok(Self {
            out,
            channels,
            lines,
        })
    }

    /// x: (rows, height, width, in) -> (rows, height, width, out), plus the addends.
    pub(super) fn multiply(
        &self,
        x: &[f32],
        height: usize,
        width: usize,
        addends: &Addends<'_>,
    ) -> Vec<f32> {
        let rows = x.len() / (height * width * self.channels);
        // What the reads rely on.
        assert_eq!(x.len(), rows * height * width * self.channels, "whole rows");
        let walk = Walk {
            weight: self,
            x,
            height,
            width,
            addends,
        };
        let squares = rows * height.div_ceil(2) * width.div_ceil(2);
        let tiles = self.out.div_ceil(COLUMNS);
        let tasks = Tasks::new(squares, tiles, TASK_SQUARES, TASK_TILES);
        // SAFETY: the tasks cover all squares and columns, and each writes all pixels of its own.
        let mut outputs = unsafe {
            filled(&[rows * height * width * self.out], |outputs| {
                tasks.run(PLACES * self.channels, |squares, tiles| {
                    SCRATCH.with_borrow_mut(|scratch| {
                        walk.task(squares, tiles, scratch, &outputs[0]);
                    });
                });
            })
        };
        outputs.swap_remove(0)
    }
}

/// G g Gᵀ.
fn transform_kernel(kernel: &[f32; 9]) -> [f32; PLACES] {
    fn direction(a: f64, b: f64, c: f64) -> [f64; 4] {
        [a, (a + b + c) / 2.0, (a - b + c) / 2.0, c]
    }
    let kernel = kernel.map(f64::from);
    let columns = [0, 1, 2].map(|x| direction(kernel[x], kernel[3 + x], kernel[6 + x]));
    let mut places = [0f32; PLACES];
    for y in 0..4 {
        let line = direction(columns[0][y], columns[1][y], columns[2][y]);
        for (x, value) in line.into_iter().enumerate() {
            places[4 * y + x] = value as f32;
        }
    }
    places
}

/// One convolution's loop.
struct Walk<'a> {
    weight: &'a WinogradWeight,
    x: &'a [f32],
    height: usize,
    width: usize,
    addends: &'a Addends<'a>,
}

/// What a thread works in, kept between tasks.
#[derive(Default)]
struct Scratch {
    /// Per place (squares, [`PIXEL_STRIDE`]).
    inputs: Vec<f32>,
    /// Per place (tiles, squares, 16).
    sums: Vec<[f32; COLUMNS]>,
    squares: Vec<Square>,
}

/// Where a square lies.
#[derive(Clone, Copy)]
struct Square {
    /// Which row of the batch.
    row: usize,
    /// Its first output.
    y: usize,
    x: usize,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Walk<'_> {
    fn task(
        &self,
        squares: Range<usize>,
        tiles: Range<usize>,
        scratch: &mut Scratch,
        output: &SharedOutput<'_>,
    ) {
        let (count, channels) = (squares.len(), self.weight.channels);
        let (down, across) = (self.height.div_ceil(2), self.width.div_ceil(2));
        scratch.squares.clear();
        scratch.squares.extend(squares.map(|square| Square {
            row: square / across / down,
            y: square / across % down * 2,
            x: square % across * 2,
        }));
        let needed = PLACES * count * PIXEL_STRIDE;
        if scratch.inputs.len() < needed {
            scratch.inputs.resize(needed, 0.0);
        }
        let place_sums = tiles.len() * count;
        if scratch.sums.len() < PLACES * place_sums {
            scratch.sums.resize(PLACES * place_sums, [0.0; COLUMNS]);
        }
        let all_tiles = self.weight.out.div_ceil(COLUMNS);
        let weights = floats(&self.weight.lines);
        for channel in (0..channels).step_by(SEGMENT_INPUTS) {
            let len = SEGMENT_INPUTS.min(channels - channel);
            let begin = if channel == 0 {
                Begin::Fresh
            } else {
                Begin::Add
            };
            transform_inputs(self, channel, len, &scratch.squares, &mut scratch.inputs);
            let weights = &weights[PLACES * all_tiles * channel..];
            for place in 0..PLACES {
                let first = (place * all_tiles + tiles.start) * len;
                let start = place * count * PIXEL_STRIDE;
                multiply(
                    &scratch.inputs,
                    &[Segment { start, len }],
                    &weights[first..first + tiles.len() * len],
                    count,
                    begin,
                    &mut scratch.sums[place * place_sums..(place + 1) * place_sums],
                );
            }
        }
        let sums = &scratch.sums[..PLACES * place_sums];
        transform_outputs(self, tiles, &scratch.squares, sums, output);
    }

    /// Where the pixels of a square begin in the input; none outside the picture.
    fn pixels(&self, square: &Square) -> [Option<usize>; PLACES] {
        let mut pixels = [None; PLACES];
        for (place, pixel) in pixels.iter_mut().enumerate() {
            let (y, x) = (square.y + place / 4, square.x + place % 4);
            if (1..=self.height).contains(&y) && (1..=self.width).contains(&x) {
                let pixel_index = (square.row * self.height + y - 1) * self.width + x - 1;
                *pixel = Some(pixel_index * self.weight.channels);
            }
        }
        pixels
    }
}

per_isa! {
    /// Bᵀ d B for each square and each of `len` channels from `channel`; to: per place (squares, [`PIXEL_STRIDE`]).
    fn transform_inputs(walk: &Walk<'_>, channel: usize, len: usize, squares: &[Square], to: &mut [f32]) = transform_inputs_body<Vector>;
}

#[inline(always)]
fn transform_inputs_body<V: Vector>(
    walk: &Walk<'_>,
    channel: usize,
    len: usize,
    squares: &[Square],
    to: &mut [f32],
) {
    for (index, square) in squares.iter().enumerate() {
        let pixels = walk.pixels(square);
        for first in (0..len).step_by(COLUMNS) {
            let lanes = COLUMNS.min(len - first);
            let mut square = [V::splat(0.0); PLACES];
            for place in 0..PLACES {
                if let Some(pixel) = pixels[place] {
                    square[place] = load_lanes(&walk.x[pixel + channel + first..], lanes);
                }
            }
            // Down, then across.
            let mut half = [V::splat(0.0); PLACES];
            for x in 0..4 {
                let (a, b, c, d) = (square[x], square[4 + x], square[8 + x], square[12 + x]);
                half[x] = a.sub(c);
                half[4 + x] = b.add(c);
                half[8 + x] = c.sub(b);
                half[12 + x] = b.sub(d);
            }
            for y in 0..4 {
                let (a, b, c, d) = (
                    half[4 * y],
                    half[4 * y + 1],
                    half[4 * y + 2],
                    half[4 * y + 3],
                );
                square[4 * y] = a.sub(c);
                square[4 * y + 1] = b.add(c);
                square[4 * y + 2] = c.sub(b);
                square[4 * y + 3] = b.sub(d);
            }
            for (place, value) in square.into_iter().enumerate() {
                let at = (place * squares.len() + index) * PIXEL_STRIDE + first;
                if let Some(to) = to[at..].first_chunk_mut() {
                    value.store(to);
                }
            }
        }
    }
}

#[inline(always)]
fn load_lanes<V: Vector>(from: &[f32], lanes: usize) -> V {
    if lanes == COLUMNS
        && let Some(from) = from.first_chunk()
    {
        return V::load(from);
    }
    let mut padded = [0f32; COLUMNS];
    padded[..lanes].copy_from_slice(&from[..lanes]);
    V::load(&padded)
}

per_isa! {
    /// Aᵀ m A for each square and column, plus the addends, into the pixels that exist. sums: per place (tiles, squares, 16)
    fn transform_outputs(walk: &Walk<'_>, tiles: Range<usize>, squares: &[Square], sums: &[[f32; COLUMNS]], output: &SharedOutput<'_>) = transform_outputs_body<Vector>;
}

#[inline(always)]
fn transform_outputs_body<V: Vector>(
    walk: &Walk<'_>,
    tiles: Range<usize>,
    squares: &[Square],
    sums: &[[f32; COLUMNS]],
    output: &SharedOutput<'_>,
) {
    let out = walk.weight.out;
    let place_sums = sums.len() / PLACES;
    for (index, square) in squares.iter().enumerate() {
        for (tile_index, tile) in tiles.clone().enumerate() {
            let at = tile_index * squares.len() + index;
            let mut half = [V::splat(0.0); 8];
            for x in 0..4 {
                let a = V::load(&sums[x * place_sums + at]);
                let b = V::load(&sums[(4 + x) * place_sums + at]);
                let c = V::load(&sums[(8 + x) * place_sums + at]);
                let d = V::load(&sums[(12 + x) * place_sums + at]);
                half[x] = a.add(b).add(c);
                half[4 + x] = b.sub(c).sub(d);
            }
            for y in 0..2 {
                let (a, b, c, d) = (
                    half[4 * y],
                    half[4 * y + 1],
                    half[4 * y + 2],
                    half[4 * y + 3],
                );
                let pair = [a.add(b).add(c), b.sub(c).sub(d)];
                for (x, total) in pair.into_iter().enumerate() {
                    let (y, x_) = (square.y + y, square.x + x);
                    if y < walk.height && x_ < walk.width {
                        let pixel = (square.row * walk.height + y) * walk.width + x_;
                        let first = tile * COLUMNS;
                        write_tile(
                            total,
                            first,
                            square.row * out + first,
                            pixel * out + first,
                            out,
                            walk.addends,
                            output,
                        );
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::image::product::{Geometry, PackedWeight};
    use crate::kernels::image::test_tensors::{tensor, values};

    #[test]
    fn it_is_no_less_exact_than_the_direct_sum() {
        let (height, width, channels, out) = (9, 10, 320, 20);
        let weight = tensor(&[out, channels, 9], 1);
        let x = values(&tensor(&[2, height, width, channels], 2));
        let addends = Addends::default();
        let ours = WinogradWeight::pack(&weight).unwrap();
        let ours = ours.multiply(&x, height, width, &addends);
        let geometry = Geometry {
            kernel_width: 3,
            stride: 1,
            before: 1,
            height,
            width,
            out_height: height,
            out_width: width,
        };
        let direct = PackedWeight::pack(&weight).unwrap();
        let direct = direct.multiply(&x, &geometry, &addends);
        let weight = values(&weight);
        let (mut worst_ours, mut worst_direct) = (0f64, 0f64);
        for (index, (ours, direct)) in ours.iter().zip(&direct).enumerate() {
            let (pixel, column) = (index / out, index % out);
            let (line, right) = (pixel / width, pixel % width);
            let mut expected = 0f64;
            for place in 0..9 {
                let (y, x_) = (line % height + place / 3, right + place % 3);
                if (1..=height).contains(&y) && (1..=width).contains(&x_) {
                    let at = (line / height * height + y - 1) * width + x_ - 1;
                    for channel in 0..channels {
                        let weight = weight[(column * channels + channel) * 9 + place];
                        expected += f64::from(weight) * f64::from(x[at * channels + channel]);
                    }
                }
            }
            worst_ours = worst_ours.max((f64::from(*ours) - expected).abs());
            worst_direct = worst_direct.max((f64::from(*direct) - expected).abs());
        }
        // The numbers are about one; sums of 2880 of their products about 50.
        assert!(
            worst_direct < 6e-5 && worst_ours < 3e-5,
            "{worst_direct} {worst_ours}"
        );
    }

    #[test]
    fn another_kernel_is_refused() {
        assert!(WinogradWeight::pack(&tensor(&[2, 2, 4], 1)).is_err());
    }
}
