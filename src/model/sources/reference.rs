//! What a user may write after `--model`.

use std::fmt;
use std::path::{Path, PathBuf};

use super::super::diffusion::config::MODEL_INDEX;
use super::super::manifest::{Catalogue, ImageManifest, MAX_NAME_CHARS, Manifest, is_path_part};
use super::bundled::{BUNDLED, BundledModel};

/// A model, as the user named it.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelRef {
    /// Compiled into the program.
    Bundled(&'static BundledModel),
    /// By a name that a manifest explains.
    Known(Box<Manifest>),
    /// An image model, likewise.
    KnownImage(Box<ImageManifest>),
    /// A GGUF file.
    Gguf(PathBuf),
    /// A folder with `config.json` and safetensors; or of an image model, with `model_index.json`.
    Folder(PathBuf),
    /// An image model in one file of safetensors.
    Checkpoint(PathBuf),
    /// A `config.json` alone, for random weights.
    ConfigJson(PathBuf),
    /// `hf:owner/name[@revision][:file.gguf]`.
    Hub(HubRepo),
    /// `scripted:PATH`.
    Scripted(PathBuf),
}

/// A repository of the Hugging Face hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubRepo {
    /// `owner/name`.
    pub id: String,
    /// Branch, tag or commit; `main` if absent.
    pub revision: Option<String>,
    /// One GGUF file of it; the whole folder if absent.
    pub file: Option<String>,
}

/// What was written names no model.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnknownModel {
    /// Neither a name nor a path.
    #[error("no model of that name and no such file; known names: {}", known.join(", "))]
    Name {
        /// The names there are.
        known: Vec<String>,
    },
    /// A path to something that is no model.
    #[error(
        "neither a .gguf file, a .safetensors file, a config.json, nor a folder with a config.json or a \
         model_index.json"
    )]
    Path,
    /// A malformed repository.
    #[error(
        "a hub repository is written hf:owner/name, hf:owner/name@revision or \
             hf:owner/name:file.gguf"
    )]
    Hub,
}

impl ModelRef {
    /// Understands `text`.
    ///
    /// # Errors
    /// See [`UnknownModel`]. Paths must exist, so that a slip is noticed before anything starts.
    pub fn parse(text: &str, catalogue: &Catalogue) -> Result<Self, UnknownModel> {
        if let Some(path) = text.strip_prefix("scripted:") {
            return Ok(ModelRef::Scripted(path.into()));
        }
        if let Some(repo) = text.strip_prefix("hf:") {
            return HubRepo::parse(repo).map(ModelRef::Hub);
        }
        if let Some(manifest) = catalogue.get(text) {
            return Ok(ModelRef::Known(Box::new(manifest.clone())));
        }
        if let Some(manifest) = catalogue.image(text) {
            return Ok(ModelRef::KnownImage(Box::new(manifest.clone())));
        }
        if let Some(model) = BundledModel::find(text) {
            return Ok(ModelRef::Bundled(model));
        }
        let path = Path::new(text);
        if !path.exists() {
            let bundled = BUNDLED.iter().map(|model| model.name.to_owned());
            let known = catalogue.iter().map(|m| m.name.clone());
            let images = catalogue.images().map(|m| m.name.clone());
            return Err(UnknownModel::Name {
                known: known.chain(bundled).chain(images).collect(),
            });
        }
        Self::at(path).ok_or(UnknownModel::Path)
    }

    fn at(path: &Path) -> Option<Self> {
        if path.is_dir() {
            let complete = ["config.json", MODEL_INDEX]
                .iter()
                .any(|name| path.join(name).is_file());
            return complete.then(|| ModelRef::Folder(path.to_owned()));
        }
        match path.extension()?.to_str()? {
            "gguf" => Some(ModelRef::Gguf(path.to_owned())),
            "json" => Some(ModelRef::ConfigJson(path.to_owned())),
            "safetensors" => Some(ModelRef::Checkpoint(path.to_owned())),
            _ => None,
        }
    }

