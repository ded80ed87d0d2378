/* Going back, branching off, further turns, the prompt cache, and states that are saved and loaded. */
#include "model.h"

static int64_t count(const kigo_inference *inference, const char *key)
{
    int64_t value = -1;
    WORKS(kigo_inference_get_i64(inference, key, &value, &error));
    return value;
}

/* The ids of the tokens that are left, at most `most`. */
static int tokens(kigo_inference *inference, int32_t *ids, int most)
{
    char bytes[64];
    int n = 0;
    while (n < most && kigo_next_token(inference, &ids[n], bytes, sizeof bytes) >= 0)
        n++;
    return n;
}

static kigo_options *seeded(int64_t seed)
{
    kigo_options *options = cpu_options();
    WORKS(kigo_options_set_f64(options, "temperature", 1.5, &error));
    WORKS(kigo_options_set_i64(options, "seed", seed, &error));
    WORKS(kigo_options_set_f64(options, "repeat_penalty", 1.1, &error));
    WORKS(kigo_options_set_i64(options, "max_tokens", 30, &error));
    return options;
}

static void go_back_and_branch_off(const kigo_model *model)
{
    int32_t first[31], again[30];
    kigo_options *options = seeded(7), *other = seeded(8);
    kigo_inference *inference = NULL, *fork = NULL;
    int64_t prompt;
    int n;

    WORKS(kigo_inference_start(model, "Once upon a time", KIGO_NUL_TERMINATED, options, &inference, &error));
    prompt = count(inference, "prompt_tokens");
    n = tokens(inference, first, 31);
    CHECK(n > 5 && n <= 30);
    CHECK(kigo_inference_finish_reason(inference) != KIGO_FINISH_RUNNING);

    WORKS(kigo_inference_rewind(inference, (size_t)prompt + 3, &error));
    CHECK(kigo_inference_finish_reason(inference) == KIGO_FINISH_RUNNING);
    CHECK(count(inference, "generated_tokens") == 3 && count(inference, "prompt_tokens") == prompt);
    CHECK(tokens(inference, again, 2) == 2 && memcmp(again, first + 3, 2 * sizeof *first) == 0);

    WORKS(kigo_inference_fork(inference, NULL, &fork, &error));
    CHECK(tokens(fork, again, 30) == n - 5 && memcmp(again, first + 5, (size_t)(n - 5) * sizeof *first) == 0);
    CHECK(kigo_inference_free(fork) == KIGO_OK);
    CHECK(tokens(inference, again, 30) == n - 5 && memcmp(again, first + 5, (size_t)(n - 5) * sizeof *first) == 0);

    WORKS(kigo_inference_rewind(inference, (size_t)prompt, &error));
    WORKS(kigo_inference_fork(inference, other, &fork, &error));
    CHECK(tokens(fork, again, 30) > 0 && memcmp(again, first, (size_t)n * sizeof *first) != 0);
    CHECK(tokens(inference, again, 30) == n && memcmp(again, first, (size_t)n * sizeof *first) == 0);

    FAILS(KIGO_INVALID_ARGUMENT, kigo_inference_rewind(inference, 0, &error));
    FAILS(KIGO_INVALID_ARGUMENT, kigo_inference_rewind(inference, (size_t)(prompt + n) + 1, &error));
    FAILS(KIGO_INVALID_ARGUMENT, kigo_inference_rewind(inference, SIZE_MAX, &error));
    CHECK(kigo_inference_cancel(inference) == KIGO_OK);
    WORKS(kigo_inference_rewind(inference, (size_t)prompt, &error));
    CHECK(tokens(inference, again, 30) == n && memcmp(again, first, (size_t)n * sizeof *first) == 0);
    CHECK(kigo_inference_free(fork) == KIGO_OK && kigo_inference_free(inference) == KIGO_OK);
    FAILS(KIGO_INVALID_HANDLE, kigo_inference_rewind(inference, 1, &error));
    FAILS(KIGO_INVALID_HANDLE, kigo_inference_fork(inference, NULL, &fork, &error));
    FAILS(KIGO_INVALID_HANDLE, kigo_inference_fork((const kigo_inference *)(const void *)model, NULL, &fork, &error));
    CHECK(kigo_options_free(options) == KIGO_OK && kigo_options_free(other) == KIGO_OK);
}

/* Reads all text that comes; `text` has room for it. */
static void read_all(kigo_inference *inference, char *text)
{
    int32_t n;
    while ((n = kigo_next_text(inference, text, 256, NULL)) > 0)
        text += n;
    CHECK(n == 0);
    *text = '\0';
}

