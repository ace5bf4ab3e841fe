//! What a launcher says, for whichever of the two runs it: the card, or the emulation in tests.

use candle_core::{DType, Device, Result, Shape, Storage, Tensor, bail};

/// A `.cu` file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Module {
    /// The file's name without `.cu`; also the module's name on the card.
    pub(super) name: &'static str,
    /// What nvcc made of it.
    #[cfg(feature = "cuda")]
    pub(super) ptx: &'static str,
}

macro_rules! modules {
    ($($constant:ident = $name:literal;)*) => {
        $(pub(super) const $constant: Module = Module {
            name: $name,
            #[cfg(feature = "cuda")]
            ptx: include_str!(concat!(env!("OUT_DIR"), "/", $name, ".ptx")),
        };)*
    };
}

// As in `build.rs`.
modules! {
    DECODE = "decode";
    ELEMENTWISE = "elementwise";
    GROUP_NORM = "group_norm";
    NORM = "norm";
    PREFILL = "prefill";
    ROPE = "rope";
    SAMPLING = "sampling";
}

/// Words of 8 bytes that the parameters of a kernel take at most.
pub(super) const MAX_WORDS: usize = 24;

/// The parameters of a kernel as the driver takes them.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Words {
    pub(super) words: [u64; MAX_WORDS],
    /// Bytes that count. The card knows its kernels' sizes; the emulation compares.
    pub(super) bytes: usize,
}

/// A structure of parameters: its twin of the same name is in the `.cu` file.
pub(super) trait Parameters: Copy {
    /// Its bytes.
    fn words(&self) -> Words;
}

/// Declares structures of parameters: first addresses (`u64`), then an even number of 4-byte numbers, so that nothing
/// between them is undefined.
macro_rules! parameters {
    ($($(#[$doc:meta])* struct $name:ident { $($field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug)]
        struct $name { $($field: $type,)* }

        impl $crate::kernels::cuda::launch::Parameters for $name {
            fn words(&self) -> $crate::kernels::cuda::launch::Words {
                const BYTES: usize = size_of::<$name>();
                const _: () = assert!(
                    BYTES == 0 $(+ size_of::<$type>())* && BYTES % 8 == 0
                        && BYTES <= 8 * $crate::kernels::cuda::launch::MAX_WORDS,
                    "no gaps, and not too long"
                );
                let mut bytes = [0u8; 8 * $crate::kernels::cuda::launch::MAX_WORDS];
                let mut at = 0;
                $(
                    let field = self.$field.to_ne_bytes();
                    bytes[at..at + field.len()].copy_from_slice(&field);
                    at += field.len();
                )*
                let mut words = [0u64; $crate::kernels::cuda::launch::MAX_WORDS];
                for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
                    *word = u64::from_ne_bytes(*bytes);
                }
                $crate::kernels::cuda::launch::Words { words, bytes: at }
            }
        }
    )*};
}
pub(super) use parameters;

/// A grid of blocks of threads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    /// Blocks along each axis.
    pub(super) blocks: [usize; 3],
    /// Threads of a block: whole warps.
    pub(super) threads: usize,
}

impl Grid {
    /// The axes as the driver takes them; none where there is nothing to do.
    ///
    /// # Errors
    /// When an axis is longer than a grid may be.
    pub(super) fn axes(&self) -> Result<Option<[u32; 3]>> {
        /// CUDA's, along x and along y and z.
        const MOST: [usize; 3] = [i32::MAX as usize, 65_535, 65_535];
        if self.blocks.contains(&0) {
            return Ok(None);
        }
        if self
            .blocks
            .iter()
            .zip(MOST)
            .any(|(axis, most)| *axis > most)
        {
            bail!("a grid of {:?} blocks is larger than {MOST:?}", self.blocks);
        }
        Ok(Some(self.blocks.map(|axis| axis as u32)))
    }
}

/// Runs a kernel over tensors of `device`. On a card it is queued on the device's stream.
///
/// # Errors
/// When the grid is too large, or the device refuses.
pub(super) fn launch(
    device: &Device,
    module: Module,
    kernel: &str,
    grid: Grid,
    parameters: &impl Parameters,
) -> Result<()> {
    let Some(axes) = grid.axes()? else {
        return Ok(());
    };
    run(
        device,
        module,
        kernel,
        axes,
        grid.threads,
        &parameters.words(),
    )
}

