//! Which tensor plays which role: the names and shapes a model must have, checked once for all backends.

use super::{ModelDesc, Norm, QkNorm};
use crate::gguf::{Gguf, MAX_DIMS, TensorInfo};
use crate::{Error, Result};

/// The weights of a model, each a `T`: a [`TensorInfo`] in a plan, a buffer in a backend. What a model does not have is
/// `None`; norms have biases only with [`Norm::Layer`].
#[derive(Debug)]
pub struct Weights<T> {
    /// `[n_vocab, n_embd]`
    pub token_embd: T,
    /// `[n_ctx_train * n_embd]`
    pub position_embd: Option<T>,
    /// `[n_embd]`
    pub output_norm: T,
    /// `[n_embd]`
    pub output_norm_bias: Option<T>,
    /// `[n_vocab, n_embd]`; `None` when the head is tied to `token_embd`.
    pub output: Option<T>,
    /// `[n_rot / 2]`: divisors of the rope angles.
    pub rope_freqs: Option<T>,
    /// The same for contexts longer than [`Rope::n_ctx_orig`](super::Rope::n_ctx_orig).
    pub rope_factors_long: Option<T>,
    /// The same for others.
    pub rope_factors_short: Option<T>,
    /// One per layer.
    pub layers: Vec<Layer<T>>,
}

/// The weights of one layer.
#[derive(Debug)]
pub struct Layer<T> {
    /// `[n_embd]`
    pub attn_norm: Option<T>,
    /// `[n_embd]`
    pub attn_norm_bias: Option<T>,
    /// `[n_head * head_dim, n_embd]`
    pub attn_q: T,
    /// `[n_head_kv * head_dim, n_embd]`
    pub attn_k: T,
    /// `[n_head_kv * head_dim, n_embd]`
    pub attn_v: T,
    /// `[n_head * head_dim]`
    pub attn_q_bias: Option<T>,
    /// `[n_head_kv * head_dim]`
    pub attn_k_bias: Option<T>,
    /// `[n_head_kv * head_dim]`
    pub attn_v_bias: Option<T>,
    /// `[head_dim]` or `[n_head * head_dim]`: see [`QkNorm`].
    pub attn_q_norm: Option<T>,
    /// `[head_dim]` or `[n_head_kv * head_dim]`
    pub attn_k_norm: Option<T>,
    /// `[n_head]`
    pub attn_sinks: Option<T>,
    /// `[n_embd, n_head * head_dim]`
    pub attn_output: T,
    /// `[n_embd]`
    pub attn_output_bias: Option<T>,
    /// `[n_embd]`: `post_attention_norm`.
    pub attn_post_norm: Option<T>,
    /// `[n_embd]`
    pub ffn_norm: Option<T>,
    /// `[n_embd]`
    pub ffn_norm_bias: Option<T>,
    /// The router of the experts: `[n_expert, n_embd]`.
    pub ffn_gate_inp: Option<T>,
    /// `[n_expert]`
    pub ffn_gate_inp_bias: Option<T>,
    /// `[n_ff, n_embd]`, of one expert after the other where there are some: `[n_expert * n_ff, n_embd]`. So are those below.
    pub ffn_gate: Option<T>,
    /// `[n_ff]`
    pub ffn_gate_bias: Option<T>,
    /// `[n_ff, n_embd]`
    pub ffn_up: T,
    /// `[n_ff]`
    pub ffn_up_bias: Option<T>,
    /// `[n_embd, n_ff]`
    pub ffn_down: T,
    /// `[n_embd]`
    pub ffn_down_bias: Option<T>,
    /// `[n_embd]`: `post_ffw_norm`.
    pub ffn_post_norm: Option<T>,
}

/// What a backend does with a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Multiplied with vectors, or looked up by row: stays in its quantised form. `[rows, cols]`.
    Matrix,
    /// Used element by element: norms, biases, factors. `[cols]`.
    Vector,
}

