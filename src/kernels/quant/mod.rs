//! Products with quantised weights.
//!
//! A weight is repacked once, at load, into tiles of sixteen output columns ([`tile`]); the rows of a call are
//! quantised once to 8 bits ([`activation`]); then every tile is read once and its weights, unpacked in
//! registers, serve a panel of rows. Decoding one row is bound by memory, several rows by arithmetic.
//!
//! [`reference`](super::reference) and [`portable`] are the plain twins. What every kernel must compute, in which
//! order, is `portable::add_block`: integer sums per block, then one fused multiply-add per scale, block after
//! block. It depends on nothing but the row and the column.

mod activation;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx_vnni;
mod format;
#[cfg(target_arch = "x86_64")]
mod half_tile;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
#[cfg(test)]
mod tests;
mod tile;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Result, bail};

pub(super) use self::activation::ActivationBlock;
use self::activation::quantize_row;
#[cfg(target_arch = "x86_64")]
use self::avx_vnni::{evex, vex};
use self::format::{BLOCK, Format, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
#[cfg(target_arch = "aarch64")]
use self::neon::{dot, plain};
use super::isa::Isa;
use super::lines::{self, Line, Lines};
use super::panel::{Panel, split_rows};
use super::threads;
use super::tiled::{Input, InputForm, Sums, TILE_COLUMNS, TiledWeight};

/// Runs `$body` with `$format` naming the type that belongs to a dtype.
macro_rules! with_format {
    ($dtype:expr, $format:ident => $body:expr, else $otherwise:expr) => {
        match $dtype {
            GgmlDType::Q4_0 => {
                type $format = Q4_0;
                $body
            }
            GgmlDType::Q4_1 => {
                type $format = Q4_1;
                $body
            }
            GgmlDType::Q5_0 => {
                type $format = Q5_0;
                $body
            }
            GgmlDType::Q5_1 => {
                type $format = Q5_1;
                $body
            }
            GgmlDType::Q8_0 => {
                type $format = Q8_0;
                $body
            }
            GgmlDType::Q4K => {
                type $format = Q4K;
                $body
            }
            GgmlDType::Q5K => {
                type $format = Q5K;
                $body
            }
            GgmlDType::Q6K => {
                type $format = Q6K;
                $body
            }
            _ => $otherwise,
        }
    };
}

/// A weight of shape (n, k), packed in tiles.
pub(super) struct QuantMatrix {
    dtype: GgmlDType,
    /// n
    out_features: usize,
    /// k
    in_features: usize,
    lines: Lines,
    lines_per_tile: usize,
}

impl std::fmt::Debug for QuantMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "QuantMatrix[{} x {} {:?}]",
            self.out_features, self.in_features, self.dtype
        )
    }
}

impl QuantMatrix {
    /// Whether a format has tile kernels.
    pub(super) fn supports(dtype: GgmlDType) -> bool {
        with_format!(dtype, _F => true, else false)
    }

    /// Packs a weight of shape (n, k).
    ///
    /// # Errors
    /// When its format has no tile kernels ([`Self::supports`]) or its rank is not 2.
    pub(super) fn pack(weight: &QTensor) -> Result<Self> {
        let (out_features, in_features) = weight.shape().dims2()?;
        let dtype = weight.dtype();
        let bytes = weight.data()?;
        let pack = Packing {
            bytes: &bytes,
            out_features,
            in_features,
        };
        let (lines, lines_per_tile) =
            with_format!(dtype, F => pack.run::<F>()?, else bail!("no tile kernels for {dtype:?}"));
        Ok(Self {
            dtype,
            out_features,
            in_features,
            lines,
            lines_per_tile,
        })
    }

    fn tile(&self, tile: usize) -> &[u8] {
        lines::bytes(&self.lines[tile * self.lines_per_tile..(tile + 1) * self.lines_per_tile])
    }

    /// Row `row` of the weight, dequantised as Candle does, into `output` (k,).
    ///
    /// # Errors
    /// When the row is outside the weight.
    pub(super) fn dequantize_row(&self, row: usize, output: &mut [f32]) -> Result<()> {
        if row >= self.out_features {
            bail!("row {row} is outside a table of {} rows", self.out_features);
        }
        with_format!(self.dtype, F => self.dequantize_row_as::<F>(row, output), else unreachable!("packed formats only"));
        Ok(())
    }

    fn dequantize_row_as<F: Format>(&self, row: usize, output: &mut [f32]) {
        let (tile, column) = (self.tile(row / TILE_COLUMNS), row % TILE_COLUMNS);
        for (block, output) in output.chunks_exact_mut(BLOCK).enumerate() {
            let (q, scales, min) = tile::block_of_column::<F>(tile, block, column);
            for (i, (output, q)) in output.iter_mut().zip(q).enumerate() {
                let value = (i32::from(q) - F::ZERO) as f32 * scales[i / (BLOCK / 2)];
                *output = if F::HAS_MIN { value + min } else { value };
            }
        }
    }
}

