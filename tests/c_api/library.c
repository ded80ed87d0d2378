/* What the library says about itself, its options and the devices. */
#include "check.h"

static char text[65536];

static void has(const char *words)
{
    if (strstr(text, words) == NULL) {
        fprintf(stderr, "no %s in %s\n", words, text);
        exit(1);
    }
}

static void serves(void)
{
    WORKS(kigo_abi_check(KIGO_ABI_VERSION, KIGO_VERSION_STRING, &error));
    WORKS(kigo_abi_check(KIGO_ABI_VERSION, "0.0.1", &error));
    CHECK(kigo_abi_version() == KIGO_ABI_VERSION && strcmp(kigo_version(), KIGO_VERSION_STRING) == 0);
    FAILS(KIGO_ABI_MISMATCH, kigo_abi_check(KIGO_ABI_VERSION + 1, KIGO_VERSION_STRING, &error));
    FAILS(KIGO_ABI_MISMATCH, kigo_abi_check(KIGO_ABI_VERSION, "999.0.0", &error));
    FAILS(KIGO_INVALID_ARGUMENT, kigo_abi_check(KIGO_ABI_VERSION, "new", &error));
}

static void describes(void)
{
    const int32_t build = kigo_build_info(NULL, 0, NULL), keys = kigo_options_keys(NULL, 0, NULL);
    const int32_t devices = kigo_device_list(NULL, 0, NULL);
    CHECK(build > 100 && keys > 1000 && devices > 10 && keys < (int32_t)sizeof text);
    FAILS(KIGO_BUFFER_TOO_SMALL, kigo_build_info(text, (size_t)build - 1, &error));
    FAILS(KIGO_BUFFER_TOO_SMALL, kigo_options_keys(text, (size_t)keys - 1, &error));
    FAILS(KIGO_BUFFER_TOO_SMALL, kigo_device_list(text, (size_t)devices - 1, &error));
    CHECK(kigo_build_info(text, (size_t)build, NULL) == build && (int32_t)strlen(text) == build - 1);
    has("\"version\":\"" KIGO_VERSION_STRING "\"");
    has("\"llama\"");
    has("\"Q4_K\"");
    CHECK(kigo_device_list(text, sizeof text, NULL) == devices);
    has("{\"device\":\"cpu\",\"name\":\"CPU\"}]");
    CHECK(kigo_options_keys(text, (size_t)keys, NULL) == keys);
    has("{\"key\":\"" KIGO_OPTION_DEVICE "\",\"read_by\":\"model_load\",\"type\":\"string\"");
    has("\"key\":\"" KIGO_OPTION_TOP_K "\",\"read_by\":\"inference_start\",\"type\":\"integer\"");
}

int main(void)
{
    serves();
    describes();
    return 0;
}
