#include "model.h"

static kigo_model *live_model, *new_model;
static kigo_load *live_load, *new_load;
static kigo_inference *live_inference, *new_inference, *new_fork;
static kigo_options *live_options, *new_options;
static kigo_error *live_error, *told;
static const int32_t ids[] = {1, 2};
static char text[16384], file[4096];
static int32_t token, many[16384];
static int64_t integer;
static double number;
static float single;

/* Everything that a call may need, alive. */
static void fresh(const char *path)
{
    live_model = load(path);
    live_options = cpu_options();
    WORKS(kigo_options_set_i64(live_options, "logprobs", 1, &error));
    WORKS(kigo_inference_start(live_model, "Once", 4, live_options, &live_inference, &error));
    WORKS(kigo_inference_save(live_inference, file, &error));
    CHECK(kigo_options_set_i64(live_options, "no such option", 1, &live_error) == KIGO_UNKNOWN_OPTION);
    WORKS(kigo_load_start(path, live_options, &live_load, &error));
    (void)ids, (void)text, (void)token, (void)many, (void)integer, (void)number, (void)single, (void)new_options;
}

static void clear(void)
{
    kigo_inference_free(live_inference);
    kigo_inference_free(new_inference);
    kigo_inference_free(new_fork);
    remove(file);
    kigo_load_free(live_load);
    kigo_load_free(new_load);
    kigo_model_free(live_model);
    kigo_model_free(new_model);
    kigo_options_free(live_options);
    kigo_options_free(new_options);
    kigo_error_free(live_error);
    kigo_error_free(told);
    new_inference = NULL, new_fork = NULL, new_load = NULL, new_model = NULL, new_options = NULL, live_error = NULL, told = NULL;
}
