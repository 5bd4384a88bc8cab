# Two commands for a newcomer: `make demo`, `make test`. The rest is for contributors.
PYTHON ?= python3
LEAN   := .venv
FULL   := .venv-test
SOURCES := $(shell git ls-files src optimize runtime safety provenance pyproject.toml constraints.txt 2>/dev/null)
PIP_QUIET := --quiet --disable-pip-version-check

.PHONY: demo test soak check types readme bundle clean

demo: $(LEAN)/.installed
	$(LEAN)/bin/platemark generate "a red apple" --seed 1 -o apple.png
	$(LEAN)/bin/platemark verify apple.png

test: $(FULL)/.installed check
	$(FULL)/bin/python -m pytest

# What the tests do in small, for hours: kill -9 of registry writers, and mutated files through the verifier.
soak: $(FULL)/.installed
	$(FULL)/bin/python -m benchmarks.registry_soak --kills 10000
	$(FULL)/bin/python -m tools.postgres run -- $(FULL)/bin/python -m benchmarks.registry_soak --kills 10000
	$(FULL)/bin/python -m tools.soak_verify

check: $(FULL)/.installed types
	$(FULL)/bin/ruff check .
	$(FULL)/bin/ruff format --check .
	MYPYPATH=build/site $(FULL)/bin/mypy -p platemark
	$(FULL)/bin/python tools/readme.py --check

# The four stage folders as one package tree, for type checkers, which do not know package-dir mappings.
types:
	rm -rf build/site && mkdir -p build/site/platemark
	ln -s $(CURDIR)/src/platemark/* build/site/platemark/
	for stage in optimize runtime safety provenance; do ln -s $(CURDIR)/$$stage build/site/platemark/$$stage; done

readme: $(FULL)/.installed
	$(FULL)/bin/python tools/readme.py

bundle: $(FULL)/.installed
	$(FULL)/bin/platemark build src/platemark/models/emoji -o src/platemark/models/emoji

$(LEAN)/.installed: $(SOURCES)
	test -x $(LEAN)/bin/python || $(PYTHON) -m venv $(LEAN)
	rm -rf build/lib build/bdist*
	$(LEAN)/bin/pip install $(PIP_QUIET) -c constraints.txt .
	touch $@

$(FULL)/.installed: $(SOURCES)
	test -x $(FULL)/bin/python || $(PYTHON) -m venv $(FULL)
	rm -rf build/lib build/bdist*
	$(FULL)/bin/pip install $(PIP_QUIET) -c constraints.txt torch torchvision
	$(FULL)/bin/pip install $(PIP_QUIET) -c constraints.txt ".[dev]"
	touch $@

clean:
	rm -rf build/site build/lib build/bdist* $(LEAN) $(FULL) *.egg-info apple.png  # build/training holds hours of work
