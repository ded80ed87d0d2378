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
    /* The sequence's page tables, one for each group of layers: u64 per page, the address of the page; then that of its areas. */
    uint64_t pages;
    /* The sequence's sampler state. */
    uint32_t slot;
    uint32_t pad;
} KigoRow;

/* Types of matrices that `step` multiplies with. */
#define KIGO_TYPE_F16 0
#define KIGO_TYPE_Q4_0 1
#define KIGO_TYPE_Q4_1 2
#define KIGO_TYPE_Q5_0 3
#define KIGO_TYPE_Q5_1 4
#define KIGO_TYPE_Q8_0 5
#define KIGO_TYPE_Q2_K 6
#define KIGO_TYPE_Q3_K 7
#define KIGO_TYPE_Q4_K 8
#define KIGO_TYPE_Q5_K 9
#define KIGO_TYPE_Q6_K 10
#define KIGO_TYPE_IQ4_NL 11
#define KIGO_TYPE_IQ4_XS 12
#define KIGO_TYPE_MXFP4 13
#define KIGO_TYPE_BF16 14
#define KIGO_TYPE_F32 15

/* Most slots of a warp's ring of records. */
#define KIGO_MAX_SLOTS 16

/* Bytes of neighbouring records that are copied together at most, where a record is not larger. */
#define KIGO_PIECE 3456

/* Where the activations of a product come from. */
typedef struct {
    /* f32 [rows][stride]; columns k..stride are zero. */
    uint64_t x;
    /* f32 [stride]: weight of the norm, and its bias or 0. */
    uint64_t norm_weight;
    uint64_t norm_bias;
    /* u32 [n]: bits of the largest magnitude in each row of x; read where there is no norm; of handed
     * operands (KigoMatmul) with one, of x times its weight. */
    uint64_t magnitudes;
    /* u32 [n]: which row of x each row of the product takes, KIGO_NO_ROW for none; 0: rows in order. */
    uint64_t select;
    /* Rows, columns, columns rounded up to 64. */
    uint32_t n;
    uint32_t k;
    uint32_t stride;
    /* KIGO_NORM_... */
    uint32_t norm;
    float eps;
    uint32_t pad;
} KigoInput;

#define KIGO_NORM_NONE 0
#define KIGO_NORM_RMS 1
#define KIGO_NORM_LAYER 2

/* Numbers that a block of matmul_prefill_wide has in memory for a while: those of a part of its results. */
#define KIGO_LATE 8192

/* In which order prep writes: */
#define KIGO_ORDER_FRAGMENTS 0
#define KIGO_ORDER_SWIZZLED 1

/* prep: activations of many rows as operands; see kernels/activations.cuh. */
typedef struct {
    KigoInput input;
    /* [ceil(n / 8)][stride / 64] records. */
    uint64_t records;
    /* f32 [ceil(n / 8) * 8]: what a row's products are multiplied with. */
    uint64_t factors;
    /* Whether the records are of pairs of bfloat16 rather than of halves. */
    uint32_t bf16;
    /* KIGO_ORDER_... */
    uint32_t order;
    /* Whether the records are those of rows as they are, in KIGO_ORDER_SWIZZLED, so that only those are written that are multiplied
     * with something. There is no norm then, and a block has 8 rows. */
    uint32_t is_rest;
    uint32_t pad;
} KigoPrep;

/* Heads of q, k and v, and where they go. */
typedef struct {
    /* KigoRow [n] */
    uint64_t rows;
    /* halves [n][n_head][dp] */
    uint64_t q;
    /* float2 [n][turns_stride], of which n_rot / 2 are the layer's: cosine and sine of every pair; 0: nothing turns. */
    uint64_t turns;
    uint32_t turns_stride;
    uint32_t n_head;
    uint32_t n_head_kv;
    uint32_t head_dim;
    /* head_dim as it stands in q and the cache. */
    uint32_t dp;
    /* Elements of a head that turn in some layer: their pairs stand 8 rows apart. */
    uint32_t n_rot;
    /* Whether pairs are (i, i + n_rot / 2) rather than (2 i, 2 i + 1). */
    uint32_t halves;
    /* First entry of the layer's group in a sequence's page tables; the layer's number in the group. */
    uint32_t table;
    uint32_t layer;
    /* Factor on q. */
    float q_scale;
} KigoQkv;

