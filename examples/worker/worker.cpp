// A worker behind the worker functions: reads prompts, one per line, and writes what happens as lines of JSON, each piece
// of text as soon as it is there. With --haiku it gives itself the prompt: a haiku about the current minute.
//
//     c++ -std=c++17 worker.cpp -lkigo -o worker && echo 'Why is the sky blue?' | ./worker model.gguf
//     ./worker --haiku model.gguf
#include <worker_errors.h>
#include <worker_ffi.h>
#include <worker_types.h>

#include <cctype>
#include <cstdio>
#include <ctime>
#include <iostream>
#include <memory>
#include <string>

namespace {

struct Free {
    void operator()(CudaContext *context) const { cuda_destroy(context); }
    void operator()(CudaModel *model) const { cuda_unload_model(model); }
    void operator()(InferenceResult *result) const { cuda_inference_free(result); }
};
using Context = std::unique_ptr<CudaContext, Free>;
using Model = std::unique_ptr<CudaModel, Free>;
using Inference = std::unique_ptr<InferenceResult, Free>;

std::string quoted(const std::string &text) {
    std::string json = "\"";
    for (const char c : text) {
        char escape[8];
        if (c == '"' || c == '\\') json += '\\', json += c;
        else if (static_cast<unsigned char>(c) >= 0x20) json += c;
        else std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned>(c)), json += escape;
    }
    return json + '"';
}

int fail(const char *what, int code) {
    std::cout << "{\"event\": \"error\", \"in\": \"" << what << "\", \"code\": " << code
              << ", \"message\": " << quoted(cuda_error_message(code)) << "}" << std::endl;
    return code;
}

// Runs one prompt, appends its text to `text`, and gives the error code.
int run(const Model &model, const std::string &prompt, std::uint64_t seed, int max_tokens, std::string &text) {
    int code = CUDA_SUCCESS, index = 0, pieces = 0;
    const Inference inference(cuda_inference_start(model.get(), prompt.c_str(), max_tokens, 0.8F, seed, &code));
    if (!inference) return fail("start", code);
    char piece[256];
    while (cuda_inference_next_token(inference.get(), piece, sizeof piece, &index, &code)) {
        std::cout << "{\"event\": \"token\", \"i\": " << index << ", \"t\": " << quoted(piece) << "}" << std::endl;
        text += piece;
        pieces++;
    }
    if (code != CUDA_SUCCESS) return fail("next", code);
    std::cout << "{\"event\": \"end\", \"pieces\": " << pieces << ", \"vram\": " << cuda_get_vram_usage(model.get())
              << "}" << std::endl;
    return CUDA_SUCCESS;
}

std::string minute_in_words(int minute) {
    static const char *const small[] = {"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
        "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"};
    static const char *const tens[] = {"twenty", "thirty", "forty", "fifty"};
    if (minute < 20) return small[minute];
    return std::string(tens[minute / 10 - 2]) + (minute % 10 ? std::string("-") + small[minute % 10] : "");
}

bool contains(std::string text, const std::string &word) {
    for (char &c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    return text.find(word) != std::string::npos;
}

// Up to 32 haiku, each with a seed of its own, until one contains the current minute.
int haiku(const Model &model) {
    const std::time_t now = std::time(nullptr);
    const std::string word = minute_in_words(std::localtime(&now)->tm_min);
    const std::string prompt = "Write a haiku of three short lines about the number " + word +
                               ". Each line contains the word \"" + word + "\".";
    for (std::uint64_t attempt = 1; attempt <= 32; attempt++) {
        std::string text;
        const int code = run(model, prompt, static_cast<std::uint64_t>(now) * 32 + attempt, 48, text);
        if (code != CUDA_SUCCESS) return code;
        if (contains(text, word)) return std::cout << text << std::endl, CUDA_SUCCESS;
    }
    std::cerr << "worker: none of 32 haiku contains \"" << word << "\"\n";
    return CUDA_ERROR_INFERENCE_FAILED;
}

}  // namespace

int main(int argc, char **argv) {
    const bool writes_haiku = argc > 2 && std::string(argv[1]) == "--haiku";
    if (argc < 2) return std::cerr << "usage: worker [--haiku] model.gguf\n", 2;
    int code = CUDA_SUCCESS;
    std::uint64_t bytes = 0;
    const Context context(cuda_init(0, &code));
    if (!context) return fail("init", code);
    const Model model(cuda_load_model(context.get(), argv[argc - 1], &bytes, &code));
    if (!model) return fail("load", code);
    if (!cuda_check_vram_residency(model.get(), &code)) return fail("residency", code);
    if (!cuda_check_device_health(context.get(), &code)) return fail("health", code);
    std::cout << "{\"event\": \"ready\", \"devices\": " << cuda_get_device_count() << ", \"vram\": " << bytes << "}" << std::endl;
    if (writes_haiku) return haiku(model);
    for (std::string prompt, text; std::getline(std::cin, prompt);) run(model, prompt, 0, 256, text);
    return 0;
}
