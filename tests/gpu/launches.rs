//! Single kernels on the device under test: what they read, their launches, what they wrote.

use std::sync::Arc;

use kigo::backend::cuda::context::Context;
use kigo::backend::cuda::layout::{
    Place, Records, Repackers, THREADS, TILE_ROWS, TypeTable, record_bytes, record_columns,
};
use kigo::backend::cuda::load::{Piece, Repack, Target};
use kigo::backend::cuda::memory::DeviceBuffer;
use kigo::backend::cuda::module::{Function, KernelParams, Module, embedded};
use kigo::backend::cuda::params::{KIGO_ROWS_PLAIN, bytes_of};
use kigo::backend::cuda::stream::{Launch, Order, Stream};
use kigo::backend::{Device, Purpose};
use kigo::gguf::TensorInfo;
use kigo::quant::QuantType;

use super::stages::Matrix;

pub struct Gpu {
    stream: Stream,
    repackers: Repackers,
    types: TypeTable,
    prep: Function,
}

impl Gpu {
    /// With the kernels of all types.
    pub fn open() -> Gpu {
        let device = super::harness::gpu();
        let Some(Device::Cuda(ordinal)) = Device::parse(&device) else { panic!("{device} is no GPU") };
        let context = Context::open(ordinal).unwrap();
        let piece = |&quant: &QuantType| piece(&Matrix { quant_type: quant, rows: 1, cols: 256, data: Vec::new() });
        let pieces: Vec<_> = QuantType::ALL.iter().map(piece).collect();
        let repackers = Repackers::load(&context, &pieces).unwrap();
        let types = TypeTable::load(&context, &repackers).unwrap();
        let prep = Module::load(&context, embedded("prep").unwrap()).unwrap().function("prep").unwrap();
        Gpu { stream: Stream::new(&context).unwrap(), repackers, types, prep }
    }

    pub fn context(&self) -> &Arc<Context> {
        self.stream.context()
    }

    pub fn types(&self) -> &TypeTable {
        &self.types
    }

    /// What brings rows of activations into the order of fragments.
    pub fn prep(&self) -> &Function {
        &self.prep
    }

    pub fn function(&self, unit: &str, name: &str) -> Function {
        Module::load(self.context(), embedded(unit).unwrap()).unwrap().function(name).unwrap()
    }

    /// `bytes` bytes that are all `value`.
    pub fn filled(&self, bytes: usize, value: u8) -> DeviceBuffer {
        let buffer = DeviceBuffer::new(self.context(), Purpose::Workspace, bytes, "a test").unwrap();
        buffer.fill_u8(&self.stream, value).unwrap();
        buffer
    }

    pub fn upload(&self, bytes: &[u8]) -> DeviceBuffer {
        let buffer = DeviceBuffer::new(self.context(), Purpose::Workspace, bytes.len(), "a test").unwrap();
        buffer.upload(&self.stream, 0, bytes).unwrap();
        buffer
    }

    pub fn words(&self, words: &[u32]) -> DeviceBuffer {
        self.upload(&words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>())
    }

    pub fn floats(&self, values: &[f32]) -> DeviceBuffer {
        self.words(&values.iter().map(|value| value.to_bits()).collect::<Vec<u32>>())
    }

    pub fn halves(&self, bits: &[u16]) -> DeviceBuffer {
        self.upload(&bits.iter().flat_map(|bits| bits.to_le_bytes()).collect::<Vec<u8>>())
    }

    pub fn structs<P: KernelParams>(&self, items: &[P]) -> DeviceBuffer {
        self.upload(&items.iter().flat_map(|item| bytes_of(item).to_vec()).collect::<Vec<u8>>())
    }

    pub fn read_words(&self, buffer: &DeviceBuffer) -> Vec<u32> {
        let mut bytes = vec![0; buffer.len()];
        buffer.download(&self.stream, 0, &mut bytes).unwrap();
        bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
    }

    pub fn read_floats(&self, buffer: &DeviceBuffer) -> Vec<f32> {
        self.read_words(buffer).into_iter().map(f32::from_bits).collect()
    }

    pub fn read_halves(&self, buffer: &DeviceBuffer) -> Vec<u16> {
        self.read_words(buffer).into_iter().flat_map(|word| [word as u16, (word >> 16) as u16]).collect()
    }

    pub fn synchronize(&self) {
        self.stream.synchronize().unwrap();
    }

    pub fn launch<P: KernelParams>(&self, kernel: &Function, grid: [u32; 3], threads: u32, shared: u32, params: &P) {
        let launch = Launch { grid, block: [threads, 1, 1], shared_bytes: shared, order: Order::Dependent };
        self.stream.launch(kernel, launch, params).unwrap();
    }

    pub fn launch_rows<P: KernelParams>(&self, kernel: &Function, n: usize, shared: u32, params: &P) {
        self.launch(kernel, [n as u32, 1, 1], THREADS, shared, params);
    }

    /// Matrices of one type and width, repacked from the blocks of a file, and what their weights are times what stands for
    /// them; what no repacking wrote is all ones.
    pub fn repack(&self, parts: &[(&Matrix, Place)], n_tiles: usize) -> (DeviceBuffer, f32) {
        let first = parts[0].0;
        let n_records = (n_tiles * first.n_records()) as u64;
        let bytes = n_records * record_bytes(first.quant_type);
        let weights = self.filled(bytes as usize, 0xff);
        for (matrix, place) in parts {
            let (piece, row_bytes) = (piece(matrix), matrix.data.len() / matrix.rows);
            // In two parts, as a loader brings them.
            let step = Repackers::rows(place) as usize;
            let middle = (matrix.rows / 2).next_multiple_of(step).min(matrix.rows);
            for rows in [0..middle, middle..matrix.rows] {
                if rows.is_empty() {
                    continue;
                }
                let source = self.upload(&matrix.data[rows.start * row_bytes..rows.end * row_bytes]);
                let range = rows.start as u64..rows.end as u64;
                let address = weights.address();
                self.repackers.repack(&self.stream, source.address(), range, &piece.info, place, address).unwrap();
                self.stream.synchronize().unwrap();
            }
        }
        let records = Records { quant: first.quant_type, address: weights.address(), n_records };
        let scales = self.types.shift_scales(&self.stream, &[records]).unwrap();
        (weights, scales[0])
    }
}

impl Matrix {
    /// Records in a tile.
    pub fn n_records(&self) -> usize {
        self.cols.div_ceil(record_columns(self.quant_type))
    }

    pub fn n_tiles(&self) -> usize {
        self.rows.div_ceil(TILE_ROWS)
    }

    /// As it stands in the file, every `tile_step`th tile from `tile_offset` on.
    pub fn place(&self, tile_step: usize, tile_offset: usize) -> Place {
        Place {
            offset: 0,
            n_records: self.n_records(),
            k: self.cols,
            tile_step,
            tile_offset,
            order: KIGO_ROWS_PLAIN,
            head_dim: 1,
            n_rot: 0,
            halves: false,
        }
    }
}

fn piece(matrix: &Matrix) -> Piece<Place> {
    let info = TensorInfo {
        name: "matrix".into(),
        dims: [matrix.cols as u64, matrix.rows as u64, 1, 1],
        n_dims: 2,
        quant_type: matrix.quant_type,
        shard: 0,
        offset: 0,
        n_bytes: matrix.data.len() as u64,
        n_elements: (matrix.cols * matrix.rows) as u64,
    };
    Piece { info, target: Target::Matrix(matrix.place(1, 0)) }
}