/* What becomes of a product: out[row] = softcap tanh(scale (product + bias) / softcap), or where softcap is 0 without it */
#define KIGO_STORE 0
/* out[row] += scale (product + bias) */
#define KIGO_ADD 1
/* Tiles 2 i are of the gate, 2 i + 1 of up, as are bias[0] and bias[1]: out[row] = gated(gate, up) */
#define KIGO_GATED 2
/* out[row] = gated(out[row], product + bias) */
#define KIGO_GATE 3
/* Tiles of q, then k, then v: bias and rope; q to its buffer, k and v to the cache. */
#define KIGO_QKV 4
/* out[row] = gelu(product + bias) */
#define KIGO_UNGATED 5

/* silu(gate) * up, gelu(gate) * up, and the form of gpt-oss. */
#define KIGO_SILU 0
#define KIGO_GELU 1
#define KIGO_SILU_CLAMPED 2

/* matmul_one, matmul_few8, matmul_few16, matmul_few32, matmul_grouped, matmul_many, matmul_many_narrow, and on sm_90a matmul_prefill,
 * matmul_prefill_wide and matmul_prefill_split, which want KIGO_ORDER_SWIZZLED, 512 threads (matmul_prefill of types of 16 bits 640,
 * matmul_prefill_split 384, which add_slices of slices.cu has to follow) and clusters of 2 blocks: out [n][n_rows] = x [n][k] times the
 * transposed matrix [n_rows][k]. With more than 32 rows, matmul_few32_F32 has 32 for each block in y. With experts, each row of the
 * product has the matrix of one of them; tiles (n_tiles each) and biases of all stand one after the other. Then row i of matmul_one,
 * which has a grid of n rows in y, and of matmul_grouped takes row i / share of x; those of many have rows that stand by expert
 * (KigoGroup), and matmul_many has a grid of all experts in z. */
