//! What happens between the two products of a feed-forward layer.

use std::marker::PhantomData;

use pulp::{Arch, Simd, WithSimd};

use super::matmul::MatMul;
use super::tensor::Linear;
use super::vector::{exp, mul_add};
use crate::Result;
use crate::model::Activation;

/// `gate` `[n, n_ff]` = the activation of the products of `x` with the gate, where there is one, and up. `up` is scratch, and
/// empty where there is no gate.
pub fn gated(
    matmul: &mut MatMul,
    activation: Activation,
    (gate_matrix, up_matrix): (Option<Linear>, Linear),
    x: &[f32],
    gate: &mut [f32],
    up: &mut [f32],
) -> Result<()> {
    match gate_matrix {
        Some(gate_matrix) => matmul.run(&mut [(gate_matrix, gate), (up_matrix, up)], x)?,
        None => matmul.run(&mut [(up_matrix, gate)], x)?,
    }
    apply(matmul.arch(), activation, gate, up);
    Ok(())
}

/// `gate` = the activation of `gate` and `up`, or of `gate` alone.
fn apply(arch: Arch, activation: Activation, gate: &mut [f32], up: &[f32]) {
    match activation {
        Activation::Silu => arch.dispatch(Pairs::<Silu>(gate, up, PhantomData)),
        Activation::Gelu => arch.dispatch(Pairs::<Gelu>(gate, up, PhantomData)),
        Activation::SiluClamped => arch.dispatch(Pairs::<SiluClamped>(gate, up, PhantomData)),
        Activation::GeluUngated => arch.dispatch(Alone(gate)),
    }
}

/// One of the activations with a gate.
trait Gate {
    fn of<S: Simd>(gate: f32, up: f32) -> f32;
}

struct Silu;

impl Gate for Silu {
    #[inline(always)]
    fn of<S: Simd>(gate: f32, up: f32) -> f32 {
        gate / (1.0 + exp::<S>(-gate)) * up
    }
}

struct Gelu;

impl Gate for Gelu {
    #[inline(always)]
    fn of<S: Simd>(gate: f32, up: f32) -> f32 {
        gelu::<S>(gate) * up
    }
}

struct SiluClamped;

impl Gate for SiluClamped {
    #[inline(always)]
    fn of<S: Simd>(gate: f32, up: f32) -> f32 {
        const LIMIT: f32 = 7.0;
        // `min` would make a number of NaN.
        let gate = if gate > LIMIT { LIMIT } else { gate };
        gate / (1.0 + exp::<S>(-1.702 * gate)) * (up.clamp(-LIMIT, LIMIT) + 1.0)
    }
}

/// x/2 (1 + tanh(u)) with u = sqrt(2/pi) (x + 0.044715 x^3), which is x / (1 + e^-2u).
#[inline(always)]
fn gelu<S: Simd>(x: f32) -> f32 {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    let u = SQRT_2_OVER_PI * x * mul_add::<S>(0.044_715 * x, x, 1.0);
    x / (1.0 + exp::<S>(-2.0 * u))
}

struct Pairs<'a, G>(&'a mut [f32], &'a [f32], PhantomData<G>);

impl<G: Gate> WithSimd for Pairs<'_, G> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (gate, up) in self.0.iter_mut().zip(self.1) {
            *gate = G::of::<S>(*gate, *up);
        }
    }
}

struct Alone<'a>(&'a mut [f32]);

impl WithSimd for Alone<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        self.0.iter_mut().for_each(|x| *x = gelu::<S>(*x));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_equal_their_formulas() {
        let x: Vec<f32> = (-4000..=4000).map(|i| i as f32 / 200.0).chain([-1e30, 1e30]).collect();
        let gelu = |x: f64| {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            0.5 * x * (1.0 + u.tanh())
        };
        let clamped = |x: f64, up: f64| {
            let x = x.min(7.0);
            x / (1.0 + (-1.702 * x).exp()) * (up.clamp(-7.0, 7.0) + 1.0)
        };
        for up in [0.5f32, -9.0] {
            let value = |activation: Activation, x: f64| match activation {
                Activation::Silu => x / (1.0 + (-x).exp()) * f64::from(up),
                Activation::Gelu => gelu(x) * f64::from(up),
                Activation::GeluUngated => gelu(x),
                Activation::SiluClamped => clamped(x, f64::from(up)),
            };
            use Activation::{Gelu, GeluUngated, Silu, SiluClamped};
            for activation in [Silu, Gelu, GeluUngated, SiluClamped] {
                let mut found = x.clone();
                let ups = if activation.gated() { vec![up; x.len()] } else { Vec::new() };
                apply(Arch::new(), activation, &mut found, &ups);
                for (x, found) in x.iter().zip(found) {
                    let expected = value(activation, f64::from(*x));
                    let error = (f64::from(found) - expected).abs();
                    assert!(
                        error <= 1e-6 * expected.abs().max(0.1 * f64::from(up.abs()).max(1.0)),
                        "{activation:?} {x}: {found} {expected}"
                    );
                }
            }
        }
        let mut nan = [f32::NAN; 3];
        apply(Arch::new(), Activation::SiluClamped, &mut nan, &[1.0; 3]);
        assert!(nan.iter().all(|x| x.is_nan()));
    }
}
