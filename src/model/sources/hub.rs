//! The Hugging Face hub, through hf-hub, and its cache on this machine.
//!
//! hf-hub has no timeouts and expects well-formed answers, so it is asked whether anybody listens
//! first, runs on a thread of its own, and is given up when it stands still.

use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Repo, RepoType};

use super::super::diffusion::config::MODEL_INDEX;
use super::super::manifest::{ModelFiles, is_path_part};
use super::image_repo;
use super::progress::Meter;
use super::{HubRepo, Reason, SourceError, SourceSettings, WeightsVariant};

/// How long to wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// How long a download may stand still.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Files of a repository that a text model may need, beside its safetensors.
const SMALL_FILES: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "model.safetensors.index.json",
];
/// More files than any supported model has: a bound on what an answer may make us do.
const MAX_REPO_FILES: usize = 512;

/// How to reach the hub; read from its own environment variables.
#[derive(Clone, PartialEq, Eq)]
pub struct HubSettings {
    /// `HF_ENDPOINT`.
    pub endpoint: String,
    /// `HF_TOKEN`. Never shown.
    pub token: Option<String>,
    /// `HF_HUB_OFFLINE`: use the cache only.
    pub offline: bool,
    /// `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE` or `HF_HOME/hub`.
    pub cache_folder: PathBuf,
    /// Whether a proxy stands between us and the hub: then only the proxy can tell who listens.
    pub proxied: bool,
}

impl std::fmt::Debug for HubSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubSettings")
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "(hidden)"))
            .field("offline", &self.offline)
            .field("cache_folder", &self.cache_folder)
            .field("proxied", &self.proxied)
            .finish()
    }
}

impl HubSettings {
    /// From the environment that `variable` looks into.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Self {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let first = |names: &[&str]| names.iter().find_map(|name| variable(name));
        let home = first(&["HF_HOME"]).map(PathBuf::from).unwrap_or_else(|| {
            let base = first(&["XDG_CACHE_HOME"]).map(PathBuf::from);
            let user = || PathBuf::from(variable("HOME").unwrap_or_default()).join(".cache");
            base.unwrap_or_else(user).join("huggingface")
        });
        HubSettings {
            endpoint: first(&["HF_ENDPOINT"])
                .unwrap_or_else(|| "https://huggingface.co".to_owned())
                .trim_end_matches('/')
                .to_owned(),
            token: first(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"])
                .or_else(|| std::fs::read_to_string(home.join("token")).ok())
                .map(|token| token.trim().to_owned())
                .filter(|token| !token.is_empty()),
            offline: first(&["HF_HUB_OFFLINE"]).is_some_and(|value| is_true(&value)),
            cache_folder: first(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"])
                .map_or_else(|| home.join("hub"), PathBuf::from),
            proxied: first(&[
                "HTTPS_PROXY",
                "https_proxy",
                "HTTP_PROXY",
                "http_proxy",
                "ALL_PROXY",
                "all_proxy",
            ])
            .is_some(),
        }
    }
}

/// As the hub's own library reads its switches.
fn is_true(value: &str) -> bool {
    matches!(value.to_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE")
}

/// Copies of a file in the hub's cache: one per commit that it was fetched at.
pub(super) fn cached_copies(settings: &HubSettings, repo: &str, file: &str) -> Vec<PathBuf> {
    let snapshots = folder_of(settings, repo).join("snapshots");
    let Ok(entries) = std::fs::read_dir(snapshots) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| Some(entry.ok()?.path().join(file)))
        .filter(|path| path.exists())
        .collect()
}

fn folder_of(settings: &HubSettings, repo: &str) -> PathBuf {
    let name = format!("models--{}", repo.replace('/', "--"));
    settings.cache_folder.join(name)
}

/// Downloads one file into `folder`, leaving the hub's cache alone.
pub(super) fn download_to(
    repo: &HubRepo,
    file: &str,
    folder: &Path,
    settings: &HubSettings,
) -> Result<PathBuf, Reason> {
    let (repo, file) = (repo.clone(), file.to_owned());
    let cache = folder.join("hub");
    with_hub(settings, cache, move |api, beat| {
        download(&repository(api, &repo), &file, beat)
    })
}

/// The files of a whole repository, from the hub's cache or the hub.
pub(super) fn fetch_repo(
    repo: &HubRepo,
    settings: &SourceSettings,
) -> Result<ModelFiles, SourceError> {
    if let Some(files) = cached_repo(repo, &settings.hub) {
        return Ok(files);
    }
    let variant = settings.variant;
    let snapshots = folder_of(&settings.hub, &repo.id).join("snapshots");
    download_repo(repo, settings, move |api, repo, beat| match &repo.file {
        Some(file) => download(api, file, beat).map(ModelFiles::Gguf),
        None => download_folder(api, &snapshots, variant, beat).map(ModelFiles::Folder),
    })
}

/// Some small files of a repository: the folder that they are in.
pub(super) fn fetch_files(
    repo: &HubRepo,
    files: &'static [&'static str],
    settings: &SourceSettings,
) -> Result<PathBuf, SourceError> {
    let is_there = |folder: &PathBuf| files.iter().all(|file| folder.join(file).is_file());
    if let Some(folder) = cached_snapshot(repo, &settings.hub).filter(is_there) {
        return Ok(folder);
    }
    download_repo(repo, settings, move |api, _, beat| {
        let mut folder = None;
        for file in files {
            folder = download(api, file, beat)?.parent().map(Path::to_owned);
        }
        folder.ok_or_else(|| "no file was asked for".to_owned())
    })
}