typedef struct {
    /* Read by matmul_one, and where is_handed. */
    KigoInput input;
    /* Read by the others, written by prep. */
    uint64_t records;
    uint64_t factors;
    /* The matrix: tiles of records. */
    uint64_t weights;
    /* f32 [n][out_stride]. */
    uint64_t out;
    /* f32 [n_rows], or 0; for KIGO_QKV one for each of q, k and v. */
    uint64_t bias[3];
    /* u32 [n]: raised to the largest magnitude of out; 0: not wanted. */
    uint64_t magnitudes;
    /* matmul_prefill...: where out goes as operands too, halves in KIGO_ORDER_SWIZZLED, of n_rows that are a multiple of 64; matmul_few8:
     * the same in KIGO_ORDER_FRAGMENTS; 0: not wanted. */
    uint64_t operands;
    /* matmul_few8, KIGO_ADD with operands: f32 [n_rows], what those are multiplied with, as are magnitudes then, since a norm follows;
     * and f32 [n][n_rows / 16], the squares of out's tiles (Squares). 0: no norm follows. */
    uint64_t out_norm;
    uint64_t out_squares;
    /* matmul_few8: whether records are such operands, so that the product has to find its factors itself, and to multiply rows that
     * are not well within halves; the squares of input.x where that is normed. */
    uint64_t squares;
    uint32_t is_handed;
    uint32_t pad;
    /* matmul_prefill_wide: room for f32 [blocks][KIGO_LATE]; matmul_prefill_split, add_slices: for the sums of all slices, see
     * slice_sums in prefill_finish.cuh. */
    uint64_t late;
    uint32_t n;
    uint32_t n_rows;
    uint32_t n_tiles;
    /* Records in a tile. */
    uint32_t n_records;
    uint32_t out_stride;
    /* KIGO_STORE ... and KIGO_SILU ... */
    uint32_t kind;
    uint32_t activation;
    /* KIGO_QKV: place of tile 0 among all tiles of q, k and v. */
    uint32_t first_tile;
    /* KIGO_QKV */
    KigoQkv qkv;
    float scale;
    float softcap;
    /* matmul_one, matmul_few, matmul_grouped: slots of a warp's ring, from 2 to KIGO_MAX_SLOTS. matmul_prefill_split: slices of a
     * block, 1 or 2. */
    uint32_t n_slots;
    /* matmul_few16, matmul_few32: columns whose sums are added at a time, 8, 16 or 32. */
    uint32_t sum_columns;
    /* matmul_prefill...: pieces with the most columns, parts of 64 columns of other pieces, from 1; see prefill.cuh. */
    uint32_t n_wide;
    uint32_t narrow_parts;
    /* matmul_one, matmul_grouped (up to kMostGrouped rows): u32 [n], the expert of each row; 0: no experts. */
    uint64_t experts;
    /* matmul_many, matmul_prefill...: u32 [experts + 1], where the rows of each expert start, a multiple of 8; 0: no experts. */
    uint64_t starts;
    uint32_t share;
    /* Power of two: what a weight is times what stands for it. */
    float weight_scale;
    /* matmul_prefill...: how many experts there are, 0 for none. */
    uint32_t n_expert;
    /* matmul_one with experts: 1 where the kernel ahead chooses them, and what is ahead of that gives x; 0 where they were chosen
     * before the kernel ahead. */
    uint32_t is_told;
} KigoMatmul;

/* heads: bias, norm, rope and cache for q, k and v that a product has stored, a block per row and head of them in y (or, with
 * `whole`, per row and q, k and v). Blocks have 32 threads up to 256. */
typedef struct {
    KigoQkv qkv;
    /* f32 [n][stride]: tiles of q, then k, then v, as KIGO_QKV takes them; zero where a head has no element. */
    uint64_t x;
    /* f32 [n_head * head_dim] and twice [n_head_kv * head_dim], or 0. */
    uint64_t bias[3];
    /* Of q and of k: f32 [head_dim] for each head, or with `whole` for all heads together. */
    uint64_t norm_weight[2];
    uint32_t stride;
    uint32_t whole;
    float eps;
    uint32_t pad;
} KigoHeads;

/* add_normed: x += scale * norm(delta), a block per row. */
typedef struct {
    /* f32 [n][stride] */
    uint64_t x;
    uint64_t delta;
    /* f32 [k] */
    uint64_t norm_weight;
    /* u32 [n]: raised to the largest magnitude of x; 0: not wanted. */
    uint64_t magnitudes;
    uint32_t k;
    uint32_t stride;
    /* KIGO_NORM_RMS or KIGO_NORM_LAYER, without a bias. */
    uint32_t norm;
    float eps;
    float scale;
    uint32_t pad;
} KigoAddNormed;

/* Experts that a row uses at most. */
#define KIGO_MAX_EXPERTS_USED 32
/* A row of a product that no row of the batch stands for. */
#define KIGO_NO_ROW 0xFFFFFFFFu

/* route: the experts of every row, in the order of descending logit, equal ones by ascending number. A warp per row.
 * Slot i of row r is number r * n_used + i. */
typedef struct {
    /* f32 [n][n_expert] */
    uint64_t logits;
    /* u32 [n * n_used]: the expert of each slot. */
    uint64_t experts;
    /* f32 [n * n_used]: its weight, the softmax of the chosen logits. */
    uint64_t weights;
    /* u32 [n * n_used]: which row of the products is the slot's, here the slot itself. */
    uint64_t places;
    /* u32 [n_products]: set to zero, the magnitudes of the rows of the products. */
    uint64_t magnitudes;
    uint32_t n;
    uint32_t n_expert;
    uint32_t n_used;
    uint32_t n_products;
} KigoRoute;

