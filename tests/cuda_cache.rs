//! The pages of the KV cache in device memory, under a fake driver: who has which, what is in them, and what is left when
//! something fails on the way.
//!
//! Each test runs an ignored one in a process of its own, because a driver is loaded once per process.
#![cfg(all(feature = "cuda", target_os = "linux"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(unsafe_code, reason = "the device memory of the fake driver is host memory, which the tests read and write")]

mod fake_driver;

use fake_driver::{run, say};
use kigo::backend::cuda::context::Context;
use kigo::backend::cuda::kv_cache::{KvCache, PAGE, Sizes};
use kigo::backend::cuda::params::KIGO_ALL_BEFORE;
use kigo::backend::cuda::stream::Stream;
use kigo::backend::{Memory, Purpose};
use kigo::model::{Activation, LayerDesc, ModelDesc, Norm, Rope, RopeKind, RopePairing, RopeScaling};
use kigo::{Error, Result};

fn desc(n_layer: usize, n_head_kv: usize, head_dim: usize) -> ModelDesc {
    let kinds = vec![RopeKind { freq_base: 1e4, scaling: RopeScaling::Linear(1.0), attn_factor: 1.0 }];
    ModelDesc {
        architecture: "llama",
        name: String::new(),
        n_ctx_train: 4096,
        n_embd: 64,
        n_head: 2 * n_head_kv,
        n_head_kv,
        head_dim,
        n_ff: 64,
        n_vocab: 64,
        layers: vec![LayerDesc { window: None, rope: Some(0) }; n_layer],
        norm: Norm::Rms,
        norm_eps: 1e-5,
        pre_norm: true,
        post_norm: false,
        ffn_norm: "ffn_norm",
        qk_norm: None,
        rope: Rope { pairing: RopePairing::Adjacent, n_rot: head_dim, n_ctx_orig: 4096, kinds },
        learned_positions: false,
        activation: Activation::Silu,
        experts: None,
        sinks: false,
        attn_scale: 1.0,
        attn_softcap: None,
        embd_scale: 1.0,
        residual_scale: 1.0,
        logit_scale: 1.0,
        logit_softcap: None,
    }
}

/// The same, where layers that are no multiple of 3 have a window.
fn windowed(n_layer: usize, n_head_kv: usize, head_dim: usize, window: usize) -> ModelDesc {
    let mut desc = desc(n_layer, n_head_kv, head_dim);
    for (i, layer) in desc.layers.iter_mut().enumerate().filter(|(i, _)| i % 3 != 0) {
        // Half of the largest for some.
        layer.window = Some(if i % 2 == 0 { window } else { window / 2 });
    }
    desc
}

#[test]
fn a_page_has_the_size_of_its_parts() {
    // 2 layers, 3 heads of 40 in 64 places, 64 positions, f16; an area has 6 heads of 66 f32, to a multiple of 256.
    let sizes = Sizes::new(&desc(2, 3, 40), 1000, 32).unwrap();
    let [group] = sizes.groups[..] else { panic!("{sizes:?}") };
    assert_eq!(group.page, 2 * 3 * 2 * 64 * 64 * 2);
    assert_eq!((sizes.areas.page, sizes.areas.ring), ((6 * 66 * 4_usize).next_multiple_of(256), 16));
    assert_eq!((group.n_layer, group.ring), (2, 16));
    assert_eq!(sizes.table, 256);
    assert_eq!(group.chunk / group.page, (32 << 20) / group.page);
    let large = Sizes::new(&desc(1000, 64, 256), 1000, 32).unwrap();
    assert_eq!(large.groups[0].chunk, large.groups[0].page);
    let error = Sizes::new(&desc(2, 3, 257), 1000, 32).unwrap_err().to_string();
    assert_eq!(error, "llama.attention.key_length: expected at most 256 on a GPU, found 257");
    assert!(Sizes::new(&desc(1000, 1 << 40, 256), 1000, 32).is_err());
}

