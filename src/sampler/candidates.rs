//! The tokens that may still be chosen, in the order of descending logit.

use super::exp;
use crate::error::try_vec;
use crate::{Error, Result};

/// The weight of the most probable candidate.
pub(super) const ONE: f64 = (1u64 << 40) as f64;
/// Exponents below this give a weight of 0: `exp(-28) < 2^-40`.
const LEAST_EXPONENT: f64 = -28.0;
/// How many candidates are sorted first; more follow only as far as they are needed.
const FIRST_SORTED: usize = 256;

/// A token that may still be chosen. The integer order is that of candidates: the upper half falls as the logit
/// rises, the lower half is the id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Candidate(u64);

impl Candidate {
    pub(super) fn new(id: u32, logit: f32) -> Candidate {
        // Adding 0 turns -0 into 0, which it has to equal.
        let bits = (logit + 0.0).to_bits();
        let falling = if bits >> 31 == 0 { !bits ^ (1 << 31) } else { bits };
        Candidate(u64::from(falling) << 32 | u64::from(id))
    }

    pub(super) fn id(self) -> u32 {
        self.0 as u32
    }

    pub(super) fn logit(self) -> f64 {
        let falling = (self.0 >> 32) as u32;
        let bits = if falling >> 31 == 0 { !falling ^ (1 << 31) } else { falling };
        f64::from(f32::from_bits(bits))
    }
}

/// Where candidates come from: the logits of all tokens, and the tokens that a grammar allows.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) logits: &'a [f32],
    /// Bit `id % 32` of word `id / 32`; `None` allows all.
    pub(super) allowed: Option<&'a [u32]>,
}

/// Calls `visit` with the tokens that are allowed and their logits, by ascending id.
fn each_allowed(logits: &[f32], allowed: &[u32], mut visit: impl FnMut(u32, f32)) {
    for (first, (word, logits)) in (0u32..).step_by(32).zip(allowed.iter().zip(logits.chunks(32))) {
        let mut word = *word;
        while word != 0 {
            let bit = word.trailing_zeros();
            word &= word - 1;
            if let Some(logit) = logits.get(bit as usize) {
                visit(first + bit, *logit);
            }
        }
    }
}

/// Puts element `at` of `list` and those before it, and some more, into their final places, which the first `sorted` are in.
pub(super) fn sort_up_to<T: Ord>(list: &mut [T], sorted: &mut usize, at: usize) {
    while *sorted <= at && *sorted < list.len() {
        let rest = &mut list[*sorted..];
        // Four times as many each time keep the whole linear beside the sorting.
        let more = FIRST_SORTED.max(sorted.saturating_mul(3)).min(rest.len());
        if more < rest.len() {
            rest.select_nth_unstable(more - 1);
        }
        rest[..more].sort_unstable();
        *sorted += more;
    }
}

/// The candidates. They are not listed before a step needs the list: until then there are only the tokens whose logits
/// have been changed, so that the penalties cost nothing for all the others.
#[derive(Debug, Clone)]
pub(super) struct Candidates {
    /// New logits by ascending id, while nothing is listed; minus infinity for a token that is banned.
    changed: Vec<(u32, f32)>,
    /// Of these, the first `sorted` are in their final places; at least one is.
    list: Vec<Candidate>,
    sorted: usize,
    listed: bool,
    /// What the logits are to be divided by.
    temperature: f64,
    min_keep: usize,
}

impl Default for Candidates {
    fn default() -> Candidates {
        Candidates { changed: Vec::new(), list: Vec::new(), sorted: 0, listed: false, temperature: 1.0, min_keep: 1 }
    }
}

impl Candidates {
    /// All tokens again, with their logits as they are. Each step leaves at least `min_keep` of those it finds.
    pub(super) fn reset(&mut self, min_keep: usize) {
        self.changed.clear();
        self.list.clear();
        (self.sorted, self.listed, self.temperature, self.min_keep) = (0, false, 1.0, min_keep.max(1));
    }

    /// How many there are; they must be listed.
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn min_keep(&self) -> usize {
        self.min_keep
    }

    /// Calls `visit` with every candidate, in no particular order.
    #[inline]
    pub(super) fn each(&self, source: Source, mut visit: impl FnMut(Candidate)) {
        if self.listed {
            return self.list.iter().copied().for_each(visit);
        }
        let Some(allowed) = source.allowed else { return self.each_of_all(source.logits, visit) };
        let mut changed = self.changed.iter().copied().peekable();
        each_allowed(source.logits, allowed, |id, mut logit| {
            while let Some((next, new)) = changed.next_if(|(next, _)| *next <= id) {
                logit = if next == id { new } else { logit };
            }
            if logit != f32::NEG_INFINITY {
                visit(Candidate::new(id, logit));
            }
        });
    }

