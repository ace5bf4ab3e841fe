//! Arrivals as they were somewhere once: a file of timestamps, with lengths if it tells them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::LoadError;

/// Requests kept of a file.
const MAX_REQUESTS: usize = 1_000_000;

/// One request of a trace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TraceRequest {
    /// After the beginning of the trace.
    pub at: Duration,
    /// Prompt tokens, if the file tells.
    pub input_tokens: Option<u32>,
    /// New tokens, if the file tells.
    pub output_tokens: Option<u32>,
}

/// All of them, in the order of their times; at least one.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// The file, for the report.
    pub name: String,
    /// The first is at 0.
    pub requests: Arc<[TraceRequest]>,
}

/// A line as Mooncake's traces have it: milliseconds.
#[derive(Deserialize)]
struct Line {
    timestamp: f64,
    input_length: Option<u32>,
    output_length: Option<u32>,
}

impl Trace {
    /// Reads a file of JSON lines with `timestamp` (milliseconds), `input_length` and `output_length`, as
    /// Mooncake's, or of comma-separated lines: seconds, prompt tokens, new tokens; the last two may be
    /// left out, and a first line of names is skipped.
    ///
    /// # Errors
    /// The file cannot be read, or a line says something else.
    pub fn read(path: &Path) -> Result<Self, LoadError> {
        let text = std::fs::read_to_string(path).map_err(LoadError::read(path))?;
        let name = path.display().to_string();
        let mut requests = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            let is_heading = number == 0 && line.starts_with(|first: char| first.is_alphabetic());
            if line.is_empty() || line.starts_with('#') || is_heading {
                continue;
            }
            let request = parse(line).ok_or_else(|| {
                LoadError::wrong(format!("{name}:{}: no request of a trace", number + 1))
            })?;
            requests.push(request);
            if requests.len() == MAX_REQUESTS {
                break;
            }
        }
        requests.sort_by_key(|request| request.at);
        let first = requests.first().map(|request| request.at);
        let Some(first) = first else {
            return Err(LoadError::wrong(format!("{name} holds no request")));
        };
        for request in &mut requests {
            request.at -= first;
        }
        Ok(Trace {
            name,
            requests: requests.into(),
        })
    }

    /// The time of its last request.
    pub fn length(&self) -> Duration {
        self.requests
            .last()
            .map_or(Duration::ZERO, |request| request.at)
    }
}

fn parse(line: &str) -> Option<TraceRequest> {
    let (seconds, input_tokens, output_tokens) = if line.starts_with('{') {
        let line: Line = serde_json::from_str(line).ok()?;
        (line.timestamp / 1e3, line.input_length, line.output_length)
    } else {
        let mut cells = line.split(',').map(str::trim);
        let seconds = cells.next()?.parse().ok()?;
        let mut length = || match cells.next() {
            None | Some("") => Some(None),
            Some(cell) => cell.parse().ok().map(Some),
        };
        (seconds, length()?, length()?)
    };
    let at = Duration::try_from_secs_f64(seconds).ok()?;
    Some(TraceRequest {
        at,
        input_tokens,
        output_tokens,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Trace, LoadError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace");
        std::fs::write(&path, text).unwrap();
        Trace::read(&path)
    }

    #[test]
    fn both_formats_are_read_in_the_order_of_time() {
        let request = |millis, input_tokens, output_tokens| TraceRequest {
            at: Duration::from_millis(millis),
            input_tokens,
            output_tokens,
        };
        let expected = [request(0, Some(5), Some(6)), request(500, None, None)];
        let lines = "{\"timestamp\": 1500}\n\n{\"timestamp\": 1000, \"input_length\": 5, \
                     \"output_length\": 6, \"hash_ids\": [1]}\n";
        assert_eq!(&read(lines).unwrap().requests[..], expected);
        let table = "seconds,input,output\n1.5\n1.0, 5,6\n# said\n";
        assert_eq!(&read(table).unwrap().requests[..], expected);
    }

    #[test]
    fn wrong_lines_are_named() {
        for wrong in [
            "",
            "# nothing\n",
            "1\nx\n",
            "-1\n",
            "{\"time\": 1}\n",
            "1,x\n",
        ] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
        assert!(
            read("1\nx\n")
                .unwrap_err()
                .to_string()
                .ends_with("trace:2: no request of a trace")
        );
    }
}
