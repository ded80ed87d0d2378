//! The pages of the cache by number. Sequences share them: a page is freed when nobody holds it any more.

use crate::error::try_vec;
use crate::{Error, Result};

/// All pages, and who holds them.
#[derive(Default)]
pub struct Pages {
    slots: Vec<Slot>,
    /// Slots without a page; has room for all.
    free: Vec<u32>,
    bytes: usize,
    kept_bytes: usize,
}

struct Slot {
    numbers: Vec<f32>,
    /// Sequences that hold it, and those among them that are kept for others.
    holders: u32,
    keepers: u32,
}

impl Pages {
    /// A page of `len` zeros, held once.
    ///
    /// # Errors
    /// `OutOfMemory`; nothing changed then.
    pub fn take(&mut self, len: usize) -> Result<u32> {
        let mut numbers = try_vec(len, "the KV cache")?;
        numbers.resize(len, 0.0);
        self.add(numbers)
    }

    /// A page like `page`, held once.
    ///
    /// # Errors
    /// `OutOfMemory`; nothing changed then.
    pub fn copy(&mut self, page: u32) -> Result<u32> {
        let mut numbers = try_vec(self.get(page).len(), "the KV cache")?;
        numbers.extend_from_slice(self.get(page));
        self.add(numbers)
    }

    fn add(&mut self, numbers: Vec<f32>) -> Result<u32> {
        self.bytes += size_of_val(&*numbers);
        let slot = Slot { numbers, holders: 1, keepers: 0 };
        if let Some(page) = self.free.pop() {
            self.slots[page as usize] = slot;
            return Ok(page);
        }
        let page = self.slots.len();
        let room = self.slots.try_reserve(1).and_then(|()| self.free.try_reserve(page + 1));
        if room.is_err() || u32::try_from(page).is_err() {
            self.bytes -= size_of_val(&*slot.numbers);
            return Err(Error::OutOfMemory { what: "the KV cache".into(), bytes: size_of::<Slot>() as u64 });
        }
        self.slots.push(slot);
        Ok(page as u32)
    }

    /// The numbers of a page.
    pub fn get(&self, page: u32) -> &[f32] {
        &self.slots[page as usize].numbers
    }

    /// The numbers of a page, which nobody else holds, to write.
    pub fn get_mut(&mut self, page: u32) -> &mut [f32] {
        &mut self.slots[page as usize].numbers
    }

    /// Whether more than one sequence holds a page.
    pub fn is_shared(&self, page: u32) -> bool {
        self.slots[page as usize].holders > 1
    }

    /// One more sequence holds a page.
    pub fn hold(&mut self, page: u32) {
        self.slots[page as usize].holders += 1;
    }

    /// A sequence that holds a page is kept from now on.
    pub fn keep(&mut self, page: u32) {
        let slot = &mut self.slots[page as usize];
        slot.keepers += 1;
        if slot.keepers == 1 {
            self.kept_bytes += size_of_val(&*slot.numbers);
        }
    }

    /// A sequence, which is kept or not, holds a page no longer.
    pub fn release(&mut self, page: u32, is_kept: bool) {
        let slot = &mut self.slots[page as usize];
        slot.holders -= 1;
        if is_kept {
            slot.keepers -= 1;
            if slot.keepers == 0 {
                self.kept_bytes -= size_of_val(&*slot.numbers);
            }
        }
        if slot.holders == 0 {
            self.bytes -= size_of_val(&*slot.numbers);
            slot.numbers = Vec::new();
            self.free.push(page);
        }
        if self.free.len() == self.slots.len() {
            (self.slots, self.free) = (Vec::new(), Vec::new());
        }
    }

    /// Bytes of all pages.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of the pages that kept sequences hold, each counted once.
    pub fn kept_bytes(&self) -> usize {
        self.kept_bytes
    }

    /// Whether there is no page, and no memory for any.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.slots.capacity() == 0 && self.free.capacity() == 0
    }
}
