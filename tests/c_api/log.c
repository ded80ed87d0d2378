/* The log: silent at first, told to a function or put into a queue, and ended without a race. */
#include "model.h"

#include <pthread.h>
#include <time.h>

#define THREADS 4

typedef struct {
    int told, inside, worst;
} listener;

/* Called by one thread at a time. */
static void listen(void *user_data, int32_t level, const char *text)
{
    listener *own = user_data;
    CHECK(__atomic_fetch_add(&own->inside, 1, __ATOMIC_SEQ_CST) == 0);
    CHECK(level >= KIGO_LOG_ERROR && level <= KIGO_LOG_DEBUG);
    CHECK(strlen(text) > 0 && strlen(text) < 512 && strchr(text, '\n') == NULL);
    own->worst = level > own->worst ? level : own->worst;
    own->told++;
    CHECK(__atomic_fetch_sub(&own->inside, 1, __ATOMIC_SEQ_CST) == 1);
}

static void end_from_inside(void *user_data, int32_t level, const char *text)
{
    (void)level, (void)text;
    FAILS(KIGO_INVALID_ARGUMENT, kigo_log_set_sink(KIGO_LOG_OFF, NULL, NULL, &error));
    ++*(int *)user_data;
}

static const char *path;
/* 1; more divides the work, for tools that slow a program down. */
static int less = 1;

static void generate(const kigo_model *model)
{
    char piece[64];
    kigo_inference *inference = start(model, "Once", 3);
    while (kigo_next_text(inference, piece, sizeof piece, NULL) > 0) {
    }
    CHECK(kigo_inference_free(inference) == KIGO_OK);
}

static void *generations(void *stop)
{
    kigo_model *model = load(path);
    while (!__atomic_load_n((int *)stop, __ATOMIC_SEQ_CST))
        generate(model);
    CHECK(kigo_model_free(model) == KIGO_OK);
    return NULL;
}

static void told_to_a_function(void)
{
    listener own = {0};
    kigo_model *model;
    int inside = 0;
    WORKS(kigo_log_set_sink(KIGO_LOG_INFO, listen, &own, &error));
    model = load(path);
    CHECK(own.told >= 3 && own.worst == KIGO_LOG_INFO);
    own.told = 0;
    generate(model);
    CHECK(own.told == 0);
    WORKS(kigo_log_set_sink(KIGO_LOG_DEBUG, listen, &own, &error));
    generate(model);
    CHECK(own.told == 1 && own.worst == KIGO_LOG_DEBUG);
    WORKS(kigo_log_set_sink(KIGO_LOG_DEBUG, end_from_inside, &inside, &error));
    generate(model);
    CHECK(inside == 1);
    WORKS(kigo_log_set_sink(KIGO_LOG_ERROR, listen, &own, &error));
    own.told = own.worst = 0;
    CHECK(kigo_model_load("/no/such\nmodel", NULL, &model, NULL) < 0);
    CHECK(own.told == 1 && own.worst == KIGO_LOG_ERROR);
    CHECK(kigo_model_free(load(path)) == KIGO_OK);
    CHECK(own.told == 1);
    WORKS(kigo_log_set_sink(KIGO_LOG_DEBUG, NULL, NULL, &error));
    CHECK(kigo_model_free(load(path)) == KIGO_OK);
    CHECK(own.told == 1);
    FAILS(KIGO_INVALID_ARGUMENT, kigo_log_set_sink(5, listen, &own, &error));
    FAILS(KIGO_INVALID_ARGUMENT, kigo_log_set_queue(-1, &error));
    CHECK(kigo_model_free(model) == KIGO_OK);
}

static void put_into_a_queue(void)
{
    char text[512], again[512];
    int32_t level = 0, n, messages = 0, warned = 0;
    int64_t time_ms = 0, before = 0;
    kigo_model *model, *none = NULL;
    int i;
    CHECK(kigo_log_next(&level, &time_ms, text, sizeof text, NULL) == 0);
    WORKS(kigo_log_set_queue(KIGO_LOG_DEBUG, &error));
    model = load(path);
    FAILS(KIGO_BUFFER_TOO_SMALL, kigo_log_next(&level, &time_ms, text, 3, &error));
    CHECK(level == 0 && time_ms == 0);
    while ((n = kigo_log_next(&level, &time_ms, text, sizeof text, NULL)) > 0) {
        CHECK((size_t)n == strlen(text) && time_ms >= before && level >= KIGO_LOG_ERROR);
        before = time_ms;
        messages++;
    }
    CHECK(n == 0 && messages >= 3 && before > 1500000000000);
    /* More than it holds: the oldest go, and that is told. */
    for (i = 0; i < 1100; i++)
        CHECK(kigo_model_load("no such model", NULL, &none, NULL) < 0);
    FAILS(KIGO_BUFFER_TOO_SMALL, kigo_log_next(&level, &time_ms, text, 3, &error));
    CHECK(kigo_log_next(&level, &time_ms, again, sizeof again, NULL) > 0 && level == KIGO_LOG_WARNING);
    CHECK(strncmp(again, "76 older messages were lost", 27) == 0);
    for (messages = 0; kigo_log_next(&level, &time_ms, text, sizeof text, NULL) > 0; messages++)
        warned += level == KIGO_LOG_WARNING;
    CHECK(messages == 1024 && warned == 0);
    /* Closed: nothing is kept. */
    generate(model);
    WORKS(kigo_log_set_queue(KIGO_LOG_OFF, &error));
    generate(model);
    CHECK(kigo_log_next(&level, &time_ms, text, sizeof text, NULL) == 0);
    CHECK(kigo_model_free(model) == KIGO_OK);
}

static void ended_under_way(void)
{
    const struct timespec moment = {0, 200000};
    pthread_t threads[THREADS];
    int i, stop = 0, told = 0;
    for (i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, generations, &stop) == 0);
    for (i = 0; i < 300 / less; i++) {
        /* Freed as soon as it has been replaced: the address sanitizer sees a call that comes later. */
        listener *own = calloc(1, sizeof *own);
        CHECK(own != NULL);
        WORKS(kigo_log_set_sink(KIGO_LOG_DEBUG, listen, own, &error));
        nanosleep(&moment, NULL);
        WORKS(kigo_log_set_sink(KIGO_LOG_OFF, NULL, NULL, &error));
        told += own->told;
        free(own);
    }
    __atomic_store_n(&stop, 1, __ATOMIC_SEQ_CST);
    for (i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(told > 0);
}

int main(int argc, char **argv)
{
    less = argc > 2 ? 10 : 1;
    path = argv[argc - 1];
    told_to_a_function();
    put_into_a_queue();
    ended_under_way();
    return 0;
}