impl<T> Weights<T> {
    /// The same weights, each turned into a `U`.
    ///
    /// # Errors
    /// The first that `f` returns.
    pub fn try_map<U>(&self, mut f: impl FnMut(Role, &T) -> Result<U>) -> Result<Weights<U>> {
        use Role::{Matrix, Vector};
        let mut layers = crate::error::try_vec(self.layers.len(), "the list of layers")?;
        for layer in &self.layers {
            layers.push(layer.try_map(&mut f)?);
        }
        let mut optional = |role, tensor: &Option<T>| tensor.as_ref().map(|tensor| f(role, tensor)).transpose();
        Ok(Weights {
            position_embd: optional(Vector, &self.position_embd)?,
            output_norm_bias: optional(Vector, &self.output_norm_bias)?,
            output: optional(Matrix, &self.output)?,
            rope_freqs: optional(Vector, &self.rope_freqs)?,
            rope_factors_long: optional(Vector, &self.rope_factors_long)?,
            rope_factors_short: optional(Vector, &self.rope_factors_short)?,
            token_embd: f(Matrix, &self.token_embd)?,
            output_norm: f(Vector, &self.output_norm)?,
            layers,
        })
    }

    /// The divisors of the rope angles in contexts of up to `n_ctx` tokens.
    pub fn rope_divisors(&self, desc: &ModelDesc, n_ctx: usize) -> Option<&T> {
        let by_length = if n_ctx > desc.rope.n_ctx_orig { &self.rope_factors_long } else { &self.rope_factors_short };
        self.rope_freqs.as_ref().or(by_length.as_ref())
    }
}

impl<T> Layer<T> {
    fn try_map<U>(&self, f: &mut impl FnMut(Role, &T) -> Result<U>) -> Result<Layer<U>> {
        use Role::{Matrix, Vector};
        let mut optional = |role, tensor: &Option<T>| tensor.as_ref().map(|tensor| f(role, tensor)).transpose();
        Ok(Layer {
            attn_norm: optional(Vector, &self.attn_norm)?,
            attn_norm_bias: optional(Vector, &self.attn_norm_bias)?,
            attn_q_bias: optional(Vector, &self.attn_q_bias)?,
            attn_k_bias: optional(Vector, &self.attn_k_bias)?,
            attn_v_bias: optional(Vector, &self.attn_v_bias)?,
            attn_q_norm: optional(Vector, &self.attn_q_norm)?,
            attn_k_norm: optional(Vector, &self.attn_k_norm)?,
            attn_sinks: optional(Vector, &self.attn_sinks)?,
            attn_output_bias: optional(Vector, &self.attn_output_bias)?,
            attn_post_norm: optional(Vector, &self.attn_post_norm)?,
            ffn_norm: optional(Vector, &self.ffn_norm)?,
            ffn_norm_bias: optional(Vector, &self.ffn_norm_bias)?,
            ffn_gate_inp: optional(Matrix, &self.ffn_gate_inp)?,
            ffn_gate_inp_bias: optional(Vector, &self.ffn_gate_inp_bias)?,
            ffn_gate: optional(Matrix, &self.ffn_gate)?,
            ffn_gate_bias: optional(Vector, &self.ffn_gate_bias)?,
            ffn_up_bias: optional(Vector, &self.ffn_up_bias)?,
            ffn_down_bias: optional(Vector, &self.ffn_down_bias)?,
            ffn_post_norm: optional(Vector, &self.ffn_post_norm)?,
            attn_q: f(Matrix, &self.attn_q)?,
            attn_k: f(Matrix, &self.attn_k)?,
            attn_v: f(Matrix, &self.attn_v)?,
            attn_output: f(Matrix, &self.attn_output)?,
            ffn_up: f(Matrix, &self.ffn_up)?,
            ffn_down: f(Matrix, &self.ffn_down)?,
        })
    }
}

