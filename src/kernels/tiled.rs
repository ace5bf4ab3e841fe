//! The walk that all matrix products share: tiles of output columns, spread over threads, against panels of rows.
#![allow(unsafe_code, reason = "outputs are not zeroed before they are filled")]

use std::ops::Range;
use std::sync::Mutex;

use candle_core::Result;

use super::dense::interleave_rows;
use super::isa::Isa;
use super::panel::{Panel, split_rows};
use super::quant::{ActivationBlock, quantize_rows};
use super::shared_output::{SharedOutput, filled};
use super::simd::prefetch;
use super::threads;

/// Output columns (rows of the stored weight) in a tile.
pub(super) const TILE_COLUMNS: usize = 16;
/// The most rows that any kernel takes at once.
pub(super) const MAX_PANEL_ROWS: usize = 8;

/// The sums of a tile for the rows of a panel.
pub(super) type Sums = [[f32; TILE_COLUMNS]];

/// How a weight's kernels read their input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InputForm {
    /// In blocks of 8-bit numbers; see [`ActivationBlock`] for what the zero point and the halves mean.
    Blocks { zero: i32, halves: usize },
    /// As it comes, the rows of a panel side by side.
    Floats,
}

/// Rows on their way into kernels, in panels.
pub(super) struct Input {
    /// So many numbers in a row.
    pub k: usize,
    /// In the form [`InputForm::Blocks`].
    pub blocks: Vec<ActivationBlock>,
    /// In the form [`InputForm::Floats`].
    pub floats: Vec<f32>,
}

/// A weight of shape (n, k) that can be read tile by tile.
pub(super) trait TiledWeight: Sync {
    /// n
    fn out_features(&self) -> usize;
    /// k
    fn in_features(&self) -> usize;
    /// Bytes of the weight as it is kept, padding included.
    fn bytes(&self) -> usize;
    /// How its kernels read their input.
    fn input_form(&self) -> InputForm;
    /// The sums of one tile for the rows of a panel. `input` is in its own form.
    ///
    /// # Errors
    /// When the tile cannot be read.
    fn multiply_tile(
        &self,
        isa: Isa,
        tile: usize,
        input: &Input,
        panel: &Panel,
        sums: &mut Sums,
    ) -> Result<()>;
}

/// One of several products with the same input.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    /// (n, k)
    pub weight: &'a dyn TiledWeight,
    /// Added to each row, (n,).
    pub bias: Option<&'a [f32]>,
    /// Added at last, (rows, n).
    pub residual: Option<&'a [f32]>,
}

/// x: (rows, k) -> a (rows, n) for each product. The input is brought into each form once, and all tiles are one
/// parallel loop.
///
/// # Errors
/// When a tile cannot be read.
pub(super) fn multiply(
    isa: Isa,
    x: &[f32],
    k: usize,
    products: &[Product<'_>],
) -> Result<Vec<Vec<f32>>> {
    let rows = x.len() / k;
    assert_eq!(x.len(), rows * k, "whole rows");
    let max_rows = max_panel_rows(isa);
    let mut inputs: Vec<(InputForm, Input)> = Vec::new();
    for product in products {
        // What the kernels' reads rely on.
        assert_eq!(
            product.weight.in_features(),
            k,
            "rows as wide as the weight"
        );
        let form = product.weight.input_form();
        if inputs.iter().all(|(other, _)| *other != form) {
            inputs.push((form, prepare(x, k, max_rows, form)));
        }
    }
    let walks: Vec<Walk<'_>> = products
        .iter()
        .map(|product| {
            let form = product.weight.input_form();
            let input = inputs.iter().find(|(other, _)| *other == form);
            Walk {
                isa,
                rows,
                product: *product,
                input: &input.expect("prepared above").1,
            }
        })
        .collect();
    let lens: Vec<usize> = walks.iter().map(|walk| rows * walk.n()).collect();
    let panels = split_rows(rows, max_rows);
    let failure = Mutex::new(None);
    // SAFETY: every tile is some range's, every panel is stored for every tile, also when the tile cannot be read, and
    // panels and tiles cover all rows and columns.
    let outputs = unsafe {
        filled(&lens, |outputs| {
            let tiles: usize = walks.iter().map(Walk::tiles).sum();
            threads::for_each_range(tiles, rows * k * TILE_COLUMNS, |range| {
                let mut first = 0;
                for (walk, output) in walks.iter().zip(outputs) {
                    let tiles = first..first + walk.tiles();
                    first = tiles.end;
                    let part = range.start.max(tiles.start)..range.end.min(tiles.end);
                    if part.is_empty() {
                        continue;
                    }
                    let part = part.start - tiles.start..part.end - tiles.start;
                    if let Err(error) = walk.run(part, &panels, max_rows, output) {
                        *failure
                            .lock()
                            .expect("nothing panics while it holds this lock") = Some(error);
                    }
                }
            });
        })
    };
    match failure
        .into_inner()
        .expect("nothing panics while it holds this lock")
    {
        Some(error) => Err(error),
        None => Ok(outputs),
    }
}

/// The most rows that fit the registers.
fn max_panel_rows(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 => MAX_PANEL_ROWS,
        _ => MAX_PANEL_ROWS / 2,
    }
}

