//! NVIDIA cards: how one is opened, and what it says of itself. Only compiled with the feature `cuda`.

use candle_core::cuda_backend::cudarc::driver::CudaContext;
use candle_core::{CudaDevice, DType, Device, Tensor};

use super::DeviceSpec;
use super::advice::explained;
use super::memory::DeviceMemory;
use crate::kernels::cuda_stream;
use crate::model::ModelError;

/// Opens a card with one stream for all that is done on it, and runs a kernel there: whether the driver takes what
/// the program was built with shows at the first of them only.
pub(super) fn open(index: usize) -> Result<Device, ModelError> {
    let refuse = |error: String| {
        let device = DeviceSpec::Cuda(index);
        ModelError::Load(format!(
            "cannot open device {device}: {}",
            explained(&error)
        ))
    };
    let cards = CudaContext::device_count().map_err(|error| refuse(error.to_string()))?;
    let cards = usize::try_from(cards).unwrap_or(0);
    if let Some(message) = no_such_card(index, cards) {
        return Err(refuse(message));
    }
    let device = cuda_stream::open(index).map_err(|error| refuse(error.to_string()))?;
    probe(&device).map_err(|error| refuse(error.to_string()))?;
    tell(&device);
    Ok(device)
}

/// What is wrong with asking for card `index` of so many.
pub(super) fn no_such_card(index: usize, cards: usize) -> Option<String> {
    let last = cards.checked_sub(1)?;
    (index > last).then(|| match last {
        0 => "there is one card, cuda:0".to_owned(),
        last => format!("there are {cards} cards, cuda:0 to cuda:{last}"),
    })
}

/// A product and an elementwise kernel.
fn probe(device: &Device) -> candle_core::Result<()> {
    let ones = Tensor::ones((4, 4), DType::F32, device)?;
    let product = ones.matmul(&ones)?.affine(2.0, 1.0)?;
    let sum = product.sum_all()?.to_scalar::<f32>()?;
    match sum == 144.0 {
        true => Ok(()),
        false => candle_core::bail!("the card cannot count: a sum of 144 came out as {sum}"),
    }
}

/// Says in the log what card it is.
fn tell(device: &Device) {
    let Device::Cuda(device) = device else { return };
    let stream = device.cuda_stream();
    let context = stream.context();
    let name = context.name().unwrap_or_default();
    let (major, minor) = context.compute_capability().unwrap_or_default();
    if let Ok(memory) = memory(device) {
        tracing::info!(
            card = context.ordinal(),
            name,
            compute_capability = format!("{major}.{minor}"),
            free_bytes = memory.free,
            total_bytes = memory.total,
            "a card was opened"
        );
    }
}

/// See [`DeviceMemory::of`]. What our own pool has taken and does not use is given back first.
pub(super) fn memory(device: &CudaDevice) -> Result<DeviceMemory, ModelError> {
    let stream = device.cuda_stream();
    let asked = stream
        .synchronize()
        .and_then(|()| stream.context().mem_get_info());
    let (free, total) = asked.map_err(|error| ModelError::Device(explained(&error.to_string())))?;
    Ok(DeviceMemory {
        free: free as u64,
        total: total as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_that_is_not_there_is_told_from_those_that_are() {
        for (index, cards, wanted) in [
            (0, 1, None),
            (1, 1, Some("there is one card, cuda:0")),
            (1, 2, None),
            (7, 2, Some("there are 2 cards, cuda:0 to cuda:1")),
            // The driver says it better.
            (0, 0, None),
        ] {
            assert_eq!(
                no_such_card(index, cards).as_deref(),
                wanted,
                "{index} of {cards}"
            );
        }
    }
}
