#ifndef WORKER_TYPES_H
#define WORKER_TYPES_H

/* Made from src/c_api/worker.rs; change it there. */

/**
 * A device and the settings that the environment had when it was opened.
 */
typedef struct CudaContext CudaContext;

/**
 * A loaded model.
 */
typedef struct CudaModel CudaModel;

/**
 * One generation.
 */
typedef struct InferenceResult InferenceResult;

#endif  /* WORKER_TYPES_H */
