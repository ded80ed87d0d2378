//! kigo loads a GGUF language model and generates text, behind a C ABI that never takes its host down.
//!
//! A token comes about like this:
//!
//! 1. [`c_api`] turns handles into objects and catches everything that must not reach the host;
//! 2. [`session`] knows one generation: prompt, position, sampler, stop rules, text;
//! 3. [`engine`] joins the rows of all sessions that are ready into one batch;
//! 4. [`model::forward`] takes the batch through the stages, layer by layer;
//! 5. [`backend`] computes a stage; [`backend::cpu`] does so plainly, in f32;
//! 6. [`sampler`] picks a token from the logits; [`tokenizer`] has its bytes.
//!
//! [`gguf`] and [`quant`] read what models are made of. They, the tokenizer and the sampler are leaves: they know
//! nothing of sessions or devices. Nothing depends on `c_api`.
//!
//! # Vocabulary
//!
//! Names are GGUF's own, from the file to the innermost loop.
//!
//! | here | Hugging Face | meaning |
//! |---|---|---|
//! | `n_embd` | `hidden_size` | width of the residual stream |
//! | `n_layer` | `num_hidden_layers` | decoder layers |
//! | `n_head` | `num_attention_heads` | query heads |
//! | `n_head_kv` | `num_key_value_heads` | key and value heads |
//! | `head_dim` | `head_dim` | width of a head |
//! | `n_ff` | `intermediate_size` | width of the feed-forward layer |
//! | `n_vocab` | `vocab_size` | tokens |
//! | `n_ctx` | `max_position_embeddings` | most tokens of prompt and answer together |
//! | `token_embd`, `output_norm`, `output` | `embed_tokens`, `norm`, `lm_head` | embedding, last norm, head |
//! | `attn_norm`, `ffn_norm` | `input_layernorm`, `post_attention_layernorm` | norms of a layer |
//! | `attn_q`, `attn_k`, `attn_v`, `attn_output` | `q_proj`, `k_proj`, `v_proj`, `o_proj` | attention |
//! | `ffn_gate`, `ffn_up`, `ffn_down` | `gate_proj`, `up_proj`, `down_proj` | feed-forward layer |

pub mod c_api;

pub mod session;

pub mod engine;

pub mod model;

pub mod backend;

pub mod sampler;

pub mod tokenizer;

pub mod gguf;

pub mod quant;

pub mod error;

pub mod log;

mod line;

mod checksum;
mod panics;

pub use error::{Error, Result, Status};
