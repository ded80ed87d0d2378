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

#endif
