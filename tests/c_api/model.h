/* Loads the test model and starts inferences that always take the most likely token. */
#include "check.h"

static inline kigo_options *cpu_options(void)
{
    kigo_options *options = NULL;
    WORKS(kigo_options_new(&options, &error));
    WORKS(kigo_options_set_str(options, "device", "cpu", &error));
    WORKS(kigo_options_set_i64(options, "n_ctx", 128, &error));
    WORKS(kigo_options_set_i64(options, "n_threads", 1, &error));
    WORKS(kigo_options_set_i64(options, "temperature", 0, &error));
    return options;
}

static inline kigo_model *load(const char *path)
{
    kigo_model *model = NULL;
    kigo_options *options = cpu_options();
    WORKS(kigo_model_load(path, options, &model, &error));
    CHECK(model != NULL);
    CHECK(kigo_options_free(options) == KIGO_OK);
    return model;
}

static inline kigo_inference *start(const kigo_model *model, const char *prompt, int max_tokens)
{
    kigo_inference *inference = NULL;
    kigo_options *options = cpu_options();
    WORKS(kigo_options_set_i64(options, "max_tokens", max_tokens, &error));
    WORKS(kigo_inference_start(model, prompt, KIGO_NUL_TERMINATED, options, &inference, &error));
    CHECK(inference != NULL);
    CHECK(kigo_options_free(options) == KIGO_OK);
    return inference;
}
