/* Text to tokens and back, what tokens are, and the metadata of the file. */
#include "model.h"

static char text[65536];
static int32_t ids[4096];

/* Writes the tokens of `words` to `ids`; the same number comes when only asked for. */
static int32_t tokenize(const kigo_model *model, const char *words, size_t len, int32_t flags)
{
    const int32_t n = kigo_model_tokenize(model, words, len, flags, NULL, 0, NULL);
    CHECK(n >= 0 && (size_t)n <= sizeof ids / sizeof *ids);
    if (n > 1)
        FAILS(KIGO_BUFFER_TOO_SMALL, kigo_model_tokenize(model, words, len, flags, ids, (size_t)n - 1, &error));
    CHECK(kigo_model_tokenize(model, words, len, flags, ids, (size_t)n, NULL) == n);
    return n;
}

/* Writes the text of `ids` to `text`; the same size comes when only asked for. */
static int32_t detokenize(const kigo_model *model, int32_t n, int32_t flags)
{
    const int32_t size = kigo_model_detokenize(model, ids, (size_t)n, flags, NULL, 0, NULL);
    CHECK(size >= 1 && (size_t)size < sizeof text);
    if (size > 1)
        FAILS(KIGO_BUFFER_TOO_SMALL, kigo_model_detokenize(model, ids, (size_t)n, flags, text, (size_t)size - 1, &error));
    CHECK(kigo_model_detokenize(model, ids, (size_t)n, flags, text, (size_t)size, NULL) == size);
    CHECK(text[size - 1] == '\0');
    return size - 1;
}

static void there_and_back(const kigo_model *model)
{
    static const char *const words[] = {"", "Once upon a time", " two  spaces ", "<|im_start|>user\n", "Fr\xc3\xbchling \xf0\x9f\x8c\xb8"};
    size_t i;
    int32_t n;
    for (i = 0; i < sizeof words / sizeof *words; i++) {
        n = tokenize(model, words[i], KIGO_NUL_TERMINATED, 0);
        CHECK(detokenize(model, n, 0) == (int32_t)strlen(words[i]) && strcmp(text, words[i]) == 0);
    }
    n = tokenize(model, "a\0b", 3, 0);
    CHECK(detokenize(model, n, 0) == 3 && memcmp(text, "a\0b", 4) == 0);

    /* Control tokens only when asked for. */
    n = tokenize(model, "<|im_start|>", KIGO_NUL_TERMINATED, 0);
    CHECK(n > 1);
    n = tokenize(model, "<|im_start|>", KIGO_NUL_TERMINATED, KIGO_TOKENIZE_PARSE_SPECIAL);
    CHECK(n == 1 && ids[0] == 1);
    CHECK(detokenize(model, n, 0) == 0);
    CHECK(detokenize(model, n, KIGO_DETOKENIZE_SPECIAL) == 12 && strcmp(text, "<|im_start|>") == 0);
    n = tokenize(model, "x", 1, 0);
    CHECK(tokenize(model, "x", 1, KIGO_TOKENIZE_ADD_SPECIAL | KIGO_TOKENIZE_PARSE_SPECIAL) >= n);

    /* Half a character comes as it is. */
    n = tokenize(model, "\xf0\x9f\x8c\xb8", 4, 0);
    CHECK(n > 1 && detokenize(model, 1, 0) == 1 && text[0] == '\xf0');

    FAILS(KIGO_INVALID_UTF8, kigo_model_tokenize(model, "a\xff", 2, 0, ids, 10, &error));
    FAILS(KIGO_INVALID_ARGUMENT, kigo_model_tokenize(model, "a", 1, 4, ids, 10, &error));
    FAILS(KIGO_INVALID_ARGUMENT, kigo_model_tokenize(model, "a", 1, -1, ids, 10, &error));
    FAILS(KIGO_INVALID_ARGUMENT, kigo_model_detokenize(model, ids, 1, 2, text, sizeof text, &error));
    for (i = 0; i < 3; i++) {
        static const int32_t wrong[] = {-1, 100000, INT32_MAX};
        FAILS(KIGO_INVALID_ARGUMENT, kigo_model_detokenize(model, &wrong[i], 1, 0, text, sizeof text, &error));
        FAILS(KIGO_INVALID_ARGUMENT, kigo_model_token_bytes(model, wrong[i], text, sizeof text, &error));
        FAILS(KIGO_INVALID_ARGUMENT, kigo_model_token_attributes(model, wrong[i], &error));
    }
}

