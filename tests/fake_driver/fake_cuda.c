/* A libcuda.so.1 without a GPU, for tests of what kigo does when the driver fails. Device memory is host memory, zero at
 * first; copies copy, graphs replay. Kernels compute nothing, but those that sample choose a token that position and token
 * before tell, and move their rows on as on a GPU. What a real driver refuses (a wrong handle, a copy outside its
 * allocation, a call without a context, a launch with too much shared memory) is refused and counted as misuse, and so is
 * a row that is sampled while its page of the cache is not allocated.
 *
 *   FAKE_CUDA_DEVICES    architectures of the devices, "90" by default, "90,75" for two, "" for none
 *   CUDA_VISIBLE_DEVICES as the driver takes it: numbers up to the first that is wrong
 *   FAKE_CUDA_VERSION    13000 by default
 *   FAKE_CUDA_MEMORY     bytes of a device, 1 GiB by default
 *   FAKE_CUDA_FAIL_AT    this call fails, counted from 1
 *   FAKE_CUDA_FAIL_IN    count calls of this function only
 *   FAKE_CUDA_FAIL_CODE  what the call returns; an error of the kind that a process cannot recover from stays
 *   FAKE_CUDA_REPORT     the file that gets what is counted, at exit: "name number" lines
 *
 * A test can do some of this, and more, while it runs: see the functions fake_cuda_...().
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "launch.h"

#define EXPORT __attribute__((visibility("default")))

enum { CALLS = 1 << 16, MAX_DEVICES = 16, MAX_DEPTH = 64, DEFAULT_SHARED = 48 << 10 };

/* Kernels by the start of their names, with the size of their parameter; the test that builds this writes the list. */
static const struct {
    const char *name;
    size_t bytes;
} KERNELS[] = {
#include "kernels.inc"
    {"test_kernel", 16},
};

typedef enum { ALLOCATION, PINNED, STREAM, EVENT, GRAPH, EXEC, MODULE, FUNCTION, KINDS } Kind;
static const char *const KIND_NAMES[KINDS] = {"allocations", "pinned", "streams", "events", "graphs", "execs", "modules", 0};

/* The kernels that do something. */
typedef enum { NOTHING, SAMPLE_SCAN, SAMPLE_GATHER } Samples;

/* Work that a graph replays. */
typedef struct Node {
    struct Node *next;
    void *to;
    const void *from;
    size_t bytes;
    int fill;
    Samples samples;
    unsigned n_rows;
    KigoSample sample;
} Node;

typedef struct Object {
    struct Object *next;
    Kind kind;
    int device;
    char *start;
    /* What `start` is in, which may begin before it. */
    void *block;
    size_t bytes;
    int capturing, invalidated, recorded;
    /* Until when the work takes that an event marks, as `busy_until`. */
    int64_t until;
    /* Whose calls spoil the capture: those of all threads, of the one that began it, of none. */
    enum { ALL_THREADS, ITS_THREAD, NO_THREAD } capture_mode;
    pthread_t capturer;
    Node *nodes;
    size_t param_bytes;
    int max_shared;
    Samples samples;
    struct Object *module;
} Object;

typedef struct {
    int device;
} Context;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int n_devices, visible[MAX_DEVICES], architectures[MAX_DEVICES];
static Context contexts[MAX_DEVICES];
static int retained[MAX_DEVICES];
static size_t used[MAX_DEVICES], total = (size_t)1 << 30, pinned, most_pinned;
static Object *objects;
static int initialised;
/* The error that all calls for a device return once it is lost; the last is that of the driver as a whole. */
static int lost[MAX_DEVICES + 1];
static long calls, counted, contexts_made, calls_after_loss, launches, graph_launches, misuse, pushes, pops, dependent_launches;
static long fail_at, trap_at;
/* What a kernel takes, and until when those that were launched do, in nanoseconds. */
static int64_t kernel_time, busy_until;
static int fail_code;
static char fail_in[64];
static _Thread_local Context *stack[MAX_DEPTH];
static _Thread_local int depth;

