/* Many threads: own inferences, one inference, cancelling and freeing under a running call. */
#include "model.h"

#include <pthread.h>
#include <time.h>

#define THREADS 8
#define MANY 64

static kigo_model *model;
static kigo_inference *shared;
static char serial[8192];
static size_t serial_len;
/* 1; more divides the work, for tools that slow a program down. */
static int less = 1;

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
    return len;
}

static void *own_inference(void *unused)
{
    char all[8192];
    int i;
    for (i = 0; i < 2 / less + 1; i++) {
        kigo_inference *inference = start(model, "Once upon a time", 40);
        CHECK(drain(inference, all) == serial_len && memcmp(all, serial, serial_len) == 0);
        CHECK(kigo_inference_free(inference) == KIGO_OK);
    }
    return unused;
}

/* Takes what it can from the inference that all threads share; returns how many bytes it got. */
static void *one_inference(void *unused)
{
    char piece[4096];
    size_t *len = calloc(1, sizeof *len);
    (void)unused;
    CHECK(len != NULL);
    for (;;) {
        int32_t n = kigo_next_text(shared, piece, sizeof piece, NULL);
        CHECK(n >= 0 || n == KIGO_BUSY);
        if (n == 0)
            return len;
        if (n > 0)
            *len += (size_t)n;
        CHECK(kigo_inference_finish_reason(shared) >= 0);
    }
}

/* Generates until the inference is cancelled or freed by another thread. */
static void *until_ended(void *inference)
{
    char piece[4096];
    int32_t n;
    do
        n = kigo_next_text(inference, piece, sizeof piece, NULL);
    while (n > 0);
    CHECK(n == 0 || n == KIGO_CANCELLED || n == KIGO_INVALID_HANDLE);
    return NULL;
}

static void wait_a_moment(int i)
{
    struct timespec moment = {0, 0};
    moment.tv_nsec = (long)(i % 50) * 20000;
    nanosleep(&moment, NULL);
}

static void all(int n, void *(*work)(void *), void **results)
{
    pthread_t threads[MANY];
    int i;
    for (i = 0; i < n; i++)
        CHECK(pthread_create(&threads[i], NULL, work, NULL) == 0);
    for (i = 0; i < n; i++)
        CHECK(pthread_join(threads[i], &results[i]) == 0);
}

static void cancel_and_free_under_a_call(void)
{
    char piece[64];
    pthread_t thread;
    int i;
    for (i = 0; i < 200 / less; i++) {
        kigo_inference *inference = start(model, "Once upon a time", 100);
        CHECK(pthread_create(&thread, NULL, until_ended, inference) == 0);
        wait_a_moment(i);
        if (i % 2 == 0) {
            CHECK(kigo_inference_cancel(inference) == KIGO_OK);
            CHECK(kigo_inference_cancel(inference) == KIGO_OK);
            CHECK(pthread_join(thread, NULL) == 0);
            CHECK(kigo_inference_free(inference) == KIGO_OK);
        } else {
            CHECK(kigo_inference_free(inference) == KIGO_OK);
            CHECK(kigo_inference_cancel(inference) == KIGO_INVALID_HANDLE);
            CHECK(pthread_join(thread, NULL) == 0);
        }
    }
    /* Cancelled before the first call. */
    shared = start(model, "Once upon a time", 100);
    CHECK(kigo_inference_cancel(shared) == KIGO_OK);
    FAILS(KIGO_CANCELLED, kigo_next_text(shared, piece, sizeof piece, &error));
    FAILS(KIGO_CANCELLED, kigo_next_text(shared, piece, sizeof piece, &error));
    CHECK(kigo_inference_finish_reason(shared) == KIGO_FINISH_CANCELLED);
    FAILS(KIGO_CANCELLED, kigo_inference_last_error(shared, &error));
    CHECK(kigo_inference_free(shared) == KIGO_OK);
}

static void *start_until_freed(void *unused)
{
    for (;;) {
        kigo_inference *inference = NULL;
        int32_t status = kigo_inference_start(model, "Once", 4, NULL, &inference, NULL);
        CHECK(status == KIGO_OK || status == KIGO_INVALID_HANDLE);
        if (status == KIGO_INVALID_HANDLE)
            return unused;
        CHECK(kigo_inference_free(inference) == KIGO_OK);
    }
}

static void free_a_model_while_others_start(const char *path)
{
    pthread_t threads[THREADS];
    int round, i;
    for (round = 0; round < 20 / less; round++) {
        model = load(path);
        for (i = 0; i < THREADS; i++)
            CHECK(pthread_create(&threads[i], NULL, start_until_freed, NULL) == 0);
        wait_a_moment(round);
        CHECK(kigo_model_free(model) == KIGO_OK);
        for (i = 0; i < THREADS; i++)
            CHECK(pthread_join(threads[i], NULL) == 0);
    }
}

int main(int argc, char **argv)
{
    void *results[MANY];
    size_t total = 0;
    int i;
    less = argc > 2 ? 10 : 1;
    model = load(argv[argc - 1]);
    shared = start(model, "Once upon a time", 40);
    serial_len = drain(shared, serial);
    CHECK(kigo_inference_free(shared) == KIGO_OK);

    all(MANY, own_inference, results);

    shared = start(model, "Once upon a time", 40);
    all(THREADS, one_inference, results);
    for (i = 0; i < THREADS; i++) {
        total += *(size_t *)results[i];
        free(results[i]);
    }
    CHECK(total == serial_len);
    CHECK(kigo_inference_free(shared) == KIGO_OK);

    cancel_and_free_under_a_call();
    CHECK(kigo_model_free(model) == KIGO_OK);
    free_a_model_while_others_start(argv[argc - 1]);
    return 0;
}
