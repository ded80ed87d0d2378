//! The exponential of the sampler's weights, defined to the last bit.
//!
//! Only products, sums and integer operations in a written order, each rounded to nearest, so that `kernels/sample.cu`
//! computes the same bits; the `exp` of a maths library may differ from one version or device to the next.

/// 1 / ln 2.
const LOG2_E: f64 = std::f64::consts::LOG2_E;
/// ln 2 in two parts, of which the first times a whole number up to 2^20 is exact (fdlibm's).
const LN_2_HIGH: f64 = 6.931_471_803_691_238e-1;
const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;
/// 1.5 * 2^52: what is added to it is rounded to a whole number, which its lowest bits then hold.
const WHOLE: f64 = 6_755_399_441_055_744.0;
/// The Taylor coefficients 1/2! to 1/13!; what follows is below 2^-57 for `|r| <= ln(2) / 2`.
const TAYLOR: [f64; 12] = [
    1.0 / 2.0,
    1.0 / 6.0,
    1.0 / 24.0,
    1.0 / 120.0,
    1.0 / 720.0,
    1.0 / 5040.0,
    1.0 / 40320.0,
    1.0 / 362880.0,
    1.0 / 3628800.0,
    1.0 / 39916800.0,
    1.0 / 479001600.0,
    1.0 / 6227020800.0,
];

/// `e^x` for `x` in -700..=700, with a relative error below 4e-16.
pub(super) fn exp(x: f64) -> f64 {
    let shifted = x * LOG2_E + WHOLE;
    let whole = shifted - WHOLE;
    let r = (x - whole * LN_2_HIGH) - whole * LN_2_LOW;
    let (r2, c) = (r * r, &TAYLOR);
    let r4 = r2 * r2;
    // Estrin's scheme: a third of the dependent steps of Horner's.
    let low = (c[0] + c[1] * r) + (c[2] + c[3] * r) * r2;
    let middle = (c[4] + c[5] * r) + (c[6] + c[7] * r) * r2;
    let high = (c[8] + c[9] * r) + (c[10] + c[11] * r) * r2;
    let e = 1.0 + (r + (low + (middle + high * r4) * r4) * r2);
    // 2^whole: the lowest bits of `shifted` plus the bias of the exponent; what is above them is shifted out.
    e * f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn error_is_below_4e_16() {
        let mut worst = 0f64;
        for i in 0..=2_000_000 {
            let x = -28.0 * f64::from(i) / 2_000_000.0;
            // The library's own error is below 1.2e-16.
            worst = worst.max((exp(x) / x.exp() - 1.0).abs());
        }
        assert!(worst < 4e-16 + 1.2e-16, "{worst:e}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
    }

    /// The copy of these constants in the kernel.
    #[test]
    fn the_kernel_has_the_same_constants() {
        let text = include_str!("../../kernels/sample_candidates.cuh");
        let after = |name: &str| text.split_once(&format!(" {name} = ")).unwrap().1;
        let number = |name: &str| after(name).split_once(';').unwrap().0.parse::<f64>().unwrap();
        let found = ["kLog2E", "kLn2High", "kLn2Low", "kWhole"].map(number);
        assert_eq!(found, [LOG2_E, LN_2_HIGH, LN_2_LOW, WHOLE]);
        let taylor = after("c[12]").split_once('}').unwrap().0.trim_start_matches('{');
        let taylor: Vec<f64> =
            taylor.split(',').map(|c| 1.0 / c.trim().strip_prefix("1.0 / ").unwrap().parse::<f64>().unwrap()).collect();
        assert_eq!(taylor, TAYLOR);
    }
}