/* Experts that route_few can choose from. */
#define KIGO_ROUTE_MOST_EXPERTS 1024

/* route_few: the product with an f32 matrix and `route` in one, grid (8 n_tiles, n); dynamic shared memory: 4352 bytes for each
 * record of a slice of a tile, and 4 * stride. */
typedef struct {
    KigoInput input;
    /* The router: tiles of records, of n_expert rows. */
    uint64_t weights;
    /* f32 [n_expert], or 0. */
    uint64_t bias;
    /* f32 [n][8][16 n_tiles]: what passes from block to block. */
    uint64_t sums;
    /* u32 [n], zero before and after. */
    uint64_t counters;
    KigoRoute route;
    uint32_t n_tiles;
    uint32_t n_records;
    /* KigoMatmul::weight_scale */
    float weight_scale;
    uint32_t pad;
} KigoRouteFew;

/* group: puts the slots of each expert side by side, from a multiple of 8 on. One block. */
typedef struct {
    /* u32 [n_slots] */
    uint64_t experts;
    /* u32 [n_slots]: the row of the products that is the slot's. */
    uint64_t places;
    /* u32 [n_products]: the row of the batch that each row of the products takes, or KIGO_NO_ROW. */
    uint64_t rows;
    /* u32 [n_expert + 1] */
    uint64_t starts;
    uint32_t n_slots;
    uint32_t n_used;
    uint32_t n_expert;
    /* At least n_slots + 7 n_expert. */
    uint32_t n_products;
} KigoGroup;

/* mix_experts: out[row] += the sum over slots, in their order, of weight times the row of the slot's product; or, where
 * `store` is not 0, out[row] = the sum. A block per 256 columns and row. */
typedef struct {
    /* f32 [n_products][in_stride] */
    uint64_t products;
    uint64_t weights;
    uint64_t places;
    /* f32 [n][out_stride] */
    uint64_t out;
    /* Factor on the sum. */
    float scale;
    uint32_t store;
    uint32_t n_used;
    uint32_t n_columns;
    uint32_t in_stride;
    uint32_t out_stride;
} KigoMixExperts;

/* Rows of one sequence at consecutive positions, in ascending order: what a block of attn_prefill works on, and one of attn_flash
 * at a time. */
typedef struct {
    uint32_t first_row;
    /* 1..64 */
    uint32_t n_rows;
} KigoTile;

/* Less than 2^31 by so much that it can be taken from a place in any page. */
#define KIGO_ALL_BEFORE 0x7FFF0000u

/* Dynamic shared memory of attn_flash. */
#define KIGO_FLASH_SHARED 232448

/* attn_decode_<dp>, attn_prefill_<dp>: attention over the cache. dp is head_dim rounded up to 32, 64, 96, 128, 192 or 256;
 * group = n_head / n_head_kv heads share a kv head, m_tiles = ceil(group / 16). Blocks have 128 threads.
 * attn_decode: rows of distinct sequences; grid (n_head_kv * m_tiles, n, splits).
 * attn_prefill: grid (n_tiles, n_head), dynamic shared memory: dp * 512 bytes up to dp 128, then dp * 384.
 * attn_flash_<dp>, on sm_90a and for dp 64, 96 and 128: the same as attn_prefill; any number of blocks, which have 384 threads. */
