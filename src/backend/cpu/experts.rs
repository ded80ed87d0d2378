//! Experts: which of them each row uses, and their products. Rows that use the same expert stand together, so that its
//! weights are read once; what comes out is added up row by row, in the order of rank, so that company changes nothing.

use std::ops::Range;

use super::matmul::MatMul;
use super::memory::resize;
use super::tensor::{Linear, Tensor};
use super::{activation, vector};
use crate::Result;
use crate::model::{Activation, Experts, Layer};

/// Which experts the rows of a batch use. Every use has a slot; the slots of an expert follow each other, in the order of
/// rows.
#[derive(Default)]
pub struct Routing {
    /// Of the router: `[n, n_expert]`.
    logits: Vec<f32>,
    /// `[n, n_expert_used]`, those of a row by rank: the largest logit first.
    uses: Vec<Use>,
    /// Slots of each expert end where those of the next begin: `[n_expert]`.
    ends: Vec<usize>,
    /// The experts of one row by rank: `[n_expert]`.
    ranking: Vec<usize>,
    n_expert_used: usize,
}

/// One row uses one expert.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Use {
    expert: usize,
    weight: f32,
    slot: usize,
}

impl Routing {
    /// Chooses for every row of `x` `[n, n_embd]`, by the logits of the router.
    ///
    /// # Errors
    /// When memory cannot be had.
    pub fn choose(&mut self, experts: Experts, router: Linear, matmul: &mut MatMul, x: &[f32]) -> Result<()> {
        let n = x.len() / router.tensor.cols();
        resize(&mut self.logits, n, experts.n_expert)?;
        matmul.run(&mut [(router, &mut self.logits)], x)?;
        self.rank(experts, n)
    }

    /// Chooses by the logits that are here.
    fn rank(&mut self, experts: Experts, n: usize) -> Result<()> {
        let Experts { n_expert, n_expert_used } = experts;
        resize(&mut self.uses, n, n_expert_used)?;
        resize(&mut self.ends, 1, n_expert)?;
        resize(&mut self.ranking, 1, n_expert)?;
        self.ends.fill(0);
        self.n_expert_used = n_expert_used;
        for (logits, uses) in self.logits.chunks_exact(n_expert).zip(self.uses.chunks_exact_mut(n_expert_used)) {
            self.ranking.iter_mut().enumerate().for_each(|(i, expert)| *expert = i);
            // The sort is stable, so that of equal ones the first comes first; zero has two signs that are equal.
            self.ranking.sort_by(|&a, &b| (logits[b] + 0.0).total_cmp(&(logits[a] + 0.0)));
            let largest = logits[self.ranking[0]];
            for (used, &expert) in uses.iter_mut().zip(&self.ranking) {
                *used = Use { expert, weight: (logits[expert] - largest).exp(), slot: 0 };
                self.ends[expert] += 1;
            }
            let sum: f32 = uses.iter().map(|used| used.weight).sum();
            uses.iter_mut().for_each(|used| used.weight /= sum);
        }
        let mut end = 0;
        for count in &mut self.ends {
            end += *count;
            *count = end - *count;
        }
        // From here on each counts from where its slots start to where they end.
        for used in &mut self.uses {
            used.slot = self.ends[used.expert];
            self.ends[used.expert] += 1;
        }
        Ok(())
    }

    /// The experts that are used, with their slots.
    fn used(&self) -> impl Iterator<Item = (usize, Range<usize>)> {
        let starts = std::iter::once(&0).chain(&self.ends);
        let slots = starts.zip(&self.ends).map(|(&start, &end)| start..end).enumerate();
        slots.filter(|(_, slots)| !slots.is_empty())
    }

    /// Uses of each row.
    fn rows(&self) -> impl Iterator<Item = &[Use]> {
        self.uses.chunks_exact(self.n_expert_used.max(1))
    }

    pub fn bytes(&self) -> usize {
        self.logits.capacity() * size_of::<f32>()
            + self.uses.capacity() * size_of::<Use>()
            + (self.ends.capacity() + self.ranking.capacity()) * size_of::<usize>()
    }
}

