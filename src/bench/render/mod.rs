//! A finished report for others to read: one HTML page, JSON, CSV, Markdown, and the JSON of
//! `vllm bench serve`. Reads [`results`](super::results) only; measures nothing.

mod csv;
mod markdown;
mod page;
mod schema;
mod vllm;
pub(super) mod words;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use csv::csv;
pub use markdown::markdown;
pub use page::page;
pub use schema::json_schema;
pub use vllm::vllm_json_lines;

use super::results::{BenchReport, SCHEMA, SCHEMA_VERSION};

/// The largest report that is read: a day of seconds for some hundred points is below it.
const MAX_REPORT_BYTES: u64 = 256 << 20;

/// Where a report goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReportFiles {
    /// One self-contained page.
    pub html: Option<PathBuf>,
    /// Everything, as [`json_schema`] says.
    pub json: Option<PathBuf>,
    /// A line per point.
    pub csv: Option<PathBuf>,
    /// The answer and the points, for a merge request or a page of documentation.
    pub markdown: Option<PathBuf>,
    /// A line per point, as `vllm bench serve` writes its results.
    pub vllm_json: Option<PathBuf>,
}

/// What `bench report` is to do. Built by the command line only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportOptions {
    /// The JSON of a finished measurement.
    pub report: PathBuf,
    /// What to make of it; if nothing, Markdown goes to stdout.
    pub files: ReportFiles,
}

/// A report cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The file cannot be read.
    #[error("cannot read {path}: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The file cannot be written.
    #[error("cannot write {path}: {error}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The file is larger than any report.
    #[error("{path} has {bytes} bytes; a report has at most {MAX_REPORT_BYTES}")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The file is something else.
    #[error("{path} is no report of girandole bench run or capacity: {problem}")]
    NotAReport {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

/// The report as JSON, as `--json` writes it.
///
/// # Panics
/// Never: a report is plain data with text for keys.
pub fn json(report: &BenchReport) -> String {
    serde_json::to_string_pretty(report).expect("a report is plain data") + "\n"
}

/// Reads what `--json` wrote.
///
/// # Errors
/// The file cannot be read, is too large, or is no such report of this version.
pub fn read(path: &Path) -> Result<BenchReport, ReportError> {
    let failed = |error| ReportError::Read {
        path: path.to_owned(),
        error,
    };
    let bytes = fs::metadata(path).map_err(failed)?.len();
    if bytes > MAX_REPORT_BYTES {
        return Err(ReportError::TooLarge {
            path: path.to_owned(),
            bytes,
        });
    }
    parse(&fs::read(path).map_err(failed)?).map_err(|problem| ReportError::NotAReport {
        path: path.to_owned(),
        problem,
    })
}

/// Schema and version first: what follows from a wrong one is noise.
fn parse(bytes: &[u8]) -> Result<BenchReport, String> {
    let value: serde_json::Value =
        serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if value["schema"] != SCHEMA {
        return Err(format!("its schema is {}, not {SCHEMA:?}", value["schema"]));
    }
    if value["schema_version"] != SCHEMA_VERSION {
        let version = &value["schema_version"];
        return Err(format!(
            "its schema_version is {version}, not {SCHEMA_VERSION}"
        ));
    }
    serde_json::from_value(value).map_err(|error| error.to_string())
}

/// Writes all that was asked for. Measuring took minutes: where one place cannot be written to, the
/// others still get their report.
///
/// # Errors
/// The first file that could not be written.
pub fn write(report: &BenchReport, files: &ReportFiles) -> Result<(), ReportError> {
    let write = |path: &Option<PathBuf>, text: &dyn Fn() -> String| match path {
        Some(path) => fs::write(path, text()).map_err(|error| ReportError::Write {
            path: path.clone(),
            error,
        }),
        None => Ok(()),
    };
    let results = [
        write(&files.json, &|| json(report)),
        write(&files.html, &|| page(report)),
        write(&files.csv, &|| csv(report)),
        write(&files.markdown, &|| markdown(report)),
        write(&files.vllm_json, &|| vllm_json_lines(report)),
    ];
    results.into_iter().collect()
}
