//! What a card could do at best: the device's own copy, and the products of its makers' library.
//!
//! As in [`super`], these tell how much they did, and whoever calls them holds the clock. Each ends when the device has
//! done its work.

use candle_core::{DType, Device, Result, Tensor};

/// How numbers are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Multiplication {
    /// bf16, summed in f32.
    Bf16,
    /// f16, summed in f32.
    F16,
    /// f32, rounded to 19 bits on the way into the product, where the device can.
    Tf32,
    /// f32.
    F32,
}

impl Multiplication {
    /// All, the fastest first.
    pub const ALL: [Multiplication; 4] = [
        Multiplication::Bf16,
        Multiplication::F16,
        Multiplication::Tf32,
        Multiplication::F32,
    ];

    /// What reports call it.
    pub const fn name(self) -> &'static str {
        match self {
            Multiplication::Bf16 => "bf16",
            Multiplication::F16 => "f16",
            Multiplication::Tf32 => "tf32",
            Multiplication::F32 => "f32",
        }
    }

    /// That of weights in this format.
    pub fn of(dtype: DType) -> Self {
        match dtype {
            DType::BF16 => Multiplication::Bf16,
            DType::F32 => Multiplication::F32,
            // Blocks of fewer bits are widened to f16 on their way.
            _ => Multiplication::F16,
        }
    }

    fn dtype(self) -> DType {
        match self {
            Multiplication::Bf16 => DType::BF16,
            Multiplication::F16 => DType::F16,
            Multiplication::Tf32 | Multiplication::F32 => DType::F32,
        }
    }
}

/// Memory of a device that is copied to other memory of it.
pub struct DeviceCopy {
    source: Tensor,
    target: Tensor,
    bytes: u64,
}

impl DeviceCopy {
    /// Two buffers of `bytes` bytes each, rounded down to whole numbers of 4.
    ///
    /// # Errors
    /// The device has not so much memory.
    pub fn new(device: &Device, bytes: u64) -> Result<Self> {
        let numbers = usize::try_from(bytes / 4).unwrap_or(usize::MAX).max(1);
        let source = Tensor::ones(numbers, DType::F32, device)?;
        Ok(DeviceCopy {
            target: source.zeros_like()?,
            bytes: 4 * numbers as u64,
            source,
        })
    }

    /// Copies so many times; returns the bytes that were read or written.
    ///
    /// # Errors
    /// The device failed.
    pub fn run(&self, turns: usize) -> Result<u64> {
        for _ in 0..turns {
            self.target.slice_set(&self.source, 0, 0)?;
        }
        self.target.device().synchronize()?;
        Ok(2 * self.bytes * turns as u64)
    }
}

/// Two square matrices on a device.
pub struct DeviceProduct {
    a: Tensor,
    b: Tensor,
    multiplication: Multiplication,
}

impl DeviceProduct {
    /// Matrices of `edge` rows and columns.
    ///
    /// # Errors
    /// The device has not so much memory, or does not know the format.
    pub fn new(device: &Device, edge: usize, multiplication: Multiplication) -> Result<Self> {
        let matrix = || Tensor::ones((edge, edge), multiplication.dtype(), device);
        Ok(DeviceProduct {
            a: matrix()?,
            b: matrix()?,
            multiplication,
        })
    }

    /// Multiplies so many times; returns the operations, two for each multiply-add.
    ///
    /// # Errors
    /// The device failed.
    pub fn run(&self, turns: usize) -> Result<u64> {
        let before = candle_core::cuda::gemm_reduced_precision_f32();
        candle_core::cuda::set_gemm_reduced_precision_f32(
            self.multiplication == Multiplication::Tf32,
        );
        let result = (0..turns).try_for_each(|_| self.a.matmul(&self.b).map(drop));
        candle_core::cuda::set_gemm_reduced_precision_f32(before);
        result?;
        self.a.device().synchronize()?;
        let edge = self.a.dim(0)? as u64;
        Ok(2 * edge * edge * edge * turns as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_operations_are_counted() {
        let copy = DeviceCopy::new(&Device::Cpu, 1003).unwrap();
        assert_eq!(copy.run(3).unwrap(), 3 * 2 * 1000);
        let target: Vec<f32> = copy.target.to_vec1().unwrap();
        assert_eq!(target, vec![1.0; 250]);
        for multiplication in [Multiplication::F32, Multiplication::Tf32] {
            let product = DeviceProduct::new(&Device::Cpu, 8, multiplication).unwrap();
            assert_eq!(product.run(2).unwrap(), 2 * 2 * 512);
        }
    }

    #[test]
    fn weights_have_the_multiplication_of_their_format() {
        for (dtype, name) in [
            (DType::BF16, "bf16"),
            (DType::F16, "f16"),
            (DType::F32, "f32"),
            (DType::U8, "f16"),
        ] {
            assert_eq!(Multiplication::of(dtype).name(), name);
        }
    }
}
