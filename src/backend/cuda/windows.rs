//! What is copied to the device at once, and what of that is read at once: decided before anything is read.

use std::ops::Range;

use super::load::{ALIGNMENT, Piece, Target, row_bytes, rows};
use crate::Result;
use crate::error::try_vec;
use crate::gguf::{BLOCK, TensorInfo};

/// Elements of a vector that are read at once.
pub(super) const MAX_ELEMENTS: u64 = 1 << 16;

/// What goes through a slot at once.
pub(super) struct Window {
    /// Of [`Windows::parts`].
    pub parts: Range<usize>,
    /// How many units it has.
    pub n_units: usize,
    /// Its bytes in the file.
    pub n_bytes: u64,
}

/// Rows of a matrix, or elements of a vector.
pub(super) struct Part {
    pub piece: usize,
    pub range: Range<u64>,
    /// Where its bytes begin in a slot of the host: as far behind a block as in the file, and in blocks of its own.
    pub at: u64,
    /// The same in a slot of the device.
    pub device_at: u64,
}

impl Part {
    /// Where it begins in the data of its tensor.
    pub fn first_byte<M>(&self, info: &TensorInfo, target: &Target<M>) -> u64 {
        match target {
            Target::Matrix(_) => self.range.start * row_bytes(info),
            Target::Vector(_) => info.quant_type.bytes(self.range.start).unwrap_or(info.n_bytes),
        }
    }

    /// Its bytes in a slot.
    pub fn bytes_in_slot<M>(&self, info: &TensorInfo, target: &Target<M>) -> u64 {
        let each = if matches!(target, Target::Vector(_)) { size_of::<f32>() as u64 } else { row_bytes(info) };
        (self.range.end - self.range.start) * each
    }
}

/// What is read at once.
pub(super) struct Unit {
    pub window: usize,
    pub part: usize,
    /// Bytes of the part in the file; blocks of the file are not divided.
    pub bytes: Range<u64>,
}

/// All of it, in the order of the files, so that the system reads ahead.
#[derive(Default)]
pub(super) struct Windows {
    pub windows: Vec<Window>,
    pub parts: Vec<Part>,
    pub units: Vec<Unit>,
    /// Bytes of a slot of the host, whole blocks, and of one of the device.
    pub host_bytes: u64,
    pub device_bytes: u64,
}

impl Windows {
    /// Divides `pieces`, matrices into whole groups of `group` rows: slots take `slot_bytes`, or a group if that is more, and
    /// `unit_bytes` are read at once.
    ///
    /// # Errors
    /// `OutOfMemory` when there is none for the lists.
    pub fn new<M>(pieces: &[Piece<M>], group: fn(&M) -> u64, slot_bytes: u64, unit_bytes: u64) -> Result<Windows> {
        let mut order = try_vec(pieces.len(), "the order of the tensors")?;
        order.extend(0..pieces.len());
        order.sort_unstable_by_key(|&piece| (pieces[piece].info.shard, pieces[piece].info.offset));
        let mut out = Windows::default();
        // The window that is being filled, and where it goes on in slots of the host and of the device.
        let mut window = Window { parts: 0..0, n_units: 0, n_bytes: 0 };
        let (mut host, mut device) = (0, 0);
        for piece in order {
            let Piece { info, target } = &pieces[piece];
            // What a tensor is divided into, how many of these stay together and are most at once, and what each takes in a slot.
            let (n, together, most, bytes) = match target {
                Target::Matrix(matrix) => (rows(info), group(matrix), u64::MAX, row_bytes(info)),
                Target::Vector(_) => {
                    (info.n_elements, info.quant_type.block_len() as u64, MAX_ELEMENTS, size_of::<f32>() as u64)
                }
            };
            let mut start = 0;
            while start < n {
                let (left, room) = (n - start, slot_bytes.saturating_sub(host));
                let fit = (room / bytes).min(most);
                let taken = if left <= fit { left } else { fit / together * together };
                // What is left of a slot is not worth the work if it is little. A group that is larger than a slot has one alone.
                if host > 0 && taken < left && taken * bytes < slot_bytes / 8 {
                    out.close(&mut window)?;
                    (host, device) = (0, 0);
                    continue;
                }
                let end = start + taken.max(together.min(left));
                let file_bytes = |count: u64| match target {
                    Target::Matrix(_) => count * bytes,
                    Target::Vector(_) => info.quant_type.bytes(count).unwrap_or(info.n_bytes),
                };
                let (first, len) = (info.offset.saturating_add(file_bytes(start)), file_bytes(end) - file_bytes(start));
                let at = match target {
                    Target::Matrix(_) => host.next_multiple_of(BLOCK as u64) + first % BLOCK as u64,
                    Target::Vector(_) => host.next_multiple_of(BLOCK as u64),
                };
                let part = out.parts.len();
                out.parts.try_reserve(1).map_err(|_| no_memory())?;
                out.parts.push(Part { piece, range: start..end, at, device_at: device });
                host = at + (end - start) * bytes;
                device = (device + (end - start) * bytes).next_multiple_of(ALIGNMENT);
                out.host_bytes = out.host_bytes.max(host.next_multiple_of(BLOCK as u64));
                out.device_bytes = out.device_bytes.max(device);
                window.n_bytes += len;
                window.parts.end = part + 1;
                let mut done = 0;
                while done < len {
                    let whole = (first + done + unit_bytes) / BLOCK as u64 * BLOCK as u64;
                    let next = if matches!(target, Target::Vector(_)) { len } else { (whole - first).min(len) };
                    out.units.try_reserve(1).map_err(|_| no_memory())?;
                    out.units.push(Unit { window: out.windows.len(), part, bytes: done..next });
                    window.n_units += 1;
                    done = next;
                }
                start = end;
            }
        }
        out.close(&mut window)?;
        Ok(out)
    }