static void what_tokens_are(const kigo_model *model)
{
    static const char *const absent[] = {"unk", "sep", "mask", "eom", "fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep"};
    int64_t n_vocab = 0, longest = 0;
    int32_t id, n, most = 0;
    size_t i;
    const int32_t eos = kigo_model_special_token(model, "eos", NULL);
    WORKS(kigo_model_get_i64(model, "n_vocab", &n_vocab, &error));
    WORKS(kigo_model_get_i64(model, "max_token_bytes", &longest, &error));
    for (id = 0; id < n_vocab; id++) {
        const int32_t attributes = kigo_model_token_attributes(model, id, NULL);
        n = kigo_model_token_bytes(model, id, NULL, 0, NULL);
        CHECK(n > 0 && kigo_model_token_bytes(model, id, text, (size_t)n, NULL) == n);
        most = n > most ? n : most;
        CHECK(((attributes & KIGO_TOKEN_CONTROL) != 0) == (id < 3));
        CHECK(id < 3 || attributes == KIGO_TOKEN_NORMAL);
    }
    CHECK(most == longest);
    CHECK(eos == 2 && kigo_model_special_token(model, "bos", NULL) == 0);
    CHECK(kigo_model_token_attributes(model, eos, NULL) == (KIGO_TOKEN_CONTROL | KIGO_TOKEN_END_OF_GENERATION));
    CHECK(kigo_model_token_bytes(model, eos, text, sizeof text, NULL) == 10 && memcmp(text, "<|im_end|>", 10) == 0);
    for (i = 0; i < sizeof absent / sizeof *absent; i++)
        FAILS(KIGO_NOT_FOUND, kigo_model_special_token(model, absent[i], &error));
    FAILS(KIGO_INVALID_ARGUMENT, kigo_model_special_token(model, "no such key", &error));
}