static int refuse(int code, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    misuse++;
    fputs("fake_cuda: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    return code;
}

static int is_sticky(int code) {
    return code == 214 || code == 220 || code == 226 || code == 700 || code == 702 || code == 710
        || (code >= 714 && code <= 719) || code == 721 || code == 999;
}

static long number(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text && *text ? atol(text) : otherwise;
}

__attribute__((constructor)) static void start(void) {
    const char *list = getenv("FAKE_CUDA_DEVICES");
    int n = 0, all[MAX_DEVICES];
    for (char *end; (list = list ? list : "90") && *list && n < MAX_DEVICES; list = *end ? end + 1 : end) {
        all[n++] = (int)strtol(list, &end, 10);
    }
    const char *shown = getenv("CUDA_VISIBLE_DEVICES");
    if (!shown) {
        for (int i = 0; i < n; i++) {
            visible[i] = i;
        }
        n_devices = n;
    }
    while (shown && *shown && n_devices < MAX_DEVICES) {
        char *end;
        long index = strtol(shown, &end, 10);
        if (end == shown || index < 0 || index >= n || (*end && *end != ',')) {
            break;
        }
        visible[n_devices++] = (int)index;
        shown = *end ? end + 1 : end;
    }
    for (int i = 0; i < n_devices; i++) {
        architectures[i] = all[visible[i]];
        contexts[i].device = i;
    }
    total = (size_t)number("FAKE_CUDA_MEMORY", (long)total);
    fail_at = number("FAKE_CUDA_FAIL_AT", 0);
    fail_code = (int)number("FAKE_CUDA_FAIL_CODE", 999);
    const char *function = getenv("FAKE_CUDA_FAIL_IN");
    snprintf(fail_in, sizeof fail_in, "%s", function ? function : "");
}

typedef struct {
    const char *name;
    long value;
} Count;

enum { MAX_COUNTS = 12 + KINDS };

/* All that is counted; returns how many there are. One hold on the context of each device is to stay, and not counted. */
static int count(Count counts[MAX_COUNTS]) {
    long live[KINDS] = {0}, contexts_held = 0, bytes = 0;
    for (Object *object = objects; object; object = object->next) {
        live[object->kind]++;
    }
    for (int i = 0; i < n_devices; i++) {
        contexts_held += retained[i] > 1 ? retained[i] - 1 : 0;
        bytes += (long)used[i];
    }
    const Count all[] = {{"calls", calls},
                         {"counted", counted},
                         {"calls_after_loss", calls_after_loss},
                         {"launches", launches},
                         {"graph_launches", graph_launches},
                         {"dependent_launches", dependent_launches},
                         {"misuse", misuse},
                         {"unpopped", pushes - pops},
                         {"contexts", contexts_held},
                         {"contexts_made", contexts_made},
                         {"bytes", bytes},
                         {"most_pinned", (long)most_pinned}};
    int n = sizeof all / sizeof *all;
    memcpy(counts, all, sizeof all);
    for (int kind = 0; kind < KINDS; kind++) {
        if (KIND_NAMES[kind]) {
            counts[n++] = (Count){KIND_NAMES[kind], live[kind]};
        }
    }
    return n;
}

__attribute__((destructor)) static void report(void) {
    const char *path = getenv("FAKE_CUDA_REPORT");
    FILE *file = path ? fopen(path, "w") : 0;
    if (!file) {
        return;
    }
    Count counts[MAX_COUNTS];
    for (int n = count(counts), i = 0; i < n; i++) {
        fprintf(file, "%s %ld\n", counts[i].name, counts[i].value);
    }
    fclose(file);
}

/* Call `at` from now on of `function`, or of any if that is NULL, returns `code`; none does if `at` is 0. */
EXPORT void fake_cuda_fail(const char *function, long at, int code) {
    pthread_mutex_lock(&lock);
    snprintf(fail_in, sizeof fail_in, "%s", function ? function : "");
    fail_at = at;
    fail_code = code;
    counted = 0;
    pthread_mutex_unlock(&lock);
}

/* Kernel `at` from now on ends in `code`. */
EXPORT void fake_cuda_trap(long at, int code) {
    pthread_mutex_lock(&lock);
    trap_at = launches + at;
    fail_code = code;
    pthread_mutex_unlock(&lock);
}

/* Kernels from now on keep all streams busy for so many nanoseconds each, one after the other, though what they do is done at once. */
EXPORT void fake_cuda_slow(long nanoseconds) {
    pthread_mutex_lock(&lock);
    kernel_time = nanoseconds;
    pthread_mutex_unlock(&lock);
}

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

/* Waits until the time `until`, which may change meanwhile, has come; at once if it is 0. */
static void wait_until(const int64_t *until) {
    for (;;) {
        pthread_mutex_lock(&lock);
        const int64_t left = *until ? *until - now() : 0;
        pthread_mutex_unlock(&lock);
        if (left <= 0) {
            return;
        }
        const struct timespec time = {left / 1000000000, left % 1000000000};
        nanosleep(&time, 0);
    }
}

/* Devices have so much memory that `bytes` are free on the first. */
EXPORT void fake_cuda_leave(size_t bytes) {
    pthread_mutex_lock(&lock);
    total = used[0] + bytes;
    pthread_mutex_unlock(&lock);
}

/* A number of the report, as it is now; -1 if there is none of this name. */
EXPORT long fake_cuda_count(const char *name) {
    long value = -1;
    Count counts[MAX_COUNTS];
    pthread_mutex_lock(&lock);
    for (int n = count(counts), i = 0; i < n; i++) {
        if (!strcmp(counts[i].name, name)) {
            value = counts[i].value;
        }
    }
    pthread_mutex_unlock(&lock);
    return value;
}

static Context *current(void) {
    return depth > 0 ? stack[depth - 1] : 0;
}

/* What all calls that this thread makes now return. */
static int loss(void) {
    return lost[MAX_DEVICES] ? lost[MAX_DEVICES] : current() ? lost[current()->device] : 0;
}

static void lose(int code) {
    lost[current() ? current()->device : MAX_DEVICES] = code;
}

/* Counts a call and says whether it must fail. */
static int enter(const char *name) {
    calls++;
    int lost_already = loss();
    if (!*fail_in || !strcmp(fail_in, name)) {
        counted++;
    }
    if (fail_at && counted == fail_at && !lost_already) {
        fail_at = 0;
        if (is_sticky(fail_code)) {
            lose(fail_code);
        }
        return fail_code;
    }
    if (lost_already) {
        calls_after_loss++;
    }
    return lost_already;
}

#define CALL(name, ...)                  \
    do {                                 \
        pthread_mutex_lock(&lock);       \
        int code = enter(#name);         \
        if (!code) {                     \
            do                           \
                __VA_ARGS__              \
            while (0);                   \
        }                                \
        pthread_mutex_unlock(&lock);     \
        return code;                     \
    } while (0)

/* Declares a new object, which the call answers 2 without. */
#define MAKE(object, kind)       \
    Object *object = make(kind); \
    if (!object) {               \
        code = 2;                \
        break;                   \
    }

#define CHECK(condition, status, ...)            \
    if (!(condition)) {                          \
        code = refuse(status, __VA_ARGS__);      \
        break;                                   \
    }

static int known_device(int device) {
    return initialised && device >= 0 && device < n_devices;
}

/* A new object, or 0 where the host has no memory for it: calls answer 2 then, as for what they allocate. */
static Object *make(Kind kind) {
    Object *object = calloc(1, sizeof *object);
    if (!object) {
        return 0;
    }
    object->kind = kind;
    object->device = current()->device;
    object->max_shared = DEFAULT_SHARED;
    object->next = objects;
    objects = object;
    return object;
}

static Object *find(const void *handle, Kind kind) {
    for (Object *object = objects; object; object = object->next) {
        if (object == handle && object->kind == kind && current() && current()->device == object->device) {
            return object;
        }
    }
    return 0;
}

/* The allocation that has these bytes. */
static Object *holder(const void *address, size_t bytes, Kind kind) {
    const char *start = address;
    for (Object *object = objects; object; object = object->next) {
        if (object->kind == kind && start >= object->start && start + bytes <= object->start + object->bytes) {
            return object;
        }
    }
    return 0;
}

static void free_nodes(Object *object) {
    for (Node *node = object->nodes, *next; node; node = next) {
        next = node->next;
        free(node);
    }
    object->nodes = 0;
}

static void destroy(Object *object) {
    Object **place = &objects;
    while (*place != object) {
        place = &(*place)->next;
    }
    *place = object->next;
    free_nodes(object);
    free(object->block);
    if (object->kind == ALLOCATION) {
        used[object->device] -= object->bytes;
    }
    if (object->kind == PINNED) {
        pinned -= object->bytes;
    }
    free(object);
}

/* Whether the page of the cache that a row writes is allocated. */
static int has_page(const KigoRow *row) {
    const uint64_t *page = (const uint64_t *)(uintptr_t)row->pages + row->position / KIGO_PAGE;
    return holder(page, sizeof *page, ALLOCATION) && holder((const void *)(uintptr_t)*page, 1, ALLOCATION);
}

/* What kernels/sample.cu does, but for the choice of the token: letters where ids are bytes after three others. */
static void sample(const Node *node) {
    const KigoSample *p = &node->sample;
    for (unsigned i = 0; i < node->n_rows; i++) {
        const uint32_t *row_of = (const uint32_t *)(uintptr_t)p->row_of;
        KigoRow *row = (KigoRow *)(uintptr_t)p->rows + (row_of ? row_of[i] : i);
        if (row->slot == KIGO_NO_SLOT) {
            continue;
        }
        KigoSampler *sampler = (KigoSampler *)(uintptr_t)p->samplers + row->slot;
        if ((sampler->weigh == 1) != (node->samples == SAMPLE_GATHER)) {
            continue;
        }
        if (!has_page(row)) {
            refuse(1, "position %u has no page", row->position);
        }
        const uint32_t token = (100 + (7 * row->position + 3 * row->token) % 26) % p->n_vocab, serial = sampler->serial + 1;
        KigoSampled *outcomes = (KigoSampled *)(uintptr_t)p->outcomes + (size_t)row->slot * KIGO_SAMPLE_OUTCOMES;
        if (sampler->window) {
            ((uint32_t *)(uintptr_t)sampler->window)[sampler->n_tokens % sampler->window_len] = token;
        }
        sampler->drawn += sampler->temperature > 0;
        sampler->n_tokens++;
        sampler->serial = serial;
        row->token = token;
        row->position++;
        /* Seen by a thread that waits for it. */
        __atomic_store_n(&outcomes[serial % KIGO_SAMPLE_OUTCOMES].outcome, (uint64_t)serial << 32 | token, __ATOMIC_RELEASE);
    }
}

static void run(const Node *node) {
    if (loss()) {
        return;
    }
    if (node->from) {
        memmove(node->to, node->from, node->bytes);
        return;
    }
    if (node->to) {
        memset(node->to, node->fill, node->bytes);
        return;
    }
    if (++launches == trap_at) {
        lose(fail_code);
    } else if (node->samples) {
        sample(node);
    }
    if (kernel_time) {
        const int64_t from = now();
        busy_until = (busy_until > from ? busy_until : from) + kernel_time;
    }
}

/* Does the work, or records it in a stream that captures; 2 where the host has no memory for that. */
static int queue(Object *stream, Node node) {
    if (!stream->capturing) {
        run(&node);
        return 0;
    }
    Node **place = &stream->nodes;
    while (*place) {
        place = &(*place)->next;
    }
    *place = malloc(sizeof node);
    if (!*place) {
        return 2;
    }
    **place = node;
    (*place)->next = 0;
    return 0;
}

/* Whether a stream captures so that a call of this thread that is no work of a stream is an error that spoils the capture. */
static int spoils_capture(void) {
    int spoilt = 0;
    for (Object *object = objects; object; object = object->next) {
        if (object->kind == STREAM && object->capturing &&
            (object->capture_mode == ALL_THREADS ||
             (object->capture_mode == ITS_THREAD && pthread_equal(object->capturer, pthread_self())))) {
            spoilt = object->invalidated = 1;
        }
    }
    return spoilt;
}

EXPORT int cuDriverGetVersion(int *version) {
    CALL(cuDriverGetVersion, { *version = (int)number("FAKE_CUDA_VERSION", 13000); });
}

EXPORT int cuInit(unsigned flags) {
    CALL(cuInit, {
        CHECK(flags == 0, 1, "cuInit(%u)", flags);
        initialised = 1;
        code = n_devices ? 0 : 100;
    });
}

EXPORT int cuGetErrorName(int error, const char **name) {
    static const struct {
        int code;
        const char *name;
    } names[] = {{1, "CUDA_ERROR_INVALID_VALUE"},   {2, "CUDA_ERROR_OUT_OF_MEMORY"},
                 {100, "CUDA_ERROR_NO_DEVICE"},     {209, "CUDA_ERROR_NO_BINARY_FOR_GPU"},
                 {700, "CUDA_ERROR_ILLEGAL_ADDRESS"}, {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"},
                 {999, "CUDA_ERROR_UNKNOWN"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (names[i].code == error) {
            *name = names[i].name;
            return 0;
        }
    }
    *name = 0;
    return 1;
}

EXPORT int cuDeviceGetCount(int *count) {
    CALL(cuDeviceGetCount, {
        CHECK(initialised, 3, "cuDeviceGetCount before cuInit");
        *count = n_devices;
    });
}

EXPORT int cuDeviceGet(int *device, int ordinal) {
    CALL(cuDeviceGet, {
        CHECK(known_device(ordinal), 101, "cuDeviceGet(%d)", ordinal);
        *device = ordinal;
    });
}

EXPORT int cuDeviceGetName(char *name, int len, int device) {
    CALL(cuDeviceGetName, {
        CHECK(known_device(device) && len > 0, 101, "cuDeviceGetName(%d)", device);
        snprintf(name, (size_t)len, "Fake GPU %d", visible[device]);
    });
}

EXPORT int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    CALL(cuDeviceTotalMem, {
        CHECK(known_device(device), 101, "cuDeviceTotalMem(%d)", device);
        *bytes = total;
    });
}

/* Shared memory that a block may have (CUDA C++ Programming Guide, compute capabilities). */
static int most_shared(int device) {
    switch (architectures[device]) {
        case 75: return 64 << 10;
        case 80: return 163 << 10;
        case 86:
        case 89:
        case 120: return 99 << 10;
        default: return 227 << 10;
    }
}

EXPORT int cuDeviceGetAttribute(int *value, unsigned attribute, int device) {
    CALL(cuDeviceGetAttribute, {
        CHECK(known_device(device), 101, "cuDeviceGetAttribute(%d)", device);
        switch (attribute) {
            case 16: *value = 8; break;
            case 36: *value = 1000000; break;
            case 37: *value = 1024; break;
            case 75: *value = architectures[device] / 10; break;
            case 76: *value = architectures[device] % 10; break;
            case 81: *value = most_shared(device) + (1 << 10); break;
            case 97: *value = most_shared(device); break;
            default: code = refuse(1, "unknown attribute %u", attribute);
        }
    });
}

EXPORT int cuDevicePrimaryCtxRetain(Context **context, int device) {
    CALL(cuDevicePrimaryCtxRetain, {
        CHECK(known_device(device), 101, "cuDevicePrimaryCtxRetain(%d)", device);
        contexts_made += retained[device]++ == 0;
        *context = &contexts[device];
    });
}

EXPORT int cuDevicePrimaryCtxRelease_v2(int device) {
    CALL(cuDevicePrimaryCtxRelease, {
        CHECK(known_device(device) && retained[device] > 0, 201, "a release too many of device %d", device);
        retained[device]--;
    });
}

EXPORT int cuCtxPushCurrent_v2(Context *context) {
    CALL(cuCtxPushCurrent, {
        CHECK(context >= contexts && context < contexts + n_devices && retained[context->device], 201, "push of a wrong context");
        CHECK(depth < MAX_DEPTH, 1, "push %d deep", depth);
        stack[depth++] = context;
        pushes++;
    });
}

/* Works on a lost device too. */
EXPORT int cuCtxPopCurrent_v2(Context **context) {
    pthread_mutex_lock(&lock);
    int lost_already = loss(), code = 0;
    code = enter("cuCtxPopCurrent");
    if (lost_already) {
        calls_after_loss--;
        code = 0;
    }
    if (code == 0 || loss()) {
        if (depth == 0) {
            code = refuse(201, "pop without a push");
        } else {
            *context = stack[--depth];
            pops++;
        }
    }
    pthread_mutex_unlock(&lock);
    return code;
}

EXPORT int cuMemGetInfo_v2(size_t *free_bytes, size_t *all_bytes) {
    CALL(cuMemGetInfo, {
        CHECK(current(), 201, "cuMemGetInfo without a context");
        *all_bytes = total;
        *free_bytes = total - used[current()->device];
    });
}

/* Memory of a device is not the host's, so what stands in for it must not take the last of a small address space: allocations of a few
 * bytes, without which no program goes on, would fail. */
static int leaves_room(void) {
    void *room = malloc(1 << 20);
    free(room);
    return room != 0;
}

EXPORT int cuMemAlloc_v2(uint64_t *address, size_t bytes) {
    CALL(cuMemAlloc, {
        CHECK(current(), 201, "cuMemAlloc without a context");
        CHECK(bytes > 0, 1, "cuMemAlloc of nothing");
        CHECK(!spoils_capture(), 900, "cuMemAlloc while a stream captures");
        void *block = 0;
        /* Zero, without being touched. */
        if (bytes > total - used[current()->device] || !(block = calloc(1, bytes + 256))) {
            code = 2;
            break;
        }
        char *start = (char *)block + (256 - (uintptr_t)block % 256);
        Object *object = leaves_room() ? make(ALLOCATION) : 0;
        if (!object) {
            free(block);
            code = 2;
            break;
        }
        object->block = block;
        object->start = start;
        object->bytes = bytes;
        used[object->device] += bytes;
        *address = (uintptr_t)start;
    });
}

EXPORT int cuMemFree_v2(uint64_t address) {
    CALL(cuMemFree, {
        Object *object = holder((void *)(uintptr_t)address, 1, ALLOCATION);
        CHECK(current(), 201, "cuMemFree without a context");
        CHECK(object && object->start == (char *)(uintptr_t)address, 1, "cuMemFree of what is no allocation");
        CHECK(!spoils_capture(), 900, "cuMemFree while a stream captures");
        destroy(object);
    });
}

/* Host memory that the device reaches; 0 where there is none for the object. */
static Object *pin(void *start, size_t bytes) {
    Object *object = make(PINNED);
    if (!object) {
        return 0;
    }
    object->start = start;
    object->bytes = bytes;
    pinned += bytes;
    most_pinned = pinned > most_pinned ? pinned : most_pinned;
    return object;
}

EXPORT int cuMemHostAlloc(void **start, size_t bytes, unsigned flags) {
    CALL(cuMemHostAlloc, {
        CHECK(current(), 201, "cuMemHostAlloc without a context");
        CHECK(bytes > 0 && flags < 8, 1, "cuMemHostAlloc(%zu, %u)", bytes, flags);
        char *memory = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
        if (!memory) {
            code = 2;
            break;
        }
        memset(memory, 0xA5, bytes);
        Object *object = pin(memory, bytes);
        if (!object) {
            free(memory);
            code = 2;
            break;
        }
        object->block = memory;
        *start = memory;
    });
}

EXPORT int cuMemFreeHost(void *start) {
    CALL(cuMemFreeHost, {
        Object *object = holder(start, 1, PINNED);
        CHECK(object && object->start == start && object->block, 1, "cuMemFreeHost of what is no allocation");
        destroy(object);
    });
}

EXPORT int cuMemHostRegister_v2(void *start, size_t bytes, unsigned flags) {
    CALL(cuMemHostRegister, {
        CHECK(current(), 201, "cuMemHostRegister without a context");
        CHECK(bytes > 0 && (uintptr_t)start % 4096 == 0 && flags < 16, 1, "cuMemHostRegister(%p, %zu, %u)", start, bytes, flags);
        CHECK(!holder(start, 1, PINNED), 712, "cuMemHostRegister of what is pinned");
        code = pin(start, bytes) ? 0 : 2;
    });
}

EXPORT int cuMemHostUnregister(void *start) {
    CALL(cuMemHostUnregister, {
        Object *object = holder(start, 1, PINNED);
        CHECK(object && object->start == start && !object->block, 713, "cuMemHostUnregister of what is not registered");
        destroy(object);
    });
}

EXPORT int cuMemHostGetDevicePointer_v2(uint64_t *address, void *start, unsigned flags) {
    CALL(cuMemHostGetDevicePointer, {
        CHECK(holder(start, 1, PINNED) && flags == 0, 1, "cuMemHostGetDevicePointer of what is not pinned");
        *address = (uintptr_t)start;
    });
}

EXPORT int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *handle) {
    CALL(cuMemcpyHtoDAsync, {
        Object *stream = find(handle, STREAM);
        CHECK(stream, 400, "copy in a wrong stream");
        CHECK(holder((void *)(uintptr_t)to, bytes, ALLOCATION), 1, "copy of %zu bytes outside an allocation", bytes);
        code = queue(stream, (Node){.to = (void *)(uintptr_t)to, .from = from, .bytes = bytes});
    });
}

EXPORT int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *handle) {
    CALL(cuMemcpyDtoHAsync, {
        Object *stream = find(handle, STREAM);
        CHECK(stream, 400, "copy in a wrong stream");
        CHECK(holder((void *)(uintptr_t)from, bytes, ALLOCATION), 1, "copy of %zu bytes outside an allocation", bytes);
        code = queue(stream, (Node){.to = to, .from = (void *)(uintptr_t)from, .bytes = bytes});
    });
}

EXPORT int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *handle) {
    CALL(cuMemcpyDtoDAsync, {
        Object *stream = find(handle, STREAM);
        CHECK(stream, 400, "copy in a wrong stream");
        CHECK(holder((void *)(uintptr_t)from, bytes, ALLOCATION), 1, "copy of %zu bytes outside an allocation", bytes);
        CHECK(holder((void *)(uintptr_t)to, bytes, ALLOCATION), 1, "copy of %zu bytes outside an allocation", bytes);
        code = queue(stream, (Node){.to = (void *)(uintptr_t)to, .from = (void *)(uintptr_t)from, .bytes = bytes});
    });
}