fn prepare(x: &[f32], k: usize, max_rows: usize, form: InputForm) -> Input {
    let (mut blocks, mut floats) = (Vec::new(), Vec::new());
    match form {
        InputForm::Blocks { zero, halves } => blocks = quantize_rows(x, k, max_rows, zero, halves),
        InputForm::Floats => floats = interleave_rows(x, k, max_rows),
    }
    Input { k, blocks, floats }
}

/// One product's part of the loop.
struct Walk<'a> {
    isa: Isa,
    rows: usize,
    product: Product<'a>,
    input: &'a Input,
}

impl Walk<'_> {
    fn n(&self) -> usize {
        self.product.weight.out_features()
    }

    fn tiles(&self) -> usize {
        self.n().div_ceil(TILE_COLUMNS)
    }

    /// Some tiles against all panels. Columns that cannot be read get some number, beside the error.
    fn run(
        &self,
        tiles: Range<usize>,
        panels: &[Panel],
        max_rows: usize,
        output: &SharedOutput<'_>,
    ) -> Result<()> {
        let mut outcome = Ok(());
        let mut sums = [[0f32; TILE_COLUMNS]; MAX_PANEL_ROWS];
        for panels in panels.chunks(self.panels_per_pass(max_rows)) {
            for tile in tiles.clone() {
                for panel in panels {
                    let sums = &mut sums[..panel.rows];
                    let weight = self.product.weight;
                    self.fetch(tile, panel, output);
                    if let Err(error) =
                        weight.multiply_tile(self.isa, tile, self.input, panel, sums)
                    {
                        outcome = Err(error);
                    }
                    self.store(tile, panel, sums, output);
                }
            }
        }
        outcome
    }

    /// So many panels that their rows stay in the second-level cache while tiles pass by.
    fn panels_per_pass(&self, max_rows: usize) -> usize {
        const PASS_BYTES: usize = 384 * 1024;
        let bytes = size_of_val(&self.input.blocks[..]) + size_of_val(&self.input.floats[..]);
        (PASS_BYTES / (max_rows * bytes / self.rows.max(1)).max(1)).max(1)
    }

    /// Fetches what [`Self::store`] will touch: a line here and there, in rows that lie far apart.
    fn fetch(&self, tile: usize, panel: &Panel, output: &SharedOutput<'_>) {
        for row in panel.first_row..panel.first_row + panel.rows {
            let at = row * self.n() + tile * TILE_COLUMNS;
            output.prefetch(at);
            if let Some(residual) = self.product.residual {
                prefetch(&raw const residual[at]);
            }
        }
    }

    /// Adds bias and residual, and writes the columns that exist.
    fn store(&self, tile: usize, panel: &Panel, sums: &mut Sums, output: &SharedOutput<'_>) {
        let (n, first) = (self.n(), tile * TILE_COLUMNS);
        let columns = TILE_COLUMNS.min(n - first);
        let place = |row: usize| (panel.first_row + row) * n + first;
        if let Some(bias) = self.product.bias {
            for sums in sums.iter_mut() {
                add(sums, &bias[first..first + columns]);
            }
        }
        if let Some(residual) = self.product.residual {
            for (row, sums) in sums.iter_mut().enumerate() {
                add(sums, &residual[place(row)..place(row) + columns]);
            }
        }
        if columns == TILE_COLUMNS {
            for (row, sums) in sums.iter().enumerate() {
                output.write_array(place(row), sums);
            }
        } else {
            for (row, sums) in sums.iter().enumerate() {
                output.write(place(row), &sums[..columns]);
            }
        }
    }
}

fn add(sums: &mut [f32], addend: &[f32]) {
    for (sum, addend) in sums.iter_mut().zip(addend) {
        *sum += addend;
    }
}
