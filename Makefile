# Everything that this project can do, one word each. Every target sets up .venv by itself (Python 3.11 or newer).
#   make book         the book, warnings as errors, into _build/html     (SOLUTIONS=0 leaves the solutions out)
#   make test         all tests; those in a browser need a built book and Debian's chromium, and say so if they skip
#   make lint         ruff
#   make bench        the benchmarks: ratios measured in one run, written to book/results
#   make results      the evaluations on a few images, into _build/results; make results-full: the tables of book/results
#   make wheel        the library as a wheel, into dist
#   make compat       the unit tests with the lowest versions that are admitted, and with the newest; ONLY=newest for one
#   make sheet        the class sheet as one A4 page, book/assets/sheet.pdf: after a change of book/teach/sheet.md
#   make zip          book-offline.zip: the built book, to read without network or Python
#   make set-repository URL=https://github.com/OWNER/REPO     once, by the owner: turns the links and buttons on
#   make clean        remove what was built (not .venv)
PYTHON ?= python3
SOLUTIONS ?= 1
PY := .venv/bin/python
ENV := .venv/.ready
# What a notebook's output depends on besides its own cells: the cache must be dropped when any of it changes.
BEHIND := $(shell find gmar_utils book/results -type f -not -path '*/__pycache__/*' 2>/dev/null)

.PHONY: book test lint bench results results-full wheel compat sheet zip set-repository clean

book: $(ENV) _build/.inputs
	SOLUTIONS=$(SOLUTIONS) .venv/bin/jupyter-book build . -W --keep-going
	@test -f _build/html/index.html && echo "The book is in _build/html/index.html"

test: $(ENV)
	$(PY) -m pytest

lint: $(ENV)
	$(PY) -m ruff check .

bench: $(ENV)
	$(PY) -m pip install --quiet --disable-pip-version-check captum==0.9.0 quantus==0.6.0
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps \
		grad-cam==1.5.5 ttach==0.0.3 opencv-python-headless==5.0.0.93  # its torchvision has no build for this torch
	for file in tests/benchmarks/bench_*.py; do $(PY) $$file || exit 1; done

results: $(ENV)
	$(PY) -m gmar_utils.teaching.results.make --small

results-full: $(ENV)
	$(PY) -m gmar_utils.teaching.results.make

wheel: $(ENV)
	rm -rf build dist
	$(PY) -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .
	@ls dist

compat:
	PYTHON=$(PYTHON) tests/compat/run $(ONLY)

sheet: book
	$(PY) _ext/sheet.py

zip: book
	rm -f _build/book-offline.zip
	cd _build && ../$(PY) -m zipfile -c book-offline.zip html
	@echo "_build/book-offline.zip: unzip it and open html/index.html"

set-repository: $(ENV)
	$(PY) _ext/repository.py "$(URL)"

clean:
	rm -rf _build dist build *.egg-info

$(ENV): requirements.txt pyproject.toml
	@$(PYTHON) -c "import sys; v = sys.version_info; v >= (3, 11) or sys.exit('Python 3.11 or newer is needed, $(PYTHON) is %d.%d. Try: make PYTHON=python3.12' % v[:2])"
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

_build/.inputs: $(BEHIND)
	rm -rf _build/.jupyter_cache
	@mkdir -p _build && touch $@
