/* Handles by the hundred thousand: each is new, none is left behind, and the dead stay dead. */
#include "model.h"

#define LIVE 10000

int main(int argc, char **argv)
{
    static kigo_options *options[LIVE];
    static kigo_error *errors[LIVE];
    static kigo_inference *inferences[1000];
    kigo_model *model = load(argv[argc - 1]);
    kigo_options *first = NULL, *one = NULL;
    /* Less for tools that slow a program down. */
    const int cycles = argc > 2 ? 1000 : 100000, live = argc > 2 ? 1000 : LIVE, running = argc > 2 ? 100 : 1000;
    int i, j;

    WORKS(kigo_options_new(&first, &error));
    CHECK(kigo_options_free(first) == KIGO_OK);
    for (i = 0; i < cycles; i++) {
        WORKS(kigo_options_new(&one, &error));
        CHECK(one != first);
        CHECK(kigo_options_free(one) == KIGO_OK);
        CHECK(kigo_options_free(first) == KIGO_INVALID_HANDLE);
    }
    for (i = 0; i < live; i++) {
        WORKS(kigo_options_new(&options[i], &error));
        WORKS(kigo_options_set_i64(options[i], "top_k", i, &error));
        CHECK(kigo_options_set_i64(options[i], "top_k", -1, &errors[i]) == KIGO_INVALID_ARGUMENT);
    }
    for (j = 0; j < live; j++) {
        i = (int)((long)j * 7919 % live);
        CHECK(kigo_error_status(errors[i]) == KIGO_INVALID_ARGUMENT);
        CHECK(kigo_error_free(errors[i]) == KIGO_OK);
        CHECK(kigo_options_free(options[i]) == KIGO_OK);
        CHECK(kigo_options_free(options[i]) == KIGO_INVALID_HANDLE);
    }
    for (i = 0; i < running; i++)
        inferences[i] = start(model, "Once", 2);
    for (i = 0; i < running; i++) {
        CHECK(kigo_inference_finish_reason(inferences[i]) == KIGO_FINISH_RUNNING);
        CHECK(kigo_inference_free(inferences[i]) == KIGO_OK);
    }
    CHECK(kigo_model_free(model) == KIGO_OK);
    return 0;
}
