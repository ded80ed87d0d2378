/**
 * The worker functions: a second, smaller face of kigo.
 *
 * A worker that was written against these functions and another library links kigo unchanged. `kigo.h` has more to
 * say and to set; both may be used in one process.
 *
 * ## Answers
 *
 * A function that can fail writes a code of worker_errors.h to `*error_code`: CUDA_SUCCESS, or why it returned NULL
 * or
 * false. Other outputs are written on success only. A function whose `error_code` is NULL does nothing and returns
 * NULL
 * or false.
 *
 * ## Handles
 *
 * `CudaContext *`, `CudaModel *` and `InferenceResult *` are handles: numbers that stand for nothing in memory. Each
 * is
 * yours until you free it with the function of its kind. A NULL, freed or made-up handle, or one of another kind, is
 * answered with CUDA_ERROR_INVALID_PARAMETER, or with 0, and does no harm. Freeing NULL does nothing. Things may be
 * freed in any order: a model works without its context, and an inference without its model.
 *
 * ## Threads
 *
 * Every function may be called from any thread. Inferences of one model run side by side. An inference generates for
 * one thread at a time; a second one gets CUDA_ERROR_INVALID_PARAMETER and does no harm. After fork(), the child of a
 * process that used kigo gets CUDA_ERROR_UNKNOWN.
 *
 * ## Environment
 *
 * cuda_init() reads these variables; a value that makes no sense is CUDA_ERROR_INVALID_PARAMETER. An empty one counts
 * as not set.
 *
 *   KIGO_DEVICE: "cuda", which is the default, or "cpu". With "cpu" the CPU is device 0 and the only one, and memory
 *   of the GPU means memory of the model. Nothing else makes a worker run on the CPU.
 *
 *   KIGO_WORKER_TEMPLATE: "1", which is the default, or "0". With "1", a prompt that holds no control token of the
 *   model is put into the model's chat template as one message of a user, if the model has a template. With "0" it is
 *   a text that the model goes on from.
 *
 *   KIGO_WORKER_TOP_K, KIGO_WORKER_N_CTX and the like: the value of the option of `kigo.h` whose key, in capitals,
 *   the
 *   name ends with, for all models and inferences of the context. Without it the option has the default that `kigo.h`
 *   names. The options device, prompt_format, max_tokens, temperature and seed come from the calls.
 *
 * Control tokens that a prompt spells out are control tokens, with either template setting: a worker whose prompts
 * come
 * from strangers must take them out first, or use `kigo.h`, in which text never becomes a control token.
 */


#ifndef WORKER_FFI_H
#define WORKER_FFI_H

/* Made from src/c_api/worker.rs; change it there. */

#include <stdbool.h>
#include <stdint.h>
#include "worker_errors.h"
#include "worker_types.h"

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Opens a device: looks whether models can run on it, and reads the environment.
 *
 * @param gpu_device  The number of the GPU, from 0 to cuda_get_device_count() - 1.
 * @param error_code  Where the code is written.
 * @returns The context, which cuda_destroy() frees; or NULL.
 *   - CUDA_ERROR_DEVICE_NOT_FOUND: there is no GPU, no driver that fits, or this build is for the CPU only.
 *   - CUDA_ERROR_INVALID_DEVICE: there is no GPU of this number, or this build has no code for it.
 *   - CUDA_ERROR_INVALID_PARAMETER: a variable of the environment makes no sense, or `error_code` is NULL.
 *   - CUDA_ERROR_KERNEL_LAUNCH_FAILED: the driver or the GPU failed.
 *   - CUDA_ERROR_OUT_OF_MEMORY: there are too many live handles.
 *
 * Memory:
 * `error_code` is NULL or valid for writing.
 */
CudaContext *cuda_init(int gpu_device, int *error_code);

/**
 * Frees a context. Its models go on.
 *
 * @param ctx  The context, or NULL.
 */
void cuda_destroy(CudaContext *ctx);

/**
 * How many devices there are.
 *
 * @returns The number of GPUs, 0 if they cannot be counted; 1 if KIGO_DEVICE is "cpu".
 */
int cuda_get_device_count(void);

/**
 * Loads a model from a GGUF file into the memory of the GPU.
 *
 * @param ctx              The context.
 * @param model_path       The file, or the first of a split one.
 * @param vram_bytes_used  Where the bytes are written that the model holds.
 * @param error_code       Where the code is written.
 * @returns The model, which cuda_unload_model() frees; or NULL.
 *   - CUDA_ERROR_MODEL_LOAD_FAILED: the file cannot be read, is no valid GGUF file, or needs something that this version
 *     does not have.
 *   - CUDA_ERROR_OUT_OF_MEMORY: there is too little memory, or there are too many live handles.
 *   - CUDA_ERROR_KERNEL_LAUNCH_FAILED: the driver or the GPU failed.
 *   - CUDA_ERROR_INVALID_PARAMETER: a pointer is NULL, or `ctx` is not live.
 *
 * Memory:
 * `model_path` is NULL or NUL-terminated; `vram_bytes_used` and `error_code` are NULL or valid for writing.
 */
CudaModel *cuda_load_model(CudaContext *ctx,
                           const char *model_path,
                           uint64_t *vram_bytes_used,
                           int *error_code);

/**
 * Frees a model. Its inferences go on: the memory is given back when the last of them is freed.
 *
 * @param model  The model, or NULL.
 */
void cuda_unload_model(CudaModel *model);

