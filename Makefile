# Two commands for a newcomer: `make run` (data to the results table) and `make test`. Both make their own environment.
.PHONY: run test lint docs
.SUFFIXES:

export PATH := $(CURDIR)/.venv/bin:$(PATH)
INSTALLED := .venv/installed

run: $(INSTALLED)
	snakemake --cores all
	@awk '/^## / {measured = /^## Measured/} /^Where each/ {measured = 0} measured' results/benchmarks.md
	@echo "All figures: results/benchmarks.md (.csv, .json). Pictures and table: results/report.html. All runs: mlflow ui"

test: $(INSTALLED)
	python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: $(INSTALLED)
	ruff check .
	ruff format --check .
	mypy
	snakefmt --check Snakefile workflow
	snakemake --lint

# The pages that are made from the code, then the site in site/.
docs: export NO_MKDOCS_2_WARNING := 1
docs: $(INSTALLED)
	python docs/generate.py
	mkdocs build --strict
	@echo "The site: site/index.html"

# Anew only when what is to be installed changed. A virtual environment needs ensurepip, which some systems leave out.
$(INSTALLED): pyproject.toml constraints.txt
	@test -x .venv/bin/python || { \
		for python in $(PYTHON) python3.11 python3.12 python3.13 python3.14 python3 python; do \
			if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
				echo "creating .venv with $$python"; exec $$python -m venv --clear .venv; \
			fi; \
		done; \
		echo "make: expected Python 3.11 or newer with the modules venv and ensurepip, found none; install one, or name it: make PYTHON=/path/to/python3" >&2; \
		exit 1; \
	}
	python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
