//! How long prompts and answers are: distributions of whole numbers.

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use rand_chacha::rand_core::RngCore;
use rand_distr::{Distribution, LogNormal, Normal};

use super::LoadError;

/// The longest length that can be asked for: no model that we know goes further.
pub const MAX_LENGTH: u32 = 1 << 22;
/// Lengths kept of a file.
const MAX_FILE_LENGTHS: usize = 1_000_000;

/// A distribution of lengths in tokens. Every draw lies within its ends.
#[derive(Clone, Debug, PartialEq)]
pub enum Lengths {
    /// Always the same.
    Fixed(u32),
    /// Each length from `min` to `max` alike.
    Uniform {
        /// The least.
        min: u32,
        /// The greatest.
        max: u32,
    },
    /// Bell-shaped; draws beyond an end are set to it.
    Normal {
        /// Mean.
        mean: f64,
        /// Standard deviation.
        deviation: f64,
        /// The least.
        min: u32,
        /// The greatest.
        max: u32,
    },
    /// As real prompts and answers are spread: many short ones, few very long ones.
    LogNormal {
        /// Half of the draws lie below.
        median: f64,
        /// Standard deviation of the logarithm.
        sigma: f64,
        /// The least.
        min: u32,
        /// The greatest.
        max: u32,
    },
    /// Drawn from the numbers of a file.
    File {
        /// Its name, for the report.
        name: String,
        /// At least one.
        values: Arc<[u32]>,
    },
}

impl Lengths {
    /// One length.
    pub fn draw(&self, random: &mut impl RngCore) -> u32 {
        let within = |value: f64, min: u32, max: u32| {
            // Rounding saturates: infinities end at the ends.
            (value.round().max(0.0) as u32).clamp(min, max)
        };
        match self {
            Lengths::Fixed(value) => *value,
            Lengths::Uniform { min, max } => {
                let span = u64::from(max - min) + 1;
                min + (random.next_u64() % span) as u32
            }
            Lengths::Normal {
                mean,
                deviation,
                min,
                max,
            } => {
                let normal = Normal::new(*mean, *deviation).expect("checked when it was read");
                within(normal.sample(random), *min, *max)
            }
            Lengths::LogNormal {
                median,
                sigma,
                min,
                max,
            } => {
                let normal = LogNormal::new(median.ln(), *sigma).expect("checked when it was read");
                within(normal.sample(random), *min, *max)
            }
            Lengths::File { values, .. } => {
                values[(random.next_u64() % values.len() as u64) as usize]
            }
        }
    }

    /// The greatest length that can be drawn.
    pub fn max(&self) -> u32 {
        match self {
            Lengths::Fixed(value) => *value,
            Lengths::Uniform { max, .. }
            | Lengths::Normal { max, .. }
            | Lengths::LogNormal { max, .. } => *max,
            Lengths::File { values, .. } => values.iter().copied().max().unwrap_or(0),
        }
    }

    /// The least length that can be drawn.
    pub fn min(&self) -> Option<u32> {
        match self {
            Lengths::Fixed(value) => Some(*value),
            Lengths::Uniform { min, .. }
            | Lengths::Normal { min, .. }
            | Lengths::LogNormal { min, .. } => Some(*min),
            Lengths::File { values, .. } => values.iter().copied().min(),
        }
    }

    fn read_file(path: &Path) -> Result<Self, LoadError> {
        let text = std::fs::read_to_string(path).map_err(LoadError::read(path))?;
        let name = path.display().to_string();
        let values = text
            .split_whitespace()
            .take(MAX_FILE_LENGTHS)
            .map(|word| word.parse().ok().filter(|value| *value <= MAX_LENGTH))
            .collect::<Option<Vec<u32>>>()
            .filter(|values| !values.is_empty())
            .ok_or_else(|| {
                LoadError::wrong(format!("{name} must hold whole numbers up to {MAX_LENGTH}"))
            })?;
        Ok(Lengths::File {
            name,
            values: values.into(),
        })
    }
}

impl FromStr for Lengths {
    type Err = LoadError;

    /// `128`, `uniform:MIN,MAX`, `normal:MEAN,DEVIATION[,MIN,MAX]`, `lognormal:MEDIAN,SIGMA[,MIN,MAX]`,
    /// `file:PATH`.
    fn from_str(text: &str) -> Result<Self, LoadError> {
        if let Some(path) = text.strip_prefix("file:") {
            return Lengths::read_file(Path::new(path));
        }
        let parsed = match text.split_once(':') {
            None => text.parse().ok().map(Lengths::Fixed),
            Some((kind, numbers)) => numbers
                .split(',')
                .map(|number| number.parse::<f64>().ok().filter(|number| *number >= 0.0))
                .collect::<Option<Vec<f64>>>()
                .and_then(|numbers| of_kind(kind, &numbers)),
        };
        parsed
            .filter(|lengths| lengths.max() <= MAX_LENGTH)
            .ok_or_else(|| {
                LoadError::wrong(format!(
                    "write N, uniform:MIN,MAX, normal:MEAN,DEVIATION[,MIN,MAX], \
                 lognormal:MEDIAN,SIGMA[,MIN,MAX] or file:PATH, with numbers up to {MAX_LENGTH}"
                ))
            })
    }
}

