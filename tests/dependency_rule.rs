//! Arrows point down: a module may use its own layer and those below it, never one above.
//!
//! Read off the sources' `crate::` paths, so that a shortcut taken in a hurry fails here and not in
//! somebody's understanding a year later. See ARCHITECTURE.md for the layers.

use std::fs;
use std::path::{Path, PathBuf};

/// Top-level module -> layer, from the words at the bottom to the shell at the top.
const LAYERS: &[(&str, u8)] = &[
    ("time", 0),
    ("job", 0),
    ("batch", 0),
    ("picture", 0),
    ("scheduler", 1),
    ("events", 1),
    ("kernels", 2),
    ("model", 2),
    ("engine", 3),
    ("intake", 4),
    ("api", 4),
    ("client", 5),
    ("config", 5),
    ("telemetry", 5),
    ("shutdown", 5),
    ("bench", 5),
    ("gpu_check", 5),
    ("main", 5),
    ("lib", 5),
];

/// External crate -> the layers that may use it, with the files that are allowed all the same.
const EXTERNAL: &[(&str, std::ops::RangeInclusive<u8>, &[&str])] = &[
    // What gpu-check compares is what the model layer exchanges.
    ("candle_core", 2..=2, &["gpu_check/"]),
    ("candle_nn", 2..=2, &[]),
    ("candle_transformers", 2..=2, &[]),
    ("axum", 4..=5, &[]),
    ("hyper", 4..=5, &[]),
    ("tower_http", 4..=5, &[]),
    // The store and the engine's handle wake async readers; nothing else below the edge does.
    ("tokio", 4..=5, &["events/store.rs", "engine/"]),
    ("prometheus_client", 5..=5, &[]),
    ("clap", 5..=5, &[]),
];

/// What only a build for one maker's cards has, and where it may be named: elsewhere the code would not fit the others.
const DEVICE_WORDS: &[&str] = &[
    "cudarc",
    "cuda_backend",
    "CudaDevice",
    "CudaStorage",
    "CudaSlice",
    "CudaStream",
    "metal_backend",
    "MetalDevice",
    "MetalStorage",
    "candle_flash_attn",
];
const DEVICE_PLACES: &[&str] = &["model/device.rs", "model/device/", "kernels/"];

struct Source {
    /// Path below `src/`, with forward slashes.
    path: String,
    module: String,
    layer: u8,
    /// The lines outside `#[cfg(test)]` modules and comments.
    lines: Vec<(usize, String)>,
}

