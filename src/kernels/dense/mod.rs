//! Products with plain weights: f32, f16 and bf16, kept in the dtype that they came in, summed in f32.
//!
//! A tile holds, for each of the k inputs, the weights of sixteen output columns side by side. What every kernel
//! computes, in which order, is [`portable`]: two running sums, of even and of odd inputs, one fused multiply-add
//! per input; then their sum. It depends on nothing but the row and the column.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

use std::sync::Arc;

use candle_core::quantized::QTensor;
use candle_core::{DType, Device, Result, Tensor, WithDType, bail};
use half::{bf16, f16};

use super::isa::Isa;
use super::lines::{self, Line, Lines};
use super::panel::{Panel, split_rows};
use super::tensor_data::with_slice;
use super::threads;
use super::tiled::{Input, InputForm, Sums, TILE_COLUMNS, TiledWeight};

/// A weight's number type.
trait Element: WithDType {
    const BYTES: usize = size_of::<Self>();
    fn write(self, bytes: &mut [u8]);
    fn read(bytes: &[u8]) -> f32;
}

macro_rules! element {
    ($type:ty, $bytes:ident => $read:expr) => {
        impl Element for $type {
            fn write(self, bytes: &mut [u8]) {
                bytes.copy_from_slice(&self.to_le_bytes());
            }
            #[inline(always)]
            fn read($bytes: &[u8]) -> f32 {
                $read
            }
        }
    };
}

element!(f32, bytes => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
element!(f16, bytes => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32());
element!(bf16, bytes => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32());

/// Runs `$body` with `$element` naming the type that belongs to a dtype.
macro_rules! with_element {
    ($dtype:expr, $element:ident => $body:expr, else $otherwise:expr) => {
        match $dtype {
            DType::F32 => {
                type $element = f32;
                $body
            }
            DType::F16 => {
                type $element = f16;
                $body
            }
            DType::BF16 => {
                type $element = bf16;
                $body
            }
            _ => $otherwise,
        }
    };
}

/// A weight of shape (n, k), packed in tiles.
pub(super) struct DenseMatrix {
    dtype: DType,
    out_features: usize,
    in_features: usize,
    lines: Lines,
}

impl DenseMatrix {
    /// Packs a weight of shape (n, k) on the CPU.
    ///
    /// # Errors
    /// When it is not f32, f16 or bf16, or its rank is not 2.
    pub(super) fn pack(weight: &Tensor) -> Result<Self> {
        let (out_features, in_features) = weight.dims2()?;
        let dtype = weight.dtype();
        let lines_per_tile = lines_per_tile(in_features, dtype.size_in_bytes());
        let mut lines = Lines::zeroed(out_features.div_ceil(TILE_COLUMNS) * lines_per_tile)?;
        with_element!(
            dtype,
            E => with_slice::<E, _>(weight, |weight| {
                pack(weight, out_features, in_features, &mut lines);
                Ok(())
            })?,
            else bail!("weights are f32, f16 or bf16, not {dtype:?}")
        );
        Ok(Self {
            dtype,
            out_features,
            in_features,
            lines,
        })
    }

    /// Row `row` of the weight into `output` (k,).
    ///
    /// # Errors
    /// When the row is outside the weight.
    pub(super) fn widen_row(&self, row: usize, output: &mut [f32]) -> Result<()> {
        if row >= self.out_features {
            bail!("row {row} is outside a table of {} rows", self.out_features);
        }
        let lines_per_tile = lines_per_tile(self.in_features, self.dtype.size_in_bytes());
        let tile = lines::bytes(&self.lines[row / TILE_COLUMNS * lines_per_tile..]);
        with_element!(self.dtype, E => {
            for (output, weights) in output.iter_mut().zip(tile.chunks_exact(TILE_COLUMNS * E::BYTES)) {
                *output = E::read(&weights[row % TILE_COLUMNS * E::BYTES..]);
            }
        }, else unreachable!("packed dtypes only"));
        Ok(())
    }
}

impl TiledWeight for DenseMatrix {
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
        InputForm::Floats
    }

    fn multiply_tile(
        &self,
        isa: Isa,
        tile: usize,
        input: &Input,
        panel: &Panel,
        sums: &mut Sums,
    ) -> Result<()> {
        let lines_per_tile = lines_per_tile(self.in_features, self.dtype.size_in_bytes());
        let tile = lines::bytes(&self.lines[tile * lines_per_tile..(tile + 1) * lines_per_tile]);
        let x = panel_of(input, panel);
        with_element!(self.dtype, E => multiply_tile::<E>(isa, tile, x, sums), else unreachable!("packed dtypes only"));
        Ok(())
    }
}

/// The interleaved rows of a panel.
fn panel_of<'a>(input: &'a Input, panel: &Panel) -> &'a [f32] {
    &input.floats[panel.first_row * input.k..(panel.first_row + panel.rows) * input.k]
}

impl std::fmt::Debug for DenseMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "DenseMatrix[{} x {} {:?}]",
            self.out_features, self.in_features, self.dtype
        )
    }
}

