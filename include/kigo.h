/**
 * kigo loads a GGUF language model and generates text.
 *
 * This is the whole C API. It works in C99 and later, in C++11 and later, and through any foreign function
 * interface: there are no structs, no variable arguments, no `bool`, and no callback that you must have.
 *
 * ## A program in ten lines
 *
 * ```c
 * kigo_model *model = NULL;
 * kigo_inference *inference = NULL;
 * kigo_error *error = NULL;
 * char text[256];
 * int32_t n = kigo_model_load("model.gguf", NULL, &model, &error);
 * if (n == 0) n = kigo_inference_start(model, "Once", KIGO_NUL_TERMINATED, NULL, &inference, &error);
 * while (n >= 0 && (n = kigo_next_text(inference, text, sizeof text, &error)) > 0) fputs(text, stdout);
 * if (n < 0) fprintf(stderr, "%s\n", kigo_error_message(error));
 * kigo_error_free(error);
 * kigo_inference_free(inference);
 * kigo_model_free(model);
 * ```
 *
 * ## Answers
 *
 * A function that can fail returns an `int32_t`: a negative number is a status, listed below with what to do about
 * it; KIGO_OK, which is 0, or a positive number is success. No status number ever changes its meaning, and later
 * versions may add some, so treat a negative number that you do not know as a failure.
 *
 * Most functions end with `kigo_error **error`. Pass NULL, or the address of a pointer: on failure, and only then,
 * an error object with a message is written there, which you free with kigo_error_free(). What was there before is
 * overwritten without being freed. There is no "last error" of a thread.
 *
 * Whatever else a function writes for you, it writes on success only. A call that failed changed nothing, unless its
 * description says otherwise.
 *
 * ## Handles and ownership
 *
 * `kigo_model *` and its like are handles. They look like pointers, but are numbers that stand for nothing in memory:
 * compare and copy them, never follow them. Each handle that a function wrote for you is yours until you free it
 * with the function of its kind. A NULL, freed or made-up handle, or one of another kind, is answered with
 * KIGO_INVALID_HANDLE and does no harm; freeing NULL does nothing. At most 1048576 handles of a kind live at a time.
 *
 * A function keeps no pointer that you pass, except kigo_options_set_progress() and kigo_log_set_sink(): texts and
 * options are copied during the call. Texts that kigo returns are written into your buffers. Only
 * kigo_error_message(), kigo_version() and
 * kigo_status_name() return pointers to memory of kigo; their descriptions say how long that lasts.
 *
 * ## Pointers and NULL
 *
 * A pointer may be NULL only where its description says so; otherwise the call returns KIGO_INVALID_ARGUMENT and the
 * message names the argument. Pointers that are neither NULL nor valid for their purpose are the one thing that kigo
 * cannot detect. Of a buffer only the bytes that the answer needs are touched.
 *
 * ## Text
 *
 * All text is UTF-8, except paths, which are what the system takes. Texts that go in end with a NUL, except prompts,
 * which have a length and may hold NULs. Invalid UTF-8 is answered with KIGO_INVALID_UTF8. Text that comes out is
 * complete UTF-8: a character is never cut in two. Messages may quote model files, with control characters escaped;
 * print them with "%s".
 *
 * ## Chats
 *
 * With the option prompt_format=chat a prompt is JSON: an array of messages, each with "role" and "content" as
 * servers for chats take them, or an object with the messages and what else the chat template is to see:
 *
 * ```json
 * {"messages": [{"role": "user", "content": "Hello"}],
 *  "tools": [{"type": "function", "function": {"name": "...", "description": "...", "parameters": {...}}}],
 *  "documents": [{"title": "...", "text": "..."}],
 *  "chat_template_kwargs": {"enable_thinking": false},
 *  "add_generation_prompt": true,
 *  "continue_final_message": false}
 * ```
 *
 * Only "messages" has to be there; another key is an error. "chat_template_kwargs" are variables of the template.
 * With "continue_final_message" the prompt ends inside the last message, and the model goes on with it. Arguments
 * of tool calls may be objects or strings that are the JSON of one. Only the template makes control tokens: no text
 * of a message, tool or variable becomes one.
 *
 * The template is the model's own, or that of the option "chat_template": a Jinja program that may use what Hugging
 * Face's transformers offers; its strftime_now() tells the time in UTC. Its work, memory, depth and output have
 * bounds, and it reaches nothing but the chat. kigo_model_chat_render() shows what it makes of a chat.
 *
 * kigo_inference_append() takes the chat further.
 *
 * ## Threads
 *
 * Every function may be called from any thread, and a handle may move between threads. A model and an options object
 * may be used by many threads at once. An inference generates for one thread at a time; a second one gets KIGO_BUSY
 * and does no harm. Cancelling, asking and freeing are possible at all times and do not wait. Inferences of one model
 * run side by side.
 *
 * ## Processes
 *
 * After fork(), the child of a process that used kigo gets KIGO_FORKED from every function, and frees do nothing;
 * parent and child are not harmed. Use kigo first after fork(), or call exec(). Once loaded, the library stays in the
 * process: dlclose() is allowed and has no effect. kigo prints nothing, handles no signal, changes no locale or
 * environment variable and never ends the process, with one exception: when the system refuses a small allocation
 * on the host, of less than 4 KiB or for a chat template, a grammar or JSON.
 *
 * ## Log
 *
 * kigo_log_set_sink() names a function of yours that is told what kigo does; kigo_log_set_queue() opens a queue that
 * kigo_log_next() takes it from, with no function needed. Neither is there at first. What is told is for people and
 * may
 * change with any version; what a program must know is in statuses and facts. Nothing is told for a token.
 *
 * ## Versions
 *
 * Functions, statuses and keys are added, never changed or removed, while KIGO_ABI_VERSION stays the same.
 * kigo_abi_check() compares the header with the library that was loaded.
 */


#ifndef KIGO_H
#define KIGO_H

/* Made from src/c_api, see cbindgen.toml; change it there. */

#include <stddef.h>
#include <stdint.h>

/**
 * The version of this header; kigo_version() tells that of the library.
 */
#define KIGO_VERSION_MAJOR 0
#define KIGO_VERSION_MINOR 1
#define KIGO_VERSION_PATCH 0
#define KIGO_VERSION_STRING "0.1.0"

/**
 * The binary interface of this header; kigo_abi_version() tells that of the library.
 */
#define KIGO_ABI_VERSION 0

/**
 * As the length of a prompt: a NUL ends it.
 */
#define KIGO_NUL_TERMINATED SIZE_MAX

/**
 * Statuses
 *
 * What each means, and what to do next.
 */
/**
 * The call did what it says. Go on.
 */
#define KIGO_OK 0
/**
 * An argument or option value is NULL or outside its range. Correct the call; the message names the argument and its
 * range.
 */
#define KIGO_INVALID_ARGUMENT (-1)
/**
 * A handle is NULL, was freed, was made up or is of another kind. Correct the program; the handle was not followed
 * and no harm was done.
 */
#define KIGO_INVALID_HANDLE (-2)
/**
 * A text argument is not UTF-8. Convert the text; the message names the first wrong byte.
 */
#define KIGO_INVALID_UTF8 (-3)
/**
 * The buffer cannot hold the answer; nothing was written and nothing is lost. Call again with a larger buffer: the
 * same answer comes.
 */
#define KIGO_BUFFER_TOO_SMALL (-4)
/**
 * Another thread is inside a call on this inference. Use an inference from one thread at a time; the other call goes
 * on.
 */
#define KIGO_BUSY (-5)
/**
 * The inference or the load was cancelled, or freed while this call was running. Free it; an inference may also go on
 * with kigo_inference_append() or kigo_inference_rewind().
 */
#define KIGO_CANCELLED (-6)
/**
 * Memory could not be had; nothing changed. Free something, or use a smaller model or n_ctx, and try again.
 */
#define KIGO_OUT_OF_MEMORY (-7)
/**
 * A limit of the library was reached; nothing changed. Free handles that are no longer used, or ask for less; the
 * message names the limit.
 */
#define KIGO_LIMIT (-8)
/**
 * A defect in kigo was caught before it could do harm. Report the message. An inference that returns it returns it
 * for ever; other handles still work.
 */
#define KIGO_INTERNAL (-9)
/**
 * The process was forked after the library was first used. Use the library in the parent only, or first after fork(),
 * or call exec().
 */
#define KIGO_FORKED (-10)
/**
 * No option has this key; nothing was set. Correct the key; the message names the nearest one.
 */
#define KIGO_UNKNOWN_OPTION (-11)
/**
 * The generation has ended; nothing is wrong. Only kigo_next_token() returns it. Ask kigo_inference_finish_reason()
 * why; then free the inference, or go on by kigo_inference_append().
 */
#define KIGO_FINISHED (-12)
/**
 * The model has no metadata or special token of this name; nothing is wrong. Go on without it.
 */
#define KIGO_NOT_FOUND (-13)
/**
 * The library that was loaded does not serve programs built with this header. Use the library that the program was
 * built for, or a later version of it; the message has both versions.
 */
#define KIGO_ABI_MISMATCH (-14)
/**
 * A file cannot be opened or read. Check the path and its permissions; the message has the system's reason.
 */
#define KIGO_IO (-20)
/**
 * The file is not GGUF. Check that the path is that of a model.
 */
#define KIGO_NOT_GGUF (-21)
/**
 * The file ends before its contents do. Fetch the file again; it is not complete.
 */
#define KIGO_TRUNCATED (-22)
/**
 * The GGUF version of the file is not supported. Convert the file to a version that the message names.
 */
#define KIGO_UNSUPPORTED_VERSION (-23)
/**
 * A field of the file is missing or makes no sense. Fetch or convert the file again; the message names the field.
 */
#define KIGO_BAD_FILE (-24)
/**
 * The model's architecture is not supported. Use one of those that the message lists.
 */
#define KIGO_UNSUPPORTED_ARCHITECTURE (-25)
/**
 * The type of a tensor or of a metadata value of the file is not supported. Use a file quantised to one of the types
 * that the message lists.
 */
#define KIGO_UNSUPPORTED_TYPE (-26)
/**
 * The tokenizer or pre-tokenizer of the file is not supported. Use a model with one of those that the message lists.
 */
#define KIGO_UNSUPPORTED_TOKENIZER (-27)
/**
 * The chat template of the model is missing or failed to render. Render the prompt in the host and use the
 * prompt_format "text".
 */
#define KIGO_BAD_TEMPLATE (-28)
/**
 * A saved state is damaged, or is that of another model, device or version. Start the inference anew; the message
 * says what differs.
 */
#define KIGO_BAD_STATE (-29)
/**
 * The prompt does not fit into the context. Shorten it or load the model with a larger n_ctx; the message has both
 * numbers.
 */
#define KIGO_PROMPT_TOO_LONG (-40)
/**
 * The prompt holds no token, and the model adds none. Give at least one character or token.
 */
#define KIGO_EMPTY_PROMPT (-41)
/**
 * The context is full; no further token can be generated. Free the inference, or shorten it by
 * kigo_inference_rewind(); start another with a larger n_ctx.
 */
#define KIGO_CONTEXT_FULL (-42)
/**
 * The model produced numbers that are not finite. Free the inference; the model file is damaged or its arithmetic
 * overflows.
 */
#define KIGO_NUMERIC (-43)
/**
 * Every token is banned by logit_bias or the grammar, so that none can be drawn. Free the inference; start another
 * that bans fewer tokens.
 */
#define KIGO_NO_CANDIDATE (-44)
/**
 * A JSON schema, regular expression or grammar is not one, or takes too much memory or time. Correct or simplify what
 * the option that the message names holds.
 */
#define KIGO_BAD_GRAMMAR (-45)
/**
 * This build has no backend for the device asked for. Set the option device to one that the message lists.
 */
#define KIGO_NO_BACKEND (-60)
/**
 * There is no NVIDIA driver on this machine. Install the driver, or set the option device to "cpu".
 */
#define KIGO_NO_DRIVER (-61)
/**
 * There is no GPU of this number, or none that this process may see. Set the option device to a GPU that exists; the
 * message says how many there are.
 */
#define KIGO_NO_DEVICE (-62)
/**
 * The NVIDIA driver is too old for this build, or does not fit the system's kernel module. Update the driver; the
 * message has both versions.
 */
#define KIGO_DRIVER_TOO_OLD (-63)
/**
 * This build has no code for the architecture of the GPU. Use another GPU, or build kigo for this one; the message
 * names the architecture.
 */
#define KIGO_UNSUPPORTED_GPU (-64)
/**
 * The GPU failed in a way that this process cannot recover from; every later call says the same. Free the handles,
 * which works, and restart the process to use this GPU again.
 */
#define KIGO_DEVICE_LOST (-65)
/**
 * The NVIDIA driver refused a call; what it was made for did not happen. Try again or report the message, which has
 * the call and the driver's number.
 */
#define KIGO_DEVICE_ERROR (-66)

/**
 * What kigo_inference_finish_reason() returns
 */
/**
 * It has not ended.
 */
#define KIGO_FINISH_RUNNING 0
/**
 * The model ended it.
 */
#define KIGO_FINISH_END_OF_GENERATION 1
/**
 * A stop string came; it is not part of the text.
 */
#define KIGO_FINISH_STOP_STRING 2
/**
 * max_tokens were generated.
 */
#define KIGO_FINISH_MAX_TOKENS 3
/**
 * The context is full.
 */
#define KIGO_FINISH_CONTEXT_FULL 4
/**
 * It was cancelled.
 */
#define KIGO_FINISH_CANCELLED 5
/**
 * The last call failed; kigo_inference_last_error() says why.
 */
#define KIGO_FINISH_ERROR 6
/**
 * The grammar is complete and allows nothing more.
 */
#define KIGO_FINISH_GRAMMAR 7