    /// From one changed logit to the next, so that the loop over those between has nothing to ask.
    #[inline]
    fn each_of_all(&self, logits: &[f32], mut visit: impl FnMut(Candidate)) {
        let mut start = 0;
        let end = (logits.len() as u32, f32::NEG_INFINITY);
        for &(id, new) in self.changed.iter().chain([&end]) {
            let between = logits.get(start as usize..id as usize).unwrap_or_default();
            for (id, logit) in (start..).zip(between) {
                visit(Candidate::new(id, *logit));
            }
            if new != f32::NEG_INFINITY {
                visit(Candidate::new(id, new));
            }
            start = id + 1;
        }
    }

    /// Changes the logits of some tokens; `of` has ascending ids, `change` takes a logit and what `of` has for it. It
    /// returns `None` to ban the token; what it returns otherwise is kept finite.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::NoCandidate`].
    pub(super) fn change<T>(
        &mut self,
        source: Source,
        of: &[(u32, T)],
        change: impl Fn(f32, &T) -> Option<f32>,
    ) -> Result<()> {
        if of.is_empty() {
            return Ok(());
        }
        if self.temperature != 1.0 {
            self.list_all(source)?;
        }
        let changed = |logit: f32, with: &T| change(logit, with).map(|new| new.clamp(f32::MIN, f32::MAX));
        if self.listed {
            self.divide();
            self.keep(|list| {
                list.retain_mut(|candidate| {
                    let Ok(at) = of.binary_search_by_key(&candidate.id(), |(id, _)| *id) else { return true };
                    let new = changed(candidate.logit() as f32, &of[at].1);
                    *candidate = Candidate::new(candidate.id(), new.unwrap_or_default());
                    new.is_some()
                });
            });
            return if self.list.is_empty() { Err(Error::NoCandidate) } else { Ok(()) };
        }
        self.changed.try_reserve(of.len()).map_err(|_| Error::OutOfMemory {
            what: "the changed logits of the sampler".into(),
            bytes: size_of_val(of) as u64,
        })?;
        let known = self.changed.len();
        for (id, with) in of {
            let Some(&logit) = source.logits.get(*id as usize) else { continue };
            match self.changed[..known].binary_search_by_key(id, |(id, _)| *id) {
                Ok(at) if self.changed[at].1 == f32::NEG_INFINITY => {}
                Ok(at) => self.changed[at].1 = changed(self.changed[at].1, with).unwrap_or(f32::NEG_INFINITY),
                Err(_) => self.changed.push((*id, changed(logit, with).unwrap_or(f32::NEG_INFINITY))),
            }
        }
        self.changed.sort_unstable_by_key(|(id, _)| *id);
        Ok(())
    }

    /// The first candidate: the largest logit, of equal ones the lowest id.
    pub(super) fn best(&self, source: Source) -> Option<Candidate> {
        let mut best = None;
        self.each(source, |candidate| {
            if best.is_none_or(|best| candidate < best) {
                best = Some(candidate);
            }
        });
        best
    }

    /// Lists the first `k` candidates, `min_keep` at least, or shortens the list to them.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::NoCandidate`].
    pub(super) fn list_first(&mut self, source: Source, k: usize) -> Result<()> {
        let k = k.max(self.min_keep);
        if self.listed {
            if k < self.list.len() {
                self.sort_up_to(k - 1);
                self.shorten(k);
            }
            return Ok(());
        }
        let n_vocab = source.logits.len();
        let k = k.min(n_vocab);
        // Twice as many as wanted are gathered, then the better half stays: linear, and with few writes.
        let room = k.saturating_mul(2).min(n_vocab);
        let mut kept = self.take_list(room)?;
        let mut worst = Candidate(u64::MAX);
        self.each(source, |candidate| {
            if candidate >= worst {
                return;
            }
            kept.push(candidate);
            if kept.len() == room && k < n_vocab {
                worst = *kept.select_nth_unstable(k - 1).1;
                kept.truncate(k);
            }
        });
        if kept.len() > k {
            kept.select_nth_unstable(k - 1);
            kept.truncate(k);
        }
        self.set_list(kept)
    }

    /// Lists all candidates.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::NoCandidate`].
    pub(super) fn list_all(&mut self, source: Source) -> Result<()> {
        self.list_where(source, |_| true)
    }

    /// Lists the candidates that `is_wanted` wants, or does nothing if they are listed already.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::NoCandidate`].
    pub(super) fn list_where(&mut self, source: Source, is_wanted: impl Fn(Candidate) -> bool) -> Result<()> {
        if self.listed {
            return Ok(());
        }
        let mut kept = self.take_list(source.logits.len())?;
        self.each(source, |candidate| {
            if is_wanted(candidate) {
                kept.push(candidate);
            }
        });
        self.set_list(kept)
    }

