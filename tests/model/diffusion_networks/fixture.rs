//! Tiny models of random weights, and what the reference makes of them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use girandole::model::diffusion::clip::ClipText;
use girandole::model::diffusion::config::StableDiffusionConfig;
use girandole::model::diffusion::unet::UNet;
use girandole::model::diffusion::vae::{DEFAULT_MEMORY_LIMIT, Vae};
use girandole::model::diffusion::weights::Weights;

/// The tiny Stable Diffusion models.
pub(crate) const MODELS: [&str; 3] = ["sd15-tiny", "sd21-tiny", "sdxl-tiny"];

/// A model's folder.
pub(crate) fn folder(model: &str) -> PathBuf {
    fixtures().join(model)
}

/// Where the fixtures of picture models are.
pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/diffusion")
}

/// A model's shape.
pub(crate) fn config(model: &str) -> StableDiffusionConfig {
    StableDiffusionConfig::read(&folder(model)).expect(model)
}

/// A component's weights.
pub(crate) fn weights(model: &str, component: &str, dtype: Option<DType>) -> Weights {
    Weights::open(&folder(model).join(component), dtype, &Device::Cpu).expect(component)
}

/// A model's UNet.
pub(crate) fn unet(model: &str) -> UNet {
    UNet::new(&config(model).unet, &weights(model, "unet", None)).expect(model)
}

/// A model's VAE.
pub(crate) fn vae(model: &str) -> Vae {
    let config = config(model).vae;
    Vae::new(&config, &weights(model, "vae", None), DEFAULT_MEMORY_LIMIT).expect(model)
}

/// One of a model's text encoders.
pub(crate) fn text(model: &str, index: usize) -> ClipText {
    let component = ["text_encoder", "text_encoder_2"][index];
    let config = &config(model).text_encoders[index];
    ClipText::new(config, &weights(model, component, None)).expect(model)
}

/// What the reference gives for the parts of a model.
pub(crate) struct Goldens(HashMap<String, Tensor>);

impl Goldens {
    /// Reads `<model>.components.safetensors`.
    pub(crate) fn of(model: &str) -> Self {
        Self::at(&fixtures().join(format!("{model}.components.safetensors")))
    }

    /// Reads a file of goldens.
    pub(crate) fn at(path: &Path) -> Self {
        Goldens(candle_core::safetensors::load(path, &Device::Cpu).expect("the fixture"))
    }

    /// As it is in the file.
    pub(crate) fn get(&self, name: &str) -> Tensor {
        self.0
            .get(name)
            .unwrap_or_else(|| panic!("no golden {name}"))
            .clone()
    }

    /// (rows, c, h, w) in the file, (rows, h, w, c) here.
    pub(crate) fn picture(&self, name: &str) -> Tensor {
        let tensor = self.get(name);
        let last = tensor.permute((0, 2, 3, 1)).expect("a picture");
        last.contiguous().expect("small")
    }

    /// Rows of whole numbers.
    pub(crate) fn ids(&self, name: &str) -> Vec<Vec<u32>> {
        let ids = self.get(name).to_dtype(DType::U32).expect("ids");
        ids.to_vec2().expect("rows")
    }

    /// Whether there is one.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

/// Its numbers in order.
pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    let flat = tensor.flatten_all().expect("numbers");
    flat.to_dtype(DType::F32)
        .and_then(|flat| flat.to_vec1())
        .expect("f32")
}

/// Their bits, which tell apart what `==` takes for equal.
pub(crate) fn bits(tensor: &Tensor) -> Vec<u32> {
    values(tensor).into_iter().map(f32::to_bits).collect()
}

/// The largest difference of two tensors of one shape.
pub(crate) fn difference(found: &Tensor, expected: &Tensor) -> f32 {
    assert_eq!(found.dims(), expected.dims());
    let pairs = values(found).into_iter().zip(values(expected));
    pairs.fold(0.0, |largest, (found, expected)| {
        let difference = (found - expected).abs();
        // A NaN is the largest difference of all.
        if difference <= largest {
            largest
        } else {
            difference
        }
    })
}

/// Fails unless the largest difference is below the bound.
#[track_caller]
pub(crate) fn assert_close(found: &Tensor, expected: &Tensor, bound: f32, what: &str) {
    let difference = difference(found, expected);
    assert!(
        difference < bound,
        "{what}: {difference:e} apart, {bound:e} allowed"
    );
}

/// Row `index` alone.
pub(crate) fn row(tensor: &Tensor, index: usize) -> Tensor {
    tensor.narrow(0, index, 1).expect("a row")
}

/// Rows in this order.
pub(crate) fn rows(tensor: &Tensor, order: &[usize]) -> Tensor {
    let rows: Vec<Tensor> = order.iter().map(|&index| row(tensor, index)).collect();
    Tensor::cat(&rows, 0).expect("rows of one shape")
}