/// The `config.json` of a repository, and the tokenizer beside it if there is one.
pub(super) fn fetch_config(
    repo: &HubRepo,
    settings: &SourceSettings,
) -> Result<PathBuf, SourceError> {
    if let Some(snapshot) = cached_snapshot(repo, &settings.hub) {
        let config = snapshot.join("config.json");
        if config.is_file() {
            return Ok(config);
        }
        if image_repo::is_described(&snapshot) {
            return Ok(snapshot.join(MODEL_INDEX));
        }
    }
    let snapshots = folder_of(&settings.hub, &repo.id).join("snapshots");
    download_repo(repo, settings, move |api, _, beat| {
        let Listing { commit, names } = listing(api)?;
        if names.iter().any(|name| name == MODEL_INDEX) {
            let snapshot = snapshots.join(commit);
            let get = |name: &str| download_unless_there(api, &snapshot, name, beat);
            return image_repo::describe(&names, get).map(|folder| folder.join(MODEL_INDEX));
        }
        for file in names
            .iter()
            .filter(|name| SMALL_FILES.contains(&name.as_str()))
        {
            download(api, file, beat)?;
        }
        download(api, "config.json", beat)
    })
}

fn download_repo<T: Send + 'static>(
    repo: &HubRepo,
    settings: &SourceSettings,
    work: impl FnOnce(&ApiRepo, &HubRepo, &Heartbeat) -> Result<T, Reason> + Send + 'static,
) -> Result<T, SourceError> {
    let exhausted = |reason: Reason| SourceError::Exhausted {
        model: repo.to_string(),
        reasons: vec![
            (
                "Hugging Face cache".to_owned(),
                "not there, or not whole".to_owned(),
            ),
            ("Hugging Face hub".to_owned(), reason),
        ],
    };
    if settings.offline {
        return Err(exhausted(
            "not tried: the configuration says offline".into(),
        ));
    }
    let cache = settings.hub.cache_folder.clone();
    let wanted = repo.clone();
    with_hub(&settings.hub, cache, move |api, beat| {
        work(&repository(api, &wanted), &wanted, beat)
    })
    .map_err(exhausted)
}

/// The snapshot folder of a repository in the hub's cache.
fn cached_snapshot(repo: &HubRepo, settings: &HubSettings) -> Option<PathBuf> {
    let folder = folder_of(settings, &repo.id);
    let commit = std::fs::read_to_string(folder.join("refs").join(repo.revision()))
        .unwrap_or_else(|_| repo.revision().to_owned());
    let snapshot = folder.join("snapshots").join(commit.trim());
    snapshot.is_dir().then_some(snapshot)
}

fn cached_repo(repo: &HubRepo, settings: &HubSettings) -> Option<ModelFiles> {
    let snapshot = cached_snapshot(repo, settings)?;
    match &repo.file {
        Some(file) => {
            let path = snapshot.join(file);
            path.is_file().then_some(ModelFiles::Gguf(path))
        }
        None => is_whole(&snapshot).then_some(ModelFiles::Folder(snapshot)),
    }
}

