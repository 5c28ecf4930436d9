# `make demo` shows what mmfuse does, `make test` checks it; both make what they need first.

PYTHON ?= python3
# pip compiles file after file, Python by all cores
INSTALL = .venv/bin/python -m pip install --disable-pip-version-check --no-compile -e
COMPILE = @.venv/bin/python -m compileall -q -j 0 .venv/lib >/dev/null || true
OPEN3D_LIBRARIES = libusb-1.0.so.0 libGL.so.1 libEGL.so.1 libX11.so.6
OPEN3D_PACKAGES = libusb-1.0-0 libgl1 libegl1 libx11-6

define HELP
make demo     make .venv, install, run the main job on an embedded paired set (needs no root)
make test     the same with the test tools, then format, lint, type and unit tests
make long     the same tools, then the tests that make test leaves out: every fusion exported, the largest sizes, two processes stopped in mid-epoch
make faults   the same tools, then try what takes minutes: kills at any instant, 100,000 images, 200 MB of JSON
make bench    the same tools, then measure what docs/performance.md shows and rewrite its tables: wants a quiet machine
make docs     the same tools, then the pages as a site in site/, with every link checked (needs no network after the install)
make system   what tests need of the system: Open3D's libraries, and Chromium for pages (apt-get when root; without
              root it says what to install, and tests of pages are skipped where there is no Chromium)
make clean    remove .venv and what the tools left; runs stay

Needs Python 3.11 or newer, or name one: make demo PYTHON=python3.12
The first install takes minutes: on Linux the package index has PyTorch with CUDA, about 3 GB to download and
6.5 GB on disk.
endef

define CHECK_PYTHON
import sys
have = "%d.%d" % sys.version_info[:2]
if sys.version_info < (3, 11):
    sys.exit("$(PYTHON) is Python " + have + ", mmfuse needs 3.11 or newer; name one: make PYTHON=python3.12 demo")
try:
    import ensurepip, venv
except ImportError:
    sys.exit("$(PYTHON) has no venv module; install it, on Debian and Ubuntu: sudo apt-get install python" + have + "-venv")
endef

define CHECK_LIBRARIES
import ctypes, sys
for name in "$(OPEN3D_LIBRARIES)".split() if sys.platform == "linux" else []:
    try:
        ctypes.CDLL(name)
    except OSError:
        sys.exit("Open3D needs " + name + "; install: sudo apt-get install $(OPEN3D_PACKAGES)")
endef

export HELP CHECK_PYTHON CHECK_LIBRARIES

.DEFAULT_GOAL := help
.PHONY: help demo test long faults bench docs system clean
.NOTPARALLEL:

help:
	@echo "$$HELP"

demo: .venv/.installed
	.venv/bin/mmfuse demo

test: system .venv/.installed-dev
	.venv/bin/python -m ruff format --check
	.venv/bin/python -m ruff check
	.venv/bin/python -m mypy
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist worksteal -m "not gpu and not network and not faults and not long"

long: system .venv/.installed-dev
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist worksteal -m "long and not gpu and not network"

faults: system .venv/.installed-dev
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest tests/faults -s

bench: .venv/.installed-dev
	for name in forward training losses postprocess growth epoch; do \
	    .venv/bin/python -m benchmarks $$name || exit 1; \
	done
	.venv/bin/python -m benchmarks tables

docs: .venv/.installed-dev
	NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict

system: .venv/.made
	@if ! .venv/bin/python -c "$$CHECK_LIBRARIES" 2>/dev/null \
	    && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing $(OPEN3D_PACKAGES)"; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
	        $(OPEN3D_PACKAGES) >/dev/null; \
	fi
	@.venv/bin/python -c "$$CHECK_LIBRARIES"
	@if ! { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null \
	    && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing chromium"; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
	        chromium >/dev/null || echo "chromium can't be installed: tests of pages in a browser are skipped" >&2; \
	fi

.venv/.made:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found; name a Python: make PYTHON=python3.12 demo" >&2; exit 1; }
	@$(PYTHON) -c "$$CHECK_PYTHON"
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.installed: pyproject.toml .venv/.made
	@echo "installing; the first time takes minutes (see make help), the last step of it without a progress bar"
	$(INSTALL) .
	$(COMPILE)
	@touch $@

.venv/.installed-dev: pyproject.toml .venv/.made
	@echo "installing; the first time takes minutes (see make help), the last step of it without a progress bar"
	$(INSTALL) ".[dev]"
	$(COMPILE)
	@touch .venv/.installed $@

clean:
	rm -rf .venv build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find mmfuse tests -name __pycache__ -type d -prune -exec rm -rf {} +
