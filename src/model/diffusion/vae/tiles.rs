//! Cutting a picture that is too large to be decoded at once into overlapping tiles, and blending these.
//!
//! Norms and attention see a tile instead of the whole, so neighbours differ a little where they meet: each
//! counts less towards its edge. Weights along an edge sum to 1 at every pixel.

/// One direction's tiles.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tiles {
    /// Where each tile begins, in latents.
    pub(super) starts: Vec<usize>,
    /// Length of each, in latents.
    pub(super) length: usize,
    overlap: usize,
    total: usize,
}

impl Tiles {
    /// Cuts `total` latents into tiles of at most `length`, neighbours sharing at least `overlap`.
    pub(super) fn new(total: usize, length: usize, overlap: usize) -> Self {
        let length = length.clamp(1, total.max(1));
        let overlap = overlap.min(length - 1);
        let count = match total <= length {
            true => 1,
            false => (total - overlap).div_ceil(length - overlap),
        };
        // Evenly spread, so that no tile is a sliver.
        let starts = (0..count)
            .map(|tile| match count {
                1 => 0,
                count => tile * (total - length) / (count - 1),
            })
            .collect();
        Tiles {
            starts,
            length,
            overlap,
            total,
        }
    }

    /// For each tile, what its positions count for at `scale` positions a latent; they sum to 1 over the tiles.
    pub(super) fn weights(&self, scale: usize) -> Vec<Vec<f32>> {
        let ramp = (self.overlap * scale + 1) as f32;
        let mut sums = vec![0f32; self.total * scale];
        let mut weights: Vec<Vec<f32>> = Vec::with_capacity(self.starts.len());
        for &start in &self.starts {
            let length = self.length * scale;
            let first = start == 0;
            let last = start + self.length == self.total;
            let own: Vec<f32> = (0..length)
                .map(|at| {
                    let rise = if first { 1.0 } else { (at + 1) as f32 / ramp };
                    let fall = if last {
                        1.0
                    } else {
                        (length - at) as f32 / ramp
                    };
                    rise.min(fall).min(1.0)
                })
                .collect();
            for (sum, own) in sums[start * scale..].iter_mut().zip(&own) {
                *sum += own;
            }
            weights.push(own);
        }
        for (own, &start) in weights.iter_mut().zip(&self.starts) {
            for (own, sum) in own.iter_mut().zip(&sums[start * scale..]) {
                *own /= sum;
            }
        }
        weights
    }
}

/// A picture of (height, width, channels) that tiles are added to.
pub(super) struct Canvas {
    pub(super) values: Vec<f32>,
    width: usize,
    channels: usize,
}

/// Where a tile goes, and what its lines and columns count for.
#[derive(Clone, Copy)]
pub(super) struct Placement<'a> {
    pub(super) top: usize,
    pub(super) left: usize,
    pub(super) line_weights: &'a [f32],
    pub(super) column_weights: &'a [f32],
}

impl Canvas {
    pub(super) fn new(height: usize, width: usize, channels: usize) -> Self {
        Canvas {
            values: vec![0.0; height * width * channels],
            width,
            channels,
        }
    }

    /// tile: (lines, columns, channels), as many as there are weights.
    pub(super) fn add(&mut self, tile: &[f32], placement: Placement<'_>) {
        let line_length = placement.column_weights.len() * self.channels;
        let lines = tile.chunks_exact(line_length);
        for (index, (line, down)) in lines.zip(placement.line_weights).enumerate() {
            let start = ((placement.top + index) * self.width + placement.left) * self.channels;
            let canvas = &mut self.values[start..start + line_length];
            let pixels = canvas
                .chunks_exact_mut(self.channels)
                .zip(line.chunks_exact(self.channels));
            for ((canvas, pixel), across) in pixels.zip(placement.column_weights) {
                for (canvas, value) in canvas.iter_mut().zip(pixel) {
                    *canvas += down * across * value;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_everything_and_weights_sum_to_one() {
        for (total, length, overlap) in [
            (64, 64, 16),
            (65, 64, 16),
            (128, 64, 16),
            (7, 3, 1),
            (100, 33, 8),
            (5, 1, 0),
            (5, 9, 2),
            (9, 4, 3),
        ] {
            let tiles = Tiles::new(total, length, overlap);
            assert!(tiles.length <= length);
            assert_eq!(tiles.starts[0], 0);
            assert_eq!(tiles.starts.last().map(|s| s + tiles.length), Some(total));
            for pair in tiles.starts.windows(2) {
                assert!(pair[1] > pair[0] && pair[0] + tiles.length >= pair[1] + overlap);
            }
            for scale in [1, 8] {
                let mut sums = vec![0f32; total * scale];
                for (start, weights) in tiles.starts.iter().zip(tiles.weights(scale)) {
                    assert!(weights.iter().all(|weight| *weight > 0.0));
                    for (sum, weight) in sums[start * scale..].iter_mut().zip(weights) {
                        *sum += weight;
                    }
                }
                assert!(
                    sums.iter().all(|sum| (sum - 1.0).abs() < 1e-6),
                    "{total} {length}"
                );
            }
        }
    }

    #[test]
    fn a_constant_picture_stays_constant() {
        let (lines, columns) = (Tiles::new(10, 4, 2), Tiles::new(7, 4, 1));
        let mut canvas = Canvas::new(20, 14, 2);
        let (line_weights, column_weights) = (lines.weights(2), columns.weights(2));
        for (top, line_weights) in lines.starts.iter().zip(&line_weights) {
            for (left, column_weights) in columns.starts.iter().zip(&column_weights) {
                let placement = Placement {
                    top: 2 * top,
                    left: 2 * left,
                    line_weights,
                    column_weights,
                };
                canvas.add(&[0.5; 8 * 8 * 2], placement);
            }
        }
        assert!(canvas.values.iter().all(|value| (value - 0.5).abs() < 1e-6));
    }
}