#[test]
fn layers_with_a_window_have_pages_of_their_own() {
    let sizes = Sizes::new(&windowed(7, 3, 40, 100), 10_000, 30).unwrap();
    let [full, ring] = sizes.groups[..] else { panic!("{sizes:?}") };
    assert_eq!((full.n_layer, ring.n_layer), (3, 4));
    let page = |n_layer: usize| n_layer * 3 * 2 * 64 * 64 * 2;
    assert_eq!((full.page, ring.page), (page(3), page(4)));
    // 100 positions that are seen, 30 rows of a batch and 2 steps ahead lie in at most 4 pages.
    assert_eq!((full.ring, ring.ring, sizes.n_entries), (157, 4, 157));
    assert_eq!((sizes.table, sizes.areas_entry()), ((3 * 157 * 8_usize).next_multiple_of(256), 2 * 157));
    assert_eq!((full.before, ring.before, sizes.areas.ring), (10_000, 99, 157));
    let places = sizes.layers.iter().map(|layer| (layer.group, layer.index, layer.before));
    let all = KIGO_ALL_BEFORE;
    let expected = [(0, 0, all), (1, 0, 49), (1, 1, 99), (0, 1, all), (1, 2, 99), (1, 3, 49), (0, 2, all)];
    assert_eq!(places.collect::<Vec<_>>(), expected);
    assert_eq!(sizes.sequence_bytes(65), (2 * (full.page + ring.page + sizes.areas.page)) as u64);
    let whole = 157 * (full.page + sizes.areas.page) + 4 * ring.page;
    assert_eq!(sizes.sequence_bytes(10_000), whole as u64);

    // A window of the whole context is none; where all layers have one, there is nothing else.
    let sizes = Sizes::new(&windowed(7, 3, 40, 100), 50, 30).unwrap();
    assert_eq!((sizes.groups.len(), sizes.groups[0].n_layer), (1, 7));
    let mut all = desc(2, 3, 40);
    all.layers.iter_mut().for_each(|layer| layer.window = Some(usize::MAX - 5));
    assert_eq!(Sizes::new(&all, 1000, 30).unwrap().groups[0].ring, 16);
    all.layers.iter_mut().for_each(|layer| layer.window = Some(64));
    let sizes = Sizes::new(&all, 1000, 30).unwrap();
    assert_eq!((sizes.groups.len(), sizes.groups[0].ring, sizes.layers[1].index), (1, 3, 1));
}

/// The bytes at an address of the fake device.
fn peek<T: Copy>(address: u64, n: usize) -> Vec<T> {
    // SAFETY: the cache says that there are so many, and numbers of any bits are valid.
    unsafe { std::slice::from_raw_parts(address as *const T, n) }.to_vec()
}

fn poke(address: u64, n: usize) {
    // SAFETY: as above; the fake driver's work is done when its calls return.
    unsafe { std::ptr::write_bytes(address as *mut u8, 0xFF, n) };
}

fn pages(cache: &KvCache, sequence: u64, n: usize) -> Vec<u64> {
    peek(cache.table_address(sequence).unwrap(), n)
}

