//! Where the weights of a model stand in device memory: which tensors lie side by side so that one kernel multiplies
//! with all of them, and how many bytes their tiles take. The layout of a tile is that of `kernels/quant/layout.cuh`.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::blocks::{Card, Kernel};
use super::context::Context;
use super::load::{Piece, Repack, Space, Target};
use super::memory::DeviceBuffer;
use super::module::{Function, Module, embedded};
use super::params::{KIGO_ROWS_HEADS, KIGO_ROWS_PLAIN, KIGO_ROWS_ROPE, KigoRepack, KigoScales};
use super::stream::{Launch, Order, Stream};
use crate::backend::Purpose;
use crate::error::try_vec;
use crate::gguf::TensorInfo;
use crate::model::{Layer, ModelDesc, RopePairing, Weights};
use crate::quant::QuantType;
use crate::{Error, Result};

/// Rows of a tile: `kTileRows`.
pub const TILE_ROWS: usize = 16;
/// Columns of a unit: `kUnitK`.
pub(super) const UNIT: usize = 64;
/// Threads of every block of `matmul.cu` and `prep.cu`.
pub const THREADS: u32 = 256;
/// Warps of it.
pub const WARPS: u32 = THREADS / 32;

/// `columns` rounded up to whole units: the width of a row of activations.
pub fn stride(columns: usize) -> usize {
    columns.next_multiple_of(UNIT)
}

/// Matrices that stand side by side and are multiplied by one launch.
#[derive(Debug, Clone, Copy)]
pub struct Product {
    /// The type of all of them.
    pub quant: QuantType,
    /// Where the first tile starts, in bytes of the weights' allocation.
    pub offset: u64,
    /// Rows of the result; with experts, of one, whose tiles stand one after the other.
    pub n_rows: usize,
    /// Columns.
    pub k: usize,
    /// Tiles of all of them; with experts, of one.
    pub n_tiles: usize,
    /// Records in a tile.
    pub n_records: usize,
    /// Place of the first tile among those of q, k and v.
    pub first_tile: usize,
    /// Matrices that stand one after the other: the experts.
    pub n_matrices: usize,
    /// Weights times what stands for them: a power of two that is known when all are there.
    pub weight_scale: f32,
}

impl Product {
    /// Where its records are.
    fn records(&self, weights: u64) -> Records {
        let n_records = self.n_matrices as u64 * self.n_tiles as u64 * self.n_records as u64;
        Records { quant: self.quant, address: weights + self.offset, n_records }
    }
}

/// Records of a matrix, or of some with the same power of two.
#[derive(Debug, Clone, Copy)]
pub struct Records {
    /// The type.
    pub quant: QuantType,
    /// Address of the first.
    pub address: u64,
    /// How many there are.
    pub n_records: u64,
}

/// Where one tensor goes: what the kernel `repack_<type>` wants to know.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Where the tiles that it shares with others start, in bytes of the weights' allocation.
    pub offset: u64,
    /// Records in a tile.
    pub n_records: usize,
    /// Columns.
    pub k: usize,
    /// Its tile i stands as tile `i * tile_step + tile_offset` of those that are multiplied together.
    pub tile_step: usize,
    /// See `tile_step`.
    pub tile_offset: usize,
    /// `KIGO_ROWS_...`
    pub order: u32,
    /// Elements of a head, or rows of an expert.
    pub head_dim: usize,
    /// Elements of a head that rope turns.
    pub n_rot: usize,
    /// Whether rope pairs are `(i, i + n_rot / 2)`.
    pub halves: bool,
}

impl Place {
    /// Rows of the file that make whole tiles.
    fn group(&self) -> u64 {
        (if self.order == KIGO_ROWS_PLAIN { TILE_ROWS } else { self.head_dim }) as u64
    }

    /// Tiles that so many groups of rows take.
    fn tiles_per_group(&self) -> u64 {
        if self.order == KIGO_ROWS_PLAIN { 1 } else { self.head_dim.div_ceil(TILE_ROWS) as u64 }
    }
}

