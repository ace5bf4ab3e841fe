//! What the tile kernels need to know about a quantised format.
//!
//! Every format is brought to one form: blocks of 32 weights along a row, each weight
//! `scale * (q - ZERO) + min` with an unsigned `q`. The K formats take eight blocks to a group, whose f16 scale is
//! refined per block (or per half block) by a small integer.

use half::f16;

use crate::kernels::tiled::TILE_COLUMNS;

/// Weights in a block.
pub(super) const BLOCK: usize = 32;
/// Blocks in the largest group.
pub(super) const MAX_GROUP_BLOCKS: usize = 8;

/// One group as stored in a file, in one form for all formats.
pub(super) struct Group {
    /// Unsigned weights in order along the row; the first `GROUP_BLOCKS * BLOCK` count.
    pub q: [u8; BLOCK * MAX_GROUP_BLOCKS],
    /// The scale of the group.
    pub scale: f16,
    /// The additive part of the group (K formats: its factor, with the sign turned).
    pub min: f16,
    /// K formats: the integer factor on `scale`, per block or per half block.
    pub scale_factors: [i8; 2 * MAX_GROUP_BLOCKS],
    /// K formats with a minimum: the integer factor on `min` per block.
    pub min_factors: [i8; MAX_GROUP_BLOCKS],
}

impl Group {
    fn new(scale: f16, min: f16) -> Self {
        Self {
            q: [0; 256],
            scale,
            min,
            scale_factors: [0; 16],
            min_factors: [0; 8],
        }
    }
}

/// A quantised format and how a tile of it is laid out; see [`super::tile`].
pub(super) trait Format: Send + Sync + 'static {
    /// Bits of `q` in the low plane, 4 or 8.
    const LOW_BITS: usize;
    /// Bits of `q` above the low plane, 0 to 2.
    const HIGH_BITS: usize;
    /// Subtracted from `q`.
    const ZERO: i32;
    /// Whether there is an additive part.
    const HAS_MIN: bool;
    /// Blocks in a group, 1 or 8.
    const GROUP_BLOCKS: usize;
    /// Scales in a block: 1, or 2 when each half of a block has its own.
    const HALVES: usize;
    /// Bytes of a group in a file.
    const FILE_BYTES: usize;

    /// Bytes of a tile's `q` per block.
    const QUANT_BYTES: usize = TILE_COLUMNS * BLOCK * (Self::LOW_BITS + Self::HIGH_BITS) / 8;
    /// Bytes of a tile's integer factors per block.
    const FACTOR_BYTES: usize = if Self::GROUP_BLOCKS == 1 {
        0
    } else {
        TILE_COLUMNS * (Self::HALVES + Self::HAS_MIN as usize)
    };
    /// Bytes of a tile's scales, minima and factors per group.
    const SCALE_BYTES: usize =
        2 * TILE_COLUMNS * (1 + Self::HAS_MIN as usize) + Self::GROUP_BLOCKS * Self::FACTOR_BYTES;

    /// Bytes of a tile per group.
    const GROUP_BYTES: usize = Self::GROUP_BLOCKS * Self::QUANT_BYTES + Self::SCALE_BYTES;

    /// Reads one group of a file: [`Self::FILE_BYTES`] bytes.
    fn parse(bytes: &[u8]) -> Group;
}

