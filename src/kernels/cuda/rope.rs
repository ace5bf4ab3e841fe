//! Launches of `rope.cu`.

use candle_core::{DType, Result, Tensor, bail};

use super::launch::{
    Grid, ROPE, address, address_or_null, expect, launch, parameters, suffix, undefined, word,
};
use crate::kernels::attention::{BLOCK_TOKENS, DeviceLayout, HeadNorms, PagedKv};

parameters! {
    struct RotateParameters {
        q: u64,
        k: u64,
        v: u64,
        query_norm: u64,
        key_norm: u64,
        cos: u64,
        sin: u64,
        rotated: u64,
        k_pages: u64,
        v_pages: u64,
        slots: u64,
        positions: u64,
        tables: u64,
        heads: u32,
        kv_heads: u32,
        head_dim: u32,
        half: u32,
        q_stride: u32,
        k_stride: u32,
        v_stride: u32,
        table_stride: u32,
        max_positions: u32,
        page_rows: u32,
        eps: f32,
        padding: u32,
    }
}

/// As the kernel's ROPE_WARPS: heads of a block.
const WARPS: usize = 4;

impl RotateParameters {
    const NOTHING: Self = Self {
        q: 0,
        k: 0,
        v: 0,
        query_norm: 0,
        key_norm: 0,
        cos: 0,
        sin: 0,
        rotated: 0,
        k_pages: 0,
        v_pages: 0,
        slots: 0,
        positions: 0,
        tables: 0,
        heads: 0,
        kv_heads: 0,
        head_dim: 0,
        half: 0,
        q_stride: 0,
        k_stride: 0,
        v_stride: 0,
        table_stride: 0,
        max_positions: 0,
        page_rows: 0,
        eps: 0.0,
        padding: 0,
    };

    /// Rotate by these tables of (max_positions, half) f32.
    fn with_tables(mut self, cos: &Tensor, sin: &Tensor) -> Result<Self> {
        let (max_positions, half) = cos.dims2()?;
        expect("the cosines", cos, DType::F32, &[max_positions, half])?;
        expect("the sines", sin, DType::F32, &[max_positions, half])?;
        if 2 * half > self.head_dim as usize {
            bail!(
                "tables of {half} columns do not fit heads of {}",
                self.head_dim
            );
        }
        self.cos = address(cos)?;
        self.sin = address(sin)?;
        self.half = word(half)?;
        self.max_positions = word(max_positions)?;
        Ok(self)
    }

    /// Write these keys and values into their pages.
    fn with_pages(
        mut self,
        k: &Heads,
        v: &Heads,
        kv: &PagedKv,
        layout: &DeviceLayout,
    ) -> Result<Self> {
        let (_, table_stride) = layout.tables().dims2()?;
        self.k = address(&k.x)?;
        self.v = address(&v.x)?;
        self.k_stride = word(k.stride)?;
        self.v_stride = word(v.stride)?;
        self.k_pages = address(&kv.k)?;
        self.v_pages = address(&kv.v)?;
        self.slots = address(layout.slots())?;
        self.tables = address(layout.tables())?;
        self.table_stride = word(table_stride)?;
        self.kv_heads = word(kv.kv_heads())?;
        self.page_rows = word(kv.blocks() * BLOCK_TOKENS)?;
        Ok(self)
    }

    fn launch(&self, tokens: usize, x: &Tensor, kv_dtype: DType) -> Result<()> {
        let heads = (self.heads + 2 * self.kv_heads) as usize;
        let grid = Grid {
            blocks: [tokens, heads.div_ceil(WARPS), 1],
            threads: 32 * WARPS,
        };
        let kernel = format!(
            "rotate_and_store_{}_{}",
            suffix(x.dtype())?,
            suffix(kv_dtype)?
        );
        launch(x.device(), ROPE, &kernel, grid, self)
    }
}