typedef struct {
    /* KigoRow [n] */
    uint64_t rows;
    /* attn_prefill, attn_flash: KigoTile [n_tiles] */
    uint64_t tiles;
    /* halves [n][n_head][dp]: q times the scale of attention and log2(e), zero from head_dim on; aligned to 16 bytes. */
    uint64_t q;
    /* f32 [n][out_stride]: [n_head][head_dim] of each row. */
    uint64_t out;
    /* u32 [n]: raised to the largest magnitude of out. */
    uint64_t magnitudes;
    /* attn_decode: u32 [n][n_head_kv * m_tiles], zero before and after. */
    uint64_t counters;
    /* f32 [n_head]: a score of each head that stands for no key; 0: none. */
    uint64_t sinks;
    /* attn_flash with heads of 64 or 128 elements, attn_prefill with 64: where out goes as operands too, halves in KIGO_ORDER_SWIZZLED;
     * attn_decode: the same in KIGO_ORDER_FRAGMENTS, of n_head * head_dim that is a multiple of 64; 0: not wanted. */
    uint64_t operands;
    uint32_t n_head;
    uint32_t n_head_kv;
    /* Even. */
    uint32_t head_dim;
    /* First entry of the layer's group in a sequence's page tables; the layer's number in the group. */
    uint32_t table;
    uint32_t layer;
    /* attn_decode: first entry of a sequence's areas in its page tables: u64 per page, the address of f32 [n_head][dp + 2], which
     * is the sequence's own where pages are shared. */
    uint32_t areas;
    /* Positions before its own that a row sees, at most KIGO_ALL_BEFORE, which is all. */
    uint32_t before;
    /* c log2(e) of scores that become c tanh(score / c), and 2 / c; 0: scores stay as they are. */
    float softcap;
    float softcap_rate;
    /* attn_decode: over how many blocks the pages of a row are spread, from 1; results do not depend on it. */
    uint32_t splits;
    uint32_t out_stride;
    /* attn_flash */
    uint32_t n_tiles;
    /* Rows. */
    uint32_t n;
    uint32_t pad;
} KigoAttention;

/* Of a turn of attn_flash_parts and attn_join: the first takes up nothing, the last ends in results. */
#define KIGO_FIRST_TURN 1
#define KIGO_LAST_TURN 2

/* attn_flash_parts_<dp>, then attn_join_<dp>: what attn_flash does, of few tiles that see many pages. Blocks of attn_flash_parts attend to
 * some chunks of a tile and leave what each chunk gives; attn_join folds that, a warp for each head of a row: grid
 * ceil(n * n_head / 4), blocks of 128 threads. They do so in turns, each for some of the chunks, in ascending order. */
typedef struct {
    KigoAttention attention;
    /* What there is of all turns so far, then of each of n_chunks chunks: f32 [n_head][n][dp], mixes, and f32 [n_head][n][2], the largest
     * score and the sum of weights. */
    uint64_t partials;
    /* The chunks of this turn: pages 8 first_chunk up to 8 (first_chunk + n_chunks). */
    uint32_t first_chunk;
    uint32_t n_chunks;
    /* How many of them a block takes at a time. */
    uint32_t of_part;
    uint32_t turn;
} KigoAttentionParts;

/* What a stage of `step` does: attention; or a product, whose results are */
#define KIGO_STAGE_ATTENTION 0
/* words for all blocks, as they are; */
#define KIGO_STAGE_VALUES 1
/* words: gated(gate, up), gelu; */
#define KIGO_STAGE_GATED 2
#define KIGO_STAGE_UNGATED 3
/* softcap tanh(scale product / softcap), logits; */
#define KIGO_STAGE_LOGITS 4
/* the slices' sums of the router, an f32 matrix: words [16 n_tiles][8]; */
#define KIGO_STAGE_ROUTER 5
/* words: scale times the sum over the experts that are used, in their order, of weight times product. */
#define KIGO_STAGE_MIXED 6

/* What a stage multiplies: the same as the stage before; the residual stream, to which the words are added; the words; the same as
 * the router, whose sums the words are and choose the experts; the words of the experts that are used, [n_used][stride]. */
#define KIGO_TAKE_SAME 0
#define KIGO_TAKE_RESIDUAL 1
#define KIGO_TAKE_WORDS 2
#define KIGO_TAKE_ROUTE 3
#define KIGO_TAKE_EXPERTS 4

