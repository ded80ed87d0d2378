//! The decoder written out in f64: plainly, without a cache, and from the words of a description alone.

#![allow(dead_code, reason = "each test binary uses what it needs")]

use kigo::model::{Activation, ModelDesc, Norm, QkNorm, RopeKind, RopePairing, RopeScaling};

use crate::tiny::Draft;

type Vector = Vec<f64>;

/// The logits after each of `tokens`, of a file whose tensors are all f32.
pub fn logits(draft: &Draft, desc: &ModelDesc, tokens: &[u32]) -> Vec<Vector> {
    let file = File { draft, desc };
    let embedding = file.values("token_embd.weight").unwrap();
    let positions = file.values("position_embd.weight").filter(|_| desc.learned_positions);
    let mut x: Vec<Vector> = Vec::new();
    for (p, &token) in tokens.iter().enumerate() {
        let row = |all: &[f64], at: usize| all[at * desc.n_embd..][..desc.n_embd].to_vec();
        let mut row_of_token = row(&embedding, token as usize);
        row_of_token.iter_mut().for_each(|x| *x *= f64::from(desc.embd_scale));
        if let Some(positions) = &positions {
            add(&mut row_of_token, &row(positions, p), 1.0);
        }
        x.push(row_of_token);
    }
    for layer in 0..desc.n_layer() {
        file.attention(layer, &mut x);
        for x in &mut x {
            let input = if desc.pre_norm { file.norm(&file.name(layer, desc.ffn_norm), x) } else { x.clone() };
            let mut delta = file.feed_forward(layer, &input);
            if desc.post_norm {
                delta = file.norm(&file.name(layer, "post_ffw_norm"), &delta);
            }
            add(x, &delta, desc.residual_scale.into());
        }
    }
    let head = if draft.tensors.iter().any(|t| t.name == "output.weight") { "output" } else { "token_embd" };
    let logits = |x: &Vector| {
        let logits = file.linear(head, &file.norm("output_norm", x));
        logits.iter().map(|x| capped(x * f64::from(desc.logit_scale), desc.logit_softcap)).collect()
    };
    x.iter().map(logits).collect()
}

struct File<'a> {
    draft: &'a Draft,
    desc: &'a ModelDesc,
}