/// Pages of 8 MiB and tables of 1,024 entries.
#[test]
#[ignore = "run by others, under a fake driver"]
fn child_pages() {
    let (desc, n_ctx) = (desc(32, 8, 128), 1 << 16);
    let context = Context::open(0).unwrap();
    let stream = Stream::new(&context).unwrap();
    let mut cache = KvCache::new(&context, &stream, &desc, (n_ctx, 512)).unwrap();
    let (sizes, first_bytes) = (cache.sizes().groups[0], context.bytes(Purpose::Cache));
    assert_eq!(first_bytes, cache.sizes().first_bytes());
    let scratch = peek::<u64>(cache.scratch_table_address(), 1)[0];

    // Pages come as positions need them, zero, each for one sequence, and stay where they are.
    let mut all = vec![scratch];
    for (sequence, n_positions) in [(1, 1), (2, PAGE), (1, PAGE + 1), (2, 3 * PAGE), (1, 2), (3, 5 * PAGE - 1)] {
        cache.reserve(&stream, sequence, n_positions).unwrap();
    }
    for (sequence, n) in [(1, 2), (2, 3), (3, 5)] {
        all.extend(pages(&cache, sequence, n));
    }
    let mut sorted = all.clone();
    sorted.sort_unstable();
    assert!(sorted.windows(2).all(|pair| pair[0] + sizes.page as u64 <= pair[1]), "{sorted:?}");
    for page in &all {
        assert!(page % 256 == 0 && peek::<u8>(*page, sizes.page).iter().all(|byte| *byte == 0));
        poke(*page, sizes.page);
    }

    // A freed page comes back clean.
    let held = context.bytes(Purpose::Cache);
    let freed = pages(&cache, 2, 3);
    cache.free(&stream, 2);
    cache.free(&stream, 2);
    cache.free(&stream, 99);
    assert_eq!(cache.table_address(2), None);
    cache.reserve(&stream, 4, 3 * PAGE).unwrap();
    let again = pages(&cache, 4, 3);
    assert!(again.iter().all(|page| freed.contains(page)), "{again:?} {freed:?}");
    assert!(again.iter().all(|page| peek::<u8>(*page, sizes.page).iter().all(|byte| *byte == 0)));
    assert_eq!(context.bytes(Purpose::Cache), held);

    // What does not fit changes nothing, and may be asked for again.
    let before = pages(&cache, 1, 2);
    let error = cache.reserve(&stream, 1, n_ctx).unwrap_err();
    assert!(matches!(error, Error::OutOfDeviceMemory { .. }), "{error}");
    assert!(matches!(cache.reserve(&stream, 5, n_ctx), Err(Error::OutOfDeviceMemory { .. })));
    assert!(matches!(cache.reserve(&stream, 1, n_ctx + 1), Err(Error::Internal(_))));
    assert_eq!(cache.table_address(5), None);
    assert_eq!((pages(&cache, 1, 2), context.bytes(Purpose::Cache)), (before.clone(), held));
    cache.reserve(&stream, 1, 3 * PAGE).unwrap();
    assert_eq!(pages(&cache, 1, 2), before);

    // The last sequence takes all chunks with it but the first.
    for sequence in [1, 3, 4] {
        assert!(context.bytes(Purpose::Cache) > first_bytes);
        cache.free(&stream, sequence);
    }
    assert_eq!(context.bytes(Purpose::Cache), first_bytes);
    assert_eq!(peek::<u64>(cache.scratch_table_address(), 1)[0], scratch);
    for n_positions in [1, 3 * PAGE, 3 * PAGE + 1, 10 * PAGE] {
        cache.reserve(&stream, 6, n_positions).unwrap();
        assert_eq!(context.bytes(Purpose::Cache), cache.sizes().cache_bytes(n_positions), "{n_positions} positions");
    }
    cache.free(&stream, 6);
    for sequence in 10..14 {
        cache.reserve(&stream, sequence, PAGE).unwrap();
        assert_ne!(pages(&cache, sequence, 1)[0], scratch);
    }
    // More sequences than tables in a chunk.
    for sequence in 100..400 {
        cache.reserve(&stream, sequence, 0).unwrap();
        assert_ne!(cache.table_address(sequence).unwrap(), cache.scratch_table_address());
    }
    drop(cache);
    assert_eq!((context.ledger().device_bytes(), context.ledger().pinned_bytes()), (0, 0));
    say("done");
}

#[test]
fn pages_of_the_cache() {
    let run = run("child_pages", &[("FAKE_CUDA_MEMORY", &(200 << 20).to_string())]);
    assert_eq!(run.said, ["done"]);
    run.assert_clean("pages");
}

