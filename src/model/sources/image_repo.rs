//! A repository of the hub in diffusers' layout: which of its files are needed, and whether they are there.
//!
//! Only what the index names is fetched, and of each component one set of weights: published repositories hold the
//! same in several formats, and parts that nothing here reads (safety checkers, feature extractors).

use std::path::{Path, PathBuf};

use super::super::diffusion::config::{MODEL_INDEX, ModelIndex};
use super::{Reason, WeightsVariant, hub};

/// Components with weights.
const NETWORKS: [&str; 6] = [
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "transformer",
    "unet",
    "vae",
];
/// Components without.
const OTHERS: [&str; 4] = ["scheduler", "tokenizer", "tokenizer_2", "tokenizer_3"];
/// What of a component is fetched beside its weights.
const SMALL_FILES: [&str; 9] = [
    "config.json",
    "scheduler_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
];
/// What weights are called: diffusers' name, and transformers'.
const STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];
/// Endings of single files and of lists of shards, in full and in half precision.
const FULL: [&str; 2] = [".safetensors", ".safetensors.index.json"];
const HALF: [&str; 3] = [
    ".fp16.safetensors",
    ".safetensors.index.fp16.json",
    ".fp16.safetensors.index.json",
];

/// Fetches all that is needed by `get`, which tells where a file of the repository is then. `names`: all of its files.
/// Gives the folder.
///
/// # Errors
/// A component that the index names has no safetensors, or `get` fails.
pub(super) fn fetch(
    names: &[String],
    variant: WeightsVariant,
    get: impl Fn(&str) -> Result<PathBuf, Reason>,
) -> Result<PathBuf, Reason> {
    let folder = describe(names, &get)?;
    let index = index(&folder)?;
    for component in networks(&index) {
        let is_known = |name: &str| names.iter().any(|known| known == name);
        let file = weights(component, variant, is_known)?;
        let path = get(&file)?;
        if file.ends_with(".json") {
            for shard in listed(&path, component)? {
                get(&shard)?;
            }
        }
    }
    Ok(folder)
}

/// Fetches the index and the small files of its components: all that random weights need. Gives the folder.
///
/// # Errors
/// `get` fails.
pub(super) fn describe(
    names: &[String],
    get: impl Fn(&str) -> Result<PathBuf, Reason>,
) -> Result<PathBuf, Reason> {
    let path = get(MODEL_INDEX)?;
    let folder = path.parent().ok_or("the index is in no folder")?.to_owned();
    let index = index(&folder)?;
    let wanted = |name: &&String| {
        let Some((component, file)) = name.split_once('/') else {
            return false;
        };
        components(&index).any(|known| known == component) && SMALL_FILES.contains(&file)
    };
    for name in names.iter().filter(wanted) {
        get(name)?;
    }
    Ok(folder)
}

/// Whether a folder has all that random weights need: a download may have been interrupted half way.
pub(super) fn is_described(folder: &Path) -> bool {
    let Ok(index) = index(folder) else {
        return false;
    };
    components(&index).all(|component| {
        let has = |name: &str| folder.join(component).join(name).is_file();
        match component {
            "scheduler" => has("scheduler_config.json"),
            _ if NETWORKS.contains(&component) => has("config.json"),
            _ => has("tokenizer.json") || (has("vocab.json") && has("merges.txt")),
        }
    })
}

/// Whether a folder has all that the model needs.
pub(super) fn is_whole(folder: &Path) -> bool {
    let Ok(index) = index(folder) else {
        return false;
    };
    let has = |name: &str| folder.join(name).is_file();
    is_described(folder)
        && networks(&index).all(|component| {
            // Either kind will do: the one that is there was asked for.
            [WeightsVariant::Full, WeightsVariant::Half]
                .into_iter()
                .filter_map(|variant| weights(component, variant, has).ok())
                .any(|file| match file.ends_with(".json") {
                    false => true,
                    true => listed(&folder.join(&file), component)
                        .is_ok_and(|shards| shards.iter().all(|shard| has(shard))),
                })
        })
}

fn index(folder: &Path) -> Result<ModelIndex, Reason> {
    ModelIndex::read(folder).map_err(|error| error.to_string())
}

fn components(index: &ModelIndex) -> impl Iterator<Item = &'static str> {
    let all = NETWORKS.into_iter().chain(OTHERS);
    all.filter(|name| index.component(name).is_some())
}

fn networks(index: &ModelIndex) -> impl Iterator<Item = &'static str> {
    NETWORKS
        .into_iter()
        .filter(|name| index.component(name).is_some())
}

/// The file with a component's weights, or the list of its shards: in the wanted precision, else in the other.
fn weights(
    component: &str,
    variant: WeightsVariant,
    has: impl Fn(&str) -> bool,
) -> Result<String, Reason> {
    let endings = match variant {
        WeightsVariant::Full => FULL.iter().chain(&HALF),
        WeightsVariant::Half => HALF.iter().chain(&FULL),
    };
    endings
        .flat_map(|ending| STEMS.map(|stem| format!("{component}/{stem}{ending}")))
        .find(|name| has(name))
        .ok_or_else(|| format!("{component} has no safetensors"))
}

/// The shards that a list names, with the component's folder.
fn listed(list: &Path, component: &str) -> Result<Vec<String>, Reason> {
    let wrong = |why: &str| format!("{}: {why}", list.display());
    let text = std::fs::read_to_string(list).map_err(|error| wrong(&error.to_string()))?;
    let shards = hub::shards(&text).ok_or_else(|| wrong("there is no weight_map"))?;
    let is_plain = |shard: &String| super::super::manifest::is_path_part(shard);
    match shards.iter().all(is_plain) {
        true => Ok(shards
            .iter()
            .map(|shard| format!("{component}/{shard}"))
            .collect()),
        false => Err(wrong("it names an odd file")),
    }
}