static void take_further_turns(const kigo_model *model)
{
    static const int32_t bad[] = {5, -1};
    static char haiku[4096], text[4096], second[4096], again[4096];
    kigo_options *options = cpu_options();
    kigo_inference *chat = NULL, *plain = start(model, "Once", 5);
    int32_t token = 0;

    WORKS(kigo_options_set_str(options, "prompt_format", "user", &error));
    WORKS(kigo_inference_start(model, "Write a haiku.", KIGO_NUL_TERMINATED, options, &chat, &error));
    read_all(chat, haiku);
    WORKS(kigo_inference_append(chat, "Write a haiku.", KIGO_NUL_TERMINATED, &error));
    CHECK(kigo_inference_finish_reason(chat) == KIGO_FINISH_RUNNING && count(chat, "generated_tokens") == 0);
    read_all(chat, second);
    CHECK(count(chat, "cached_tokens") > 20 && count(chat, "cached_tokens") < count(chat, "prompt_tokens"));
    CHECK(kigo_inference_free(chat) == KIGO_OK);

    /* The same chat as a whole, from the beginning. */
    WORKS(kigo_options_set_str(options, "prompt_format", "chat", &error));
    WORKS(kigo_inference_start(model, "[{\"role\": \"user\", \"content\": \"Write a haiku.\"}]", KIGO_NUL_TERMINATED,
                               options, &chat, &error));
    read_all(chat, again);
    CHECK(strcmp(haiku, again) == 0);
    WORKS(kigo_inference_append(chat, "[{\"role\": \"user\", \"content\": \"Write a haiku.\"}]", KIGO_NUL_TERMINATED,
                                &error));
    read_all(chat, again);
    CHECK(strcmp(second, again) == 0);
    FAILS(KIGO_INVALID_ARGUMENT, kigo_inference_append(chat, "Hello", KIGO_NUL_TERMINATED, &error));
    FAILS(KIGO_INVALID_UTF8, kigo_inference_append(chat, "\xff", 1, &error));
    FAILS(KIGO_INVALID_ARGUMENT, kigo_inference_append(chat, NULL, 3, &error));
    CHECK(kigo_inference_free(chat) == KIGO_OK);

    CHECK(kigo_next_token(plain, &token, text, sizeof text) >= 0);
    CHECK(kigo_inference_cancel(plain) == KIGO_OK);
    CHECK(kigo_next_token(plain, &token, text, sizeof text) == KIGO_CANCELLED);
    WORKS(kigo_inference_append(plain, NULL, 0, &error));
    CHECK(kigo_next_token(plain, &token, text, sizeof text) >= 0);
    FAILS(KIGO_INVALID_ARGUMENT, kigo_inference_append_tokens(plain, bad, 2, &error));
    WORKS(kigo_inference_append_tokens(plain, bad, 1, &error));
    CHECK(kigo_next_token(plain, &token, text, sizeof text) >= 0);
    CHECK(kigo_inference_free(plain) == KIGO_OK);
    CHECK(kigo_options_free(options) == KIGO_OK);
}

static void begin_with_what_is_known(kigo_model *model)
{
    static const char prompt[] = "spring, summer, autumn, winter, spring, summer, autumn, winter, spring";
    kigo_inference *inference = start(model, prompt, 5);
    int32_t first[5], again[5];
    int64_t bytes = 0;

    CHECK(tokens(inference, first, 5) == 5);
    CHECK(kigo_inference_free(inference) == KIGO_OK);
    WORKS(kigo_model_get_i64(model, "prompt_cache_bytes", &bytes, &error));
    CHECK(bytes > 0);
    inference = start(model, prompt, 5);
    CHECK(count(inference, "cached_tokens") == 0);
    CHECK(tokens(inference, again, 5) == 5 && memcmp(first, again, sizeof first) == 0);
    CHECK(count(inference, "cached_tokens") >= 32);
    CHECK(kigo_inference_free(inference) == KIGO_OK);
    WORKS(kigo_model_clear_prompt_cache(model, &error));
    WORKS(kigo_model_get_i64(model, "prompt_cache_bytes", &bytes, &error));
    CHECK(bytes == 0);
    WORKS(kigo_model_get_i64(model, "cache_bytes", &bytes, &error));
    CHECK(bytes == 0);
    inference = start(model, prompt, 5);
    CHECK(tokens(inference, again, 5) == 5 && memcmp(first, again, sizeof first) == 0);
    CHECK(count(inference, "cached_tokens") == 0);
    CHECK(kigo_inference_free(inference) == KIGO_OK);
}

static void save_and_load(const char *path, const kigo_model *model, const char *file)
{
    int32_t rest[30], again[30];
    kigo_options *options = seeded(3);
    kigo_inference *inference = NULL, *loaded = NULL;
    kigo_model *other;
    int n;

    WORKS(kigo_inference_start(model, "Once upon a time", KIGO_NUL_TERMINATED, options, &inference, &error));
    CHECK(tokens(inference, rest, 7) == 7);
    WORKS(kigo_inference_save(inference, file, &error));
    n = tokens(inference, rest, 30);
    CHECK(kigo_inference_free(inference) == KIGO_OK);
    other = load(path);
    WORKS(kigo_inference_load(other, file, options, &loaded, &error));
    CHECK(kigo_model_free(other) == KIGO_OK);
    CHECK(count(loaded, "generated_tokens") == 7);
    CHECK(tokens(loaded, again, 30) == n && memcmp(rest, again, (size_t)n * sizeof *rest) == 0);
    CHECK(kigo_inference_free(loaded) == KIGO_OK);

    loaded = NULL;
    FAILS(KIGO_BAD_STATE, kigo_inference_load(model, path, options, &loaded, &error));
    FAILS(KIGO_IO, kigo_inference_load(model, "no such file", options, &loaded, &error));
    FAILS(KIGO_IO, kigo_inference_save((inference = start(model, "Once", 5)), "no/such/folder/file", &error));
    CHECK(loaded == NULL);
    CHECK(kigo_inference_free(inference) == KIGO_OK);
    CHECK(kigo_options_free(options) == KIGO_OK);
    CHECK(remove(file) == 0);
}

int main(int argc, char **argv)
{
    static char file[4096];
    kigo_model *model = load(argv[argc - 1]);
    snprintf(file, sizeof file, "%s.state", argv[0]);
    go_back_and_branch_off(model);
    take_further_turns(model);
    begin_with_what_is_known(model);
    save_and_load(argv[argc - 1], model, file);
    CHECK(kigo_model_free(model) == KIGO_OK);
    return 0;
}