/**
 * How much memory of the GPU a model took when it was loaded.
 *
 * @param model  The model.
 * @returns The bytes that cuda_load_model() told; 0 if the model is not live.
 */
uint64_t cuda_model_get_vram_usage(CudaModel *model);

/**
 * Asks the driver where every allocation of a model is.
 *
 * @param model       The model.
 * @param error_code  Where the code is written.
 * @returns Whether all of it is in the memory of its GPU, and of no other kind; of a model on the CPU, true.
 *   - CUDA_ERROR_VRAM_RESIDENCY_FAILED: something is elsewhere.
 *   - CUDA_ERROR_KERNEL_LAUNCH_FAILED: the driver cannot be asked.
 *   - CUDA_ERROR_INVALID_PARAMETER: `model` is not live, or `error_code` is NULL.
 *
 * Memory:
 * `error_code` is NULL or valid for writing.
 */
bool cuda_check_vram_residency(CudaModel *model, int *error_code);

/**
 * How much memory of the GPU a model and its inferences hold at the moment.
 *
 * @param model  The model.
 * @returns The bytes; 0 if the model is not live.
 */
uint64_t cuda_get_vram_usage(CudaModel *model);

/**
 * How much memory of the GPU all models of this process hold at the moment that were loaded with cuda_load_model() on
 * the device of the context, and their inferences.
 *
 * @param ctx  The context.
 * @returns The bytes; 0 if the context is not live.
 */
uint64_t cuda_get_process_vram_usage(CudaContext *ctx);

/**
 * Looks whether models can still run on the device of a context.
 *
 * @param ctx         The context.
 * @param error_code  Where the code is written.
 * @returns Whether they can; on the CPU, true.
 *   - CUDA_ERROR_KERNEL_LAUNCH_FAILED: the GPU failed in a way that this process cannot recover from.
 *   - CUDA_ERROR_INVALID_DEVICE, CUDA_ERROR_DEVICE_NOT_FOUND: it is not there any more.
 *   - CUDA_ERROR_INVALID_PARAMETER: `ctx` is not live, or `error_code` is NULL.
 *
 * Memory:
 * `error_code` is NULL or valid for writing.
 */
bool cuda_check_device_health(CudaContext *ctx, int *error_code);

/**
 * Starts a generation. Nothing is computed yet: the first call for a token does that.
 *
 * @param model        The model; it may be unloaded while the inference lives.
 * @param prompt       The prompt in UTF-8; it is copied. KIGO_WORKER_TEMPLATE says how it is read.
 * @param max_tokens   Most tokens to generate, from 1 to 2048.
 * @param temperature  From 0.0, which always takes the most likely token, to 2.0.
 * @param seed         Start of the random numbers: the same model, prompt and settings give the same text.
 * @param error_code   Where the code is written.
 * @returns The inference, which cuda_inference_free() frees; or NULL.
 *   - CUDA_ERROR_INVALID_PARAMETER: a number is outside its range, the prompt is not UTF-8, empty, or longer than the
 *     context, a pointer is NULL, or `model` is not live.
 *   - CUDA_ERROR_INFERENCE_FAILED: the chat template of the model does not render.
 *   - CUDA_ERROR_OUT_OF_MEMORY: there is no room for the prompt, or there are too many live handles.
 *
 * Memory:
 * `prompt` is NULL or NUL-terminated; `error_code` is NULL or valid for writing.
 */
InferenceResult *cuda_inference_start(CudaModel *model,
                                      const char *prompt,
                                      int max_tokens,
                                      float temperature,
                                      uint64_t seed,
                                      int *error_code);

/**
 * The next piece of the text, as soon as there is one.
 *
 * A piece is one or more whole characters in UTF-8, ended by a NUL; all pieces in a row are the text. One that does
 * not fit the buffer comes over several calls. NUL characters, which a model can generate too, are left out.
 *
 * @param result             The inference.
 * @param token_out          Where the piece and its NUL are written.
 * @param token_buffer_size  Bytes in `token_out`, at least 5; 256 hold nearly every piece.
 * @param token_index        Where the number of the piece is written: 0, 1, 2 and so on. May be NULL.
 * @param error_code         Where the code is written.
 * @returns true if a piece was written. false with CUDA_SUCCESS is the end of the text, now and in every later call.
 *   - CUDA_ERROR_INFERENCE_FAILED: the context is full, though the text was to go on, or the numbers of the model are
 *     not finite; all that was generated has been delivered. Free the inference.
 *   - CUDA_ERROR_OUT_OF_MEMORY: the context cannot grow. Nothing is lost: free other inferences and call again.
 *   - CUDA_ERROR_KERNEL_LAUNCH_FAILED: the driver or the GPU failed.
 *   - CUDA_ERROR_INVALID_PARAMETER: `token_out` or `error_code` is NULL, the buffer is too small, `result` is not live,
 *     or another thread is inside a call on it. Nothing is lost.
 *
 * Memory:
 * `token_out` is NULL or valid for writing `token_buffer_size` bytes; `token_index` and `error_code` are NULL or valid
 * for writing.
 */
bool cuda_inference_next_token(InferenceResult *result,
                               char *token_out,
                               int token_buffer_size,
                               int *token_index,
                               int *error_code);

/**
 * Frees an inference. One that another thread is using is cancelled, and gives the memory back when that call returns.
 *
 * @param result  The inference, or NULL.
 */
void cuda_inference_free(InferenceResult *result);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* WORKER_FFI_H */
