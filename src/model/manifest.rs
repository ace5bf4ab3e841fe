//! `models/*.toml`: what a model is, where it comes from, its digests, limits and defaults.

use std::path::PathBuf;

/// A model's files, once they are on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelFiles {
    /// One GGUF file.
    Gguf(PathBuf),
    /// A folder with `config.json`, safetensors and a tokenizer.
    Folder(PathBuf),
    /// Seeded random weights in the shape of a `config.json` (the file itself).
    Dummy {
        /// The `config.json`; a `tokenizer.json` beside it is used if there is one.
        config: PathBuf,
        /// Seed of the weights.
        seed: u64,
    },
    /// A script for the scripted model.
    Scripted(PathBuf),
}
