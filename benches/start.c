/* How long a worker takes from opening the library to the first token, by part: start LIBRARY MODEL [DEVICE]
 * A process starts the driver once, so each measurement is a process of its own. */
#include "kigo.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* ISO C has no way from an object pointer to a function pointer but through memory. */
#define GET(function, name)                             \
    do {                                                \
        void *symbol = dlsym(library, name);            \
        if (symbol == NULL)                             \
            return say(dlerror());                      \
        memcpy(&function, &symbol, sizeof function);    \
    } while (0)

static int32_t (*options_new)(kigo_options **, kigo_error **);
static int32_t (*set_str)(kigo_options *, const char *, const char *, kigo_error **);
static int32_t (*set_i64)(kigo_options *, const char *, int64_t, kigo_error **);
static int32_t (*load)(const char *, const kigo_options *, kigo_model **, kigo_error **);
static int32_t (*model_number)(const kigo_model *, const char *, double *, kigo_error **);
static int32_t (*start)(const kigo_model *, const char *, size_t, const kigo_options *, kigo_inference **, kigo_error **);
static int32_t (*next_token)(kigo_inference *, int32_t *, char *, size_t);
static int32_t (*inference_free)(kigo_inference *);
static int32_t (*model_free)(kigo_model *);
static int32_t (*options_free)(kigo_options *);
static const char *(*message)(const kigo_error *);

static int say(const char *text)
{
    fprintf(stderr, "start: %s\n", text != NULL ? text : "unknown error");
    return 1;
}

static double milliseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

int main(int argc, char **argv)
{
    static const char *const parts[] = {"header", "tokenizer", "device", "weights", "prepare"};
    kigo_error *error = NULL;
    kigo_options *options = NULL;
    kigo_model *model = NULL;
    kigo_inference *inference = NULL;
    int32_t token = 0, status;
    double began, opened, loaded, ended, part;
    char name[32], bytes[1024];
    void *library;
    size_t i;
    if (argc < 3 || argc > 4)
        return say("usage: start LIBRARY MODEL [DEVICE]");

    began = milliseconds();
    library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
        return say(dlerror());
    GET(options_new, "kigo_options_new");
    GET(set_str, "kigo_options_set_str");
    GET(set_i64, "kigo_options_set_i64");
    GET(load, "kigo_model_load");
    GET(model_number, "kigo_model_get_f64");
    GET(start, "kigo_inference_start");
    GET(next_token, "kigo_next_token");
    GET(inference_free, "kigo_inference_free");
    GET(model_free, "kigo_model_free");
    GET(options_free, "kigo_options_free");
    GET(message, "kigo_error_message");
    opened = milliseconds();
    if (options_new(&options, &error) || set_str(options, "device", argc > 3 ? argv[3] : "auto", &error) ||
        set_i64(options, "max_tokens", 1, &error) || load(argv[2], options, &model, &error))
        return say(message(error));
    loaded = milliseconds();
    status = start(model, "Once upon a time", KIGO_NUL_TERMINATED, options, &inference, &error);
    if (status < 0)
        return say(message(error));
    /* A token that ends the text is one, too. */
    status = next_token(inference, &token, bytes, sizeof bytes);
    if (status < 0 && status != KIGO_FINISHED)
        return say("no token");
    ended = milliseconds();

    printf("to the first token %.1f ms: open %.1f, load %.1f (", ended - began, opened - began, loaded - opened);
    for (i = 0; i < sizeof parts / sizeof *parts; i++) {
        snprintf(name, sizeof name, "%s_ms", parts[i]);
        if (model_number(model, name, &part, &error))
            return say(message(error));
        printf("%s%s %.1f", i > 0 ? ", " : "", parts[i], part);
    }
    printf("), prompt and token %.1f\n", ended - loaded);
    inference_free(inference);
    model_free(model);
    options_free(options);
    return 0;
}
