//! The walk that all matrix products share: tiles of output columns, spread over threads, against panels of rows.

use super::panel::{Panel, split_rows};
use super::shared_output::SharedOutput;
use super::threads;

/// Output columns (rows of the stored weight) in a tile.
pub(super) const TILE_COLUMNS: usize = 16;
/// The most rows that any kernel takes at once.
pub(super) const MAX_PANEL_ROWS: usize = 8;

/// The sums of a tile for the rows of a panel.
pub(super) type Sums = [[f32; TILE_COLUMNS]];

/// A product of (rows, k) with a packed (n, k).
pub(super) struct Product<'a> {
    /// Rows of the input.
    pub rows: usize,
    /// Columns of the input.
    pub k: usize,
    /// Columns of the output.
    pub n: usize,
    /// The most rows that the kernel takes at once, 4 or 8.
    pub max_panel_rows: usize,
    /// Bytes of one row of the input as the kernel reads it.
    pub row_bytes: usize,
    /// Added to each row of the output, (n,).
    pub bias: Option<&'a [f32]>,
}

impl Product<'_> {
    /// Calls `kernel(tile, panel, sums)` for every pair and stores the sums in `output` (rows, n).
    pub(super) fn run(&self, output: &mut [f32], kernel: impl Fn(usize, &Panel, &mut Sums) + Sync) {
        assert_eq!(
            output.len(),
            self.rows * self.n,
            "the output has whole rows"
        );
        let output = SharedOutput::new(output);
        let panels = split_rows(self.rows, self.max_panel_rows);
        let item_operations = self.rows * self.k * TILE_COLUMNS;
        threads::for_each_range(self.n.div_ceil(TILE_COLUMNS), item_operations, |tiles| {
            for panels in panels.chunks(self.panels_per_pass()) {
                for tile in tiles.clone() {
                    for panel in panels {
                        let mut sums = [[0f32; TILE_COLUMNS]; MAX_PANEL_ROWS];
                        kernel(tile, panel, &mut sums[..panel.rows]);
                        self.store(tile, panel, &sums, &output);
                    }
                }
            }
        });
    }

    /// So many panels that their rows stay in the second-level cache while tiles pass by.
    fn panels_per_pass(&self) -> usize {
        const PASS_BYTES: usize = 384 * 1024;
        (PASS_BYTES / (self.max_panel_rows * self.row_bytes).max(1)).max(1)
    }

    /// Adds the bias and writes the columns that exist.
    fn store(&self, tile: usize, panel: &Panel, sums: &Sums, output: &SharedOutput<'_>) {
        let first = tile * TILE_COLUMNS;
        let columns = TILE_COLUMNS.min(self.n - first);
        for (row, sums) in sums.iter().take(panel.rows).enumerate() {
            let mut sums = *sums;
            if let Some(bias) = self.bias {
                for (sum, bias) in sums.iter_mut().zip(&bias[first..first + columns]) {
                    *sum += bias;
                }
            }
            output.write((panel.first_row + row) * self.n + first, &sums[..columns]);
        }
    }
}
