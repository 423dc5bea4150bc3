# Every target sets up what it needs in .venv, once; `make help` lists them.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?=
ARGS ?=

# A process for each core, up to four; files stay whole, for tests of a file share compiled programs.
PROCESSES ?= -n auto --maxprocesses 4 --dist loadfile

# Two pips must never write to one environment at the same time, so -j is not followed.
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help compare parity bench gpu-report test test-full vectors lint format doctor clean clean-venv

help:
	@echo "make compare      train and compare the models in both frameworks: the main job, no download of data"
	@echo "make parity       prove the two wings equal: the certificate, with the mutation matrix"
	@echo "make bench        measure speed, memory and compile time of both wings: the report"
	@echo "make gpu-report   the certificate and the benchmarks on a GPU: nothing is installed, PYTHON=... has the packages"
	@echo "make test         run the tests"
	@echo "make test-full    run the tests with the longer checks"
	@echo "make vectors      write the oracle's test vectors anew (after a change of common/cases.py)"
	@echo "make lint         check style and formatting"
	@echo "make format       apply the formatting"
	@echo "make doctor       examine this machine: versions, devices, memory, data"
	@echo "make clean        remove caches and build leftovers"
	@echo "make clean-venv   remove $(VENV), which the next command sets up anew"
	@echo
	@echo "ARGS=\"...\" is passed on, as in: make compare ARGS=--help"
	@echo "PYTHON=... chooses the Python (3.11 or 3.12) for $(VENV)"

compare: $(VENV)/.base
	@$(BIN)/parallax compare $(ARGS)

parity: $(VENV)/.base
	@$(BIN)/parallax parity $(ARGS)

bench: $(VENV)/.test
	@$(BIN)/parallax bench $(ARGS)

# On a machine that has the packages already: at most 9 minutes, everything under $(GPU_OUT). All usual suites take turns, the
# large model first, until the time that the certificate leaves is over; the report names what is left out. Neither a failed
# claim nor a certificate that is not finished in its seconds keeps the benchmarks from being measured; the exit code still
# tells. $(PAGES) seconds are for a cell that is being timed when time is over, and for the pages.
GPU_OUT ?= out/gpu
DEVICE ?= cuda
GPU_SECONDS ?= 530
PARITY_SECONDS ?= 170
PAGES ?= 60
PARITY_CASES ?= gpt block attention mlp layer_norm grouped_query_gated latent_attention gated_deltanet sparse experts_grouped
GPU := $(or $(PYTHON),python3) -m common.cli
gpu-report:
	@proven=0; end=$$(($$(date +%s) + $(GPU_SECONDS))); \
	timeout -k 20 $(PARITY_SECONDS) $(GPU) parity --device $(DEVICE) --quick --processes 8 --claim C0 --claim C1 --claim C2 --claim C3 --claim C4 $(addprefix --case ,$(PARITY_CASES)) \
	  --out $(GPU_OUT)/parity || proven=$$?; \
	case $$proven in \
	  0|1) ;; \
	  124|13[0-9]|14[0-9]) echo "The certificate was not finished in $(PARITY_SECONDS) seconds, or ended by a fault; the benchmarks follow." >&2 ;; \
	  *) exit $$proven ;; \
	esac; \
	left=$$((end - $$(date +%s))); \
	timeout -k 10 $$left $(GPU) bench --device $(DEVICE) --seconds 4 --minutes $$(((left - $(PAGES)) / 6))e-1 \
	  --out $(GPU_OUT)/perf || exit $$?; \
	exit $$proven

test: $(VENV)/.test
	@$(BIN)/python -m pytest $(PROCESSES) -m "not full" $(ARGS)

test-full: $(VENV)/.test
	@$(BIN)/python -m pytest $(PROCESSES) $(ARGS)

vectors: $(VENV)/.base
	@OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 $(BIN)/python -m common.vectors tests/vectors

lint: $(VENV)/.lint
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(VENV)/.lint
	@$(BIN)/ruff format .

doctor: $(VENV)/.base
	@$(BIN)/parallax doctor $(ARGS)

clean:
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks
	@find . -name __pycache__ -type d -not -path "./$(VENV)/*" -prune -exec rm -rf {} +

clean-venv:
	@rm -rf $(VENV)

# A Python counts if it runs (a shim may not), has the right version and can make environments.
SUITABLE := import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
AGAIN := { echo "The set-up did not finish; run the same command again to go on." >&2; exit 1; }

# An environment that is there and works is kept; one whose Python has gone is made anew.
ifneq ($(shell $(BIN)/python -c 'print("runs")' 2>/dev/null),runs)
.PHONY: $(VENV)/.made
endif
$(VENV)/.made:
	@if $(BIN)/python -c '$(SUITABLE)' >/dev/null 2>&1 && $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  touch $@; exit 0; \
	fi; \
	found=; \
	for python in "$(PYTHON)" python3.11 python3.12 python3 python; do \
	  if [ -n "$$python" ] && "$$python" -c '$(SUITABLE)' >/dev/null 2>&1; then found=$$python; break; fi; \
	  if [ -n "$(PYTHON)" ] && [ "$$python" = "$(PYTHON)" ]; then \
	    echo "PYTHON=$(PYTHON) is no usable Python 3.11 or 3.12; trying others." >&2; \
	  fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "No usable Python 3.11 or 3.12 (with venv) found; install one, or name it: make PYTHON=/path/to/python3.12" >&2; \
	  exit 1; \
	fi; \
	echo "Setting up $(VENV) with $$("$$found" --version) (once, a few minutes)"; \
	"$$found" -m venv --clear $(VENV) || $(AGAIN); \
	touch $@

# The stamp is written last, so an interrupted installation is taken up again.
$(VENV)/.base: pyproject.toml constraints.txt $(VENV)/.made
	@echo "Installing Parallax and what it needs into $(VENV)"
	@rm -f $@
	@$(PIP) install -c constraints.txt -e . || $(AGAIN)
	@touch $@

# While extras are added the base counts as unfinished, for pip replaces the project itself; `mv` keeps its time.
$(VENV)/.test $(VENV)/.lint: $(VENV)/.%: $(VENV)/.base
	@echo "Adding what '$*' needs to $(VENV)"
	@rm -f $@
	@mv $(VENV)/.base $(VENV)/.base-busy
	@$(PIP) install -c constraints.txt -e '.[$*]' || $(AGAIN)
	@mv $(VENV)/.base-busy $(VENV)/.base
	@touch $@
