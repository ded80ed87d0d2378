//! What C holds as a pointer is a number that kigo never dereferences.
//!
//! | bits   | meaning                                                      |
//! |--------|--------------------------------------------------------------|
//! | 56..64 | kind: 0xA1 and up, so that the value is never a real address |
//! | 24..56 | generation: how often the slot has been used                 |
//! | 0..24  | slot: index into the table of that kind                      |
//!
//! A slot is reused with the next generation, and retired when its generations are used up. So a NULL, freed,
//! forged or mistaken handle is found out instead of followed.

use crate::{Error, Result};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[cfg(not(target_pointer_width = "64"))]
compile_error!("handles of kigo need 64-bit pointers");

const SLOT_BITS: u32 = 24;
const GENERATION_BITS: u32 = 32;
const MAX_SLOTS: usize = 1 << SLOT_BITS;

/// Most live handles of one kind.
pub(super) const MAX_HANDLES: usize = 1 << 20;

/// The generation that no live handle has; handles that live for ever use it.
pub(super) const STATIC_GENERATION: u32 = u32::MAX;

/// What a handle stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Model = 0xA1,
    Inference = 0xA2,
    Options = 0xA3,
    Error = 0xA4,
    Load = 0xA5,
    WorkerContext = 0xB1,
    WorkerModel = 0xB2,
    WorkerInference = 0xB3,
}

impl Kind {
    const ALL: [Kind; 8] = [
        Kind::Model,
        Kind::Inference,
        Kind::Options,
        Kind::Error,
        Kind::Load,
        Kind::WorkerContext,
        Kind::WorkerModel,
        Kind::WorkerInference,
    ];

    fn name(self) -> &'static str {
        match self {
            Kind::Model => "kigo_model",
            Kind::Inference => "kigo_inference",
            Kind::Options => "kigo_options",
            Kind::Error => "kigo_error",
            Kind::Load => "kigo_load",
            Kind::WorkerContext => "CudaContext",
            Kind::WorkerModel => "CudaModel",
            Kind::WorkerInference => "InferenceResult",
        }
    }
}

/// The handle of a slot in one of its generations.
pub(super) const fn pack(kind: Kind, generation: u32, slot: u32) -> u64 {
    ((kind as u64) << (SLOT_BITS + GENERATION_BITS)) | ((generation as u64) << SLOT_BITS) | slot as u64
}

/// Kind byte, generation and slot of a handle.
pub(super) const fn unpack(handle: u64) -> (u8, u32, u32) {
    let kind = (handle >> (SLOT_BITS + GENERATION_BITS)) as u8;
    (kind, (handle >> SLOT_BITS) as u32, (handle & (MAX_SLOTS as u64 - 1)) as u32)
}

/// The live things of one kind.
pub(super) struct Table<T> {
    kind: Kind,
    limit: usize,
    slots: Mutex<Slots<T>>,
}

struct Slots<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
    live: usize,
}

struct Entry<T> {
    generation: u32,
    value: Option<Arc<T>>,
}

impl<T> Table<T> {
    /// An empty table of at most `limit` things.
    pub(super) const fn new(kind: Kind, limit: usize) -> Self {
        Table { kind, limit, slots: Mutex::new(Slots { entries: Vec::new(), free: Vec::new(), live: 0 }) }
    }

    /// Takes `value` and gives its handle.
    ///
    /// # Errors
    /// `Limit` when the table is full, `OutOfMemory` when it cannot grow; `value` is dropped.
    pub(super) fn insert(&self, value: T) -> Result<u64> {
        let value = Arc::new(value);
        let mut slots = self.lock();
        if slots.live >= self.limit {
            return Err(self.full());
        }
        let slot = match slots.free.pop() {
            Some(slot) => slot,
            None => slots.grow().ok_or_else(|| self.full())??,
        };
        let entry = &mut slots.entries[slot as usize];
        entry.value = Some(value);
        let handle = pack(self.kind, entry.generation, slot);
        slots.live += 1;
        Ok(handle)
    }

