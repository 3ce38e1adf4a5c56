# Two commands on a fresh machine with Python 3.11+: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_DIR ?= demo-data

.PHONY: demo test types suite test-slow lint clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("fastfill_ray needs Python 3.11 or newer, this is " + sys.version) if sys.version_info < (3, 11) else 0'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo,test]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python jobs/demo.py --dir $(DEMO_DIR)

test: $(VENV)/.installed
	$(BIN)/ruff check .
	$(MAKE) --no-print-directory -j2 types suite

types: $(VENV)/.installed
	$(BIN)/mypy

# Two processes: they wait now and then, for Ray or a disk, and the types are checked meanwhile.
suite: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

clean:
	rm -rf $(VENV) $(DEMO_DIR)