#define KIGO_NO_ATTENTION 0xFFFFFFFFu

/* Pages of a row that a block of `step` attends to at most, and columns of the vectors that it takes as they are, without the residual stream. */
#define KIGO_STEP_PAGES 64
#define KIGO_STEP_MOST_COLUMNS 16384
/* Experts that `step` can choose from. */
#define KIGO_STEP_EXPERTS 256
/* Vectors of experts that are handed on one by one, at most: who takes them adds them up. */
#define KIGO_STEP_APART 4

/* One stage of `step`. Words are what blocks hand to each other, f32 or, where it is said, two halves, or a NaN that says that they are not
 * there yet; addresses are of the words of the first of two sets. */
typedef struct {
    /* Product: tiles of records. */
    uint64_t weights;
    /* Words [k]; of KIGO_TAKE_RESIDUAL 0 where there are none, and where n_used is more than 1 those of experts, [n_used][stride], up
     * to 4 k columns. */
    uint64_t input;
    /* f32 [k]: what the words are normed with before they are added, or 0. */
    uint64_t post_norm;
    /* f32 [stride], or 0. */
    uint64_t norm_weight;
    /* Words [n_rows]; where there are items of each expert [n_used][stride of n_rows]; not of logits. */
    uint64_t out;
    /* The input, of KIGO_TAKE_WORDS, and what comes out once more, rounded: words of two halves, those of neighbouring columns, [k / 2] and
     * [n_rows / 2], or 0. k is a multiple of 64. */
    uint64_t input_halves;
    uint64_t out_halves;
    /* f32 [n_rows], or 0: of the product, or of gate and up; those of experts one after the other. */
    uint64_t bias[2];
    /* KIGO_TAKE_ROUTE: f32 [n_expert], the router's, or 0. */
    uint64_t route_bias;
    uint32_t kind;
    uint32_t take;
    /* KIGO_TYPE_... */
    uint32_t quant;
    /* KigoMatmul::weight_scale */
    float weight_scale;
    uint32_t n_rows;
    /* Records in a tile, their bytes. */
    uint32_t n_records;
    uint32_t record_bytes;
    /* Tiles that a block multiplies at a time, 1 or 2, of gate and up one of each; how many such items there are. */
    uint32_t per_item;
    uint32_t n_items;
    /* The block that takes the first. */
    uint32_t first_block;
    uint32_t k;
    uint32_t stride;
    /* KIGO_SILU ... */
    uint32_t activation;
    /* Of the residual stream. */
    float residual_scale;
    float eps;
    float scale;
    float softcap;
    /* The attention whose description comes next, and for which the caches are brought near; KIGO_NO_ATTENTION: none does. Of
     * KIGO_STAGE_ATTENTION its own. */
    uint32_t attention;
    /* Which of the mixtures of experts it belongs to, from 1 on; 0: none. */
    uint32_t mixture;
    uint32_t n_expert;
    uint32_t n_used;
    /* Tiles of an expert; items of an expert, of KIGO_STAGE_MIXED, whose items are of all of them, 0. */
    uint32_t n_tiles;
    uint32_t per_expert;
    /* Slices that have records; as often as they fit into the warps, twice at most, different ones of these take different experts. 8
     * where warps have no choice. */
    uint32_t n_slices;
    /* How often the warps hand on sums for an item. */
    uint32_t n_turns;
    uint32_t out_stride;
} KigoStage;

/* The attention of a layer in `step`. */
typedef struct {
    KigoAttention attention;
    KigoHeads heads;
    /* Words of q, k and v, tile by tile; words [n_head * head_dim], and the same once more as KigoStage has it. */
    uint64_t input;
    uint64_t out;
    uint64_t out_halves;
} KigoStageAttention;

/* Slots of a warp's ring in `step` at most. */
#define KIGO_STEP_SLOTS 12