/**
 * Options
 *
 * Keys of kigo_options_set_str(), kigo_options_set_i64() and kigo_options_set_f64(). Where a number is wanted, an
 * integer will do.
 *
 * A model file may have defaults of its own for how tokens are chosen (general.sampling.*): they take the place of
 * those below, for options that are not set.
 *
 * Read by kigo_model_load() and kigo_load_start():
 *
 *   "device": "cuda", "cuda:N" with N from 0 to 999, "cpu" or "auto"; kigo_options_set_str(); default: "cuda"
 *       Where the model lives and runs; "cuda" is the first GPU. Only "auto" chooses by itself: the first GPU, or the
 *       CPU if there is none.
 *
 *   "n_ctx": an integer from 1 to 2147483647; kigo_options_set_i64(); default: what the model was trained for, or
 *   less if that is very long
 *       Size of the context of an inference in tokens: prompt and generated tokens together. Texts that are longer
 *       than the model was trained for ("n_ctx_train") are possible, but get worse; a model whose positions are
 *       learned has no others.
 *
 *   "n_threads": an integer from 1 to 1024; kigo_options_set_i64(); default: one per core
 *       Threads that compute on the CPU.
 *
 *   "n_batch": an integer from 1 to 65536; kigo_options_set_i64(); default: what takes a GPU about 60 ms and fits,
 *   128 to 2048; 128 on the CPU
 *       Most tokens of a prompt that are computed at once; who comes meanwhile waits for them. While others wait, a
 *       prompt brings a quarter of that. Far into a long prompt, or where a step takes more than 80 ms, a GPU
 *       computes half as many at once, or fewer still. Whoever sets more than the default accepts longer steps.
 *
 *   "tokenizer": "auto" or the path of a tokenizer.json; kigo_options_set_str(); default: "auto"
 *       Where the tokens come from. "auto": the file's own vocabulary; if it has none, or names a tokenizer that kigo
 *       does not know, the tokenizer.json beside it. Otherwise a tokenizer.json, whatever the file has. Special ids
 *       and the chat template stay those of the file, where it has them.
 *
 *   "direct_io": "auto", "on" or "off"; kigo_options_set_str(); default: "auto"
 *       Whether weights for a GPU that the system does not have in memory are read past its cache, which the next
 *       load then does not find there. "auto": if the file has more than half of the memory that is available.
 *
 *   "decode_path": "auto", "step" or "stages"; kigo_options_set_str(); default: "auto"
 *       How a GPU computes the next token of an inference that runs alone, or of a few together: as one kernel
 *       ("step"), where that can run the model, or one kernel for each stage ("stages"). "auto" takes what was
 *       measured to be faster. The results are the same.
 *
 *   "prompt_cache_mib": an integer from 0 to 1073741824; kigo_options_set_i64(); default: 1024
 *       Most MiB of memory, where the model lives, that freed inferences leave for others: one that begins with the
 *       same tokens does not compute them again ("cached_tokens"). What was used last stays, and all of it makes room
 *       at once when memory is needed for an inference. 0: they leave nothing.
 *
 * Read by kigo_inference_start(), kigo_inference_fork() and kigo_inference_load():
 *
 *   "prompt_format": "text", "user" or "chat"; kigo_options_set_str(); default: "text"
 *       What the prompt is. "text": a text that the model goes on from. "user": one message of a user, put into the
 *       chat template. "chat": a chat in JSON, put into the chat template; see "Chats".
 *
 *   "chat_template": a Jinja template of 1 to 262144 bytes; kigo_options_set_str(); default: the model's
 *       A chat template to use instead of the model's.
 *
 *   "chat_template_file": the path of a file with a Jinja template of 1 to 262144 bytes; kigo_options_set_str();
 *   default: the model's
 *       A file with a chat template to use instead of the model's. It is read when the option is set, and sets
 *       "chat_template".
 *
 *   "chat_template_name": the name of one of the model's chat templates; kigo_options_set_str(); default: "tool_use"
 *   if the chat has tools and the model such a template, else "default"
 *       Which of the model's chat templates to use; "default" is the one that its file does not name. "chat_template"
 *       wins.
 *
 *   "max_tokens": an integer from 0 to 2147483647; kigo_options_set_i64(); default: until the context is full
 *       Most tokens to generate; 0 generates none.
 *
 *   "temperature": a number from 0 to 2; kigo_options_set_f64(); default: 0.8
 *       Divides the logits before a token is drawn; 0 always takes the most likely token.
 *
 *   "top_k": an integer from 0 to 2147483647; kigo_options_set_i64(); default: 40
 *       Draws among this many of the most likely tokens; 0 draws among all.
 *
 *   "top_p": a number above 0 and up to 1; kigo_options_set_f64(); default: 0.95
 *       Draws among the most likely tokens whose probabilities add up to this; 1 draws among all. The most likely
 *       token always stays.
 *
 *   "min_p": a number from 0 to 1; kigo_options_set_f64(); default: 0.05
 *       Drops tokens whose probability is less than this share of that of the most likely token; 0 drops none.
 *
 *   "repeat_penalty": a number above 0 and up to 10; kigo_options_set_f64(); default: 1
 *       Makes tokens that came recently less likely: their logits are divided by it if positive, multiplied if
 *       negative; 1 changes nothing.
 *
 *   "repeat_last_n": an integer from 0 to 2147483647; kigo_options_set_i64(); default: 64
 *       How many of the last tokens count as recent for repeat_penalty; more than there are means all.
 *
 *   "typical_p": a number above 0 and up to 1; kigo_options_set_f64(); default: 1
 *       Draws among the tokens whose surprise is nearest to the expected one, as few as have this probability
 *       together; 1 draws among all.
 *
 *   "top_n_sigma": a number from 0 to 100; kigo_options_set_f64(); default: 0
 *       Drops tokens whose logits are more than this many standard deviations below the largest; 0 drops none.
 *
 *   "xtc_probability": a number from 0 to 1; kigo_options_set_f64(); default: 0
 *       How often the most likely tokens are left out; 0 is never.
 *
 *   "xtc_threshold": a number from 0 to 1; kigo_options_set_f64(); default: 0.1
 *       All tokens at least this likely are left out then, but for the least likely of them.
 *
 *   "min_keep": an integer from 1 to 2147483647; kigo_options_set_i64(); default: 1
 *       Each of the options that drop tokens leaves at least this many, if there are.
 *
 *   "presence_penalty": a number from -2 to 2; kigo_options_set_f64(); default: 0
 *       Is subtracted from the logits of tokens that came recently ("repeat_last_n").
 *
 *   "frequency_penalty": a number from -2 to 2; kigo_options_set_f64(); default: 0
 *       Is subtracted once for each time that the token came recently.
 *
 *   "dry_multiplier": a number from 0 to 100; kigo_options_set_f64(); default: 0
 *       Makes tokens less likely that would prolong a repetition of what came before: dry_multiplier * dry_base ^
 *       (tokens repeated - dry_allowed_length) is subtracted from their logits; 0 turns it off.
 *
 *   "dry_base": a number from 1 to 10; kigo_options_set_f64(); default: 1.75
 *       How fast that grows with the length of the repetition.
 *
 *   "dry_allowed_length": an integer from 0 to 2147483647; kigo_options_set_i64(); default: 2
 *       Shorter repetitions, in tokens, are free.
 *
 *   "dry_penalty_last_n": an integer from 0 to 2147483647; kigo_options_set_i64(); default: all
 *       Among how many of the last tokens repetitions are looked for; more than there are means all.
 *
 *   "dry_sequence_breaker": a text of 1 to 64 bytes, up to 64 times, or "none"; kigo_options_set_str(); default:
 *   ["\n", ":", "\"", "*"]
 *       A text that a repetition does not go beyond: it ends at tokens that contain it. Set for the first time it
 *       takes the place of the defaults, then each adds another; "none" takes all away.
 *
 *   "dynatemp_range": a number from 0 to 2; kigo_options_set_f64(); default: 0
 *       Lets the temperature follow the entropy of the candidates, so far down and up; 0 keeps it fixed.
 *
 *   "dynatemp_exponent": a number above 0 and up to 10; kigo_options_set_f64(); default: 1
 *       The power of the entropy that it follows.
 *
 *   "mirostat": "off" or "v2"; kigo_options_set_str(); default: "off"
 *       "v2" keeps the surprise of the text near mirostat_tau, after the penalties and in place of all other options
 *       that drop tokens.
 *
 *   "mirostat_tau": a number above 0 and up to 100; kigo_options_set_f64(); default: 5
 *       That surprise, in bits for each token.
 *
 *   "mirostat_eta": a number above 0 and up to 1; kigo_options_set_f64(); default: 0.1
 *       How fast mirostat follows it.
 *
 *   "logit_bias": a JSON object of token ids and numbers from -1000 to 1000, or false to ban a token, such as {"15":
 *   -2.5, "2": false}; kigo_options_set_str(); default: none
 *       What is added to the logits of tokens before anything else, by token id. Setting it again adds to what it
 *       says.
 *
 *   "samplers": names with commas between, each once, of: penalties, dry, top_n_sigma, top_k, typical_p, top_p,
 *   min_p, xtc, temperature; kigo_options_set_str(); default:
 *   "penalties,dry,top_n_sigma,top_k,typical_p,top_p,min_p,xtc,temperature"
 *       Which of the options that change or drop tokens take part, and in which order. A token is drawn after the
 *       last; logit_bias and the grammar always come first.
 *
 *   "seed": an integer from 0 to 9223372036854775807; kigo_options_set_i64(); default: 0
 *       Start of the random numbers; the same model, prompt, options and seed give the same tokens.
 *
 *   "stop": a text of 1 to 1024 bytes; kigo_options_set_str(); default: none
 *       A text that ends the generation and is not part of it. Setting it again adds another, up to 64.
 *
 *   "json_schema": a JSON schema of 1 to 262144 bytes, and no regex or lark beside it; kigo_options_set_str();
 *   default: none
 *       The generated text is JSON of this schema; {} is any JSON. It is checked when the inference starts:
 *       KIGO_BAD_GRAMMAR.
 *
 *   "regex": a regular expression of 1 to 65536 bytes, and no json_schema or lark beside it; kigo_options_set_str();
 *   default: none
 *       The generated text as a whole matches this regular expression, in the syntax of Rust's crate regex.
 *
 *   "lark": a grammar of 1 to 65536 bytes, and no json_schema or regex beside it; kigo_options_set_str(); default:
 *   none
 *       The generated text is one of this grammar, in the variant of Lark that the library llguidance describes.
 *
 *   "logprobs": an integer from 0 to 1000; kigo_options_set_i64(); default: 0
 *       If not 0, the logits of every token are kept for kigo_inference_logits(), and kigo_inference_logprobs() tells
 *       so many of the most likely tokens. On a GPU each token takes longer then.
 */

/**
 * Keys of options, for compilers that check names
 */
#define KIGO_OPTION_DEVICE "device"
#define KIGO_OPTION_N_CTX "n_ctx"
#define KIGO_OPTION_N_THREADS "n_threads"
#define KIGO_OPTION_N_BATCH "n_batch"
#define KIGO_OPTION_TOKENIZER "tokenizer"
#define KIGO_OPTION_DIRECT_IO "direct_io"
#define KIGO_OPTION_DECODE_PATH "decode_path"
#define KIGO_OPTION_PROMPT_CACHE_MIB "prompt_cache_mib"
#define KIGO_OPTION_PROMPT_FORMAT "prompt_format"
#define KIGO_OPTION_CHAT_TEMPLATE "chat_template"
#define KIGO_OPTION_CHAT_TEMPLATE_FILE "chat_template_file"
#define KIGO_OPTION_CHAT_TEMPLATE_NAME "chat_template_name"
#define KIGO_OPTION_MAX_TOKENS "max_tokens"
#define KIGO_OPTION_TEMPERATURE "temperature"
#define KIGO_OPTION_TOP_K "top_k"
#define KIGO_OPTION_TOP_P "top_p"
#define KIGO_OPTION_MIN_P "min_p"
#define KIGO_OPTION_REPEAT_PENALTY "repeat_penalty"
#define KIGO_OPTION_REPEAT_LAST_N "repeat_last_n"
#define KIGO_OPTION_TYPICAL_P "typical_p"
#define KIGO_OPTION_TOP_N_SIGMA "top_n_sigma"
#define KIGO_OPTION_XTC_PROBABILITY "xtc_probability"
#define KIGO_OPTION_XTC_THRESHOLD "xtc_threshold"
#define KIGO_OPTION_MIN_KEEP "min_keep"
#define KIGO_OPTION_PRESENCE_PENALTY "presence_penalty"
#define KIGO_OPTION_FREQUENCY_PENALTY "frequency_penalty"
#define KIGO_OPTION_DRY_MULTIPLIER "dry_multiplier"
#define KIGO_OPTION_DRY_BASE "dry_base"
#define KIGO_OPTION_DRY_ALLOWED_LENGTH "dry_allowed_length"
#define KIGO_OPTION_DRY_PENALTY_LAST_N "dry_penalty_last_n"
#define KIGO_OPTION_DRY_SEQUENCE_BREAKER "dry_sequence_breaker"
#define KIGO_OPTION_DYNATEMP_RANGE "dynatemp_range"
#define KIGO_OPTION_DYNATEMP_EXPONENT "dynatemp_exponent"
#define KIGO_OPTION_MIROSTAT "mirostat"
#define KIGO_OPTION_MIROSTAT_TAU "mirostat_tau"
#define KIGO_OPTION_MIROSTAT_ETA "mirostat_eta"
#define KIGO_OPTION_LOGIT_BIAS "logit_bias"
#define KIGO_OPTION_SAMPLERS "samplers"
#define KIGO_OPTION_SEED "seed"
#define KIGO_OPTION_STOP "stop"
#define KIGO_OPTION_JSON_SCHEMA "json_schema"
#define KIGO_OPTION_REGEX "regex"
#define KIGO_OPTION_LARK "lark"
#define KIGO_OPTION_LOGPROBS "logprobs"