/// The snapshot of a whole repository, if it is in the hub's cache.
pub(super) fn cached_folder(repo: &HubRepo, settings: &HubSettings) -> Option<PathBuf> {
    cached_snapshot(repo, settings).filter(|snapshot| is_whole(snapshot))
}

/// Whether a snapshot has what a model needs; a download may have been interrupted half way.
fn is_whole(snapshot: &Path) -> bool {
    let has = |name: &str| snapshot.join(name).is_file();
    if has(MODEL_INDEX) {
        return image_repo::is_whole(snapshot);
    }
    if !has("config.json") || !(has("tokenizer.json") || has("tokenizer.model")) {
        return false;
    }
    match std::fs::read_to_string(snapshot.join("model.safetensors.index.json")) {
        Ok(index) => shards(&index).is_some_and(|shards| shards.iter().all(|shard| has(shard))),
        Err(_) => has("model.safetensors"),
    }
}

/// The safetensors files that an index names.
pub(super) fn shards(index: &str) -> Option<Vec<String>> {
    let index: serde_json::Value = serde_json::from_str(index).ok()?;
    let names = index.get("weight_map")?.as_object()?.values();
    let mut shards: Vec<String> = names
        .map(|name| name.as_str().map(str::to_owned))
        .collect::<Option<_>>()?;
    shards.sort();
    shards.dedup();
    Some(shards)
}

/// What a repository holds.
struct Listing {
    /// Its newest commit, in a form that a folder can have for a name.
    commit: String,
    names: Vec<String>,
}

fn listing(repo: &ApiRepo) -> Result<Listing, Reason> {
    let info = repo.info().map_err(|error| explain(&error))?;
    if info.siblings.len() > MAX_REPO_FILES {
        return Err(format!(
            "the repository has {} files, over the limit of {MAX_REPO_FILES}",
            info.siblings.len()
        ));
    }
    // The top folder and those in it, which also keeps names that would climb out of the cache away.
    let is_near = |name: &String| name.split('/').count() <= 2 && name.split('/').all(is_path_part);
    if !is_path_part(&info.sha) {
        return Err("the hub names an odd commit".to_owned());
    }
    let names = info.siblings.into_iter().map(|sibling| sibling.rfilename);
    Ok(Listing {
        commit: info.sha,
        names: names.filter(is_near).collect(),
    })
}

fn download_folder(
    repo: &ApiRepo,
    snapshots: &Path,
    variant: WeightsVariant,
    beat: &Heartbeat,
) -> Result<PathBuf, Reason> {
    let Listing { commit, names } = listing(repo)?;
    if names.iter().any(|name| name == MODEL_INDEX) {
        let snapshot = snapshots.join(commit);
        let get = |name: &str| download_unless_there(repo, &snapshot, name, beat);
        return image_repo::fetch(&names, variant, get);
    }
    if !names.iter().any(|name| name == "config.json") {
        let ggufs: Vec<&str> = names
            .iter()
            .filter(|name| name.ends_with(".gguf") && is_path_part(name))
            .map(String::as_str)
            .collect();
        return Err(match ggufs.is_empty() {
            true => "the repository has no config.json".to_owned(),
            false => format!(
                "the repository has no config.json; add :FILE to choose one of {}",
                ggufs.join(", ")
            ),
        });
    }
    let small = names
        .iter()
        .filter(|name| SMALL_FILES.contains(&name.as_str()));
    let mut snapshot = None;
    for name in small {
        snapshot = download(repo, name, beat)?.parent().map(Path::to_owned);
    }
    let snapshot = snapshot.ok_or("the repository has no config.json")?;
    for shard in weight_files(&snapshot, &names)? {
        download(repo, &shard, beat)?;
    }
    Ok(snapshot)
}

fn weight_files(snapshot: &Path, names: &[String]) -> Result<Vec<String>, Reason> {
    if names.iter().any(|name| name == "model.safetensors") {
        return Ok(vec!["model.safetensors".to_owned()]);
    }
    let index = std::fs::read_to_string(snapshot.join("model.safetensors.index.json"))
        .map_err(|_| "the repository has no model.safetensors".to_owned())?;
    let shards = shards(&index).ok_or("model.safetensors.index.json has no weight_map")?;
    match shards.iter().find(|shard| !is_path_part(shard)) {
        Some(odd) => Err(format!("the index names an odd file {odd:?}")),
        None => Ok(shards),
    }
}