#[test]
fn arrows_point_down() {
    let mut wrong = Vec::new();
    for source in sources() {
        for (number, line) in &source.lines {
            for target in crate_paths(line) {
                let Some(target_layer) = layer_of(&target) else {
                    continue;
                };
                let sideways = target_layer == source.layer && target != source.module;
                let peers_apart = sideways && matches!(source.layer, 1)
                    || source.module == "kernels" && target == "model";
                if target_layer > source.layer || peers_apart {
                    wrong.push(format!(
                        "src/{}:{number}: {} must not use crate::{target}",
                        source.path, source.module
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn external_crates_stay_in_their_layers() {
    let mut wrong = Vec::new();
    for source in sources() {
        for (name, layers, except) in EXTERNAL {
            if layers.contains(&source.layer)
                || except.iter().any(|prefix| source.path.starts_with(prefix))
            {
                continue;
            }
            for (number, line) in &source.lines {
                if line.contains(&format!("{name}::")) {
                    wrong.push(format!(
                        "src/{}:{number}: {} must not use {name}",
                        source.path, source.module
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn devices_are_known_in_one_file_and_to_the_kernels() {
    let mut wrong = Vec::new();
    for source in sources() {
        if DEVICE_PLACES
            .iter()
            .any(|place| source.path.starts_with(place))
        {
            continue;
        }
        for (number, line) in &source.lines {
            if let Some(word) = device_word(line) {
                let path = &source.path;
                wrong.push(format!(
                    "src/{path}:{number}: {word} belongs in {DEVICE_PLACES:?}"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What a line says of one maker's cards: a type, or a condition on a feature.
fn device_word(line: &str) -> Option<&str> {
    let known = DEVICE_WORDS.iter().copied();
    if let Some(word) = known.clone().find(|word| line.contains(word)) {
        return Some(word);
    }
    let is_condition = line.contains("#[cfg") && line.contains("feature = ");
    is_condition.then_some("a condition on a feature")
}

#[test]
fn one_file_reads_the_clock() {
    let wrong: Vec<String> = sources()
        .into_iter()
        .filter(|source| source.path != "time.rs")
        .flat_map(|source| {
            let path = source.path.clone();
            source
                .lines
                .into_iter()
                .filter(|(_, line)| line.contains("Instant::now"))
                .map(move |(number, _)| {
                    format!("src/{path}:{number}: Instant::now belongs in time.rs")
                })
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_module_has_a_layer() {
    let unknown: Vec<String> = sources()
        .into_iter()
        .filter(|source| layer_of(&source.module).is_none())
        .map(|source| source.path)
        .collect();
    assert!(
        unknown.is_empty(),
        "give these a layer here and in ARCHITECTURE.md: {unknown:?}"
    );
}

#[test]
fn the_readers_of_this_test_can_read() {
    assert_eq!(
        crate_paths("use crate::{batch::Slot, job};"),
        ["batch", "job"]
    );
    assert_eq!(
        crate_paths("    let x = crate::time::Time::ZERO;"),
        ["time"]
    );
    assert_eq!(
        device_word("use candle_core::CudaDevice;"),
        Some("CudaDevice")
    );
    assert!(device_word("#[cfg(feature = \"cuda\")]").is_some());
    assert!(device_word("#[cfg(unix)]").is_none());
    assert!(sources().len() > 5);
}

fn layer_of(module: &str) -> Option<u8> {
    LAYERS
        .iter()
        .find(|(name, _)| *name == module)
        .map(|(_, layer)| *layer)
}

/// The top-level modules named by `crate::` (or `girandole::`, in the binary) in a line.
fn crate_paths(line: &str) -> Vec<String> {
    let mut found = Vec::new();
    for prefix in ["crate::", "girandole::"] {
        for (at, _) in line.match_indices(prefix) {
            let rest = &line[at + prefix.len()..];
            if let Some(group) = rest.strip_prefix('{') {
                found.extend(
                    group
                        .split(',')
                        .map(first_word)
                        .filter(|word| !word.is_empty()),
                );
            } else {
                found.push(first_word(rest));
            }
        }
    }
    found
}

fn first_word(text: &str) -> String {
    text.trim_start()
        .chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect()
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&root, &mut files);
    files.sort();
    files.into_iter().map(|file| read(&root, &file)).collect()
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("src is readable") {
        let path = entry.expect("src is readable").path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn read(root: &Path, file: &Path) -> Source {
    let path = file
        .strip_prefix(root)
        .expect("below src")
        .to_string_lossy()
        .replace('\\', "/");
    let module = path
        .split('/')
        .next()
        .expect("a path has a first part")
        .trim_end_matches(".rs")
        .to_owned();
    let text = fs::read_to_string(file).expect("sources are text");
    // Unit tests come last in a file, by the house's habit, and may reach wherever they like. A
    // whole file of tests is named `tests.rs`.
    let tests = text.find("#[cfg(test)]\nmod ").unwrap_or(text.len());
    let own = if path.ends_with("/tests.rs") {
        ""
    } else {
        &text[..tests]
    };
    let lines = own
        .lines()
        .enumerate()
        .map(|(index, line)| {
            (
                index + 1,
                line.split("//").next().unwrap_or_default().to_owned(),
            )
        })
        .collect();
    Source {
        layer: layer_of(&module).unwrap_or(u8::MAX),
        path,
        module,
        lines,
    }
}