    fn take_list(&mut self, room: usize) -> Result<Vec<Candidate>> {
        let mut list = std::mem::take(&mut self.list);
        list.clear();
        if list.capacity() < room {
            list = try_vec(room, "the candidates of the sampler")?;
        }
        Ok(list)
    }

    fn set_list(&mut self, list: Vec<Candidate>) -> Result<()> {
        (self.list, self.sorted, self.listed) = (list, 0, true);
        self.sort_up_to(0);
        if self.list.is_empty() { Err(Error::NoCandidate) } else { Ok(()) }
    }

    /// Puts candidate `at` and those before it, and some more, into their final places.
    pub(super) fn sort_up_to(&mut self, at: usize) {
        sort_up_to(&mut self.list, &mut self.sorted, at);
    }

    /// Candidate `at`, which must be there; sorts as far as that takes.
    pub(super) fn nth(&mut self, at: usize) -> Candidate {
        self.sort_up_to(at);
        self.list[at]
    }

    /// The listed candidates; `0..=at` are in order after [`Candidates::sort_up_to`].
    pub(super) fn list(&self) -> &[Candidate] {
        &self.list
    }

    /// Replaces the list by some of its candidates, in any order.
    pub(super) fn keep(&mut self, kept: impl FnOnce(&mut Vec<Candidate>)) {
        kept(&mut self.list);
        self.sorted = 0;
        self.sort_up_to(0);
    }

    /// Leaves the first `n`, which are in their places, and `min_keep` at least.
    pub(super) fn shorten(&mut self, n: usize) {
        let n = n.max(self.min_keep);
        if n < self.list.len() {
            self.sort_up_to(n - 1);
            self.list.truncate(n);
            self.sorted = self.sorted.min(n);
        }
    }

    /// Leaves those that `stays` says of, and `min_keep` at least; of two candidates it never says the later one only.
    pub(super) fn keep_while(&mut self, stays: impl Fn(Candidate) -> bool) {
        let n = self.list.iter().filter(|candidate| stays(**candidate)).count();
        if n < self.min_keep {
            return self.shorten(n);
        }
        // Those that stay come before those that go, so the sorted prefix stays one.
        self.list.retain(|candidate| stays(*candidate));
        self.sorted = self.sorted.min(self.list.len());
    }

    /// Leaves out the first `n`, but not all.
    pub(super) fn drop_first(&mut self, n: usize) {
        let n = n.min(self.list.len().saturating_sub(1));
        self.sort_up_to(n);
        self.list.drain(..n);
        self.sorted -= n;
    }

    /// Divides the logits by `temperature` from now on.
    pub(super) fn set_temperature(&mut self, temperature: f64) {
        // A quotient of 0 and 0 would be no number.
        self.temperature = (self.temperature * temperature).max(f64::MIN_POSITIVE);
    }

    pub(super) fn temperature(&self) -> f64 {
        self.temperature
    }

    /// Writes the quotients to the list: what changes logits after this is not divided.
    fn divide(&mut self) {
        if self.temperature != 1.0 {
            for candidate in &mut self.list {
                let logit = (candidate.logit() / self.temperature) as f32;
                *candidate = Candidate::new(candidate.id(), logit.clamp(f32::MIN, f32::MAX));
            }
            self.temperature = 1.0;
        }
    }

    /// The logarithm of how much less probable a candidate is than the first.
    pub(super) fn exponent(&self, candidate: Candidate) -> f64 {
        // 0 or negative, over a positive number: never NaN.
        (candidate.logit() - self.list[0].logit()) / self.temperature
    }

    /// The weight of a candidate: 2^40 for the first.
    pub(super) fn weight(&self, candidate: Candidate) -> u64 {
        let exponent = self.exponent(candidate);
        if exponent < LEAST_EXPONENT { 0 } else { (ONE * exp::exp(exponent)) as u64 }
    }

    /// The sum of all weights, at least 2^40.
    pub(super) fn total(&self) -> u64 {
        self.list.iter().map(|candidate| self.weight(*candidate)).sum()
    }

    /// The first candidate at which the cumulative weight meets `enough`, which the total does.
    pub(super) fn first_where(&mut self, enough: impl Fn(u64) -> bool) -> usize {
        let mut sum = 0;
        for at in 0..self.list.len() {
            self.sort_up_to(at);
            sum += self.weight(self.list[at]);
            if enough(sum) {
                return at;
            }
        }
        self.list.len() - 1
    }

    /// The entropy of the candidates in nats, and the logarithm of the sum of `exp(exponent)` over them.
    pub(super) fn entropy(&self) -> (f64, f64) {
        let (mut sum, mut product) = (0.0, 0.0);
        for candidate in &self.list {
            let exponent = self.exponent(*candidate);
            if exponent >= LEAST_EXPONENT {
                let weight = exp::exp(exponent);
                sum += weight;
                product += weight * exponent;
            }
        }
        (sum.ln() - product / sum, sum.ln())
    }
}
