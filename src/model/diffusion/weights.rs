//! A component's weights: safetensors of a diffusers folder, a part of a single-file checkpoint, or numbers drawn from
//! a seed.
//!
//! Asked for by name and shape through a [`Scope`], which puts the prefix before the name. Every error
//! names the tensor and the folder. What a file has too much is only logged: published files carry
//! left-overs (position ids, averaged copies) that no arithmetic reads.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};

use super::checkpoint::{Layout, Part};
use crate::model::ModelError;
use crate::model::text::weights::dummy::{levels, random_values, tensor_key};
use crate::model::text::weights::safetensors::{dense_dtype, map, shards};

/// What the files of a component are called, before the endings below: diffusers' name, and transformers'.
const STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];
/// Endings of single files, the first that is there being taken.
const ENDINGS: [&str; 2] = [".safetensors", ".fp16.safetensors"];
/// Endings of lists of shards.
const INDEX_ENDINGS: [&str; 3] = [
    ".safetensors.index.json",
    ".fp16.safetensors.index.json",
    ".safetensors.index.fp16.json",
];
/// Half the width of the range that random biases are drawn from.
const BIAS_REACH: f32 = 0.05;
/// How many unused tensors the log names.
const NAMES_IN_A_LOG: usize = 10;

/// A component's weights.
pub struct Weights {
    source: Source,
    /// What errors call the component: its folder.
    component: String,
    dtype: Option<DType>,
    device: Device,
}

enum Source {
    Files {
        files: MmapedSafetensors,
        /// Of the component's own tensors, as the file has them.
        names: HashSet<String>,
        used: RefCell<HashSet<String>>,
        /// How the file calls what is asked for; as it is asked for, if there is none.
        layout: Option<Box<Layout>>,
    },
    Dummy {
        seed: u64,
    },
}

impl Weights {
    /// Opens the safetensors of a component's folder, such as `model/unet`. Tensors are converted to `dtype`
    /// if one is given, and stay in the file's format otherwise.
    ///
    /// # Errors
    /// Names the file that is missing or broken.
    pub fn open(folder: &Path, dtype: Option<DType>, device: &Device) -> Result<Self, ModelError> {
        let component = folder.display().to_string();
        let files = map(&weight_files(folder)?).map_err(|error| {
            ModelError::Load(format!("cannot read the weights in {component}: {error}"))
        })?;
        let names = files.tensors().into_iter().map(|(name, _)| name).collect();
        Ok(Weights {
            source: Source::Files {
                files,
                names,
                used: RefCell::default(),
                layout: None,
            },
            component,
            dtype,
            device: device.clone(),
        })
    }

    /// Opens a component, such as `unet`, of a single-file checkpoint.
    ///
    /// # Errors
    /// The file is broken.
    pub(super) fn of_checkpoint(
        file: &Path,
        component: &str,
        layout: &Layout,
        dtype: Option<DType>,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let files = map(&[file.to_owned()]).map_err(|error| {
            ModelError::Load(format!("cannot read {}: {error}", file.display()))
        })?;
        let prefix = layout.prefix(component);
        let names = files.tensors().into_iter().map(|(name, _)| name);
        Ok(Weights {
            source: Source::Files {
                names: names.filter(|name| name.starts_with(prefix)).collect(),
                files,
                used: RefCell::default(),
                layout: Some(Box::new(layout.clone())),
            },
            component: component.to_owned(),
            dtype,
            device: device.clone(),
        })
    }

    /// Random weights of any shape: f32 unless a dtype is given. A tensor's values depend on the seed, the
    /// component and its name only, and keep activations finite.
    pub fn dummy(seed: u64, component: &str, dtype: Option<DType>, device: &Device) -> Self {
        Weights {
            source: Source::Dummy { seed },
            component: component.to_string(),
            dtype: Some(dtype.unwrap_or(DType::F32)),
            device: device.clone(),
        }
    }

