//! What the service says about itself: log lines and metrics.
//!
//! [`metrics`] has every metric's name, unit and meaning in one list, [`observer`] what goes into
//! which. Prompts, outputs and keys are
//! in neither; metric labels come from closed sets (models, phases, reasons, routes).

mod history;
pub mod metrics;
mod observer;

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::{LogConfig, LogFormat};

pub use self::metrics::Metrics;

/// Starts logging to stderr. Call once, before anything logs.
///
/// # Errors
/// The filter cannot be read, or somebody else has started logging.
pub fn start_logging(config: &LogConfig) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(config.filter.parse::<EnvFilter>()?)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match config.format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    }
}
