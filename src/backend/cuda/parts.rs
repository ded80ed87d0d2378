//! A long batch, queued part by part: who gives it up waits for two parts of it, not for all.

use super::stream::{Event, Stream};
use crate::Result;

/// The layers of a batch in parts. The device has one more to run when it ends one, unless the host does not keep up.
pub struct Parts<'a> {
    stream: &'a Stream,
    /// The ends of the latest two parts.
    ends: [Event; 2],
    n_layer: usize,
    n_parts: usize,
}

impl<'a> Parts<'a> {
    /// `None` for fewer than three parts, which are queued at once. There is a layer in each.
    ///
    /// # Errors
    /// `OutOfMemory`, `DeviceLost`, `DeviceError`.
    pub fn new(stream: &'a Stream, n_layer: usize, n_parts: usize) -> Result<Option<Parts<'a>>> {
        let n_parts = n_parts.min(n_layer);
        if n_parts < 3 {
            return Ok(None);
        }
        let ends = [Event::new(stream.context())?, Event::new(stream.context())?];
        Ok(Some(Parts { stream, ends, n_layer, n_parts }))
    }

    /// To be called before `layer` is queued, in order. Waits at the start of a part until the last but one before it has ended.
    ///
    /// # Errors
    /// `DeviceLost` when something that was queued failed, `DeviceError`.
    pub fn before(&self, layer: usize) -> Result<()> {
        let part_of = |layer: usize| layer * self.n_parts / self.n_layer;
        let part = part_of(layer);
        if layer == 0 || part == part_of(layer - 1) {
            return Ok(());
        }
        let [even, odd] = &self.ends;
        let (of_last, of_the_one_before) = if part % 2 == 1 { (even, odd) } else { (odd, even) };
        of_last.record(self.stream)?;
        of_the_one_before.synchronize()
    }
}