    /// Ends a window, if it has anything, and begins the next one.
    fn close(&mut self, window: &mut Window) -> Result<()> {
        let next = Window { parts: window.parts.end..window.parts.end, n_units: 0, n_bytes: 0 };
        let window = std::mem::replace(window, next);
        if window.n_units > 0 {
            self.windows.try_reserve(1).map_err(|_| no_memory())?;
            self.windows.push(window);
        }
        Ok(())
    }
}

fn no_memory() -> crate::Error {
    crate::Error::OutOfMemory { what: "the parts of the tensors".into(), bytes: 0 }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::quant::QuantType;

    const SLOT: u64 = 1 << 20;
    const UNIT: u64 = 128 << 10;

    /// Tensors one after the other, as matrices `[k, n]` in groups of so many rows, or as vectors `[k]` where `n` is 0.
    fn pieces(shapes: &[(QuantType, u64, u64, u64)]) -> Vec<Piece<u64>> {
        let mut offset = 1_000_032;
        let piece = |(i, &(quant_type, k, n, group)): (usize, &(QuantType, u64, u64, u64))| {
            let n_elements = k * n.max(1);
            let n_bytes = quant_type.bytes(n_elements).unwrap();
            let (n_dims, dims) = if n > 0 { (2, [k, n, 1, 1]) } else { (1, [k, 1, 1, 1]) };
            let name = format!("tensor {i}");
            let info = TensorInfo { name, dims, n_dims, n_elements, quant_type, shard: 0, offset, n_bytes };
            offset += n_bytes.next_multiple_of(32);
            Piece { info, target: if n > 0 { Target::Matrix(group) } else { Target::Vector(0) } }
        };
        shapes.iter().enumerate().map(piece).collect()
    }

    #[test]
    fn all_is_read_once_into_places_of_its_own() {
        let pieces = pieces(&[
            (QuantType::F16, 4096, 1024, 16),
            (QuantType::F32, 300_001, 0, 0),
            (QuantType::Q6_K, 2048, 1001, 16),
            (QuantType::F16, 64, 3, 16),
            (QuantType::F32, 65_536, 100, 16),
            (QuantType::Q4_K, 512, 16 * 300, 128),
            (QuantType::F16, 4096, 0, 0),
        ]);
        let all = Windows::new(&pieces, |group| *group, SLOT, UNIT).unwrap();
        let mut next = vec![0; pieces.len()];
        let mut units = all.units.iter().enumerate().peekable();
        for (number, window) in all.windows.iter().enumerate() {
            let (mut host, mut device, mut n_bytes, mut n_units) = (0, 0, 0, 0);
            assert!(!window.parts.is_empty());
            for index in window.parts.clone() {
                let part = &all.parts[index];
                let Piece { info, target } = &pieces[part.piece];
                assert_eq!(part.range.start, std::mem::replace(&mut next[part.piece], part.range.end));
                let (len, first) = (part.bytes_in_slot(info, target), part.first_byte(info, target));
                assert!(part.at / BLOCK as u64 * BLOCK as u64 >= host && part.device_at >= device);
                assert!(part.device_at.is_multiple_of(ALIGNMENT));
                (host, device) = ((part.at + len).next_multiple_of(BLOCK as u64), part.device_at + len);
                if let Target::Matrix(group) = target {
                    assert_eq!(part.at % BLOCK as u64, (info.offset + first) % BLOCK as u64);
                    assert!(part.range.start.is_multiple_of(*group) && len <= SLOT.max(group * row_bytes(info)));
                    assert!(part.range.end.is_multiple_of(*group) || part.range.end == rows(info));
                }
                let mut done = 0;
                while let Some((_, unit)) = units.next_if(|(_, unit)| unit.part == index) {
                    assert_eq!((unit.window, unit.bytes.start), (number, done));
                    let (start, size) = (info.offset + first + done, unit.bytes.end - done);
                    let is_matrix = matches!(target, Target::Matrix(_));
                    assert!(size > 0 && (!is_matrix || size <= UNIT));
                    assert!(!is_matrix || done == 0 || start.is_multiple_of(BLOCK as u64));
                    done = unit.bytes.end;
                    n_units += 1;
                }
                n_bytes += done;
                let is_vector = matches!(target, Target::Vector(_));
                assert_eq!(
                    done,
                    if is_vector { info.quant_type.bytes(part.range.end - part.range.start).unwrap() } else { len }
                );
            }
            assert!(host <= all.host_bytes && device <= all.device_bytes);
            assert_eq!((window.n_bytes, window.n_units), (n_bytes, n_units));
        }
        assert!(units.next().is_none());
        for (piece, next) in pieces.iter().zip(next) {
            let n = if matches!(piece.target, Target::Vector(_)) { piece.info.n_elements } else { rows(&piece.info) };
            assert_eq!(next, n, "{}", piece.info.name);
        }
        // One group of 16 rows of 65,536 numbers is larger than a slot.
        assert!((4 << 20..5 << 20).contains(&all.host_bytes), "{}", all.host_bytes);
    }
}
