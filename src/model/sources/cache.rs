//! The folder of fetched files: one lock per model, digests checked, files moved in whole.
//!
//! ```text
//! CACHE/models/NAME/FILE       a checked file
//! CACHE/models/NAME/.lock      held while somebody fetches it
//! CACHE/models/NAME/.partial/  workspaces, emptied by whoever locks next
//! ```

use std::fs::{File, TryLockError};
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::super::manifest::{FileDigest, Manifest};
use super::progress::Meter;

/// How much is read at once while copying and hashing.
const COPY_BUFFER_BYTES: usize = 1 << 20;

/// What became of comparing a file with its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the very file.
    Good,
    /// There is no such file.
    Missing,
    /// It is another file, or cannot be read: why.
    Damaged(String),
}

/// Compares the file at `path` with `expected`.
pub fn check(path: &Path, expected: &FileDigest) -> Verdict {
    match compare(path, expected) {
        Ok(None) => Verdict::Good,
        Ok(Some(why)) => Verdict::Damaged(why),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Verdict::Missing,
        Err(error) => Verdict::Damaged(error.to_string()),
    }
}

/// What differs, if anything. The length is looked at first: it costs nothing.
fn compare(path: &Path, expected: &FileDigest) -> io::Result<Option<String>> {
    let mut file = File::open(path)?;
    let size_bytes = file.metadata()?.len();
    if size_bytes != expected.size_bytes {
        return Ok(Some(wrong_size(size_bytes, expected)));
    }
    let mut hashing = Hashing::into(io::sink());
    io::copy(&mut file, &mut hashing)?;
    let digest = hashing.finish().0;
    Ok((digest != expected.sha256).then(|| wrong_digest(&digest, expected)))
}

fn wrong_size(found: u64, expected: &FileDigest) -> String {
    format!("has {found} bytes, not {}", expected.size_bytes)
}

fn wrong_digest(found: &str, expected: &FileDigest) -> String {
    format!("has sha256 {found}, not {}", expected.sha256)
}

/// A writer that hashes what passes through.
pub(super) struct Hashing<W> {
    hasher: Sha256,
    inner: W,
}

impl<W: Write> Hashing<W> {
    pub(super) fn into(inner: W) -> Self {
        Hashing {
            hasher: Sha256::new(),
            inner,
        }
    }

