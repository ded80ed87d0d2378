/* Chats in JSON, templates of the caller's, and facts in JSON. */
#include "model.h"

static char text[65536];

#define USER "<|im_start|>user\nHi<|im_end|>\n"
#define ASSISTANT "<|im_start|>assistant\n"

/* The chat must render to this text, in a buffer of exactly its size. */
static void renders(const kigo_model *model, const kigo_options *options, const char *chat, const char *expected)
{
    const int32_t needed = kigo_model_chat_render(model, chat, KIGO_NUL_TERMINATED, options, NULL, 0, NULL);
    CHECK(needed == (int32_t)strlen(expected) + 1);
    memset(text, 0x55, sizeof text);
    FAILS(KIGO_BUFFER_TOO_SMALL,
          kigo_model_chat_render(model, chat, strlen(chat), options, text, (size_t)needed - 1, &error));
    CHECK(text[0] == 0x55);
    CHECK(kigo_model_chat_render(model, chat, strlen(chat), options, text, (size_t)needed, NULL) == needed);
    CHECK(strcmp(text, expected) == 0 && text[needed] == 0x55);
}

static void refuses(const kigo_model *model, const char *chat, int32_t status, const char *words)
{
    kigo_error *error = NULL;
    kigo_inference *inference = NULL;
    kigo_options *options = cpu_options();
    CHECK(kigo_model_chat_render(model, chat, KIGO_NUL_TERMINATED, options, text, sizeof text, &error) == status);
    if (strstr(kigo_error_message(error), words) == NULL) {
        fprintf(stderr, "no \"%s\" in: %s\n", words, kigo_error_message(error));
        exit(1);
    }
    CHECK(kigo_error_free(error) == KIGO_OK);
    WORKS(kigo_options_set_str(options, "prompt_format", "chat", &error));
    FAILS(status, kigo_inference_start(model, chat, KIGO_NUL_TERMINATED, options, &inference, &error));
    CHECK(inference == NULL && kigo_options_free(options) == KIGO_OK);
}

static void chats(const kigo_model *model)
{
    static const char hi[] = "[{\"role\": \"user\", \"content\": \"Hi\"}]";
    static const char broken[] = "[{\"role\": \"user\", \"content\": \"<|im_end|>\"}]";
    kigo_options *options = cpu_options();
    renders(model, options, hi, USER ASSISTANT);
    renders(model, NULL, "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}", USER ASSISTANT);
    renders(model, NULL, "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}], \"add_generation_prompt\": false}", USER);
    renders(model, NULL,
            "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", \"content\": \"A b \"}],"
            " \"continue_final_message\": true, \"tools\": null}",
            USER ASSISTANT "A b ");
    renders(model, NULL, broken, "<|im_start|>user\n<|im_end|><|im_end|>\n" ASSISTANT);

    refuses(model, "Hi", KIGO_INVALID_ARGUMENT, "prompt: ");
    refuses(model, "17", KIGO_INVALID_ARGUMENT, "prompt: ");
    refuses(model, "{}", KIGO_INVALID_ARGUMENT, "no messages");
    refuses(model, "[1]", KIGO_INVALID_ARGUMENT, "messages: ");
    refuses(model, "{\"messages\": [], \"tool\": []}", KIGO_INVALID_ARGUMENT, "\"tool\"");
    refuses(model, "{\"messages\": [], \"tools\": {}}", KIGO_INVALID_ARGUMENT, "tools: ");
    refuses(model, "{\"messages\": [], \"chat_template_kwargs\": []}", KIGO_INVALID_ARGUMENT, "chat_template_kwargs: ");
    refuses(model, "{\"messages\": [], \"add_generation_prompt\": 1}", KIGO_INVALID_ARGUMENT, "add_generation_prompt: ");
    refuses(model, "{\"messages\": [], \"continue_final_message\": true}", KIGO_INVALID_ARGUMENT, "messages: ");
    refuses(model, "{\"messages\": [], \"continue_final_message\": true, \"add_generation_prompt\": true}",
            KIGO_INVALID_ARGUMENT, "add_generation_prompt: ");

    WORKS(kigo_options_set_str(options, "prompt_format", "user", &error));
    renders(model, options, "Hi", USER ASSISTANT);
    CHECK(kigo_options_free(options) == KIGO_OK);
}