EXPORT int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void *handle) {
    CALL(cuMemsetD8Async, {
        Object *stream = find(handle, STREAM);
        CHECK(stream, 400, "fill in a wrong stream");
        CHECK(holder((void *)(uintptr_t)to, bytes, ALLOCATION), 1, "fill of %zu bytes outside an allocation", bytes);
        code = queue(stream, (Node){.to = (void *)(uintptr_t)to, .fill = value, .bytes = bytes});
    });
}

EXPORT int cuPointerGetAttribute(void *value, unsigned attribute, uint64_t address) {
    CALL(cuPointerGetAttribute, {
        Object *object = holder((void *)(uintptr_t)address, 1, ALLOCATION);
        CHECK(object, 1, "cuPointerGetAttribute of what is no allocation");
        switch (attribute) {
            case 2: *(int *)value = 2; break;
            case 8: *(char *)value = 0; break;
            case 9: *(int *)value = object->device; break;
            default: code = refuse(1, "unknown pointer attribute %u", attribute);
        }
    });
}

EXPORT int cuStreamCreate(Object **stream, unsigned flags) {
    CALL(cuStreamCreate, {
        CHECK(current() && flags <= 1, 201, "cuStreamCreate(%u) without a context", flags);
        MAKE(made, STREAM);
        *stream = made;
    });
}

