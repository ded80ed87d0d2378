/*
 * A chat: reads a line, streams the answer, and remembers the conversation until the context is full.
 *
 *     cc chat.c -lkigo -o chat && ./chat model.gguf [device]
 */
#include <kigo.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A text that grows. */
typedef struct {
    char *start;
    size_t len, size;
} text;

static void append(text *to, const char *from, size_t n) {
    if (to->len + n + 1 > to->size) {
        to->size = (to->len + n + 1) * 2;
        to->start = realloc(to->start, to->size);
        if (!to->start) exit((perror("chat"), 1));
    }
    memcpy(to->start + to->len, from, n);
    to->start[to->len += n] = 0;
}

/* Appends a message to a JSON array. */
static void append_message(text *json, const char *role, const char *content) {
    json->len = json->len > 1 ? json->len - 1 : 0;
    append(json, json->len ? ", " : "[", json->len ? 2 : 1);
    append(json, "{\"role\": \"", 10);
    append(json, role, strlen(role));
    append(json, "\", \"content\": \"", 15);
    for (; *content; content++) {
        char escape[8];
        if (*content == '"' || *content == '\\') snprintf(escape, sizeof escape, "\\%c", *content);
        else snprintf(escape, sizeof escape, (unsigned char)*content < 0x20 ? "\\u%04x" : "%c", *content);
        append(json, escape, strlen(escape));
    }
    append(json, "\"}]", 3);
}

static int fail(kigo_error *error) {
    fprintf(stderr, "chat: %s\n", kigo_error_message(error));
    kigo_error_free(error);
    return 1;
}

/* Streams the answer to the messages and appends it to them; 0 if that worked. */
static int answer(kigo_model *model, kigo_options *options, text *messages) {
    kigo_error *error = NULL;
    kigo_inference *inference = NULL;
    text all = {0};
    char piece[256];
    int32_t n = kigo_inference_start(model, messages->start, messages->len, options, &inference, &error);
    if (n == KIGO_OK) {
        while ((n = kigo_next_text(inference, piece, sizeof piece, &error)) > 0) {
            fwrite(piece, 1, (size_t)n, stdout), fflush(stdout);
            append(&all, piece, (size_t)n);
        }
    }
    printf("\n");
    append_message(messages, "assistant", all.start ? all.start : "");
    free(all.start);
    kigo_inference_free(inference);
    return n < 0 ? fail(error) : 0;
}

int main(int argc, char **argv) {
    kigo_error *error = NULL;
    kigo_options *options = NULL;
    kigo_model *model = NULL;
    text messages = {0};
    char line[4096];
    int failed = 0;
    if (argc < 2) return fprintf(stderr, "usage: %s model.gguf [device]\n", argv[0]), 2;
    if (kigo_options_new(&options, &error) ||
        kigo_options_set_str(options, "device", argc > 2 ? argv[2] : "auto", &error) ||
        kigo_options_set_str(options, "prompt_format", "chat", &error) ||
        kigo_model_load(argv[1], options, &model, &error)) failed = fail(error);
    while (!failed && printf("> ") && fflush(stdout) == 0 && fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        append_message(&messages, "user", line);
        failed = answer(model, options, &messages);
    }
    free(messages.start);
    kigo_model_free(model);
    kigo_options_free(options);
    return failed;
}