/// Gate and up of a feed-forward layer, or up alone.
#[derive(Debug, Clone, Copy)]
pub enum Gate {
    /// Of one type: their tiles alternate.
    Joint(Product),
    /// There is no gate.
    None(Product),
    /// Of two.
    Apart {
        /// First.
        gate: Product,
        /// Then.
        up: Product,
    },
}

/// A norm: where its weight and bias start, in bytes of the weights' allocation.
#[derive(Debug, Clone, Copy)]
pub struct NormPlace {
    /// `[n_embd]`
    pub weight: u64,
    /// `[n_embd]`
    pub bias: Option<u64>,
}

/// The weights of one layer.
pub struct LayerPlaces {
    /// Before the attention.
    pub attn_norm: Option<NormPlace>,
    /// q, k and v: one product where they have the same type.
    pub attn_qkv: Vec<Product>,
    /// Biases of q, k and v.
    pub attn_bias: [Option<u64>; 3],
    /// Norms of q and of k.
    pub attn_qk_norm: Option<[u64; 2]>,
    /// Scores that stand for no key: `[n_head]`.
    pub attn_sinks: Option<u64>,
    /// After it.
    pub attn_output: Product,
    /// Its bias.
    pub attn_output_bias: Option<u64>,
    /// Norm of what the attention adds.
    pub attn_post_norm: Option<u64>,
    /// Before the feed-forward layer.
    pub ffn_norm: Option<NormPlace>,
    /// The router, where there are experts, and its bias.
    pub ffn_gate_inp: Option<(Product, Option<u64>)>,
    /// Its first half.
    pub ffn_gate: Gate,
    /// Biases of gate and up.
    pub ffn_gate_bias: [Option<u64>; 2],
    /// Its second half.
    pub ffn_down: Product,
    /// Its bias.
    pub ffn_down_bias: Option<u64>,
    /// Norm of what it adds.
    pub ffn_post_norm: Option<u64>,
}

/// The weights of a model.
pub struct Places {
    /// The table of tokens.
    pub token_embd: Product,
    /// That of positions: `[n_ctx_train, n_embd]`.
    pub position_embd: Option<u64>,
    /// Before the head.
    pub output_norm: NormPlace,
    /// The head.
    pub output: Product,
    /// One per layer.
    pub layers: Vec<LayerPlaces>,
}

/// The room of the weights while it is being given out.
struct Placing<'a> {
    desc: &'a ModelDesc,
    space: Space,
    pieces: Vec<Piece<Place>>,
}

impl Places {
    /// Gives every tensor of `plan` its place.
    ///
    /// # Errors
    /// `OutOfMemory` when there is none for the lists, or the sizes are beyond 64 bits.
    pub fn new(plan: &Weights<TensorInfo>, desc: &ModelDesc) -> Result<(Places, Vec<Piece<Place>>, Space)> {
        let mut n_tensors = 0;
        plan.try_map(|_, _| {
            n_tensors += 1;
            Ok(())
        })?;
        let pieces = try_vec(n_tensors, "the list of tensors")?;
        let mut placing = Placing { desc, space: Space::default(), pieces };
        let token_embd = placing.plain(&plan.token_embd)?;
        let places = Places {
            token_embd,
            position_embd: placing.optional(&plan.position_embd)?,
            output: plan.output.as_ref().map_or(Ok(token_embd), |output| placing.plain(output))?,
            output_norm: placing.norm(&plan.output_norm, plan.output_norm_bias.as_ref())?,
            layers: {
                let mut layers = try_vec(plan.layers.len(), "the list of layers")?;
                for layer in &plan.layers {
                    layers.push(placing.layer(layer)?);
                }
                layers
            },
        };
        Ok((places, placing.pieces, placing.space))
    }
}

impl Places {
    /// The products, each once.
    fn products(&mut self) -> impl Iterator<Item = &mut Product> {
        let tied = self.output.offset == self.token_embd.offset;
        let output = (!tied).then_some(&mut self.output);
        [&mut self.token_embd].into_iter().chain(output).chain(self.layers.iter_mut().flat_map(LayerPlaces::products))
    }