/// Two groups: pages of 6 MiB of 12 layers that see all, 12 MiB of 24 layers that see 100 positions.
#[test]
#[ignore = "run by others, under a fake driver"]
fn child_rings() {
    const RING: usize = 4;
    let context = Context::open(0).unwrap();
    let stream = Stream::new(&context).unwrap();
    let mut cache = KvCache::new(&context, &stream, &windowed(36, 16, 128, 100), (4096, 30)).unwrap();
    let n_entries = cache.sizes().n_entries;
    let [full, windowed] = cache.sizes().groups[..] else { panic!("{:?}", cache.sizes()) };
    assert_eq!((windowed.ring, n_entries), (RING, 64));
    let first_bytes = context.bytes(Purpose::Cache);
    assert_eq!(first_bytes, cache.sizes().first_bytes());
    let scratch = peek::<u64>(cache.scratch_table_address(), 2 * n_entries);
    let scratch = [scratch[0], scratch[n_entries]];

    // One by one and by leaps: entries of the ring repeat, the others do not.
    for (sequence, step) in [(1, 1), (2, 3), (3, 7)] {
        for n_pages in (1..=15).step_by(step) {
            cache.reserve(&stream, sequence, n_pages * PAGE).unwrap();
            let table = pages(&cache, sequence, 2 * n_entries);
            let (all, ring) = (&table[..n_pages], &table[n_entries..][..n_pages]);
            for (i, page) in ring.iter().enumerate() {
                assert_eq!(*page, ring[i % RING]);
                assert!(i >= RING || !ring[..i].contains(page));
            }
            for (i, page) in all.iter().enumerate() {
                assert!(!all[..i].contains(page) && !ring.contains(page));
                assert!(peek::<u8>(*page, full.page).iter().all(|byte| *byte == 0));
            }
            assert!(ring.iter().chain(all).all(|page| !scratch.contains(page) && page % 256 == 0));
        }
        let last = pages(&cache, sequence, 2 * n_entries)[n_entries + 3];
        poke(last, windowed.page);
        cache.reserve(&stream, sequence, 16 * PAGE).unwrap();
        assert!(
            peek::<u8>(last, windowed.page).iter().all(|byte| *byte == 0xFF),
            "a page that is used again keeps what it has"
        );
        assert!(context.bytes(Purpose::Cache) >= cache.sizes().sequence_bytes(16 * PAGE));
        cache.free(&stream, sequence);
        assert_eq!(context.bytes(Purpose::Cache), first_bytes);
        cache.reserve(&stream, sequence, PAGE).unwrap();
        let table = pages(&cache, sequence, 2 * n_entries);
        for (page, group) in [(table[0], full), (table[n_entries], windowed)] {
            assert!(peek::<u8>(page, group.page).iter().all(|byte| *byte == 0), "a page that is given again is clean");
        }
        cache.free(&stream, sequence);
    }

    // One group has room, the other has none: nothing is taken of either.
    cache.reserve(&stream, 7, 2 * PAGE).unwrap();
    let (before, held) = (pages(&cache, 7, 2 * n_entries), context.bytes(Purpose::Cache));
    assert!(matches!(cache.reserve(&stream, 7, 4096), Err(Error::OutOfDeviceMemory { .. })));
    assert_eq!((pages(&cache, 7, 2), context.bytes(Purpose::Cache)), (before[..2].to_vec(), held));
    cache.reserve(&stream, 7, 3 * PAGE).unwrap();
    assert_eq!(pages(&cache, 7, 2), before[..2]);
    drop(cache);
    assert_eq!((context.ledger().device_bytes(), context.ledger().pinned_bytes()), (0, 0));
    say("done");
}