    /// The device that the weights go to.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The top of the tree of names.
    pub fn root(&self) -> Scope<'_> {
        Scope {
            weights: self,
            prefix: String::new(),
        }
    }

    /// The top of a CLIP's tree: older files put `text_model.` before every name but the projection's.
    pub(super) fn text_root(&self) -> Scope<'_> {
        let prefixed = self.root().at("text_model");
        match prefixed.contains("embeddings.token_embedding.weight") {
            true => prefixed,
            false => self.root(),
        }
    }

    /// Logs what the component's files have and nobody asked for. To be called once it is built.
    pub fn log_unused(&self) {
        let Source::Files { names, used, .. } = &self.source else {
            return;
        };
        let used = used.borrow();
        let mut unused: Vec<&String> = names.difference(&used).collect();
        if unused.is_empty() {
            return;
        }
        unused.sort_unstable();
        let count = unused.len();
        unused.truncate(NAMES_IN_A_LOG);
        tracing::debug!(component = self.component, count, names = ?unused, "unused tensors");
    }

    fn contains(&self, name: &str) -> bool {
        self.stored(name).is_some()
    }

    /// What the file calls a tensor, and how it lies there; `None` if there is none.
    fn stored(&self, name: &str) -> Option<(String, Part)> {
        let Source::Files { names, layout, .. } = &self.source else {
            return None;
        };
        let Some(layout) = layout else {
            return names.contains(name).then(|| (name.to_owned(), Part::Whole));
        };
        let stored = layout.stored(&self.component, name)?;
        let found = stored.names.into_iter().find(|name| names.contains(name))?;
        Some((found, stored.part))
    }

    fn misshapen(&self, name: &str, found: &[usize], expected: &[usize]) -> ModelError {
        ModelError::Load(format!(
            "{}: tensor {name} has shape {found:?}; expected {expected:?}",
            self.component
        ))
    }

    /// The tensor `name`, of `shape` once edges of length 1 at its end are taken off or put on.
    fn tensor(
        &self,
        name: &str,
        shape: &[usize],
        dtype: Option<DType>,
    ) -> Result<Tensor, ModelError> {
        match &self.source {
            Source::Dummy { seed } => {
                let dtype = dtype.unwrap_or(DType::F32);
                self.random(*seed, name, shape, dtype)
            }
            Source::Files { files, used, .. } => {
                let missing =
                    || ModelError::Load(format!("{}: there is no tensor {name}", self.component));
                let (stored, part) = self.stored(name).ok_or_else(missing)?;
                let view = files.get(&stored).map_err(|_| missing())?;
                let lies = shape_in_file(shape, part);
                if !is_same_shape(view.shape(), &lies) {
                    return Err(self.misshapen(&stored, view.shape(), &lies));
                }
                let in_file = dense_dtype(&stored, view.dtype())
                    .map_err(|error| ModelError::Load(format!("{}: {error}", self.component)))?;
                used.borrow_mut().insert(stored);
                let tensor = Tensor::from_raw_buffer(view.data(), in_file, &lies, &Device::Cpu)?;
                let tensor = match part {
                    Part::Whole => tensor,
                    Part::Third(third) => {
                        tensor.narrow(0, third * shape[0], shape[0])?.contiguous()?
                    }
                    Part::Transposed => tensor.t()?.contiguous()?,
                };
                // Converted before it travels: less to send when it shrinks.
                Ok(tensor
                    .to_dtype(dtype.unwrap_or(in_file))?
                    .to_device(&self.device)?)
            }
        }
    }

    fn random(
        &self,
        seed: u64,
        name: &str,
        shape: &[usize],
        dtype: DType,
    ) -> Result<Tensor, ModelError> {
        let count = shape
            .iter()
            .try_fold(1usize, |count, edge| count.checked_mul(*edge))
            .ok_or_else(|| ModelError::Load(format!("tensor {name} of {shape:?} is too large")))?;
        let key = tensor_key(seed, &format!("{}/{name}", self.component));
        // A uniform range of this reach has the deviation 1 / sqrt(inputs), so that what a layer gives is
        // about as large as what it takes.
        let inputs: usize = shape[1..].iter().product();
        let reach = match shape.len() {
            1 => BIAS_REACH,
            _ => (3.0 / inputs.max(1) as f32).sqrt(),
        };
        let norm = shape.len() == 1 && name.ends_with("weight");
        let tensor = match dtype {
            _ if norm => Tensor::ones(shape, dtype, &self.device)?,
            DType::F32 => {
                let values = random_values(key, count, &levels(reach, |value| value));
                Tensor::from_vec(values, shape, &self.device)?
            }
            DType::F16 => {
                let values = random_values(key, count, &levels(reach, f16::from_f32));
                Tensor::from_vec(values, shape, &self.device)?
            }
            DType::BF16 => {
                let values = random_values(key, count, &levels(reach, bf16::from_f32));
                Tensor::from_vec(values, shape, &self.device)?
            }
            other => {
                return Err(ModelError::Load(format!(
                    "random weights in {other:?} are not supported; supported are f32, f16, bf16"
                )));
            }
        };
        Ok(tensor)
    }
}

