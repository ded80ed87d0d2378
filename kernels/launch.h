/* Parameters of the kernels: one struct for each kernel, passed by value, plus the records that kernels share.
 *
 * Plain C with fixed-size fields, naturally aligned and without implicit padding, so that the Rust mirrors in
 * src/backend/cuda/params.rs have the same bytes; a test ties the two. Device addresses are u64. */
#ifndef KIGO_LAUNCH_H
#define KIGO_LAUNCH_H

#include <stdint.h>

/* Positions in a page of the KV cache. */
#define KIGO_PAGE 64

/* A row of the batch: one token at one position of one sequence. */
typedef struct {
    uint32_t token;
    uint32_t position; /* 0-based */
    uint64_t pages;    /* u64 [ceil(n_ctx/64)]: device addresses of the pages of the sequence */
    uint32_t slot;     /* number of the sequence's sampler state */
    uint32_t pad;
} KigoRow;

/* Up to 64 rows of one sequence at consecutive positions, in ascending order: the unit of attn_prefill. */
typedef struct {
    uint32_t first_row; /* index into rows */
    uint32_t n_rows;    /* 1..64 */
} KigoTile;

/* attn_decode_<dp>, attn_prefill_<dp>: attention over the KV cache. dp: head_dim rounded up to 32, 64, 96, 128, 192 or
 * 256; a group is the n_head / n_head_kv heads that share a kv head, m_tiles = ceil(group / 16).
 *
 * attn_decode:  grid (n_head_kv * m_tiles, n, splits), 128 threads, no dynamic shared memory; rows of distinct sequences.
 *               The pages of a row are spread over `splits` blocks; results do not depend on it.
 * attn_prefill: grid (n_tiles, n_head), 128 threads, KIGO_ATTN_PREFILL_SHARED(dp) bytes of dynamic shared memory. */
typedef struct {
    uint64_t rows;     /* KigoRow [n] */
    uint64_t tiles;    /* KigoTile [n_tiles]; attn_prefill only */
    uint64_t q;        /* f16 [n][n_head][dp], times attention scale and log2(e), zero beyond head_dim; 16-byte aligned */
    uint64_t out;      /* f32 [n][n_head][head_dim] */
    uint64_t amax;     /* u32 [n]: raised to the bits of the largest |out| of the row */
    uint64_t counters; /* u32 [n][n_head_kv * m_tiles]: zero before and after; attn_decode only */
    uint32_t n_head;
    uint32_t n_head_kv;
    uint32_t head_dim; /* even */
    uint32_t layer;    /* 0-based */
    uint32_t n_layer;
    uint32_t splits;   /* >= 1; attn_decode only */
} KigoAttention;

#define KIGO_ATTN_PREFILL_SHARED(dp) ((dp) * ((dp) <= 128 ? 512 : 384))

#endif
