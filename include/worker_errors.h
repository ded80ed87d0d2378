#ifndef WORKER_ERRORS_H
#define WORKER_ERRORS_H

/* Made from src/c_api/worker.rs; change it there. */


/**
 * What the worker functions write to `*error_code`.
 */
typedef enum {
    /** success */
    CUDA_SUCCESS = 0,
    /** invalid device: there is no GPU of this number that can be used */
    CUDA_ERROR_INVALID_DEVICE = 1,
    /** out of memory: free something, or use a smaller model or context */
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    /** model load failed: the file cannot be read, is no valid GGUF file, or needs what this version does not have */
    CUDA_ERROR_MODEL_LOAD_FAILED = 3,
    /** inference failed: the context is full, the chat template does not render, or the numbers are not finite */
    CUDA_ERROR_INFERENCE_FAILED = 4,
    /** invalid parameter: a pointer is NULL, a handle is not live, or a value is outside its range */
    CUDA_ERROR_INVALID_PARAMETER = 5,
    /** kernel launch failed: the driver or the GPU failed */
    CUDA_ERROR_KERNEL_LAUNCH_FAILED = 6,
    /** vram residency failed: memory of the model is not where it belongs */
    CUDA_ERROR_VRAM_RESIDENCY_FAILED = 7,
    /** device not found: there is no GPU, or no driver that fits */
    CUDA_ERROR_DEVICE_NOT_FOUND = 8,
    /** unknown error */
    CUDA_ERROR_UNKNOWN = 99
} CudaErrorCode;


#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * What an error code means.
 *
 * @param error_code  A code that one of these functions wrote.
 * @returns A line of text that stays valid for ever; do not free it. That of CUDA_ERROR_UNKNOWN for a number that is
 *   no code. Never NULL.
 *
 * Any thread may call it at any time, also in a forked child.
 */
const char *cuda_error_message(int error_code);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* WORKER_ERRORS_H */
