//! Models that are compiled into the program, so that the first command has something to show.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::cache::write_whole;

/// A model in diffusers' layout, with all its files.
#[derive(Debug, PartialEq)]
pub struct BundledModel {
    /// What requests call it.
    pub name: &'static str,
    /// One line for people.
    pub description: &'static str,
    /// Denoising steps of a request that does not say.
    pub steps: u32,
    /// Guidance of a request that does not say.
    pub guidance_scale: f32,
    /// Path below the model's folder, and content.
    files: &'static [(&'static str, &'static [u8])],
}

macro_rules! files {
    ($folder:literal: $($file:literal),+ $(,)?) => {
        &[$(($file, include_bytes!(concat!("../../../models/", $folder, "/", $file)))),+]
    };
}

/// All of them.
pub static BUNDLED: [BundledModel; 1] = [BundledModel {
    name: "tiny-sd",
    description: "Coloured shapes, 128 pixels, for trying things out",
    steps: 20,
    guidance_scale: 5.0,
    files: files!("tiny-sd":
        "model_index.json",
        "preview.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ),
}];

impl BundledModel {
    /// The model of this name.
    pub fn find(name: &str) -> Option<&'static Self> {
        BUNDLED.iter().find(|model| model.name == name)
    }

    /// Bytes of all files.
    pub fn size_bytes(&self) -> u64 {
        self.files.iter().map(|(_, bytes)| bytes.len() as u64).sum()
    }

    /// Where its files are once it has been unpacked: a folder of their digest, so that another version of
    /// the program finds its own.
    pub fn folder(&self, cache_folder: &Path) -> PathBuf {
        let mut digest = Sha256::new();
        for (path, bytes) in self.files {
            digest.update(path);
            digest.update((bytes.len() as u64).to_le_bytes());
            digest.update(bytes);
        }
        let digest: String = digest
            .finalize()
            .iter()
            .take(6)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        cache_folder
            .join("bundled")
            .join(format!("{}-{digest}", self.name))
    }

    /// Unpacks it, unless that was done before. Weights are mapped from files, as everybody's.
    ///
    /// # Errors
    /// The cache folder cannot be written to.
    pub fn unpack(&self, cache_folder: &Path) -> io::Result<PathBuf> {
        let folder = self.folder(cache_folder);
        for (path, bytes) in self.files {
            let target = folder.join(path);
            // Read in full: a damaged file may be as long as a sound one.
            if fs::read(&target).is_ok_and(|found| found == *bytes) {
                continue;
            }
            write_whole(&target, bytes)?;
        }
        Ok(folder)
    }
}

/// Writes a file that was not there before.
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundled_model_is_unpacked_once_and_mended() {
        let cache = tempfile::tempdir().expect("a folder");
        let model = BundledModel::find("tiny-sd").expect("it is bundled");
        let folder = model.unpack(cache.path()).expect("there is room");
        let index = folder.join("model_index.json");
        let first = fs::read(&index).expect("it was unpacked");
        // Cut short, and as long as before.
        for damaged in [vec![b'{'], vec![b'{'; first.len()]] {
            fs::write(&index, damaged).expect("it can be damaged");
            assert_eq!(model.unpack(cache.path()).expect("there is room"), folder);
            assert_eq!(fs::read(&index).expect("it is there"), first);
        }
        let left = fs::read_dir(&folder).expect("a folder").flatten();
        let drafts = left.filter(|entry| entry.file_name().to_string_lossy().starts_with('.'));
        assert_eq!(drafts.count(), 0);
        let total: u64 = model.size_bytes();
        assert!((1 << 20..20 << 20).contains(&total), "{total}");
        assert!(BundledModel::find("tiny").is_none());
    }
}
