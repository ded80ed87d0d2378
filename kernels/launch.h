/* Parameters of the kernels: one struct per kernel, by value. C compatible, without implicit padding, so that a test can hold
 * them against their Rust mirrors (src/backend/cuda/params.rs). Addresses are of device memory unless they say otherwise. */
#ifndef KIGO_LAUNCH_H
#define KIGO_LAUNCH_H

#include <stdint.h>

/* Positions in a page of the KV cache. */
#define KIGO_PAGE 64

/* One token of a batch. */
typedef struct {
    uint32_t token;
    uint32_t position;
    /* The sequence's page table: u64 per page, the address of the page. */
    uint64_t pages;
    /* The sequence's sampler state. */
    uint32_t slot;
    uint32_t pad;
} KigoRow;

/* The slot of a row that is not sampled. */
#define KIGO_NO_SLOT 0xFFFFFFFFu
/* Consecutive logits whose best is noted, logits of a block, ranges of logits whose weights are summed. */
#define KIGO_SAMPLE_CHUNK 128
#define KIGO_SAMPLE_SLICE 2048
#define KIGO_SAMPLE_BINS 1024
/* Candidates that a block sorts. */
#define KIGO_SAMPLE_SORTED 2048
/* Outcomes of a slot that are kept. */
#define KIGO_SAMPLE_OUTCOMES 64
/* Bit of an outcome: a logit was not finite. */
#define KIGO_SAMPLE_FAILED 0x80000000u

/* How a sequence's tokens are chosen, and where it is. */
typedef struct {
    uint64_t seed;
    uint64_t drawn;
    /* u32[window_len], the latest tokens: token i at i % window_len. 0 when there is no penalty. */
    uint64_t window;
    /* -infinity keeps all. */
    double ln_min_p;
    float temperature;
    float top_p;
    float repeat_penalty;
    uint32_t top_k;
    uint32_t window_len;
    /* Tokens of the sequence, the prompt's included. */
    uint32_t n_tokens;
    /* Number of the latest outcome. */
    uint32_t serial;
    /* 1: sample_weigh finishes the row; 0: sample_scan does. */
    uint32_t weigh;
} KigoSampler;

/* What came of sampling: serial << 32 | token, or serial << 32 | KIGO_SAMPLE_FAILED | index of the first logit that is not
 * finite, whose bits are then in `found`. One word, so that it is seen whole. */
typedef struct {
    uint64_t outcome;
    uint32_t found;
    uint32_t pad;
} KigoSampled;

/* What sample_scan notes of a chunk: the first candidate; the last one's rank; which ids are in the window, bit i % 32 of
 * word i / 32. */
typedef struct {
    uint64_t best;
    uint32_t worst;
    uint32_t pad;
    uint32_t window[KIGO_SAMPLE_CHUNK / 32];
} KigoSampleChunk;

/* Workspace of a row, followed by its chunks. Zero before the first use; the counters and sums are left zero. */
typedef struct {
    uint64_t best;
    uint32_t worst;
    /* Blocks that are done, of each kernel. */
    uint32_t scanned;
    uint32_t weighed;
    uint32_t pad[3];
    /* Of the candidates in each bin: their number, their weights for top_p, their weights for the draw. */
    uint64_t sums[3][KIGO_SAMPLE_BINS];
} KigoSampleWork;

/* sample_scan, sample_weigh: grid (ceil(n_vocab / KIGO_SAMPLE_SLICE), n). */
typedef struct {
    /* f32 [n][n_vocab] */
    uint64_t logits;
    /* u32 [n]: the row of each; 0: row i for logits i. */
    uint64_t row_of;
    /* KigoRow[] */
    uint64_t rows;
    /* KigoSampler[], by slot */
    uint64_t samplers;
    /* KigoSampled[][KIGO_SAMPLE_OUTCOMES], by slot and serial: host memory */
    uint64_t outcomes;
    /* n times work_bytes: KigoSampleWork, KigoSampleChunk[ceil(n_vocab / KIGO_SAMPLE_CHUNK)] */
    uint64_t work;
    uint64_t work_bytes;
    uint32_t n_vocab;
    uint32_t pad;
} KigoSample;

#endif
