/* Loads beside the host: watched, cancelled, freed and finished in every order. */
#include "model.h"

#include <pthread.h>

static const char *path;

static kigo_load *begin(void)
{
    kigo_load *load = NULL;
    kigo_options *options = cpu_options();
    WORKS(kigo_load_start(path, options, &load, &error));
    /* The load has copied what it needs. */
    CHECK(load != NULL && kigo_options_free(options) == KIGO_OK);
    return load;
}

/* Draws a progress bar until the load has ended. */
static void watch(kigo_load *load)
{
    int64_t done = 0, total = 0, last_done = 0, last_total = 0;
    int32_t running;
    do {
        running = kigo_load_progress(load, &done, &total, NULL);
        CHECK(running == 0 || running == 1);
        CHECK(done >= last_done && done <= total);
        CHECK(last_total == 0 || total == last_total);
        last_done = done, last_total = total;
    } while (running);
    CHECK(total > 0 && done == total);
}

static void *watch_in_thread(void *load)
{
    watch(load);
    return NULL;
}

static void *finish_in_thread(void *load)
{
    kigo_model *model = NULL;
    int32_t status = kigo_load_finish(load, &model, NULL);
    CHECK(status == KIGO_OK || status == KIGO_INVALID_ARGUMENT);
    CHECK((status == KIGO_OK) == (model != NULL));
    return model;
}

static void a_load_gives_its_model_once(void)
{
    kigo_load *load = begin();
    kigo_model *model = NULL, *again = NULL;
    kigo_inference *inference;
    char text[256];
    int64_t weights = 0, total = 0, done = 0;
    watch(load);
    WORKS(kigo_load_finish(load, &model, &error));
    CHECK(model != NULL);
    FAILS(KIGO_INVALID_ARGUMENT, kigo_load_finish(load, &again, &error));
    CHECK(again == NULL);
    CHECK(kigo_load_cancel(load) == KIGO_OK);
    WORKS(kigo_load_progress(load, &done, &total, &error));
    WORKS(kigo_model_get_i64(model, "weight_bytes", &weights, &error));
    CHECK(total == weights && done == weights);
    CHECK(kigo_load_free(load) == KIGO_OK);
    CHECK(kigo_load_free(load) == KIGO_INVALID_HANDLE);
    CHECK(kigo_load_cancel(load) == KIGO_INVALID_HANDLE);
    CHECK(kigo_load_progress(load, &done, &total, NULL) == KIGO_INVALID_HANDLE);
    /* The model lives on. */
    inference = start(model, "Once", 4);
    CHECK(kigo_next_text(inference, text, sizeof text, NULL) > 0);
    CHECK(kigo_inference_free(inference) == KIGO_OK);
    CHECK(kigo_model_free(model) == KIGO_OK);
}

static void many_threads_finish_one_load(void)
{
    pthread_t watcher, threads[8];
    kigo_load *load = begin();
    kigo_model *model = NULL;
    void *got;
    int i;
    CHECK(pthread_create(&watcher, NULL, watch_in_thread, load) == 0);
    for (i = 0; i < 8; i++)
        CHECK(pthread_create(&threads[i], NULL, finish_in_thread, load) == 0);
    for (i = 0; i < 8; i++) {
        CHECK(pthread_join(threads[i], &got) == 0);
        CHECK(model == NULL || got == NULL);
        if (got != NULL)
            model = got;
    }
    CHECK(model != NULL && kigo_model_free(model) == KIGO_OK);
    CHECK(pthread_join(watcher, NULL) == 0);
    CHECK(kigo_load_free(load) == KIGO_OK);
}

static void cancelled_and_freed_at_any_moment(void)
{
    int i;
    for (i = 0; i < 100; i++) {
        kigo_load *load = begin();
        kigo_model *model = NULL;
        int64_t done = 0, total = 0;
        int j;
        for (j = 0; j < i * 20; j++)
            CHECK(kigo_load_progress(load, &done, &total, NULL) >= 0);
        if (i % 3 == 0) {
            CHECK(kigo_load_free(load) == KIGO_OK);
            FAILS(KIGO_INVALID_HANDLE, kigo_load_finish(load, &model, &error));
            CHECK(model == NULL);
            continue;
        }
        CHECK(kigo_load_cancel(load) == KIGO_OK);
        CHECK(kigo_load_cancel(load) == KIGO_OK);
        if (i % 3 == 1) {
            int32_t status = kigo_load_finish(load, &model, NULL);
            CHECK(status == KIGO_OK || status == KIGO_CANCELLED);
            CHECK((model != NULL) == (status == KIGO_OK));
            CHECK(kigo_model_free(model) == KIGO_OK);
        }
        CHECK(kigo_load_free(load) == KIGO_OK);
    }
}

static void failures_come_from_finish(void)
{
    kigo_options *options = cpu_options();
    kigo_load *load = NULL;
    kigo_model *model = NULL;
    int64_t done = 0, total = 0;
    WORKS(kigo_load_start("no/such/file.gguf", options, &load, &error));
    FAILS(KIGO_IO, kigo_load_finish(load, &model, &error));
    FAILS(KIGO_INVALID_ARGUMENT, kigo_load_finish(load, &model, &error));
    CHECK(kigo_load_progress(load, &done, &total, NULL) == 0 && done == 0 && total == 0);
    CHECK(kigo_load_free(load) == KIGO_OK && model == NULL);
    CHECK(kigo_options_free(options) == KIGO_OK);
    FAILS(KIGO_INVALID_HANDLE, kigo_load_start(path, options, &load, &error));
    CHECK(kigo_load_free(NULL) == KIGO_OK);
}