impl Weights<TensorInfo> {
    /// Finds every tensor that `desc` asks for and checks its shape. Tensors that stand in one in the file, such as
    /// `attn_qkv`, become parts of it, and those of experts one matrix.
    ///
    /// # Errors
    /// A tensor that is missing, has another shape, or that no role uses, by name.
    pub fn plan(gguf: &Gguf, desc: &ModelDesc) -> Result<Weights<TensorInfo>> {
        let mut finder = Finder { gguf, used: 0 };
        let (n_embd, n_pairs) = (desc.n_embd, desc.rope.n_rot / 2);
        let head = [desc.n_vocab, n_embd];
        let mut plan = Weights {
            token_embd: finder.require("token_embd.weight", &head)?,
            position_embd: match desc.learned_positions {
                true => Some(finder.require("position_embd.weight", &[desc.n_ctx_train, n_embd])?.flattened(0)),
                false => None,
            },
            output_norm: finder.require("output_norm.weight", &[n_embd])?,
            output_norm_bias: finder.norm_bias(desc, "output_norm.bias")?,
            output: finder.find("output.weight", &head)?,
            rope_freqs: finder.find("rope_freqs.weight", &[n_pairs])?,
            rope_factors_long: finder.find("rope_factors_long.weight", &[n_pairs])?,
            rope_factors_short: finder.find("rope_factors_short.weight", &[n_pairs])?,
            layers: crate::error::try_vec(desc.n_layer(), "the list of layers")?,
        };
        if plan.rope_factors_long.is_some() != plan.rope_factors_short.is_some() {
            let (found, missing) = if plan.rope_factors_long.is_some() { ("long", "short") } else { ("short", "long") };
            let missing = format!("tensor rope_factors_{missing}.weight");
            return Err(Error::bad_file(missing, format!("one beside rope_factors_{found}.weight"), "no such tensor"));
        }
        for i in 0..desc.n_layer() {
            plan.layers.push(finder.layer(desc, i)?);
        }
        if finder.used != gguf.tensors().len() {
            return Err(plan.unused(gguf));
        }
        Ok(plan)
    }

    /// Bytes of all tensors in the file. They do not overlap, so the sum is at most the length of the files.
    pub fn file_bytes(&self) -> u64 {
        let mut bytes = 0u64;
        let _ = self.try_map(|_, tensor| {
            bytes = bytes.saturating_add(tensor.n_bytes);
            Ok(())
        });
        bytes
    }

    /// Weights in the matrices of the layers that a token is multiplied with: of experts those that it uses.
    pub fn layer_weights(&self, desc: &ModelDesc) -> u64 {
        let used = |info: &TensorInfo| match &desc.experts {
            Some(experts) => info.n_elements / (experts.n_expert as u64).max(1) * experts.n_expert_used as u64,
            None => info.n_elements,
        };
        let weights = self.layers.iter().flat_map(|l| {
            let whole = [&l.attn_q, &l.attn_k, &l.attn_v, &l.attn_output].into_iter().chain(&l.ffn_gate_inp);
            let ffn = [&l.ffn_up, &l.ffn_down].into_iter().chain(&l.ffn_gate);
            whole.map(|info| info.n_elements).chain(ffn.map(used))
        });
        weights.fold(0, u64::saturating_add)
    }

    /// The error for a file with a tensor that no role uses: running without it would give wrong text.
    fn unused(&self, gguf: &Gguf) -> Error {
        let mut known = std::collections::HashSet::new();
        let _ = self.try_map(|_, tensor| Ok(known.insert(tensor.name.clone())));
        let unknown = gguf.tensors().iter().find(|tensor| !known.contains(&tensor.name));
        Error::bad_file(
            format!("tensor {}", unknown.map_or(&[][..], |tensor| tensor.name.as_bytes()).escape_ascii()),
            "only tensors that this architecture uses",
            "one that it does not",
        )
    }
}

/// Finds tensors, and counts them.
struct Finder<'a> {
    gguf: &'a Gguf,
    used: usize,
}