/**
 * Facts about a model
 *
 * Keys of kigo_model_get_str():
 *   "device": Where the model lives, such as "cuda:0" or "cpu".
 *   "architecture": general.architecture of the file.
 *   "name": general.name of the file; may be empty.
 *
 * Keys of kigo_model_get_i64():
 *   "n_ctx": Size of the context of an inference, in tokens.
 *   "n_ctx_train": Size of the context that the model was trained for, in tokens.
 *   "n_batch": Most tokens of a prompt that are computed at once.
 *   "n_vocab": Number of tokens; ids are less than this.
 *   "n_embd": Width of the residual stream.
 *   "n_layer": Number of layers.
 *   "memory_bytes": Bytes that the model and its inferences hold on the device at the moment: the next three
 *   together.
 *   "weight_bytes": Bytes of weights on the device.
 *   "cache_bytes": Bytes that the contexts of all inferences hold on the device at the moment: the KV cache.
 *   "prompt_cache_bytes": Bytes of these that freed inferences have left for others; see the option
 *   "prompt_cache_mib".
 *   "workspace_bytes": Bytes for everything else that computing holds on the device at the moment.
 *   "max_token_bytes": Bytes of the longest token: a buffer that is large enough for every kigo_next_token().
 *
 * Keys of kigo_model_get_f64():
 *   "load_ms": Milliseconds that loading took in all.
 *   "header_ms": Milliseconds of these for the header and its metadata.
 *   "tokenizer_ms": Milliseconds for making the tokenizer, on a GPU while the weights are brought there.
 *   "device_ms": Milliseconds until the device was ready, with the start of its driver.
 *   "weights_ms": Milliseconds for bringing the weights to the device.
 *   "prepare_ms": Milliseconds for what follows, before a token can be computed.
 *
 * Facts about an inference
 *
 * Keys of kigo_inference_get_i64():
 *   "prompt_tokens": Tokens of the prompt; in a further turn all that came before it are part of its prompt.
 *   "cached_tokens": Tokens of the prompt that were not computed, since this or another inference had done so; 0
 *   before the first token.
 *   "processed_tokens": Tokens of the prompt that were computed or need not be, up to "prompt_tokens": while a call
 *   computes the prompt, it grows with each step. The last step may still be under way on a GPU.
 *   "generated_tokens": Tokens generated so far in this turn, one that completes a stop string included.
 *   "text_size": After KIGO_BUFFER_TOO_SMALL: bytes that the buffer of the next call needs; 0 otherwise.
 *
 * Keys of kigo_inference_get_f64():
 *   "prompt_ms": Milliseconds spent on the prompt of this turn and the first token.
 *   "generate_ms": Milliseconds spent on all tokens of this turn after the first.
 *   "first_token_ms": Milliseconds from the call that started the inference or this turn until its first token was
 *   there, whatever the host did meanwhile; 0 before.
 *   "queue_ms": Milliseconds that it waited for its turn while other inferences were computed; part of prompt_ms and
 *   generate_ms.
 *   "tokens_per_second": Tokens after the first per second of generate_ms; 0 before there is one.
 *
 * Facts about a GPU
 *
 * Keys of kigo_device_get_str():
 *   "name": Its name, such as "NVIDIA H200".
 *   "architecture": Its architecture, such as "sm_90".
 *
 * Keys of kigo_device_get_i64():
 *   "memory_bytes": Bytes of its memory, used or not.
 *   "n_sm": Number of its multiprocessors.
 */

/**
 * Special tokens
 *
 * Keys of kigo_model_special_token():
 *   "bos": Begins a text.
 *   "eos": Ends a text.
 *   "eot": Ends a turn of a chat.
 *   "eom": Ends a message that another of the same turn follows.
 *   "unk": Stands for what the vocabulary does not have.
 *   "sep": Stands between two texts.
 *   "pad": Fills up a batch.
 *   "mask": Stands for what is to be guessed.
 *   "fim_pre": Before the code that precedes the gap.
 *   "fim_suf": Before the code that follows the gap.
 *   "fim_mid": Before the code that fills the gap.
 *   "fim_pad": Fills up, in code.
 *   "fim_rep": Before the name of a repository.
 *   "fim_sep": Before the name of a file.
 */

/**
 * Flags of kigo_model_tokenize() and kigo_model_detokenize()
 */
/**
 * kigo_model_tokenize(): adds the token that begins a text, and the one that ends it, where the model wants them.
 */
#define KIGO_TOKENIZE_ADD_SPECIAL 1
/**
 * kigo_model_tokenize(): texts of control tokens become those tokens. Never for what a user wrote.
 */
#define KIGO_TOKENIZE_PARSE_SPECIAL 2
/**
 * kigo_model_detokenize(): writes the texts of control and unknown tokens too.
 */
#define KIGO_DETOKENIZE_SPECIAL 1

/**
 * What kigo_model_token_attributes() returns
 */
/**
 * Ordinary text.
 */
#define KIGO_TOKEN_NORMAL 1
/**
 * Stands for text that the vocabulary does not have.
 */
#define KIGO_TOKEN_UNKNOWN 2
/**
 * Steers the model and is no text.
 */
#define KIGO_TOKEN_CONTROL 4
/**
 * A text that is always this one token.
 */
#define KIGO_TOKEN_USER_DEFINED 8
/**
 * Reserved, or past the end of the vocabulary.
 */
#define KIGO_TOKEN_UNUSED 16
/**
 * One byte.
 */
#define KIGO_TOKEN_BYTE 32
/**
 * Ends a generation; beside one of the others.
 */
#define KIGO_TOKEN_END_OF_GENERATION 64

/**
 * Metadata: types of values, with the numbers that GGUF gives them
 */
#define KIGO_METADATA_UINT8 0
#define KIGO_METADATA_INT8 1
#define KIGO_METADATA_UINT16 2
#define KIGO_METADATA_INT16 3
#define KIGO_METADATA_UINT32 4
#define KIGO_METADATA_INT32 5
#define KIGO_METADATA_FLOAT32 6
#define KIGO_METADATA_BOOL 7
#define KIGO_METADATA_STRING 8
#define KIGO_METADATA_ARRAY 9
#define KIGO_METADATA_UINT64 10
#define KIGO_METADATA_INT64 11
#define KIGO_METADATA_FLOAT64 12

/**
 * Log: levels of messages
 */
/**
 * Nothing.
 */
#define KIGO_LOG_OFF 0
/**
 * A load has failed, as its caller is told too.
 */
#define KIGO_LOG_ERROR 1
/**
 * Something works, but perhaps not as its owner thinks.
 */
#define KIGO_LOG_WARNING 2
/**
 * The steps of a load with their times, and what was chosen.
 */
#define KIGO_LOG_INFO 3
/**
 * The end of every generation.
 */
#define KIGO_LOG_DEBUG 4


/**
 * What went wrong in a call, as a status and a message for people.
 *
 * A failing call makes one for the caller who passed a place for it, and the caller frees it with
 * kigo_error_free(). It does not change, belongs to no thread and outlives the object that it is about.
 */
typedef struct kigo_error kigo_error;

/**
 * One generation. Any thread may use it, one at a time; cancelling, freeing and asking are possible at all times.
 */
typedef struct kigo_inference kigo_inference;

/**
 * A model that is being loaded, for hosts that do not want to wait in kigo_model_load(). Watching and cancelling are
 * possible at all times.
 */
typedef struct kigo_load kigo_load;

/**
 * A loaded model. It does not change, and any number of threads and inferences may use it at once.
 */
typedef struct kigo_model kigo_model;

/**
 * Settings for kigo_model_load(), kigo_load_start() and kigo_inference_start(), each set by its key; see "Options"
 * above.
 *
 * One object may serve all calls, any number of times: each reads the options that concern it when it is called,
 * and keeps nothing of the object. Several threads may use one object; a call sees each setting as a whole.
 */
typedef struct kigo_options kigo_options;

/**
 * A function of yours for kigo_log_set_sink(). It is told the level of a message, one of the KIGO_LOG_ numbers, and its
 * text: one line of at most 511 bytes of UTF-8 without control characters, which it may read until it returns.
 */
typedef void (*kigo_log_sink)(void *user_data, int32_t level, const char *text);

/**
 * A function of yours for kigo_options_set_progress(). It is told how many bytes of weights have been read, and how
 * many there are to read, which is 0 until the header of the file has been read. It returns 0 to go on, or any other
 * number to cancel the load.
 */
typedef int32_t (*kigo_progress)(void *user_data, int64_t done, int64_t total);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The version of the library that is loaded, such as "0.1.0"; the header's is KIGO_VERSION_STRING.
 *
 * @returns A text that stays valid for ever; do not free it. Never NULL.
 *
 * Any thread may call it at any time, also in a forked child.
 */
const char *kigo_version(void);

/**
 * The number of the binary interface of the library that is loaded.
 *
 * A program works with a library whose number equals the KIGO_ABI_VERSION it was built with, and whose version is
 * the same or later. The number is also the end of the library's file name, as in libkigo.so.0.
 *
 * @returns The number.
 *
 * Any thread may call it at any time, also in a forked child.
 */
uint32_t kigo_abi_version(void);

/**
 * Whether the library that is loaded serves a program that was built with this header. Call it once, before all else:
 * `kigo_abi_check(KIGO_ABI_VERSION, KIGO_VERSION_STRING, &error)`.
 *
 * @param abi      KIGO_ABI_VERSION of the header.
 * @param version  KIGO_VERSION_STRING of the header.
 * @param error    Where an error is written on failure, or NULL.
 * @returns KIGO_OK.
 *   - KIGO_ABI_MISMATCH: the library has another binary interface, or is older than the header and may lack some of its
 *     functions; the message has both numbers.
 *   - KIGO_INVALID_ARGUMENT: `version` is NULL or no version, such as "0.1.0".
 *   - KIGO_INVALID_UTF8: `version` is not UTF-8.
 *   - KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time.
 *
 * Memory:
 * `version` is NULL or NUL-terminated; `error` is NULL or valid for writing one pointer.
 */
int32_t kigo_abi_check(uint32_t abi,
                       const char *version,
                       kigo_error **error);

/**
 * How the library that is loaded was built, as a JSON object.
 *
 * - "version", "abi_version": as kigo_version() and kigo_abi_version() tell them.
 * - "features": an array of the parts that a build may lack: "cuda", "regex", "worker-abi".
 * - "devices": the values of the option "device" that this build has code for.
 * - "architectures": what general.architecture of a file may be.
 * - "tensor_types": the types of tensors that it reads, by their names in GGUF.
 * - "target": for which processor and system it was built.
 *
 * Later versions may add keys.
 *
 * @param buffer  Where the text and a NUL are written; may be NULL if `size` is 0.
 * @param size    Bytes in `buffer`; 0 only asks for the size needed.
 * @param error   Where an error is written on failure, or NULL.
 * @returns The bytes that the text and its NUL take, so at least 1.
 *   - KIGO_BUFFER_TOO_SMALL: they do not fit; nothing was written, and the message has the size needed.
 *   - KIGO_INVALID_ARGUMENT: `buffer` is NULL though `size` is not 0.
 *   - KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time.
 *
 * Memory:
 * `buffer` is NULL or valid for writing the answer if that fits into `size` bytes; `error` is NULL or valid for
 * writing one pointer.
 */
int32_t kigo_build_info(char *buffer, size_t size, kigo_error **error);

/**
 * The name of a status, such as "KIGO_OUT_OF_MEMORY".
 *
 * @param status  A number that a function of this library returned.
 * @returns A text that stays valid for ever; do not free it. "KIGO_OK" for 0, and "unknown status" for a number
 *   that is no status. Never NULL.
 *
 * Any thread may call it at any time, also in a forked child.
 */
const char *kigo_status_name(int32_t status);

/**
 * The status of an error.
 *
 * @param error  The error; not freed.
 * @returns Its status, a negative number.
 *   - KIGO_INVALID_HANDLE: `error` is NULL, freed or no error.
 *   - KIGO_FORKED: this is a forked child.
 *
 * Any thread may call it at any time.
 */
int32_t kigo_error_status(const kigo_error *error);

/**
 * What went wrong, for people: where, what was expected, what was found and what to do.
 *
 * One line of at most 511 bytes of UTF-8 without control characters. It may quote text from a model file, so
 * print it with "%s", never as a format. Its wording may change with any version; compare kigo_error_status().
 *
 * @param error  The error; not freed.
 * @returns A text that stays valid until `error` is freed; do not free it. Never NULL: for an `error` that is
 *   NULL, freed or no error it is a text that says so and stays valid for ever.
 *
 * Any thread may call it at any time.
 */
const char *kigo_error_message(const kigo_error *error);

/**
 * Frees an error and its message.
 *
 * @param error  The error, or NULL.
 * @returns KIGO_OK, also for NULL.
 *   - KIGO_INVALID_HANDLE: `error` was freed before or is no error; nothing happened.
 *   - KIGO_FORKED: this is a forked child; nothing happened.
 *
 * Any thread may call it, once no thread uses the message any more.
 */
int32_t kigo_error_free(kigo_error *error);

/**
 * Sets a function that is told what kigo does, in place of the one before. At first there is none, and nothing is told.
 *
 * It is called on the thread on which something happens, by one thread at a time, and never for a token. It must
 * return soon: whoever has something to tell waits for it. It must not call functions of kigo, and no exception, panic
 * or longjmp() may leave it.
 *
 * When this returns, the function before has returned for the last time, on whatever thread: what it uses may be
 * freed then.
 *
 * @param level      The messages that are wanted: those of this level and of the ones before it, see "Log".
 * @param sink       The function, or NULL for none.
 * @param user_data  What the function gets back, or NULL; kigo never follows it.
 * @param error      Where an error is written on failure, or NULL.
 * @returns KIGO_OK. On failure the function before stays.
 *   - KIGO_INVALID_ARGUMENT: `level` is none, or this was called from inside the function.
 *   - KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time.
 *
 * Memory:
 * `sink` is NULL or may be called as described; `error` is NULL or valid for writing one pointer.
 */