/* Threads of a block of `step`, and most of the shared memory that it has besides; that of `step_rows`, and rows that this takes at most. */
#define KIGO_STEP_THREADS 384
#define KIGO_STEP_STATIC 9216
#define KIGO_STEP_ROWS_STATIC 6144
#define KIGO_STEP_ROWS 8
/* Pages that a block of `step` attends to at a time, and times whose mixes it has room for. */
#define KIGO_STEP_PAGES_AT_ONCE 4
#define KIGO_STEP_MIX_TURNS 2
/* Most bytes of what attention in `step` has besides 36 for each element of a head, and the mixes of pages; in `step_pages`. */
#define KIGO_STEP_ATTENTION 10112
#define KIGO_STEP_PAGES_ATTENTION 896
/* Bytes of the pieces of pages that `step_pages` takes through its rings, and pages whose mixes it has room for. */
#define KIGO_STEP_PAGE_PIECE 2048
#define KIGO_STEP_PAGES_OF_ROUND 8
/* Elements by which a head's row of these is longer than the head. */
#define KIGO_STEP_PAGES_PAD 8

/* step: all stages between embed and sampling for a single row, in one kernel of as many blocks as run at the same time; step_pages: for
 * long contexts, whose pages come through the rings; step_rows: for 2 to KIGO_STEP_ROWS rows of different sequences. */
typedef struct {
    /* KigoStage [n_stages] */
    uint64_t stages;
    /* KigoStageAttention [layers] */
    uint64_t attentions;
    /* u32 [n]: how many steps had such a row, this one among them: embed has raised it. */
    uint64_t number;
    /* KigoRow [n] */
    uint64_t rows;
    /* f32 [n][stride] */
    uint64_t x;
    /* f32 [n][rows of the head] */
    uint64_t logits;
    /* What attention hands on of each chunk of 512 positions, [chunks][n_head][dp + 2] of 64 bits. */
    uint64_t partials;
    uint32_t n_stages;
    uint32_t stride;
    /* Slots of a warp's ring, their bytes. */
    uint32_t n_slots;
    uint32_t slot_bytes;
    /* Pieces of a warp that are under way at most, and, without mixtures, that are sent for when its ring is full, with so many clocks between. */
    uint32_t under_way;
    uint32_t most_ahead;
    uint32_t pace;
    /* Nanoseconds up to which every warp sleeps in every stage, each time others, so that tests see all orders; 0: not. */
    uint32_t delay;
    /* Bytes from words to those of the other set. */
    uint32_t set_bytes;
    /* Where, from the operands on, what the router needs is: see kernels/step_experts.cuh. */
    uint32_t router_at;
    /* Of step_rows: rows; bytes from what attention hands on of a row to that of the next; bytes from a row's operands in shared memory
     * to the next's, an odd multiple of 64; from the operands to the sums that are handed to who finishes. */
    uint32_t n_rows;
    uint32_t partials_stride;
    uint32_t operands_stride;
    uint32_t sums_at;
} KigoStep;

/* embed: rows of the token table, and what the step computes from positions alone; grid (n, blocks of a row), one block where
 * there are x_magnitudes. */
typedef struct {
    uint64_t rows;
    /* The table: tiles of records. */
    uint64_t weights;
    /* f32 [n][stride]: row of the table * scale + row of `positions`. */
    uint64_t x;
    /* f32 [positions][k], or 0. */
    uint64_t positions;
    /* f64 [n_turns][2]: turn of every pair of every kind of rope per position, in half turns, and the factor on its
     * cosine and sine; float2 [n][n_turns] those. */
    uint64_t angles;
    uint64_t turns;
    /* u32 [n_magnitudes][magnitudes_stride]: set to zero for the batch's rows. */
    uint64_t magnitudes;
    /* u32 [n], among those: raised to the largest magnitude of x; 0: not wanted. */
    uint64_t x_magnitudes;
    /* u32 [n]: what is raised by one, the rows' numbers of steps; 0: nothing. */
    uint64_t number;
    uint32_t n_magnitudes;
    uint32_t magnitudes_stride;
    uint32_t n_turns;
    uint32_t n_records;
    uint32_t k;
    uint32_t stride;
    float scale;
    uint32_t pad;
} KigoEmbed;

