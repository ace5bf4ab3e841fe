//! Cutting a product into tasks for the threads.

use std::ops::Range;

use super::panel::COLUMNS;
use crate::kernels::threads;

/// Tasks per thread, where there is so much work.
const TASKS_PER_THREAD: usize = 8;

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
