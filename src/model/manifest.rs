//! `models/*.toml`: what a model is, where it comes from, its digests, limits and defaults.
//!
//! A manifest is data; [`sources`](super::sources) acts on it. The ones in this repository's
//! `models/` folder are compiled into the program.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// A model's files, once they are on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelFiles {
    /// One GGUF file.
    Gguf(PathBuf),
    /// A folder with `config.json`, safetensors and a tokenizer.
    Folder(PathBuf),
    /// Seeded random weights in the shape of a `config.json` (the file itself).
    Dummy {
        /// The `config.json`, beside which a `tokenizer.json` is used if there is one; or the
        /// `model_index.json` of an image model's folder.
        config: PathBuf,
        /// Seed of the weights.
        seed: u64,
    },
    /// An image model in one file of safetensors.
    Checkpoint {
        /// The file.
        file: PathBuf,
        /// A folder in diffusers' layout with everything but its weights.
        folder: PathBuf,
    },
    /// A script for the scripted model.
    Scripted(PathBuf),
}

/// What a model does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Continues a text.
    Text,
    /// Draws pictures.
    Image,
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Task::Text => "text",
            Task::Image => "image",
        })
    }
}

/// One model, as its TOML file describes it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// What requests call it.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// What it does.
    pub task: Task,
    /// The family of its network, for people: the file itself decides.
    pub architecture: String,
    /// Its licence, as an SPDX expression.
    pub license: String,
    /// The commit of the hub repository.
    pub revision: String,
    /// Its one file.
    pub file: FileDigest,
    /// Bounds that hold whatever the configuration says.
    #[serde(default)]
    pub limits: Limits,
    /// Settings of a request that does not give its own.
    #[serde(default)]
    pub defaults: GenerationDefaults,
    /// Where it may be had, in the order to try.
    pub sources: Vec<Source>,
}

/// An image model, as its TOML file describes it: a repository of the hub in diffusers' layout.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageManifest {
    /// What requests call it.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// What it does.
    pub task: Task,
    /// The family of its networks, for people: its files decide.
    pub architecture: String,
    /// Its licence, as an SPDX expression.
    pub license: String,
    /// `owner/name`.
    pub repo: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// Settings of a request that does not give its own.
    #[serde(default)]
    pub defaults: ImageDefaults,
}

/// Settings of a picture that a model's makers recommend.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageDefaults {
    /// Denoising steps.
    pub steps: Option<u32>,
    /// See [`ImageJob::guidance_scale`](crate::job::ImageJob::guidance_scale).
    pub guidance_scale: Option<f32>,
    /// In pixels.
    pub width: Option<u32>,
    /// In pixels.
    pub height: Option<u32>,
}

/// A file that can be told from any other.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileDigest {
    /// Its name, without folders.
    pub name: String,
    /// Its length.
    pub size_bytes: u64,
    /// Its SHA-256, 64 lowercase hexadecimal digits.
    pub sha256: String,
}

/// Bounds of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Prompt and new tokens of one row together, at most.
    pub max_context_tokens: Option<u32>,
}

/// Generation settings that a model's makers recommend.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenerationDefaults {
    /// See [`Sampling`](crate::job::Sampling).
    pub temperature: Option<f32>,
    /// See [`Sampling`](crate::job::Sampling).
    pub top_p: Option<f32>,
    /// See [`Sampling`](crate::job::Sampling).
    pub top_k: Option<u32>,
    /// See [`Sampling`](crate::job::Sampling).
    pub min_p: Option<f32>,
    /// See [`Sampling`](crate::job::Sampling).
    pub repetition_penalty: Option<f32>,
    /// New tokens of a request that does not say how many.
    pub max_tokens: Option<u32>,
}

/// One place where a model's file may be had.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(
    tag = "kind",
    rename_all = "kebab-case",
    rename_all_fields = "snake_case",
    deny_unknown_fields
)]
pub enum Source {
    /// A file in the models folder.
    Local {
        /// Its path below that folder.
        file: PathBuf,
    },
    /// The Hugging Face cache of this machine.
    HfCache {
        /// `owner/name`.
        repo: String,
        /// The file's path in the repository.
        file: String,
    },
    /// The Hugging Face hub, at the manifest's revision.
    Hub {
        /// `owner/name`.
        repo: String,
        /// The file's path in the repository.
        file: String,
    },
    /// A Python package that carries the file.
    Pip {
        /// Its name.
        package: String,
        /// Its exact version.
        version: String,
        /// The file's path in the wheel.
        member: String,
    },
}