/// A place in a component's tree of names.
#[derive(Clone)]
pub struct Scope<'a> {
    weights: &'a Weights,
    prefix: String,
}

impl Scope<'_> {
    /// The place below this one.
    pub fn at(&self, part: impl Display) -> Self {
        Scope {
            weights: self.weights,
            prefix: format!("{}{part}.", self.prefix),
        }
    }

    /// The device that the weights go to.
    pub fn device(&self) -> &Device {
        &self.weights.device
    }

    /// Whether the files have this tensor. Random weights go by the names that are asked for first.
    pub fn contains(&self, name: &str) -> bool {
        self.weights.contains(&format!("{}{name}", self.prefix))
    }

    /// The first of these places that the files know, or else the first: for parts that were renamed.
    pub fn at_first_known(&self, parts: &[&str]) -> Self {
        let known = parts
            .iter()
            .find(|part| self.at(part).contains("weight"))
            .unwrap_or(&parts[0]);
        self.at(known)
    }

    /// A tensor in the component's dtype. Edges of length 1 at the end do not matter: some files keep a
    /// linear layer as a 1x1 convolution.
    ///
    /// # Errors
    /// Missing or misshapen, with its name.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        let name = format!("{}{name}", self.prefix);
        self.weights.tensor(&name, shape, self.weights.dtype)
    }

    /// A tensor in f32, whatever the component's dtype.
    ///
    /// # Errors
    /// Missing or misshapen, with its name.
    pub fn tensor_f32(&self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        let name = format!("{}{name}", self.prefix);
        self.weights.tensor(&name, shape, Some(DType::F32))
    }
}

/// The shape under its name of a tensor that has this one.
fn shape_in_file(shape: &[usize], part: Part) -> Vec<usize> {
    let mut lies = shape.to_vec();
    match part {
        Part::Whole => {}
        Part::Third(_) => lies[0] *= 3,
        Part::Transposed => lies.reverse(),
    }
    lies
}

/// Equal but for edges of length 1 at the end.
fn is_same_shape(found: &[usize], expected: &[usize]) -> bool {
    fn core(mut shape: &[usize]) -> &[usize] {
        while let [rest @ .., 1] = shape {
            shape = rest;
        }
        shape
    }
    core(found) == core(expected)
}

