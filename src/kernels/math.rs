//! Elementary functions that vectorise: no branches, no calls, the same bits on every processor.

/// eˣ within 2e-7 of the true value, relatively, for |x| up to 87; beyond, the value at the end of that range. NaN
/// stays NaN.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // ln 2 in two parts, so that the first product is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5 * 2²³ leaves the nearest integer in the low bits.
    const SHIFT: f32 = 12_582_912.0;
    let x = if x < -87.33 { -87.33 } else { x };
    let x = if x > 88.37 { 88.37 } else { x };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, SHIFT);
    let power = (shifted.to_bits() as i32).wrapping_sub(SHIFT.to_bits() as i32);
    let rounded = shifted - SHIFT;
    let rest = rounded.mul_add(-LN_2_LOW, rounded.mul_add(-LN_2_HIGH, x));
    // Taylor to the seventh power: |rest| is at most ln 2 / 2.
    let mut sum = 1.0 / 5040.0;
    for coefficient in [
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        sum = rest.mul_add(sum, coefficient);
    }
    sum * f32::from_bits((power.wrapping_add(127) << 23) as u32)
}

/// 2ˣ within 2.5e-7 of the true value, relatively, for x from -126 to 126; below, the value at the end of that range. NaN
/// stays NaN.
#[inline(always)]
pub(super) fn exp2(x: f32) -> f32 {
    // As in `exp`; here the low nine bits of its pattern are zero, so shifting leaves the integer alone.
    const SHIFT: f32 = 12_582_912.0;
    let x = if x < -126.0 { -126.0 } else { x };
    let shifted = x + SHIFT;
    let rest = x - (shifted - SHIFT);
    // The polynomial of least relative error between -1/2 and 1/2.
    let mut sum = 0.001_327_647_2;
    for coefficient in [0.009_675_541, 0.055_507_13, 0.240_221_2, 0.693_146_94, 1.0] {
        sum = rest.mul_add(sum, coefficient);
    }
    sum * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23))
}

/// 1 / (1 + e⁻ˣ)
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// tanh x, within 1e-6 absolutely.
#[inline(always)]
pub(super) fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (1.0 + exp(2.0 * x))
}

/// Sum of sixteen lanes as a balanced tree.
#[inline(always)]
pub(super) fn sum_lanes(mut lanes: [f32; 16]) -> f32 {
    for width in [8, 4, 2, 1] {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
    }
    lanes[0]
}

/// The largest of the lanes, as a balanced tree.
#[inline(always)]
pub(super) fn largest_lane(mut lanes: [f32; 16]) -> f32 {
    for width in [8, 4, 2, 1] {
        for lane in 0..width {
            let (a, b) = (lanes[lane], lanes[lane + width]);
            lanes[lane] = if b > a { b } else { a };
        }
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_its_bound() {
        let mut worst = 0f64;
        for step in -870_000..=870_000 {
            let x = step as f32 * 1e-4;
            let expected = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) / expected - 1.0).abs());
        }
        assert!(worst < 2e-7, "{worst}");
    }

    #[test]
    fn exp_saturates_and_keeps_nan() {
        assert!(exp(-1e30) < 1.3e-38 && exp(f32::NEG_INFINITY) < 1.3e-38);
        assert!(exp(1e30).is_finite() && exp(1e30) > 1e38);
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn exp2_is_within_its_bound_saturates_and_keeps_nan() {
        let mut worst = 0f64;
        for step in -1_260_000..=1_260_000 {
            let x = step as f32 * 1e-4;
            let expected = f64::from(x).exp2();
            worst = worst.max((f64::from(exp2(x)) / expected - 1.0).abs());
        }
        assert!(worst < 2.5e-7, "{worst}");
        assert_eq!(exp2(0.0), 1.0);
        assert_eq!(exp2(f32::NEG_INFINITY), f32::MIN_POSITIVE);
        assert!(exp2(f32::NAN).is_nan());
    }

    #[test]
    fn sigmoid_and_tanh_are_within_their_bounds() {
        for step in -40_000..=40_000 {
            let x = step as f32 * 1e-3;
            assert!(
                (f64::from(tanh(x)) - f64::from(x).tanh()).abs() < 1e-6,
                "tanh {x}"
            );
            let expected = 1.0 / (1.0 + (-f64::from(x)).exp());
            assert!(
                (f64::from(sigmoid(x)) / expected - 1.0).abs() < 4e-7,
                "sigmoid {x}"
            );
        }
        assert!(tanh(f32::NAN).is_nan() && sigmoid(f32::NAN).is_nan());
    }
}