static void metadata(const kigo_model *model)
{
    const int32_t count = kigo_model_metadata_count(model, NULL);
    int32_t i, type, of, arrays = 0, size;
    int64_t n, integer = 0;
    double number = 0;
    char key[256];
    CHECK(count > 10);
    for (i = 0; i < count; i++) {
        CHECK(kigo_model_metadata_key(model, i, NULL, 0, NULL) <= (int32_t)sizeof key);
        WORKS(kigo_model_metadata_key(model, i, key, sizeof key, &error));
        type = kigo_model_metadata_type(model, key, &of, &n, NULL);
        CHECK(type >= KIGO_METADATA_UINT8 && type <= KIGO_METADATA_FLOAT64 && n >= 0);
        size = kigo_model_metadata_get_json(model, key, 0, 65536, NULL, 0, NULL);
        CHECK(size > 1 && size <= (int32_t)sizeof text);
        CHECK(kigo_model_metadata_get_json(model, key, 0, 65536, text, (size_t)size, NULL) == size);
        if (type == KIGO_METADATA_ARRAY) {
            arrays++;
            CHECK(of != KIGO_METADATA_ARRAY && text[0] == '[' && text[size - 2] == ']');
            FAILS(KIGO_INVALID_ARGUMENT, kigo_model_metadata_get_str(model, key, text, sizeof text, &error));
            FAILS(KIGO_INVALID_ARGUMENT, kigo_model_metadata_get_json(model, key, n + 1, 1, text, sizeof text, &error));
            CHECK(kigo_model_metadata_get_json(model, key, n, 1, text, sizeof text, NULL) == 3 && strcmp(text, "[]") == 0);
        } else {
            CHECK(of == type && n == 1);
            WORKS(kigo_model_metadata_get_str(model, key, text, sizeof text, &error));
            FAILS(KIGO_INVALID_ARGUMENT, kigo_model_metadata_get_json(model, key, 1, 1, text, sizeof text, &error));
        }
    }
    CHECK(arrays >= 2);
    FAILS(KIGO_INVALID_ARGUMENT, kigo_model_metadata_key(model, count, key, sizeof key, &error));
    FAILS(KIGO_INVALID_ARGUMENT, kigo_model_metadata_key(model, -1, key, sizeof key, &error));

    CHECK(kigo_model_metadata_get_str(model, "general.architecture", text, sizeof text, NULL) == 6);
    CHECK(strcmp(text, "llama") == 0);
    FAILS(KIGO_BUFFER_TOO_SMALL, kigo_model_metadata_get_str(model, "general.architecture", text, 5, &error));
    CHECK(kigo_model_metadata_get_json(model, "general.architecture", 0, 0, text, sizeof text, NULL) == 8);
    CHECK(strcmp(text, "\"llama\"") == 0);
    CHECK(kigo_model_metadata_get_str(model, "llama.block_count", text, sizeof text, NULL) == 2 && text[0] == '2');
    WORKS(kigo_model_metadata_get_i64(model, "llama.block_count", &integer, &error));
    WORKS(kigo_model_metadata_get_f64(model, "llama.block_count", &number, &error));
    CHECK(integer == 2 && number == 2);
    WORKS(kigo_model_metadata_get_f64(model, "llama.rope.freq_base", &number, &error));
    CHECK(number == 10000);
    CHECK(kigo_model_metadata_get_json(model, "tokenizer.ggml.tokens", 1, 2, text, sizeof text, NULL) > 0);
    CHECK(strcmp(text, "[\"<|im_start|>\",\"<|im_end|>\"]") == 0);

    FAILS(KIGO_NOT_FOUND, kigo_model_metadata_get_i64(model, "no.such.key", &integer, &error));
    FAILS(KIGO_NOT_FOUND, kigo_model_metadata_get_f64(model, "", &number, &error));
    FAILS(KIGO_NOT_FOUND, kigo_model_metadata_get_str(model, "no.such.key", text, sizeof text, &error));
    FAILS(KIGO_NOT_FOUND, kigo_model_metadata_get_json(model, "no.such.key", 0, 0, text, sizeof text, &error));
    FAILS(KIGO_NOT_FOUND, kigo_model_metadata_type(model, "no.such.key", &of, &n, &error));
    FAILS(KIGO_INVALID_ARGUMENT, kigo_model_metadata_get_i64(model, "llama.rope.freq_base", &integer, &error));
    FAILS(KIGO_INVALID_ARGUMENT, kigo_model_metadata_get_f64(model, "general.name", &number, &error));
    FAILS(KIGO_INVALID_ARGUMENT, kigo_model_metadata_get_json(model, "tokenizer.ggml.tokens", -1, 1, text, sizeof text, &error));
    FAILS(KIGO_INVALID_ARGUMENT, kigo_model_metadata_get_json(model, "tokenizer.ggml.tokens", 0, 65537, text, sizeof text, &error));
    FAILS(KIGO_INVALID_ARGUMENT, kigo_model_metadata_get_json(model, "tokenizer.ggml.tokens", 0, INT64_MIN, text, sizeof text, &error));
}

int main(int argc, char **argv)
{
    kigo_model *model = load(argv[argc - 1]);
    there_and_back(model);
    what_tokens_are(model);
    metadata(model);
    CHECK(kigo_model_free(model) == KIGO_OK);
    FAILS(KIGO_INVALID_HANDLE, kigo_model_tokenize(model, "a", 1, 0, ids, 10, &error));
    FAILS(KIGO_INVALID_HANDLE, kigo_model_metadata_count(model, &error));
    return 0;
}
