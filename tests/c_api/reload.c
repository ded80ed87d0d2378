/* The library is opened and closed a hundred times, with threads of its own alive. */
#include "check.h"

#include <dlfcn.h>

/* ISO C has no way from an object pointer to a function pointer but through memory. */
#define GET(function, name)                                                       \
    do {                                                                          \
        void *symbol = dlsym(library, name);                                      \
        CHECK(symbol != NULL && sizeof symbol == sizeof function);                \
        memcpy(&function, &symbol, sizeof function);                              \
    } while (0)

static int32_t (*options_new)(kigo_options **, kigo_error **);
static int32_t (*set_str)(kigo_options *, const char *, const char *, kigo_error **);
static int32_t (*load)(const char *, const kigo_options *, kigo_model **, kigo_error **);
static int32_t (*start)(const kigo_model *, const char *, size_t, const kigo_options *, kigo_inference **, kigo_error **);
static int32_t (*next_text)(kigo_inference *, char *, size_t, kigo_error **);
static int32_t (*model_free)(kigo_model *);

int main(int argc, char **argv)
{
    kigo_options *options = NULL, *kept = NULL;
    kigo_model *model = NULL;
    kigo_inference *inference = NULL;
    char text[256];
    int i;
    CHECK(argc == 3);
    for (i = 0; i < 100; i++) {
        void *library = dlopen(argv[2], RTLD_NOW | RTLD_LOCAL);
        CHECK(library != NULL);
        GET(options_new, "kigo_options_new");
        GET(set_str, "kigo_options_set_str");
        GET(load, "kigo_model_load");
        GET(start, "kigo_inference_start");
        GET(next_text, "kigo_next_text");
        GET(model_free, "kigo_model_free");
        if (i == 0) {
            CHECK(options_new(&kept, NULL) == KIGO_OK && set_str(kept, "device", "cpu", NULL) == KIGO_OK);
            CHECK(load(argv[1], kept, &model, NULL) == KIGO_OK);
            CHECK(start(model, "Once", 4, NULL, &inference, NULL) == KIGO_OK);
        }
        /* What was made before the library was closed is still alive, and what is made now is new. */
        CHECK(next_text(inference, text, sizeof text, NULL) >= 0);
        CHECK(options_new(&options, NULL) == KIGO_OK && options != kept);
        CHECK(set_str(kept, "device", "auto", NULL) == KIGO_OK);
        CHECK(dlclose(library) == 0);
    }
    CHECK(model_free(model) == KIGO_OK);
    return 0;
}
