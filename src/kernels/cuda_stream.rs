//! A card with one stream. Only compiled with the feature `cuda`.
#![allow(
    unsafe_code,
    reason = "what the driver is told cannot be checked by the compiler"
)]

use candle_core::cuda_backend::cudarc::driver::sys;
use candle_core::{CudaDevice, Device, Result, bail};

/// Opens card `index` with a stream of its own, on which everything is done in order.
///
/// Candle's usual device runs on the stream of whichever thread calls, so that work of two threads has no order at
/// all; and a stream of its own makes its driver layer record events for every tensor and wait for them, which a
/// captured graph must not contain. One stream needs none: what was asked for first is done first.
///
/// # Errors
/// The card cannot be opened.
pub fn open(index: usize) -> Result<Device> {
    let device = Device::new_cuda_with_stream(index)?;
    let cuda = device.as_cuda_device()?;
    // SAFETY: events order streams among each other, and every tensor of this device lives on its one stream. The
    // device goes to one engine's thread and is never asked for a second stream.
    unsafe { cuda.disable_event_tracking() };
    Ok(device)
}

/// From now on memory that a pass gives back is kept for the next, and not given back to the driver each time that the
/// host waits for the card: mapping it anew takes longer than a small pass. To be called when the model is loaded.
///
/// # Errors
/// The driver refuses.
pub fn keep_freed_memory(device: &CudaDevice) -> Result<()> {
    let stream = device.cuda_stream();
    let context = stream.context();
    if !context.has_async_alloc() {
        return Ok(());
    }
    stream.synchronize().map_err(candle_core::Error::wrap)?;
    let mut pool: sys::CUmemoryPool = std::ptr::null_mut();
    let mut threshold = u64::MAX;
    // SAFETY: the context is bound to this thread by `synchronize`; both pointers are to locals that outlive the
    // calls; the attribute's value is a 64-bit number, as the driver's manual says.
    let status = unsafe {
        match sys::cuDeviceGetDefaultMemPool(&raw mut pool, context.cu_device()) {
            sys::CUresult::CUDA_SUCCESS => sys::cuMemPoolSetAttribute(
                pool,
                sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
                (&raw mut threshold).cast(),
            ),
            failed => failed,
        }
    };
    match status {
        sys::CUresult::CUDA_SUCCESS => Ok(()),
        failed => bail!("the card's memory pool cannot be told to keep what it has: {failed:?}"),
    }
}