    /// See [`TypeTable::shift_scales`]; `weights` is where they start.
    ///
    /// # Errors
    /// As there.
    pub fn shift_scales(&mut self, types: &TypeTable, stream: &Stream, weights: u64) -> Result<()> {
        let mut matrices = try_vec(self.products().count(), "the list of matrices")?;
        matrices.extend(self.products().map(|product| product.records(weights)));
        let scales = types.shift_scales(stream, &matrices)?;
        self.products().zip(scales).for_each(|(product, scale)| product.weight_scale = scale);
        if self.output.offset == self.token_embd.offset {
            self.output = self.token_embd;
        }
        Ok(())
    }
}

impl LayerPlaces {
    fn products(&mut self) -> impl Iterator<Item = &mut Product> {
        let gate = match &mut self.ffn_gate {
            Gate::Joint(product) | Gate::None(product) => [Some(product), None],
            Gate::Apart { gate, up } => [Some(gate), Some(up)],
        };
        let router = self.ffn_gate_inp.as_mut().map(|(product, _)| product);
        let attention = self.attn_qkv.iter_mut().chain([&mut self.attn_output]);
        attention.chain(router).chain(gate.into_iter().flatten()).chain([&mut self.ffn_down])
    }
}

impl Placing<'_> {
    fn layer(&mut self, layer: &Layer<TensorInfo>) -> Result<LayerPlaces> {
        let q_norm = self.optional(&layer.attn_q_norm)?;
        let k_norm = self.optional(&layer.attn_k_norm)?;
        Ok(LayerPlaces {
            attn_norm: self.optional_norm(layer.attn_norm.as_ref(), layer.attn_norm_bias.as_ref())?,
            attn_qkv: self.qkv([&layer.attn_q, &layer.attn_k, &layer.attn_v])?,
            attn_bias: [
                self.optional(&layer.attn_q_bias)?,
                self.optional(&layer.attn_k_bias)?,
                self.optional(&layer.attn_v_bias)?,
            ],
            attn_qk_norm: q_norm.zip(k_norm).map(<[u64; 2]>::from),
            attn_sinks: self.optional(&layer.attn_sinks)?,
            attn_output: self.plain(&layer.attn_output)?,
            attn_output_bias: self.optional(&layer.attn_output_bias)?,
            attn_post_norm: self.optional(&layer.attn_post_norm)?,
            ffn_norm: self.optional_norm(layer.ffn_norm.as_ref(), layer.ffn_norm_bias.as_ref())?,
            ffn_gate_inp: match &layer.ffn_gate_inp {
                Some(router) => Some((self.plain(router)?, self.optional(&layer.ffn_gate_inp_bias)?)),
                None => None,
            },
            ffn_gate: match &layer.ffn_gate {
                Some(gate) => self.gate(gate, &layer.ffn_up)?,
                None => Gate::None(self.experts(&layer.ffn_up)?),
            },
            ffn_gate_bias: [self.optional(&layer.ffn_gate_bias)?, self.optional(&layer.ffn_up_bias)?],
            ffn_down: self.experts(&layer.ffn_down)?,
            ffn_down_bias: self.optional(&layer.ffn_down_bias)?,
            ffn_post_norm: self.optional(&layer.ffn_post_norm)?,
        })
    }

    fn vector(&mut self, info: &TensorInfo) -> Result<u64> {
        let offset = self.space.place_vector(info)?;
        self.pieces.push(Piece { info: info.clone(), target: Target::Vector(offset) });
        Ok(offset)
    }

    fn optional(&mut self, info: &Option<TensorInfo>) -> Result<Option<u64>> {
        info.as_ref().map(|info| self.vector(info)).transpose()
    }

    fn norm(&mut self, weight: &TensorInfo, bias: Option<&TensorInfo>) -> Result<NormPlace> {
        Ok(NormPlace { weight: self.vector(weight)?, bias: bias.map(|bias| self.vector(bias)).transpose()? })
    }

    fn optional_norm(&mut self, weight: Option<&TensorInfo>, bias: Option<&TensorInfo>) -> Result<Option<NormPlace>> {
        weight.map(|weight| self.norm(weight, bias)).transpose()
    }

    /// Room for `n_tiles` tiles of the shape of `info`.
    fn product(&mut self, info: &TensorInfo, n_rows: usize, n_tiles: usize) -> Result<Product> {
        let (quant, k) = (info.quant_type, info.dims[0] as usize);
        let n_records = k.div_ceil(record_columns(quant));
        let bytes = (n_tiles as u64).checked_mul(n_records as u64).and_then(|n| n.checked_mul(record_bytes(quant)));
        let offset = self.space.place(bytes, &info.name)?;
        Ok(Product { quant, offset, n_rows, k, n_tiles, n_records, first_tile: 0, n_matrices: 1, weight_scale: 1.0 })
    }

    fn place(&mut self, info: &TensorInfo, product: &Product, tiles: (usize, usize), (order, head_dim): (u32, usize)) {
        let place = Place {
            offset: product.offset,
            n_records: product.n_records,
            k: product.k,
            tile_step: tiles.0,
            tile_offset: tiles.1,
            order,
            head_dim,
            n_rot: self.desc.rope.n_rot,
            halves: self.desc.rope.pairing == RopePairing::Halves,
        };
        self.pieces.push(Piece { info: info.clone(), target: Target::Matrix(place) });
    }

    fn plain(&mut self, info: &TensorInfo) -> Result<Product> {
        let n_rows = info.dims[1] as usize;
        let product = self.product(info, n_rows, n_rows.div_ceil(TILE_ROWS))?;
        self.place(info, &product, (1, 0), (KIGO_ROWS_PLAIN, 0));
        Ok(product)
    }

    /// A matrix of the feed-forward layer, or those of its experts.
    fn experts(&mut self, info: &TensorInfo) -> Result<Product> {
        self.side_by_side(&[info])
    }

    /// Matrices of the feed-forward layer whose tiles alternate, of one expert after the other where there are some. A tile
    /// belongs to one expert.
    fn side_by_side(&mut self, parts: &[&TensorInfo]) -> Result<Product> {
        let n_expert = self.desc.experts.map_or(1, |experts| experts.n_expert);
        let n_rows = parts[0].dims[1] as usize / n_expert;
        let n_tiles = parts.len() * n_rows.div_ceil(TILE_ROWS);
        let product = self.product(parts[0], n_rows, n_tiles * n_expert)?;
        let order = if n_rows.is_multiple_of(TILE_ROWS) || n_expert == 1 { KIGO_ROWS_PLAIN } else { KIGO_ROWS_HEADS };
        for (i, part) in parts.iter().enumerate() {
            self.place(part, &product, (parts.len(), i), (order, n_rows));
        }
        Ok(Product { n_tiles, n_matrices: n_expert, ..product })
    }

    /// Neighbours of the same type stand side by side.
    fn qkv(&mut self, parts: [&TensorInfo; 3]) -> Result<Vec<Product>> {
        let per_head = self.desc.head_dim.div_ceil(TILE_ROWS);
        let n_tiles = [self.desc.n_head, self.desc.n_head_kv, self.desc.n_head_kv].map(|n_head| n_head * per_head);
        let mut products: Vec<Product> = try_vec(3, "the products of a layer")?;
        let (mut start, mut first_tile) = (0, 0);
        while start < parts.len() {
            let same = |part: &&&TensorInfo| part.quant_type == parts[start].quant_type;
            let end = start + parts[start..].iter().take_while(same).count();
            let tiles = n_tiles[start..end].iter().sum();
            let mut product = self.product(parts[start], tiles * TILE_ROWS, tiles)?;
            product.first_tile = first_tile;
            let mut offset = 0;
            for part in start..end {
                let order = if part < 2 { KIGO_ROWS_ROPE } else { KIGO_ROWS_HEADS };
                self.place(parts[part], &product, (1, offset), (order, self.desc.head_dim));
                offset += n_tiles[part];
            }
            products.push(product);
            (start, first_tile) = (end, first_tile + tiles);
        }
        Ok(products)
    }

    fn gate(&mut self, gate: &TensorInfo, up: &TensorInfo) -> Result<Gate> {
        if gate.quant_type != up.quant_type {
            return Ok(Gate::Apart { gate: self.experts(gate)?, up: self.experts(up)? });
        }
        Ok(Gate::Joint(self.side_by_side(&[gate, up])?))
    }
}

