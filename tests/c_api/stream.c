/* One model, several inferences: text and tokens come out whole, in buffers of any size. */
#include "model.h"

/* 0 if `text` is not UTF-8. */
static int is_utf8(const unsigned char *text, size_t n)
{
    size_t i = 0;
    while (i < n) {
        size_t more = text[i] < 0x80 ? 0 : text[i] < 0xC2 ? 9 : text[i] < 0xE0 ? 1 : text[i] < 0xF0 ? 2 : 3;
        if (more == 9 || text[i] > 0xF4 || i + more >= n)
            return 0;
        for (i++; more > 0; more--, i++)
            if ((text[i] & 0xC0) != 0x80)
                return 0;
    }
    return 1;
}

/* Appends the whole text of an inference to `all`, asking with a buffer of `size` bytes first. */
static size_t read_text(kigo_inference *inference, char *all, size_t size)
{
    size_t len = 0;
    for (;;) {
        char piece[4096];
        int64_t needed = -1;
        int32_t n;
        memset(piece, 0x55, sizeof piece);
        n = kigo_next_text(inference, size > 0 ? piece : NULL, size, NULL);
        if (n == KIGO_BUFFER_TOO_SMALL) {
            CHECK(size == 0 || piece[0] == 0x55);
            WORKS(kigo_inference_get_i64(inference, "text_size", &needed, &error));
            CHECK(needed > (int64_t)size && needed <= (int64_t)sizeof piece);
            FAILS(KIGO_BUFFER_TOO_SMALL, kigo_next_text(inference, piece, (size_t)needed - 1, &error));
            CHECK(piece[0] == 0x55);
            CHECK(kigo_inference_last_error(inference, NULL) == KIGO_BUFFER_TOO_SMALL);
            CHECK(kigo_inference_finish_reason(inference) == KIGO_FINISH_RUNNING);
            n = kigo_next_text(inference, piece, (size_t)needed, NULL);
            CHECK(n == needed - 1);
            WORKS(kigo_inference_get_i64(inference, "text_size", &needed, &error));
            CHECK(needed == 0);
        }
        CHECK(n >= 0);
        if (n == 0)
            break;
        CHECK(piece[n] == 0 && piece[n + 1] == 0x55);
        CHECK(is_utf8((unsigned char *)piece, (size_t)n));
        memcpy(all + len, piece, (size_t)n);
        len += (size_t)n;
    }
    CHECK(kigo_next_text(inference, NULL, 0, NULL) == 0);
    CHECK(kigo_inference_finish_reason(inference) != KIGO_FINISH_RUNNING);
    return len;
}

static size_t read_tokens(kigo_inference *inference, char *all, size_t size)
{
    size_t len = 0;
    int64_t generated = -1, count = 0;
    int32_t token = -1;
    for (;;) {
        char bytes[4096];
        int32_t n;
        memset(bytes, 0x55, sizeof bytes);
        token = -1;
        n = kigo_next_token(inference, &token, size > 0 ? bytes : NULL, size);
        if (n == KIGO_BUFFER_TOO_SMALL) {
            int64_t needed = -1;
            CHECK(token == -1 && bytes[0] == 0x55);
            WORKS(kigo_inference_get_i64(inference, "text_size", &needed, &error));
            CHECK(needed > (int64_t)size);
            n = kigo_next_token(inference, &token, bytes, (size_t)needed);
            CHECK(n == needed);
        }
        if (n == KIGO_FINISHED)
            break;
        CHECK(n >= 0 && token >= 0 && bytes[n] == 0x55);
        memcpy(all + len, bytes, (size_t)n);
        len += (size_t)n;
        count++;
    }
    CHECK(token == -1);
    CHECK(kigo_next_token(inference, &token, NULL, 0) == KIGO_FINISHED);
    WORKS(kigo_inference_get_i64(inference, "generated_tokens", &generated, &error));
    CHECK(generated == count || generated == count + 1); /* the last may be the one that ends it */
    return len;
}