int32_t kigo_log_set_sink(int32_t level,
                          kigo_log_sink sink,
                          void *user_data,
                          kigo_error **error);

/**
 * Opens or closes a queue of what kigo does, for hosts that would rather ask than be called. At first it is closed.
 *
 * It holds 1024 messages. When it is full the oldest go, and kigo_log_next() tells how many.
 *
 * @param level  The messages that are wanted: those of this level and of the ones before it, see "Log"; KIGO_LOG_OFF
 *               closes the queue and drops what is in it.
 * @param error  Where an error is written on failure, or NULL.
 * @returns KIGO_OK. On failure nothing has changed.
 *   - KIGO_INVALID_ARGUMENT: `level` is none.
 *   - KIGO_OUT_OF_MEMORY: there is no room for the queue.
 *   - KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time. It is independent of kigo_log_set_sink().
 *
 * Memory:
 * `error` is NULL or valid for writing one pointer.
 */
int32_t kigo_log_set_queue(int32_t level, kigo_error **error);

/**
 * Takes the oldest message out of the queue. It never waits for one.
 *
 * @param level    Where the level of the message is written, one of the KIGO_LOG_ numbers.
 * @param time_ms  Where the time of the message is written, in milliseconds since 1970 in UTC.
 * @param text     Where its text and a NUL are written: one line of UTF-8 without control characters. May be NULL if
 *                 `size` is 0.
 * @param size     Bytes in `text`; 512 is always enough.
 * @param error    Where an error is written on failure, or NULL.
 * @returns The bytes of the text without its NUL, at least 1; or 0 if there is no message, and nothing was written.
 *   - KIGO_BUFFER_TOO_SMALL: nothing is lost. Call again with a larger buffer: the same message comes.
 *   - KIGO_INVALID_ARGUMENT: `level` or `time_ms` is NULL, or `text` is NULL though `size` is not 0.
 *   - KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time.
 *
 * Memory:
 * `level` and `time_ms` are NULL or valid for writing; `text` is NULL or valid for writing the text and a NUL if they
 * fit into `size` bytes; `error` is NULL or valid for writing one pointer.
 */
int32_t kigo_log_next(int32_t *level, int64_t *time_ms, char *text, size_t size, kigo_error **error);

/**
 * How many GPUs the process may use, whether kigo has code for them or not.
 *
 * Their numbers are 0 to one less than this, in the order of the driver, which CUDA_VISIBLE_DEVICES changes; the
 * value "cuda:1" of the option "device" is the GPU 1.
 *
 * @param error  Where an error is written on failure, or NULL.
 * @returns The number, 0 if there is a driver but no GPU.
 *   - KIGO_NO_BACKEND: this build runs on the CPU only.
 *   - KIGO_NO_DRIVER, KIGO_DRIVER_TOO_OLD, KIGO_DEVICE_ERROR, KIGO_OUT_OF_MEMORY: the driver cannot be used; the
 *     message says why.
 *   - KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time. The first call loads the driver, which takes part of a second.
 *
 * Memory:
 * `error` is NULL or valid for writing one pointer.
 */
int32_t kigo_device_count(kigo_error **error);

/**
 * The devices that a model can be loaded to, as a JSON object.
 *
 * - "devices": an array of objects with "device", a value of the option "device", and "name"; GPUs also have
 *   "architecture", "memory_bytes" and "n_sm" as kigo_device_get_str() and kigo_device_get_i64() tell them. GPUs come
 *   first, in the order of their numbers, the CPU is the last.
 * - "unusable": an array of objects with "device" and "error", which says why no model can be loaded there: "cuda" where
 *   there is no driver or this build has no code for it, else GPUs.
 *
 * Later versions may add keys.
 *
 * @param buffer  Where the text and a NUL are written; may be NULL if `size` is 0.
 * @param size    Bytes in `buffer`; 0 only asks for the size needed.
 * @param error   Where an error is written on failure, or NULL.
 * @returns The bytes that the text and its NUL take, so at least 1.
 *   - KIGO_BUFFER_TOO_SMALL: they do not fit; nothing was written, and the message has the size needed.
 *   - KIGO_INVALID_ARGUMENT: `buffer` is NULL though `size` is not 0.
 *   - KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time. The first call loads the driver, which takes part of a second.
 *
 * Memory:
 * `buffer` is NULL or valid for writing the answer if that fits into `size` bytes; `error` is NULL or valid for
 * writing one pointer.
 */
int32_t kigo_device_list(char *buffer,
                         size_t size,
                         kigo_error **error);

/**
 * A fact about a GPU that is a text.
 *
 * @param device  The number of the GPU, from 0.
 * @param key     Which fact, as "Facts about a GPU" lists them.
 * @param buffer  Where the text and a NUL are written; may be NULL if `size` is 0.
 * @param size    Bytes in `buffer`; 0 only asks for the size needed.
 * @param error   Where an error is written on failure, or NULL.
 * @returns The bytes that the text and its NUL take, so at least 1.
 *   - KIGO_BUFFER_TOO_SMALL: they do not fit; nothing was written, and the message has the size needed.
 *   - KIGO_INVALID_ARGUMENT: `device` is negative, `key` is NULL or no text has it, or `buffer` is NULL though `size`
 *     is not 0.
 *   - KIGO_INVALID_UTF8: `key` is not UTF-8.
 *   - KIGO_NO_DEVICE: there are not so many GPUs.
 *   - KIGO_NO_BACKEND, KIGO_NO_DRIVER, KIGO_DRIVER_TOO_OLD, KIGO_DEVICE_ERROR, KIGO_DEVICE_LOST, KIGO_OUT_OF_MEMORY:
 *     as for kigo_device_count().
 *   - KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time.
 *
 * Memory:
 * `key` is NULL or NUL-terminated; `buffer` is NULL or valid for writing the answer if that fits into `size` bytes;
 * `error` is NULL or valid for writing one pointer.
 */
int32_t kigo_device_get_str(int32_t device, const char *key, char *buffer, size_t size, kigo_error **error);

/**
 * A fact about a GPU that is an integer.
 *
 * @param device  The number of the GPU, from 0.
 * @param key     Which fact, as "Facts about a GPU" lists them.
 * @param value   Where the fact is written on success.
 * @param error   Where an error is written on failure, or NULL.
 * @returns KIGO_OK.
 *   - KIGO_INVALID_ARGUMENT: `device` is negative, `key` is NULL or no integer has it, or `value` is NULL.
 *   - KIGO_INVALID_UTF8: `key` is not UTF-8.
 *   - KIGO_NO_DEVICE: there are not so many GPUs.
 *   - KIGO_NO_BACKEND, KIGO_NO_DRIVER, KIGO_DRIVER_TOO_OLD, KIGO_DEVICE_ERROR, KIGO_DEVICE_LOST, KIGO_OUT_OF_MEMORY:
 *     as for kigo_device_count().
 *   - KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time.
 *
 * Memory:
 * `key` is NULL or NUL-terminated; `value` and `error` are NULL or valid for writing.
 */
int32_t kigo_device_get_i64(int32_t device, const char *key, int64_t *value, kigo_error **error);

/**
 * Makes an options object in which every option has its default.
 *
 * @param options  Where the new object is written on success; free it with kigo_options_free().
 * @param error    Where an error is written on failure, or NULL.
 * @returns KIGO_OK.
 *   - KIGO_INVALID_ARGUMENT: `options` is NULL; pass a place.
 *   - KIGO_LIMIT: there are too many live options objects; free some.
 *   - KIGO_OUT_OF_MEMORY, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time.
 *
 * Memory:
 * `options` and `error` are NULL or valid for writing one pointer.
 */
int32_t kigo_options_new(kigo_options **options, kigo_error **error);

/**
 * All options, as a JSON array of an object for each.
 *
 * - "key": its key, also the value of the macro that begins with KIGO_OPTION_.
 * - "read_by": "model_load" or "inference_start".
 * - "type": "string", "integer" or "number", which also tells the function that sets it.
 * - "lowest", "highest": the range of integers and numbers; "above", in place of "lowest", is not part of it.
 * - "expected": what it accepts, in words.
 * - "default": the value that it has unasked, or null where that is no fixed value; "default_text" says it in words.
 * - "doc": what it does.
 *
 * Later versions may add keys.
 *
 * @param buffer  Where the text and a NUL are written; may be NULL if `size` is 0.
 * @param size    Bytes in `buffer`; 0 only asks for the size needed.
 * @param error   Where an error is written on failure, or NULL.
 * @returns The bytes that the text and its NUL take, so at least 1.
 *   - KIGO_BUFFER_TOO_SMALL: they do not fit; nothing was written, and the message has the size needed.
 *   - KIGO_INVALID_ARGUMENT: `buffer` is NULL though `size` is not 0.
 *   - KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time.
 *
 * Memory:
 * `buffer` is NULL or valid for writing the answer if that fits into `size` bytes; `error` is NULL or valid for
 * writing one pointer.
 */
int32_t kigo_options_keys(char *buffer, size_t size, kigo_error **error);

/**
 * Sets an option that is a text.
 *
 * @param options  The options; changed.
 * @param key      The key of the option, as "Options" lists them.
 * @param value    The value in UTF-8; it is copied.
 * @param error    Where an error is written on failure, or NULL.
 * @returns KIGO_OK. On failure the option keeps its value.
 *   - KIGO_UNKNOWN_OPTION: no option has this key; the message names the nearest.
 *   - KIGO_INVALID_ARGUMENT: `key` or `value` is NULL, the value is not allowed, or the option is not a text; the
 *     message names the values allowed and the function to use.
 *   - KIGO_INVALID_UTF8: `key` or `value` is not UTF-8.
 *   - KIGO_IO, KIGO_BAD_TEMPLATE: the file of "chat_template_file" cannot be read, or is no text or too long.
 *   - KIGO_LIMIT: there are too many stop strings.
 *   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time.
 *
 * Memory:
 * `key` and `value` are NULL or NUL-terminated; `error` is NULL or valid for writing one pointer.
 */
int32_t kigo_options_set_str(kigo_options *options, const char *key, const char *value, kigo_error **error);

/**
 * Sets an option that is an integer, or one that is a number.
 *
 * @param options  The options; changed.
 * @param key      The key of the option, as "Options" lists them.
 * @param value    The value.
 * @param error    Where an error is written on failure, or NULL.
 * @returns KIGO_OK. On failure the option keeps its value.
 *   - KIGO_UNKNOWN_OPTION: no option has this key; the message names the nearest.
 *   - KIGO_INVALID_ARGUMENT: `key` is NULL, the value is outside the range, or the option is a text; the message
 *     names the range and the function to use.
 *   - KIGO_INVALID_UTF8, KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time.
 *
 * Memory:
 * `key` is NULL or NUL-terminated; `error` is NULL or valid for writing one pointer.
 */
int32_t kigo_options_set_i64(kigo_options *options, const char *key, int64_t value, kigo_error **error);

/**
 * Sets an option that is a number.
 *
 * @param options  The options; changed.
 * @param key      The key of the option, as "Options" lists them.
 * @param value    The value; a NaN is outside every range.
 * @param error    Where an error is written on failure, or NULL.
 * @returns KIGO_OK. On failure the option keeps its value.
 *   - KIGO_UNKNOWN_OPTION: no option has this key; the message names the nearest.
 *   - KIGO_INVALID_ARGUMENT: `key` is NULL, the value is outside the range, or the option is not a number; the
 *     message names the range and the function to use.
 *   - KIGO_INVALID_UTF8, KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time.
 *
 * Memory:
 * `key` is NULL or NUL-terminated; `error` is NULL or valid for writing one pointer.
 */
int32_t kigo_options_set_f64(kigo_options *options, const char *key, double value, kigo_error **error);

/**
 * Sets a function that kigo_model_load() calls while it loads.
 *
 * It is called on the thread that called kigo_model_load(): at once, then about every 50 milliseconds, and a last
 * time when all has been read. The load goes on meanwhile. When it has returned another number than 0, it is not
 * called again, and kigo_model_load() returns KIGO_CANCELLED. It may call every function of kigo, and even free the
 * options. It must return: no exception, panic or longjmp() may leave it. kigo_load_start() does not call it; ask
 * kigo_load_progress() there.
 *
 * @param options    The options; changed.
 * @param progress   The function, or NULL for none, which is the default.
 * @param user_data  What the function gets back, or NULL; kigo never follows it. Function and data are kept with the
 *                   options, for every kigo_model_load() that gets these, on whatever thread.
 * @param error      Where an error is written on failure, or NULL.
 * @returns KIGO_OK.
 *   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time.
 *
 * Memory:
 * `progress` is NULL or may be called as described; `error` is NULL or valid for writing one pointer.
 */
int32_t kigo_options_set_progress(kigo_options *options, kigo_progress progress, void *user_data, kigo_error **error);

/**
 * Frees an options object. Models and inferences that were made with it are not affected.
 *
 * @param options  The options, or NULL.
 * @returns KIGO_OK, also for NULL.
 *   - KIGO_INVALID_HANDLE: `options` was freed before or is no options object; nothing happened.
 *   - KIGO_FORKED: this is a forked child; nothing happened.
 *
 * Any thread may call it at any time, also while another uses `options`.
 */
int32_t kigo_options_free(kigo_options *options);

