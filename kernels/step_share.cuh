// What of an attention in `step` is a block's: a kv head with some of its heads, and some of the pages that a row sees.
#pragma once

#include "activations.cuh"
#include "attention.cuh"

namespace {

// Heads that a block attends with.
constexpr uint32_t kHeads = kWarps;

// Elements of a head that a block mixes, and blocks that share a head.
constexpr uint32_t kOwn = kWarp;

__device__ __forceinline__ constexpr uint32_t parts_of_head(uint32_t dp) { return dp / kOwn; }

// The row that a block attends with, and which of the blocks with this row it is.
struct RowBlock {
    uint32_t row, number, n_blocks;

    __device__ __forceinline__ explicit RowBlock(uint32_t n_rows) : n_blocks(gridDim.x / n_rows) {
        // Blocks that are left over are behind those of the last row.
        row = min(blockIdx.x / n_blocks, n_rows - 1);
        number = blockIdx.x - row * n_blocks;
    }
};

// What a block has of every attention: a kv head with some of its heads, of which it mixes a part of the elements, and every n_splits-th
// chunk that the row sees, from number `split` on.
struct BlockHeads {
    uint32_t head_kv, of_group, of_head, split, n_splits;

    BlockHeads() = default;

    // Where so many blocks share the elements of a head.
    __device__ __forceinline__ BlockHeads(const KigoAttention& p, uint32_t n_parts, const RowBlock& block) {
        const uint32_t of_kv = (p.n_head / p.n_head_kv + kHeads - 1) / kHeads * n_parts;
        n_splits = block.n_blocks / (p.n_head_kv * of_kv);
        const uint32_t unit = block.number / n_splits;
        split = block.number % n_splits;
        head_kv = unit / of_kv;
        of_group = unit % of_kv / n_parts;
        of_head = unit % n_parts;
        // Blocks that no heads are left for.
        if (head_kv >= p.n_head_kv) split = ~0u;
    }
};

// What it has of one.
struct AttentionShare {
    // Chunks that the row sees; the block's first page, how many at its start the row does not see, and how many there are with those, 0
    // of none.
    uint32_t n_chunks, first_page, n_unseen, n_pages;
    // From one of its chunks to the next.
    uint32_t n_splits;

    AttentionShare() = default;

    __device__ __forceinline__ AttentionShare(const BlockHeads& heads, const KigoAttention& p, uint32_t position) : n_splits(heads.n_splits) {
        const uint32_t split = heads.split;
        const uint32_t first_seen = first_page_of(position, p.before), first_chunk = first_seen / kChunk;
        const uint32_t n_seen = position / KIGO_PAGE + 1;
        n_chunks = (n_seen - 1) / kChunk + 1 - first_chunk;
        first_page = (first_chunk + split) * kChunk;
        n_unseen = max(first_seen, first_page) - first_page;
        n_pages = 0;
        if (split >= n_chunks) return;
        const uint32_t n_before = (n_chunks - 1 - split) / n_splits;
        n_pages = n_before * kChunk + min(kChunk, n_seen - page(n_before * kChunk));
    }

    // The number of the block's i-th page.
    __device__ __forceinline__ uint32_t page(uint32_t i) const { return first_page + i + i / kChunk * (n_splits - 1) * kChunk; }

    __device__ __forceinline__ bool sees(uint32_t i) const { return i >= n_unseen && i < n_pages; }
};

// Where the pages of a row are whose keys and values come through rings, for who fetches them: known once `there` is complete.
struct PageSource {
    // Of the row: u64, a page's address each.
    uint64_t table;
    BlockHeads heads;
    uint32_t position;
    uint64_t there;
};

}  // namespace