static void check_facts(const kigo_model *model)
{
    static const char *numbers[] = {"n_ctx", "n_ctx_train", "n_batch", "n_vocab", "n_embd",
                                    "n_layer", "weight_bytes", "max_token_bytes"};
    static const char *steps[] = {"header_ms", "tokenizer_ms", "device_ms", "weights_ms", "prepare_ms"};
    char name[256];
    size_t i;
    int64_t value = 0;
    double ms = -1, sum = 0, total = 0;
    int32_t needed = kigo_model_get_str(model, "architecture", NULL, 0, NULL);
    CHECK(needed > 1 && needed < 256);
    memset(name, 0x55, sizeof name);
    FAILS(KIGO_BUFFER_TOO_SMALL, kigo_model_get_str(model, "architecture", name, (size_t)needed - 1, &error));
    CHECK(name[0] == 0x55);
    CHECK(kigo_model_get_str(model, "architecture", name, SIZE_MAX, NULL) == needed);
    CHECK(strlen(name) == (size_t)needed - 1 && name[needed] == 0x55);
    CHECK(kigo_model_get_str(model, "device", name, sizeof name, NULL) == 4);
    CHECK(strcmp(name, "cpu") == 0);
    CHECK(kigo_model_get_str(model, "name", name, sizeof name, NULL) >= 1);
    for (i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        WORKS(kigo_model_get_i64(model, numbers[i], &value, &error));
        CHECK(value > 0);
    }
    WORKS(kigo_model_get_i64(model, "n_ctx", &value, &error));
    CHECK(value == 128);
    for (i = 0; i < sizeof steps / sizeof *steps; i++) {
        WORKS(kigo_model_get_f64(model, steps[i], &ms, &error));
        CHECK(ms >= 0);
        sum += ms;
    }
    WORKS(kigo_model_get_f64(model, "load_ms", &total, &error));
    CHECK(sum > 0 && sum <= total);
    value = 7;
    FAILS(KIGO_INVALID_ARGUMENT, kigo_model_get_f64(model, "n_ctx", &ms, &error));
    FAILS(KIGO_INVALID_ARGUMENT, kigo_model_get_i64(model, "device", &value, &error));
    FAILS(KIGO_INVALID_ARGUMENT, kigo_model_get_i64(model, "n_layers", &value, &error));
    FAILS(KIGO_INVALID_ARGUMENT, kigo_model_get_str(model, "n_ctx", name, sizeof name, &error));
    CHECK(value == 7);
}

int main(int argc, char **argv)
{
    static const size_t sizes[] = {0, 1, 2, 3, 4096, SIZE_MAX};
    static char first[8192], other[8192];
    size_t len, i;
    kigo_model *model = load(argv[argc - 1]);
    kigo_inference *inference = start(model, "Once upon a time", 40);
    double number = -1;
    int64_t count = 0;
    int32_t token = 0;

    CHECK(strcmp(kigo_version(), KIGO_VERSION_STRING) == 0);
    CHECK(kigo_abi_version() == KIGO_ABI_VERSION);
    CHECK(strcmp(kigo_status_name(KIGO_BUSY), "KIGO_BUSY") == 0);
    check_facts(model);

    CHECK(kigo_inference_finish_reason(inference) == KIGO_FINISH_RUNNING);
    CHECK(kigo_inference_last_error(inference, NULL) == KIGO_OK);
    len = read_text(inference, first, 256);
    CHECK(len > 0);
    WORKS(kigo_inference_get_i64(inference, "prompt_tokens", &count, &error));
    CHECK(count > 0);
    WORKS(kigo_inference_get_i64(inference, "generated_tokens", &count, &error));
    CHECK(count > 0 && count <= 40);
    WORKS(kigo_inference_get_f64(inference, "tokens_per_second", &number, &error));
    CHECK(number > 0);
    WORKS(kigo_inference_get_f64(inference, "prompt_ms", &number, &error));
    WORKS(kigo_inference_get_f64(inference, "generate_ms", &number, &error));
    CHECK(number > 0);
    FAILS(KIGO_INVALID_ARGUMENT, kigo_inference_get_f64(inference, "prompt_tokens", &number, &error));
    CHECK(kigo_next_token(inference, &token, other, sizeof other) == KIGO_INVALID_ARGUMENT);
    FAILS(KIGO_INVALID_ARGUMENT, kigo_inference_last_error(inference, &error));
    CHECK(kigo_inference_free(inference) == KIGO_OK);

    for (i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        inference = start(model, "Once upon a time", 40);
        CHECK(read_text(inference, other, sizes[i]) == len && memcmp(first, other, len) == 0);
        CHECK(kigo_inference_free(inference) == KIGO_OK);
    }

    inference = start(model, "Once upon a time", 40);
    len = read_tokens(inference, first, 4096);
    CHECK(kigo_inference_free(inference) == KIGO_OK);

    /* The model is freed first: its memory stays until the inference is freed too. */
    inference = start(model, "Once upon a time", 40);
    CHECK(kigo_model_free(model) == KIGO_OK);
    CHECK(read_tokens(inference, other, 0) == len && memcmp(first, other, len) == 0);
    CHECK(kigo_inference_free(inference) == KIGO_OK);
    return 0;
}
