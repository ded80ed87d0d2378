# kigo's commands; `make help` lists them. Cargo builds the library into target/, everything else goes into build/.

CARGO ?= cargo
CC ?= cc
PYTHON ?= python3
CFLAGS ?= -O2
PREFIX ?= /usr/local
LIBDIR ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
# The model that `haiku`, `inspect` and `bench` read; without it the one of `fetch`.
MODEL ?=
# What `haiku`, `inspect` and `bench` get besides.
ARGS ?=
# 0 leaves out the CUDA backend; nothing of the CUDA toolkit is needed then.
CUDA ?= 1

CARGO_OUT := $(or $(CARGO_TARGET_DIR),target)
ARCHIVE := $(CARGO_OUT)/release/libkigo.a
SHARED := build/lib/libkigo.so.0
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
FEATURES := $(if $(filter 0,$(CUDA)),--no-default-features --features worker-abi --features regex)
# Messages in the library name source files; these make the names the same on every machine.
REMAP := --remap-path-prefix=$(CURDIR)=kigo --remap-path-prefix=$(or $(CARGO_HOME),$(HOME)/.cargo)=cargo
SYSTEM_LIBS := -lpthread -ldl -lm -lgcc_s -lc
HEADERS := $(wildcard include/*.h include/*.hpp)
# Draws the plots; this version runs on every Python that is supported.
MATPLOTLIB := matplotlib==3.9.4
# Fills in a template of packaging/.
FILL = sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@LIBDIR@|$(LIBDIR)|' -e 's|@INCLUDEDIR@|$(INCLUDEDIR)|' -e 's|@VERSION@|$(VERSION)|' \
    -e 's|@SONAME@|$(notdir $(SHARED))|' -e 's|@SYSTEM_LIBS@|$(SYSTEM_LIBS)|' \
    -e "s|@SYSTEM_LIBS_LIST@|$$(echo $(SYSTEM_LIBS) | tr ' ' ';')|" \
    -e "s|@TO_INCLUDE@|$$(realpath -m --relative-to='$(LIBDIR)/cmake/kigo' '$(INCLUDEDIR)')|"

# $(call need,program,what to do): stops with one clear line where a program is missing.
need = @command -v $(firstword $(1)) >/dev/null || { echo "kigo: $(firstword $(1)) is missing: $(2)" >&2; exit 1; }

.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: all haiku inspect test gpu-test gpu-bundle need-gpu check fmt-check clippy docs abi kernels benchmark-check bench fetch header abi-snapshot install uninstall deb reference benchmark-docs clean help need-cargo need-build need-cc need-python FORCE

all: $(SHARED) ## build the library: build/lib/libkigo.so.0 and libkigo.a
	@echo "built $(SHARED) and $(ARCHIVE)"

haiku: build/haiku need-python ## write a haiku that contains the current minute (MODEL=path takes another model)
	@set -e; model='$(MODEL)'; [ -n "$$model" ] || model=$$($(PYTHON) tools/fetch.py smollm2); \
	exec build/haiku "$$model" $(ARGS)

inspect: need-build need-python ## show sizes, tensor types, tokenizer and memory of MODEL=path without loading it
	@set -e; model='$(MODEL)'; [ -n "$$model" ] || model=$$($(PYTHON) tools/fetch.py smollm2); \
	$(CARGO) run --quiet --release $(FEATURES) -p kigo-inspect -- "$$model" $(ARGS)

test: need-build need-cc fetch ## run all tests; downloads about 500 MB the first time
	$(CARGO) test --workspace $(FEATURES)

gpu-test: need-gpu gpu-bundle need-python ## run the GPU tests, sanitizers, haiku and benchmarks on the GPU of this machine
	@set -e; model='$(MODEL)'; [ -n "$$model" ] || model=$$($(PYTHON) tools/fetch.py smollm2); \
	exec build/gpu-bundle/run.sh all "$$model" $(ARGS)

gpu-bundle: $(SHARED) need-build need-cc ## build/gpu-bundle: the same for a GPU machine without Rust and compiler
	@CARGO='$(CARGO)' CC='$(CC)' RUSTFLAGS='$(RUSTFLAGS) $(REMAP)' tools/gpu-bundle.sh $(SHARED) build/gpu-bundle

need-gpu:
	@tests/gpu/run.sh check

check: fmt-check clippy docs abi kernels benchmark-check ## check format, lints, docs, header, exported symbols, kernels and benchmark tables

fmt-check: need-cargo
	$(CARGO) fmt --all --check

clippy: need-build
	$(CARGO) clippy --workspace $(FEATURES) --all-targets -- -D warnings

docs: need-build
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace $(FEATURES) --no-deps

abi: need-build need-cc
	$(CARGO) test $(FEATURES) --test c_api -- header exports

kernels: need-build need-python
ifneq ($(CUDA),0)
	@$(PYTHON) tools/check_kernels.py
endif

benchmark-check: need-python
	@$(PYTHON) tools/make_benchmarks.py --check

bench: $(SHARED) need-python ## compare speed on the CPU with llama.cpp, which it builds the first time (minutes)
	$(PYTHON) tools/bench_cpu.py --library $(SHARED) $(if $(MODEL),--model '$(MODEL)') $(ARGS)

fetch: need-python ## download the model, vocabularies and chat templates of the tests into the cache folder, once
	@$(PYTHON) tools/fetch.py smollm2 vocabs templates gemma3

header: need-build ## write the headers and the list of exports anew from src/c_api
	KIGO_BLESS=1 $(CARGO) test $(FEATURES) --test c_api -- header_is_current worker_headers_are_current
	KIGO_BLESS=1 $(CARGO) test $(FEATURES) --test c_api exports_are_current

abi-snapshot: need-build need-cc ## keep what this version declares, and a program built with it, for the tests of later ones
	KIGO_ABI_SNAPSHOT=1 $(CARGO) test $(FEATURES) --test c_api earlier_versions

install: $(SHARED) ## install libraries, headers, pkg-config and CMake files below DESTDIR and PREFIX
	install -d "$(DESTDIR)$(LIBDIR)/pkgconfig" "$(DESTDIR)$(LIBDIR)/cmake/kigo" "$(DESTDIR)$(INCLUDEDIR)"
	install -m 644 $(HEADERS) "$(DESTDIR)$(INCLUDEDIR)"
	install -m 644 $(ARCHIVE) "$(DESTDIR)$(LIBDIR)/libkigo.a"
	install -m 755 $(SHARED) "$(DESTDIR)$(LIBDIR)/libkigo.so.$(VERSION)"
	ln -sf libkigo.so.$(VERSION) "$(DESTDIR)$(LIBDIR)/$(notdir $(SHARED))"
	ln -sf $(notdir $(SHARED)) "$(DESTDIR)$(LIBDIR)/libkigo.so"
	$(FILL) packaging/kigo.pc.in > "$(DESTDIR)$(LIBDIR)/pkgconfig/kigo.pc"
	$(FILL) packaging/cmake/kigo-config.cmake.in > "$(DESTDIR)$(LIBDIR)/cmake/kigo/kigo-config.cmake"
	$(FILL) packaging/cmake/kigo-config-version.cmake.in > "$(DESTDIR)$(LIBDIR)/cmake/kigo/kigo-config-version.cmake"

uninstall: ## remove what install wrote
	rm -f $(foreach name,$(notdir $(HEADERS)),"$(DESTDIR)$(INCLUDEDIR)/$(name)")
	rm -f "$(DESTDIR)$(LIBDIR)/libkigo.so" "$(DESTDIR)$(LIBDIR)/$(notdir $(SHARED))" "$(DESTDIR)$(LIBDIR)/libkigo.so.$(VERSION)" \
	    "$(DESTDIR)$(LIBDIR)/libkigo.a" "$(DESTDIR)$(LIBDIR)/pkgconfig/kigo.pc"
	rm -rf "$(DESTDIR)$(LIBDIR)/cmake/kigo"

deb: $(SHARED) ## build/deb: the Debian packages libkigo0 and libkigo-dev
	$(call need,dpkg-deb,install it (on Debian: apt install dpkg) or use make install)
	$(call need,dpkg-shlibdeps,install it (on Debian: apt install dpkg-dev) or use make install)
	@MAKE='$(MAKE)' tools/make-deb.sh $(VERSION) build/deb

reference: build/reference.html ## build/reference.html: the manual of the C functions, made from the headers

build/reference.html: tools/make_reference.py $(wildcard include/*.h) | need-python
	@mkdir -p build
	$(PYTHON) tools/make_reference.py -o $@ include/kigo.h include/worker_ffi.h include/worker_errors.h include/worker_types.h
	@echo "wrote $@"

benchmark-docs: build/plots-venv/$(MATPLOTLIB) ## write the tables and plots of docs/benchmarks.md from its data (installs matplotlib once)
	@build/plots-venv/bin/python tools/make_benchmarks.py

build/plots-venv/$(MATPLOTLIB): | need-python
	$(PYTHON) -m venv build/plots-venv
	build/plots-venv/bin/pip install --quiet $(MATPLOTLIB)
	@touch $@

clean: ## remove target/ and build/; the cache folder stays
	rm -rf build
	$(CARGO) clean

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

# Cargo itself knows what has to be built; where nothing has, the archive keeps its time and nothing below runs.
$(ARCHIVE): FORCE | need-build
	@RUSTFLAGS='$(RUSTFLAGS) $(REMAP)' $(CARGO) rustc --release $(FEATURES) --lib --crate-type staticlib

$(SHARED): $(ARCHIVE) kigo.map tools/link-shared.sh | need-cc
	@CC='$(CC)' tools/link-shared.sh $(ARCHIVE) $(dir $@)

build/haiku: examples/haiku.c include/kigo.h $(SHARED) | need-cc
	@mkdir -p build
	$(CC) $(CFLAGS) -Wall -Wextra -Iinclude -o $@ examples/haiku.c -Lbuild/lib -lkigo -Wl,-rpath,'$$ORIGIN/lib'

need-cargo:
	$(call need,$(CARGO),install Rust $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml) or later (see rustup.rs))

# What every build needs. nvcc preprocesses with a C++ compiler; NVCC_CCBIN is nvcc's own variable.
ifneq ($(CUDA),0)
need-build: need-cargo need-python
	$(call need,$(or $(NVCC_CCBIN),g++),install a C++ compiler (on Debian: apt install g++) or name yours with NVCC_CCBIN or build for the CPU only with CUDA=0)
	@$(PYTHON) tools/fetch_nvcc.py
else
need-build: need-cargo
endif

need-cc:
	$(call need,$(CC),install a C compiler (on Debian: apt install gcc libc6-dev) or name yours with CC=)

need-python:
	$(call need,$(PYTHON),install Python 3.9 or later (on Debian: apt install python3 python3-pip) or name yours with PYTHON=)

FORCE:
