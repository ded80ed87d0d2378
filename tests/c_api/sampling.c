/* Sampling options, grammars, logits and log probabilities through the header. */
#include "model.h"

#include <math.h>

#define N_VOCAB_MAX 4096

static kigo_inference *started(const kigo_model *model, kigo_options *options)
{
    kigo_inference *inference = NULL;
    WORKS(kigo_inference_start(model, "Once upon", KIGO_NUL_TERMINATED, options, &inference, &error));
    return inference;
}

/* Logits and log probabilities beside each token of a greedy generation. */
static void logprobs(const kigo_model *model)
{
    static float logits[N_VOCAB_MAX];
    kigo_options *options = cpu_options();
    kigo_inference *inference = started(model, options);
    int32_t ids[9] = {0}, token = -1, n;
    double values[9] = {0}, sum;
    int64_t n_vocab = 0;
    int i, step;
    char bytes[256];
    WORKS(kigo_model_get_i64(model, "n_vocab", &n_vocab, &error));
    CHECK(n_vocab <= N_VOCAB_MAX);
    FAILS(KIGO_INVALID_ARGUMENT, kigo_inference_logits(inference, logits, N_VOCAB_MAX, &error));
    FAILS(KIGO_INVALID_ARGUMENT, kigo_inference_logprobs(inference, ids, values, 9, &error));
    CHECK(kigo_inference_free(inference) == KIGO_OK);

    WORKS(kigo_options_set_i64(options, "logprobs", 8, &error));
    WORKS(kigo_options_set_i64(options, "max_tokens", 5, &error));
    inference = started(model, options);
    CHECK(kigo_inference_logits(inference, logits, N_VOCAB_MAX, NULL) == 0);
    CHECK(kigo_inference_logprobs(inference, ids, values, 9, NULL) == 0);
    for (step = 0; step < 5; step++) {
        n = kigo_next_token(inference, &token, bytes, sizeof bytes);
        CHECK(n >= 0);
        FAILS(KIGO_BUFFER_TOO_SMALL, kigo_inference_logits(inference, logits, (size_t)n_vocab - 1, &error));
        FAILS(KIGO_BUFFER_TOO_SMALL, kigo_inference_logits(inference, NULL, 0, &error));
        FAILS(KIGO_BUFFER_TOO_SMALL, kigo_inference_logprobs(inference, ids, values, 8, &error));
        CHECK(kigo_inference_logits(inference, logits, N_VOCAB_MAX, NULL) == (int32_t)n_vocab);
        CHECK(kigo_inference_logprobs(inference, ids, values, 9, NULL) == 9);
        /* The most likely token was taken. */
        CHECK(ids[0] == token && ids[1] == token && values[0] == values[1]);
        for (i = 2; i < 9; i++)
            CHECK(values[i] <= values[i - 1] && ids[i] >= 0 && ids[i] < n_vocab);
        sum = 0;
        for (i = 0; i < n_vocab; i++)
            sum += exp((double)logits[i]);
        for (i = 0; i < 9; i++)
            CHECK(fabs(exp((double)logits[ids[i]]) / sum - exp(values[i])) < 1e-9);
    }
    CHECK(kigo_next_token(inference, &token, bytes, sizeof bytes) == KIGO_FINISHED);
    CHECK(kigo_inference_free(inference) == KIGO_OK);
    CHECK(kigo_options_free(options) == KIGO_OK);
}

static void bias(const kigo_model *model)
{
    static char all[N_VOCAB_MAX * 16];
    kigo_options *options = cpu_options();
    kigo_inference *inference = NULL;
    int64_t n_vocab = 0;
    int32_t token = -1;
    char bytes[256];
    size_t length = 0;
    int i;
    WORKS(kigo_model_get_i64(model, "n_vocab", &n_vocab, &error));
    FAILS(KIGO_INVALID_ARGUMENT, kigo_options_set_str(options, "logit_bias", "{\"1\": NaN}", &error));
    FAILS(KIGO_INVALID_ARGUMENT, kigo_options_set_str(options, "logit_bias", "{\"-1\": 1}", &error));
    FAILS(KIGO_INVALID_ARGUMENT, kigo_options_set_str(options, "samplers", "top_k,top_k", &error));

    WORKS(kigo_options_set_str(options, "logit_bias", "{\"7\": 1000}", &error));
    inference = started(model, options);
    CHECK(kigo_next_token(inference, &token, bytes, sizeof bytes) >= 0 && token == 7);
    CHECK(kigo_inference_free(inference) == KIGO_OK);
    WORKS(kigo_options_set_str(options, "logit_bias", "{\"7\": false}", &error));
    inference = started(model, options);
    CHECK(kigo_next_token(inference, &token, bytes, sizeof bytes) >= 0 && token != 7);
    CHECK(kigo_inference_free(inference) == KIGO_OK);

    /* T13: nothing is left to draw. */
    for (i = 0; i < n_vocab; i++)
        length += (size_t)sprintf(all + length, "%s\"%d\": \"-inf\"", i == 0 ? "{" : ", ", i);
    sprintf(all + length, "}");
    WORKS(kigo_options_set_str(options, "logit_bias", all, &error));
    inference = started(model, options);
    token = -1;
    CHECK(kigo_next_token(inference, &token, bytes, sizeof bytes) == KIGO_NO_CANDIDATE && token == -1);
    CHECK(kigo_inference_finish_reason(inference) == KIGO_FINISH_ERROR);
    CHECK(kigo_inference_free(inference) == KIGO_OK);

    /* T16: an id that the model does not have. */
    sprintf(all, "{\"%d\": 1}", (int)n_vocab);
    WORKS(kigo_options_set_str(options, "logit_bias", all, &error));
    inference = NULL;
    FAILS(KIGO_INVALID_ARGUMENT, kigo_inference_start(model, "Once", 4, options, &inference, &error));
    CHECK(inference == NULL && kigo_options_free(options) == KIGO_OK);
}

static void grammars(const kigo_model *model)
{
    kigo_options *options = cpu_options();
    kigo_inference *inference = NULL;
    char text[64];
    WORKS(kigo_options_set_str(options, "regex", "yes|no", &error));
    FAILS(KIGO_INVALID_ARGUMENT, kigo_options_set_str(options, "lark", "start: \"x\"", &error));
    inference = started(model, options);
    text[0] = 0;
    while (kigo_next_text(inference, text + strlen(text), sizeof text - strlen(text), NULL) > 0)
        ;
    CHECK(strcmp(text, "yes") == 0 || strcmp(text, "no") == 0);
    CHECK(kigo_inference_finish_reason(inference) == KIGO_FINISH_GRAMMAR);
    CHECK(kigo_inference_free(inference) == KIGO_OK);
    WORKS(kigo_options_set_str(options, "regex", "(", &error));
    inference = NULL;
    FAILS(KIGO_BAD_GRAMMAR, kigo_inference_start(model, "Once", 4, options, &inference, &error));
    CHECK(inference == NULL && kigo_options_free(options) == KIGO_OK);
}

int main(int argc, char **argv)
{
    kigo_model *model;
    CHECK(argc >= 2);
    model = load(argv[argc - 1]);
    logprobs(model);
    bias(model);
    grammars(model);
    CHECK(kigo_model_free(model) == KIGO_OK);
    return 0;
}
