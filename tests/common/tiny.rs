//! Model files that differ from a good one in a few places.

#![allow(dead_code, reason = "each test binary uses what it needs")]

use kigo::gguf::{Gguf, Value, Writer};
use kigo::quant::QuantType;

/// The contents of a model file, to be changed and written again.
#[derive(Debug, Clone)]
pub struct Draft {
    pub pairs: Vec<(String, Value)>,
    pub tensors: Vec<Tensor>,
}

#[derive(Debug, Clone)]
pub struct Tensor {
    pub name: String,
    pub dims: Vec<u64>,
    /// ggml's number, known to kigo or not.
    pub type_id: u32,
    pub data: Vec<u8>,
}

impl Draft {
    /// The tiny model in f32.
    pub fn tiny() -> Draft {
        Draft::of("tiny-llama.gguf")
    }

    /// A file of `tests/data`.
    pub fn of(file: &str) -> Draft {
        let gguf = Gguf::open(&crate::models::data(file)).unwrap();
        let read = |info: &kigo::gguf::TensorInfo| {
            let mut data = vec![0; info.n_bytes as usize];
            gguf.read_tensor(info, &mut data).unwrap();
            Tensor { name: info.name.clone(), dims: info.dims().to_vec(), type_id: info.quant_type as u32, data }
        };
        Draft {
            pairs: gguf.metadata().iter().map(|(key, value)| (key.to_string(), value.clone())).collect(),
            tensors: gguf.tensors().iter().map(read).collect(),
        }
    }

    /// Without `key`.
    pub fn without(mut self, key: &str) -> Draft {
        self.pairs.retain(|(k, _)| k != key);
        self
    }

    /// With `key` set, whether it was there or not.
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Draft {
        let value = value.into();
        match self.pairs.iter_mut().find(|(k, _)| k == key) {
            Some(pair) => pair.1 = value,
            None => self.pairs.push((key.to_string(), value)),
        }
        self
    }

    /// Without tensor `name`.
    pub fn without_tensor(mut self, name: &str) -> Draft {
        self.tensors.retain(|tensor| tensor.name != name);
        self
    }

    /// With another tensor, in f32.
    pub fn with_tensor(mut self, name: &str, dims: &[u64], values: &[f32]) -> Draft {
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensors.push(Tensor { name: name.into(), dims: dims.to_vec(), type_id: QuantType::F32 as u32, data });
        self
    }

    /// With tensor `name` changed.
    pub fn changed(mut self, name: &str, change: impl FnOnce(&mut Tensor)) -> Draft {
        change(self.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap());
        self
    }

    pub fn get(&self, key: &str) -> &Value {
        &self.pairs.iter().find(|(k, _)| k == key).unwrap().1
    }

    pub fn tensor(&self, name: &str) -> &Tensor {
        self.tensors.iter().find(|tensor| tensor.name == name).unwrap()
    }

    pub fn writer(&self) -> Writer {
        let writer = self.pairs.iter().fold(Writer::new(), |writer, (key, value)| writer.pair(key, value.clone()));
        self.tensors.iter().fold(writer, |writer, tensor| {
            writer.raw_tensor(&tensor.name, &tensor.dims, tensor.type_id, None, tensor.data.clone())
        })
    }
}

impl Tensor {
    /// With value number `at` of an f32 tensor replaced.
    pub fn set(&mut self, at: usize, value: f32) {
        assert_eq!(self.type_id, QuantType::F32 as u32);
        self.data[at * 4..][..4].copy_from_slice(&value.to_le_bytes());
    }
}
