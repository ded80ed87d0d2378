//! Sampler
