// The owners of kigo.hpp: they move, free, keep the first failure, and need neither exceptions nor RTTI.
#include <kigo.hpp>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>

#define CHECK(condition)                                                             \
    do {                                                                             \
        if (!(condition)) {                                                          \
            std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
            std::exit(1);                                                            \
        }                                                                            \
    } while (0)

static std::string read_all(kigo::inference &inference, kigo::error &error) {
    std::string all;
    for (std::string piece; inference.next(piece, error);) {
        CHECK(!piece.empty());
        all += piece;
    }
    return all;
}

int main(int argc, char **argv) {
    const std::string path = argv[argc - 1];
    kigo::error error;
    CHECK(!error && error.status() == KIGO_OK && *error.message() == '\0');
    CHECK(kigo::check(error));
    kigo::options options(error);
    options.set("device", "cpu", error).set("n_ctx", 128, error).set("n_threads", 1U, error);
    options.set("temperature", 0.0, error).set("max_tokens", 40L, error).set("stop", std::string("\x01"), error);
    CHECK(!error);

    // The first failure stays, and nothing is called after it.
    options.set("n_ctx", 0, error).set("no such option", 1, error);
    CHECK(error && error.status() == KIGO_INVALID_ARGUMENT && std::string(error.message()).find("n_ctx") == 0);
    kigo::model none(path, options, error);
    CHECK(!none && error.status() == KIGO_INVALID_ARGUMENT);
    CHECK(none.text("name", error).empty() && none.integer("n_ctx", error) == 0);
    error.clear();
    CHECK(!error);
    CHECK(none.text("name", error).empty() && error.status() == KIGO_INVALID_HANDLE);
    kigo::error moved = std::move(error);
    CHECK(moved.status() == KIGO_INVALID_HANDLE && *moved.message() != '\0');
    error.clear();

    kigo::model model(path, options, error);
    CHECK(model && !error && model.integer("n_ctx", error) == 128 && model.text("device", error) == "cpu");
    CHECK(model.number("load_ms", error) > 0 && !error);
    kigo::inference first(model, "Once upon a time", options, error);
    const std::string text = read_all(first, error);
    CHECK(!error && !text.empty() && first.integer("generated_tokens", error) > 0);
    CHECK(first.number("tokens_per_second", error) > 0 && first.finish_reason() != KIGO_FINISH_RUNNING);

    // The same again after going back, from a fork, and from a file.
    const std::size_t n_prompt = static_cast<std::size_t>(first.integer("prompt_tokens", error));
    first.rewind(n_prompt, error);
    kigo::inference forked = first.fork(error);
    const std::string file = std::string(argv[0]) + ".state";
    first.save(file, error);
    kigo::inference loaded = kigo::inference::loaded(model, file, options, error);
    CHECK(std::remove(file.c_str()) == 0);
    CHECK(read_all(first, error) == text && read_all(forked, error) == text && read_all(loaded, error) == text);
    first.append(" ", error);
    CHECK(!read_all(first, error).empty() && !error);
    first.rewind(0, error);
    CHECK(error.status() == KIGO_INVALID_ARGUMENT);
    error.clear();

    // Moving leaves nothing behind; a model may go before its inferences.
    const std::int32_t tokens[] = {5, 6};
    kigo::inference other(model, tokens, 2, options, error);
    other = kigo::inference(model, "Once upon a time", options, error);
    kigo::model taken = std::move(model);
    CHECK(taken && !model && !error);
    taken.reset();
    CHECK(read_all(other, error) == text && !error);

    kigo::inference cancelled = std::move(other);
    CHECK(!other && cancelled.cancel() == KIGO_OK && other.cancel() == KIGO_INVALID_HANDLE);
    std::string piece = "kept";
    CHECK(!other.next(piece, error) && error.status() == KIGO_INVALID_HANDLE && piece.empty());
    return 0;
}
