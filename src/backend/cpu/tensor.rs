//! A weight in host memory.

use crate::Result;
use crate::backend::Progress;
use crate::error::try_vec;
use crate::gguf::{Gguf, TensorInfo};
use crate::model::Role;
use crate::quant::QuantType;

/// Bytes that are read at once: a cancellation waits for so many, which takes milliseconds.
const READ_BYTES: usize = 8 << 20;

/// A matrix, or some rows of one, and the bias of its products.
#[derive(Clone, Copy)]
pub struct Linear<'a> {
    pub tensor: &'a Tensor,
    pub first_row: usize,
    /// Outputs of the product.
    pub n_rows: usize,
    /// `[n_rows]`
    pub bias: Option<&'a [f32]>,
}

impl<'a> Linear<'a> {
    /// All rows.
    pub fn new(tensor: &'a Tensor, bias: Option<&'a Tensor>) -> Linear<'a> {
        Linear { tensor, first_row: 0, n_rows: tensor.rows(), bias: bias.map(Tensor::vector) }
    }

    /// Number `at` of `n` equal parts: one of so many experts.
    pub fn part(self, at: usize, n: usize) -> Linear<'a> {
        let n_rows = self.n_rows / n;
        let first = at * n_rows;
        let bias = self.bias.map(|bias| &bias[first..][..n_rows]);
        Linear { first_row: self.first_row + first, n_rows, bias, ..self }
    }
}

/// A weight: a matrix in its quantised form, or a vector in f32.
#[derive(Debug)]
pub struct Tensor {
    quant_type: QuantType,
    cols: usize,
    rows: usize,
    /// Quantised rows, one after the other; empty for a vector.
    data: Vec<u8>,
    /// `[cols]`; empty for a matrix.
    values: Vec<f32>,
}

impl Tensor {
    /// Reads a tensor of the file.
    ///
    /// # Errors
    /// When the file cannot be read, memory cannot be had or the load is cancelled.
    pub fn load(gguf: &Gguf, info: &TensorInfo, role: Role, progress: &Progress) -> Result<Tensor> {
        let mut data: Vec<u8> = try_vec(info.n_bytes as usize, &info.name)?;
        while data.len() < info.n_bytes as usize {
            progress.check()?;
            let start = data.len();
            data.resize((start + READ_BYTES).min(info.n_bytes as usize), 0);
            gguf.read_tensor_part(info, start as u64, &mut data[start..])?;
            progress.advance((data.len() - start) as u64);
        }
        let cols = info.dims()[0] as usize;
        let rows = info.dims()[1..].iter().product::<u64>() as usize;
        let mut values = Vec::new();
        if role == Role::Vector {
            values = try_vec(cols, &info.name)?;
            values.resize(cols, 0.0);
            info.quant_type.dequantize(&data, &mut values);
            data = Vec::new();
        }
        Ok(Tensor { quant_type: info.quant_type, cols, rows, data, values })
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        self.data.len() + size_of_val(&self.values[..])
    }

    /// Outputs of the product.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs of the product.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Type of the quantised rows.
    pub fn quant_type(&self) -> QuantType {
        self.quant_type
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.cols / self.quant_type.block_len() * self.quant_type.block_bytes()
    }

    /// The quantised bytes of rows `range`.
    pub fn row_data(&self, range: std::ops::Range<usize>) -> &[u8] {
        &self.data[range.start * self.row_bytes()..range.end * self.row_bytes()]
    }

    /// The values of a vector.
    pub fn vector(&self) -> &[f32] {
        &self.values
    }

    /// Writes row `row` of a matrix to `out` `[cols]`.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        self.quant_type.dequantize(self.row_data(row..row + 1), out);
    }
}