static void templates(const kigo_model *model)
{
    static const char source[] = "{{ tools | length }}{{ tools[0].name }}{{ messages[0].tool_calls[0].function.arguments.x }}"
                                 "{{ enable_thinking }}{{ documents[0].title }}";
    static const char chat[] =
        "{\"messages\": [{\"role\": \"assistant\", \"content\": null,"
        " \"tool_calls\": [{\"function\": {\"name\": \"f\", \"arguments\": \"{\\\"x\\\": 4}\"}}]}],"
        " \"tools\": [{\"name\": \"f\"}], \"documents\": [{\"title\": \"t\"}], \"chat_template_kwargs\": {\"enable_thinking\": false}}";
    static char long_source[262146];
    const char *path = "kigo-no-such-template.jinja";
    kigo_options *options = cpu_options();
    WORKS(kigo_options_set_str(options, "chat_template", source, &error));
    renders(model, options, chat, "1f4Falset");
    FAILS(KIGO_IO, kigo_options_set_str(options, "chat_template_file", path, &error));
    FAILS(KIGO_IO, kigo_options_set_str(options, "chat_template_file", "/dev/zero", &error));
    renders(model, options, chat, "1f4Falset");
    memset(long_source, 'x', sizeof long_source - 1);
    FAILS(KIGO_INVALID_ARGUMENT, kigo_options_set_str(options, "chat_template", long_source, &error));
    WORKS(kigo_options_set_str(options, "chat_template", "{% for x in messages %}", &error));
    FAILS(KIGO_BAD_TEMPLATE, kigo_model_chat_render(model, "[]", 2, options, text, sizeof text, &error));
    CHECK(kigo_options_free(options) == KIGO_OK);

    options = cpu_options();
    WORKS(kigo_options_set_str(options, "chat_template_name", "default", &error));
    renders(model, options, "[]", ASSISTANT);
    WORKS(kigo_options_set_str(options, "chat_template_name", "tool_use", &error));
    FAILS(KIGO_BAD_TEMPLATE, kigo_model_chat_render(model, "[]", 2, options, text, sizeof text, &error));
    CHECK(kigo_options_free(options) == KIGO_OK);
}

static void has(const char *words)
{
    if (strstr(text, words) == NULL) {
        fprintf(stderr, "no %s in %s\n", words, text);
        exit(1);
    }
}

static void facts(const kigo_model *model, const char *path)
{
    kigo_options *options = cpu_options();
    const int32_t needed = kigo_model_info(model, 0, NULL, 0, NULL);
    CHECK(needed > 100 && needed < (int32_t)sizeof text);
    FAILS(KIGO_BUFFER_TOO_SMALL, kigo_model_info(model, 0, text, (size_t)needed - 1, &error));
    CHECK(kigo_model_info(model, 0, text, (size_t)needed, NULL) == needed);
    CHECK((int32_t)strlen(text) == needed - 1);
    has("\"architecture\":\"llama\"");
    has("\"n_layer\":2");
    has("\"role\":\"attn_q.weight\",\"count\":2");
    has("\"chat_templates\":[\"default\"]");
    has("\"device\":\"cpu\",\"n_ctx\":128");
    WORKS(kigo_model_info(model, 64, text, sizeof text, &error));
    has("\"n_ctx\":64");
    FAILS(KIGO_INVALID_ARGUMENT, kigo_model_info(model, -1, text, sizeof text, &error));
    FAILS(KIGO_INVALID_ARGUMENT, kigo_model_info(model, INT64_MAX, text, sizeof text, &error));

    /* The file says the same without being loaded. */
    CHECK(kigo_model_info(model, 0, text, sizeof text, NULL) == needed);
    {
        char *loaded = malloc((size_t)needed);
        CHECK(loaded != NULL);
        memcpy(loaded, text, (size_t)needed);
        CHECK(kigo_file_info(path, options, NULL, 0, NULL) == needed);
        CHECK(kigo_file_info(path, options, text, sizeof text, NULL) == needed);
        CHECK(memcmp(loaded, text, (size_t)needed) == 0);
        free(loaded);
    }
    FAILS(KIGO_IO, kigo_file_info("/no/such.gguf", NULL, text, sizeof text, &error));
    FAILS(KIGO_NOT_GGUF, kigo_file_info("/proc/self/exe", NULL, text, sizeof text, &error));
    CHECK(kigo_options_free(options) == KIGO_OK);
}

int main(int argc, char **argv)
{
    kigo_model *model = load(argv[argc - 1]);
    chats(model);
    templates(model);
    facts(model, argv[argc - 1]);
    CHECK(kigo_model_free(model) == KIGO_OK);
    return 0;
}
