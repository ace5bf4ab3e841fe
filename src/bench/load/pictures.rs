//! What pictures are asked for: a mix of sizes and of step counts.

use std::fmt::Display;

use rand_chacha::rand_core::RngCore;
use serde::Serialize;

use super::LoadError;
use crate::bench::results::ImageMix;

/// Kinds in a mix.
const MAX_KINDS: usize = 32;
/// Pixels along an edge.
const MAX_EDGE: u32 = 8192;
const MAX_STEPS: u32 = 1000;

/// Values with weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Mix<T>(Vec<(T, u32)>);

impl<T: Copy> Mix<T> {
    /// One value.
    pub fn of(value: T) -> Self {
        Mix(vec![(value, 1)])
    }

    fn shares(&self) -> Vec<(T, f64)> {
        let total: f64 = self.0.iter().map(|(_, weight)| f64::from(*weight)).sum();
        self.0
            .iter()
            .map(|(value, weight)| (*value, f64::from(*weight) / total))
            .collect()
    }

    fn draw(&self, random: &mut impl RngCore) -> T {
        let total: u64 = self.0.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let mut left = random.next_u64() % total;
        for (value, weight) in &self.0 {
            match left.checked_sub(u64::from(*weight)) {
                None => return *value,
                Some(rest) => left = rest,
            }
        }
        unreachable!("less than the sum of the weights is left")
    }

    /// `512x512=3,768x768=1`: values with weights, 1 where none is given.
    fn parse(text: &str, what: &str, value: impl Fn(&str) -> Option<T>) -> Result<Self, LoadError> {
        let kinds = text
            .split(',')
            .map(|part| {
                let (text, weight) = part.split_once('=').unwrap_or((part, "1"));
                let weight = weight
                    .parse()
                    .ok()
                    .filter(|weight| (1..=1_000_000).contains(weight))?;
                Some((value(text.trim())?, weight))
            })
            .collect::<Option<Vec<_>>>()
            .filter(|kinds| kinds.len() <= MAX_KINDS);
        kinds.map(Mix).ok_or_else(|| {
            LoadError::wrong(format!(
                "write {what}[=WEIGHT],.. with at most {MAX_KINDS} kinds"
            ))
        })
    }
}

impl Mix<(u32, u32)> {
    /// Widths and heights in pixels.
    ///
    /// # Errors
    /// The text is none.
    pub fn sizes(text: &str) -> Result<Self, LoadError> {
        Mix::parse(
            text,
            &format!("WIDTHxHEIGHT (up to {MAX_EDGE} pixels)"),
            |text| {
                let (width, height) = text.split_once('x')?;
                let edge = |text: &str| {
                    text.parse()
                        .ok()
                        .filter(|edge| (1..=MAX_EDGE).contains(edge))
                };
                Some((edge(width)?, edge(height)?))
            },
        )
    }
}

impl Mix<u32> {
    /// Numbers of denoising steps.
    ///
    /// # Errors
    /// The text is none.
    pub fn steps(text: &str) -> Result<Self, LoadError> {
        Mix::parse(text, &format!("STEPS (up to {MAX_STEPS})"), |text| {
            text.parse()
                .ok()
                .filter(|steps| (1..=MAX_STEPS).contains(steps))
        })
    }
}

impl<T: Display> Mix<T> {
    fn write(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, (value, weight)) in self.0.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}{value}={weight}")?;
        }
        Ok(())
    }
}

impl Display for Mix<u32> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.write(f)
    }
}

impl Display for Mix<(u32, u32)> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let named = self
            .0
            .iter()
            .map(|((width, height), weight)| (format!("{width}x{height}"), *weight));
        Mix(named.collect()).write(f)
    }
}

/// What pictures are asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PictureLoad {
    /// Sizes; the model's own without.
    pub sizes: Option<Mix<(u32, u32)>>,
    /// Denoising steps; the model's own without.
    pub steps: Option<Mix<u32>>,
    /// Guidance; the model's own without.
    pub guidance_scale: Option<f64>,
    /// Partial pictures that are asked for.
    pub previews: u32,
}

/// One picture.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Kind {
    pub(super) size: Option<(u32, u32)>,
    pub(super) steps: Option<u32>,
}

impl PictureLoad {
    /// The mix, kind by kind, for the report; a size or a number of steps that the model chooses is 0.
    pub fn kinds(&self) -> Vec<ImageMix> {
        let sizes = self.sizes.clone().unwrap_or(Mix::of((0, 0)));
        let steps = self.steps.clone().unwrap_or(Mix::of(0));
        let kinds = sizes
            .shares()
            .into_iter()
            .flat_map(|((width, height), size_share)| {
                let kind = move |(steps, share): (u32, f64)| ImageMix {
                    width,
                    height,
                    steps,
                    share: share * size_share,
                };
                steps.shares().into_iter().map(kind)
            });
        kinds.collect()
    }

    pub(super) fn draw(&self, random: &mut impl RngCore) -> Kind {
        Kind {
            size: self.sizes.as_ref().map(|mix| mix.draw(random)),
            steps: self.steps.as_ref().map(|mix| mix.draw(random)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::load::{Purpose, random};

    #[test]
    fn kinds_come_by_their_weights() {
        let load = PictureLoad {
            sizes: Some(Mix::sizes("64x64=3,32x48=1").unwrap()),
            steps: Some(Mix::steps("4,20").unwrap()),
            ..PictureLoad::default()
        };
        let mut random = random(1, Purpose::Asks, 0);
        let kinds: Vec<Kind> = (0..8_000).map(|_| load.draw(&mut random)).collect();
        let count =
            |wanted: &dyn Fn(&Kind) -> bool| kinds.iter().filter(|kind| wanted(kind)).count();
        assert!(count(&|kind| kind.size == Some((64, 64))).abs_diff(6_000) < 200);
        assert!(count(&|kind| kind.steps == Some(20)).abs_diff(4_000) < 200);
        assert_eq!(load.sizes.unwrap().to_string(), "64x64=3,32x48=1");
    }

    #[test]
    fn wrong_mixes_are_refused() {
        for wrong in ["", "8", "8x8=0", "0x8", "8x8=x", "8x8,,8x8", "9000x8"] {
            assert!(Mix::sizes(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "0", "1001", "5=-1"] {
            assert!(Mix::steps(wrong).is_err(), "{wrong}");
        }
    }
}