fn repository(api: &Api, repo: &HubRepo) -> ApiRepo {
    api.repo(Repo::with_revision(
        repo.id.clone(),
        RepoType::Model,
        repo.revision().to_owned(),
    ))
}

fn download(repo: &ApiRepo, file: &str, beat: &Heartbeat) -> Result<PathBuf, Reason> {
    let progress = BeatingMeter {
        meter: None,
        beat: beat.clone(),
    };
    repo.download_with_progress(file, progress)
        .map_err(|error| format!("{file}: {}", explain(&error)))
}

/// A download that was cut off goes on with the file that it lost: an image model has many, and large ones.
fn download_unless_there(
    repo: &ApiRepo,
    snapshot: &Path,
    file: &str,
    beat: &Heartbeat,
) -> Result<PathBuf, Reason> {
    let here = snapshot.join(file);
    match here.is_file() {
        true => Ok(here),
        false => download(repo, file, beat),
    }
}

fn explain(error: &ApiError) -> Reason {
    match error {
        ApiError::RequestError(error) => match error.to_string().as_str() {
            text if text.contains("401") || text.contains("403") => {
                format!("{text} (is HF_TOKEN set and allowed to read this repository?)")
            }
            text => text.to_owned(),
        },
        error => error.to_string(),
    }
}

/// A sign of life of a download, for whoever waits for it.
#[derive(Clone)]
struct Heartbeat(SyncSender<()>);

impl Heartbeat {
    /// A beat that finds the last one unread is not needed.
    fn beat(&self) {
        let _ = self.0.try_send(());
    }
}

struct BeatingMeter {
    meter: Option<Meter>,
    beat: Heartbeat,
}

impl hf_hub::api::Progress for BeatingMeter {
    /// Called twice per file by hf-hub: when it knows the size, and when data begins to flow.
    fn init(&mut self, size: usize, filename: &str) {
        self.beat.beat();
        if self.meter.is_none() {
            let label = format!("downloading {filename}");
            self.meter = Some(Meter::start(&label, Some(size as u64)));
        }
    }
    fn update(&mut self, size: usize) {
        self.beat.beat();
        if let Some(meter) = &mut self.meter {
            meter.advance(size as u64);
        }
    }
    fn finish(&mut self) {
        if let Some(meter) = &self.meter {
            meter.finish();
        }
    }
}

/// Runs `work` on a thread of its own and gives up when it stands still. A thread given up on ends
/// with its connection, or with the process.
fn with_hub<T: Send + 'static>(
    settings: &HubSettings,
    cache_folder: PathBuf,
    work: impl FnOnce(&Api, &Heartbeat) -> Result<T, Reason> + Send + 'static,
) -> Result<T, Reason> {
    if settings.offline {
        return Err("not tried: HF_HUB_OFFLINE is set".to_owned());
    }
    if !settings.proxied {
        probe(&settings.endpoint)?;
    }
    let api = connect(settings, cache_folder)?;
    let (beats, heard) = sync_channel(1);
    let heartbeat = Heartbeat(beats);
    let worker = std::thread::spawn(move || work(&api, &heartbeat));
    loop {
        match heard.recv_timeout(STALL_TIMEOUT) {
            Ok(()) => {}
            // The worker has dropped its heartbeat: it has ended.
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                return Err(format!("no data for {} s", STALL_TIMEOUT.as_secs()));
            }
        }
    }
    worker
        .join()
        .unwrap_or_else(|_| Err("the hub's answer makes no sense".to_owned()))
}

fn connect(settings: &HubSettings, cache_folder: PathBuf) -> Result<Api, Reason> {
    // hf-hub makes relative links, which needs a path without surprises.
    let cache_folder = std::path::absolute(cache_folder).map_err(|error| error.to_string())?;
    ApiBuilder::from_cache(hf_hub::Cache::new(cache_folder))
        .with_endpoint(settings.endpoint.clone())
        .with_token(settings.token.clone())
        .with_progress(false)
        .build()
        .map_err(|error| error.to_string())
}

