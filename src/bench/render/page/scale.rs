//! Where a value stands on an axis, and which values are written there.

/// Steps of a decade that axes begin, end and are marked at.
const STEPS: [f64; 3] = [1.0, 2.0, 5.0];
/// Marks on an axis at most; with more, their texts touch.
const MAX_TICKS: usize = 7;
/// From this ratio on, a load axis is logarithmic.
const WIDE: f64 = 12.0;

/// An axis: values from `from` to `to` on pixels from `first` to `last`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scale {
    log: bool,
    from: f64,
    to: f64,
    first: f64,
    last: f64,
}

impl Scale {
    /// From zero to a round number above all values.
    pub(super) fn linear(values: impl IntoIterator<Item = f64>) -> Self {
        let most = values.into_iter().filter(|value| value.is_finite());
        let most = most.fold(0.0, f64::max);
        let most = if most > 0.0 { most } else { 1.0 };
        let step = round_up(most / 5.0);
        Scale {
            log: false,
            from: 0.0,
            to: (most / step - 1e-9).ceil() * step,
            first: 0.0,
            last: 1.0,
        }
    }

    /// Between given values, linear.
    pub(super) fn between(from: f64, to: f64) -> Self {
        Scale {
            log: false,
            from,
            to: if to > from { to } else { from + 1.0 },
            first: 0.0,
            last: 1.0,
        }
    }

    /// From a round number below all positive values to one above them, logarithmic.
    pub(super) fn log(values: impl IntoIterator<Item = f64>) -> Self {
        let usable = |value: &f64| value.is_finite() && *value > 0.0;
        let (least, most) = values
            .into_iter()
            .filter(usable)
            .fold((f64::INFINITY, 0.0), |(least, most), value| {
                (f64::min(least, value), f64::max(most, value))
            });
        let (least, most) = if most > 0.0 {
            (least, most)
        } else {
            (1.0, 10.0)
        };
        let to = round_up(most * 1.05);
        let from = round_down(least * 0.95).min(to / 5.0);
        Scale {
            log: true,
            from,
            to,
            first: 0.0,
            last: 1.0,
        }
    }

    /// Logarithmic if the values are far apart, else linear.
    pub(super) fn fitting(values: &[f64]) -> Self {
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(0.0, f64::max);
        match least > 0.0 && most / least >= WIDE {
            true => Scale::log(values.iter().copied()),
            false => Scale::linear(values.iter().copied()),
        }
    }

    /// On these pixels.
    pub(super) fn on(self, first: f64, last: f64) -> Self {
        Scale {
            first,
            last,
            ..self
        }
    }

    /// The pixel of a value; those beyond an end stand at the end.
    pub(super) fn at(&self, value: f64) -> f64 {
        let value = value.clamp(self.from, self.to);
        let share = match self.log {
            true => (value / self.from).ln() / (self.to / self.from).ln(),
            false => (value - self.from) / (self.to - self.from),
        };
        self.first + share * (self.last - self.first)
    }

    /// The values to write at the axis.
    pub(super) fn ticks(&self) -> Vec<f64> {
        if !self.log {
            let step = round_up((self.to - self.from) / 5.0);
            let begin = (self.from / step - 1e-9).ceil();
            let count = ((self.to - begin * step) / step + 1e-9).floor() as usize;
            return (0..=count)
                .map(|index| (begin + index as f64) * step)
                .collect();
        }
        let within = |value: &f64| (self.from * 0.999..=self.to * 1.001).contains(value);
        let of = |steps: &[f64]| -> Vec<f64> {
            let decades = decade(self.from)..=decade(self.to);
            let all =
                decades.flat_map(|decade| steps.iter().map(move |step| step * 10f64.powi(decade)));
            all.filter(within).collect()
        };
        let all = of(&STEPS);
        if all.len() <= MAX_TICKS {
            return all;
        }
        let decades = of(&[1.0]);
        let every = decades.len().div_ceil(MAX_TICKS).max(1);
        decades.into_iter().step_by(every).collect()
    }
}

fn decade(value: f64) -> i32 {
    (value.log10() + 1e-9).floor() as i32
}

fn round_up(value: f64) -> f64 {
    let unit = 10f64.powi(decade(value));
    let step = STEPS
        .into_iter()
        .find(|step| step * unit >= value * (1.0 - 1e-9));
    step.unwrap_or(10.0) * unit
}

fn round_down(value: f64) -> f64 {
    let unit = 10f64.powi(decade(value));
    let step = STEPS
        .into_iter()
        .rfind(|step| step * unit <= value * (1.0 + 1e-9));
    step.unwrap_or(1.0) * unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_axes_begin_at_zero_and_end_at_a_round_number() {
        for (most, to, ticks) in [
            (97.0, 100.0, vec![0.0, 20.0, 40.0, 60.0, 80.0, 100.0]),
            (101.0, 150.0, vec![0.0, 50.0, 100.0, 150.0]),
            (0.0, 1.0, vec![0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
            (f64::NAN, 1.0, vec![0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        ] {
            let scale = Scale::linear([most]);
            assert_eq!(scale.to, to, "{most}");
            let found = scale.ticks();
            assert_eq!(found.len(), ticks.len(), "{most}: {found:?}");
            for (found, tick) in found.iter().zip(ticks) {
                assert!((found - tick).abs() < 1e-9, "{most}: {found}");
            }
        }
    }

    #[test]
    fn logarithmic_axes_go_in_ratios() {
        let scale = Scale::log([3.0, 700.0]).on(0.0, 300.0);
        assert_eq!((scale.from, scale.to), (2.0, 1000.0));
        assert!((scale.at((2.0f64 * 1000.0).sqrt()) - 150.0).abs() < 1e-9);
        assert_eq!((scale.at(0.0), scale.at(1e9)), (0.0, 300.0));
        assert_eq!(scale.ticks(), [10.0, 100.0, 1000.0]);
        assert_eq!(Scale::log([7.0, 9.0]).ticks(), [2.0, 5.0, 10.0]);
        assert_eq!(
            Scale::log([0.0, -1.0]).ticks(),
            [0.5, 1.0, 2.0, 5.0, 10.0, 20.0]
        );
    }

    #[test]
    fn an_axis_fits_its_values() {
        assert!(Scale::fitting(&[1.0, 64.0]).log);
        assert!(!Scale::fitting(&[8.0, 64.0]).log);
        assert!(!Scale::fitting(&[0.0, 64.0]).log);
        assert!(!Scale::fitting(&[]).log);
    }
}
