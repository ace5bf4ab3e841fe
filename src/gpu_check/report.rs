//! What was found, as JSON and as tables.

use std::fmt::Write as _;

use serde::Serialize;

use super::card::Card;
use super::check::{Checked, Group, Outcome};

/// Names the report's form.
pub(super) const SCHEMA: &str = "girandole.gpu-check";
/// Grows when a field changes its meaning or goes.
pub(super) const SCHEMA_VERSION: u32 = 1;

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GpuReport {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Version of this program.
    pub girandole: &'static str,
    /// The compute capability that its kernels were built for, such as `90`; nothing without them.
    pub built_for: Option<&'static str>,
    /// The device.
    pub device: String,
    /// What it says of itself.
    pub card: Option<Card>,
    /// NVIDIA's libraries in use.
    pub libraries: Vec<String>,
    /// How fast it copies and multiplies.
    pub ceilings: Vec<Ceiling>,
    /// What was compared.
    pub checks: Vec<Checked>,
    /// Passes of which a graph was captured.
    pub graphs: Vec<GraphTimes>,
    /// All of it, in seconds.
    pub seconds: f64,
}

/// A limit of the device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ceiling {
    /// `copy`, or the numbers that are multiplied.
    pub name: &'static str,
    /// Bytes read or written a second, or operations a second (two for each multiply-add).
    pub per_second: Option<f64>,
    /// Why it could not be measured.
    pub error: Option<String>,
}

/// A pass with and without a captured graph.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GraphTimes {
    /// Which.
    pub name: String,
    /// Median milliseconds of a pass, each operation launched by itself.
    pub plain_ms: f64,
    /// Median milliseconds of a pass as a graph.
    pub graph_ms: f64,
}

impl GpuReport {
    /// Whether everything was as it should be.
    pub fn is_well(&self) -> bool {
        !self.checks.is_empty()
            && self.checks.iter().all(Checked::is_well)
            && self.ceilings.iter().all(|ceiling| ceiling.error.is_none())
    }

    /// The report for people: what differs in full, of the rest a line for each group.
    pub fn table(&self) -> String {
        let mut text = format!("girandole {}, gpu-check\n\n", self.girandole);
        for (name, value) in self.head() {
            let _ = writeln!(text, "{name:<12}{value}");
        }
        let _ = writeln!(text, "\n{:<8}{:>6}{:>6}  worst", "", "checks", "well");
        for group in [Group::Kernel, Group::Model, Group::Graph] {
            let checks: Vec<&Checked> = self.of(group).collect();
            let well = checks.iter().filter(|check| check.is_well()).count();
            let worst = checks
                .iter()
                .copied()
                .max_by(|a, b| share(a).total_cmp(&share(b)));
            let worst = worst.map_or_else(|| "none were made".to_owned(), line);
            let count = checks.len();
            let _ = writeln!(text, "{:<8}{count:>6}{well:>6}  {worst}", group.name());
        }
        for times in &self.graphs {
            let _ = writeln!(
                text,
                "\n{}: {:.3} ms plain, {:.3} ms as a graph",
                times.name, times.plain_ms, times.graph_ms
            );
        }
        let wrong: Vec<&Checked> = self
            .checks
            .iter()
            .filter(|check| !check.is_well())
            .collect();
        if !wrong.is_empty() {
            text.push_str("\nNot as it should be:\n");
            for check in wrong {
                let _ = writeln!(text, "  {} {}", check.group.name(), line(check));
            }
        }
        let verdict = match self.is_well() {
            true => "all is well",
            false => "something is not as it should be",
        };
        let _ = writeln!(text, "\n{verdict} ({:.0} s)", self.seconds);
        text
    }

    fn of(&self, group: Group) -> impl Iterator<Item = &Checked> {
        self.checks.iter().filter(move |check| check.group == group)
    }

    fn head(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![("device", self.device.clone())];
        if let Some(card) = &self.card {
            lines.push(("card", card.line()));
        }
        if let Some(built_for) = self.built_for {
            lines.push(("built for", format!("compute capability {built_for}")));
        }
        for library in &self.libraries {
            lines.push(("library", library.clone()));
        }
        for ceiling in &self.ceilings {
            lines.push((ceiling.name, ceiling_text(ceiling)));
        }
        lines
    }
}

