// kigo in C++: owners for the handles of kigo.h. Header only, C++11 and later, needs neither exceptions nor RTTI.
//
//     kigo::error error;
//     kigo::options options(error);
//     options.set("device", "cpu", error);
//     kigo::model model("model.gguf", options, error);
//     kigo::inference inference(model, "Once upon a time", options, error);
//     for (std::string piece; inference.next(piece, error);) std::cout << piece << std::flush;
//     if (error) std::cerr << error.message() << '\n';
//
// Every call that can fail takes a kigo::error. A failure sets it, and a call that gets one that is set does nothing:
// so the first failure stays, and several calls can be checked at once. Objects own their handles: they can be moved,
// not copied, and free what they own. The rules of kigo.h on threads hold for them; an object is used by one thread at a
// time while it is moved, assigned or destroyed. All functions of kigo.h take what get() gives.
#ifndef KIGO_HPP
#define KIGO_HPP

#include "kigo.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>

namespace kigo {

// Owns a handle of type T that `free` ends.
template <class T, std::int32_t (*free)(T *)>
class handle {
public:
    handle() noexcept = default;
    explicit handle(T *owned) noexcept : owned_(owned) {}
    handle(handle &&other) noexcept : owned_(other.release()) {}
    handle &operator=(handle &&other) noexcept {
        reset(other.release());
        return *this;
    }
    ~handle() { reset(); }

    T *get() const noexcept { return owned_; }
    explicit operator bool() const noexcept { return owned_ != nullptr; }
    T *release() noexcept {
        T *owned = owned_;
        owned_ = nullptr;
        return owned;
    }
    void reset(T *other = nullptr) noexcept {
        if (owned_ != nullptr && owned_ != other) free(owned_);
        owned_ = other;
    }

private:
    T *owned_ = nullptr;
};

// Whether a call has failed, and why.
class error {
public:
    explicit operator bool() const noexcept { return status_ < 0; }
    std::int32_t status() const noexcept { return status_; }
    // One line for people; empty where nothing has failed.
    const char *message() const noexcept {
        return handle_ ? kigo_error_message(handle_.get()) : status_ < 0 ? kigo_status_name(status_) : "";
    }
    void clear() noexcept { *this = error(); }

