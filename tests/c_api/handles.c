/* Handles that are NULL, freed, made up or of another kind: KIGO_INVALID_HANDLE from every function, no harm done. */
#include "model.h"

static void model_is_refused(kigo_model *model)
{
    kigo_inference *inference = NULL;
    char text[64];
    int64_t value = 7;
    double number = 7;
    const int32_t tokens[] = {1};
    FAILS(KIGO_INVALID_HANDLE, kigo_model_get_str(model, "device", text, sizeof text, &error));
    FAILS(KIGO_INVALID_HANDLE, kigo_model_get_i64(model, "n_ctx", &value, &error));
    FAILS(KIGO_INVALID_HANDLE, kigo_model_get_f64(model, "load_ms", &number, &error));
    FAILS(KIGO_INVALID_HANDLE, kigo_inference_start(model, "x", 1, NULL, &inference, &error));
    FAILS(KIGO_INVALID_HANDLE, kigo_inference_start_tokens(model, tokens, 1, NULL, &inference, &error));
    CHECK(value == 7 && number == 7 && inference == NULL);
    if (model != NULL)
        CHECK(kigo_model_free(model) == KIGO_INVALID_HANDLE);
}

static void inference_is_refused(kigo_inference *inference)
{
    char text[64];
    int32_t token = 7;
    int64_t integer = 7;
    double number = 7;
    FAILS(KIGO_INVALID_HANDLE, kigo_next_text(inference, text, sizeof text, &error));
    CHECK(kigo_next_token(inference, &token, text, sizeof text) == KIGO_INVALID_HANDLE);
    FAILS(KIGO_INVALID_HANDLE, kigo_inference_last_error(inference, &error));
    CHECK(kigo_inference_cancel(inference) == KIGO_INVALID_HANDLE);
    CHECK(kigo_inference_finish_reason(inference) == KIGO_INVALID_HANDLE);
    FAILS(KIGO_INVALID_HANDLE, kigo_inference_get_i64(inference, "prompt_tokens", &integer, &error));
    FAILS(KIGO_INVALID_HANDLE, kigo_inference_get_f64(inference, "prompt_ms", &number, &error));
    CHECK(token == 7 && integer == 7 && number == 7);
    if (inference != NULL)
        CHECK(kigo_inference_free(inference) == KIGO_INVALID_HANDLE);
}

static void options_are_refused(kigo_options *options, const char *path, const kigo_model *live)
{
    kigo_model *model = NULL;
    kigo_inference *inference = NULL;
    FAILS(KIGO_INVALID_HANDLE, kigo_options_set_str(options, "device", "cpu", &error));
    FAILS(KIGO_INVALID_HANDLE, kigo_options_set_i64(options, "n_ctx", 1, &error));
    FAILS(KIGO_INVALID_HANDLE, kigo_options_set_f64(options, "top_p", 1, &error));
    if (options != NULL) {
        FAILS(KIGO_INVALID_HANDLE, kigo_model_load(path, options, &model, &error));
        FAILS(KIGO_INVALID_HANDLE, kigo_inference_start(live, "x", 1, options, &inference, &error));
        CHECK(kigo_options_free(options) == KIGO_INVALID_HANDLE);
    }
    CHECK(model == NULL && inference == NULL);
}

static void error_is_refused(kigo_error *error)
{
    CHECK(kigo_error_status(error) == KIGO_INVALID_HANDLE);
    CHECK(strlen(kigo_error_message(error)) > 0);
    if (error != NULL)
        CHECK(kigo_error_free(error) == KIGO_INVALID_HANDLE);
}

int main(int argc, char **argv)
{
    static const uintptr_t forged[] = {0, 1, 0xDEADBEEF, UINTPTR_MAX, UINTPTR_MAX / 2, (uintptr_t)0xA1 << 56};
    const char *path = argv[argc - 1];
    kigo_model *model = load(path);
    kigo_inference *inference = start(model, "Once", 4);
    kigo_options *options = cpu_options();
    kigo_error *failure = NULL;
    uintptr_t i;

    CHECK(kigo_options_set_i64(options, "n_ctx", 0, &failure) == KIGO_INVALID_ARGUMENT);
    CHECK(kigo_model_free(NULL) == KIGO_OK && kigo_inference_free(NULL) == KIGO_OK);
    CHECK(kigo_options_free(NULL) == KIGO_OK && kigo_error_free(NULL) == KIGO_OK);

    for (i = 0; i < sizeof forged / sizeof *forged; i++) {
        model_is_refused((kigo_model *)forged[i]);
        inference_is_refused((kigo_inference *)forged[i]);
        options_are_refused((kigo_options *)forged[i], path, model);
        error_is_refused((kigo_error *)forged[i]);
    }
    /* Everything near a live handle: other slots and other generations of the same kind. */
    for (i = 1; i < 2000; i++) {
        model_is_refused((kigo_model *)((uintptr_t)model + i));
        model_is_refused((kigo_model *)((uintptr_t)model + (i << 24)));
    }

    model_is_refused((kigo_model *)inference);
    model_is_refused((kigo_model *)options);
    model_is_refused((kigo_model *)failure);
    model_is_refused((kigo_model *)&model);
    inference_is_refused((kigo_inference *)model);
    inference_is_refused((kigo_inference *)options);
    inference_is_refused((kigo_inference *)failure);
    options_are_refused((kigo_options *)model, path, model);
    options_are_refused((kigo_options *)inference, path, model);
    options_are_refused((kigo_options *)failure, path, model);
    error_is_refused((kigo_error *)model);
    error_is_refused((kigo_error *)inference);
    error_is_refused((kigo_error *)options);

    CHECK(kigo_error_status(failure) == KIGO_INVALID_ARGUMENT);
    CHECK(kigo_error_free(failure) == KIGO_OK);
    error_is_refused(failure);
    CHECK(kigo_inference_free(inference) == KIGO_OK);
    inference_is_refused(inference);
    options_are_refused((kigo_options *)failure, path, model);
    CHECK(kigo_model_free(model) == KIGO_OK);
    model_is_refused(model);
    CHECK(kigo_options_free(options) == KIGO_OK);
    FAILS(KIGO_INVALID_HANDLE, kigo_options_set_i64(options, "n_ctx", 1, &error));
    CHECK(kigo_options_free(options) == KIGO_INVALID_HANDLE);
    return 0;
}
