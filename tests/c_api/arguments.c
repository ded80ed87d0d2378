/* Arguments at and beyond their limits. */
#define _DEFAULT_SOURCE
#include "model.h"

#include <sys/mman.h>
#include <unistd.h>

static void prompts(const kigo_model *model)
{
    static const char with_nul[] = {'a', 0, 'b'};
    const long page = sysconf(_SC_PAGESIZE);
    kigo_inference *inference = NULL;
    char *pages, *edge;
    int32_t started;

    /* An empty prompt is fine if the model adds a token, and an error of its own if not. */
    started = kigo_inference_start(model, NULL, 0, NULL, &inference, NULL);
    CHECK(started == KIGO_OK || started == KIGO_EMPTY_PROMPT);
    CHECK(kigo_inference_free(inference) == KIGO_OK);
    inference = NULL;
    FAILS(KIGO_INVALID_ARGUMENT, kigo_inference_start(model, NULL, 5, NULL, &inference, &error));
    FAILS(KIGO_INVALID_ARGUMENT, kigo_inference_start(model, NULL, KIGO_NUL_TERMINATED, NULL, &inference, &error));
    FAILS(KIGO_INVALID_ARGUMENT, kigo_inference_start(model, "x", SIZE_MAX - 1, NULL, &inference, &error));
    FAILS(KIGO_INVALID_UTF8, kigo_inference_start(model, "a\xE2\x9C", 3, NULL, &inference, &error));
    FAILS(KIGO_INVALID_UTF8, kigo_inference_start(model, "\xED\xA0\x80", KIGO_NUL_TERMINATED, NULL, &inference, &error));
    CHECK(inference == NULL);
    WORKS(kigo_inference_start(model, with_nul, sizeof with_nul, NULL, &inference, &error));
    CHECK(kigo_inference_free(inference) == KIGO_OK);

    /* The byte after the prompt cannot be read. */
    pages = mmap(NULL, (size_t)page * 2, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(pages != MAP_FAILED && mprotect(pages + page, (size_t)page, PROT_NONE) == 0);
    edge = pages + page - 5;
    memcpy(edge, "Hello", 5);
    WORKS(kigo_inference_start(model, edge, 5, NULL, &inference, &error));
    CHECK(kigo_inference_free(inference) == KIGO_OK);
    memset(pages, 'A', (size_t)page);
    inference = NULL;
    FAILS(KIGO_PROMPT_TOO_LONG, kigo_inference_start(model, pages, (size_t)page, NULL, &inference, &error));
    CHECK(inference == NULL && munmap(pages, (size_t)page * 2) == 0);
}

static void tokens(const kigo_model *model)
{
    static int32_t many[200];
    kigo_inference *inference = NULL;
    int64_t n_vocab = 0;
    int32_t wrong[2];
    size_t i;
    WORKS(kigo_model_get_i64(model, "n_vocab", &n_vocab, &error));
    wrong[0] = 1;
    for (i = 0; i < 4; i++) {
        const int32_t outside[] = {-1, INT32_MIN, INT32_MAX, (int32_t)n_vocab};
        wrong[1] = outside[i];
        FAILS(KIGO_INVALID_ARGUMENT, kigo_inference_start_tokens(model, wrong, 2, NULL, &inference, &error));
    }
    FAILS(KIGO_EMPTY_PROMPT, kigo_inference_start_tokens(model, NULL, 0, NULL, &inference, &error));
    FAILS(KIGO_INVALID_ARGUMENT, kigo_inference_start_tokens(model, NULL, 1, NULL, &inference, &error));
    FAILS(KIGO_INVALID_ARGUMENT, kigo_inference_start_tokens(model, wrong, SIZE_MAX, NULL, &inference, &error));
    FAILS(KIGO_PROMPT_TOO_LONG, kigo_inference_start_tokens(model, many, 200, NULL, &inference, &error));
    FAILS(KIGO_INVALID_ARGUMENT,
          kigo_inference_start_tokens(model, (int32_t *)((char *)many + 1), 2, NULL, &inference, &error));
    CHECK(inference == NULL);
    wrong[1] = (int32_t)n_vocab - 1;
    WORKS(kigo_inference_start_tokens(model, wrong, 2, NULL, &inference, &error));
    CHECK(kigo_inference_free(inference) == KIGO_OK);
}

static void limits(const kigo_model *model)
{
    kigo_options *options = cpu_options();
    kigo_inference *inference = NULL;
    int32_t token = 7;
    char text[64];
    int i;
    FAILS(KIGO_INVALID_ARGUMENT, kigo_options_set_i64(options, "max_tokens", -1, &error));
    FAILS(KIGO_INVALID_ARGUMENT, kigo_options_set_i64(options, "max_tokens", INT32_MIN, &error));
    FAILS(KIGO_INVALID_ARGUMENT, kigo_options_set_i64(options, "max_tokens", (int64_t)INT32_MAX + 1, &error));
    FAILS(KIGO_INVALID_ARGUMENT, kigo_options_set_f64(options, "temperature", -1, &error));
    FAILS(KIGO_UNKNOWN_OPTION, kigo_options_set_f64(options, "temprature", 1, &error));
    FAILS(KIGO_INVALID_UTF8, kigo_options_set_str(options, "stop", "\xFF", &error));
    FAILS(KIGO_INVALID_ARGUMENT, kigo_options_set_str(options, "stop", "", &error));
    for (i = 0; i < 64; i++)
        WORKS(kigo_options_set_str(options, "stop", "never said", &error));
    FAILS(KIGO_LIMIT, kigo_options_set_str(options, "stop", "never said", &error));

    WORKS(kigo_options_set_i64(options, "max_tokens", 0, &error));
    WORKS(kigo_inference_start(model, "Once", KIGO_NUL_TERMINATED, options, &inference, &error));
    CHECK(kigo_next_token(inference, &token, text, sizeof text) == KIGO_FINISHED && token == 7);
    CHECK(kigo_inference_finish_reason(inference) == KIGO_FINISH_MAX_TOKENS);
    CHECK(kigo_inference_free(inference) == KIGO_OK);

    WORKS(kigo_options_set_i64(options, "max_tokens", INT32_MAX, &error));
    WORKS(kigo_inference_start(model, "Once", KIGO_NUL_TERMINATED, options, &inference, &error));
    WORKS(kigo_next_text(inference, text, sizeof text, &error));
    CHECK(kigo_inference_free(inference) == KIGO_OK);

    inference = NULL;
    WORKS(kigo_options_set_str(options, "prompt_format", "chat", &error));
    FAILS(KIGO_INVALID_ARGUMENT, kigo_inference_start(model, "no JSON", KIGO_NUL_TERMINATED, options, &inference, &error));
    CHECK(inference == NULL && kigo_options_free(options) == KIGO_OK);
}

/* Text of the caller comes back in messages escaped and bounded. */
static void messages(void)
{
    static char path[5001];
    kigo_options *options = cpu_options();
    kigo_model *model = NULL;
    kigo_error *error = NULL;
    const char *message, *c;
    FAILS(KIGO_IO, kigo_model_load("", options, &model, &error));
    FAILS(KIGO_IO, kigo_model_load("/no/such/\xFF\xFE", options, &model, &error));
    CHECK(kigo_model_load("/no/%n%s/\x1b[31m\n\r\x7f.gguf", options, &model, &error) == KIGO_IO);
    message = kigo_error_message(error);
    for (c = message; *c != 0; c++)
        CHECK((unsigned char)*c >= 0x20 && *c != 0x7f);
    CHECK(strstr(message, "%n%s") != NULL && strstr(message, "[31m") != NULL);
    CHECK(kigo_error_free(error) == KIGO_OK);
    memset(path, 'p', 5000);
    FAILS(KIGO_IO, kigo_model_load(path, options, &model, &error));
    CHECK(model == NULL && kigo_options_free(options) == KIGO_OK);
}

/* C14: contexts of any size are refused by name, too small for a prompt, or work. */
static void contexts(const char *path)
{
    static const int64_t refused[] = {0, -1, INT64_MIN, INT64_MAX, (int64_t)INT32_MAX + 1};
    kigo_options *options = cpu_options();
    kigo_model *model = NULL;
    kigo_inference *inference = NULL;
    char text[256];
    int32_t status;
    size_t i;
    for (i = 0; i < sizeof refused / sizeof *refused; i++)
        FAILS(KIGO_INVALID_ARGUMENT, kigo_options_set_i64(options, "n_ctx", refused[i], &error));
    WORKS(kigo_options_set_i64(options, "n_ctx", 1, &error));
    WORKS(kigo_model_load(path, options, &model, &error));
    FAILS(KIGO_PROMPT_TOO_LONG, kigo_inference_start(model, "Once", 4, options, &inference, &error));
    CHECK(kigo_model_free(model) == KIGO_OK);
    WORKS(kigo_options_set_i64(options, "n_ctx", INT32_MAX, &error));
    status = kigo_model_load(path, options, &model, NULL);
    CHECK(status == KIGO_OK || status == KIGO_OUT_OF_MEMORY);
    if (status == KIGO_OK) {
        WORKS(kigo_inference_start(model, "Once", 4, options, &inference, &error));
        WORKS(kigo_next_text(inference, text, sizeof text, &error));
        CHECK(kigo_inference_free(inference) == KIGO_OK && kigo_model_free(model) == KIGO_OK);
    }
    CHECK(kigo_options_free(options) == KIGO_OK);
}

/* A machine may have no GPU, no driver, or a build without a backend: then every question has that for an answer. */
static void devices(void)
{
    char name[256];
    int64_t bytes = 7;
    const int32_t n = kigo_device_count(NULL);
    FAILS(KIGO_INVALID_ARGUMENT, kigo_device_get_str(-1, "name", name, sizeof name, &error));
    if (n > 0) {
        CHECK(kigo_device_get_str(0, "name", name, sizeof name, NULL) > 1);
        WORKS(kigo_device_get_i64(0, "memory_bytes", &bytes, &error));
        CHECK(bytes > 7);
    } else {
        CHECK(n == 0 || (n <= KIGO_NO_BACKEND && n >= KIGO_DEVICE_ERROR));
        CHECK(kigo_device_get_str(0, "name", name, sizeof name, NULL) < 0);
        CHECK(kigo_device_get_i64(0, "memory_bytes", &bytes, NULL) < 0 && bytes == 7);
    }
}

int main(int argc, char **argv)
{
    kigo_model *model = load(argv[argc - 1]);
    prompts(model);
    tokens(model);
    limits(model);
    messages();
    contexts(argv[argc - 1]);
    devices();
    CHECK(kigo_model_free(model) == KIGO_OK);
    return 0;
}
