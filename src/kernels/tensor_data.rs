//! Borrowing the numbers of a CPU tensor as a slice.

use candle_core::{Device, Result, Storage, Tensor, WithDType, bail};

/// Whether our own CPU code applies to this tensor.
pub(super) fn is_on_cpu(tensor: &Tensor) -> bool {
    matches!(tensor.device(), Device::Cpu)
}

/// Calls `body` with the elements of a CPU tensor in row-major order. Copies only when the layout is strided.
///
/// # Errors
/// When the tensor is not on the CPU or its dtype is not `T`.
pub(super) fn with_slice<T: WithDType, R>(
    tensor: &Tensor,
    body: impl FnOnce(&[T]) -> Result<R>,
) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        bail!(
            "expected a tensor on the cpu, got one on {:?}",
            tensor.device()
        );
    };
    let start = layout.start_offset();
    body(&storage.as_slice::<T>()?[start..start + layout.shape().elem_count()])
}
