//! Shows how far a download has come: a bar on a terminal, a line per quarter elsewhere.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

/// One thing in progress.
pub(super) struct Meter {
    label: String,
    total_bytes: Option<u64>,
    done_bytes: u64,
    quarters_told: u64,
    bar: Option<ProgressBar>,
}

impl Meter {
    /// Begins to show `label`. Without a total only the amount is shown.
    pub(super) fn start(label: &str, total_bytes: Option<u64>) -> Self {
        let bar = std::io::stderr()
            .is_terminal()
            .then(|| bar(label, total_bytes));
        if bar.is_none() {
            tracing::info!(total_bytes, "{label}");
        }
        Meter {
            label: label.to_owned(),
            total_bytes,
            done_bytes: 0,
            quarters_told: 0,
            bar,
        }
    }

    /// So many bytes more are done.
    pub(super) fn advance(&mut self, bytes: u64) {
        self.done_bytes += bytes;
        match &self.bar {
            Some(bar) => bar.inc(bytes),
            None => self.tell_quarter(),
        }
    }

    fn tell_quarter(&mut self) {
        let Some(total) = self.total_bytes.filter(|total| *total > 0) else {
            return;
        };
        let quarters = (self.done_bytes.saturating_mul(4) / total).min(4);
        if quarters > self.quarters_told {
            self.quarters_told = quarters;
            tracing::info!(percent = quarters * 25, "{}", self.label);
        }
    }

    /// It is over.
    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish();
        }
    }
}

fn bar(label: &str, total_bytes: Option<u64>) -> ProgressBar {
    let (bar, template) = match total_bytes {
        Some(total) => (
            ProgressBar::new(total),
            "{msg} [{wide_bar}] {bytes}/{total_bytes} ({eta})",
        ),
        None => (ProgressBar::new_spinner(), "{spinner} {msg} {elapsed}"),
    };
    let style = ProgressStyle::with_template(template).expect("the templates above are valid");
    bar.with_style(style).with_message(label.to_owned())
}
