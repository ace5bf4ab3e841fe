//! Repeatable numbers for tests.

/// `count` numbers between -1 and 1, with a few larger ones, as activations have.
pub(crate) fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|index| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let uniform = (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0;
            if index % 61 == 7 {
                4.0 * uniform
            } else {
                uniform
            }
        })
        .collect()
}

/// Their bits, which tell apart what `==` takes for equal.
pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// The largest magnitude.
pub(crate) fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |largest, value| {
        if value.abs() > largest || value.is_nan() {
            value.abs()
        } else {
            largest
        }
    })
}
