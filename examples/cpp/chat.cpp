// A chat: reads a line, streams the answer, and remembers the conversation until the context is full.
//
//     c++ -std=c++17 chat.cpp -lkigo -o chat && ./chat model.gguf [device]
#include <kigo.hpp>

#include <cstdio>
#include <iostream>
#include <string>

namespace {

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

// A conversation as the JSON array that the option prompt_format "chat" takes.
class messages {
public:
    void add(const char *role, const std::string &content) {
        list_ += (list_.empty() ? "" : ", ") + ("{\"role\": " + quoted(role)) + ", \"content\": " + quoted(content) + "}";
    }
    std::string json() const { return "[" + list_ + "]"; }

private:
    std::string list_;
};

}  // namespace

int main(int argc, char **argv) {
    if (argc < 2) return std::cerr << "usage: chat model.gguf [device]\n", 2;
    kigo::error error;
    kigo::options options(error);
    options.set("device", argc > 2 ? argv[2] : "auto", error).set("prompt_format", "chat", error);
    const kigo::model model(argv[1], options, error);

    messages conversation;
    for (std::string line; !error && std::cout << "> " << std::flush && std::getline(std::cin, line);) {
        conversation.add("user", line);
        kigo::inference inference(model, conversation.json(), options, error);
        std::string answer;
        for (std::string piece; inference.next(piece, error); answer += piece) std::cout << piece << std::flush;
        std::cout << '\n';
        conversation.add("assistant", answer);
    }
    if (error) return std::cerr << "chat: " << error.message() << '\n', 1;
    return 0;
}
