//! Convolutions on the CPU: products of gathered pixels with packed weights.
//!
//! The inputs of an output pixel are a list of segments: for each block of channels, for each place of the kernel, that
//! block of the pixel there. Segments are worked off in passes of a few: a task gathers a pass of its pixels into a small
//! scratch buffer, then lets the tiles of its columns pass by. So no buffer grows with the picture. A sum is that of its
//! passes in order, whatever the pixels and columns beside it; see [`super::panel`].
#![allow(unsafe_code, reason = "outputs are not zeroed before they are filled")]

use std::cell::RefCell;
use std::ops::Range;

use candle_core::{DType, Result, Tensor};

use super::finish::{Addends, Place, store};
use super::panel::{Begin, COLUMNS, PIXEL_STRIDE, SEGMENT_INPUTS, Segment, multiply};
use super::tasks::Tasks;
use crate::kernels::lines::{Lines, bytes_mut, floats};
use crate::kernels::shared_output::{SharedOutput, filled};
use crate::kernels::tensor_data::with_slice;
use crate::kernels::threads;

/// Segments of a pass: those of a kernel of 3 x 3 for one block of channels.
const PASS_SEGMENTS: usize = 9;
/// Pixels of a task: as many as let the gathered inputs, the sums and two tiles lie in the second-level cache.
const TASK_PIXELS: usize = 126;
/// The most tiles of a task, for the same reason.
const TASK_TILES: usize = 32;
/// The shape of a convolution: how outputs and inputs lie.
#[derive(Debug, Clone, Copy)]
pub(super) struct Geometry {
    /// Of the kernel.
    pub kernel_width: usize,
    pub stride: usize,
    /// Zeros above and to the left.
    pub before: usize,
    /// Of a row of the input.
    pub height: usize,
    pub width: usize,
    /// Of a row of the output.
    pub out_height: usize,
    pub out_width: usize,
}

/// A weight of shape (out, places of the kernel, in), packed: per pass (tiles, inputs, 16).
pub(super) struct PackedWeight {
    out: usize,
    channels: usize,
    passes: Vec<Pass>,
    lines: Lines,
}

struct Pass {
    segments: Vec<Gather>,
    /// Of a tile.
    inputs: usize,
    /// Where the first tile begins.
    first_line: usize,
}

/// The inputs of a segment: a block of channels at a place of the kernel.
#[derive(Clone, Copy)]
struct Gather {
    place: usize,
    channel: usize,
    len: usize,
}

impl std::fmt::Debug for PackedWeight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedWeight[{} -> {}]", self.channels, self.out)
    }
}

impl PackedWeight {
    /// Packs a weight of shape (out, in, places), on the CPU, of any float dtype.
    ///
    /// # Errors
    /// When the rank is not 3, or there is no memory.
    pub(super) fn pack(weight: &Tensor) -> Result<Self> {
        let (out, channels, places) = weight.dims3()?;
        let tiles = out.div_ceil(COLUMNS);
        let mut segments = Vec::new();
        for channel in (0..channels).step_by(SEGMENT_INPUTS) {
            let len = SEGMENT_INPUTS.min(channels - channel);
            segments.extend((0..places).map(|place| Gather {
                place,
                channel,
                len,
            }));
        }
        let mut first_line = 0;
        let mut passes = Vec::new();
        for segments in segments.chunks(PASS_SEGMENTS) {
            let inputs = segments.iter().map(|segment| segment.len).sum();
            passes.push(Pass {
                segments: segments.to_vec(),
                inputs,
                first_line,
            });
            first_line += tiles * inputs;
        }
        let mut lines = Lines::zeroed(first_line)?;
        let weight = weight.to_dtype(DType::F32)?;
        with_slice::<f32, _>(&weight, |weight| {
            for pass in &passes {
                let lines = &mut lines[pass.first_line..][..tiles * pass.inputs];
                threads::for_each_chunk(lines, pass.inputs.max(1), |tile, lines| {
                    let mut bytes = bytes_mut(lines).chunks_exact_mut(size_of::<f32>());
                    for segment in &pass.segments {
                        for input in segment.channel..segment.channel + segment.len {
                            for column in tile * COLUMNS..(tile + 1) * COLUMNS {
                                let at = (column * channels + input) * places + segment.place;
                                let value = if column < out { weight[at] } else { 0.0 };
                                if let Some(bytes) = bytes.next() {
                                    bytes.copy_from_slice(&value.to_ne_bytes());
                                }
                            }
                        }
                    }
                });
            }
            Ok(())
        })?;
        Ok(Self {
            out,
            channels,
            passes,
            lines,
        })
    }

    /// x: (rows, height, width, in) -> (rows, out height, out width, out), plus the addends.
    pub(super) fn multiply(
        &self,
        x: &[f32],
        geometry: &Geometry,
        addends: &Addends<'_>,
    ) -> Vec<f32> {
        let row_pixels = geometry.out_height * geometry.out_width;
        let row_inputs = geometry.height * geometry.width * self.channels;
        let pixels = x.len() / row_inputs * row_pixels;
        // What the reads rely on.
        assert_eq!(x.len() % row_inputs, 0, "whole rows");
        let lens = |addend: Option<&[f32]>| addend.map_or(0, <[f32]>::len);
        assert!(
            [0, self.out].contains(&lens(addends.bias))
                && [0, pixels / row_pixels * self.out].contains(&lens(addends.per_row))
                && [0, pixels * self.out].contains(&lens(addends.residual)),
            "addends fit"
        );
        let walk = Walk {
            weight: self,
            x,
            geometry,
            addends,
            pixels,
        };
        // SAFETY: the tasks cover all pixels and columns, and each writes all of its own.
        let mut outputs = unsafe { filled(&[pixels * self.out], |outputs| walk.run(&outputs[0])) };
        outputs.swap_remove(0)
    }
}