    // Makes a call of kigo.h that takes the place for an error, unless one is set already; gives what it returns.
    template <class Call>
    std::int32_t run(Call call) {
        if (status_ < 0) return status_;
        kigo_error *made = nullptr;
        const std::int32_t result = call(&made);
        if (result < 0) {
            status_ = result;
            handle_.reset(made);
        }
        return result;
    }

private:
    std::int32_t status_ = KIGO_OK;
    handle<kigo_error, kigo_error_free> handle_;
};

// Whether the library that was loaded serves programs built with this header. options and model ask it by themselves.
inline bool check(error &error) {
    return error.run([&](kigo_error **place) {
        return kigo_abi_check(KIGO_ABI_VERSION, KIGO_VERSION_STRING, place);
    }) == KIGO_OK;
}

// Settings, by key.
class options : public handle<kigo_options, kigo_options_free> {
public:
    options() noexcept = default;  // the defaults; nothing can be set
    explicit options(error &error) {
        kigo_options *made = nullptr;
        check(error);
        error.run([&](kigo_error **place) { return kigo_options_new(&made, place); });
        reset(made);
    }
    options &set(const char *key, const char *value, error &error) {
        error.run([&](kigo_error **place) { return kigo_options_set_str(get(), key, value, place); });
        return *this;
    }
    options &set(const char *key, const std::string &value, error &error) { return set(key, value.c_str(), error); }
    template <class N, typename std::enable_if<std::is_integral<N>::value, int>::type = 0>
    options &set(const char *key, N value, error &error) {
        const std::int64_t wide = static_cast<std::int64_t>(value);
        error.run([&](kigo_error **place) { return kigo_options_set_i64(get(), key, wide, place); });
        return *this;
    }
    options &set(const char *key, double value, error &error) {
        error.run([&](kigo_error **place) { return kigo_options_set_f64(get(), key, value, place); });
        return *this;
    }
};

// A loaded model.
class model : public handle<kigo_model, kigo_model_free> {
public:
    model() noexcept = default;
    model(const std::string &path, const options &options, error &error) {
        kigo_model *made = nullptr;
        check(error);
        error.run([&](kigo_error **place) { return kigo_model_load(path.c_str(), options.get(), &made, place); });
        reset(made);
    }
    // A fact that is a text, such as "architecture".
    std::string text(const char *key, error &error) const {
        const std::int32_t size =
            error.run([&](kigo_error **place) { return kigo_model_get_str(get(), key, nullptr, 0, place); });
        if (size <= 0) return std::string();
        std::string value(static_cast<std::size_t>(size), '\0');
        error.run([&](kigo_error **place) {
            return kigo_model_get_str(get(), key, &value[0], value.size(), place);
        });
        value.resize(value.size() - 1);
        return value;
    }
    // A fact that is an integer, such as "n_ctx".
    std::int64_t integer(const char *key, error &error) const {
        std::int64_t value = 0;
        error.run([&](kigo_error **place) { return kigo_model_get_i64(get(), key, &value, place); });
        return value;
    }
    // A fact that is a number, such as "load_ms".
    double number(const char *key, error &error) const {
        double value = 0;
        error.run([&](kigo_error **place) { return kigo_model_get_f64(get(), key, &value, place); });
        return value;
    }
};

// One generation.
class inference : public handle<kigo_inference, kigo_inference_free> {
public:
    inference() noexcept = default;
    inference(const model &model, const std::string &prompt, const options &options, error &error) {
        kigo_inference *made = nullptr;
        error.run([&](kigo_error **place) {
            return kigo_inference_start(model.get(), prompt.data(), prompt.size(), options.get(), &made, place);
        });
        reset(made);
    }
    explicit inference(kigo_inference *owned) noexcept : handle(owned) {}
    inference(const model &model, const std::int32_t *tokens, std::size_t n, const options &options, error &error) {
        kigo_inference *made = nullptr;
        error.run([&](kigo_error **place) {
            return kigo_inference_start_tokens(model.get(), tokens, n, options.get(), &made, place);
        });
        reset(made);
    }
    // Goes on from a file of save(), with the options that the other was started with.
    static inference loaded(const model &model, const std::string &file, const options &options, error &error) {
        kigo_inference *made = nullptr;
        error.run([&](kigo_error **place) {
            return kigo_inference_load(model.get(), file.c_str(), options.get(), &made, place);
        });
        return inference(made);
    }
    void save(const std::string &file, error &error) const {
        error.run([&](kigo_error **place) { return kigo_inference_save(get(), file.c_str(), place); });
    }
    // Another that goes on from the same place: as this one does, or with options of its own.
    inference fork(error &error) const { return fork(options(), error); }
    inference fork(const options &options, error &error) const {
        kigo_inference *made = nullptr;
        error.run([&](kigo_error **place) { return kigo_inference_fork(get(), options.get(), &made, place); });
        return inference(made);
    }
    // Drops all tokens but the first `n`.
    void rewind(std::size_t n, error &error) {
        error.run([&](kigo_error **place) { return kigo_inference_rewind(get(), n, place); });
    }
    // Adds a further turn.
    void append(const std::string &prompt, error &error) {
        error.run([&](kigo_error **place) {
            return kigo_inference_append(get(), prompt.data(), prompt.size(), place);
        });
    }
    void append(const std::int32_t *tokens, std::size_t n, error &error) {
        error.run([&](kigo_error **place) { return kigo_inference_append_tokens(get(), tokens, n, place); });
    }
    // Replaces `piece` by the next piece of the text; false at the end and on failure.
    bool next(std::string &piece, error &error) {
        piece.resize(piece.capacity() < 256 ? 256 : piece.capacity());
        const std::int32_t n = error.run([&](kigo_error **place) {
            const std::int32_t got = kigo_next_text(get(), &piece[0], piece.size(), place);
            std::int64_t needed = 0;
            if (got != KIGO_BUFFER_TOO_SMALL || kigo_inference_get_i64(get(), "text_size", &needed, nullptr) < 0) return got;
            kigo_error_free(*place);
            *place = nullptr;
            piece.resize(static_cast<std::size_t>(needed));
            return kigo_next_text(get(), &piece[0], piece.size(), place);
        });
        piece.resize(n > 0 ? static_cast<std::size_t>(n) : 0);
        return n > 0;
    }
    // From any thread: a running next() fails with KIGO_CANCELLED.
    std::int32_t cancel() const noexcept { return kigo_inference_cancel(get()); }
    // One of the KIGO_FINISH_ numbers.
    std::int32_t finish_reason() const noexcept { return kigo_inference_finish_reason(get()); }
    // A fact that is an integer, such as "generated_tokens".
    std::int64_t integer(const char *key, error &error) const {
        std::int64_t value = 0;
        error.run([&](kigo_error **place) { return kigo_inference_get_i64(get(), key, &value, place); });
        return value;
    }
    // A fact that is a number, such as "tokens_per_second".
    double number(const char *key, error &error) const {
        double value = 0;
        error.run([&](kigo_error **place) { return kigo_inference_get_f64(get(), key, &value, place); });
        return value;
    }
};

}  // namespace kigo

#endif  // KIGO_HPP