#[cfg_attr(
    not(any(test, feature = "cuda")),
    expect(unused_variables, reason = "nothing to run it")
)]
fn run(
    device: &Device,
    module: Module,
    kernel: &str,
    axes: [u32; 3],
    threads: usize,
    words: &Words,
) -> Result<()> {
    match device {
        #[cfg(test)]
        Device::Cpu => super::emulator::launch(module, kernel, axes, threads, words),
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => super::device::launch(device, module, kernel, axes, threads, words),
        _ => bail!(
            "kernel {kernel} of {} does not run on {device:?}",
            module.name
        ),
    }
}

/// Where the numbers of a tensor begin in its device's memory.
///
/// # Errors
/// When the tensor is not on a card (in tests: nor on the CPU), or of another dtype than f32, f16, bf16, u32.
pub(super) fn address(tensor: &Tensor) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    let offset = (layout.start_offset() * tensor.dtype().size_in_bytes()) as u64;
    start_of(&storage).map(|start| start + offset)
}

/// Where a storage begins.
fn start_of(storage: &Storage) -> Result<u64> {
    match storage {
        #[cfg(test)]
        Storage::Cpu(storage) => super::emulator::address(storage),
        #[cfg(feature = "cuda")]
        Storage::Cuda(storage) => super::device::address(storage),
        _ => bail!("no kernel of ours runs on this device"),
    }
}

/// As [`address`]; 0 for none.
///
/// # Errors
/// As [`address`].
pub(super) fn address_or_null(tensor: Option<&Tensor>) -> Result<u64> {
    tensor.map_or(Ok(0), address)
}

/// A tensor whose numbers are not defined yet: a kernel is about to write all of them.
///
/// # Errors
/// When the memory cannot be had.
pub(super) fn undefined(shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
    let shape = shape.into();
    if shape.elem_count() == 0 {
        return Tensor::zeros(shape, dtype, device);
    }
    match device {
        #[cfg(test)]
        Device::Cpu => super::emulator::undefined(shape, dtype),
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => super::device::undefined(device, shape, dtype),
        _ => bail!("no kernel of ours runs on {device:?}"),
    }
}

/// How the kernels' names end for numbers of this type.
///
/// # Errors
/// When it is none of f32, f16, bf16.
pub(super) fn suffix(dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::F32 => Ok("f32"),
        DType::F16 => Ok("f16"),
        DType::BF16 => Ok("bf16"),
        _ => bail!("the kernels take f32, f16 and bf16, not {dtype:?}"),
    }
}

/// `NumberType` of common.cuh.
///
/// # Errors
/// When it is none of f32, f16, bf16.
pub(super) fn number_type(dtype: DType) -> Result<u32> {
    match dtype {
        DType::F32 => Ok(0),
        DType::F16 => Ok(1),
        DType::BF16 => Ok(2),
        _ => bail!("the kernels take f32, f16 and bf16, not {dtype:?}"),
    }
}

/// Numbers in 16 bytes.
pub(super) fn pack_numbers(dtype: DType) -> usize {
    16 / dtype.size_in_bytes()
}

/// # Errors
/// When the tensor is not contiguous, of another dtype, or of another shape.
pub(super) fn expect(what: &str, tensor: &Tensor, dtype: DType, shape: &[usize]) -> Result<()> {
    if tensor.dtype() != dtype || tensor.dims() != shape || !tensor.is_contiguous() {
        bail!(
            "{what} should be contiguous {dtype:?} {shape:?}, not {:?} {:?} of strides {:?}",
            tensor.dtype(),
            tensor.dims(),
            tensor.stride()
        );
    }
    Ok(())
}

/// A number as a kernel takes it.
///
/// # Errors
/// When it does not fit 32 bits.
pub(super) fn word(number: usize) -> Result<u32> {
    match u32::try_from(number) {
        Ok(number) => Ok(number),
        Err(_) => bail!("{number} does not fit a kernel's 32 bits"),
    }
}