/// (T, heads, head_dim) whose tokens may lie apart, as parts of one product do.
struct Heads {
    x: Tensor,
    stride: usize,
}

impl Heads {
    fn new(x: &Tensor) -> Result<Self> {
        let (_, heads, head_dim) = x.dims3()?;
        let stride = x.stride();
        if stride[2] == 1 && stride[1] == head_dim && stride[0] >= heads * head_dim {
            return Ok(Self {
                x: x.clone(),
                stride: stride[0],
            });
        }
        Ok(Self {
            x: x.contiguous()?,
            stride: heads * head_dim,
        })
    }
}

/// See [`crate::kernels::rope::rope`]; positions: (T,) u32 on x's device.
pub(in crate::kernels) fn rope(
    x: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
    positions: &Tensor,
) -> Result<Tensor> {
    let (tokens, heads, head_dim) = x.dims3()?;
    expect("the positions", positions, DType::U32, &[tokens])?;
    let x = Heads::new(x)?;
    let rotated = undefined((tokens, heads, head_dim), x.x.dtype(), x.x.device())?;
    let parameters = RotateParameters {
        q: address(&x.x)?,
        q_stride: word(x.stride)?,
        rotated: address(&rotated)?,
        positions: address(positions)?,
        heads: word(heads)?,
        head_dim: word(head_dim)?,
        ..RotateParameters::NOTHING
    };
    parameters
        .with_tables(cos, sin)?
        .launch(tokens, &x.x, DType::F32)?;
    Ok(rotated)
}

/// See [`crate::kernels::attention::write_kv`].
pub(in crate::kernels) fn write_kv(
    kv: &PagedKv,
    k: &Tensor,
    v: &Tensor,
    layout: &DeviceLayout,
) -> Result<()> {
    let (tokens, _, head_dim) = k.dims3()?;
    let (k, v) = (Heads::new(k)?, Heads::new(v)?);
    let parameters = RotateParameters {
        positions: address(layout.positions())?,
        head_dim: word(head_dim)?,
        ..RotateParameters::NOTHING
    };
    parameters
        .with_pages(&k, &v, kv, layout)?
        .launch(tokens, &k.x, kv.k.dtype())
}

/// See [`crate::kernels::attention::rotate_and_store`].
#[expect(
    clippy::too_many_arguments,
    reason = "all that stands between the products and attention"
)]
pub(in crate::kernels) fn rotate_and_store(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    norms: &HeadNorms<'_>,
    cos: &Tensor,
    sin: &Tensor,
    kv: &PagedKv,
    layout: &DeviceLayout,
) -> Result<Tensor> {
    let (tokens, heads, head_dim) = q.dims3()?;
    if q.dtype() != k.dtype() || q.dtype() != v.dtype() {
        bail!(
            "q, k and v are {:?}, {:?} and {:?}: all should be one",
            q.dtype(),
            k.dtype(),
            v.dtype()
        );
    }
    for norm in [norms.query, norms.key].into_iter().flatten() {
        expect("a head's norm weight", norm, DType::F32, &[head_dim])?;
    }
    let (q, k, v) = (Heads::new(q)?, Heads::new(k)?, Heads::new(v)?);
    let rotated = undefined((tokens, heads, head_dim), q.x.dtype(), q.x.device())?;
    let parameters = RotateParameters {
        q: address(&q.x)?,
        q_stride: word(q.stride)?,
        query_norm: address_or_null(norms.query)?,
        key_norm: address_or_null(norms.key)?,
        rotated: address(&rotated)?,
        positions: address(layout.positions())?,
        heads: word(heads)?,
        head_dim: word(head_dim)?,
        eps: norms.eps,
        ..RotateParameters::NOTHING
    };
    parameters
        .with_tables(cos, sin)?
        .with_pages(&k, &v, kv, layout)?
        .launch(tokens, &q.x, kv.k.dtype())?;
    Ok(rotated)
}
