//! Convolutions and linear layers on the CPU: products of gathered pixels with packed weights.
//!
//! The inputs of an output pixel are a list of segments: for each block of channels, for each place of the kernel, that
//! block of the pixel there. Segments are worked off in passes of a few: a task gathers a pass of its pixels into a small
//! scratch buffer, then lets the tiles of its columns pass by. So no buffer grows with the picture. A sum is that of its
//! passes in order, whatever the pixels and columns beside it; see [`super::panel`].
#![allow(unsafe_code, reason = "outputs are not zeroed before they are filled")]

use std::cell::RefCell;
use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};

use super::panel::{Begin, COLUMNS, PIXEL_STRIDE, SEGMENT_INPUTS, Segment, multiply};
use crate::kernels::isa::per_isa;
use crate::kernels::lines::{Lines, bytes_mut, floats};
use crate::kernels::shared_output::{SharedOutput, filled};
use crate::kernels::simd::Vector;
use crate::kernels::tensor_data::with_slice;
use crate::kernels::threads;

/// Segments of a pass: those of a kernel of 3 x 3 for one block of channels.
const PASS_SEGMENTS: usize = 9;
/// Pixels of a task: as many as let the gathered inputs, the sums and two tiles lie in the second-level cache.
const TASK_PIXELS: usize = 126;
/// The most tiles of a task, for the same reason.
const TASK_TILES: usize = 32;
/// Tasks per thread, where there is so much work.
const TASKS_PER_THREAD: usize = 8;

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

impl Geometry {
    /// Of a product that takes each row by itself.
    pub(super) fn rows(count: usize) -> Self {
        Self {
            kernel_width: 1,
            stride: 1,
            before: 0,
            height: count,
            width: 1,
            out_height: count,
            out_width: 1,
        }
    }
}

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

    /// Bytes of the weight as it is kept.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.lines)
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

/// How a product is cut into tasks: parts of the pixels by parts of the columns.
pub(super) struct Tasks {
    pixels: usize,
    tiles: usize,
    pixel_parts: usize,
    tile_parts: usize,
}

impl Tasks {
    /// With at most so many pixels and tiles each.
    pub(super) fn new(pixels: usize, tiles: usize, task_pixels: usize, task_tiles: usize) -> Self {
        let pixel_parts = pixels.div_ceil(task_pixels);
        let wanted = (threads::compute_threads() * TASKS_PER_THREAD).div_ceil(pixel_parts.max(1));
        // Two pairs of tiles at least: fewer, and gathering takes as long as multiplying.
        let most = tiles.div_ceil(4);
        Self {
            pixels,
            tiles,
            pixel_parts,
            tile_parts: tiles.div_ceil(task_tiles).max(wanted.min(most)),
        }
    }

    /// Runs them all, spread over the threads. A pixel takes `inputs` multiply-adds per column.
    pub(super) fn run(&self, inputs: usize, task: impl Fn(Range<usize>, Range<usize>) + Sync) {
        let count = self.pixel_parts * self.tile_parts;
        let operations = self.pixels * inputs * self.tiles * COLUMNS / count.max(1);
        // Kernels take tiles in pairs.
        let pairs = self.tiles.div_ceil(2);
        let first_tile = |part: usize| (2 * (part * pairs / self.tile_parts)).min(self.tiles);
        let first_pixel = |part: usize| part * self.pixels / self.pixel_parts;
        threads::for_each_range(count, operations, |tasks| {
            for index in tasks {
                // The same tiles for all pixels, then the next: they may lie in a cache still.
                let (tiles, pixels) = (index / self.pixel_parts, index % self.pixel_parts);
                task(
                    first_pixel(pixels)..first_pixel(pixels + 1),
                    first_tile(tiles)..first_tile(tiles + 1),
                );
            }
        });
    }
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
        store(
            &Place {
                pixels,
                tiles,
                out: self.weight.out,
                row_pixels: self.geometry.out_height * self.geometry.out_width,
            },
            sums,
            self.addends,
            output,
        );
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

/// Which part of the output sums are.
struct Place {
    pixels: Range<usize>,
    tiles: Range<usize>,
    /// Columns of the output.
    out: usize,
    /// Pixels of a row.
    row_pixels: usize,
}

per_isa! {
    /// sums: (tiles, pixels, 16), plus the addends, into the columns that exist.
    fn store(place: &Place, sums: &[[f32; COLUMNS]], addends: &Addends<'_>, output: &SharedOutput<'_>) = store_body<Vector>;
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

fn with_optional<R>(
    tensor: Option<&Tensor>,
    body: impl FnOnce(Option<&[f32]>) -> Result<R>,
) -> Result<R> {
    match tensor {
        Some(tensor) => with_slice::<f32, _>(tensor, |values| body(Some(values))),
        None => body(None),
    }
}