/// Columns of a record: `kRecordK`.
pub fn record_columns(quant: QuantType) -> usize {
    quant.block_len().max(UNIT)
}

/// Bytes of a record: those of its blocks in the file, and more where bits of the scales become bytes.
pub fn record_bytes(quant: QuantType) -> u64 {
    let more = match quant {
        QuantType::Q3_K | QuantType::Q4_K | QuantType::Q5_K => 4,
        QuantType::IQ4_XS => 2,
        _ => 0,
    };
    (TILE_ROWS * (record_columns(quant) / quant.block_len() * quant.block_bytes() + more)) as u64
}

/// Where weights have scales, which are shifted by a power of two when all of a matrix is there: the power below which the
/// halves stay that they come from, `kTop` of `kernels/quant`, and `kPoint`.
fn shift_limits(quant: QuantType) -> Option<(i32, i32)> {
    match quant {
        QuantType::F32 | QuantType::F16 | QuantType::BF16 => None,
        QuantType::Q4_0 | QuantType::Q4_1 | QuantType::Q5_0 | QuantType::Q5_1 | QuantType::Q8_0 => Some((15, 24)),
        QuantType::IQ4_NL => Some((15, 24)),
        QuantType::MXFP4 => Some((15, 15)),
        QuantType::IQ4_XS => Some((11, 24)),
        QuantType::Q2_K => Some((6, 20)),
        QuantType::Q3_K => Some((11, 20)),
        QuantType::Q4_K | QuantType::Q5_K => Some((6, 22)),
        QuantType::Q6_K => Some((9, 23)),
    }
}

