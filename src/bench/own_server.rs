//! A service of our own, for as long as it is measured: a process of this program, reached over HTTP like any other.
//! It holds the other end of a pipe and ends when we do, however that is: by a signal that nobody catches, too.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use super::run::RunError;

/// A running service; ended when dropped.
#[derive(Debug)]
pub struct OwnServer {
    child: Child,
    /// Where it listens.
    pub url: String,
}

impl OwnServer {
    /// Starts one with these environment variables and waits until it listens. Its models may still be loading.
    ///
    /// # Errors
    /// It does not start; what it says goes to stderr.
    pub fn start(variables: &[(String, String)]) -> Result<Self, RunError> {
        let failed = |problem: String| {
            RunError::Server(format!("cannot start a service to measure: {problem}"))
        };
        let program = std::env::current_exe().map_err(|error| failed(error.to_string()))?;
        let mut child = Command::new(program)
            .args([
                "serve",
                "--host",
                "127.0.0.1",
                "--port",
                "0",
                "--stop-with-stdin",
            ])
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        let mut line = String::new();
        let told = child
            .stdout
            .take()
            .map(|stdout| BufReader::new(stdout).read_line(&mut line));
        let url = line
            .trim_end()
            .strip_prefix("listening on ")
            .map(str::to_owned);
        match (told, url) {
            (Some(Ok(_)), Some(url)) => Ok(OwnServer { child, url }),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                Err(failed("it ended before it listened".to_owned()))
            }
        }
    }

    /// Its process.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        // Nothing of it is wanted any more; both fail when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