#define DESTROY(symbol, name, kind, text)                \
    EXPORT int symbol(void *handle) {                    \
        CALL(name, {                                     \
            Object *object = find(handle, kind);         \
            CHECK(object, 400, #name " of no " text);    \
            destroy(object);                             \
        });                                              \
    }

DESTROY(cuStreamDestroy_v2, cuStreamDestroy, STREAM, "stream")
DESTROY(cuEventDestroy_v2, cuEventDestroy, EVENT, "event")
DESTROY(cuGraphDestroy, cuGraphDestroy, GRAPH, "graph")
DESTROY(cuGraphExecDestroy, cuGraphExecDestroy, EXEC, "executable graph")

EXPORT int cuStreamSynchronize(void *handle) {
    wait_until(&busy_until);
    CALL(cuStreamSynchronize, {
        Object *stream = find(handle, STREAM);
        CHECK(stream, 400, "cuStreamSynchronize of no stream");
        CHECK(!stream->capturing, (stream->invalidated = 1, 900), "cuStreamSynchronize of a stream that captures");
    });
}

EXPORT int cuStreamWaitEvent(void *handle, void *event, unsigned flags) {
    CALL(cuStreamWaitEvent, { CHECK(find(handle, STREAM) && find(event, EVENT) && flags == 0, 400, "a wrong wait"); });
}

EXPORT int cuStreamBeginCapture_v2(void *handle, unsigned mode) {
    CALL(cuStreamBeginCapture, {
        Object *stream = find(handle, STREAM);
        CHECK(stream && mode <= 2, 400, "cuStreamBeginCapture of no stream");
        CHECK(!stream->capturing, 901, "cuStreamBeginCapture of a stream that captures");
        stream->capturing = 1;
        stream->invalidated = 0;
        stream->capture_mode = mode;
        stream->capturer = pthread_self();
    });
}

EXPORT int cuStreamEndCapture(void *handle, Object **graph) {
    CALL(cuStreamEndCapture, {
        Object *stream = find(handle, STREAM);
        CHECK(stream, 400, "cuStreamEndCapture of no stream");
        CHECK(stream->capturing, 901, "cuStreamEndCapture of a stream that does not capture");
        stream->capturing = 0;
        Object *made = make(GRAPH);
        if (!made) {
            free_nodes(stream);
            code = 2;
            break;
        }
        made->nodes = stream->nodes;
        stream->nodes = 0;
        *graph = made;
        if (stream->invalidated) {
            destroy(made);
            *graph = 0;
            code = 901;
        }
    });
}

EXPORT int cuGraphInstantiateWithFlags(Object **exec, void *handle, unsigned long long flags) {
    CALL(cuGraphInstantiate, {
        Object *graph = find(handle, GRAPH);
        CHECK(graph && flags == 0, 400, "cuGraphInstantiate of no graph");
        MAKE(made, EXEC);
        Node **place = &made->nodes;
        for (Node *node = graph->nodes; node; node = node->next) {
            *place = malloc(sizeof *node);
            if (!*place) {
                code = 2;
                break;
            }
            **place = *node;
            (*place)->next = 0;
            place = &(*place)->next;
        }
        if (code) {
            destroy(made);
            break;
        }
        *exec = made;
    });
}

EXPORT int cuGraphLaunch(void *handle, void *into) {
    CALL(cuGraphLaunch, {
        Object *exec = find(handle, EXEC);
        CHECK(exec && find(into, STREAM), 400, "cuGraphLaunch of no graph, or in no stream");
        graph_launches++;
        for (Node *node = exec->nodes; node; node = node->next) {
            run(node);
        }
    });
}

EXPORT int cuEventCreate(Object **event, unsigned flags) {
    CALL(cuEventCreate, {
        CHECK(current() && flags < 8, 201, "cuEventCreate without a context");
        MAKE(made, EVENT);
        *event = made;
    });
}

EXPORT int cuEventRecord(void *handle, void *in) {
    CALL(cuEventRecord, {
        Object *event = find(handle, EVENT);
        CHECK(event && find(in, STREAM), 400, "cuEventRecord of no event, or in no stream");
        event->recorded = 1;
        event->until = busy_until;
    });
}

EXPORT int cuStreamQuery(void *handle) {
    CALL(cuStreamQuery, {
        CHECK(find(handle, STREAM), 400, "cuStreamQuery of no stream");
        code = busy_until && now() < busy_until ? 600 : 0;
    });
}

EXPORT int cuEventQuery(void *handle) {
    CALL(cuEventQuery, {
        Object *event = find(handle, EVENT);
        CHECK(event, 400, "cuEventQuery of no event");
        code = event->until && now() < event->until ? 600 : 0;
    });
}

EXPORT int cuEventSynchronize(void *handle) {
    pthread_mutex_lock(&lock);
    const Object *event = find(handle, EVENT);
    const int64_t until = event ? event->until : 0;
    pthread_mutex_unlock(&lock);
    wait_until(&until);
    CALL(cuEventSynchronize, { CHECK(find(handle, EVENT), 400, "cuEventSynchronize of no event"); });
}

EXPORT int cuEventElapsedTime(float *milliseconds, void *from, void *to) {
    CALL(cuEventElapsedTime, {
        Object *start = find(from, EVENT), *end = find(to, EVENT);
        CHECK(start && end && start->recorded && end->recorded, 400, "cuEventElapsedTime of events that are not recorded");
        *milliseconds = 1.0F;
    });
}

EXPORT int cuModuleLoadData(Object **module, const void *image) {
    CALL(cuModuleLoadData, {
        CHECK(current() && image, 201, "cuModuleLoadData without a context");
        CHECK(!spoils_capture(), 900, "cuModuleLoadData while a stream captures");
        MAKE(made, MODULE);
        *module = made;
    });
}

EXPORT int cuModuleUnload(void *handle) {
    CALL(cuModuleUnload, {
        Object *module = find(handle, MODULE);
        CHECK(module, 400, "cuModuleUnload of no module");
        for (Object *object = objects, *next; object; object = next) {
            next = object->next;
            if (object->kind == FUNCTION && object->module == module) {
                destroy(object);
            }
        }
        destroy(module);
    });
}

EXPORT int cuModuleGetFunction(Object **function, void *handle, const char *name) {
    CALL(cuModuleGetFunction, {
        Object *module = find(handle, MODULE);
        CHECK(module, 400, "cuModuleGetFunction of no module");
        size_t longest = 0, bytes = 0;
        for (size_t i = 0; i < sizeof KERNELS / sizeof *KERNELS; i++) {
            size_t len = strlen(KERNELS[i].name);
            if (len > longest && !strncmp(name, KERNELS[i].name, len) && (!name[len] || name[len] == '_')) {
                longest = len;
                bytes = KERNELS[i].bytes;
            }
        }
        if (!longest) {
            code = 500;
            break;
        }
        MAKE(made, FUNCTION);
        made->module = module;
        made->param_bytes = bytes;
        made->samples = !strcmp(name, "sample_scan") ? SAMPLE_SCAN : !strcmp(name, "sample_gather") ? SAMPLE_GATHER : NOTHING;
        *function = made;
    });
}

EXPORT int cuFuncGetParamInfo(void *handle, size_t index, size_t *offset, size_t *bytes) {
    CALL(cuFuncGetParamInfo, {
        Object *function = find(handle, FUNCTION);
        CHECK(function, 400, "cuFuncGetParamInfo of no function");
        CHECK(index == 0, 1, "a kernel has one parameter");
        *offset = 0;
        *bytes = function->param_bytes;
    });
}

EXPORT int cuFuncSetAttribute(void *handle, unsigned attribute, int value) {
    CALL(cuFuncSetAttribute, {
        Object *function = find(handle, FUNCTION);
        CHECK(function && attribute == 8, 400, "cuFuncSetAttribute(%u) of no function", attribute);
        CHECK(value >= 0 && value <= most_shared(function->device), 1, "%d bytes of shared memory", value);
        function->max_shared = value > DEFAULT_SHARED ? value : DEFAULT_SHARED;
    });
}

typedef struct {
    unsigned id;
    char pad[4];
    int value[16];
} Attribute;

typedef struct {
    unsigned grid[3], block[3], shared_bytes;
    void *stream;
    const Attribute *attributes;
    unsigned n_attributes;
} Config;

EXPORT int cuLaunchKernelEx(const Config *config, void *handle, void **parameters, void **extra) {
    CALL(cuLaunchKernelEx, {
        Object *function = find(handle, FUNCTION), *stream = find(config->stream, STREAM);
        CHECK(function && stream, 400, "launch of no function, or in no stream");
        CHECK(parameters && parameters[0] && !extra, 1, "launch without a parameter");
        const unsigned *grid = config->grid, *block = config->block;
        CHECK(grid[0] && grid[1] && grid[2] && grid[1] < 65536 && grid[2] < 65536, 1, "grid %u %u %u", grid[0], grid[1], grid[2]);
        CHECK((uint64_t)block[0] * block[1] * block[2] - 1 < 1024, 1, "block %u %u %u", block[0], block[1], block[2]);
        CHECK((int)config->shared_bytes <= function->max_shared, 1, "%u bytes of shared memory", config->shared_bytes);
        for (unsigned i = 0; i < config->n_attributes; i++) {
            const unsigned id = config->attributes[i].id;
            CHECK(id == 2 || id == 6, 1, "unknown launch attribute %u", id);
            // Of a cooperative launch all blocks run at the same time, here one on a multiprocessor.
            CHECK(id != 2 || grid[0] * grid[1] * grid[2] <= 8, 720, "%u blocks at the same time", grid[0]);
            dependent_launches += id == 6 ? config->attributes[i].value[0] : 0;
        }
        if (!code) {
            Node node = {.samples = function->samples, .n_rows = grid[1]};
            if (node.samples) {
                memcpy(&node.sample, parameters[0], sizeof node.sample);
            }
            code = queue(stream, node);
        }
    });
}