/// The shift of the scales of a matrix, of whose numbers that scales come from `top` is the largest, and what its weights are
/// then times what stands for them.
pub fn scale_shift(quant: QuantType, top: f32) -> (i32, f32) {
    let Some((most, point)) = shift_limits(quant).filter(|_| top > 0.0) else { return (0, 1.0) };
    // Infinities and what is no number count as the power after the largest.
    let bits = top.to_bits();
    let exponent = if bits >> 23 == 0 { 31 - bits.leading_zeros() as i32 - 149 } else { (bits >> 23) as i32 - 127 };
    let shift = most - exponent - 1;
    (shift, 2.0_f32.powi((point - shift).clamp(-126, 127)))
}

/// Bits of a weight without its scales.
pub fn code_bits(quant: QuantType) -> u32 {
    match quant {
        QuantType::F32 => 32,
        QuantType::F16 | QuantType::BF16 => 16,
        QuantType::Q8_0 => 8,
        QuantType::Q6_K => 6,
        QuantType::Q5_0 | QuantType::Q5_1 | QuantType::Q5_K => 5,
        QuantType::Q4_0 | QuantType::Q4_1 | QuantType::Q4_K => 4,
        QuantType::IQ4_NL | QuantType::IQ4_XS | QuantType::MXFP4 => 4,
        QuantType::Q3_K => 3,
        QuantType::Q2_K => 2,
    }
}

/// Whether products of this type want activations as pairs of bfloat16.
pub fn wants_bf16(quant: QuantType) -> bool {
    matches!(quant, QuantType::F32 | QuantType::BF16)
}

/// Bytes of 8 rows by 64 columns of activations: `kActivationBytes`.
pub fn activation_bytes(bf16: bool) -> usize {
    if bf16 { 2048 } else { 1024 }
}

