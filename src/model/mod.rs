//! A model as data: its hyperparameters ([`ModelDesc`]), the tensors that play each role ([`Weights`]), and the
//! loop that runs it ([`forward`]).

pub mod arch;
mod desc;
mod forward;
pub mod info;
mod weights;

pub use desc::{Activation, ModelDesc, Norm, Rope, RopePairing};
pub use forward::{forward, stages};
pub use weights::{Layer, Role, Weights};