/// The files that hold a component's weights.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, ModelError> {
    for stem in STEMS {
        for ending in ENDINGS {
            let single = folder.join(format!("{stem}{ending}"));
            if single.is_file() {
                return Ok(vec![single]);
            }
        }
        for ending in INDEX_ENDINGS {
            let index = folder.join(format!("{stem}{ending}"));
            if index.is_file() {
                return shards(folder, &index);
            }
        }
    }
    let of_other_name = |error: std::io::Error| {
        ModelError::Load(format!("cannot list {}: {error}", folder.display()))
    };
    let mut others = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(of_other_name)? {
        let path = entry.map_err(of_other_name)?.path();
        if path
            .extension()
            .is_some_and(|ending| ending == "safetensors")
        {
            others.push(path);
        }
    }
    if others.len() == 1 {
        return Ok(others);
    }
    Err(ModelError::Load(format!(
        "{} holds no weights: looked for {}.safetensors, {}.safetensors, their fp16 variants and lists \
         of shards",
        folder.display(),
        STEMS[0],
        STEMS[1]
    )))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn folder_with(name: &str, tensors: &[(&str, Tensor)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        let tensors: HashMap<&str, Tensor> = tensors.iter().cloned().collect();
        candle_core::safetensors::save(&tensors, folder.path().join(name)).expect("written");
        folder
    }

    fn ones(shape: &[usize], dtype: DType) -> Tensor {
        Tensor::ones(shape, dtype, &Device::Cpu).expect("small")
    }

    #[test]
    fn every_usual_file_name_is_found() {
        for name in [
            "diffusion_pytorch_model.safetensors",
            "diffusion_pytorch_model.fp16.safetensors",
            "model.safetensors",
            "my_own.safetensors",
        ] {
            let folder = folder_with(name, &[("a.weight", ones(&[2, 3], DType::F16))]);
            let weights = Weights::open(folder.path(), None, &Device::Cpu).expect(name);
            let tensor = weights
                .root()
                .at("a")
                .tensor("weight", &[2, 3])
                .expect(name);
            assert_eq!(tensor.dtype(), DType::F16);
            let widened = weights.root().at("a").tensor_f32("weight", &[2, 3, 1, 1]);
            assert_eq!(widened.expect(name).dtype(), DType::F32);
        }
    }

    #[test]
    fn shards_are_found() {
        let folder = folder_with("part-1.safetensors", &[("a", ones(&[2], DType::F32))]);
        let second: HashMap<&str, Tensor> = [("b", ones(&[3], DType::BF16))].into();
        let path = folder.path().join("part-2.safetensors");
        candle_core::safetensors::save(&second, path).expect("written");
        let index = r#"{"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}"#;
        let path = folder
            .path()
            .join("diffusion_pytorch_model.safetensors.index.json");
        std::fs::write(path, index).expect("written");
        let weights = Weights::open(folder.path(), Some(DType::F32), &Device::Cpu).expect("valid");
        assert!(weights.root().tensor("a", &[2]).is_ok());
        assert_eq!(
            weights.root().tensor("b", &[3]).expect("there").dtype(),
            DType::F32
        );
    }

    #[test]
    fn errors_name_the_tensor_and_the_folder() {
        let folder = folder_with(
            "model.safetensors",
            &[
                ("a.weight", ones(&[2, 3], DType::F32)),
                (
                    "ids",
                    Tensor::zeros(4, DType::I64, &Device::Cpu).expect("small"),
                ),
            ],
        );
        let weights = Weights::open(folder.path(), None, &Device::Cpu).expect("valid");
        let scope = weights.root().at("a");
        for (error, what) in [
            (scope.tensor("bias", &[2]), "there is no tensor a.bias"),
            (
                scope.tensor("weight", &[3, 2]),
                "tensor a.weight has shape [2, 3]",
            ),
            (weights.root().tensor("ids", &[4]), "I64"),
        ] {
            let error = error.expect_err(what).to_string();
            assert!(error.contains(what), "{error}");
            assert!(error.contains(&*folder.path().to_string_lossy()), "{error}");
        }
        let empty = tempfile::tempdir().expect("a folder");
        let error = Weights::open(empty.path(), None, &Device::Cpu)
            .err()
            .expect("empty");
        assert!(error.to_string().contains("holds no weights"), "{error}");
    }

    #[test]
    fn random_weights_depend_on_seed_component_and_name_only() {
        let values = |seed, component: &str, dtype| {
            Weights::dummy(seed, component, dtype, &Device::Cpu)
                .root()
                .at("conv")
                .tensor("weight", &[8, 4, 3, 3])
                .and_then(|tensor| {
                    Ok(tensor
                        .flatten_all()?
                        .to_dtype(DType::F32)?
                        .to_vec1::<f32>()?)
                })
                .expect("small")
        };
        let reference = values(1, "unet", None);
        assert_eq!(reference, values(1, "unet", Some(DType::F32)));
        assert_ne!(reference, values(2, "unet", None));
        assert_ne!(reference, values(1, "vae", None));
        let half = values(1, "unet", Some(DType::F16));
        let furthest = reference.iter().zip(&half).map(|(a, b)| (a - b).abs());
        assert!(
            furthest.fold(0.0, f32::max) < 1e-3,
            "the same numbers, rounded"
        );
        let spread = reference.iter().map(|x| x * x).sum::<f32>() / reference.len() as f32;
        assert!((spread.sqrt() - 1.0 / 6.0).abs() < 0.02, "{spread}");
    }
}