fn of_kind(kind: &str, numbers: &[f64]) -> Option<Lengths> {
    let ends = |min: f64, max: f64| {
        let fit =
            min.fract() == 0.0 && max.fract() == 0.0 && min <= max && max <= f64::from(MAX_LENGTH);
        fit.then_some((min as u32, max as u32))
    };
    let (first, second, (min, max)) = match *numbers {
        [min, max] if kind == "uniform" => (min, max, ends(min, max)?),
        // Without ends: a 20th and 20 times the middle, far from what is drawn by chance.
        [middle, spread] => {
            let max = (20.0 * middle).ceil().min(f64::from(MAX_LENGTH));
            (middle, spread, ends((middle / 20.0).floor().max(1.0), max)?)
        }
        [middle, spread, min, max] => (middle, spread, ends(min, max)?),
        _ => return None,
    };
    match kind {
        "uniform" if numbers.len() == 2 => Some(Lengths::Uniform { min, max }),
        "normal" => Some(Lengths::Normal {
            mean: first,
            deviation: second,
            min,
            max,
        }),
        "lognormal" if first > 0.0 && second <= 10.0 => Some(Lengths::LogNormal {
            median: first,
            sigma: second,
            min,
            max,
        }),
        _ => None,
    }
}

impl std::fmt::Display for Lengths {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Lengths::Fixed(value) => write!(f, "{value}"),
            Lengths::Uniform { min, max } => write!(f, "uniform:{min},{max}"),
            Lengths::Normal {
                mean,
                deviation,
                min,
                max,
            } => {
                write!(f, "normal:{mean},{deviation},{min},{max}")
            }
            Lengths::LogNormal {
                median,
                sigma,
                min,
                max,
            } => {
                write!(f, "lognormal:{median},{sigma},{min},{max}")
            }
            Lengths::File { name, values } => write!(f, "file:{name} ({} numbers)", values.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::load::{Purpose, random};

    fn draws(text: &str) -> Vec<f64> {
        let lengths: Lengths = text.parse().unwrap();
        let mut random = random(3, Purpose::Asks, 0);
        let mut draws: Vec<f64> = (0..20_001)
            .map(|_| lengths.draw(&mut random).into())
            .collect();
        draws.sort_by(f64::total_cmp);
        draws
    }

    #[test]
    fn draws_have_the_middle_and_the_ends_that_were_asked_for() {
        for (text, median, tolerance, (min, max)) in [
            ("7", 7.0, 0.0, (7.0, 7.0)),
            ("uniform:10,20", 15.0, 1.0, (10.0, 20.0)),
            ("normal:100,10", 100.0, 1.0, (5.0, 2000.0)),
            ("lognormal:100,1,10,1000", 100.0, 4.0, (10.0, 1000.0)),
        ] {
            let draws = draws(text);
            let middle = draws[draws.len() / 2];
            assert!((middle - median).abs() <= tolerance, "{text}: {middle}");
            assert!(draws[0] >= min && draws[draws.len() - 1] <= max, "{text}");
        }
        assert_eq!(draws("lognormal:100,1,10,1000")[20_000], 1000.0);
    }

    #[test]
    fn a_file_gives_its_own_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lengths");
        std::fs::write(&path, "3 5\n9\n").unwrap();
        let draws = draws(&format!("file:{}", path.display()));
        for value in [3.0, 5.0, 9.0] {
            let share =
                draws.iter().filter(|draw| **draw == value).count() as f64 / draws.len() as f64;
            assert!((share - 1.0 / 3.0).abs() < 0.02, "{value}: {share}");
        }
        std::fs::write(&path, "3 x").unwrap();
        assert!(
            format!("file:{}", path.display())
                .parse::<Lengths>()
                .is_err()
        );
    }

    #[test]
    fn wrong_lengths_are_refused() {
        for wrong in [
            "",
            "x",
            "-1",
            "uniform:5,1",
            "uniform:1",
            "normal:1",
            "lognormal:0,1",
            "normal:1,-1",
            "lognormal:1,NaN",
            "99999999",
            "normal:100,1,1,99999999",
            "bell:1,2",
            "file:/none",
        ] {
            assert!(wrong.parse::<Lengths>().is_err(), "{wrong}");
        }
    }
}