/* What the host was told while a model loaded, and what it answers. */
struct told {
    int calls;
    int64_t done, total;
    pthread_t thread;
    /* Cancel in call number `cancel`, or when all has been read. */
    int cancel, cancel_at_end;
    kigo_options *options;
};

static int32_t tell(void *user_data, int64_t done, int64_t total)
{
    struct told *told = user_data;
    told->calls++;
    CHECK(pthread_equal(pthread_self(), told->thread));
    CHECK(done >= told->done && done <= total);
    CHECK(told->total == 0 || total == told->total);
    told->done = done, told->total = total;
    if (told->options != NULL) {
        /* The same options, another load with them, and their end: all of it works. */
        kigo_options *options = told->options;
        kigo_model *model = NULL;
        told->options = NULL;
        WORKS(kigo_options_set_progress(options, NULL, NULL, &error));
        WORKS(kigo_model_load(path, options, &model, &error));
        WORKS(kigo_options_set_progress(options, tell, told, &error));
        CHECK(kigo_model_free(model) == KIGO_OK && kigo_options_free(options) == KIGO_OK);
    }
    return told->calls == told->cancel || (told->cancel_at_end && total > 0 && done == total);
}

static void hosts_are_told_c16(void)
{
    int32_t n;
    kigo_model *model = NULL;
    kigo_load *load = NULL;
    struct told told = {0};
    kigo_options *options = cpu_options();
    told.thread = pthread_self();
    WORKS(kigo_options_set_progress(options, tell, &told, &error));
    WORKS(kigo_model_load(path, options, &model, &error));
    CHECK(told.calls >= 2 && told.total > 0 && told.done == told.total);
    CHECK(kigo_model_free(model) == KIGO_OK);

    for (n = 1; n <= 2; n++) {
        struct told cancels = {0};
        cancels.thread = pthread_self();
        cancels.cancel = n == 1, cancels.cancel_at_end = n == 2;
        model = NULL;
        WORKS(kigo_options_set_progress(options, tell, &cancels, &error));
        FAILS(KIGO_CANCELLED, kigo_model_load(path, options, &model, &error));
        CHECK(model == NULL && (n == 2 || cancels.calls == 1));
    }

    /* A load beside the host is watched, not told of. */
    told.calls = 0;
    WORKS(kigo_options_set_progress(options, tell, &told, &error));
    WORKS(kigo_load_start(path, options, &load, &error));
    WORKS(kigo_load_finish(load, &model, &error));
    CHECK(told.calls == 0 && kigo_load_free(load) == KIGO_OK && kigo_model_free(model) == KIGO_OK);

    memset(&told, 0, sizeof told);
    told.thread = pthread_self();
    FAILS(KIGO_IO, kigo_model_load("no/such/file.gguf", options, &model, &error));
    CHECK(told.total == 0);
    told.options = options;
    WORKS(kigo_model_load(path, options, &model, &error));
    CHECK(told.options == NULL && told.calls >= 2 && told.done == told.total);
    CHECK(kigo_model_free(model) == KIGO_OK);
    FAILS(KIGO_INVALID_HANDLE, kigo_options_set_progress(options, NULL, NULL, &error));
}

/* What is held grows with an inference and shrinks when it is freed. */
static void memory(void)
{
    kigo_model *model = load(path);
    kigo_inference *inference = start(model, "Once upon a time", 8);
    int64_t all = 0, weights = 0, cache = -1, workspace = 0, on_device = -1, on_host = 0;
    char text[256];
    WORKS(kigo_model_get_i64(model, "cache_bytes", &cache, &error));
    CHECK(cache == 0);
    CHECK(kigo_next_text(inference, text, sizeof text, NULL) > 0);
    WORKS(kigo_model_get_i64(model, "memory_bytes", &all, &error));
    WORKS(kigo_model_get_i64(model, "weight_bytes", &weights, &error));
    WORKS(kigo_model_get_i64(model, "cache_bytes", &cache, &error));
    WORKS(kigo_model_get_i64(model, "workspace_bytes", &workspace, &error));
    CHECK(weights > 0 && cache > 0 && workspace > 0 && all == weights + cache + workspace);
    WORKS(kigo_model_verify_residency(model, &on_device, &on_host, &error));
    CHECK(on_device == 0 && on_host == all);
    CHECK(kigo_inference_free(inference) == KIGO_OK);
    WORKS(kigo_model_get_i64(model, "cache_bytes", &cache, &error));
    CHECK(cache == 0);
    CHECK(kigo_model_free(model) == KIGO_OK);
    FAILS(KIGO_INVALID_HANDLE, kigo_model_verify_residency(model, &on_device, &on_host, &error));
}

int main(int argc, char **argv)
{
    path = argv[argc - 1];
    a_load_gives_its_model_once();
    many_threads_finish_one_load();
    cancelled_and_freed_at_any_moment();
    failures_come_from_finish();
    hosts_are_told_c16();
    memory();
    return 0;
}
