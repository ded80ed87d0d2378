/* Loads, generations and anything else against each other: nobody disturbs anybody. */
#include "model.h"

#include <pthread.h>
#include <time.h>

#define THREADS 8

static const char *path;
static kigo_model *model;
static char serial[8192];
static size_t serial_len;
static int stop;
/* 1; more divides the work, for tools that slow a program down. */
static int less = 1;

static double now(void)
{
    struct timespec time;
    CHECK(clock_gettime(CLOCK_MONOTONIC, &time) == 0);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static size_t drain(kigo_inference *inference, char *all)
{
    char piece[4096];
    size_t len = 0;
    int32_t n;
    while ((n = kigo_next_text(inference, piece, sizeof piece, NULL)) > 0) {
        memcpy(all + len, piece, (size_t)n);
        len += (size_t)n;
    }
    CHECK(n == 0);
    CHECK(kigo_inference_free(inference) == KIGO_OK);
    return len;
}

static void generates_as_alone(const kigo_model *of)
{
    char all[8192];
    CHECK(drain(start(of, "Once upon a time", 40), all) == serial_len && memcmp(all, serial, serial_len) == 0);
}

static void run(int n, void *(*work)(void *))
{
    pthread_t threads[THREADS];
    int i;
    for (i = 0; i < n; i++)
        CHECK(pthread_create(&threads[i], NULL, work, (void *)(intptr_t)i) == 0);
    for (i = 0; i < n; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
}

/* X06: eight threads load one file, one of them to a device that is not there. */
static void *one_of_eight(void *index)
{
    kigo_model *own = NULL;
    kigo_options *options = cpu_options();
    if ((intptr_t)index == 3) {
        WORKS(kigo_options_set_str(options, "device", "cuda:999", &error));
        CHECK(kigo_model_load(path, options, &own, NULL) < 0 && own == NULL);
    } else {
        WORKS(kigo_model_load(path, options, &own, &error));
        generates_as_alone(own);
        CHECK(kigo_model_free(own) == KIGO_OK);
    }
    CHECK(kigo_options_free(options) == KIGO_OK);
    return NULL;
}

/* X07: loads and frees beside generations. */
static void *load_or_generate(void *index)
{
    const double end = now() + 1;
    do {
        if ((intptr_t)index % 2 == 0)
            CHECK(kigo_model_free(load(path)) == KIGO_OK);
        else
            generates_as_alone(model);
    } while (now() < end);
    return NULL;
}

/* X09: decodes until the long prompt is through, and counts. */
static void *decode_beside(void *counts)
{
    char piece[256];
    while (!__atomic_load_n(&stop, __ATOMIC_SEQ_CST)) {
        kigo_inference *inference = start(model, "Once upon a time", 100);
        while (!__atomic_load_n(&stop, __ATOMIC_SEQ_CST) && kigo_next_text(inference, piece, sizeof piece, NULL) > 0)
            ++*(long *)counts;
        CHECK(kigo_inference_free(inference) == KIGO_OK);
    }
    return NULL;
}

static void a_long_prompt_beside_decoders(void)
{
    enum { N = 6000, N_BATCH = 64 };
    static int32_t ids[N];
    static long counts[THREADS];
    pthread_t threads[THREADS];
    kigo_options *options = cpu_options();
    kigo_model *shorter = model;
    kigo_inference *inference = NULL;
    char piece[256];
    int32_t token;
    int i;
    WORKS(kigo_options_set_i64(options, "n_ctx", N + 10, &error));
    const int n = N / less;
    WORKS(kigo_options_set_i64(options, "n_batch", N_BATCH, &error));
    WORKS(kigo_model_load(path, options, &model, &error));
    for (i = 0; i < n; i++)
        ids[i] = 3 + i % 250;
    WORKS(kigo_inference_start_tokens(model, ids, (size_t)n, options, &inference, &error));
    for (i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, decode_beside, &counts[i]) == 0);
    CHECK(kigo_next_token(inference, &token, piece, sizeof piece) >= 0);
    __atomic_store_n(&stop, 1, __ATOMIC_SEQ_CST);
    for (i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    /* The prompt takes n / N_BATCH batches, and who waits is in one of the next two. */
    for (i = 0; i < THREADS; i++)
        CHECK(counts[i] >= n / N_BATCH / 4);
    CHECK(kigo_inference_free(inference) == KIGO_OK);
    CHECK(kigo_model_free(model) == KIGO_OK);
    CHECK(kigo_options_free(options) == KIGO_OK);
    model = shorter;
}

/* X10: anything, on handles that all threads share, for so many seconds: KIGO_SOAK_SECONDS, or 2. */
static kigo_inference *shared[16];
static double soak = 2;

static void *anything(void *index)
{
    unsigned random = 12345u + (unsigned)(intptr_t)index;
    const double end = now() + soak;
    char piece[64];
    do {
        kigo_inference **place, *old;
        int32_t n = 0;
        random = random * 1103515245u + 12345u;
        place = &shared[(random >> 8) % 16];
        old = __atomic_load_n(place, __ATOMIC_SEQ_CST);
        switch ((random >> 16) % 8) {
        case 0: {
            kigo_inference *fresh = start(model, "Once upon a time", 60);
            old = __atomic_exchange_n(place, fresh, __ATOMIC_SEQ_CST);
            n = kigo_inference_free(old);
            break;
        }
        case 1: n = kigo_inference_cancel(old); break;
        case 2: n = kigo_inference_free(old); break;
        case 3: n = kigo_inference_finish_reason(old); break;
        case 4: n = kigo_next_text(old, piece, 1, NULL); break;
        default: n = kigo_next_text(old, piece, sizeof piece, NULL); break;
        }
        CHECK(n >= 0 || n == KIGO_INVALID_HANDLE || n == KIGO_CANCELLED || n == KIGO_BUSY || n == KIGO_BUFFER_TOO_SMALL);
    } while (now() < end);
    return NULL;
}

int main(int argc, char **argv)
{
    const char *seconds = getenv("KIGO_SOAK_SECONDS");
    int64_t cache = -1;
    int i;
    less = argc > 2 ? 10 : 1;
    soak = seconds != NULL ? atof(seconds) : soak;
    path = argv[argc - 1];
    model = load(path);
    serial_len = drain(start(model, "Once upon a time", 40), serial);
    run(8, one_of_eight);
    run(4, load_or_generate);
    a_long_prompt_beside_decoders();
    run(8, anything);
    for (i = 0; i < 16; i++)
        kigo_inference_free(shared[i]);
    WORKS(kigo_model_clear_prompt_cache(model, &error));
    WORKS(kigo_model_get_i64(model, "cache_bytes", &cache, &error));
    CHECK(cache == 0);
    CHECK(kigo_model_free(model) == KIGO_OK);
    return 0;
}
