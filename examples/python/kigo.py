"""What the examples use of kigo, as Python has it. The library is found by its name, or where KIGO_LIBRARY says."""

import contextlib
import ctypes
import os
from ctypes import POINTER, byref, c_char_p, c_double, c_int32, c_int64, c_size_t, c_uint32, c_void_p

_lib = ctypes.CDLL(os.environ.get("KIGO_LIBRARY", "libkigo.so.0"))
_OUT, _BUFFER_TOO_SMALL = POINTER(c_void_p), -4

# What the functions take; all return a status, and those that end with _OUT tell why they failed.
for _name, *_types in [
    ("kigo_abi_check", c_uint32, c_char_p, _OUT),
    ("kigo_options_new", _OUT, _OUT),
    ("kigo_options_set_str", c_void_p, c_char_p, c_char_p, _OUT),
    ("kigo_options_set_i64", c_void_p, c_char_p, c_int64, _OUT),
    ("kigo_options_set_f64", c_void_p, c_char_p, c_double, _OUT),
    ("kigo_options_free", c_void_p),
    ("kigo_model_load", c_char_p, c_void_p, _OUT, _OUT),
    ("kigo_model_free", c_void_p),
    ("kigo_inference_start", c_void_p, c_char_p, c_size_t, c_void_p, _OUT, _OUT),
    ("kigo_next_text", c_void_p, c_char_p, c_size_t, _OUT),
    ("kigo_inference_get_i64", c_void_p, c_char_p, POINTER(c_int64), _OUT),
    ("kigo_inference_free", c_void_p),
    ("kigo_error_free", c_void_p),
]:
    getattr(_lib, _name).argtypes, getattr(_lib, _name).restype = _types, c_int32
_lib.kigo_error_message.argtypes, _lib.kigo_error_message.restype = [c_void_p], c_char_p


class Error(Exception):
    """A failure of the library, with its status."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


def _call(function, *arguments):
    """Calls a function whose last argument is the place for an error; raises what it tells."""
    error = c_void_p()
    result = function(*arguments, byref(error))
    if result < 0:
        message = _lib.kigo_error_message(error).decode()
        _lib.kigo_error_free(error)
        raise Error(result, message)
    return result


@contextlib.contextmanager
def _options(values):
    """An options object for the time of a call."""
    handle = c_void_p()
    _call(_lib.kigo_options_new, byref(handle))
    setters = {str: _lib.kigo_options_set_str, int: _lib.kigo_options_set_i64, float: _lib.kigo_options_set_f64}
    try:
        for key, value in values.items():
            _call(setters[type(value)], handle, key.encode(), value.encode() if isinstance(value, str) else value)
        yield handle
    finally:
        _lib.kigo_options_free(handle)


class Model:
    """A loaded model, for any number of threads; a context manager that frees it."""

    def __init__(self, path, **options):
        _call(_lib.kigo_abi_check, 0, b"0.1.0")  # what this file was written for
        self._handle = c_void_p()
        with _options(options) as handle:
            _call(_lib.kigo_model_load, os.fsencode(path), handle, byref(self._handle))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        _lib.kigo_model_free(self._handle)
        self._handle = c_void_p()

    def generate(self, prompt, **options):
        """Yields the text that the model writes, piece by piece. Other threads run while one is computed."""
        inference, text = c_void_p(), prompt.encode()
        with _options(options) as handle:
            _call(_lib.kigo_inference_start, self._handle, text, len(text), handle, byref(inference))
        try:
            size, buffer = c_int64(256), ctypes.create_string_buffer(256)
            while True:
                try:
                    n = _call(_lib.kigo_next_text, inference, buffer, size.value)
                except Error as error:
                    if error.status != _BUFFER_TOO_SMALL:
                        raise
                    _call(_lib.kigo_inference_get_i64, inference, b"text_size", byref(size))
                    buffer = ctypes.create_string_buffer(size.value)
                    continue
                if n == 0:
                    return
                yield buffer.raw[:n].decode()
        finally:
            _lib.kigo_inference_free(inference)
