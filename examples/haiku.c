/*
 * Writes a haiku that contains the current minute in words, which nobody can have written beforehand.
 * A small model does not always obey, so up to MAX_ATTEMPTS haiku are generated, each with a seed of its own.
 *
 *     cc haiku.c -lkigo -o haiku && ./haiku model.gguf [device]
 */
#include <ctype.h>
#include <kigo.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { MAX_ATTEMPTS = 32 };

static void minute_in_words(int minute, char *out, size_t size) {
    static const char *const small[] = {"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
        "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"};
    static const char *const tens[] = {"twenty", "thirty", "forty", "fifty"};
    if (minute < 20) snprintf(out, size, "%s", small[minute]);
    else snprintf(out, size, "%s%s%s", tens[minute / 10 - 2], minute % 10 ? "-" : "", minute % 10 ? small[minute % 10] : "");
}

/* Whether text holds the whole word, in upper or lower case, "forty two" for "forty-two" included. */
static int contains(const char *text, const char *word) {
    for (const char *at = text; *at; at++) {
        size_t n = 0;
        while (word[n] && (tolower((unsigned char)at[n]) == word[n] || (word[n] == '-' && at[n] == ' '))) n++;
        int starts = at == text || (!isalpha((unsigned char)at[-1]) && at[-1] != '-');
        if (!word[n] && starts && !isalpha((unsigned char)at[n]) && at[n] != '-') return 1;
    }
    return 0;
}

/* Writes one haiku and says whether it contains the word; a negative status if something failed. */
static int32_t attempt(kigo_model *model, kigo_options *options, const char *prompt, const char *word, int number,
                       kigo_error **error) {
    kigo_inference *inference = NULL;
    char text[256], haiku[4096] = "";
    int64_t tokens = 0;
    double speed = 0;
    int32_t n = kigo_inference_start(model, prompt, KIGO_NUL_TERMINATED, options, &inference, error);
    printf("\n");
    while (n >= 0 && (n = kigo_next_text(inference, text, sizeof text, error)) > 0) {
        fputs(text, stdout), fflush(stdout);
        strncat(haiku, text, sizeof haiku - strlen(haiku) - 1);
    }
    if (n >= 0) n = kigo_inference_get_i64(inference, "generated_tokens", &tokens, error);
    if (n >= 0) n = kigo_inference_get_f64(inference, "tokens_per_second", &speed, error);
    kigo_inference_free(inference);
    if (n < 0) return n;
    printf("\n\n[attempt %d: %lld tokens, %.1f tok/s, %s]\n", number, (long long)tokens, speed,
           contains(haiku, word) ? "yes" : "no");
    return contains(haiku, word);
}

int main(int argc, char **argv) {
    kigo_error *error = NULL;
    kigo_options *options = NULL;
    kigo_model *model = NULL;
    char word[32], prompt[256], device[64];
    const time_t now = time(NULL);
    if (argc < 2) return fprintf(stderr, "usage: %s model.gguf [device]\n", argv[0]), 2;
    minute_in_words(localtime(&now)->tm_min, word, sizeof word);
    snprintf(prompt, sizeof prompt, "Write a haiku of three short lines about the number %s. "
             "Each line contains the word \"%s\".", word, word);

    int32_t n = kigo_options_new(&options, &error);
    if (n >= 0) n = kigo_options_set_str(options, "device", argc > 2 ? argv[2] : "auto", &error);
    if (n >= 0) n = kigo_options_set_str(options, "prompt_format", "user", &error);
    if (n >= 0) n = kigo_options_set_i64(options, "max_tokens", 48, &error);
    if (n >= 0) n = kigo_model_load(argv[1], options, &model, &error);
    if (n >= 0) n = kigo_model_get_str(model, "device", device, sizeof device, &error);
    if (n >= 0) printf("device: %s\nminute: %s\n", device, word), n = 0;

    for (int number = 1; number <= MAX_ATTEMPTS && n == 0; number++) {
        n = kigo_options_set_i64(options, "seed", (int64_t)now * MAX_ATTEMPTS + number, &error);
        if (n >= 0) n = attempt(model, options, prompt, word, number, &error);
    }
    if (n < 0) fprintf(stderr, "haiku: %s\n", kigo_error_message(error));
    if (n == 0) fprintf(stderr, "haiku: none of %d attempts contains \"%s\"\n", MAX_ATTEMPTS, word);
    kigo_error_free(error);
    kigo_model_free(model);
    kigo_options_free(options);
    return n > 0 ? 0 : 1;
}
