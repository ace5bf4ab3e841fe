//! Which device a model runs on, and in which number formats: the one place that knows what was
//! compiled in.
//!
//! What needs a feature to be compiled lives below, in `cuda` and in [`graph`].

pub mod advice;
#[cfg(feature = "cuda")]
mod cuda;
pub mod graph;
pub mod memory;

use std::fmt;
use std::str::FromStr;

use candle_core::{DType, Device};

use super::ModelError;

/// A device, as a person writes it: `cpu`, `cuda:0`, `metal:0`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DeviceSpec {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU.
    Cuda(usize),
    /// An Apple GPU.
    Metal(usize),
}

/// The text names no device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a device; write cpu, cuda:N or metal:N")]
pub struct InvalidDevice(String);

impl FromStr for DeviceSpec {
    type Err = InvalidDevice;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (kind, index) = text.split_once(':').unwrap_or((text, "0"));
        let invalid = || InvalidDevice(text.to_string());
        let index = index.parse().map_err(|_| invalid())?;
        match kind {
            "cpu" if text == "cpu" => Ok(DeviceSpec::Cpu),
            "cuda" => Ok(DeviceSpec::Cuda(index)),
            "metal" => Ok(DeviceSpec::Metal(index)),
            _ => Err(invalid()),
        }
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceSpec::Cpu => f.write_str("cpu"),
            DeviceSpec::Cuda(index) => write!(f, "cuda:{index}"),
            DeviceSpec::Metal(index) => write!(f, "metal:{index}"),
        }
    }
}

impl DeviceSpec {
    /// Opens the device.
    ///
    /// # Errors
    /// Support for it is not compiled in, or it is not there.
    pub fn open(self) -> Result<Device, ModelError> {
        let absent = |error| ModelError::Load(format!("cannot open device {self}: {error}"));
        match self {
            DeviceSpec::Cpu => Ok(Device::Cpu),
            #[cfg(feature = "cuda")]
            DeviceSpec::Cuda(index) => cuda::open(index),
            DeviceSpec::Metal(index) if cfg!(feature = "metal") => {
                Device::new_metal(index).map_err(absent)
            }
            #[cfg(not(feature = "cuda"))]
            DeviceSpec::Cuda(_) => Err(self.not_compiled_in("cuda")),
            DeviceSpec::Metal(_) => Err(self.not_compiled_in("metal")),
        }
    }

    /// Whether it has memory of its own, which the model may fill with keys and values.
    pub fn has_own_memory(self) -> bool {
        matches!(self, DeviceSpec::Cuda(_))
    }

    fn not_compiled_in(self, feature: &str) -> ModelError {
        ModelError::Load(format!(
            "device {self} needs a build with the feature {feature:?}, which this one lacks"
        ))
    }

    /// The format of keys and values where nobody chooses one: half the memory, and half of what attention reads.
    pub fn default_kv_dtype(self) -> FloatType {
        FloatType::F16
    }
}

/// The compute capability that the kernels of this build are for, such as `90`; nothing without CUDA.
pub fn built_for() -> Option<&'static str> {
    option_env!("CUDA_COMPUTE_CAP").filter(|_| cfg!(feature = "cuda"))
}

/// To be called when a model is on its device for good: what its passes take and give back is kept for the next ones.
pub fn loaded(device: &Device) {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device
        && let Err(error) = crate::kernels::cuda_stream::keep_freed_memory(device)
    {
        // It only costs time.
        tracing::warn!(%error, "the card's memory pool stays as it was");
    }
    let _ = device;
}

/// A number format for weights or for keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FloatType {
    /// 32 bits.
    F32,
    /// 16 bits, IEEE.
    F16,
    /// 16 bits with the exponent of 32.
    BF16,
}

/// The text names no number format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a number format; write f32, f16 or bf16")]
pub struct InvalidFloatType(String);

impl FromStr for FloatType {
    type Err = InvalidFloatType;
    /// Takes PyTorch's names too, as they stand in `config.json`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "f32" | "float32" => Ok(FloatType::F32),
            "f16" | "float16" => Ok(FloatType::F16),
            "bf16" | "bfloat16" => Ok(FloatType::BF16),
            _ => Err(InvalidFloatType(text.to_string())),
        }
    }
}

impl fmt::Display for FloatType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FloatType::F32 => "f32",
            FloatType::F16 => "f16",
            FloatType::BF16 => "bf16",
        })
    }
}

impl From<FloatType> for DType {
    fn from(float: FloatType) -> Self {
        match float {
            FloatType::F32 => DType::F32,
            FloatType::F16 => DType::F16,
            FloatType::BF16 => DType::BF16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for (text, device) in [
            ("cpu", Some(DeviceSpec::Cpu)),
            ("cuda", Some(DeviceSpec::Cuda(0))),
            ("cuda:3", Some(DeviceSpec::Cuda(3))),
            ("metal:0", Some(DeviceSpec::Metal(0))),
            ("cpu:0", None),
            ("cuda:", None),
            ("cuda:-1", None),
            ("tpu", None),
        ] {
            assert_eq!(text.parse().ok(), device, "{text}");
        }
        assert_eq!(DeviceSpec::Cuda(3).to_string(), "cuda:3");
        for float in [FloatType::F32, FloatType::F16, FloatType::BF16] {
            assert_eq!(float.to_string().parse(), Ok(float));
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_device_that_is_not_compiled_in_says_so() {
        let error = DeviceSpec::Cuda(0).open().expect_err("no such feature");
        assert_eq!(
            error.to_string(),
            "device cuda:0 needs a build with the feature \"cuda\", which this one lacks"
        );
    }
}
