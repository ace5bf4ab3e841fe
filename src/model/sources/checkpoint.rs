//! A single-file checkpoint of an image model: the small files that it needs and does not carry.
//!
//! A folder of its own name beside it has them, or they are written into the cache: shapes by the file's family, the
//! vocabulary from a `tokenizer` folder beside the file, else from the repository that all of the family share it with.

use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::super::diffusion::checkpoint::Checkpoint;
use super::super::manifest::ModelFiles;
use super::cache::write_whole;
use super::{HubRepo, SourceError, SourceSettings, hub};

/// Where CLIP's vocabulary is published.
const VOCABULARY_REPO: &str = "openai/clip-vit-large-patch14";
/// What it is made of.
const VOCABULARY_FILES: [&str; 2] = ["vocab.json", "merges.txt"];

/// Finds or makes the folder that goes with a checkpoint.
///
/// # Errors
/// The file is no checkpoint, there is no vocabulary, or the cache cannot be written to.
pub(super) fn prepare(path: &Path, settings: &SourceSettings) -> Result<ModelFiles, SourceError> {
    let unusable = |message: String| SourceError::Unusable {
        model: path.display().to_string(),
        message,
    };
    let checkpoint = Checkpoint::open(path).map_err(|error| unusable(error.to_string()))?;
    let file = path.to_owned();
    if let Some(folder) = Checkpoint::folder_beside(path) {
        return Ok(ModelFiles::Checkpoint { file, folder });
    }
    let vocabulary = vocabulary(path, settings)?;
    let folder = settings.cache_folder.join("checkpoints").join(name(path));
    let write = |target: PathBuf, bytes: &[u8]| {
        write_whole(&target, bytes).map_err(|source| SourceError::Cache {
            folder: folder.clone(),
            source,
        })
    };
    for (name, value) in checkpoint.folder_files() {
        write(folder.join(name), value.to_string().as_bytes())?;
    }
    for (name, bytes) in &vocabulary {
        for tokenizer in checkpoint.tokenizers() {
            write(folder.join(tokenizer).join(name), bytes)?;
        }
    }
    Ok(ModelFiles::Checkpoint { file, folder })
}

/// A name for the folder that no other file has.
fn name(path: &Path) -> String {
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let digest = Sha256::digest(whole.as_os_str().as_encoded_bytes());
    let digest: String = digest
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    format!("{stem}-{digest}")
}

type Files = Vec<(&'static str, Vec<u8>)>;

fn vocabulary(path: &Path, settings: &SourceSettings) -> Result<Files, SourceError> {
    let read = |folder: &Path| -> io::Result<Files> {
        let files = VOCABULARY_FILES.iter();
        files
            .map(|name| Ok((*name, std::fs::read(folder.join(name))?)))
            .collect()
    };
    let beside = path.with_file_name("tokenizer");
    if let Ok(files) = read(&beside) {
        return Ok(files);
    }
    let repo = HubRepo {
        id: VOCABULARY_REPO.to_owned(),
        revision: None,
        file: None,
    };
    let folder = hub::fetch_files(&repo, &VOCABULARY_FILES, settings).map_err(|error| {
        SourceError::Unusable {
            model: path.display().to_string(),
            message: format!(
                "a single file carries no vocabulary. Put vocab.json and merges.txt of CLIP into {}, or let \
                 them be fetched: {error}",
                beside.display()
            ),
        }
    })?;
    read(&folder).map_err(|source| SourceError::Cache { folder, source })
}