    /// The name that requests use unless the user chose another: the manifest's, or that of the
    /// file, folder or repository in lowercase, with `-` for anything that a name may not hold.
    pub fn default_name(&self) -> String {
        let stem = |path: &Path| {
            path.file_stem()
                .map(|stem| stem.to_string_lossy().into_owned())
        };
        let whole = |path: &Path| {
            path.file_name()
                .map(|name| name.to_string_lossy().into_owned())
        };
        let raw = match self {
            ModelRef::Known(manifest) => return manifest.name.clone(),
            ModelRef::KnownImage(manifest) => return manifest.name.clone(),
            ModelRef::Bundled(model) => return model.name.to_owned(),
            ModelRef::Gguf(path) | ModelRef::Checkpoint(path) | ModelRef::Scripted(path) => {
                stem(path)
            }
            ModelRef::Folder(path) => path.canonicalize().ok().as_deref().and_then(whole),
            ModelRef::ConfigJson(path) => match stem(path) {
                Some(name) if name != "config" => Some(name),
                _ => path
                    .canonicalize()
                    .ok()
                    .as_deref()
                    .and_then(Path::parent)
                    .and_then(whole),
            },
            ModelRef::Hub(repo) => Some(match &repo.file {
                Some(file) => stem(Path::new(file)).unwrap_or_default(),
                None => repo.id.rsplit('/').next().unwrap_or_default().to_owned(),
            }),
        };
        let name: String = raw
            .unwrap_or_default()
            .to_lowercase()
            .chars()
            .map(|c| match c {
                'a'..='z' | '0'..='9' | '.' | '_' | '-' => c,
                _ => '-',
            })
            .take(MAX_NAME_CHARS)
            .collect();
        let name = name.trim_start_matches('.');
        if name.is_empty() { "model" } else { name }.to_owned()
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModelRef::Known(manifest) => f.write_str(&manifest.name),
            ModelRef::KnownImage(manifest) => f.write_str(&manifest.name),
            ModelRef::Bundled(model) => f.write_str(model.name),
            ModelRef::Gguf(path)
            | ModelRef::Folder(path)
            | ModelRef::Checkpoint(path)
            | ModelRef::ConfigJson(path) => write!(f, "{}", path.display()),
            ModelRef::Scripted(path) => write!(f, "scripted:{}", path.display()),
            ModelRef::Hub(repo) => write!(f, "{repo}"),
        }
    }
}

impl HubRepo {
    fn parse(text: &str) -> Result<Self, UnknownModel> {
        let (text, file) = match text.split_once(':') {
            Some((before, file)) => (before, Some(file)),
            None => (text, None),
        };
        let (id, revision) = match text.split_once('@') {
            Some((id, revision)) => (id, Some(revision)),
            None => (text, None),
        };
        let valid = id.split('/').count() == 2
            && id.split('/').all(is_path_part)
            && revision.is_none_or(|revision| revision.split('/').all(is_path_part))
            && file.is_none_or(|file| file.ends_with(".gguf") && file.split('/').all(is_path_part));
        if !valid {
            return Err(UnknownModel::Hub);
        }
        Ok(HubRepo {
            id: id.to_owned(),
            revision: revision.map(str::to_owned),
            file: file.map(str::to_owned),
        })
    }

    /// The repository of an image model's manifest.
    pub(super) fn of(manifest: &ImageManifest) -> Self {
        HubRepo {
            id: manifest.repo.clone(),
            revision: Some(manifest.revision.clone()),
            file: None,
        }
    }

    /// The revision to ask for.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }
}

impl fmt::Display for HubRepo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hf:{}", self.id)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        if let Some(file) = &self.file {
            write!(f, ":{file}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ModelRef, UnknownModel> {
        ModelRef::parse(text, &Catalogue::load(None).unwrap())
    }

    #[test]
    fn hub_repositories_read_as_they_are_written() {
        for text in [
            "hf:Qwen/Qwen2.5-0.5B-Instruct",
            "hf:a/b@refs/pr/1",
            "hf:a/b@main:sub/x.gguf",
            "hf:a/b:x.gguf",
        ] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
        for text in [
            "hf:",
            "hf:a",
            "hf:a/b/c",
            "hf:../b",
            "hf:a/..",
            "hf:a/b@..",
            "hf:a/b:../x.gguf",
            "hf:a/b:x.bin",
            "hf:a/b:",
            "hf:a/b@",
        ] {
            assert_eq!(parse(text), Err(UnknownModel::Hub), "{text}");
        }
    }

    #[test]
    fn paths_and_names() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("My Model+X");
        std::fs::create_dir(&model).unwrap();
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        assert_eq!(parse(&text(&model)), Err(UnknownModel::Path));
        std::fs::write(model.join("config.json"), "{}").unwrap();
        std::fs::write(model.join("Tiny.Q4_1.gguf"), "").unwrap();
        let named = |path: &Path| parse(&text(path)).unwrap().default_name();
        assert_eq!(named(&model), "my-model-x");
        assert_eq!(named(&model.join("config.json")), "my-model-x");
        assert_eq!(named(&model.join("Tiny.Q4_1.gguf")), "tiny.q4_1");
        assert_eq!(
            parse("hf:Qwen/Qwen3-0.6B").unwrap().default_name(),
            "qwen3-0.6b"
        );
        assert_eq!(
            parse("scripted:a/fast.toml").unwrap().default_name(),
            "fast"
        );
        let known = parse("smollm2-135m-instruct").unwrap();
        assert_eq!(known.default_name(), "smollm2-135m-instruct");
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let error = parse("smollm3").unwrap_err().to_string();
        assert!(error.contains("smollm2-135m-instruct"), "{error}");
    }
}