impl File<'_> {
    fn name(&self, layer: usize, role: &str) -> String {
        format!("blk.{layer}.{role}")
    }

    fn values(&self, name: &str) -> Option<Vector> {
        let tensor = self.draft.tensors.iter().find(|tensor| tensor.name == name)?;
        assert_eq!(tensor.type_id, 0, "{name} is not f32");
        Some(tensor.data.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect())
    }

    /// The product with `name.weight`, plus `name.bias` where there is one; of part `at` of `n` of both.
    fn part(&self, name: &str, (at, n): (usize, usize), x: &[f64]) -> Vector {
        let weight = self.values(&format!("{name}.weight")).unwrap();
        let weight = &weight[at * weight.len() / n..(at + 1) * weight.len() / n];
        let mut out: Vector =
            weight.chunks_exact(x.len()).map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum()).collect();
        if let Some(bias) = self.values(&format!("{name}.bias")) {
            add(&mut out, &bias[at * bias.len() / n..(at + 1) * bias.len() / n], 1.0);
        }
        out
    }

    fn linear(&self, name: &str, x: &[f64]) -> Vector {
        self.part(name, (0, 1), x)
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vector {
        let mean = match self.desc.norm {
            Norm::Rms => 0.0,
            Norm::Layer => x.iter().sum::<f64>() / x.len() as f64,
        };
        let centred: Vector = x.iter().map(|x| x - mean).collect();
        let mut out = rms(&centred, &self.values(&format!("{name}.weight")).unwrap(), self.desc.norm_eps.into());
        if let Some(bias) = self.values(&format!("{name}.bias")) {
            add(&mut out, &bias, 1.0);
        }
        out
    }

    fn qkv(&self, layer: usize, x: &[f64]) -> [Vector; 3] {
        let (q, kv) = (self.desc.n_head * self.desc.head_dim, self.desc.n_head_kv * self.desc.head_dim);
        let fused = self.name(layer, "attn_qkv");
        if self.values(&format!("{fused}.weight")).is_some() {
            let all = self.linear(&fused, x);
            return [all[..q].to_vec(), all[q..q + kv].to_vec(), all[q + kv..].to_vec()];
        }
        ["attn_q", "attn_k", "attn_v"].map(|role| self.linear(&self.name(layer, role), x))
    }

    fn qk_norm(&self, name: &str, x: &mut Vector) {
        let weight = || self.values(&format!("{name}.weight")).unwrap();
        let width = match self.desc.qk_norm {
            Some(QkNorm::Head) => self.desc.head_dim,
            Some(QkNorm::Row) => x.len(),
            None => return,
        };
        *x = x.chunks_exact(width).flat_map(|x| rms(x, &weight(), self.desc.norm_eps.into())).collect();
    }

    fn rope(&self, kind: &RopeKind, p: usize, x: &mut [f64]) {
        let (n_rot, divisors) = (self.desc.rope.n_rot, self.values("rope_freqs.weight"));
        let base = f64::from(kind.freq_base);
        for head in x.chunks_exact_mut(self.desc.head_dim) {
            for i in 0..n_rot / 2 {
                let mut angle = base.powf(-2.0 * i as f64 / n_rot as f64) / divisors.as_ref().map_or(1.0, |d| d[i]);
                let mut growth = f64::from(kind.attn_factor);
                match kind.scaling {
                    RopeScaling::Linear(factor) => angle /= f64::from(factor),
                    RopeScaling::Yarn { factor, beta_fast, beta_slow } => {
                        let (factor, n_orig) = (f64::from(factor), self.desc.rope.n_ctx_orig as f64);
                        let at = |beta: f32| {
                            n_rot as f64 * (n_orig / (f64::from(beta) * 2.0 * std::f64::consts::PI)).ln()
                                / (2.0 * base.ln())
                        };
                        let (low, high) =
                            (at(beta_fast).floor().max(0.0), at(beta_slow).ceil().min(n_rot as f64 - 1.0));
                        let kept = 1.0 - ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                        angle = angle / factor * (1.0 - kept) + angle * kept;
                        growth *= 0.1 * factor.ln() + 1.0;
                    }
                }
                let (a, b) = match self.desc.rope.pairing {
                    RopePairing::Adjacent => (2 * i, 2 * i + 1),
                    RopePairing::Halves => (i, i + n_rot / 2),
                };
                let ((sin, cos), (x, y)) = ((p as f64 * angle).sin_cos(), (head[a], head[b]));
                head[a] = growth * (x * cos - y * sin);
                head[b] = growth * (x * sin + y * cos);
            }
        }
    }

    fn attention(&self, layer: usize, x: &mut [Vector]) {
        let desc = self.desc;
        let (mut queries, mut keys, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for (p, x) in x.iter().enumerate() {
            let input = if desc.pre_norm { self.norm(&self.name(layer, "attn_norm"), x) } else { x.clone() };
            let [mut q, mut k, v] = self.qkv(layer, &input);
            self.qk_norm(&self.name(layer, "attn_q_norm"), &mut q);
            self.qk_norm(&self.name(layer, "attn_k_norm"), &mut k);
            if let Some(kind) = desc.layers[layer].rope {
                self.rope(&desc.rope.kinds[kind], p, &mut q);
                self.rope(&desc.rope.kinds[kind], p, &mut k);
            }
            queries.push(q);
            keys.push(k);
            values.push(v);
        }
        let sinks = self.values(&self.name(layer, "attn_sinks.weight")).filter(|_| desc.sinks);
        for (p, x) in x.iter_mut().enumerate() {
            let seen = desc.layers[layer].window.map_or(0, |window| (p + 1).saturating_sub(window))..p + 1;
            let mut mix = Vector::new();
            for head in 0..desc.n_head {
                let at = head / (desc.n_head / desc.n_head_kv) * desc.head_dim;
                let q = &queries[p][head * desc.head_dim..][..desc.head_dim];
                let score = |other: usize| {
                    let product: f64 = q.iter().zip(&keys[other][at..]).map(|(a, b)| a * b).sum();
                    capped(product * f64::from(desc.attn_scale), desc.attn_softcap)
                };
                let weights: Vector = seen.clone().map(|other| score(other).exp()).collect();
                let sum = weights.iter().sum::<f64>() + sinks.as_ref().map_or(0.0, |sinks| sinks[head].exp());
                let column =
                    |i: usize| seen.clone().zip(&weights).map(|(other, weight)| weight / sum * values[other][i]).sum();
                mix.extend((at..at + desc.head_dim).map(|i| -> f64 { column(i) }));
            }
            let mut delta = self.linear(&self.name(layer, "attn_output"), &mix);
            if desc.post_norm {
                delta = self.norm(&self.name(layer, "post_attention_norm"), &delta);
            }
            add(x, &delta, desc.residual_scale.into());
        }
    }

    fn feed_forward(&self, layer: usize, x: &[f64]) -> Vector {
        let name = |role: &str| self.name(layer, role);
        let Some(experts) = self.desc.experts else {
            let mut up = self.linear(&name("ffn_up"), x);
            let gate = match self.desc.activation.gated() {
                true if up.len() > self.desc.n_ff => {
                    let whole = up.clone();
                    up = whole[self.desc.n_ff..].to_vec();
                    whole[..self.desc.n_ff].to_vec()
                }
                true => self.linear(&name("ffn_gate"), x),
                false => Vector::new(),
            };
            return self.linear(&name("ffn_down"), &self.activation(&gate, &up));
        };
        let logits = self.linear(&name("ffn_gate_inp"), x);
        let mut ranking: Vec<usize> = (0..experts.n_expert).collect();
        ranking.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        let used = &ranking[..experts.n_expert_used];
        let sum: f64 = used.iter().map(|&e| logits[e].exp()).sum();
        let mut out = vec![0.0; self.desc.n_embd];
        for &e in used {
            let part = |role: &str, x: &[f64]| self.part(&name(role), (e, experts.n_expert), x);
            let gate = if self.desc.activation.gated() { part("ffn_gate_exps", x) } else { Vector::new() };
            let hidden = self.activation(&gate, &part("ffn_up_exps", x));
            add(&mut out, &part("ffn_down_exps", &hidden), logits[e].exp() / sum);
        }
        out
    }

    fn activation(&self, gate: &[f64], up: &[f64]) -> Vector {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let gelu =
            |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh());
        let each = |i: usize| match self.desc.activation {
            Activation::Silu => gate[i] * sigmoid(gate[i]) * up[i],
            Activation::Gelu => gelu(gate[i]) * up[i],
            Activation::GeluUngated => gelu(up[i]),
            Activation::SiluClamped => {
                let gate = gate[i].min(7.0);
                gate * sigmoid(1.702 * gate) * (up[i].clamp(-7.0, 7.0) + 1.0)
            }
        };
        (0..up.len()).map(each).collect()
    }
}

fn add(x: &mut [f64], delta: &[f64], factor: f64) {
    assert_eq!(x.len(), delta.len());
    x.iter_mut().zip(delta).for_each(|(x, delta)| *x += factor * delta);
}

fn capped(x: f64, cap: Option<f32>) -> f64 {
    cap.map_or(x, |cap| f64::from(cap) * (x / f64::from(cap)).tanh())
}

fn rms(x: &[f64], weight: &[f64], eps: f64) -> Vector {
    let root = (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + eps).sqrt();
    x.iter().zip(weight).map(|(x, weight)| x / root * weight).collect()
}