    /// The digest in hexadecimal, and what was written to.
    pub(super) fn finish(self) -> (String, W) {
        let digest = self.hasher.finalize();
        let hex = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        (hex, self.inner)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// The folder.
pub(super) struct CacheFolder {
    root: PathBuf,
}

impl CacheFolder {
    pub(super) fn new(root: &Path) -> Self {
        CacheFolder {
            root: root.to_owned(),
        }
    }

    fn folder_of(&self, manifest: &Manifest) -> PathBuf {
        self.root.join("models").join(&manifest.name)
    }

    /// Where a model's file is, or will be.
    pub(super) fn path_of(&self, manifest: &Manifest) -> PathBuf {
        self.folder_of(manifest).join(&manifest.file.name)
    }

    /// Waits until no other process fetches this model, and keeps others out.
    pub(super) fn lock(&self, manifest: &Manifest) -> io::Result<Workspace> {
        let folder = self.folder_of(manifest);
        std::fs::create_dir_all(&folder)?;
        let lock = File::create(folder.join(".lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                tracing::info!(model = %manifest.name, "another process is fetching this model; waiting for it");
                lock.lock()?;
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let partial = folder.join(".partial");
        // Left by a holder that was interrupted: nobody else can be using it now.
        remove_folder(&partial)?;
        // A child of that holder may live on and write: not to a folder of ours.
        let own = partial.join(std::process::id().to_string());
        std::fs::create_dir_all(&own)?;
        Ok(Workspace {
            partial,
            own,
            target: folder.join(&manifest.file.name),
            expected: manifest.file.clone(),
            _lock: lock,
        })
    }
}

/// Writes a file and makes its folders. It is moved into place whole: another program that starts now never sees half
/// of it.
pub(super) fn write_whole(target: &Path, bytes: &[u8]) -> io::Result<()> {
    let parent = target.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent)?;
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    // Processes in containers that share the folder may have equal ids. The hasher's keys come from the system.
    let chance = RandomState::new().hash_one(0);
    let draft = parent.join(format!(".{chance:016x}.{name}"));
    let moved = write_new(&draft, bytes).and_then(|()| std::fs::rename(&draft, target));
    if moved.is_err() {
        // Nothing else would ever take it away.
        let _ = std::fs::remove_file(&draft);
    }
    moved
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options
        .write(true)
        .create_new(true)
        .open(path)?
        .write_all(bytes)
}

fn remove_folder(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The right to put one model's file into the cache. Gone, with all that is partial, when dropped.
pub(super) struct Workspace {
    partial: PathBuf,
    own: PathBuf,
    target: PathBuf,
    expected: FileDigest,
    /// Unlocked by closing it, also when the process dies.
    _lock: File,
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if let Err(error) = remove_folder(&self.partial) {
            tracing::warn!(path = %self.partial.display(), %error, "cannot remove partial files");
        }
    }
}

impl Workspace {
    /// A folder for whatever is needed on the way. On the same disk as the cache.
    pub(super) fn folder(&self) -> &Path {
        &self.own
    }

    /// As [`Workspace::install`], from a file.
    pub(super) fn install_file(&self, path: &Path) -> Result<PathBuf, String> {
        let file =
            File::open(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        self.install(&mut { file })
    }

    /// Copies what `reader` gives into the cache, if it is the right file: hashed on the way,
    /// written out, then moved into place in one step.
    pub(super) fn install(&self, reader: &mut dyn Read) -> Result<PathBuf, String> {
        let copy = self.own.join("checked");
        let (size_bytes, digest) = self
            .copy_hashed(reader, &copy)
            .map_err(|error| format!("cannot write {}: {error}", copy.display()))?;
        if size_bytes != self.expected.size_bytes {
            return Err(format!(
                "the file {}",
                wrong_size(size_bytes, &self.expected)
            ));
        }
        if digest != self.expected.sha256 {
            return Err(format!(
                "the file {}",
                wrong_digest(&digest, &self.expected)
            ));
        }
        std::fs::rename(&copy, &self.target)
            .map_err(|error| format!("cannot move to {}: {error}", self.target.display()))?;
        Ok(self.target.clone())
    }

    /// Stops one byte past the expected size, so that a wrong source cannot fill the disk.
    fn copy_hashed(&self, reader: &mut dyn Read, copy: &Path) -> io::Result<(u64, String)> {
        let mut hashing = Hashing::into(File::create(copy)?);
        let mut reader = reader.take(self.expected.size_bytes + 1);
        let mut meter = Meter::start(
            &format!("checking {}", self.expected.name),
            Some(self.expected.size_bytes),
        );
        let mut buffer = vec![0; COPY_BUFFER_BYTES];
        let mut size_bytes = 0;
        loop {
            let count = reader.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            hashing.write_all(&buffer[..count])?;
            size_bytes += count as u64;
            meter.advance(count as u64);
        }
        meter.finish();
        let (digest, file) = hashing.finish();
        file.sync_all()?;
        Ok((size_bytes, digest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest_of(content: &[u8]) -> Manifest {
        let (sha256, _) = {
            let mut hashing = Hashing::into(io::sink());
            hashing.write_all(content).unwrap();
            hashing.finish()
        };
        let text = format!(
            "name = \"m\"\ndescription = \"\"\ntask = \"text\"\narchitecture = \"llama\"\n\
             license = \"MIT\"\nrevision = \"r\"\n\
             [file]\nname = \"m.gguf\"\nsize_bytes = {}\nsha256 = \"{sha256}\"\n\
             [[sources]]\nkind = \"local\"\nfile = \"m.gguf\"\n",
            content.len()
        );
        Manifest::parse(&text, "test").unwrap()
    }

    #[test]
    fn the_digest_is_sha_256() {
        let manifest = manifest_of(b"abc");
        assert_eq!(
            manifest.file.sha256,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn only_the_very_file_is_installed_and_nothing_partial_stays() {
        let root = tempfile::tempdir().unwrap();
        let cache = CacheFolder::new(root.path());
        let manifest = manifest_of(b"good");
        let target = cache.path_of(&manifest);
        let workspace = cache.lock(&manifest).unwrap();
        for (content, expected) in [
            (&b"goo"[..], "has 3 bytes, not 4"),
            (b"goodness", "has 5 bytes, not 4"),
            (b"evil", "has sha256"),
        ] {
            let error = workspace.install(&mut { content }).unwrap_err();
            assert!(error.contains(expected), "{error}");
            assert!(!target.exists());
        }
        assert_eq!(workspace.install(&mut &b"good"[..]).unwrap(), target);
        drop(workspace);
        assert_eq!(check(&target, &manifest.file), Verdict::Good);
        let mut left: Vec<_> = std::fs::read_dir(target.parent().unwrap())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, [".lock", "m.gguf"]);
    }

    #[test]
    fn every_changed_byte_and_length_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        let content = b"a small model";
        let expected = manifest_of(content).file;
        assert_eq!(check(&path, &expected), Verdict::Missing);
        for index in 0..content.len() {
            let mut changed = content.to_vec();
            changed[index] ^= 1;
            std::fs::write(&path, &changed).unwrap();
            assert!(matches!(check(&path, &expected), Verdict::Damaged(_)));
            std::fs::write(&path, &content[..index]).unwrap();
            assert!(matches!(check(&path, &expected), Verdict::Damaged(_)));
        }
        std::fs::write(&path, content).unwrap();
        assert_eq!(check(&path, &expected), Verdict::Good);
    }

    #[test]
    fn the_second_to_lock_waits_for_the_first() {
        let root = tempfile::tempdir().unwrap();
        let manifest = manifest_of(b"good");
        let first = CacheFolder::new(root.path()).lock(&manifest).unwrap();
        let (locked, seen) = std::sync::mpsc::sync_channel(1);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let second = CacheFolder::new(root.path()).lock(&manifest).unwrap();
                locked.send(()).unwrap();
                drop(second);
            });
            let wait = std::time::Duration::from_millis(100);
            assert!(seen.recv_timeout(wait).is_err());
            first.install(&mut &b"good"[..]).unwrap();
            drop(first);
            seen.recv().unwrap();
        });
    }
}
