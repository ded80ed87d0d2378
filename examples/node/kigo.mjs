// What the examples use of kigo, as Node has it. The library is found by its name, or where KIGO_LIBRARY says.
import koffi from "koffi";
import { promisify } from "node:util";

const library = koffi.load(process.env.KIGO_LIBRARY ?? "libkigo.so.0");
for (const type of ["kigo_error", "kigo_options", "kigo_model", "kigo_inference"]) koffi.opaque(type);
const f = Object.fromEntries(
  [
    "int32_t kigo_abi_check(uint32_t abi, const char *version, _Out_ kigo_error **error)",
    "int32_t kigo_options_new(_Out_ kigo_options **options, _Out_ kigo_error **error)",
    "int32_t kigo_options_set_str(kigo_options *options, const char *key, const char *value, _Out_ kigo_error **error)",
    "int32_t kigo_options_set_i64(kigo_options *options, const char *key, int64_t value, _Out_ kigo_error **error)",
    "int32_t kigo_options_set_f64(kigo_options *options, const char *key, double value, _Out_ kigo_error **error)",
    "int32_t kigo_options_free(kigo_options *options)",
    "int32_t kigo_model_load(const char *path, kigo_options *options, _Out_ kigo_model **model, _Out_ kigo_error **error)",
    "int32_t kigo_model_free(kigo_model *model)",
    "int32_t kigo_inference_start(kigo_model *model, const uint8_t *prompt, size_t prompt_len, kigo_options *options, _Out_ kigo_inference **inference, _Out_ kigo_error **error)",
    "int32_t kigo_next_text(kigo_inference *inference, uint8_t *text, size_t size, _Out_ kigo_error **error)",
    "int32_t kigo_inference_get_i64(kigo_inference *inference, const char *key, _Out_ int64_t *value, _Out_ kigo_error **error)",
    "int32_t kigo_inference_free(kigo_inference *inference)",
    "const char *kigo_error_message(kigo_error *error)",
    "int32_t kigo_error_free(kigo_error *error)",
  ].map((prototype) => [prototype.match(/kigo_\w+(?=\()/)[0], library.func(prototype)]),
);
const BUFFER_TOO_SMALL = -4;

/** A failure of the library, with its status. */
export class KigoError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Gives what a call returned, or throws the error that it wrote. */
function checked(status, [error]) {
  if (status >= 0) return status;
  const message = f.kigo_error_message(error);
  f.kigo_error_free(error);
  throw new KigoError(status, message);
}

const call = (name, ...args) => ((error) => checked(f[name](...args, error), error))([null]);

/** Makes the call on a thread of koffi's pool, so that the event loop goes on. */
async function callAsync(name, ...args) {
  const error = [null];
  return checked(await promisify(f[name].async)(...args, error), error);
}

/** Runs `body` with options that live as long. */
async function withOptions(values, body) {
  const options = [null];
  call("kigo_options_new", options);
  try {
    for (const [key, value] of Object.entries(values)) {
      const kind = typeof value === "string" ? "str" : Number.isInteger(value) ? "i64" : "f64";
      call(`kigo_options_set_${kind}`, options[0], key, value);
    }
    return await body(options[0]);
  } finally {
    f.kigo_options_free(options[0]);
  }
}

/** A loaded model; free it with close(). */
export class Model {
  static async load(path, options = {}) {
    call("kigo_abi_check", 0, "0.1.0"); // what this file was written for
    const model = [null];
    await withOptions(options, (handle) => callAsync("kigo_model_load", path, handle, model));
    return Object.assign(new Model(), { handle: model[0] });
  }

  close() {
    f.kigo_model_free(this.handle);
    this.handle = null;
  }

  /** Yields the text that the model writes, piece by piece; leaving the loop early cancels the rest. */
  async *generate(prompt, options = {}) {
    const [inference, text] = [[null], Buffer.from(prompt)];
    await withOptions(options, (handle) => call("kigo_inference_start", this.handle, text, text.length, handle, inference));
    try {
      for (let buffer = Buffer.alloc(256), n; n !== 0; ) {
        try {
          n = await callAsync("kigo_next_text", inference[0], buffer, buffer.length);
          if (n > 0) yield buffer.toString("utf8", 0, n);
        } catch (error) {
          if (error.status !== BUFFER_TOO_SMALL) throw error;
          const size = [0];
          call("kigo_inference_get_i64", inference[0], "text_size", size);
          buffer = Buffer.alloc(Number(size[0]));
        }
      }
    } finally {
      f.kigo_inference_free(inference[0]);
    }
  }
}
