//! The card's side of a launch.
//!
//! Pointers are taken from tensors before a launch and the guards that order streams are let go at once: there is one
//! stream for all of a device's work, and one thread that queues on it.
#![allow(unsafe_code, reason = "kernels are launched with pointers")]

use candle_core::cuda_backend::cudarc::driver::{
    DevicePtr, DeviceRepr, LaunchConfig, PushKernelArg,
};
use candle_core::cuda_backend::{CudaDType, CudaStorage, CudaStorageSlice, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, DType, Result, Shape, Storage, Tensor, bail};
use half::{bf16, f16};

use super::launch::{Module, Words};

// SAFETY: plain numbers. A kernel takes as many of the first bytes as its structure has.
unsafe impl DeviceRepr for Words {}

/// See [`super::launch::launch`].
pub(super) fn launch(
    device: &CudaDevice,
    module: Module,
    kernel: &str,
    axes: [u32; 3],
    threads: usize,
    words: &Words,
) -> Result<()> {
    let function = device.get_or_load_custom_func(kernel, module.name, module.ptx)?;
    let mut builder = function.builder();
    builder.arg(words);
    let config = LaunchConfig {
        grid_dim: axes.into(),
        block_dim: (threads as u32, 1, 1),
        shared_mem_bytes: 0,
    };
    // SAFETY: the launcher has checked the shapes of the tensors behind the pointers, and the kernels keep inside them; the
    // tensors are alive until the launch is queued, and memory is freed on the same stream, so after it has run.
    unsafe { builder.launch(config) }.w()?;
    Ok(())
}

/// Where the storage begins.
pub(super) fn address(storage: &CudaStorage) -> Result<u64> {
    let stream = storage.device.cuda_stream();
    let pointer = match &storage.slice {
        CudaStorageSlice::F32(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::F16(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::BF16(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::U32(slice) => slice.device_ptr(&stream).0,
        _ => bail!("the kernels take f32, f16, bf16 and u32"),
    };
    Ok(pointer)
}

/// See [`super::launch::undefined`].
pub(super) fn undefined(device: &CudaDevice, shape: Shape, dtype: DType) -> Result<Tensor> {
    fn storage<T: CudaDType + DeviceRepr>(
        device: &CudaDevice,
        count: usize,
    ) -> Result<CudaStorage> {
        // SAFETY: any bits are a number; the caller's kernel writes all of them before they are read.
        let slice = unsafe { device.alloc::<T>(count) }?;
        Ok(CudaStorage::wrap_cuda_slice(slice, device.clone()))
    }
    let count = shape.elem_count();
    let storage = match dtype {
        DType::F32 => storage::<f32>(device, count)?,
        DType::F16 => storage::<f16>(device, count)?,
        DType::BF16 => storage::<bf16>(device, count)?,
        DType::U32 => storage::<u32>(device, count)?,
        _ => bail!("the kernels take f32, f16, bf16 and u32, not {dtype:?}"),
    };
    Ok(Tensor::from_storage(
        Storage::Cuda(storage),
        shape,
        BackpropOp::none(),
        false,
    ))
}