/// A quantised weight without tile kernels: a tile is widened to f32 each time it is needed.
#[derive(Debug)]
pub(super) struct WidenedMatrix {
    weight: Arc<QTensor>,
    out_features: usize,
    in_features: usize,
}

impl WidenedMatrix {
    /// # Errors
    /// When the rank is not 2.
    pub(super) fn new(weight: Arc<QTensor>) -> Result<Self> {
        let (out_features, in_features) = weight.shape().dims2()?;
        Ok(Self {
            weight,
            out_features,
            in_features,
        })
    }

    /// The weight as it is in the file.
    pub(super) fn weight(&self) -> &QTensor {
        &self.weight
    }

    fn widened_tile(&self, tile: usize) -> Result<Vec<Line>> {
        let columns = tile * TILE_COLUMNS..self.out_features.min((tile + 1) * TILE_COLUMNS);
        let ids: Vec<u32> = columns.map(|column| column as u32).collect();
        let rows = self
            .weight
            .embedding(&Tensor::new(ids.as_slice(), &Device::Cpu)?)?;
        let mut lines = vec![Line::ZERO; lines_per_tile(self.in_features, size_of::<f32>())];
        with_slice::<f32, _>(&rows, |rows| {
            pack(rows, ids.len(), self.in_features, &mut lines);
            Ok(())
        })?;
        Ok(lines)
    }
}

impl TiledWeight for WidenedMatrix {
    fn out_features(&self) -> usize {
        self.out_features
    }

    fn in_features(&self) -> usize {
        self.in_features
    }

    fn bytes(&self) -> usize {
        self.weight.storage_size_in_bytes()
    }
    fn input_form(&self) -> InputForm {
        InputForm::Floats
    }

    fn multiply_tile(
        &self,
        isa: Isa,
        tile: usize,
        input: &Input,
        panel: &Panel,
        sums: &mut Sums,
    ) -> Result<()> {
        let tile = self.widened_tile(tile)?;
        multiply_tile::<f32>(isa, lines::bytes(&tile), panel_of(input, panel), sums);
        Ok(())
    }
}

fn lines_per_tile(k: usize, element_bytes: usize) -> usize {
    (k * TILE_COLUMNS * element_bytes).div_ceil(size_of::<Line>())
}

/// A weight of shape (n, k) into the tiles of `lines`, which are all zero before.
fn pack<E: Element>(weight: &[E], n: usize, k: usize, lines: &mut [Line]) {
    let lines_per_tile = lines_per_tile(k, E::BYTES);
    threads::for_each_chunk(lines, lines_per_tile.max(1), |tile, lines| {
        let tile_bytes = lines::bytes_mut(lines);
        let columns = tile * TILE_COLUMNS..n.min((tile + 1) * TILE_COLUMNS);
        for (column, row) in weight[columns.start * k..columns.end * k]
            .chunks_exact(k)
            .enumerate()
        {
            for (input, value) in row.iter().enumerate() {
                let at = (input * TILE_COLUMNS + column) * E::BYTES;
                value.write(&mut tile_bytes[at..at + E::BYTES]);
            }
        }
    });
}

/// Per panel, the inputs of its rows side by side.
pub(super) fn interleave_rows(x: &[f32], k: usize, max_rows: usize) -> Vec<f32> {
    let mut interleaved = vec![0f32; x.len()];
    for panel in split_rows(x.len() / k, max_rows) {
        let range = panel.first_row * k..(panel.first_row + panel.rows) * k;
        let out = &mut interleaved[range.clone()];
        for (row, x) in x[range].chunks_exact(k).enumerate() {
            for (out, x) in out[row..].iter_mut().step_by(panel.rows).zip(x) {
                *out = *x;
            }
        }
    }
    interleaved
}

/// One tile times one panel: `x` holds the interleaved inputs of as many rows as `sums`.
#[allow(
    unsafe_code,
    reason = "calls kernels compiled for instructions that the processor has"
)]
fn multiply_tile<E: Element>(isa: Isa, tile: &[u8], x: &[f32], sums: &mut Sums) {
    macro_rules! kernels {
        ($module:ident, $($rows:literal)*) => {{
            type Kernel = unsafe fn(&[u8], &[f32], &mut Sums);
            let kernel: Kernel = match sums.len() {
                $($rows => $module::multiply_tile::<E, $rows>,)*
                rows => unreachable!("no panels of {rows} rows"),
            };
            // SAFETY: callers pass `Isa::detected` or one of `Isa::available`, which the processor has; `tile` has sixteen
            // weights for each input of `x`.
            unsafe { kernel(tile, x, sums) }
        }};
    }
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => kernels!(avx512, 1 2 3 4 6 8),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::AvxVnni => kernels!(avx2, 1 2 3 4),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon | Isa::NeonDot => kernels!(neon, 1 2 3 4),
        _ => portable::multiply_tile::<E>(tile, x, sums),
    }
}