/// Sequences that share pages: who has which, and what is in them.
#[test]
#[ignore = "run by others, under a fake driver"]
fn child_shares() {
    const RING: usize = 4;
    let context = Context::open(0).unwrap();
    let stream = Stream::new(&context).unwrap();
    let mut cache = KvCache::new(&context, &stream, &windowed(4, 2, 64, 100), (4096, 30)).unwrap();
    let (n_entries, areas_entry) = (cache.sizes().n_entries, cache.sizes().areas_entry());
    let [full, windowed] = cache.sizes().groups[..] else { panic!("{:?}", cache.sizes()) };
    let first_bytes = context.bytes(Purpose::Cache);
    // Of the layers that see all, of those with a window, and the areas.
    let tables = |cache: &KvCache, sequence: u64, n: usize| {
        let all = pages(cache, sequence, areas_entry + n);
        [0, n_entries, areas_entry].map(|first| all[first..first + n].to_vec())
    };
    let fill = |page: u64, bytes: usize, value: u8| {
        // SAFETY: the page has so many bytes; the fake driver's work is done when its calls return.
        unsafe { std::ptr::write_bytes(page as *mut u8, value, bytes) }
    };
    for n in [5 * PAGE + 10, 6 * PAGE] {
        cache.reserve(&stream, 1, n).unwrap();
        let [all, ring, areas] = tables(&cache, 1, 6);
        all.iter().enumerate().for_each(|(i, page)| fill(*page, full.page, i as u8 + 1));
        ring.iter().enumerate().for_each(|(i, page)| fill(*page, windowed.page, i as u8 + 101));
        assert!(cache.fork(&stream, 1, 2, n).unwrap());
        let [all_2, ring_2, areas_2] = tables(&cache, 2, 6);
        assert_eq!((&all_2[..5], &ring_2[4..5]), (&all[..5], &ring[4..5]), "full pages are shared");
        assert_eq!((all_2[5] == all[5], ring_2[5] == ring[5]), (n == 6 * PAGE, n == 6 * PAGE));
        assert_eq!((peek::<u8>(all_2[5], full.page)[7], peek::<u8>(ring_2[5], windowed.page)[7]), (6, 106));
        assert!(areas_2.iter().all(|area| !areas.contains(area)), "partial sums are a sequence's own");

        // The ring comes round: what the other still sees is not written.
        for n_positions in (n..9 * PAGE).step_by(30).chain([9 * PAGE]) {
            cache.reserve(&stream, 2, n_positions).unwrap();
            cache.reserve(&stream, 1, n_positions).unwrap();
        }
        let [[all, ring, _], [all_2, ring_2, _]] = [1, 2].map(|sequence| tables(&cache, sequence, 9));
        assert!(all[6..].iter().all(|page| !all_2.contains(page)));
        assert!((6..9).all(|i| !ring_2[5..].contains(&ring[i])), "{ring:?} {ring_2:?}");
        assert!((6..9).all(|i| ring[i] != ring[i - 1]));
        for (sequence, value) in [(1, 0x11), (2, 0x22)] {
            tables(&cache, sequence, 9)[0][6..].iter().for_each(|page| fill(*page, full.page, value));
            tables(&cache, sequence, 9)[1][6..].iter().for_each(|page| fill(*page, windowed.page, value));
        }
        assert_eq!(peek::<u8>(all[6], 1), [0x11]);
        assert!((0..5).all(|i| peek::<u8>(all[i], 1) == [i as u8 + 1] && all_2[i] == all[i]));

        // A window that has moved on cannot go back, what is inside it can.
        assert!(!cache.rewind(&stream, 2, 2 * PAGE).unwrap() && !cache.fork(&stream, 2, 3, 2 * PAGE).unwrap());
        assert!(!cache.holds(2, 10 * PAGE) && cache.holds(2, 9 * PAGE));
        assert_eq!(cache.table_address(3), None);
        assert!(cache.fork(&stream, 2, 3, 9 * PAGE).unwrap());
        assert!(cache.rewind(&stream, 3, 8 * PAGE + 1).unwrap());
        let [all_3, ring_3, _] = tables(&cache, 3, 9);
        assert!(all_3[8] != all_2[8] && ring_3[8] != ring_2[8] && all_3[7] == all_2[7]);
        assert_eq!((peek::<u8>(all_3[8], 1), peek::<u8>(ring_3[8], 1)), (vec![0x22], vec![0x22]));

        // Kept ones have their pages only.
        cache.keep(2);
        cache.keep(2);
        assert_eq!(cache.table_address(2), None);
        let kept = 9 * full.page + RING * windowed.page;
        assert_eq!(cache.kept_bytes(), kept as u64);
        assert!(cache.fork(&stream, 2, 4, 9 * PAGE).unwrap());
        cache.keep(4);
        // What both have counts once; in place of what only the first of them still sees, the other has the page of nobody.
        assert_eq!(cache.kept_bytes(), (kept + windowed.page) as u64);
        cache.free(&stream, 2);
        // A row at that position sees two pages of the ring.
        assert_eq!((cache.is_used(), cache.kept_bytes()), (true, (9 * full.page + 3 * windowed.page) as u64));
        for sequence in [1, 3, 4] {
            cache.free(&stream, sequence);
        }
        assert_eq!((cache.is_used(), cache.kept_bytes(), context.bytes(Purpose::Cache)), (false, 0, first_bytes));
    }
    drop(cache);
    assert_eq!((context.ledger().device_bytes(), context.ledger().pinned_bytes()), (0, 0));
    say("done");
}

#[test]
fn sequences_share_pages() {
    let run = run("child_shares", &[]);
    assert_eq!(run.said, ["done"]);
    run.assert_clean("shares");
}

/// What is kept gives way, chunk by chunk, and holds no chunk that it does not need.
#[test]
#[ignore = "run by others, under a fake driver"]
fn child_kept_chunks() {
    let context = Context::open(0).unwrap();
    let stream = Stream::new(&context).unwrap();
    // Pages of 8 MiB, four to a chunk.
    let mut cache = KvCache::new(&context, &stream, &desc(32, 8, 128), (4096, 512)).unwrap();
    let first_bytes = context.bytes(Purpose::Cache);
    for sequence in 1..=6 {
        cache.reserve(&stream, sequence, 2 * PAGE).unwrap();
    }
    let most = context.bytes(Purpose::Cache);
    for sequence in [2, 5] {
        cache.keep(sequence);
    }
    for sequence in [1, 3, 4, 6] {
        cache.free(&stream, sequence);
    }
    let kept = context.bytes(Purpose::Cache);
    assert!(first_bytes < kept && kept < most, "{first_bytes} {kept} {most}");
    // A chunk in the middle may be gone; what comes next takes its place.
    cache.reserve(&stream, 7, 20 * PAGE).unwrap();
    let table = pages(&cache, 7, 20);
    assert!((0..20).all(|i| !table[..i].contains(&table[i]) && peek::<u8>(table[i], 8 << 20).iter().all(|b| *b == 0)));
    cache.free(&stream, 7);
    cache.free(&stream, 2);
    cache.free(&stream, 5);
    assert_eq!(context.bytes(Purpose::Cache), first_bytes);
    drop(cache);
    say("done");
}

