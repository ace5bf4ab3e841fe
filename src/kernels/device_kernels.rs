//! Which kernels run on a CUDA card: ours, or what stock Candle says for them.
//!
//! The stock path is the twin of ours on the card itself, and the way back should one of ours be at fault. It
//! uploads small tensors and reads shapes on the host, so it cannot be captured.

use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Tensor;

/// The kernels of a CUDA card. Other devices have but one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceKernels {
    /// Those under `cuda/`.
    #[default]
    Own,
    /// Stock Candle's.
    Stock,
}

static STOCK: AtomicBool = AtomicBool::new(false);

/// Chooses for the whole process, from the next call on.
pub fn set_device_kernels(kernels: DeviceKernels) {
    STOCK.store(kernels == DeviceKernels::Stock, Ordering::Relaxed);
}

/// What was chosen.
pub fn device_kernels() -> DeviceKernels {
    match STOCK.load(Ordering::Relaxed) {
        true => DeviceKernels::Stock,
        false => DeviceKernels::Own,
    }
}

/// Whether kernels of ours run over this tensor's device.
pub(super) fn are_own(tensor: &Tensor) -> bool {
    cfg!(feature = "cuda") && tensor.device().is_cuda() && device_kernels() == DeviceKernels::Own
}