/// A manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no TOML, or a key is missing, unknown or of the wrong type.
    #[error("model manifest {origin}: {message}")]
    Parse {
        /// The file.
        origin: String,
        /// What is wrong.
        message: String,
    },
}

impl Manifest {
    /// Reads and checks one manifest. `origin` names it in errors.
    ///
    /// # Errors
    /// [`ManifestError::Parse`].
    pub fn parse(text: &str, origin: &str) -> Result<Self, ManifestError> {
        let wrong = |message: String| ManifestError::Parse {
            origin: origin.to_owned(),
            message,
        };
        let manifest: Manifest = toml::from_str(text).map_err(|error| wrong(error.to_string()))?;
        if !is_model_name(&manifest.name) {
            return Err(wrong(format!(
                "name {:?} is not 1 to {MAX_NAME_CHARS} of a-z, 0-9, '.', '_' and '-'",
                manifest.name
            )));
        }
        if !is_sha256(&manifest.file.sha256) {
            return Err(wrong(
                "file.sha256 is not 64 lowercase hexadecimal digits".into(),
            ));
        }
        if Path::new(&manifest.file.name).components().count() != 1
            || Path::new(&manifest.file.name).file_name().is_none()
        {
            return Err(wrong(format!(
                "file.name {:?} is not a plain file name",
                manifest.file.name
            )));
        }
        if manifest.sources.is_empty() {
            return Err(wrong("sources is empty".into()));
        }
        Ok(manifest)
    }
}

impl ImageManifest {
    /// Reads and checks one manifest. `origin` names it in errors.
    ///
    /// # Errors
    /// [`ManifestError::Parse`].
    pub fn parse(text: &str, origin: &str) -> Result<Self, ManifestError> {
        let wrong = |message: String| ManifestError::Parse {
            origin: origin.to_owned(),
            message,
        };
        let manifest: ImageManifest =
            toml::from_str(text).map_err(|error| wrong(error.to_string()))?;
        if !is_model_name(&manifest.name) {
            return Err(wrong(format!(
                "name {:?} is not 1 to {MAX_NAME_CHARS} of a-z, 0-9, '.', '_' and '-'",
                manifest.name
            )));
        }
        let is_path = |text: &str| text.split('/').all(is_path_part);
        if manifest.repo.split('/').count() != 2 || !is_path(&manifest.repo) {
            return Err(wrong(format!("repo {:?} is not owner/name", manifest.repo)));
        }
        if !is_path(&manifest.revision) {
            return Err(wrong(format!(
                "revision {:?} is no branch, tag or commit",
                manifest.revision
            )));
        }
        Ok(manifest)
    }
}

/// Parts of hub paths become parts of file paths: nothing may climb out of the cache.
pub(super) fn is_path_part(part: &str) -> bool {
    !part.is_empty()
        && !part.starts_with('.')
        && part
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'+'))
}

/// What a manifest is for: read first, since it decides how the rest is read.
#[derive(Deserialize)]
struct TaskOnly {
    task: Task,
}

/// The longest name a model may have.
pub const MAX_NAME_CHARS: usize = 64;

/// Whether `name` may name a model: 1 to 64 of `a-z 0-9 . _ -`, not starting with a dot. Such a
/// name is safe as a file name, a metric label and a part of a URL.
pub fn is_model_name(name: &str) -> bool {
    (1..=MAX_NAME_CHARS).contains(&name.len())
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'))
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The manifests that are compiled in: file name and text.
const BUNDLED: &[(&str, &str)] = &[(
    "smollm2-135m-instruct.toml",
    include_str!("../../models/smollm2-135m-instruct.toml"),
)];

/// Likewise of image models.
const BUNDLED_IMAGES: &[(&str, &str)] = &[
    (
        "lcm-dreamshaper-v7.toml",
        include_str!("../../models/lcm-dreamshaper-v7.toml"),
    ),
    ("sd-turbo.toml", include_str!("../../models/sd-turbo.toml")),
    (
        "sdxl-base-1.0.toml",
        include_str!("../../models/sdxl-base-1.0.toml"),
    ),
    (
        "sdxl-turbo.toml",
        include_str!("../../models/sdxl-turbo.toml"),
    ),
    (
        "stable-diffusion-v1-5.toml",
        include_str!("../../models/stable-diffusion-v1-5.toml"),
    ),
];

/// Every model known by name.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    manifests: BTreeMap<String, Manifest>,
    images: BTreeMap<String, ImageManifest>,
}