#[test]
fn kept_sequences_hold_no_more_than_they_need() {
    let run = run("child_kept_chunks", &[]);
    assert_eq!(run.said, ["done"]);
    run.assert_clean("kept chunks");
}

#[test]
fn rings_of_the_cache() {
    let run = run("child_rings", &[("FAKE_CUDA_MEMORY", &(350 << 20).to_string())]);
    assert_eq!(run.said, ["done"]);
    run.assert_clean("rings");
}

/// Sequences grow and end, while one call fails; what then is as if it had not been made.
#[test]
#[ignore = "run by others, under a fake driver"]
fn child_pages_fail() {
    let attempt = || -> Result<()> {
        let context = Context::open(0)?;
        let stream = Stream::new(&context)?;
        // Three pages are the ring of 21 layers; 11 see all.
        let mut cache = KvCache::new(&context, &stream, &windowed(32, 8, 128, 64), (4096, 32))?;
        let pages = |cache: &KvCache, sequence, n: usize| {
            let all = self::pages(cache, sequence, 2 * cache.sizes().n_entries);
            [&all[..n], &all[cache.sizes().n_entries..][..n]].map(<[u64]>::to_vec)
        };
        for turn in 0..8_u64 {
            let n_pages = turn as usize + 1;
            let before = cache.table_address(1).map(|_| pages(&cache, 1, n_pages - 1));
            if let Err(error) = cache.reserve(&stream, 1, n_pages * PAGE) {
                assert_eq!(cache.table_address(1).map(|_| pages(&cache, 1, n_pages - 1)), before);
                say(error.status().name());
                cache.reserve(&stream, 1, n_pages * PAGE)?;
            }
            let [full, ring] = pages(&cache, 1, n_pages);
            let [full_before, ring_before] = before.unwrap_or_default();
            assert!(full.starts_with(&full_before) && ring.starts_with(&ring_before));
            assert!(ring.iter().zip(ring.iter().skip(3)).all(|(a, b)| a == b), "{ring:?}");
        }
        // Another begins with what this one has, up to the middle of a page, goes on, and goes back into what both share.
        let (n, before) = (7 * PAGE + 9, pages(&cache, 1, 8));
        if let Err(error) = cache.fork(&stream, 1, 2, n) {
            assert_eq!((cache.table_address(2), pages(&cache, 1, 8)), (None, before.clone()));
            say(error.status().name());
            cache.fork(&stream, 1, 2, n)?;
        }
        if let Err(error) = cache.reserve(&stream, 2, 9 * PAGE) {
            say(error.status().name());
            cache.reserve(&stream, 2, 9 * PAGE)?;
        }
        cache.free(&stream, 1);
        cache.fork(&stream, 2, 1, 9 * PAGE)?;
        if let Err(error) = cache.rewind(&stream, 1, 8 * PAGE + 9) {
            say(error.status().name());
            assert!(cache.rewind(&stream, 1, 8 * PAGE + 9)?);
        }
        assert_ne!(pages(&cache, 1, 9)[0][8], pages(&cache, 2, 9)[0][8]);
        assert_eq!(pages(&cache, 1, 9)[0][..8], pages(&cache, 2, 9)[0][..8]);
        cache.free(&stream, 1);
        cache.free(&stream, 2);
        Ok(())
    };
    if let Err(error) = attempt() {
        say(error.status().name());
    }
    say("done");
}

#[test]
fn no_call_of_the_cache_that_fails_changes_anything() {
    for (code, step, most) in [("2", 1, 20), ("1", 7, 2)] {
        let mut failures = 0;
        for at in (4..).step_by(step) {
            let run = run("child_pages_fail", &[("FAKE_CUDA_FAIL_AT", &at.to_string()), ("FAKE_CUDA_FAIL_CODE", code)]);
            run.assert_clean(&format!("{code} at call {at}"));
            assert!(run.said.len() <= 2, "{run:?}");
            failures += run.said.len() - 1;
            if at > run.count("calls") {
                break;
            }
        }
        assert!(failures > most, "{failures}");
    }
}
