/* A forked child gets KIGO_FORKED from every function that uses a handle; the parent goes on undisturbed. */
#include "model.h"

#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

static kigo_model *model;
static kigo_load *running;
static kigo_inference *inference;
static kigo_options *options;
static kigo_error *failure;
static const char *path;
static volatile int done;

static void child(void)
{
    kigo_model *new_model = NULL;
    kigo_load *new_load = NULL;
    kigo_inference *new_inference = NULL;
    kigo_options *new_options = NULL;
    kigo_error *error = NULL;
    char text[64];
    int32_t token = 7;
    int64_t integer = 7;
    double number = 7;
    float single = 7;
    const int32_t ids[] = {1};

    FAILS(KIGO_FORKED, kigo_options_new(&new_options, &error));
    FAILS(KIGO_FORKED, kigo_options_set_str(options, "device", "cpu", &error));
    FAILS(KIGO_FORKED, kigo_options_set_i64(options, "n_ctx", 1, &error));
    FAILS(KIGO_FORKED, kigo_options_set_f64(options, "top_p", 1, &error));
    FAILS(KIGO_FORKED, kigo_model_load(path, NULL, &new_model, &error));
    FAILS(KIGO_FORKED, kigo_load_start(path, NULL, &new_load, &error));
    FAILS(KIGO_FORKED, kigo_load_progress(running, &integer, &integer, &error));
    CHECK(kigo_load_cancel(running) == KIGO_FORKED);
    FAILS(KIGO_FORKED, kigo_load_finish(running, &new_model, &error));
    CHECK(kigo_load_free(running) == KIGO_FORKED);
    FAILS(KIGO_FORKED, kigo_model_verify_residency(model, &integer, &integer, &error));
    FAILS(KIGO_FORKED, kigo_model_get_str(model, "device", text, sizeof text, &error));
    FAILS(KIGO_FORKED, kigo_model_get_i64(model, "n_ctx", &integer, &error));
    FAILS(KIGO_FORKED, kigo_model_get_f64(model, "load_ms", &number, &error));
    FAILS(KIGO_FORKED, kigo_inference_start(model, "x", 1, NULL, &new_inference, &error));
    FAILS(KIGO_FORKED, kigo_inference_start_tokens(model, ids, 1, NULL, &new_inference, &error));
    FAILS(KIGO_FORKED, kigo_next_text(inference, text, sizeof text, &error));
    CHECK(kigo_next_token(inference, &token, text, sizeof text) == KIGO_FORKED);
    FAILS(KIGO_FORKED, kigo_inference_last_error(inference, &error));
    CHECK(kigo_inference_cancel(inference) == KIGO_FORKED);
    CHECK(kigo_inference_finish_reason(inference) == KIGO_FORKED);
    FAILS(KIGO_FORKED, kigo_inference_get_i64(inference, "prompt_tokens", &integer, &error));
    FAILS(KIGO_FORKED, kigo_inference_get_f64(inference, "prompt_ms", &number, &error));
    FAILS(KIGO_FORKED, kigo_inference_logits(inference, &single, 1, &error));
    FAILS(KIGO_FORKED, kigo_inference_logprobs(inference, &token, &number, 1, &error));
    CHECK(kigo_error_status(failure) == KIGO_FORKED);
    CHECK(strstr(kigo_error_message(failure), "fork") != NULL);
    CHECK(kigo_error_free(failure) == KIGO_FORKED);
    CHECK(kigo_options_free(options) == KIGO_FORKED);
    CHECK(kigo_inference_free(inference) == KIGO_FORKED);
    CHECK(kigo_model_free(model) == KIGO_FORKED);
    CHECK(strcmp(kigo_version(), KIGO_VERSION_STRING) == 0);
    CHECK(kigo_abi_version() == KIGO_ABI_VERSION);
    CHECK(strcmp(kigo_status_name(KIGO_FORKED), "KIGO_FORKED") == 0);
    CHECK(error == NULL && new_model == NULL && new_load == NULL && new_inference == NULL && new_options == NULL);
    CHECK(token == 7 && integer == 7 && number == 7);
}

/* Keeps the locks of the library in use, so that a fork is likely to happen while one is held. */
static void *hold_locks(void *unused)
{
    while (!done) {
        kigo_options *busy = NULL;
        WORKS(kigo_options_new(&busy, &error));
        CHECK(kigo_options_free(busy) == KIGO_OK);
    }
    return unused;
}

static void fork_and_wait(void)
{
    int status = 0;
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        alarm(60);
        child();
        _exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main(int argc, char **argv)
{
    char text[256];
    pthread_t thread;
    int i;
    path = argv[argc - 1];
    model = load(path);
    inference = start(model, "Once upon a time", 8);
    options = cpu_options();
    WORKS(kigo_load_start(path, options, &running, &error));
    CHECK(kigo_options_set_i64(options, "n_ctx", 0, &failure) == KIGO_INVALID_ARGUMENT);
    CHECK(pthread_create(&thread, NULL, hold_locks, NULL) == 0);
    for (i = 0; i < 20; i++)
        fork_and_wait();
    done = 1;
    CHECK(pthread_join(thread, NULL) == 0);

    WORKS(kigo_next_text(inference, text, sizeof text, &error));
    CHECK(kigo_error_status(failure) == KIGO_INVALID_ARGUMENT);
    CHECK(kigo_error_free(failure) == KIGO_OK);
    CHECK(kigo_model_free(model) == KIGO_OK);
    WORKS(kigo_load_finish(running, &model, &error));
    CHECK(kigo_load_free(running) == KIGO_OK);
    CHECK(kigo_options_free(options) == KIGO_OK);
    CHECK(kigo_inference_free(inference) == KIGO_OK);
    CHECK(kigo_model_free(model) == KIGO_OK);
    return 0;
}