/// One product's loop.
struct Walk<'a> {
    weight: &'a PackedWeight,
    x: &'a [f32],
    geometry: &'a Geometry,
    addends: &'a Addends<'a>,
    /// Of the output.
    pixels: usize,
}

/// What a thread works in, kept between tasks.
#[derive(Default)]
struct Scratch {
    /// Per segment (pixels, [`PIXEL_STRIDE`]).
    inputs: Vec<f32>,
    /// (tiles, pixels, 16)
    sums: Vec<[f32; COLUMNS]>,
    corners: Vec<Corner>,
}

/// Where the kernel begins for an output pixel.
#[derive(Clone, Copy)]
struct Corner {
    /// Where the row begins in the input, in pixels.
    row: usize,
    /// Less than zero, as a large number, above and to the left of the picture.
    y: usize,
    x: usize,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Walk<'_> {
    fn run(&self, output: &SharedOutput<'_>) {
        let tiles = self.weight.out.div_ceil(COLUMNS);
        let inputs = self.weight.passes.iter().map(|pass| pass.inputs).sum();
        Tasks::new(self.pixels, tiles, TASK_PIXELS, TASK_TILES).run(inputs, |pixels, tiles| {
            SCRATCH.with_borrow_mut(|scratch| self.task(pixels, tiles, scratch, output));
        });
    }

    fn task(
        &self,
        pixels: Range<usize>,
        tiles: Range<usize>,
        scratch: &mut Scratch,
        output: &SharedOutput<'_>,
    ) {
        let count = pixels.len();
        self.find_corners(pixels.clone(), &mut scratch.corners);
        let needed = PASS_SEGMENTS * count * PIXEL_STRIDE;
        if scratch.inputs.len() < needed {
            scratch.inputs.resize(needed, 0.0);
        }
        if scratch.sums.len() < tiles.len() * count {
            scratch.sums.resize(tiles.len() * count, [0.0; COLUMNS]);
        }
        let sums = &mut scratch.sums[..tiles.len() * count];
        let mut segments = [Segment { start: 0, len: 0 }; PASS_SEGMENTS];
        let weights = floats(&self.weight.lines);
        for (index, pass) in self.weight.passes.iter().enumerate() {
            for (index, gather) in pass.segments.iter().enumerate() {
                let start = index * count * PIXEL_STRIDE;
                segments[index] = Segment {
                    start,
                    len: gather.len,
                };
                let to = &mut scratch.inputs[start..start + count * PIXEL_STRIDE];
                self.gather(gather, &scratch.corners, to);
            }
            let first = pass.first_line + tiles.start * pass.inputs;
            multiply(
                &scratch.inputs,
                &segments[..pass.segments.len()],
                &weights[first..first + tiles.len() * pass.inputs],
                count,
                if index == 0 { Begin::Fresh } else { Begin::Add },
                sums,
            );
        }
        let place = Place {
            pixels,
            tiles,
            out: self.weight.out,
            row_pixels: self.geometry.out_height * self.geometry.out_width,
        };
        store(&place, sums, self.addends, output);
    }

    fn find_corners(&self, pixels: Range<usize>, corners: &mut Vec<Corner>) {
        let geometry = self.geometry;
        corners.clear();
        corners.extend(pixels.map(|pixel| {
            let (line, x) = (pixel / geometry.out_width, pixel % geometry.out_width);
            let (row, y) = (line / geometry.out_height, line % geometry.out_height);
            Corner {
                row: row * geometry.height * geometry.width,
                y: (y * geometry.stride).wrapping_sub(geometry.before),
                x: (x * geometry.stride).wrapping_sub(geometry.before),
            }
        }));
    }

    /// A segment of each pixel, zeros where the kernel is outside the picture.
    fn gather(&self, gather: &Gather, corners: &[Corner], to: &mut [f32]) {
        let geometry = self.geometry;
        let (down, right) = (
            gather.place / geometry.kernel_width,
            gather.place % geometry.kernel_width,
        );
        for (corner, to) in corners.iter().zip(to.chunks_exact_mut(PIXEL_STRIDE)) {
            let (y, x) = (corner.y.wrapping_add(down), corner.x.wrapping_add(right));
            if y < geometry.height && x < geometry.width {
                let pixel = corner.row + y * geometry.width + x;
                let from = &self.x[pixel * self.weight.channels + gather.channel..][..gather.len];
                match from.first_chunk::<SEGMENT_INPUTS>() {
                    Some(from) => to[..SEGMENT_INPUTS].copy_from_slice(from),
                    None => to[..gather.len].copy_from_slice(from),
                }
            } else {
                to[..SEGMENT_INPUTS].fill(0.0);
            }
        }
    }
}