impl Finder<'_> {
    /// The tensor of this name, which has dimensions `shape`, the last of which counts neighbours in memory.
    fn find(&mut self, name: &str, shape: &[usize]) -> Result<Option<TensorInfo>> {
        let Some(tensor) = self.gguf.tensor(name) else { return Ok(None) };
        self.used += 1;
        let expected: Vec<u64> = shape.iter().rev().map(|&n| n as u64).collect();
        // Dimensions beyond those expected may be there if they are 1.
        if !tensor.dims.iter().eq(expected.iter().chain(&[1; MAX_DIMS]).take(MAX_DIMS)) {
            return Err(Error::bad_file(
                format!("tensor {name}"),
                format!("dimensions {expected:?}"),
                format!("{:?} of type {}", tensor.dims(), tensor.quant_type.name()),
            ));
        }
        // So that the last dimension is the one that counts.
        Ok(Some(tensor.flattened(shape.len().saturating_sub(1))))
    }

    fn require(&mut self, name: &str, shape: &[usize]) -> Result<TensorInfo> {
        self.find(name, shape)?.ok_or_else(|| {
            let dims: Vec<usize> = shape.iter().rev().copied().collect();
            Error::bad_file(format!("tensor {name}"), format!("dimensions {dims:?}"), "no such tensor")
        })
    }

    fn require_if(&mut self, wanted: bool, name: &str, shape: &[usize]) -> Result<Option<TensorInfo>> {
        if wanted { self.require(name, shape).map(Some) } else { Ok(None) }
    }

    fn find_if(&mut self, wanted: bool, name: &str, shape: &[usize]) -> Result<Option<TensorInfo>> {
        if wanted { self.find(name, shape) } else { Ok(None) }
    }

    fn norm_bias(&mut self, desc: &ModelDesc, name: &str) -> Result<Option<TensorInfo>> {
        self.find_if(desc.norm == Norm::Layer, name, &[desc.n_embd])
    }

    fn layer(&mut self, desc: &ModelDesc, i: usize) -> Result<Layer<TensorInfo>> {
        let n_embd = desc.n_embd;
        let name = |role: &str| format!("blk.{i}.{role}");
        let ffn_norm = |of: &str| format!("blk.{i}.{}.{of}", desc.ffn_norm);
        let widths = [desc.n_embd_q(), desc.n_embd_kv(), desc.n_embd_kv()];
        let [attn_q, attn_k, attn_v] = self.qkv(&name, widths, n_embd)?;
        let [attn_q_bias, attn_k_bias, attn_v_bias] = self.qkv_bias(&name, widths)?;
        let (q_norm, k_norm) = match desc.qk_norm {
            Some(QkNorm::Row) => (desc.n_embd_q(), desc.n_embd_kv()),
            Some(QkNorm::Head) | None => (desc.head_dim, desc.head_dim),
        };
        let has_qk_norm = desc.qk_norm.is_some();
        let ffn = self.ffn(desc, &name)?;
        Ok(Layer {
            attn_norm: self.require_if(desc.pre_norm, &name("attn_norm.weight"), &[n_embd])?,
            attn_norm_bias: self.norm_bias(desc, &name("attn_norm.bias"))?,
            attn_q,
            attn_k,
            attn_v,
            attn_q_bias,
            attn_k_bias,
            attn_v_bias,
            attn_q_norm: self.require_if(has_qk_norm, &name("attn_q_norm.weight"), &[q_norm])?,
            attn_k_norm: self.require_if(has_qk_norm, &name("attn_k_norm.weight"), &[k_norm])?,
            attn_sinks: self.require_if(desc.sinks, &name("attn_sinks.weight"), &[desc.n_head])?,
            attn_output: self.require(&name("attn_output.weight"), &[n_embd, desc.n_embd_q()])?,
            attn_output_bias: self.find(&name("attn_output.bias"), &[n_embd])?,
            attn_post_norm: self.require_if(desc.post_norm, &name("post_attention_norm.weight"), &[n_embd])?,
            ffn_norm: self.require_if(desc.pre_norm, &ffn_norm("weight"), &[n_embd])?,
            ffn_norm_bias: self.norm_bias(desc, &ffn_norm("bias"))?,
            ffn_post_norm: self.require_if(desc.post_norm, &name("post_ffw_norm.weight"), &[n_embd])?,
            ffn_gate_inp: ffn.router,
            ffn_gate_inp_bias: ffn.router_bias,
            ffn_gate: ffn.gate,
            ffn_gate_bias: ffn.gate_bias,
            ffn_up: ffn.up,
            ffn_up_bias: ffn.up_bias,
            ffn_down: ffn.down,
            ffn_down_bias: ffn.down_bias,
        })
    }

    /// q, k and v, which may be one tensor.
    fn qkv(&mut self, name: &impl Fn(&str) -> String, widths: [usize; 3], n_embd: usize) -> Result<[TensorInfo; 3]> {
        match self.find(&name("attn_qkv.weight"), &[widths.iter().sum(), n_embd])? {
            Some(whole) => parts(&whole, widths),
            None => Ok([
                self.require(&name("attn_q.weight"), &[widths[0], n_embd])?,
                self.require(&name("attn_k.weight"), &[widths[1], n_embd])?,
                self.require(&name("attn_v.weight"), &[widths[2], n_embd])?,
            ]),
        }
    }

    fn qkv_bias(&mut self, name: &impl Fn(&str) -> String, widths: [usize; 3]) -> Result<[Option<TensorInfo>; 3]> {
        match self.find(&name("attn_qkv.bias"), &[widths.iter().sum()])? {
            Some(whole) => Ok(parts(&whole, widths)?.map(Some)),
            None => Ok([
                self.find(&name("attn_q.bias"), &[widths[0]])?,
                self.find(&name("attn_k.bias"), &[widths[1]])?,
                self.find(&name("attn_v.bias"), &[widths[2]])?,
            ]),
        }
    }

    fn ffn(&mut self, desc: &ModelDesc, name: &impl Fn(&str) -> String) -> Result<Ffn> {
        let (n_embd, n_ff, gated) = (desc.n_embd, desc.n_ff, desc.activation.gated());
        if let Some(experts) = desc.experts {
            let n = experts.n_expert;
            let gate = self.require_if(gated, &name("ffn_gate_exps.weight"), &[n, n_ff, n_embd])?;
            let gate_bias = self.find_if(gated, &name("ffn_gate_exps.bias"), &[n, n_ff])?;
            let bias = |bias: Option<TensorInfo>| bias.map(|bias| bias.flattened(0));
            return Ok(Ffn {
                router: Some(self.require(&name("ffn_gate_inp.weight"), &[n, n_embd])?),
                router_bias: self.find(&name("ffn_gate_inp.bias"), &[n])?,
                gate: gate.map(|gate| gate.flattened(1)),
                gate_bias: bias(gate_bias),
                up: self.require(&name("ffn_up_exps.weight"), &[n, n_ff, n_embd])?.flattened(1),
                up_bias: bias(self.find(&name("ffn_up_exps.bias"), &[n, n_ff])?),
                down: self.require(&name("ffn_down_exps.weight"), &[n, n_embd, n_ff])?.flattened(1),
                down_bias: bias(self.find(&name("ffn_down_exps.bias"), &[n, n_embd])?),
            });
        }
        // Without a tensor of its own the gate is the first half of `ffn_up`.
        let has = |role: &str, n_rows: usize| {
            self.gguf.tensor(&name(role)).is_some_and(|tensor| tensor.dims().get(1) == Some(&(n_rows as u64)))
        };
        let (gate, up) = if gated && !has("ffn_gate.weight", n_ff) && has("ffn_up.weight", 2 * n_ff) {
            let whole = self.require(&name("ffn_up.weight"), &[2 * n_ff, n_embd])?;
            let [gate, up] = parts(&whole, [n_ff, n_ff])?;
            (Some(gate), up)
        } else {
            let up = self.require(&name("ffn_up.weight"), &[n_ff, n_embd])?;
            (self.require_if(gated, &name("ffn_gate.weight"), &[n_ff, n_embd])?, up)
        };
        Ok(Ffn {
            router: None,
            router_bias: None,
            gate,
            gate_bias: self.find_if(gated, &name("ffn_gate.bias"), &[n_ff])?,
            up,
            up_bias: self.find(&name("ffn_up.bias"), &[n_ff])?,
            down: self.require(&name("ffn_down.weight"), &[n_embd, n_ff])?,
            down_bias: self.find(&name("ffn_down.bias"), &[n_embd])?,
        })
    }
}

/// A feed-forward layer, or its experts.
struct Ffn {
    router: Option<TensorInfo>,
    router_bias: Option<TensorInfo>,
    gate: Option<TensorInfo>,
    gate_bias: Option<TensorInfo>,
    up: TensorInfo,
    up_bias: Option<TensorInfo>,
    down: TensorInfo,
    down_bias: Option<TensorInfo>,
}

/// Neighbours along the last dimension, in so many rows each.
fn parts<const N: usize>(whole: &TensorInfo, n_rows: [usize; N]) -> Result<[TensorInfo; N]> {
    let mut first = 0;
    let mut parts = Vec::with_capacity(N);
    for n in n_rows {
        parts.extend(whole.part(first, n as u64));
        first += n as u64;
    }
    parts.try_into().map_err(|_| {
        let field = format!("tensor {}", whole.name);
        Error::bad_file(
            field,
            "parts of whole blocks",
            format!("{:?} of type {}", whole.dims(), whole.quant_type.name()),
        )
    })
}