/* Which row of the file stands where in a matrix: as in the file; */
#define KIGO_ROWS_PLAIN 0
/* heads, or experts, start a tile of their own; */
#define KIGO_ROWS_HEADS 1
/* the same, and rope pairs stand 8 rows apart. */
#define KIGO_ROWS_ROPE 2

/* repack: some rows of a matrix, as blocks of the file, into records. */
typedef struct {
    /* Rows first_row .. first_row + n_source_rows of the matrix. */
    uint64_t source;
    uint64_t row_bytes;
    uint64_t out;
    uint32_t first_row;
    uint32_t n_source_rows;
    uint32_t k;
    uint32_t n_records;
    /* The tiles to write, counted as if the matrix stood alone; tile i is written as tile i * tile_step + tile_offset. */
    uint32_t first_tile;
    uint32_t n_tiles;
    uint32_t tile_step;
    uint32_t tile_offset;
    uint32_t order;
    uint32_t head_dim;
    uint32_t n_rot;
    uint32_t halves;
} KigoRepack;

/* scales_top, scales_shift: the scales of a matrix, any grid. */
typedef struct {
    /* Records, of all tiles. */
    uint64_t weights;
    uint64_t n_records;
    /* f32, raised to the largest magnitude of the halves that scales come from. */
    uint64_t top;
    /* These halves are multiplied with 2^shift. */
    int32_t shift;
    uint32_t pad;
} KigoScales;

/* read_memory: any grid of any blocks. */
typedef struct {
    /* [n] of 16 bytes. */
    uint64_t from;
    uint64_t n;
    /* u32: exclusive or of all words, combined with what is there. */
    uint64_t sink;
} KigoRead;

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
    /* 1: sample_weigh and sample_gather finish the row; 0: sample_scan does. */
    uint32_t weigh;
} KigoSampler;

/* What came of sampling: serial << 32 | token, or serial << 32 | KIGO_SAMPLE_FAILED | index of the first logit that is not
 * finite, and then serial << 32 | its bits. Each is one word, so that it is seen whole, and both are seen in any order. */
typedef struct {
    uint64_t outcome;
    uint64_t found;
} KigoSampled;

/* What sample_scan notes of a chunk: the first candidate; the last one's rank; which ids are in the window, bit i % 32 of
 * word i / 32. */
typedef struct {
    uint64_t best;
    uint32_t worst;
    uint32_t pad;
    uint32_t window[KIGO_SAMPLE_CHUNK / 32];
} KigoSampleChunk;

/* Workspace of a row, followed by its chunks. Zero before the first use; counters, sums, `complement` and `n_keys` are left zero. */
typedef struct {
    uint64_t best;
    uint32_t worst;
    /* Blocks that are done, of each kernel. */
    uint32_t scanned;
    uint32_t weighed;
    uint32_t gathered;
    /* Of the best candidate of a greedy row. */
    uint64_t complement;
    /* Of the candidates in each bin, or up to each when all are weighed: their number, their weights for top_p, their weights for
     * the draw. */
    uint64_t sums[3][KIGO_SAMPLE_BINS];
    /* In which bins something may end, bit i % 32 of word i / 32; the candidates in these: how many, and so many of them. */
    uint32_t marks[KIGO_SAMPLE_BINS / 32];
    uint32_t n_keys;
    /* Each chunk is a sector of 32 bytes. */
    uint32_t pad[7];
    uint64_t keys[KIGO_SAMPLE_SORTED];
} KigoSampleWork;

/* sample_weigh, sample_gather: grid (ceil(n_vocab / KIGO_SAMPLE_SLICE), n); sample_scan: the same, or fewer blocks for each row. */
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