/// Whether anybody listens at the endpoint. Name resolution has no timeout either, so this runs on
/// a thread too.
fn probe(endpoint: &str) -> Result<(), Reason> {
    let (host, port) = host_and_port(endpoint)
        .ok_or_else(|| "HF_ENDPOINT is not an http or https address".to_owned())?;
    let target = format!("{host}:{port}");
    let (sender, receiver) = sync_channel(1);
    std::thread::spawn(move || sender.send(try_connect(&host, port)));
    receiver
        .recv_timeout(CONNECT_TIMEOUT + Duration::from_secs(1))
        .unwrap_or_else(|_| Err("no answer from the name service".to_owned()))
        .map_err(|reason| format!("cannot connect to {target}: {reason}"))
}

fn try_connect(host: &str, port: u16) -> Result<(), Reason> {
    let addresses = (host, port)
        .to_socket_addrs()
        .map_err(|error| error.to_string())?;
    let mut reason = "the name has no address".to_owned();
    // Two are enough to try IPv6 and IPv4 within the time.
    for address in addresses.take(2) {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT / 2) {
            Ok(_) => return Ok(()),
            Err(error) => reason = error.to_string(),
        }
    }
    Err(reason)
}

/// `http://user@host:port/path` -> host and port.
fn host_and_port(endpoint: &str) -> Option<(String, u16)> {
    let (scheme, rest) = endpoint.split_once("://")?;
    let default_port = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return None,
    };
    let authority = rest.split(['/', '?', '#']).next()?;
    let authority = authority.rsplit('@').next()?;
    let (host, port) = match authority.strip_prefix('[') {
        Some(bracketed) => {
            let (host, after) = bracketed.split_once(']')?;
            (host, after.strip_prefix(':'))
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let port = port.map_or(Some(default_port), |port| port.parse().ok())?;
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_name_a_host_and_a_port() {
        for (endpoint, expected) in [
            ("https://huggingface.co", Some(("huggingface.co", 443))),
            ("http://127.0.0.1:8000/hf", Some(("127.0.0.1", 8000))),
            ("https://me:secret@mirror:8443", Some(("mirror", 8443))),
            ("http://[::1]:81", Some(("::1", 81))),
            ("http://[::1]", Some(("::1", 80))),
            ("huggingface.co", None),
            ("ftp://x", None),
            ("http://:80", None),
            ("http://x:port", None),
        ] {
            let found = host_and_port(endpoint);
            let found = found.as_ref().map(|(host, port)| (host.as_str(), *port));
            assert_eq!(found, expected, "{endpoint}");
        }
    }

    #[test]
    fn the_environment_decides() {
        let settings = |pairs: &[(&str, &str)]| {
            HubSettings::from_environment(|name| {
                let pair = pairs.iter().find(|(key, _)| *key == name)?;
                Some(pair.1.to_owned())
            })
        };
        let plain = settings(&[("HOME", "/h")]);
        assert_eq!(plain.endpoint, "https://huggingface.co");
        assert_eq!(plain.cache_folder, Path::new("/h/.cache/huggingface/hub"));
        assert!(!plain.offline && !plain.proxied && plain.token.is_none());
        let full = settings(&[
            ("HF_HOME", "/hf"),
            ("HF_TOKEN", " secret\n"),
            ("HF_ENDPOINT", "http://mirror/"),
            ("HF_HUB_OFFLINE", "1"),
            ("https_proxy", "http://p"),
        ]);
        assert_eq!(full.cache_folder, Path::new("/hf/hub"));
        assert_eq!(full.endpoint, "http://mirror");
        assert_eq!(full.token.as_deref(), Some("secret"));
        assert!(full.offline && full.proxied);
        assert!(!format!("{full:?}").contains("secret"));
        let cache = settings(&[("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/c")]);
        assert_eq!(cache.cache_folder, Path::new("/c"));
        assert!(!settings(&[("HF_HUB_OFFLINE", "0")]).offline);
    }

    #[test]
    fn a_snapshot_is_whole_with_all_its_shards() {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("config.json", "{}");
        write("tokenizer.json", "{}");
        assert!(!is_whole(folder.path()));
        write(
            "model.safetensors.index.json",
            r#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors", "c": "1.safetensors"}}"#,
        );
        write("1.safetensors", "");
        assert!(!is_whole(folder.path()));
        write("2.safetensors", "");
        assert!(is_whole(folder.path()));
    }
}
