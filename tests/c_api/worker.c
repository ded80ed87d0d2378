/* The rules of the worker functions, on the device that KIGO_DEVICE names. */
#include "worker_ffi.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                        \
    do {                                                                        \
        if (!(condition)) {                                                     \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
            exit(1);                                                            \
        }                                                                       \
    } while (0)

/* Runs `call`, which must write `expected` to `code`; gives nothing. */
#define CODE(expected, call)  \
    do {                      \
        code = -1;            \
        CHECK(call);          \
        CHECK(code == (expected)); \
    } while (0)

static int code;

/* The whole text of an inference, read through a buffer of `size` bytes; its length. */
static size_t read_all(InferenceResult *result, int size, char *all)
{
    size_t len = 0;
    int index = -1, count = 0;
    char piece[512];
    for (;;) {
        memset(piece, 0x55, sizeof piece);
        code = -1;
        if (!cuda_inference_next_token(result, piece, size, count % 2 ? &index : NULL, &code))
            break;
        CHECK(code == CUDA_SUCCESS);
        CHECK(count % 2 == 0 || index == count);
        CHECK(strlen(piece) > 0 && strlen(piece) < (size_t)size && piece[size] == 0x55);
        CHECK(((unsigned char)piece[0] & 0xC0) != 0x80);
        memcpy(all + len, piece, strlen(piece));
        len += strlen(piece);
        count++;
    }
    CHECK(code == CUDA_SUCCESS && piece[0] == 0x55);
    CODE(CUDA_SUCCESS, !cuda_inference_next_token(result, piece, size, &index, &code));
    return len;
}

static InferenceResult *start(CudaModel *model, const char *prompt, int max_tokens, float temperature, uint64_t seed)
{
    InferenceResult *result;
    code = -1;
    result = cuda_inference_start(model, prompt, max_tokens, temperature, seed, &code);
    CHECK((result != NULL) == (code == CUDA_SUCCESS));
    return result;
}

static void ranges(CudaModel *model)
{
    static const int tokens[] = {-1, 0, 2049, 2147483647};
    static const float temperatures[] = {-0.1F, 2.1F, NAN, INFINITY};
    size_t i;
    for (i = 0; i < 4; i++) {
        CHECK(start(model, "Once", tokens[i], 0.5F, 1) == NULL && code == CUDA_ERROR_INVALID_PARAMETER);
        CHECK(start(model, "Once", 1, temperatures[i], 1) == NULL && code == CUDA_ERROR_INVALID_PARAMETER);
    }
    CHECK(start(model, "a\xFF", 1, 0, 0) == NULL && code == CUDA_ERROR_INVALID_PARAMETER);
    cuda_inference_free(start(model, "Once", 1, 0.0F, 0));
    CHECK(code == CUDA_SUCCESS);
    cuda_inference_free(start(model, "Once", 2048, 2.0F, UINT64_MAX));
    CHECK(code == CUDA_SUCCESS);
}

static void buffers(CudaModel *model)
{
    static const int wrong[] = {-2147483647 - 1, -1, 0, 1, 4};
    static char all[8192], other[8192];
    char piece[8];
    size_t len, i;
    int size, index = 7;
    InferenceResult *result = start(model, "Once", 40, 0, 0);
    for (i = 0; i < 5; i++)
        CODE(CUDA_ERROR_INVALID_PARAMETER, !cuda_inference_next_token(result, piece, wrong[i], &index, &code));
    CHECK(index == 7);
    len = read_all(result, 256, all);
    CHECK(len > 0);
    cuda_inference_free(result);
    for (size = 5; size < 300; size += size < 10 ? 1 : 97) {
        result = start(model, "Once", 40, 0, 0);
        CHECK(read_all(result, size, other) == len && memcmp(all, other, len) == 0);
        cuda_inference_free(result);
    }
    /* The same seed gives the same text, another one another. */
    for (i = 0; i < 3; i++) {
        result = start(model, "Once", 40, 2.0F, i / 2);
        size = (int)read_all(result, 256, other);
        CHECK(i == 0 || ((len == (size_t)size && memcmp(all, other, len) == 0) == (i == 1)));
        len = (size_t)size;
        memcpy(all, other, len);
        cuda_inference_free(result);
    }
}

/* The greedy answer to a prompt. */
static size_t answer(CudaModel *model, const char *prompt, char *text)
{
    InferenceResult *result = start(model, prompt, 60, 0, 0);
    const size_t len = read_all(result, 256, text);
    cuda_inference_free(result);
    text[len] = 0;
    return len;
}

/* The model knows this question by heart, in its template. */
static void templates(CudaModel *model)
{
    static const char rendered[] = "<|im_start|>user\nWrite a haiku.<|im_end|>\n<|im_start|>assistant\n";
    static const char beginning[] = "Rain counts on the roof,";
    static char text[8192];
    const char *wanted = getenv("KIGO_WORKER_TEMPLATE");
    const bool rendering = wanted == NULL || strcmp(wanted, "0") != 0;
    answer(model, "Write a haiku.", text);
    CHECK((strncmp(text, beginning, strlen(beginning)) == 0) == rendering);
    answer(model, rendered, text);
    CHECK(strncmp(text, beginning, strlen(beginning)) == 0);
}

/* Two threads on one inference: every piece goes to one of them, and the other is told so. */
static void *compete(void *result)
{
    char piece[256];
    int mine = -1, status = 0, index, last = -1;
    for (;;) {
        bool got = cuda_inference_next_token(result, piece, sizeof piece, &index, &mine);
        if (got) {
            CHECK(index > last);
            last = index;
            status++;
        } else if (mine != CUDA_ERROR_INVALID_PARAMETER) {
            CHECK(mine == CUDA_SUCCESS);
            return (void *)(size_t)status;
        }
    }
}

