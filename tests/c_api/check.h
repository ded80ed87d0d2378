/* What every test program shares. A failed check says where it is and ends the program. */
#include "kigo.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                          \
    do {                                                                          \
        if (!(condition)) {                                                       \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);       \
            exit(1);                                                              \
        }                                                                         \
    } while (0)

/* The call must return this status, with an error object of the same status; both are printed if not. */
#define FAILS(status, call)                                                       \
    do {                                                                          \
        kigo_error *error = NULL;                                                 \
        int32_t got = (call);                                                     \
        if (got != (status) || kigo_error_status(error) != (status)) {            \
            fprintf(stderr, "%s:%d: %s is %d: %s\n", __FILE__, __LINE__, #call,   \
                    (int)got, kigo_error_message(error));                         \
            exit(1);                                                              \
        }                                                                         \
        CHECK(strlen(kigo_error_message(error)) < 512);                           \
        CHECK(kigo_error_free(error) == KIGO_OK);                                 \
    } while (0)

/* The call must succeed; its error is printed if not. */
#define WORKS(call)                                                               \
    do {                                                                          \
        kigo_error *error = NULL;                                                 \
        if ((call) < 0) {                                                         \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call,         \
                    kigo_error_message(error));                                   \
            exit(1);                                                              \
        }                                                                         \
        CHECK(error == NULL);                                                     \
    } while (0)