/// The kernels of one type.
pub struct TypeKernels {
    one: Function,
    few8: Function,
    few16: Function,
    few32: Function,
    grouped: Function,
    many: Function,
    many_narrow: Function,
    prefill: Function,
    prefill_wide: Function,
    prefill_split: Function,
    /// Rows of a table.
    pub embed: Function,
    scales_top: Function,
    scales_shift: Function,
}

impl TypeKernels {
    /// One of those that multiply.
    pub fn of(&self, kernel: Kernel) -> &Function {
        match kernel {
            Kernel::One => &self.one,
            Kernel::Few8 => &self.few8,
            Kernel::Few16 => &self.few16,
            Kernel::Few32 => &self.few32,
            Kernel::Grouped => &self.grouped,
            Kernel::Many => &self.many,
            Kernel::ManyNarrow => &self.many_narrow,
            Kernel::Prefill => &self.prefill,
            Kernel::PrefillWide => &self.prefill_wide,
            Kernel::PrefillSplit => &self.prefill_split,
        }
    }
}

/// The modules of the types that a model has, and of each the kernel that loading needs.
pub struct Repackers(HashMap<QuantType, (Module, Function)>);

impl Repackers {
    /// Loads what `pieces` need.
    ///
    /// # Errors
    /// Those of loading kernels.
    pub fn load(context: &Arc<Context>, pieces: &[Piece<Place>]) -> Result<Repackers> {
        let mut table = HashMap::new();
        for piece in pieces {
            let quant = piece.info.quant_type;
            if matches!(piece.target, Target::Vector(_)) || table.contains_key(&quant) {
                continue;
            }
            let name = quant.name();
            let module = Module::load(context, embedded(&format!("matmul_{name}"))?)?;
            let repack = module.function(&format!("repack_{name}"))?;
            table.insert(quant, (module, repack));
        }
        Ok(Repackers(table))
    }
}

/// The kernels of the types that a model has.
pub struct TypeTable(HashMap<QuantType, TypeKernels>);

impl TypeTable {
    /// Those of the modules of `repackers`.
    ///
    /// # Errors
    /// Those of loading kernels.
    pub fn load(context: &Context, repackers: &Repackers) -> Result<TypeTable> {
        let card = Card::new(context.info());
        let mut table = HashMap::new();
        for (&quant, (module, _)) in &repackers.0 {
            let name = quant.name();
            let function = |kernel: &str| module.function(&format!("{kernel}_{name}"));
            let product = |name: &str, kernel: Kernel| {
                let function = function(name)?;
                function.set_max_shared_bytes(card.most_shared(kernel))?;
                Ok(function)
            };
            let kernels = TypeKernels {
                one: product("matmul_one", Kernel::One)?,
                few8: product("matmul_few8", Kernel::Few8)?,
                few16: product("matmul_few16", Kernel::Few16)?,
                few32: product("matmul_few32", Kernel::Few32)?,
                grouped: product("matmul_grouped", Kernel::Grouped)?,
                many: product("matmul_many", Kernel::Many)?,
                many_narrow: product("matmul_many_narrow", Kernel::ManyNarrow)?,
                prefill: product("matmul_prefill", Kernel::Prefill)?,
                prefill_wide: product("matmul_prefill_wide", Kernel::PrefillWide)?,
                prefill_split: product("matmul_prefill_split", Kernel::PrefillSplit)?,
                embed: function("embed")?,
                scales_top: function("scales_top")?,
                scales_shift: function("scales_shift")?,
            };
            table.insert(quant, kernels);
        }
        Ok(TypeTable(table))
    }

    /// The kernels of a type that the model has.
    ///
    /// # Errors
    /// `Internal` for others.
    pub fn of(&self, quant: QuantType) -> Result<&TypeKernels> {
        self.0.get(&quant).ok_or_else(|| Error::Internal(format!("no kernels for {}", quant.name())))
    }

