//! Single-file checkpoints of Stable Diffusion 1, 2 and XL, in the names of the original code.
//!
//! The family is told by the names in the file's header. A file does not carry its model's shape: a diffusers folder
//! beside it that is called as it is does (`model/` beside `model.safetensors`; its weights are not read, and need not be
//! there), or else the published shape of the family is taken. Then a folder with this shape is written into the
//! cache, and everything but the weights is read from there, as from any other model's.

mod configs;
mod names;

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::config::MODEL_INDEX;
use crate::model::ModelError;
use configs::Traits;

pub(super) use names::{Layout, Part};

/// The longest header that the format allows.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// What a velocity model's configuration of the original code says, without blanks and quotes.
const VELOCITY_LINE: &str = "parameterization:v";

/// Whose names the file uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Stable Diffusion 1: CLIP by OpenAI.
    Sd1,
    /// Stable Diffusion 2: OpenCLIP.
    Sd2,
    /// SDXL: both.
    Xl,
}

/// The header of a safetensors file: names, shapes and a few words.
pub struct Checkpoint {
    path: PathBuf,
    header: Map<String, Value>,
    family: Family,
}

impl Checkpoint {
    /// Reads the header.
    ///
    /// # Errors
    /// No safetensors file, or none of a family that is known.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let header = read_header(path)
            .map_err(|why| ModelError::Load(format!("{}: {why}", path.display())))?;
        let has = |name: &str| header.contains_key(name);
        let family = match () {
            () if has("conditioner.embedders.1.model.ln_final.weight") => Family::Xl,
            () if has("cond_stage_model.model.ln_final.weight") => Family::Sd2,
            () if header
                .keys()
                .any(|name| name.starts_with("cond_stage_model.transformer.")) =>
            {
                Family::Sd1
            }
            () => {
                return Err(ModelError::Load(format!(
                    "{}: no checkpoint of Stable Diffusion 1, 2 or XL with its text encoders, in the names of \
                     the original code",
                    path.display()
                )));
            }
        };
        Ok(Checkpoint {
            path: path.to_owned(),
            header,
            family,
        })
    }

    /// Whose names it uses.
    pub fn family(&self) -> Family {
        self.family
    }

    /// The folder beside the file that says its shape, if there is one.
    pub fn folder_beside(path: &Path) -> Option<PathBuf> {
        let folder = path.with_extension("");
        folder.join(MODEL_INDEX).is_file().then_some(folder)
    }

    /// Folders of the tokenizers that the family needs.
    pub fn tokenizers(&self) -> &'static [&'static str] {
        match self.family {
            Family::Sd1 | Family::Sd2 => &["tokenizer"],
            Family::Xl => &["tokenizer", "tokenizer_2"],
        }
    }

    /// The small files of a diffusers folder of this model, but for the vocabularies of its tokenizers.
    pub fn folder_files(&self) -> Vec<(&'static str, Value)> {
        configs::files(self.family, self.traits())
    }

    fn traits(&self) -> Traits {
        let shape = |name: &str, axis: usize| -> Option<usize> {
            let tensor = self.header.get(name)?;
            usize::try_from(tensor.get("shape")?.get(axis)?.as_u64()?).ok()
        };
        Traits {
            velocity: self.predicts_velocity(),
            zero_snr: self.header.contains_key("ztsnr"),
            in_channels: shape("model.diffusion_model.input_blocks.0.0.weight", 1).unwrap_or(4),
            guidance_width: shape("model.diffusion_model.time_embed.cond_proj.weight", 1),
        }
    }

    /// The file's own word, else that of the original configuration beside it (`model.yaml`), else what most of the
    /// family do: of version 2, the velocity.
    fn predicts_velocity(&self) -> bool {
        let said = self.header.get("__metadata__").and_then(|metadata| {
            let value = metadata
                .get("modelspec.prediction_type")
                .or_else(|| metadata.get("modelspec.predict_key"))?;
            Some(value.as_str()?.starts_with('v'))
        });
        if self.header.contains_key("v_pred") {
            return true;
        }
        said.or_else(|| {
            let text = std::fs::read_to_string(self.path.with_extension("yaml")).ok()?;
            let plain = text.replace([' ', '"', '\''], "");
            Some(plain.lines().any(|line| line == VELOCITY_LINE))
        })
        .unwrap_or(self.family == Family::Sd2)
    }
}