/**
 * Loads a model from a GGUF file.
 *
 * The file is read while the call runs, which may take seconds, and is not needed afterwards. kigo_load_start() does
 * the same without waiting.
 *
 * @param path     The file, in the bytes of the system; it need not be UTF-8 on Linux.
 * @param options  Options, or NULL for the defaults; not kept.
 * @param model    Where the model is written on success; free it with kigo_model_free().
 * @param error    Where an error is written on failure, or NULL.
 * @returns KIGO_OK. On failure nothing is left behind.
 *   - KIGO_IO: the file cannot be opened or read; the message has the system's reason.
 *   - KIGO_NOT_GGUF, KIGO_TRUNCATED, KIGO_UNSUPPORTED_VERSION, KIGO_BAD_FILE: the file is not a GGUF file that can
 *     be loaded; fetch or convert it again.
 *   - KIGO_UNSUPPORTED_ARCHITECTURE, KIGO_UNSUPPORTED_TYPE, KIGO_UNSUPPORTED_TOKENIZER: the model needs something
 *     that this version does not have; the message lists what it has.
 *   - KIGO_NO_BACKEND, KIGO_NO_DRIVER, KIGO_DRIVER_TOO_OLD, KIGO_NO_DEVICE, KIGO_UNSUPPORTED_GPU: the device cannot
 *     be used; the message says why. Set the option "device" to another.
 *   - KIGO_DEVICE_LOST, KIGO_DEVICE_ERROR: the driver or the GPU failed; the message has its number for it.
 *   - KIGO_OUT_OF_MEMORY: the device or the host has too little memory; the message has the bytes.
 *   - KIGO_CANCELLED: the function of kigo_options_set_progress() wanted it.
 *   - KIGO_INVALID_ARGUMENT: `path` or `model` is NULL.
 *   - KIGO_INVALID_HANDLE: `options` is neither NULL nor a live options object.
 *   - KIGO_LIMIT, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time; several models may be loaded at once.
 *
 * Memory:
 * `path` is NULL or NUL-terminated; `model` and `error` are NULL or valid for writing one pointer.
 */
int32_t kigo_model_load(const char *path, const kigo_options *options, kigo_model **model, kigo_error **error);

/**
 * Frees a model. Its inferences go on: the memory is given back when the last of them is freed.
 *
 * @param model  The model, or NULL.
 * @returns KIGO_OK, also for NULL.
 *   - KIGO_INVALID_HANDLE: `model` was freed before or is no model; nothing happened.
 *   - KIGO_FORKED: this is a forked child; nothing happened.
 *
 * Any thread may call it at any time, also while another uses `model`.
 */
int32_t kigo_model_free(kigo_model *model);

/**
 * A fact about a model that is a text.
 *
 * @param model   The model; not changed.
 * @param key     Which fact, as "Facts about a model" lists them.
 * @param buffer  Where the text and a NUL are written; may be NULL if `size` is 0.
 * @param size    Bytes in `buffer`; 0 only asks for the size needed.
 * @param error   Where an error is written on failure, or NULL.
 * @returns The bytes that the text and its NUL take, so at least 1.
 *   - KIGO_BUFFER_TOO_SMALL: they do not fit; nothing was written, and the message has the size needed.
 *   - KIGO_INVALID_ARGUMENT: `key` is NULL or no text has it, or `buffer` is NULL though `size` is not 0.
 *   - KIGO_INVALID_UTF8: `key` is not UTF-8.
 *   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time.
 *
 * Memory:
 * `key` is NULL or NUL-terminated; `buffer` is NULL or valid for writing the answer if that fits into `size` bytes;
 * `error` is NULL or valid for writing one pointer.
 */
int32_t kigo_model_get_str(const kigo_model *model, const char *key, char *buffer, size_t size, kigo_error **error);

/**
 * A fact about a model that is an integer.
 *
 * @param model  The model; not changed.
 * @param key    Which fact, as "Facts about a model" lists them.
 * @param value  Where the fact is written on success.
 * @param error  Where an error is written on failure, or NULL.
 * @returns KIGO_OK.
 *   - KIGO_INVALID_ARGUMENT: `key` is NULL or no integer has it, or `value` is NULL.
 *   - KIGO_INVALID_UTF8: `key` is not UTF-8.
 *   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time.
 *
 * Memory:
 * `key` is NULL or NUL-terminated; `value` and `error` are NULL or valid for writing.
 */
int32_t kigo_model_get_i64(const kigo_model *model, const char *key, int64_t *value, kigo_error **error);

/**
 * A fact about a model that is a number.
 *
 * @param model  The model; not changed.
 * @param key    Which fact, as "Facts about a model" lists them.
 * @param value  Where the fact is written on success.
 * @param error  Where an error is written on failure, or NULL.
 * @returns KIGO_OK.
 *   - KIGO_INVALID_ARGUMENT: `key` is NULL or no number has it, or `value` is NULL.
 *   - KIGO_INVALID_UTF8: `key` is not UTF-8.
 *   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time.
 *
 * Memory:
 * `key` is NULL or NUL-terminated; `value` and `error` are NULL or valid for writing.
 */
int32_t kigo_model_get_f64(const kigo_model *model, const char *key, double *value, kigo_error **error);

/**
 * Asks the driver of the device where every allocation of a model really is.
 *
 * A model on a GPU has its weights, contexts and workspace in the memory of that GPU and nowhere else: `device_bytes`
 * is then "memory_bytes", and `host_bytes` is what the two exchange tokens through. A model on the CPU has no
 * `device_bytes`.
 *
 * @param model         The model; not changed.
 * @param device_bytes  Where the bytes in the memory of the GPU are written.
 * @param host_bytes    Where the bytes in the memory of the host are written.
 * @param error         Where an error is written on failure, or NULL.
 * @returns KIGO_OK: everything is where it belongs.
 *   - KIGO_INVALID_ARGUMENT: `device_bytes` or `host_bytes` is NULL.
 *   - KIGO_INTERNAL: an allocation is elsewhere; the message says which and where.
 *   - KIGO_DEVICE_LOST, KIGO_DEVICE_ERROR: the driver cannot be asked.
 *   - KIGO_INVALID_HANDLE, KIGO_FORKED: see "Statuses".
 *
 * Any thread may call it at any time, also while inferences run.
 *
 * Memory:
 * `device_bytes`, `host_bytes` and `error` are NULL or valid for writing.
 */
int32_t kigo_model_verify_residency(const kigo_model *model,
                                    int64_t *device_bytes,
                                    int64_t *host_bytes,
                                    kigo_error **error);

/**
 * Frees what inferences have left for others that begin with the same tokens; see the option "prompt_cache_mib". It is
 * freed with the model in any case, and makes room by itself when an inference of the model needs memory.
 *
 * @param model  The model.
 * @param error  Where an error is written on failure, or NULL.
 * @returns KIGO_OK.
 *   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time. It waits for the step that is being computed.
 *
 * Memory:
 * `error` is NULL or valid for writing one pointer.
 */
int32_t kigo_model_clear_prompt_cache(kigo_model *model,
                                      kigo_error **error);

/**
 * Everything about a model as a JSON object.
 *
 * - "architecture", "name": texts of the file.
 * - "file": "bytes" of all its parts, "n_files", "version", "n_tensors".
 * - "sizes": "n_layer", "n_embd", "n_head", "n_head_kv", "head_dim", "n_ff", "n_ctx_train", "n_vocab", "n_params" and
 *   such, as far as the file has them; a size that differs by layer is an array.
 * - "hyperparameters": what the file says under the name of the architecture.
 * - "types": by name of a tensor type, "count" and "bytes" of its tensors.
 * - "roles": for each name of tensors, without the number of the layer, "role", "count", "n_params", "bytes" and
 *   "types".
 * - "tokenizer": "n_vocab"; "bos", "eos", "eot", "eom", "unknown", each null or with "id" and "text"; "eog", an array
 *   of such tokens, which end a generation; "add_bos", "add_eos", "max_token_bytes".
 * - "chat_templates": the names of the chat templates.
 * - "memory": "device", "n_ctx", "n_batch", and bytes on the device: "weights", "cache" of one inference that fills a
 *   context of `n_ctx` tokens, "cache_per_token", "workspace", "total".
 *
 * Later versions may add keys.
 *
 * @param model   The model; not changed.
 * @param n_ctx   Tokens of the context that "memory" is for; 0 takes the model's "n_ctx".
 * @param buffer  Where the text and a NUL are written; may be NULL if `size` is 0.
 * @param size    Bytes in `buffer`; 0 only asks for the size needed.
 * @param error   Where an error is written on failure, or NULL.
 * @returns The bytes that the text and its NUL take, so at least 1.
 *   - KIGO_BUFFER_TOO_SMALL: they do not fit; nothing was written, and the message has the size needed.
 *   - KIGO_INVALID_ARGUMENT: `n_ctx` is out of range, or `buffer` is NULL though `size` is not 0.
 *   - KIGO_INVALID_HANDLE, KIGO_LIMIT, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time.
 *
 * Memory:
 * `buffer` is NULL or valid for writing the answer if that fits into `size` bytes; `error` is NULL or valid for
 * writing one pointer.
 */
int32_t kigo_model_info(const kigo_model *model, int64_t n_ctx, char *buffer, size_t size, kigo_error **error);

/**
 * Everything about the model in a GGUF file, as kigo_model_info() tells it, without loading it.
 *
 * Only the header is read. The options say for which device, context and batch "memory" is computed; the device need
 * not be there. Where kigo cannot run the model, "error" says why, and "memory" or "tokenizer" may be missing.
 *
 * @param path     The file, in the bytes of the system; it need not be UTF-8 on Linux.
 * @param options  Options, or NULL for the defaults; not kept.
 * @param buffer   Where the text and a NUL are written; may be NULL if `size` is 0.
 * @param size     Bytes in `buffer`; 0 only asks for the size needed.
 * @param error    Where an error is written on failure, or NULL.
 * @returns The bytes that the text and its NUL take, so at least 1.
 *   - KIGO_BUFFER_TOO_SMALL: they do not fit; nothing was written, and the message has the size needed.
 *   - KIGO_IO, KIGO_NOT_GGUF, KIGO_TRUNCATED, KIGO_UNSUPPORTED_VERSION, KIGO_UNSUPPORTED_TYPE, KIGO_BAD_FILE: the
 *     file is not a GGUF file that can be read; the message says why.
 *   - KIGO_INVALID_ARGUMENT: `path` is NULL, or `buffer` is NULL though `size` is not 0.
 *   - KIGO_INVALID_HANDLE: `options` is neither NULL nor a live options object.
 *   - KIGO_OUT_OF_MEMORY, KIGO_LIMIT, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time.
 *
 * Memory:
 * `path` is NULL or NUL-terminated; `buffer` is NULL or valid for writing the answer if that fits into `size` bytes;
 * `error` is NULL or valid for writing one pointer.
 */
int32_t kigo_file_info(const char *path, const kigo_options *options, char *buffer, size_t size, kigo_error **error);

/**
 * How many keys the metadata of a model's file has.
 *
 * @param model  The model; not changed.
 * @param error  Where an error is written on failure, or NULL.
 * @returns The number, 0 or more.
 *   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time.
 *
 * Memory:
 * `error` is NULL or valid for writing one pointer.
 */
int32_t kigo_model_metadata_count(const kigo_model *model, kigo_error **error);

/**
 * A key of the metadata, by its place in the file.
 *
 * @param model   The model; not changed.
 * @param index   Which one, from 0 to one less than kigo_model_metadata_count().
 * @param buffer  Where the key and a NUL are written; may be NULL if `size` is 0.
 * @param size    Bytes in `buffer`; 0 only asks for the size needed.
 * @param error   Where an error is written on failure, or NULL.
 * @returns The bytes that the key and its NUL take, so at least 1.
 *   - KIGO_BUFFER_TOO_SMALL: they do not fit; nothing was written, and the message has the size needed.
 *   - KIGO_INVALID_ARGUMENT: there are not so many keys, or `buffer` is NULL though `size` is not 0.
 *   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time.
 *
 * Memory:
 * `buffer` is NULL or valid for writing the answer if that fits into `size` bytes; `error` is NULL or valid for
 * writing one pointer.
 */
int32_t kigo_model_metadata_key(const kigo_model *model,
                                int32_t index,
                                char *buffer,
                                size_t size,
                                kigo_error **error);

/**
 * The type of a value of the metadata.
 *
 * @param model         The model; not changed.
 * @param key           Its key.
 * @param element_type  Where the type of the elements of an array is written; of another value its type again.
 * @param n_elements    Where the number of elements of an array is written; 1 for another value.
 * @param error         Where an error is written on failure, or NULL.
 * @returns The type, one of the KIGO_METADATA_ numbers.
 *   - KIGO_NOT_FOUND: the file has no such key.
 *   - KIGO_INVALID_ARGUMENT: `key`, `element_type` or `n_elements` is NULL.
 *   - KIGO_INVALID_UTF8: `key` is not UTF-8.
 *   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time.
 *
 * Memory:
 * `key` is NULL or NUL-terminated; `element_type`, `n_elements` and `error` are NULL or valid for writing.
 */
int32_t kigo_model_metadata_type(const kigo_model *model,
                                 const char *key,
                                 int32_t *element_type,
                                 int64_t *n_elements,
                                 kigo_error **error);

/**
 * A value of the metadata as a text: a string as it is, anything else but an array as JSON would write it.
 *
 * @param model   The model; not changed.
 * @param key     Its key.
 * @param buffer  Where the text and a NUL are written; may be NULL if `size` is 0. A string may have NULs, so take the
 *                length from the return value where that matters. Bytes that are not UTF-8 become U+FFFD.
 * @param size    Bytes in `buffer`; 0 only asks for the size needed.
 * @param error   Where an error is written on failure, or NULL.
 * @returns The bytes that the text and its NUL take, so at least 1.
 *   - KIGO_NOT_FOUND: the file has no such key.
 *   - KIGO_BUFFER_TOO_SMALL: they do not fit; nothing was written, and the message has the size needed.
 *   - KIGO_INVALID_ARGUMENT: `key` is NULL, its value is an array, or `buffer` is NULL though `size` is not 0.
 *   - KIGO_INVALID_UTF8: `key` is not UTF-8.
 *   - KIGO_OUT_OF_MEMORY: there is no room for the text.
 *   - KIGO_INVALID_HANDLE, KIGO_LIMIT, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time.
 *
 * Memory:
 * `key` is NULL or NUL-terminated; `buffer` is NULL or valid for writing the answer if that fits into `size` bytes;
 * `error` is NULL or valid for writing one pointer.
 */