    /// Brings the weights of matrices, all of which have been repacked, into the middle of a half's range; returns what
    /// they are times what stands for them. It may be done once.
    ///
    /// # Errors
    /// `OutOfMemory`, `DeviceLost`, `DeviceError`.
    pub fn shift_scales(&self, stream: &Stream, matrices: &[Records]) -> Result<Vec<f32>> {
        const WHAT: &str = "the scales of the weights";
        let bytes = matrices.len() * size_of::<f32>();
        let tops = DeviceBuffer::new(stream.context(), Purpose::Workspace, bytes.max(4), WHAT)?;
        tops.fill_u8(stream, 0)?;
        let launch = |kernel: fn(&TypeKernels) -> &Function, i: usize, shift: i32| {
            let Records { quant, address, n_records } = matrices[i];
            let grid = [n_records.div_ceil(u64::from(WARPS)).clamp(1, MOST_SCALE_BLOCKS) as u32, 1, 1];
            let launch = Launch { grid, block: [THREADS, 1, 1], shared_bytes: 0, order: Order::Serial };
            let params = KigoScales { weights: address, n_records, top: tops.address() + 4 * i as u64, shift, pad: 0 };
            stream.launch(kernel(self.of(quant)?), launch, &params)
        };
        let shifted = |i: &usize| shift_limits(matrices[*i].quant).is_some();
        for i in (0..matrices.len()).filter(shifted) {
            launch(|kernels| &kernels.scales_top, i, 0)?;
        }
        let mut found = try_vec(bytes, WHAT)?;
        found.resize(bytes, 0);
        tops.download(stream, 0, &mut found)?;
        let mut scales = try_vec(matrices.len(), WHAT)?;
        scales.resize(matrices.len(), 1.0);
        for i in (0..matrices.len()).filter(shifted) {
            let top = f32::from_le_bytes(*found.as_chunks::<4>().0.get(i).unwrap_or(&[0; 4]));
            let (shift, scale) = scale_shift(matrices[i].quant, top);
            scales[i] = scale;
            launch(|kernels| &kernels.scales_shift, i, shift)?;
        }
        stream.synchronize()?;
        Ok(scales)
    }
}

/// Most blocks that look at the scales of a matrix.
const MOST_SCALE_BLOCKS: u64 = 4096;

impl Repack for Repackers {
    type Matrix = Place;

    fn rows(place: &Place) -> u64 {
        place.group()
    }

    fn pads(info: &TensorInfo, place: &Place) -> bool {
        let n_rows = info.n_elements / info.dims[0].max(1);
        let parts = if place.order == KIGO_ROWS_PLAIN { n_rows } else { place.head_dim as u64 };
        !place.k.is_multiple_of(record_columns(info.quant_type)) || !parts.is_multiple_of(TILE_ROWS as u64)
    }

    fn repack(
        &self,
        stream: &Stream,
        source: u64,
        rows: Range<u64>,
        info: &TensorInfo,
        place: &Place,
        weights: u64,
    ) -> Result<()> {
        let groups = rows.start / place.group()..rows.end.div_ceil(place.group());
        let n_tiles = (groups.end - groups.start) * place.tiles_per_group();
        let params = KigoRepack {
            source,
            row_bytes: info.n_bytes / info.dims[1].max(1),
            out: weights + place.offset,
            first_row: rows.start as u32,
            n_source_rows: (rows.end - rows.start) as u32,
            k: place.k as u32,
            n_records: place.n_records as u32,
            first_tile: (groups.start * place.tiles_per_group()) as u32,
            n_tiles: n_tiles as u32,
            tile_step: place.tile_step as u32,
            tile_offset: place.tile_offset as u32,
            order: place.order,
            head_dim: place.head_dim as u32,
            n_rot: place.n_rot as u32,
            halves: u32::from(place.halves),
        };
        let grid = [(place.n_records as u32).div_ceil(WARPS), n_tiles as u32, 1];
        let launch = Launch { grid, block: [THREADS, 1, 1], shared_bytes: 0, order: Order::Serial };
        let of_type = self.0.get(&info.quant_type);
        let (_, repack) =
            of_type.ok_or_else(|| Error::Internal(format!("no kernels for {}", info.quant_type.name())))?;
        stream.launch(repack, launch, &params)
    }
}
