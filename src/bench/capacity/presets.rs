//! What a good answer is, for common uses. Figures: MLPerf Inference's limits (`loadgen/mlperf.conf`) for Llama 3.1 8B
//! as a server (first token within 2 s, 100 ms a token) and interactive (500 ms, 30 ms) and for SDXL as a server
//! (20 s a picture), each for 99 of 100 requests; guidellm's guide to service levels for code completion (2 s in all)
//! and retrieval-augmented generation (3 s in all). Lengths and times to think are ours: users who read what they get.

use crate::bench::load::pictures::Mix;
use crate::bench::load::{Lengths, PictureLoad};
use crate::bench::results::{Metric, Objective, Task};

/// Objectives with a load that goes with them.
#[derive(Clone, Debug, PartialEq)]
pub struct Preset {
    /// Its name.
    pub name: &'static str,
    /// Tokens or pictures.
    pub task: Task,
    /// What each good request keeps.
    pub limits: Vec<Objective>,
    /// Share of requests that have to be good.
    pub good_share: f64,
    /// Prompt tokens.
    pub input_tokens: Lengths,
    /// New tokens.
    pub output_tokens: Lengths,
    /// Mean time that a user thinks between an answer and the next question, in seconds.
    pub think_seconds: f64,
    /// Pictures, where it is about those.
    pub pictures: PictureLoad,
}

/// Their names.
pub const NAMES: [&str; 5] = ["chat", "interactive", "code", "rag", "image"];

impl Preset {
    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        let limit = |metric, limit_ms| Objective { metric, limit_ms };
        let first = |ms| limit(Metric::TimeToFirstToken, ms);
        let token = |ms| limit(Metric::TimePerOutputToken, ms);
        let all = |ms| limit(Metric::EndToEnd, ms);
        let (name, limits, input, output, think_seconds) = match name {
            "chat" => (
                "chat",
                vec![first(2000.0), token(100.0)],
                (160.0, 0.6),
                (100.0, 0.6),
                10.0,
            ),
            "interactive" => (
                "interactive",
                vec![first(500.0), token(30.0)],
                (160.0, 0.6),
                (100.0, 0.6),
                5.0,
            ),
            "code" => ("code", vec![all(2000.0)], (512.0, 0.5), (32.0, 0.5), 5.0),
            "rag" => ("rag", vec![all(3000.0)], (1024.0, 0.4), (64.0, 0.5), 15.0),
            "image" => ("image", vec![all(20_000.0)], (16.0, 0.0), (1.0, 0.0), 20.0),
            _ => return None,
        };
        let lengths = |(median, sigma): (f64, f64), most: f64| Lengths::LogNormal {
            median,
            sigma,
            min: (median / 8.0).ceil().max(4.0) as u32,
            max: (median * most) as u32,
        };
        Some(Preset {
            name,
            task: if name == "image" {
                Task::Image
            } else {
                Task::Text
            },
            limits,
            good_share: 0.99,
            input_tokens: lengths(input, 4.0),
            output_tokens: lengths(output, 4.0),
            think_seconds,
            pictures: PictureLoad {
                steps: Some(Mix::of(20)),
                previews: 3,
                ..PictureLoad::default()
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_preset() {
        for name in NAMES {
            let preset = Preset::named(name).unwrap();
            assert_eq!(preset.name, name);
            assert!(!preset.limits.is_empty());
        }
        assert_eq!(Preset::named("other"), None);
    }
}