    /// What `handle`, given as `argument`, stands for.
    ///
    /// # Errors
    /// `InvalidHandle` says what it is instead.
    pub(super) fn get(&self, handle: u64, argument: &'static str) -> Result<Arc<T>> {
        let slots = self.lock();
        let (kind, generation, slot) = unpack(handle);
        let found = match slots.entries.get(slot as usize) {
            Some(entry) if kind == self.kind as u8 && entry.generation == generation => entry.value.clone(),
            _ => None,
        };
        found.ok_or_else(|| self.invalid(&slots, handle, argument))
    }

    /// Ends `handle`; what it stood for lives on while a call still uses it.
    ///
    /// # Errors
    /// As [`Table::get`].
    pub(super) fn remove(&self, handle: u64, argument: &'static str) -> Result<Arc<T>> {
        let mut slots = self.lock();
        let (kind, generation, slot) = unpack(handle);
        let found = match slots.entries.get_mut(slot as usize) {
            Some(entry) if kind == self.kind as u8 && entry.generation == generation => entry.value.take(),
            _ => None,
        };
        let Some(value) = found else {
            return Err(self.invalid(&slots, handle, argument));
        };
        slots.release(slot);
        Ok(value)
    }

    /// How many handles are live.
    #[cfg(test)]
    pub(super) fn live(&self) -> usize {
        self.lock().live
    }

    /// No panic can leave the slots half changed, so a poisoned lock is taken like any other.
    fn lock(&self) -> MutexGuard<'_, Slots<T>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn full(&self) -> Error {
        let what = match self.kind {
            Kind::Model => "live kigo_model handles",
            Kind::Inference => "live kigo_inference handles",
            Kind::Options => "live kigo_options handles",
            Kind::Error => "live kigo_error handles",
            Kind::Load => "live kigo_load handles",
            Kind::WorkerContext => "live CudaContext handles",
            Kind::WorkerModel => "live CudaModel handles",
            Kind::WorkerInference => "live InferenceResult handles",
        };
        Error::Limit { what, limit: self.limit as u64 }
    }

    fn invalid(&self, slots: &Slots<T>, handle: u64, argument: &'static str) -> Error {
        let (kind, generation, slot) = unpack(handle);
        let found = match Kind::ALL.into_iter().find(|known| *known as u8 == kind) {
            _ if handle == 0 => "NULL".to_owned(),
            Some(other) if other != self.kind => format!("a {} handle", other.name()),
            Some(_) if slots.entries.get(slot as usize).is_some_and(|entry| generation < entry.generation) => {
                format!("a freed {} handle", self.kind.name())
            }
            _ => format!("{handle:#x}, which kigo never gave"),
        };
        Error::InvalidHandle { argument, expected: self.kind.name(), found }
    }
}

impl<T> Slots<T> {
    /// A new slot; None when there is no number left for one.
    fn grow(&mut self) -> Option<Result<u32>> {
        let slot = self.entries.len();
        if slot >= MAX_SLOTS {
            return None;
        }
        // Room for the slot in both lists at once: freeing a handle must not allocate.
        let room = self.entries.try_reserve(1).and_then(|()| self.free.try_reserve(slot + 1 - self.free.len()));
        if room.is_err() {
            let bytes = size_of::<Entry<T>>() as u64;
            return Some(Err(Error::OutOfMemory { what: "a handle".to_owned(), bytes }));
        }
        self.entries.push(Entry { generation: 1, value: None });
        Some(Ok(slot as u32))
    }