int32_t kigo_model_metadata_get_str(const kigo_model *model,
                                    const char *key,
                                    char *buffer,
                                    size_t size,
                                    kigo_error **error);

/**
 * A value of the metadata that is an integer of any type, or a boolean, which is 0 or 1.
 *
 * @param model  The model; not changed.
 * @param key    Its key.
 * @param value  Where the value is written on success.
 * @param error  Where an error is written on failure, or NULL.
 * @returns KIGO_OK.
 *   - KIGO_NOT_FOUND: the file has no such key.
 *   - KIGO_INVALID_ARGUMENT: `key` or `value` is NULL, or the value is no integer below 2^63.
 *   - KIGO_INVALID_UTF8: `key` is not UTF-8.
 *   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time.
 *
 * Memory:
 * `key` is NULL or NUL-terminated; `value` and `error` are NULL or valid for writing.
 */
int32_t kigo_model_metadata_get_i64(const kigo_model *model, const char *key, int64_t *value, kigo_error **error);

/**
 * A value of the metadata that is a floating-point number, or an integer that a double holds exactly.
 *
 * @param model  The model; not changed.
 * @param key    Its key.
 * @param value  Where the value is written on success; it may be a NaN or infinite.
 * @param error  Where an error is written on failure, or NULL.
 * @returns KIGO_OK.
 *   - KIGO_NOT_FOUND: the file has no such key.
 *   - KIGO_INVALID_ARGUMENT: `key` or `value` is NULL, or the value is no such number.
 *   - KIGO_INVALID_UTF8: `key` is not UTF-8.
 *   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time.
 *
 * Memory:
 * `key` is NULL or NUL-terminated; `value` and `error` are NULL or valid for writing.
 */
int32_t kigo_model_metadata_get_f64(const kigo_model *model, const char *key, double *value, kigo_error **error);

/**
 * A value of the metadata as JSON; of an array the elements from `first` on, at most `count` of them.
 *
 * Numbers have all their digits: a reader of JSON must take integers of 64 bits to keep them. Numbers that are not
 * finite are the strings "NaN", "Infinity" and "-Infinity". Bytes of strings that are not UTF-8 become U+FFFD.
 *
 * @param model   The model; not changed.
 * @param key     Its key.
 * @param first   The first element wanted of an array, from 0 up to the number of its elements; 0 for another value.
 * @param count   Most elements wanted, from 0 to 65536.
 * @param buffer  Where the text and a NUL are written; may be NULL if `size` is 0.
 * @param size    Bytes in `buffer`; 0 only asks for the size needed.
 * @param error   Where an error is written on failure, or NULL.
 * @returns The bytes that the text and its NUL take, so at least 1.
 *   - KIGO_NOT_FOUND: the file has no such key.
 *   - KIGO_BUFFER_TOO_SMALL: they do not fit; nothing was written, and the message has the size needed.
 *   - KIGO_INVALID_ARGUMENT: `key` is NULL, `first` or `count` is out of range, or `buffer` is NULL though `size` is not
 *     0.
 *   - KIGO_INVALID_UTF8: `key` is not UTF-8.
 *   - KIGO_OUT_OF_MEMORY: there is no room for the text.
 *   - KIGO_LIMIT: the text has 2 GiB or more; ask for fewer elements.
 *   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time.
 *
 * Memory:
 * `key` is NULL or NUL-terminated; `buffer` is NULL or valid for writing the answer if that fits into `size` bytes;
 * `error` is NULL or valid for writing one pointer.
 */
int32_t kigo_model_metadata_get_json(const kigo_model *model,
                                     const char *key,
                                     int64_t first,
                                     int64_t count,
                                     char *buffer,
                                     size_t size,
                                     kigo_error **error);

/**
 * The tokens of a text.
 *
 * Without flags they are those of the text alone, in which nothing becomes a control token: concatenated parts of a
 * prompt are best made of such.
 *
 * @param model     The model; not changed.
 * @param text      The text in UTF-8; may be NULL if `text_len` is 0.
 * @param text_len  Bytes in `text`, NULs included, or KIGO_NUL_TERMINATED if a NUL ends it.
 * @param flags     KIGO_TOKENIZE_ADD_SPECIAL, KIGO_TOKENIZE_PARSE_SPECIAL, both or 0.
 * @param tokens    Where the ids are written; may be NULL if `size` is 0.
 * @param size      How many ids `tokens` has room for; one for each byte and two more are always enough. 0 only asks
 *                  for the number.
 * @param error     Where an error is written on failure, or NULL.
 * @returns How many tokens the text has, 0 or more.
 *   - KIGO_BUFFER_TOO_SMALL: they do not fit; nothing was written, and the message has the number needed.
 *   - KIGO_INVALID_ARGUMENT: `flags` has others, `text` is NULL though `text_len` is not 0, or `tokens` is NULL though
 *     `size` is not 0.
 *   - KIGO_INVALID_UTF8: `text` is not UTF-8; the message names the first wrong byte.
 *   - KIGO_BAD_FILE: an expression of the tokenizer.json of the model came to no end.
 *   - KIGO_OUT_OF_MEMORY: there is no room for the tokens.
 *   - KIGO_LIMIT: the text has 4 GiB or more.
 *   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time.
 *
 * Memory:
 * `text` is NULL or readable for `text_len` bytes, or NUL-terminated; `tokens` is NULL or valid for writing the ids if
 * they fit into `size`; `error` is NULL or valid for writing one pointer.
 */
int32_t kigo_model_tokenize(const kigo_model *model,
                            const char *text,
                            size_t text_len,
                            int32_t flags,
                            int32_t *tokens,
                            size_t size,
                            kigo_error **error);

/**
 * The text of tokens, as bytes: where tokens begin or end inside a character, they are not UTF-8.
 *
 * A tokenizer that puts a space before a text takes it away again, so that the tokens of a text give that text.
 *
 * @param model     The model; not changed.
 * @param tokens    The ids, each from 0 to n_vocab - 1; may be NULL if `n_tokens` is 0.
 * @param n_tokens  How many there are.
 * @param flags     KIGO_DETOKENIZE_SPECIAL or 0.
 * @param buffer    Where the bytes and a NUL are written; may be NULL if `size` is 0.
 * @param size      Bytes in `buffer`; 0 only asks for the size needed.
 * @param error     Where an error is written on failure, or NULL.
 * @returns The bytes of the text and its NUL, so at least 1. A text with NULs counts them.
 *   - KIGO_BUFFER_TOO_SMALL: they do not fit; nothing was written, and the message has the size needed.
 *   - KIGO_INVALID_ARGUMENT: `flags` has others, an id is outside the vocabulary, `tokens` is NULL though `n_tokens` is
 *     not 0, or `buffer` is NULL though `size` is not 0.
 *   - KIGO_OUT_OF_MEMORY: there is no room for the text.
 *   - KIGO_INVALID_HANDLE, KIGO_LIMIT, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time.
 *
 * Memory:
 * `tokens` is NULL or readable for `n_tokens` ids; `buffer` is NULL or valid for writing the answer if that fits into
 * `size` bytes; `error` is NULL or valid for writing one pointer.
 */
int32_t kigo_model_detokenize(const kigo_model *model,
                              const int32_t *tokens,
                              size_t n_tokens,
                              int32_t flags,
                              char *buffer,
                              size_t size,
                              kigo_error **error);

/**
 * The bytes of one token, as the vocabulary has them: those of control and unknown tokens too, which
 * kigo_next_token() leaves out.
 *
 * @param model   The model; not changed.
 * @param token   The id, from 0 to n_vocab - 1.
 * @param bytes   Where the bytes are written, without a NUL; may be NULL if `size` is 0.
 * @param size    Bytes in `bytes`; "max_token_bytes" of the model is always enough. 0 only asks for the size needed.
 * @param error   Where an error is written on failure, or NULL.
 * @returns How many bytes the token has, 0 or more.
 *   - KIGO_BUFFER_TOO_SMALL: they do not fit; nothing was written, and the message has the size needed.
 *   - KIGO_INVALID_ARGUMENT: the vocabulary has no such id, or `bytes` is NULL though `size` is not 0.
 *   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time.
 *
 * Memory:
 * `bytes` is NULL or valid for writing the bytes of the token if they fit into `size`; `error` is NULL or valid for
 * writing one pointer.
 */
int32_t kigo_model_token_bytes(const kigo_model *model, int32_t token, char *bytes, size_t size, kigo_error **error);

/**
 * What a token is.
 *
 * @param model  The model; not changed.
 * @param token  The id, from 0 to n_vocab - 1.
 * @param error  Where an error is written on failure, or NULL.
 * @returns KIGO_TOKEN_ numbers: one of the first six, and KIGO_TOKEN_END_OF_GENERATION added where it is such.
 *   - KIGO_INVALID_ARGUMENT: the vocabulary has no such id.
 *   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time.
 *
 * Memory:
 * `error` is NULL or valid for writing one pointer.
 */
int32_t kigo_model_token_attributes(const kigo_model *model, int32_t token, kigo_error **error);

/**
 * The id of a token with a meaning of its own.
 *
 * @param model  The model; not changed.
 * @param key    Which, as "Special tokens" lists them.
 * @param error  Where an error is written on failure, or NULL.
 * @returns Its id, 0 or more.
 *   - KIGO_NOT_FOUND: the model has no such token.
 *   - KIGO_INVALID_ARGUMENT: `key` is NULL or none of the list.
 *   - KIGO_INVALID_UTF8: `key` is not UTF-8.
 *   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time.
 *
 * Memory:
 * `key` is NULL or NUL-terminated; `error` is NULL or valid for writing one pointer.
 */
int32_t kigo_model_special_token(const kigo_model *model, const char *key, kigo_error **error);

/**
 * Starts to load a model from a GGUF file, on a thread of kigo, and returns at once.
 *
 * Everything that can be wrong with the file or the device is told by kigo_load_finish().
 *
 * @param path     The file, in the bytes of the system; it need not be UTF-8 on Linux. It is copied.
 * @param options  Options, or NULL for the defaults; not kept.
 * @param load     Where the load is written on success; free it with kigo_load_free().
 * @param error    Where an error is written on failure, or NULL.
 * @returns KIGO_OK. On failure nothing is left behind.
 *   - KIGO_INVALID_ARGUMENT: `path` or `load` is NULL.
 *   - KIGO_INVALID_HANDLE: `options` is neither NULL nor a live options object.
 *   - KIGO_OUT_OF_MEMORY: the system has no memory for another thread.
 *   - KIGO_LIMIT, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time; several models may be loaded at once.
 *
 * Memory:
 * `path` is NULL or NUL-terminated; `load` and `error` are NULL or valid for writing one pointer.
 */
int32_t kigo_load_start(const char *path, const kigo_options *options, kigo_load **load, kigo_error **error);

/**
 * How far a load is. It never waits, so it may be called as often as a progress bar is drawn.
 *
 * @param load   The load; not changed.
 * @param done   Where the bytes of weights are written that have been read so far; they never become less.
 * @param total  Where the bytes are written that there are to read; 0 until the header of the file has been read.
 * @param error  Where an error is written on failure, or NULL.
 * @returns 1 while the load runs, 0 when it has ended and kigo_load_finish() will not wait.
 *   - KIGO_INVALID_ARGUMENT: `done` or `total` is NULL.
 *   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time, also while another waits in kigo_load_finish().
 *
 * Memory:
 * `done`, `total` and `error` are NULL or valid for writing.
 */
int32_t kigo_load_progress(const kigo_load *load, int64_t *done, int64_t *total, kigo_error **error);

/**
 * Cancels a load. It ends within moments, and kigo_load_finish() returns KIGO_CANCELLED, unless it had ended before.
 *
 * @param load  The load.
 * @returns KIGO_OK, also if it had ended or was cancelled before.
 *   - KIGO_INVALID_HANDLE: `load` is NULL, freed or no load; nothing happened.
 *   - KIGO_FORKED: this is a forked child; nothing happened.
 *
 * Any thread may call it at any time, also while another waits in kigo_load_finish(). It does not wait.
 */
int32_t kigo_load_cancel(kigo_load *load);

/**
 * Waits until a load has ended, and gives its model, once.
 *
 * @param load   The load; it stays yours to free, and frees nothing of the model.
 * @param model  Where the model is written on success; free it with kigo_model_free().
 * @param error  Where an error is written on failure, or NULL.
 * @returns KIGO_OK. On failure nothing of the load is left but its handle.
 *   - KIGO_CANCELLED: the load was cancelled or freed; its memory has been given back.
 *   - KIGO_INVALID_ARGUMENT: `model` is NULL, or an earlier call has given the outcome of this load, which comes only
 *     once.
 *   - KIGO_INVALID_HANDLE: `load` is not live.
 *   - Otherwise what kigo_model_load() returns, for the same reasons.
 *
 * KIGO_FORKED and KIGO_INTERNAL: see "Statuses". Any thread may call it at any time.
 *
 * Memory:
 * `model` and `error` are NULL or valid for writing one pointer.
 */
int32_t kigo_load_finish(kigo_load *load, kigo_model **model, kigo_error **error);

/**
 * Frees a load. One that still runs is cancelled; its thread gives the memory back moments later.
 *
 * To know when that has happened, call kigo_load_cancel() and kigo_load_finish() before. A model that
 * kigo_load_finish() gave is not affected.
 *
 * @param load  The load, or NULL.
 * @returns KIGO_OK, also for NULL.
 *   - KIGO_INVALID_HANDLE: `load` was freed before or is no load; nothing happened.
 *   - KIGO_FORKED: this is a forked child; nothing happened.
 *
 * Any thread may call it at any time, also while another uses `load`. It does not wait.
 */
