// Writes a haiku that contains the current minute in words, which nobody can have written beforehand.
// A small model does not always obey, so up to 32 haiku are generated, each with a seed of its own.
//
//     c++ -std=c++17 haiku.cpp -lkigo -o haiku && ./haiku model.gguf [device]
#include <kigo.hpp>

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <ctime>
#include <iostream>
#include <string>

namespace {

constexpr int max_attempts = 32;

std::string minute_in_words(int minute) {
    static const char *const small[] = {"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
        "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"};
    static const char *const tens[] = {"twenty", "thirty", "forty", "fifty"};
    if (minute < 20) return small[minute];
    const std::string ten = tens[minute / 10 - 2];
    return minute % 10 ? ten + "-" + small[minute % 10] : ten;
}

// Whether the text holds the whole word, in upper or lower case, "forty two" for "forty-two" included.
bool contains(std::string text, std::string word) {
    const auto inside = [](char c) { return std::isalpha(static_cast<unsigned char>(c)) || c == '-'; };
    std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::tolower(c); });
    for (int spelling = 0; spelling < 2; spelling++, std::replace(word.begin(), word.end(), '-', ' '))
        for (auto at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) {
            const auto end = at + word.size();
            if ((at == 0 || !inside(text[at - 1])) && (end == text.size() || !inside(text[end]))) return true;
        }
    return false;
}

}  // namespace

int main(int argc, char **argv) {
    if (argc < 2) return std::cerr << "usage: haiku model.gguf [device]\n", 2;
    const std::time_t now = std::time(nullptr);
    const std::string word = minute_in_words(std::localtime(&now)->tm_min);
    const std::string prompt = "Write a haiku of three short lines about the number " + word +
                               ". Each line contains the word \"" + word + "\".";
    kigo::error error;
    kigo::options options(error);
    options.set("device", argc > 2 ? argv[2] : "auto", error);
    options.set("prompt_format", "user", error).set("max_tokens", 48, error);
    const kigo::model model(argv[1], options, error);
    std::cout << "device: " << model.text("device", error) << "\nminute: " << word << '\n';

    bool found = false;
    for (int attempt = 1; attempt <= max_attempts && !found && !error; attempt++) {
        options.set("seed", std::int64_t{now} * max_attempts + attempt, error);
        kigo::inference inference(model, prompt, options, error);
        std::string haiku;
        std::cout << '\n';
        for (std::string piece; inference.next(piece, error); haiku += piece) std::cout << piece << std::flush;
        found = contains(haiku, word);
        std::printf("\n\n[attempt %d: %lld tokens, %.1f tok/s, %s]\n", attempt,
                    static_cast<long long>(inference.integer("generated_tokens", error)),
                    inference.number("tokens_per_second", error), found ? "yes" : "no");
    }
    if (error) return std::cerr << "haiku: " << error.message() << '\n', 1;
    if (!found) std::cerr << "haiku: none of " << max_attempts << " attempts contains \"" << word << "\"\n";
    return found ? 0 : 1;
}