    fn release(&mut self, slot: u32) {
        self.live -= 1;
        let entry = &mut self.entries[slot as usize];
        entry.generation += 1;
        if entry.generation != STATIC_GENERATION {
            self.free.push(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(result: Result<Arc<u32>>) -> String {
        match result {
            Err(Error::InvalidHandle { found, .. }) => found,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn packing_round_trips_and_is_no_address() {
        for (kind, generation, slot) in
            [(Kind::Model, 1, 0), (Kind::Error, u32::MAX, (1 << 24) - 1), (Kind::Options, 0x1234_5678, 77)]
        {
            let handle = pack(kind, generation, slot);
            assert_eq!(unpack(handle), (kind as u8, generation, slot));
            // Neither 48-bit nor 57-bit virtual addresses have these top bits.
            assert!(handle >> 56 != 0 && handle >> 56 != 0xFF);
        }
    }

    #[test]
    fn stale_forged_and_foreign_handles_are_told_apart() {
        let table = Table::new(Kind::Model, 10);
        let first = table.insert(1_u32).unwrap();
        assert_eq!(*table.get(first, "model").unwrap(), 1);
        assert_eq!(*table.remove(first, "model").unwrap(), 1);
        assert_eq!(found(table.get(first, "model")), "a freed kigo_model handle");
        assert_eq!(found(table.remove(first, "model")), "a freed kigo_model handle");
        let second = table.insert(2).unwrap();
        assert_ne!(first, second);
        assert_eq!(unpack(first).2, unpack(second).2, "the slot is reused");
        assert_eq!(found(table.get(first, "model")), "a freed kigo_model handle");
        assert_eq!(found(table.get(0, "model")), "NULL");
        assert_eq!(found(table.get(pack(Kind::Options, 1, 0), "model")), "a kigo_options handle");
        for forged in [1, 0xDEAD_BEEF, u64::MAX, second + (1 << 24), second + 1, pack(Kind::Model, 1, 5)] {
            assert!(found(table.get(forged, "model")).contains("never gave"), "{forged:#x}");
        }
        assert_eq!(table.live(), 1);
    }

    #[test]
    fn the_limit_is_an_error_and_leaves_the_table_usable() {
        let table = Table::new(Kind::Error, 3);
        let handles: Vec<u64> = (0..3_u32).map(|value| table.insert(value).unwrap()).collect();
        assert!(matches!(table.insert(9), Err(Error::Limit { limit: 3, .. })));
        table.remove(handles[1], "error").unwrap();
        let again = table.insert(9).unwrap();
        assert_eq!(*table.get(again, "error").unwrap(), 9);
        assert_eq!(table.live(), 3);
    }

    #[test]
    fn a_slot_is_retired_when_its_generations_are_used_up() {
        let table = Table::new(Kind::Model, 10);
        let first = table.insert(1_u32).unwrap();
        table.remove(first, "model").unwrap();
        table.lock().entries[0].generation = STATIC_GENERATION - 1;
        let last = table.insert(2).unwrap();
        assert_eq!(unpack(last), (Kind::Model as u8, STATIC_GENERATION - 1, 0));
        table.remove(last, "model").unwrap();
        let next = table.insert(3).unwrap();
        assert_eq!(unpack(next), (Kind::Model as u8, 1, 1), "slot 0 is never used again");
        assert_eq!(found(table.get(last, "model")), "a freed kigo_model handle");
        assert!(found(table.get(pack(Kind::Model, STATIC_GENERATION, 0), "model")).contains("never gave"));
    }

    #[test]
    fn a_thing_outlives_its_handle_while_in_use() {
        let table = Table::new(Kind::Inference, 10);
        let handle = table.insert(5_u32).unwrap();
        let in_use = table.get(handle, "inference").unwrap();
        table.remove(handle, "inference").unwrap();
        assert_eq!(*in_use, 5);
    }

    #[test]
    fn a_poisoned_lock_is_taken_anyway() {
        let table = Table::new(Kind::Model, 10);
        let handle = table.insert(1_u32).unwrap();
        let _ = crate::panics::caught(|| {
            let _slots = table.slots.lock().unwrap();
            panic!("with the lock held");
        });
        assert!(table.slots.is_poisoned());
        assert_eq!(*table.get(handle, "model").unwrap(), 1);
    }
}