int32_t kigo_load_free(kigo_load *load);

/**
 * Renders a chat with the chat template and generates nothing.
 *
 * The text is for people to look at. Generate from the chat itself: in the text, what a user wrote cannot be told
 * from what the template wrote, and a user's text may spell control tokens.
 *
 * @param model         The model; not changed.
 * @param messages      The chat in JSON, as "Chats" describes it; with the prompt_format "user" one message of a
 *                      user.
 * @param messages_len  Bytes in `messages`, or KIGO_NUL_TERMINATED if a NUL ends it.
 * @param options       Options, or NULL for the defaults; not kept. The prompt_format "text" counts as "chat".
 * @param buffer        Where the text and a NUL are written; may be NULL if `size` is 0.
 * @param size          Bytes in `buffer`; 0 only asks for the size needed.
 * @param error         Where an error is written on failure, or NULL.
 * @returns The bytes that the text and its NUL take, so at least 1. A text with NULs of messages counts them.
 *   - KIGO_BUFFER_TOO_SMALL: they do not fit; nothing was written, and the message has the size needed.
 *   - KIGO_BAD_TEMPLATE: the chat template is missing or failed; the message says where.
 *   - KIGO_INVALID_ARGUMENT: `messages` is NULL or no chat; the message names the key. Or `buffer` is NULL though
 *     `size` is not 0.
 *   - KIGO_INVALID_UTF8: `messages` is not UTF-8.
 *   - KIGO_PROMPT_TOO_LONG: the chat is far too long for the context of the model.
 *   - KIGO_OUT_OF_MEMORY: there is no room for the chat.
 *   - KIGO_INVALID_HANDLE: `model` is not live, or `options` is neither NULL nor live.
 *   - KIGO_LIMIT, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time.
 *
 * Memory:
 * `messages` is NULL or readable for `messages_len` bytes, or NUL-terminated; `buffer` is NULL or valid for writing
 * the answer if that fits into `size` bytes; `error` is NULL or valid for writing one pointer.
 */
int32_t kigo_model_chat_render(const kigo_model *model,
                               const char *messages,
                               size_t messages_len,
                               const kigo_options *options,
                               char *buffer,
                               size_t size,
                               kigo_error **error);

/**
 * Starts a generation from a text. Nothing is computed yet: the first call for text or a token does that.
 *
 * @param model       The model; it may be freed while the inference lives.
 * @param prompt      The prompt in UTF-8, read as the option "prompt_format" says; it is copied. May be NULL if
 *                    `prompt_len` is 0. Nothing in it is taken for a control token, except by "chat" and "user",
 *                    whose template adds its own.
 * @param prompt_len  Bytes in `prompt`, NULs included, or KIGO_NUL_TERMINATED if a NUL ends it.
 * @param options     Options, or NULL for the defaults; not kept.
 * @param inference   Where the inference is written on success; free it with kigo_inference_free().
 * @param error       Where an error is written on failure, or NULL.
 * @returns KIGO_OK. On failure nothing is left behind.
 *   - KIGO_PROMPT_TOO_LONG: shorten the prompt or load the model with a larger "n_ctx".
 *   - KIGO_EMPTY_PROMPT: the prompt is empty and the model adds no token of its own.
 *   - KIGO_BAD_TEMPLATE: the chat template is missing or failed; use the prompt_format "text" or the option
 *     "chat_template".
 *   - KIGO_BAD_GRAMMAR: the option "json_schema", "regex" or "lark" is wrong or takes too much; the message says how.
 *   - KIGO_INVALID_UTF8: `prompt` is not UTF-8; the message names the first wrong byte.
 *   - KIGO_INVALID_ARGUMENT: `prompt` or `inference` is NULL, the prompt is not what "prompt_format" says, "logit_bias"
 *     has an id that the model does not, or the model's own default for an option is not allowed.
 *   - KIGO_OUT_OF_MEMORY: there is no room for the prompt. The context itself takes memory as it grows, in later calls.
 *   - KIGO_INVALID_HANDLE: `model` is not live, or `options` is neither NULL nor live.
 *   - KIGO_LIMIT, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time; inferences of one model run at the same time.
 *
 * Memory:
 * `prompt` is NULL or readable for `prompt_len` bytes, or NUL-terminated; `inference` and `error` are NULL or valid
 * for writing one pointer.
 */
int32_t kigo_inference_start(const kigo_model *model,
                             const char *prompt,
                             size_t prompt_len,
                             const kigo_options *options,
                             kigo_inference **inference,
                             kigo_error **error);

/**
 * Starts a generation from token ids, which may be control tokens. No token is added to them.
 *
 * @param model      The model; it may be freed while the inference lives.
 * @param tokens     The ids, each from 0 to n_vocab - 1; they are copied. May be NULL if `n_tokens` is 0.
 * @param n_tokens   How many there are.
 * @param options    Options, or NULL for the defaults; not kept. "prompt_format" is not used.
 * @param inference  Where the inference is written on success; free it with kigo_inference_free().
 * @param error      Where an error is written on failure, or NULL.
 * @returns KIGO_OK. On failure nothing is left behind.
 *   - KIGO_INVALID_ARGUMENT: a token id is outside the vocabulary, or `tokens` or `inference` is NULL.
 *   - KIGO_PROMPT_TOO_LONG, KIGO_EMPTY_PROMPT, KIGO_BAD_GRAMMAR, KIGO_OUT_OF_MEMORY, KIGO_INVALID_HANDLE: as for
 *     kigo_inference_start().
 *   - KIGO_LIMIT, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time.
 *
 * Memory:
 * `tokens` is NULL or readable for `n_tokens` ids; `inference` and `error` are NULL or valid for writing one pointer.
 */
int32_t kigo_inference_start_tokens(const kigo_model *model,
                                    const int32_t *tokens,
                                    size_t n_tokens,
                                    const kigo_options *options,
                                    kigo_inference **inference,
                                    kigo_error **error);

/**
 * The next piece of the text, as soon as there is one.
 *
 * A piece is one or more whole characters, so that it can be printed as it is; all pieces in a row are the text.
 * Use either this function or kigo_next_token() on an inference, not both.
 *
 * @param inference  The inference.
 * @param text       Where the piece and a NUL are written; may be NULL if `size` is 0. A model can generate NUL
 *                   characters, so take the length from the return value where that matters.
 * @param size       Bytes in `text`; 256 is enough for nearly every piece.
 * @param error      Where an error is written on failure, or NULL.
 * @returns The bytes of the piece without its NUL, at least 1; or 0 if the generation has ended, now and in every
 *   later call: kigo_inference_finish_reason() says why.
 *   - KIGO_BUFFER_TOO_SMALL: nothing is lost. Call again with a buffer of "text_size" bytes, which the message and
 *     kigo_inference_get_i64() tell: the same piece comes.
 *   - KIGO_CONTEXT_FULL: there is no room for another token; all that was generated has been returned before. The
 *     same comes from every later call: free the inference.
 *   - KIGO_CANCELLED: the inference was cancelled; free it.
 *   - KIGO_BUSY: another thread is inside a call on this inference, which goes on.
 *   - KIGO_OUT_OF_MEMORY: the context cannot grow. Nothing is lost: free other inferences and call again.
 *   - KIGO_NUMERIC: the model computed numbers that are not finite; free the inference.
 *   - KIGO_NO_CANDIDATE: every token is banned; free the inference.
 *   - KIGO_BAD_GRAMMAR: the grammar takes too much at this place of the text; free the inference.
 *   - KIGO_INVALID_ARGUMENT: `text` is NULL though `size` is not 0, or kigo_next_token() was used before.
 *   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it, one at a time for an inference. The first call computes the prompt.
 *
 * Memory:
 * `text` is NULL or valid for writing the piece if that fits into `size` bytes; `error` is NULL or valid for writing
 * one pointer.
 */
int32_t kigo_next_text(kigo_inference *inference, char *text, size_t size, kigo_error **error);

/**
 * The next token and its bytes, for hosts that want every token by itself.
 *
 * The bytes of a token need not be UTF-8: a character may be spread over several tokens. A control token may have
 * no bytes. The tokens of a stop string come, except the one that completes it. Use either this function or
 * kigo_next_text() on an inference, not both.
 *
 * @param inference  The inference.
 * @param token      Where the id is written on success.
 * @param bytes      Where the bytes are written, without a NUL; may be NULL if `size` is 0.
 * @param size       Bytes in `bytes`; "max_token_bytes" of the model is always enough.
 * @returns How many bytes the token has, 0 or more.
 *   - KIGO_FINISHED: the generation has ended, and nothing was written; the same comes from every later call.
 *   - KIGO_BUFFER_TOO_SMALL: nothing is lost. Call again with a larger buffer: the same token comes.
 *   - KIGO_CONTEXT_FULL: there is no room for another token; all that was generated has been returned before. The
 *     same comes from every later call: free the inference.
 *   - KIGO_CANCELLED: the inference was cancelled; free it.
 *   - KIGO_BUSY: another thread is inside a call on this inference, which goes on.
 *   - KIGO_OUT_OF_MEMORY: the context cannot grow. Nothing is lost: free other inferences and call again.
 *   - KIGO_NUMERIC: the model computed numbers that are not finite; free the inference.
 *   - KIGO_NO_CANDIDATE: every token is banned; free the inference.
 *   - KIGO_BAD_GRAMMAR: the grammar takes too much at this place of the text; free the inference.
 *   - KIGO_INVALID_ARGUMENT: `token` is NULL, `bytes` is NULL though `size` is not 0, or kigo_next_text() was used
 *     before.
 *   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 *   kigo_inference_last_error() has the message.
 *
 * Any thread may call it, one at a time for an inference. The first call computes the prompt.
 *
 * Memory:
 * `token` is NULL or valid for writing one id; `bytes` is NULL or valid for writing the bytes of the token if they
 * fit into `size`.
 */
int32_t kigo_next_token(kigo_inference *inference, int32_t *token, char *bytes, size_t size);

/**
 * The last failure of a call for text or a token on this inference, as that call would have told it.
 *
 * KIGO_BUSY is not remembered: it concerns the caller that got it, not the inference.
 *
 * @param inference  The inference; not changed.
 * @param error      Where an error is written if there was a failure, or NULL; free it with kigo_error_free().
 * @returns KIGO_OK if no call failed; then nothing is written. Otherwise the status of the last failure.
 *   - KIGO_INVALID_HANDLE: the inference is not live.
 *   - KIGO_FORKED: this is a forked child.
 *
 * Any thread may call it at any time, also while another uses `inference`.
 *
 * Memory:
 * `error` is NULL or valid for writing one pointer.
 */
int32_t kigo_inference_last_error(const kigo_inference *inference, kigo_error **error);

/**
 * Cancels an inference. A call that is running returns KIGO_CANCELLED after the layer that the CPU computes, or the
 * layers that a GPU has at hand, 20 ms on a large one; if other inferences have a part in the step, at its end: at
 * most "n_batch" tokens of a prompt or one new token. So does every later call, until kigo_inference_append() or
 * kigo_inference_rewind() lets it go on.
 *
 * @param inference  The inference.
 * @returns KIGO_OK, also if it was cancelled before, or has ended, which it then stays.
 *   - KIGO_INVALID_HANDLE: the inference is not live.
 *   - KIGO_FORKED: this is a forked child.
 *
 * Any thread may call it at any time, also while another uses `inference`; it does not wait.
 */
int32_t kigo_inference_cancel(kigo_inference *inference);

/**
 * Why the generation ended, as of the last call for text or a token that returned: KIGO_FINISH_RUNNING until one
 * said that there is no more, or failed.
 *
 * @param inference  The inference; not changed.
 * @returns One of the KIGO_FINISH_ numbers, none of which is negative.
 *   - KIGO_INVALID_HANDLE: the inference is not live.
 *   - KIGO_FORKED: this is a forked child.
 *
 * Any thread may call it at any time, also while another uses `inference`.
 */
int32_t kigo_inference_finish_reason(const kigo_inference *inference);

/**
 * A fact about an inference that is an integer, as of the last call for text or a token that returned. Only
 * "processed_tokens" changes while one runs.
 *
 * @param inference  The inference; not changed.
 * @param key        Which fact, as "Facts about an inference" lists them.
 * @param value      Where the fact is written on success.
 * @param error      Where an error is written on failure, or NULL.
 * @returns KIGO_OK.
 *   - KIGO_INVALID_ARGUMENT: `key` is NULL or no integer has it, or `value` is NULL.
 *   - KIGO_INVALID_UTF8: `key` is not UTF-8.
 *   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time, also while another uses `inference`.
 *
 * Memory:
 * `key` is NULL or NUL-terminated; `value` and `error` are NULL or valid for writing.
 */
int32_t kigo_inference_get_i64(const kigo_inference *inference, const char *key, int64_t *value, kigo_error **error);

/**
 * A fact about an inference that is a number, as of the last call for text or a token that returned.
 *
 * @param inference  The inference; not changed.
 * @param key        Which fact, as "Facts about an inference" lists them.
 * @param value      Where the fact is written on success.
 * @param error      Where an error is written on failure, or NULL.
 * @returns KIGO_OK.
 *   - KIGO_INVALID_ARGUMENT: `key` is NULL or no number has it, or `value` is NULL.
 *   - KIGO_INVALID_UTF8: `key` is not UTF-8.
 *   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time, also while another uses `inference`.
 *
 * Memory:
 * `key` is NULL or NUL-terminated; `value` and `error` are NULL or valid for writing.
 */
int32_t kigo_inference_get_f64(const kigo_inference *inference, const char *key, double *value, kigo_error **error);

