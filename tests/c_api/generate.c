/* Prints facts, a line each, and the text of one generation: generate MODEL FORMAT PROMPT SEED MAX_TOKENS
 * KIGO_TEST_DEVICE names the device (default: auto). */
#include "kigo.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Most memory that this process ever had at a time. */
static long long peak_bytes(void)
{
    char line[256];
    long long kilobytes = -1;
    FILE *status = fopen("/proc/self/status", "r");
    while (status != NULL && fgets(line, sizeof line, status) != NULL)
        if (sscanf(line, "VmHWM: %lld", &kilobytes) == 1)
            break;
    if (status != NULL)
        fclose(status);
    return kilobytes * 1024;
}

static int fail(kigo_error *error)
{
    fprintf(stderr, "%s: %s\n", kigo_status_name(kigo_error_status(error)), kigo_error_message(error));
    kigo_error_free(error);
    return 1;
}

int main(int argc, char **argv)
{
    kigo_error *error = NULL;
    kigo_options *options = NULL;
    kigo_model *model = NULL;
    kigo_inference *inference = NULL;
    char text[512], all[65536] = "";
    int64_t weight_bytes = 0;
    const char *device = getenv("KIGO_TEST_DEVICE");
    int32_t n;
    if (argc != 6)
        return 2;
    if (device == NULL)
        device = "auto";
    if (kigo_options_new(&options, &error) || kigo_options_set_str(options, "device", device, &error) ||
        kigo_options_set_str(options, "prompt_format", argv[2], &error) ||
        kigo_options_set_i64(options, "seed", strtoll(argv[4], NULL, 10), &error) ||
        kigo_options_set_i64(options, "max_tokens", strtoll(argv[5], NULL, 10), &error) ||
        kigo_model_load(argv[1], options, &model, &error) ||
        kigo_model_get_str(model, "device", text, sizeof text, &error) < 0 ||
        kigo_model_get_i64(model, "weight_bytes", &weight_bytes, &error) ||
        kigo_inference_start(model, argv[3], KIGO_NUL_TERMINATED, options, &inference, &error))
        return fail(error);
    printf("device %s\nweight_bytes %lld\n", text, (long long)weight_bytes);
    while ((n = kigo_next_text(inference, text, sizeof text, &error)) > 0)
        strncat(all, text, sizeof all - strlen(all) - 1);
    if (n < 0)
        return fail(error);
    printf("peak_bytes %lld\n%s", peak_bytes(), all);
    kigo_inference_free(inference);
    kigo_model_free(model);
    kigo_options_free(options);
    return 0;
}
