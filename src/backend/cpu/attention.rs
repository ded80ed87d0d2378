//! Attention of one query head over the cache, page by page with a running softmax (Milakov and Gimelshein
//! 2018), so that no buffer grows with the context and the order of sums depends on positions alone.

use pulp::{Arch, Simd, WithSimd};

use super::kv_cache::PAGE;
use super::vector::{Sums, exp, mul_add};

/// One query head: where its keys and values stand in a row of the cache.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    /// `[head_dim]`
    pub q: &'a [f32],
    /// Column where the head's keys and values start.
    pub at: usize,
    /// Width of a row of the cache: `n_head_kv * head_dim`.
    pub width: usize,
    /// Factor on q·k.
    pub scale: f32,
    /// c of `c * tanh(score / c)`.
    pub softcap: Option<f32>,
    /// The score that stands for no key.
    pub sink: Option<f32>,
}

/// Writes the mix of the values to `out` `[head_dim]`; `pages` gives k and v `[positions, width]` in order.
pub fn attend<'a>(arch: Arch, head: Head, pages: impl Iterator<Item = (&'a [f32], &'a [f32])>, out: &mut [f32]) {
    let mut softmax = match head.sink {
        Some(sink) => Softmax { max: sink, sum: 1.0 },
        None => Softmax { max: f32::NEG_INFINITY, sum: 0.0 },
    };
    out.fill(0.0);
    for (keys, values) in pages {
        arch.dispatch(Page { head, keys, values, softmax: &mut softmax, out });
    }
    out.iter_mut().for_each(|x| *x /= softmax.sum);
}

/// Largest score so far, and the sum of `exp(score - max)`.
struct Softmax {
    max: f32,
    sum: f32,
}

/// Adds one page to the mix.
struct Page<'a> {
    head: Head<'a>,
    keys: &'a [f32],
    values: &'a [f32],
    softmax: &'a mut Softmax,
    out: &'a mut [f32],
}

impl WithSimd for Page<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Page { head, keys, values, softmax, out } = self;
        let columns = head.at..head.at + head.q.len();
        let mut scores = [0.0; PAGE];
        let mut max = softmax.max;
        for (score, key) in scores.iter_mut().zip(keys.chunks_exact(head.width)) {
            let mut sums = Sums::new(simd);
            sums.add(simd, head.q, &key[columns.clone()]);
            let scaled = sums.total(simd) * head.scale;
            *score = head.softcap.map_or(scaled, |cap| cap * (scaled / cap).tanh());
            max = max.max(*score);
        }
        let shrink = if softmax.sum == 0.0 { 0.0 } else { exp::<S>(softmax.max - max) };
        softmax.max = max;
        softmax.sum *= shrink;
        out.iter_mut().for_each(|x| *x *= shrink);
        for (score, value) in scores.iter().zip(values.chunks_exact(head.width)) {
            let weight = exp::<S>(score - max);
            softmax.sum += weight;
            for (out, value) in out.iter_mut().zip(&value[columns.clone()]) {
                *out = mul_add::<S>(weight, *value, *out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_softmax_written_out() {
        let (head_dim, width, n) = (20, 40, PAGE + 7);
        let value = |i: usize| ((i * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0;
        let keys: Vec<f32> = (0..n * width).map(value).collect();
        let values: Vec<f32> = (0..n * width).map(|i| value(i + 77_777)).collect();
        let q: Vec<f32> = (0..head_dim).map(|i| value(i + 5)).collect();
        let product = |p: usize| (0..head_dim).map(|i| q[i] as f64 * keys[p * width + 20 + i] as f64).sum::<f64>();
        for (softcap, sink) in [(None, None), (Some(0.5), None), (None, Some(-1.0)), (Some(2.0), Some(3.0))] {
            let head = Head { q: &q, at: 20, width, scale: 0.3, softcap, sink };
            let pages = keys.chunks(PAGE * width).zip(values.chunks(PAGE * width));
            let mut out = vec![f32::NAN; head_dim];
            attend(Arch::new(), head, pages, &mut out);

            let capped = |x: f64| softcap.map_or(x, |c| f64::from(c) * (x / f64::from(c)).tanh());
            let weights: Vec<f64> = (0..n).map(|p| capped(product(p) * 0.3).exp()).collect();
            let sum = weights.iter().sum::<f64>() + sink.map_or(0.0, |sink| f64::from(sink).exp());
            for (i, out) in out.iter().enumerate() {
                let mix: f64 = (0..n).map(|p| weights[p] * values[p * width + 20 + i] as f64).sum();
                let expected = mix / sum;
                assert!((*out as f64 - expected).abs() < 1e-5, "{softcap:?} {sink:?}: {out} {expected}");
            }
        }
    }
}