/**
 * The logits that the last token was drawn from, as the model gave them: before bias, grammar and all other options.
 *
 * The inference must have been started with the option "logprobs" above 0. The last token is the one that the last call
 * of kigo_next_token() returned or, after KIGO_FINISHED, the one that ended the text, which is not part of it. Pieces of
 * kigo_next_text() may have several tokens.
 *
 * @param inference  The inference; not changed.
 * @param logits     Where the logits are written, by token id; may be NULL if `size` is 0.
 * @param size       How many floats `logits` has room for; "n_vocab" of the model is enough.
 * @param error      Where an error is written on failure, or NULL.
 * @returns How many logits were written: "n_vocab", or 0 if no token was drawn yet.
 *   - KIGO_BUFFER_TOO_SMALL: nothing was written, and the message has the size needed.
 *   - KIGO_INVALID_ARGUMENT: `logits` is NULL though `size` is not 0, or the inference keeps none; start one with the
 *     option "logprobs".
 *   - KIGO_BUSY: another thread is inside a call on this inference, which goes on.
 *   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it.
 *
 * Memory:
 * `logits` is NULL or valid for writing `size` floats; `error` is NULL or valid for writing one pointer.
 */
int32_t kigo_inference_logits(const kigo_inference *inference,
                              float *logits,
                              size_t size,
                              kigo_error **error);

/**
 * The last token and the most likely ones in its place, with the logarithms of the probabilities that the model gave
 * them, before bias, grammar and all other options.
 *
 * The first entry is the last token itself, as kigo_inference_logits() explains. The others are as many of the most
 * likely tokens as the option "logprobs" says, the most likely first; the last token may be among them again.
 *
 * @param inference  The inference; not changed.
 * @param tokens     Where the ids are written; may be NULL if `size` is 0.
 * @param logprobs   Where their natural logarithms are written, in the same order; may be NULL if `size` is 0.
 * @param size       How many entries `tokens` and `logprobs` each have room for; one more than "logprobs" is enough.
 * @param error      Where an error is written on failure, or NULL.
 * @returns How many entries were written; 0 if no token was drawn yet.
 *   - KIGO_BUFFER_TOO_SMALL: nothing was written, and the message has the size needed.
 *   - KIGO_INVALID_ARGUMENT: `tokens` or `logprobs` is NULL though `size` is not 0, or the inference keeps no logits;
 *     start one with the option "logprobs".
 *   - KIGO_BUSY: another thread is inside a call on this inference, which goes on.
 *   - KIGO_OUT_OF_MEMORY: there is no room to sort the tokens; nothing was written.
 *   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it.
 *
 * Memory:
 * `tokens` and `logprobs` are NULL or valid for writing `size` numbers each; `error` is NULL or valid for writing one
 * pointer.
 */
int32_t kigo_inference_logprobs(const kigo_inference *inference,
                                int32_t *tokens,
                                double *logprobs,
                                size_t size,
                                kigo_error **error);

/**
 * Frees an inference. The handle is dead at once; a call that is running in another thread is cancelled, and gives
 * the memory back when it returns.
 *
 * @param inference  The inference, or NULL.
 * @returns KIGO_OK, also for NULL.
 *   - KIGO_INVALID_HANDLE: `inference` was freed before or is no inference; nothing happened.
 *   - KIGO_FORKED: this is a forked child; nothing happened.
 *
 * Any thread may call it at any time, also while another uses `inference`; it does not wait.
 */
int32_t kigo_inference_free(kigo_inference *inference);

/**
 * Drops all tokens of an inference but the first ones, and goes on from there.
 *
 * Everything is as it was at that place: the random numbers, the window of the penalties, the grammar, and the text, of
 * which what was returned before does not come again. So without further ado the same tokens come again; for others, use
 * kigo_inference_fork() with another "seed". It makes no difference whether the generation had ended or was cancelled.
 * Prompts can be shortened too: what is left of one is then the prompt.
 *
 * What is dropped is gone at once. Models whose layers see only a window of the text forget what is before it; where they
 * would have to remember more, the first tokens are computed again by the next call for text or a token.
 *
 * @param inference  The inference.
 * @param n_tokens   How many tokens stay, prompt and generated ones of all turns: from 1 to "prompt_tokens" and
 *                   "generated_tokens" together.
 * @param error      Where an error is written on failure, or NULL.
 * @returns KIGO_OK. On failure the inference is as before.
 *   - KIGO_INVALID_ARGUMENT: there are not so many tokens, or `n_tokens` is 0.
 *   - KIGO_BUSY: another thread is inside a call on this inference, which goes on.
 *   - KIGO_OUT_OF_MEMORY: there is no room for a page that has to be copied, since a fork shares it, or for the grammar.
 *   - KIGO_BAD_GRAMMAR: the grammar takes too much at this place of the text.
 *   - KIGO_DEVICE_LOST, KIGO_DEVICE_ERROR: the GPU or its driver failed.
 *   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it, one at a time for an inference. It waits for the step that is being computed for others.
 *
 * Memory:
 * `error` is NULL or valid for writing one pointer.
 */
int32_t kigo_inference_rewind(kigo_inference *inference,
                              size_t n_tokens,
                              kigo_error **error);

/**
 * Makes another inference that goes on from the same place.
 *
 * Both share the memory of what they have in common; a page of it, 32 or 64 tokens, is copied where it is not full. From
 * then on they have nothing to do with each other.
 *
 * Without options the new one does what the other will do, token by token. With options its answer begins here: it draws
 * with their "seed" from the beginning of its random numbers, follows their grammar, ends with their "stop" and counts
 * their "max_tokens", and it goes on though the other has ended. "prompt_format" and the chat template stay as they are.
 * Text that was generated but not returned comes from both.
 *
 * @param inference  The inference; not changed.
 * @param options    Options, or NULL to go on as the other does; not kept.
 * @param fork       Where the new inference is written on success; free it with kigo_inference_free().
 * @param error      Where an error is written on failure, or NULL.
 * @returns KIGO_OK. On failure nothing is left behind.
 *   - KIGO_BUSY: another thread is inside a call on this inference, which goes on.
 *   - KIGO_OUT_OF_MEMORY: there is no room for what has to be copied.
 *   - KIGO_BAD_GRAMMAR: the option "json_schema", "regex" or "lark" is wrong or takes too much; the message says how.
 *   - KIGO_INVALID_ARGUMENT: `fork` is NULL, "logit_bias" has an id that the model does not, or the model's own default
 *     for an option is not allowed.
 *   - KIGO_INVALID_HANDLE: `inference` is not live, or `options` is neither NULL nor live.
 *   - KIGO_DEVICE_LOST, KIGO_DEVICE_ERROR: the GPU or its driver failed.
 *   - KIGO_LIMIT, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it. It waits for the step that is being computed for others.
 *
 * Memory:
 * `fork` and `error` are NULL or valid for writing one pointer.
 */
int32_t kigo_inference_fork(const kigo_inference *inference,
                            const kigo_options *options,
                            kigo_inference **fork,
                            kigo_error **error);

/**
 * Adds a further turn to an inference, which then goes on: "max_tokens" counts anew, and so does the grammar.
 *
 * It makes no difference whether the generation has ended, why, or was cancelled. Text that was generated but not returned
 * is dropped. Nothing is computed yet: the next call for text or a token does that.
 *
 * The prompt is read as the "prompt_format" of the inference says. With "text" it is put behind the last token; an empty one
 * only lets the generation go on. With "user" it is the user's next message, and with "chat" the messages that follow in
 * JSON, as "Chats" describes them, where tools and variables are those of before unless others are given. The whole chat is
 * then put into the template again, with the answer, as it was generated, as the assistant's message before the new ones;
 * if the first new message is the assistant's, it stands for the answer. So a model with a template of its own ways, such as
 * leaving out what it thought, gets what it would get from a new inference with the whole chat; only tokens that are the
 * same as before are not computed again.
 *
 * @param inference   The inference.
 * @param prompt      The prompt in UTF-8; it is copied. May be NULL if `prompt_len` is 0. Nothing in it is taken for a
 *                    control token.
 * @param prompt_len  Bytes in `prompt`, NULs included, or KIGO_NUL_TERMINATED if a NUL ends it.
 * @param error       Where an error is written on failure, or NULL.
 * @returns KIGO_OK. On failure the inference is as before.
 *   - KIGO_PROMPT_TOO_LONG: all that was said and the prompt do not fit into the context.
 *   - KIGO_INVALID_ARGUMENT: `prompt` is NULL, or not what "prompt_format" says; or the prompt is a chat and the inference
 *     is none any more, since it was started with tokens or rewound into a prompt.
 *   - KIGO_BAD_TEMPLATE: the chat template failed.
 *   - KIGO_INVALID_UTF8: `prompt` is not UTF-8; the message names the first wrong byte.
 *   - KIGO_BUSY: another thread is inside a call on this inference, which goes on.
 *   - KIGO_OUT_OF_MEMORY, KIGO_BAD_GRAMMAR, KIGO_DEVICE_LOST, KIGO_DEVICE_ERROR: as for kigo_inference_rewind().
 *   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it, one at a time for an inference. It waits for the step that is being computed for others.
 *
 * Memory:
 * `prompt` is NULL or readable for `prompt_len` bytes, or NUL-terminated; `error` is NULL or valid for writing one pointer.
 */
int32_t kigo_inference_append(kigo_inference *inference,
                              const char *prompt,
                              size_t prompt_len,
                              kigo_error **error);

/**
 * Adds a further turn of token ids, which may be control tokens, behind the last token, otherwise as
 * kigo_inference_append(). The inference is no chat any more.
 *
 * @param inference  The inference.
 * @param tokens     The ids, each from 0 to n_vocab - 1; they are copied. May be NULL if `n_tokens` is 0.
 * @param n_tokens   How many there are.
 * @param error      Where an error is written on failure, or NULL.
 * @returns KIGO_OK. On failure the inference is as before.
 *   - KIGO_INVALID_ARGUMENT: a token id is outside the vocabulary, or `tokens` is NULL.
 *   - KIGO_PROMPT_TOO_LONG, KIGO_BUSY, KIGO_OUT_OF_MEMORY, KIGO_BAD_GRAMMAR, KIGO_DEVICE_LOST, KIGO_DEVICE_ERROR,
 *     KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: as for kigo_inference_append().
 *
 * Any thread may call it, one at a time for an inference. It waits for the step that is being computed for others.
 *
 * Memory:
 * `tokens` is NULL or readable for `n_tokens` ids; `error` is NULL or valid for writing one pointer.
 */
int32_t kigo_inference_append_tokens(kigo_inference *inference,
                                     const int32_t *tokens,
                                     size_t n_tokens,
                                     kigo_error **error);

/**
 * Saves an inference to a file, from which kigo_inference_load() goes on, in this process or another.
 *
 * The file has the tokens, the chat, and what the model computed of them, which is about "cache_bytes" of the model where
 * there is no other inference. It is for the same model on the same kind of device only, and no secret: whoever can read
 * it can read the text. It is written beside its place and put there when it is complete, so that a file that was there
 * before stays if something fails.
 *
 * @param inference  The inference; not changed.
 * @param file       Its path, in the bytes of the system.
 * @param error      Where an error is written on failure, or NULL.
 * @returns KIGO_OK.
 *   - KIGO_IO: the file cannot be written; the message has the system's reason.
 *   - KIGO_INVALID_ARGUMENT: `file` is NULL.
 *   - KIGO_BUSY: another thread is inside a call on this inference, which goes on.
 *   - KIGO_OUT_OF_MEMORY, KIGO_DEVICE_LOST, KIGO_DEVICE_ERROR: the cache cannot be brought to the host.
 *   - KIGO_INVALID_HANDLE, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it. Meanwhile other inferences go on, and this one is busy.
 *
 * Memory:
 * `file` is NULL or NUL-terminated; `error` is NULL or valid for writing one pointer.
 */
int32_t kigo_inference_save(const kigo_inference *inference,
                            const char *file,
                            kigo_error **error);

/**
 * Makes an inference that goes on from a file of kigo_inference_save().
 *
 * With the options that the other was started with it goes on as if it had never been interrupted. With others it obeys
 * them from here on. One that was cancelled, or ended with "max_tokens", goes on if it may. A file that is damaged is found
 * out, and one of another model, of another kind of device, or of a version of kigo that keeps its cache otherwise, is
 * refused. What its checksum cannot find out is a file that somebody made with intent: load only what you would let others
 * put into a prompt.
 *
 * @param model      The model; it may be freed while the inference lives.
 * @param file       Its path, in the bytes of the system.
 * @param options    Options, or NULL for the defaults; not kept.
 * @param inference  Where the inference is written on success; free it with kigo_inference_free().
 * @param error      Where an error is written on failure, or NULL.
 * @returns KIGO_OK. On failure nothing is left behind.
 *   - KIGO_BAD_STATE: the file is no state, is damaged, or does not fit the model or its device; the message says why.
 *   - KIGO_IO: the file cannot be read; the message has the system's reason.
 *   - KIGO_PROMPT_TOO_LONG: the tokens do not fit into the context of the model.
 *   - KIGO_OUT_OF_MEMORY: there is no room for the cache.
 *   - KIGO_INVALID_ARGUMENT: `file` or `inference` is NULL, or an option does not fit the model.
 *   - KIGO_BAD_GRAMMAR: the grammar of the options is wrong, or the answer so far does not follow it.
 *   - KIGO_INVALID_HANDLE: `model` is not live, or `options` is neither NULL nor live.
 *   - KIGO_DEVICE_LOST, KIGO_DEVICE_ERROR: the GPU or its driver failed.
 *   - KIGO_LIMIT, KIGO_FORKED, KIGO_INTERNAL: see "Statuses".
 *
 * Any thread may call it at any time.
 *
 * Memory:
 * `file` is NULL or NUL-terminated; `inference` and `error` are NULL or valid for writing one pointer.
 */
int32_t kigo_inference_load(const kigo_model *model,
                            const char *file,
                            const kigo_options *options,
                            kigo_inference **inference,
                            kigo_error **error);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* KIGO_H */