/// Gate and up of the experts of every row of `x` `[n, n_embd]`, and the activation: `gate` `[slots, n_ff]`. `rows`
/// `[slots, n_embd]` and `up` are scratch.
pub fn up(
    layer: &Layer<Tensor>,
    routing: &Routing,
    activation: Activation,
    matmul: &mut MatMul,
    x: &[f32],
    (rows, gate, up): (&mut [f32], &mut [f32], &mut [f32]),
) -> Result<()> {
    let (n_expert, n_embd) = (routing.ends.len(), layer.ffn_up.cols());
    for (x, uses) in x.chunks_exact(n_embd).zip(routing.rows()) {
        uses.iter().for_each(|used| rows[used.slot * n_embd..][..n_embd].copy_from_slice(x));
    }
    let gate_matrix = layer.ffn_gate.as_ref().map(|gate| Linear::new(gate, layer.ffn_gate_bias.as_ref()));
    let up_matrix = Linear::new(&layer.ffn_up, layer.ffn_up_bias.as_ref());
    let n_ff = up_matrix.n_rows / n_expert;
    for (expert, slots) in routing.used() {
        let x = &rows[slots.start * n_embd..slots.end * n_embd];
        let columns = slots.start * n_ff..slots.end * n_ff;
        let matrices = (gate_matrix.map(|gate| gate.part(expert, n_expert)), up_matrix.part(expert, n_expert));
        let up = if matrices.0.is_some() { &mut up[columns.clone()] } else { &mut [] };
        activation::gated(matmul, activation, matrices, x, &mut gate[columns], up)?;
    }
    Ok(())
}

/// `delta` `[n, n_embd]` = the outputs of the experts of every row, weighted and added in the order of rank.
pub fn down(
    layer: &Layer<Tensor>,
    routing: &Routing,
    matmul: &mut MatMul,
    gate: &[f32],
    (rows, delta): (&mut [f32], &mut [f32]),
) -> Result<()> {
    let (n_expert, n_ff) = (routing.ends.len(), layer.ffn_down.cols());
    let matrix = Linear::new(&layer.ffn_down, layer.ffn_down_bias.as_ref());
    let n_embd = matrix.n_rows / n_expert;
    for (expert, slots) in routing.used() {
        let out = &mut rows[slots.start * n_embd..slots.end * n_embd];
        matmul.run(&mut [(matrix.part(expert, n_expert), out)], &gate[slots.start * n_ff..slots.end * n_ff])?;
    }
    delta.fill(0.0);
    for (delta, uses) in delta.chunks_exact_mut(n_embd).zip(routing.rows()) {
        uses.iter().for_each(|used| vector::add_scaled(delta, &rows[used.slot * n_embd..][..n_embd], used.weight));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routed(n_expert_used: usize, logits: &[[f32; 4]]) -> Routing {
        let mut routing = Routing { logits: logits.concat(), ..Routing::default() };
        routing.rank(Experts { n_expert: 4, n_expert_used }, logits.len()).unwrap();
        routing
    }

    #[test]
    fn the_largest_are_chosen_and_of_equal_ones_the_first() {
        let routing = routed(2, &[[0.5, 2.0, -1.0, 2.0], [-0.0, -3.0, 0.0, -3.0], [1.0, 1.0, 1.0, 1.0]]);
        let chosen: Vec<Vec<usize>> =
            routing.rows().map(|uses| uses.iter().map(|used| used.expert).collect()).collect();
        assert_eq!(chosen, [[1, 3], [0, 2], [0, 1]]);
        assert!(routing.uses.iter().all(|used| used.weight == 0.5));
        let slots: Vec<_> = routing.used().collect();
        assert_eq!(slots, [(0, 0..2), (1, 2..4), (2, 4..5), (3, 5..6)]);
        assert_eq!(routing.uses.iter().map(|used| used.slot).collect::<Vec<_>>(), [2, 5, 0, 4, 1, 3]);
    }

    #[test]
    fn weights_are_the_softmax_of_the_chosen() {
        let routing = routed(3, &[[0.1, -200.0, 1.5, 0.7]]);
        let expected = [1.5f32, 0.7, 0.1].map(|logit| f64::from(logit).exp());
        let sum: f64 = expected.iter().sum();
        for (used, expected) in routing.uses.iter().zip(expected) {
            assert!((f64::from(used.weight) - expected / sum).abs() < 1e-6);
        }
        assert_eq!(routing.used().map(|(expert, _)| expert).collect::<Vec<_>>(), [0, 2, 3]);
    }

    #[test]
    fn logits_that_are_no_numbers_make_weights_that_are_none() {
        let routing = routed(2, &[[f32::NAN, 1.0, f32::INFINITY, 0.0], [0.0, 0.0, f32::NEG_INFINITY, 0.0]]);
        assert!(routing.uses[..2].iter().any(|used| used.weight.is_nan()));
        assert!(routing.uses[2..].iter().all(|used| used.weight == 0.5));
    }
}
