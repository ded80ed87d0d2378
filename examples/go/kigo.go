// What the examples use of kigo, as Go has it: go run kigo.go haiku.go model.gguf [device]
package main

/*
#cgo pkg-config: kigo
#include <kigo.h>
#include <stdlib.h>
static int32_t check(kigo_error **error) { return kigo_abi_check(KIGO_ABI_VERSION, KIGO_VERSION_STRING, error); }
*/
import "C"

import "errors"
import "unsafe"

// failure takes the error that a call made, if it made one.
func failure(e *C.kigo_error) error {
	if e == nil {
		return nil
	}
	defer C.kigo_error_free(e)
	return errors.New(C.GoString(C.kigo_error_message(e)))
}

// Options are values by key: string, int and float64.
type Options map[string]any

// handle makes the object that a call reads; the caller frees it.
func (o Options) handle() (options *C.kigo_options, err error) {
	var e *C.kigo_error
	if C.check(&e) == 0 {
		C.kigo_options_new(&options, &e)
	}
	for key, value := range o {
		if e != nil {
			break
		}
		name := C.CString(key)
		switch value := value.(type) {
		case string:
			text := C.CString(value)
			C.kigo_options_set_str(options, name, text, &e)
			C.free(unsafe.Pointer(text))
		case int:
			C.kigo_options_set_i64(options, name, C.int64_t(value), &e)
		case float64:
			C.kigo_options_set_f64(options, name, C.double(value), &e)
		}
		C.free(unsafe.Pointer(name))
	}
	return options, failure(e)
}

// Model is a loaded model, for any number of goroutines.
type Model struct{ handle *C.kigo_model }

// Load reads a model from a GGUF file.
func Load(path string, o Options) (*Model, error) {
	options, err := o.handle()
	defer C.kigo_options_free(options)
	if err != nil {
		return nil, err
	}
	var e *C.kigo_error
	model, file := &Model{}, C.CString(path)
	C.kigo_model_load(file, options, &model.handle, &e)
	C.free(unsafe.Pointer(file))
	return model, failure(e)
}

// Close frees the model.
func (m *Model) Close() { C.kigo_model_free(m.handle) }

// Generate hands the text that the model writes to yield, piece by piece, until that says false.
func (m *Model) Generate(prompt string, o Options, yield func(piece string) bool) error {
	options, err := o.handle()
	defer C.kigo_options_free(options)
	if err != nil {
		return err
	}
	var inference *C.kigo_inference
	var e *C.kigo_error
	text, key := C.CString(prompt), C.CString("text_size")
	n := C.kigo_inference_start(m.handle, text, C.size_t(len(prompt)), options, &inference, &e)
	C.free(unsafe.Pointer(text))
	defer C.free(unsafe.Pointer(key))
	defer func() { C.kigo_inference_free(inference) }()
	buffer := make([]byte, 256)
	for n >= 0 {
		n = C.kigo_next_text(inference, (*C.char)(unsafe.Pointer(&buffer[0])), C.size_t(len(buffer)), &e)
		if n == C.KIGO_BUFFER_TOO_SMALL {
			var size C.int64_t
			C.kigo_error_free(e)
			e, n = nil, C.kigo_inference_get_i64(inference, key, &size, nil)
			buffer = make([]byte, size)
		} else if n == 0 || n > 0 && !yield(string(buffer[:n])) {
			return nil
		}
	}
	return failure(e)
}
