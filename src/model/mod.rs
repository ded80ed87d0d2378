//! A model as data: its hyperparameters ([`ModelDesc`]), the tensors that play each role ([`Weights`]), and the
//! loop that runs it ([`forward`]).

pub mod arch;
mod desc;
mod fingerprint;
mod forward;
pub mod info;
mod rope;
mod weights;

pub use desc::{Activation, Experts, LayerDesc, ModelDesc, Norm, QkNorm};
pub use fingerprint::fingerprint;
pub use forward::{forward, stages};
pub use rope::{Rope, RopeKind, RopePairing, RopeScaling, RopeTable};
pub use weights::{Layer, Role, Weights};