impl Catalogue {
    /// The bundled manifests, and those of `folder` over them.
    ///
    /// # Errors
    /// See [`ManifestError`].
    pub fn load(folder: Option<&Path>) -> Result<Self, ManifestError> {
        let mut catalogue = Catalogue::default();
        for (origin, text) in BUNDLED.iter().chain(BUNDLED_IMAGES) {
            catalogue.read(text, origin)?;
        }
        if let Some(folder) = folder {
            catalogue.load_folder(folder)?;
        }
        Ok(catalogue)
    }

    fn load_folder(&mut self, folder: &Path) -> Result<(), ManifestError> {
        let unreadable = |path: &Path| {
            let path = path.to_owned();
            move |source| ManifestError::Read { path, source }
        };
        let entries = std::fs::read_dir(folder).map_err(unreadable(folder))?;
        for entry in entries {
            let path = entry.map_err(unreadable(folder))?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "toml")
            {
                let text = std::fs::read_to_string(&path).map_err(unreadable(&path))?;
                self.read(&text, &path.display().to_string())?;
            }
        }
        Ok(())
    }

    /// Takes a manifest in, in place of any other of its name.
    fn read(&mut self, text: &str, origin: &str) -> Result<(), ManifestError> {
        // What is wrong is said by the reader of the whole.
        let task = toml::from_str::<TaskOnly>(text).map_or(Task::Text, |manifest| manifest.task);
        match task {
            Task::Text => {
                let manifest = Manifest::parse(text, origin)?;
                self.images.remove(&manifest.name);
                self.manifests.insert(manifest.name.clone(), manifest);
            }
            Task::Image => {
                let manifest = ImageManifest::parse(text, origin)?;
                self.manifests.remove(&manifest.name);
                self.images.insert(manifest.name.clone(), manifest);
            }
        }
        Ok(())
    }

    /// The image model of this name.
    pub fn image(&self, name: &str) -> Option<&ImageManifest> {
        self.images.get(name)
    }

    /// All image models, by name.
    pub fn images(&self) -> impl Iterator<Item = &ImageManifest> {
        self.images.values()
    }

    /// The text model of this name.
    pub fn get(&self, name: &str) -> Option<&Manifest> {
        self.manifests.get(name)
    }

    /// All text models, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Manifest> {
        self.manifests.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundled_manifests_are_valid_and_named_as_their_files() {
        for (file, text) in BUNDLED {
            let manifest = Manifest::parse(text, file).unwrap();
            assert_eq!(format!("{}.toml", manifest.name), *file);
        }
        for (file, text) in BUNDLED_IMAGES {
            let manifest = ImageManifest::parse(text, file).unwrap();
            assert_eq!(format!("{}.toml", manifest.name), *file);
            assert_eq!(manifest.task, Task::Image);
        }
        let catalogue = Catalogue::load(None).unwrap();
        assert_eq!(catalogue.iter().count(), BUNDLED.len());
        assert_eq!(catalogue.images().count(), BUNDLED_IMAGES.len());
    }

    #[test]
    fn a_wrong_image_manifest_is_refused_by_name() {
        let good = BUNDLED_IMAGES[1].1;
        for (from, to, expected) in [
            ("repo = \"stabilityai/", "repo = \"../", "repo"),
            ("revision = \"main\"", "revision = \"..\"", "revision"),
            ("name = \"sd-turbo\"", "name = \"SD Turbo\"", "name"),
            ("\nsteps", "\nstep", "step"),
        ] {
            let text = good.replacen(from, to, 1);
            assert_ne!(text, good, "{from} is not in the manifest");
            let mut catalogue = Catalogue::default();
            let error = catalogue.read(&text, "x.toml").unwrap_err().to_string();
            assert!(error.contains("x.toml"), "{error}");
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_wrong_manifest_is_refused_by_name() {
        let good = BUNDLED[0].1;
        for (from, to, expected) in [
            (
                "name = \"smollm2-135m-instruct\"",
                "name = \"../x\"",
                "\"../x\"",
            ),
            ("sha256 = \"b179", "sha256 = \"B179", "file.sha256"),
            ("license", "licence", "licence"),
            ("kind = \"pip\"", "kind = \"ftp\"", "ftp"),
            ("member = ", "path = ", "path"),
        ] {
            let text = good.replacen(from, to, 1);
            assert_ne!(text, good, "{from} is not in the manifest");
            let error = Manifest::parse(&text, "x.toml").unwrap_err().to_string();
            assert!(error.contains("x.toml"), "{error}");
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn model_names_are_safe_as_file_names() {
        for good in ["a", "smollm2-135m-instruct", "qwen2.5_0.5b"] {
            assert!(is_model_name(good), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            ".a",
            "A",
            "a/b",
            "a\\b",
            "a b",
            &"x".repeat(65),
        ] {
            assert!(!is_model_name(bad), "{bad}");
        }
    }
}
