//! Filling a tensor in place: its memory stays where it is, for passes that were recorded with its address.

use candle_core::{
    CpuStorage, CudaStorage, DType, InplaceOp1, Layout, MetalStorage, Result, Tensor, bail,
};

/// Writes `values` into a contiguous `target`, of any shape, u32: the element at `first` and those behind it.
///
/// # Errors
/// When `target` is not contiguous u32 or too short, or the device refuses.
pub fn refill(target: &Tensor, first: usize, values: &[u32]) -> Result<()> {
    if target.dtype() != DType::U32 || !target.is_contiguous() {
        bail!(
            "only contiguous u32 is filled in place, not {:?} {:?}",
            target.dtype(),
            target.layout()
        );
    }
    if first + values.len() > target.elem_count() {
        bail!(
            "{} values do not fit behind element {first} of {}",
            values.len(),
            target.elem_count()
        );
    }
    if values.is_empty() {
        return Ok(());
    }
    target.inplace_op1(&Refill { first, values })
}

struct Refill<'a> {
    first: usize,
    values: &'a [u32],
}

impl Refill<'_> {
    fn range(&self, layout: &Layout) -> std::ops::Range<usize> {
        let start = layout.start_offset() + self.first;
        start..start + self.values.len()
    }
}

impl InplaceOp1 for Refill<'_> {
    fn name(&self) -> &'static str {
        "refill"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let CpuStorage::U32(numbers) = storage else {
            bail!("refill: the tensor was u32 a moment ago");
        };
        numbers[self.range(layout)].copy_from_slice(self.values);
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        let device = storage.device.clone();
        let numbers = storage.as_cuda_slice_mut::<u32>()?;
        let Some(mut numbers) = numbers.try_slice_mut(self.range(layout)) else {
            bail!("refill: the tensor is shorter than its shape");
        };
        device.memcpy_htod(self.values, &mut numbers)
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda_fwd(&self, _storage: &mut CudaStorage, _layout: &Layout) -> Result<()> {
        bail!("refill: built without the feature cuda")
    }

    fn metal_fwd(&self, _storage: &mut MetalStorage, _layout: &Layout) -> Result<()> {
        bail!("refill: not on metal")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn views_are_filled_where_they_lie() {
        let all = Tensor::zeros(12, DType::U32, &Device::Cpu).unwrap();
        let view = all.narrow(0, 4, 6).unwrap().reshape((2, 3)).unwrap();
        refill(&view, 2, &[1, 2, 3]).unwrap();
        refill(&view, 6, &[]).unwrap();
        assert_eq!(
            all.to_vec1::<u32>().unwrap(),
            [0, 0, 0, 0, 0, 0, 1, 2, 3, 0, 0, 0]
        );
        assert_eq!(view.to_vec2::<u32>().unwrap(), [[0, 0, 1], [2, 3, 0]]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let all = Tensor::zeros((3, 4), DType::U32, &Device::Cpu).unwrap();
        assert!(refill(&all, 11, &[1, 2]).is_err(), "too long");
        assert!(refill(&all.t().unwrap(), 0, &[1]).is_err(), "strided");
        let floats = Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap();
        assert!(refill(&floats, 0, &[1]).is_err(), "floats");
        assert!(
            all.flatten_all()
                .unwrap()
                .to_vec1::<u32>()
                .unwrap()
                .iter()
                .all(|n| *n == 0)
        );
    }
}