impl TiledWeight for QuantMatrix {
    fn out_features(&self) -> usize {
        self.out_features
    }

    fn in_features(&self) -> usize {
        self.in_features
    }

    fn bytes(&self) -> usize {
        size_of_val(&*self.lines)
    }
    fn input_form(&self) -> InputForm {
        with_format!(
            self.dtype,
            F => InputForm::Blocks { zero: F::ZERO, halves: F::HALVES },
            else unreachable!("packed formats only")
        )
    }

    #[inline]
    fn multiply_tile(
        &self,
        isa: Isa,
        tile: usize,
        input: &Input,
        panel: &Panel,
        sums: &mut Sums,
    ) -> Result<()> {
        let blocks = self.in_features / BLOCK;
        let x = &input.blocks[panel.first_row * blocks..(panel.first_row + panel.rows) * blocks];
        let tile = self.tile(tile);
        with_format!(
            self.dtype,
            F => multiply_tile::<F>(isa, tile, blocks / F::GROUP_BLOCKS, x, sums),
            else unreachable!("packed formats only")
        );
        Ok(())
    }
}

/// A weight's bytes on their way into tiles.
struct Packing<'a> {
    bytes: &'a [u8],
    out_features: usize,
    in_features: usize,
}

impl Packing<'_> {
    /// The tiles, and the lines of each.
    fn run<F: Format>(&self) -> Result<(Lines, usize)> {
        let groups = self.in_features / (BLOCK * F::GROUP_BLOCKS);
        let row_bytes = groups * F::FILE_BYTES;
        let lines_per_tile = tile::tile_bytes::<F>(groups) / size_of::<Line>();
        let tiles = self.out_features.div_ceil(TILE_COLUMNS);
        let mut lines = Lines::zeroed(tiles * lines_per_tile)?;
        if lines.is_empty() {
            return Ok((lines, lines_per_tile));
        }
        threads::for_each_chunk(&mut lines, lines_per_tile, |tile, lines| {
            let rows = tile * TILE_COLUMNS..self.out_features.min((tile + 1) * TILE_COLUMNS);
            let bytes = &self.bytes[rows.start * row_bytes..rows.end * row_bytes];
            tile::pack_tile::<F>(bytes, row_bytes, lines::bytes_mut(lines));
        });
        Ok((lines, lines_per_tile))
    }
}

/// All rows in 8 bits, in panels: the blocks of a panel's rows interleaved.
pub(super) fn quantize_rows(
    x: &[f32],
    k: usize,
    max_rows: usize,
    zero: i32,
    halves: usize,
) -> Vec<ActivationBlock> {
    let blocks = k / BLOCK;
    let mut activations = vec![ActivationBlock::EMPTY; x.len() / BLOCK];
    threads::for_each_chunk(
        &mut activations,
        (rows_per_task(k).next_multiple_of(max_rows) * blocks).max(1),
        |task, activations| {
            let first = task * rows_per_task(k).next_multiple_of(max_rows);
            for panel in split_rows(activations.len() / blocks, max_rows) {
                let out = &mut activations[panel.first_row * blocks..][..panel.rows * blocks];
                for row in 0..panel.rows {
                    let x = &x[(first + panel.first_row + row) * k..][..k];
                    quantize_row(x, zero, halves, out, row, panel.rows);
                }
            }
        },
    );
    activations
}

/// So many rows that handing them to another thread costs little.
fn rows_per_task(k: usize) -> usize {
    const TASK_NUMBERS: usize = 16 * 1024;
    (TASK_NUMBERS / k.max(1)).max(1)
}

/// One tile times one panel of as many rows as `sums`.
#[allow(
    unsafe_code,
    reason = "calls kernels compiled for instructions that the processor has"
)]
fn multiply_tile<F: Format>(
    isa: Isa,
    tile: &[u8],
    groups: usize,
    panel: &[ActivationBlock],
    sums: &mut Sums,
) {
    macro_rules! kernels {
        ($module:ident, $($rows:literal)*) => {{
            type Kernel = unsafe fn(&[u8], usize, &[ActivationBlock], &mut Sums);
            let kernel: Kernel = match sums.len() {
                $($rows => $module::multiply_tile::<F, $rows>,)*
                rows => unreachable!("no panels of {rows} rows"),
            };
            // SAFETY: callers pass `Isa::detected` or one of `Isa::available`, which the processor has; tile and panel are whole.
            unsafe { kernel(tile, groups, panel, sums) }
        }};
    }
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => kernels!(avx512, 1 2 3 4 6 8),
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni if is_x86_feature_detected!("avxvnni") => kernels!(vex, 1 2 3 4),
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni => kernels!(evex, 1 2 3 4),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => kernels!(avx2, 1 2 3 4),
        #[cfg(target_arch = "aarch64")]
        Isa::NeonDot => kernels!(dot, 1 2 3 4),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => kernels!(plain, 1 2 3 4),
        _ => portable::multiply_tile::<F>(tile, groups, panel, sums),
    }
}