fn read_header(path: &Path) -> Result<Map<String, Value>, String> {
    let mut file = File::open(path).map_err(|error| error.to_string())?;
    let mut length = [0; 8];
    file.read_exact(&mut length)
        .map_err(|error| error.to_string())?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES {
        return Err("it is no safetensors file: its header would be longer than any may be".into());
    }
    let mut text = Vec::new();
    file.take(length)
        .read_to_end(&mut text)
        .map_err(|error| error.to_string())?;
    serde_json::from_slice(&text).map_err(|_| "it is no safetensors file".to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::diffusion::config::StableDiffusionConfig;

    /// A file with this header and no tensors, whose folder is then written out.
    fn check(
        header: Value,
        yaml: Option<&str>,
        look: impl Fn(&Checkpoint, &StableDiffusionConfig),
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.safetensors");
        let text = header.to_string();
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text.bytes());
        std::fs::write(&path, bytes).expect("written");
        if let Some(yaml) = yaml {
            std::fs::write(path.with_extension("yaml"), yaml).expect("written");
        }
        let checkpoint = Checkpoint::open(&path).expect("a checkpoint");
        let shape = folder.path().join("shape");
        for (name, value) in checkpoint.folder_files() {
            let file = shape.join(name);
            std::fs::create_dir_all(file.parent().expect("a folder")).expect("made");
            std::fs::write(file, value.to_string()).expect("written");
        }
        let config = StableDiffusionConfig::read(&shape).expect("a sound shape");
        look(&checkpoint, &config);
    }

    /// A field of the scheduler's file that stands for the checkpoint.
    fn scheduler(checkpoint: &Checkpoint, field: &str) -> Value {
        let files = checkpoint.folder_files();
        let file = files
            .iter()
            .find(|(name, _)| name.starts_with("scheduler/"))
            .expect("a scheduler's file");
        file.1[field].clone()
    }

    #[test]
    fn the_family_is_told_by_its_names() {
        check(
            json!({"cond_stage_model.transformer.text_model.final_layer_norm.weight": {}}),
            None,
            |checkpoint, config| {
                assert_eq!(checkpoint.family(), Family::Sd1);
                assert_eq!(config.unet.cross_attention_dim, 768);
                assert_eq!(scheduler(checkpoint, "prediction_type"), "epsilon");
            },
        );
        check(
            json!({"conditioner.embedders.1.model.ln_final.weight": {}}),
            None,
            |checkpoint, config| {
                assert_eq!(checkpoint.family(), Family::Xl);
                assert_eq!(config.pooled_dim(), Some(1280));
                assert_eq!(config.vae.scaling_factor, 0.13025);
            },
        );
        let folder = tempfile::tempdir().expect("a folder");
        for (name, bytes) in [
            ("empty.safetensors", &b""[..]),
            ("text.safetensors", b"no checkpoint at all"),
            ("other.safetensors", b"\x02\0\0\0\0\0\0\0{}"),
        ] {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).expect("written");
            let error = Checkpoint::open(&path).err().expect(name).to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn what_version_2_predicts_is_told_by_hints() {
        let key = "cond_stage_model.model.ln_final.weight";
        let said = |word: &str| json!({key: {}, "__metadata__": {"modelspec.predict_key": word}});
        for (header, yaml, expected) in [
            (json!({key: {}}), None, "v_prediction"),
            (said("epsilon"), None, "epsilon"),
            (said("v"), Some("    linear_start: 0.1"), "v_prediction"),
            (json!({key: {}}), Some("    linear_start: 0.1"), "epsilon"),
            (
                json!({key: {}}),
                Some("  params:\n    parameterization: \"v\"\n"),
                "v_prediction",
            ),
        ] {
            check(header, yaml, |checkpoint, config| {
                assert_eq!(checkpoint.family(), Family::Sd2);
                assert_eq!(scheduler(checkpoint, "prediction_type"), expected);
                let edge = if expected == "epsilon" { 64 } else { 96 };
                assert_eq!(config.unet.sample_size, Some((edge, edge)));
            });
        }
    }

    #[test]
    fn consistency_models_are_told_by_their_shapes() {
        let header = json!({
            "cond_stage_model.transformer.text_model.final_layer_norm.weight": {},
            "model.diffusion_model.time_embed.cond_proj.weight": {"shape": [320, 256]},
        });
        check(header, None, |checkpoint, config| {
            assert_eq!(config.unet.in_channels, 4);
            assert_eq!(config.unet.time_cond_proj_dim, Some(256));
            assert_eq!(scheduler(checkpoint, "_class_name"), "LCMScheduler");
        });
    }

    #[test]
    #[should_panic(expected = "in_channels is 9")]
    fn those_made_for_inpainting_are_refused_as_a_folder_of_them_is() {
        let header = json!({
            "cond_stage_model.transformer.text_model.final_layer_norm.weight": {},
            "model.diffusion_model.input_blocks.0.0.weight": {"shape": [320, 9, 3, 3]},
        });
        check(header, None, |_, _| {});
    }
}