fn f16_at(bytes: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Sixteen bytes of nibbles: the low ones are weights 0..16, the high ones 16..32.
fn split_nibbles(bytes: &[u8], q: &mut [u8]) {
    for (i, byte) in bytes.iter().enumerate() {
        q[i] = byte & 0x0f;
        q[i + 16] = byte >> 4;
    }
}

/// Adds bit 4 of weight `i` from bit `i` of four bytes.
fn add_fifth_bits(bytes: &[u8], q: &mut [u8]) {
    let bits = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    for (i, q) in q.iter_mut().take(BLOCK).enumerate() {
        *q |= ((bits >> i) as u8 & 1) << 4;
    }
}

/// 4 bits, one scale per block.
pub(super) struct Q4_0;

impl Format for Q4_0 {
    const LOW_BITS: usize = 4;
    const HIGH_BITS: usize = 0;
    const ZERO: i32 = 8;
    const HAS_MIN: bool = false;
    const GROUP_BLOCKS: usize = 1;
    const HALVES: usize = 1;
    const FILE_BYTES: usize = 18;

    fn parse(bytes: &[u8]) -> Group {
        let mut group = Group::new(f16_at(bytes, 0), f16::ZERO);
        split_nibbles(&bytes[2..18], &mut group.q);
        group
    }
}

/// 4 bits, scale and minimum per block.
pub(super) struct Q4_1;

impl Format for Q4_1 {
    const LOW_BITS: usize = 4;
    const HIGH_BITS: usize = 0;
    const ZERO: i32 = 0;
    const HAS_MIN: bool = true;
    const GROUP_BLOCKS: usize = 1;
    const HALVES: usize = 1;
    const FILE_BYTES: usize = 20;

    fn parse(bytes: &[u8]) -> Group {
        let mut group = Group::new(f16_at(bytes, 0), f16_at(bytes, 2));
        split_nibbles(&bytes[4..20], &mut group.q);
        group
    }
}

/// 5 bits, one scale per block.
pub(super) struct Q5_0;

impl Format for Q5_0 {
    const LOW_BITS: usize = 4;
    const HIGH_BITS: usize = 1;
    const ZERO: i32 = 16;
    const HAS_MIN: bool = false;
    const GROUP_BLOCKS: usize = 1;
    const HALVES: usize = 1;
    const FILE_BYTES: usize = 22;

    fn parse(bytes: &[u8]) -> Group {
        let mut group = Group::new(f16_at(bytes, 0), f16::ZERO);
        split_nibbles(&bytes[6..22], &mut group.q);
        add_fifth_bits(&bytes[2..6], &mut group.q);
        group
    }
}

/// 5 bits, scale and minimum per block.
pub(super) struct Q5_1;

impl Format for Q5_1 {
    const LOW_BITS: usize = 4;
    const HIGH_BITS: usize = 1;
    const ZERO: i32 = 0;
    const HAS_MIN: bool = true;
    const GROUP_BLOCKS: usize = 1;
    const HALVES: usize = 1;
    const FILE_BYTES: usize = 24;

    fn parse(bytes: &[u8]) -> Group {
        let mut group = Group::new(f16_at(bytes, 0), f16_at(bytes, 2));
        split_nibbles(&bytes[8..24], &mut group.q);
        add_fifth_bits(&bytes[4..8], &mut group.q);
        group
    }
}

/// 8 bits, one scale per block.
pub(super) struct Q8_0;

impl Format for Q8_0 {
    const LOW_BITS: usize = 8;
    const HIGH_BITS: usize = 0;
    const ZERO: i32 = 128;
    const HAS_MIN: bool = false;
    const GROUP_BLOCKS: usize = 1;
    const HALVES: usize = 1;
    const FILE_BYTES: usize = 34;

    fn parse(bytes: &[u8]) -> Group {
        let mut group = Group::new(f16_at(bytes, 0), f16::ZERO);
        for (q, byte) in group.q.iter_mut().zip(&bytes[2..34]) {
            *q = byte ^ 0x80;
        }
        group
    }
}

/// The eight pairs of 6-bit factors of Q4_K and Q5_K, packed in twelve bytes.
fn unpack_factors(packed: &[u8], group: &mut Group) {
    for i in 0..4 {
        group.scale_factors[i] = (packed[i] & 63) as i8;
        group.min_factors[i] = (packed[i + 4] & 63) as i8;
        group.scale_factors[i + 4] = ((packed[i + 8] & 15) | (packed[i] >> 6) << 4) as i8;
        group.min_factors[i + 4] = ((packed[i + 8] >> 4) | (packed[i + 4] >> 6) << 4) as i8;
    }
}

/// 128 bytes of nibbles: 32 bytes hold two blocks, the first in the low nibbles.
fn split_block_pairs(bytes: &[u8], q: &mut [u8]) {
    for (bytes, q) in bytes.chunks_exact(32).zip(q.chunks_exact_mut(64)) {
        for (i, byte) in bytes.iter().enumerate() {
            q[i] = byte & 0x0f;
            q[i + 32] = byte >> 4;
        }
    }
}

/// 4 bits, groups of 256, a scale and a minimum refined per block.
pub(super) struct Q4K;

impl Format for Q4K {
    const LOW_BITS: usize = 4;
    const HIGH_BITS: usize = 0;
    const ZERO: i32 = 0;
    const HAS_MIN: bool = true;
    const GROUP_BLOCKS: usize = 8;
    const HALVES: usize = 1;
    const FILE_BYTES: usize = 144;

    fn parse(bytes: &[u8]) -> Group {
        let mut group = Group::new(f16_at(bytes, 0), -f16_at(bytes, 2));
        unpack_factors(&bytes[4..16], &mut group);
        split_block_pairs(&bytes[16..144], &mut group.q);
        group
    }
}

/// 5 bits, groups of 256, a scale and a minimum refined per block.
pub(super) struct Q5K;

impl Format for Q5K {
    const LOW_BITS: usize = 4;
    const HIGH_BITS: usize = 1;
    const ZERO: i32 = 0;
    const HAS_MIN: bool = true;
    const GROUP_BLOCKS: usize = 8;
    const HALVES: usize = 1;
    const FILE_BYTES: usize = 176;

    fn parse(bytes: &[u8]) -> Group {
        let mut group = Group::new(f16_at(bytes, 0), -f16_at(bytes, 2));
        unpack_factors(&bytes[4..16], &mut group);
        split_block_pairs(&bytes[48..176], &mut group.q);
        for (block, q) in group.q.chunks_exact_mut(BLOCK).enumerate() {
            for (q, high) in q.iter_mut().zip(&bytes[16..48]) {
                *q |= (high >> block & 1) << 4;
            }
        }
        group
    }
}

/// 6 bits, groups of 256, a scale refined per half block.
pub(super) struct Q6K;

impl Format for Q6K {
    const LOW_BITS: usize = 4;
    const HIGH_BITS: usize = 2;
    const ZERO: i32 = 32;
    const HAS_MIN: bool = false;
    const GROUP_BLOCKS: usize = 8;
    const HALVES: usize = 2;
    const FILE_BYTES: usize = 210;

    fn parse(bytes: &[u8]) -> Group {
        let (low, high) = (&bytes[..128], &bytes[128..192]);
        let mut group = Group::new(f16_at(bytes, 208), f16::ZERO);
        for (factor, byte) in group.scale_factors.iter_mut().zip(&bytes[192..208]) {
            *factor = *byte as i8;
        }
        // Each half of 128 weights: 64 bytes of nibbles (two blocks side by side), 32 bytes of bit pairs.
        for (half, q) in group.q.chunks_exact_mut(128).enumerate() {
            let (low, high) = (&low[64 * half..], &high[32 * half..]);
            for i in 0..32 {
                q[i] = (low[i] & 15) | (high[i] & 3) << 4;
                q[i + 32] = (low[i + 32] & 15) | (high[i] >> 2 & 3) << 4;
                q[i + 64] = (low[i] >> 4) | (high[i] >> 4 & 3) << 4;
                q[i + 96] = (low[i + 32] >> 4) | (high[i] >> 6) << 4;
            }
        }
        group
    }
}