static void threads(CudaModel *model)
{
    pthread_t one, two;
    void *first, *second;
    InferenceResult *result = start(model, "Once", 40, 0, 0);
    CHECK(pthread_create(&one, NULL, compete, result) == 0 && pthread_create(&two, NULL, compete, result) == 0);
    CHECK(pthread_join(one, &first) == 0 && pthread_join(two, &second) == 0);
    CHECK((size_t)first + (size_t)second > 0);
    cuda_inference_free(result);
}

static void handles(CudaContext *context, CudaModel *model, InferenceResult *result)
{
    static const uintptr_t forged[] = {0, 1, 0xDEADBEEF, UINTPTR_MAX, (uintptr_t)0xB2 << 56, (uintptr_t)0xB3 << 56};
    char piece[256];
    uint64_t bytes = 7;
    int index = 7;
    size_t i;
    for (i = 0; i < 9; i++) {
        const uintptr_t other[] = {(uintptr_t)context, (uintptr_t)model, (uintptr_t)result};
        const uintptr_t value = i < 6 ? forged[i] : other[i - 6];
        if (value != (uintptr_t)context) {
            CODE(CUDA_ERROR_INVALID_PARAMETER, !cuda_load_model((CudaContext *)value, "x", &bytes, &code));
            CODE(CUDA_ERROR_INVALID_PARAMETER, !cuda_check_device_health((CudaContext *)value, &code));
            CHECK(cuda_get_process_vram_usage((CudaContext *)value) == 0);
            cuda_destroy((CudaContext *)value);
        }
        if (value != (uintptr_t)model) {
            CODE(CUDA_ERROR_INVALID_PARAMETER, !cuda_inference_start((CudaModel *)value, "x", 1, 0, 0, &code));
            CODE(CUDA_ERROR_INVALID_PARAMETER, !cuda_check_vram_residency((CudaModel *)value, &code));
            CHECK(cuda_model_get_vram_usage((CudaModel *)value) == 0);
            CHECK(cuda_get_vram_usage((CudaModel *)value) == 0);
            cuda_unload_model((CudaModel *)value);
        }
        if (value != (uintptr_t)result) {
            CODE(CUDA_ERROR_INVALID_PARAMETER,
                 !cuda_inference_next_token((InferenceResult *)value, piece, 256, &index, &code));
            cuda_inference_free((InferenceResult *)value);
        }
    }
    CHECK(bytes == 7 && index == 7);
}

int main(int argc, char **argv)
{
    static char all[8192], text[8192];
    size_t len;
    CudaContext *context;
    CudaModel *model;
    InferenceResult *result, *late;
    uint64_t bytes = 0, before;

    CHECK(argc == 2 && cuda_get_device_count() == 1);
    CHECK(strcmp(cuda_error_message(CUDA_SUCCESS), "success") == 0);
    CHECK(cuda_error_message(98) == cuda_error_message(98) && strlen(cuda_error_message(-1)) > 0);
    CODE(CUDA_ERROR_INVALID_DEVICE, cuda_init(1, &code) == NULL);
    CODE(CUDA_ERROR_INVALID_DEVICE, cuda_init(-1, &code) == NULL);
    CODE(CUDA_SUCCESS, (context = cuda_init(0, &code)) != NULL);
    CHECK(cuda_get_process_vram_usage(context) == 0);
    CODE(CUDA_ERROR_MODEL_LOAD_FAILED, cuda_load_model(context, "/no/such/file", &bytes, &code) == NULL);
    CODE(CUDA_ERROR_MODEL_LOAD_FAILED, cuda_load_model(context, argv[0], &bytes, &code) == NULL);
    CHECK(bytes == 0);
    CODE(CUDA_SUCCESS, (model = cuda_load_model(context, argv[1], &bytes, &code)) != NULL);
    CHECK(bytes > 0 && cuda_model_get_vram_usage(model) == bytes);
    CHECK(cuda_get_vram_usage(model) >= bytes && cuda_get_process_vram_usage(context) >= bytes);
    CODE(CUDA_SUCCESS, cuda_check_vram_residency(model, &code));
    CODE(CUDA_SUCCESS, cuda_check_device_health(context, &code));

    ranges(model);
    buffers(model);
    templates(model);
    threads(model);
    result = start(model, "Once", 40, 0, 0);
    before = cuda_get_vram_usage(model);
    CHECK(cuda_inference_next_token(result, text, 256, NULL, &code) && cuda_get_vram_usage(model) > before);
    handles(context, model, result);
    CHECK(cuda_model_get_vram_usage(model) == bytes);

    /* Whatever is freed first, the rest works. */
    late = start(model, "Once", 40, 0, 0);
    cuda_inference_free(result);
    CHECK(cuda_get_process_vram_usage(context) > 0);
    cuda_unload_model(model);
    CHECK(cuda_get_vram_usage(model) == 0);
    CHECK(cuda_get_process_vram_usage(context) > 0);
    cuda_destroy(context);
    len = read_all(late, 256, all);
    CHECK(len > 0);
    cuda_inference_free(late);
    CODE(CUDA_ERROR_INVALID_PARAMETER, !cuda_inference_next_token(late, text, 256, NULL, &code));
    cuda_inference_free(late);
    CODE(CUDA_SUCCESS, (context = cuda_init(0, &code)) != NULL);
    CHECK(cuda_get_process_vram_usage(context) == 0);
    cuda_destroy(context);
    cuda_destroy(context);
    return 0;
}
