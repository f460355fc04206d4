# Set-up and the two commands of the README. Everything is installed into .venv, nothing outside it.
#   make demo    the whole chain on a small web that is built here, report at the end
#   make learn   every recipe learns the demo's scenes; figures against margins (half an hour)
#   make capfilt   noisy captions, bootstrapped ones and clean ones, three times over (about an hour)
#   make test    the tests
#   make check   lint, format, types, import rules
#   make prove   the slow proofs: kills, browsers, SLURM
#   make fidelity   every recipe against other implementations; writes docs/fidelity.md (some minutes)
# Needs: Python 3.10-3.12 with venv, and make.

PYTHON ?= python3
BIN := .venv/bin
DEMO ?= demo-run
LEARN ?= learn-run
CAPFILT ?= capfilt-run

.PHONY: demo learn capfilt test check prove prove-ci fidelity clean

demo: .venv/.demo
	$(BIN)/python -m jobs.demo --folder $(DEMO)

learn: .venv/.demo
	$(BIN)/python -m jobs.demo.learn --folder $(LEARN)

capfilt: .venv/.demo
	$(BIN)/python -m jobs.demo.capfilt --folder $(CAPFILT)

test: .venv/.test
	$(BIN)/python -m pytest -m "not prove"

prove: .venv/.test
	$(BIN)/python -m pytest -m prove

prove-ci: .venv/.test
	$(BIN)/python -m pytest -m prove_ci

fidelity: .venv/.test
	$(BIN)/python -m tests.fidelity

check: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/.demo: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "installing the dependencies (several GB, some minutes) ..."
	$(BIN)/python -m pip install --quiet -e ".[demo]"
	touch $@

.venv/.test: .venv/.demo
	@echo "installing what the tests need ..."
	$(BIN)/python -m pip install --quiet -e ".[test]"
	touch $@

clean:
	rm -rf .venv $(DEMO) $(LEARN) $(CAPFILT)
