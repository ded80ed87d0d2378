#include "model.h"

static kigo_model *model, *new_model;
static kigo_inference *inference, *new_inference;
static kigo_options *options, *new_options;
static kigo_error *error, *told;
static const int32_t ids[] = {1, 2};
static char text[256];
static int32_t token;
static int64_t integer;
static double number;

/* Everything that a call may need, alive. */
static void fresh(const char *path)
{
    model = load(path);
    inference = start(model, "Once", 4);
    options = cpu_options();
    CHECK(kigo_options_set_i64(options, "no such option", 1, &error) == KIGO_UNKNOWN_OPTION);
    (void)ids, (void)text, (void)token, (void)integer, (void)number, (void)new_options;
}

static void clear(void)
{
    kigo_inference_free(inference);
    kigo_inference_free(new_inference);
    kigo_model_free(model);
    kigo_model_free(new_model);
    kigo_options_free(options);
    kigo_options_free(new_options);
    kigo_error_free(error);
    kigo_error_free(told);
    new_inference = NULL, new_model = NULL, new_options = NULL, error = NULL, told = NULL;
}