/// How much of what is allowed a check takes; more than all for one that is not well.
fn share(check: &Checked) -> f64 {
    match &check.outcome {
        Outcome::Well { difference } if check.allowed > 0.0 => difference / check.allowed,
        Outcome::Well { .. } => 0.0,
        Outcome::Differs { .. } | Outcome::Failed { .. } => f64::INFINITY,
    }
}

fn line(check: &Checked) -> String {
    let (name, allowed) = (&check.name, check.allowed);
    match &check.outcome {
        Outcome::Well { difference } => {
            format!("{name}: {difference:.1e} of {allowed:.1e} allowed")
        }
        Outcome::Differs {
            difference: Some(difference),
            why,
        } => format!("{name}: {difference:.1e}, {allowed:.1e} allowed ({why})"),
        Outcome::Differs {
            difference: None,
            why,
        }
        | Outcome::Failed { why } => format!("{name}: {why}"),
    }
}

fn ceiling_text(ceiling: &Ceiling) -> String {
    match (ceiling.per_second, &ceiling.error) {
        (Some(rate), _) if ceiling.name == "copy" => {
            format!("{:.1} GB/s, read and written", rate / 1e9)
        }
        (Some(rate), _) => format!("{:.2} TFLOP/s in products", rate / 1e12),
        (None, Some(error)) => error.clone(),
        (None, None) => "not measured".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(outcome: Outcome) -> Checked {
        Checked {
            group: Group::Kernel,
            name: "product".to_owned(),
            allowed: 1e-3,
            outcome,
            seconds: 0.1,
        }
    }

    fn report(checks: Vec<Checked>) -> GpuReport {
        GpuReport {
            schema: SCHEMA,
            schema_version: SCHEMA_VERSION,
            girandole: "0.0.0",
            built_for: Some("90"),
            device: "cuda:0".to_owned(),
            card: Some(Card {
                name: "a card".to_owned(),
                memory_bytes: Some(3 << 30),
                ..Card::default()
            }),
            libraries: vec!["/lib/libcublas.so.13".to_owned()],
            ceilings: vec![Ceiling {
                name: "copy",
                per_second: Some(4.3e12),
                error: None,
            }],
            checks,
            graphs: Vec::new(),
            seconds: 1.0,
        }
    }

    #[test]
    fn one_difference_is_enough() {
        let well = || checked(Outcome::Well { difference: 5e-4 });
        let differs = checked(Outcome::Differs {
            difference: Some(0.5),
            why: "7 of 9 numbers".to_owned(),
        });
        assert!(report(vec![well(), well()]).is_well());
        assert!(!report(vec![well(), differs.clone()]).is_well());
        assert!(!report(Vec::new()).is_well(), "nothing was checked");
        let mut unmeasured = report(vec![well()]);
        unmeasured.ceilings[0].error = Some("planted".to_owned());
        assert!(!unmeasured.is_well());

        let table = report(vec![well(), differs]).table();
        for expected in [
            "a card, 3.0 GiB",
            "4300.0 GB/s",
            "kernel       2     1  product: 5.0e-1, 1.0e-3 allowed (7 of 9 numbers)",
            "graph        0     0  none were made",
            "Not as it should be:",
            "something is not as it should be",
        ] {
            assert!(table.contains(expected), "{expected}\n{table}");
        }
        let table = report(vec![well()]).table();
        assert!(table.contains("5.0e-4 of 1.0e-3 allowed"), "{table}");
        assert!(table.contains("all is well"), "{table}");
    }

    #[test]
    fn the_json_says_what_each_check_gave() {
        let failed = checked(Outcome::Failed {
            why: "planted".to_owned(),
        });
        let json = serde_json::to_value(report(vec![failed])).unwrap();
        assert_eq!(json["checks"][0]["verdict"], "failed");
        assert_eq!(json["checks"][0]["why"], "planted");
        assert_eq!(json["checks"][0]["group"], "kernel");
        assert_eq!(json["ceilings"][0]["per_second"], 4.3e12);
    }
}
