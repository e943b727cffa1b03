# Two commands: `make demo` shows what it does, `make test` proves it. Both set up .venv and work again offline.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
DATASET   ?= digits
DATA_ROOT ?=
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

TEST_ALL  := $(if $(filter 1,$(PALIMPSEST_TEST_ALL)),-all)
comma     := ,

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow soak lint bench clean

help:
	@echo "make demo                               the main job, end to end (about two minutes once installed)"
	@echo "make demo DATASET=mnist DATA_ROOT=DIR   the same on MNIST (DIR/MNIST/raw/*-ubyte)"
	@echo "make test                               lint, types, unit tests, tests against real Kafka and MLflow"
	@echo "make test-slow                          kills, fuzzing, browsers, the stack of compose.yaml"
	@echo "make soak                               faults for an hour: 200 kills, terminations, disks, outages; a table"
	@echo "make bench DATA_ROOT=DIR                the benchmarks' tables: benchmarks/RESULTS.md (hours; on a GPU less)"

# The stamps are newer than what they were made from, so that a second call installs nothing and needs no network.
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "== installing into $(VENV) (once; PyTorch is large)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Palimpsest needs Python 3.11 or newer; set PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) --editable .
	@$(BIN)/palimpsest broker install
	@touch $@

# With PALIMPSEST_TEST_ALL=1 nothing may be skipped, so what is compared with other implementations comes too.
$(VENV)/.installed-test$(TEST_ALL): $(VENV)/.installed
	@$(PIP_INSTALL) --editable '.[test$(if $(TEST_ALL),$(comma)avalanche)]'
	@touch $@

demo: $(VENV)/.installed
	@$(BIN)/palimpsest demo --dataset $(DATASET) $(if $(DATA_ROOT),--data-root $(DATA_ROOT))

lint: $(VENV)/.installed-test$(TEST_ALL)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# A file's tests stay together: they share brokers and learners.
TEST_JOBS ?= 2
test: lint
	@$(BIN)/pytest -m "not slow" -n $(TEST_JOBS) --dist loadfile

test-slow: $(VENV)/.installed-test$(TEST_ALL)
	@$(BIN)/pytest -m slow

KILLS ?= 200
soak: $(VENV)/.installed-test$(TEST_ALL)
	@$(BIN)/python -m tests.faults.soak --kills $(KILLS)

BENCH_DATA := --data-root $(or $(DATA_ROOT),data)
bench: $(VENV)/.installed-test$(TEST_ALL)
	@$(BIN)/python -m benchmarks.accuracy --stream split-mnist --methods palimpsest palimpsest_turned der_pp er_ace finetune joint \
		--buffers 100 200 500 --seeds 0 1 2 3 4 --via kafka $(BENCH_DATA) --json runs/bench/1-split-mnist.json
	@$(BIN)/python -m benchmarks.accuracy --stream mnist-360 --methods palimpsest palimpsest_turned palimpsest_recurring der_pp \
		--buffers 200 500 1000 --seeds 0 1 2 --via kafka $(BENCH_DATA) --json runs/bench/2-mnist-360.json
	@$(BIN)/python -m benchmarks.accuracy --stream thucnews --methods palimpsest der_pp finetune joint \
		--buffers 500 --seeds 0 1 2 --via kafka $(BENCH_DATA) --json runs/bench/3-thucnews.json
	@$(BIN)/python -m benchmarks.throughput $(BENCH_DATA) --json runs/bench/4-throughput.json
	@$(BIN)/python -m benchmarks.update_cost --json runs/bench/7-update-cost.json
	@$(BIN)/python -m benchmarks.consolidation --dataset mnist --seeds 2 3 4 $(BENCH_DATA) --json runs/bench/91-consolidation-mnist.json
	@$(BIN)/python -m benchmarks.consolidated_stream --seeds 0 1 2 $(BENCH_DATA) --json runs/bench/93-consolidated-stream.json
	@$(BIN)/python -m benchmarks.consolidated_stream --seeds 0 1 2 --buffer 100 $(BENCH_DATA) --json runs/bench/94-consolidated-stream-100.json
	@$(BIN)/python -m benchmarks.consolidation --dataset thucnews --seeds 0 1 $(BENCH_DATA) --json runs/bench/92-consolidation-thucnews.json
	@for steps in s0-t5 s0-t10 s50-t5; do for data in cifar10 mnist; do $(BIN)/python -m benchmarks.expansion --dataset $$data --steps $$steps \
		--seeds 0 1 2 3 4 --precision bfloat16 $(BENCH_DATA) --json runs/bench/95-expansion-$$data-$$steps.json || exit 1; done; done
	@$(BIN)/python -m benchmarks.serving --json runs/bench/96-serving.json
	@$(BIN)/python -m benchmarks.ingest --json runs/bench/6-ingest.json
	@$(BIN)/python -m benchmarks.growth --resnet --json runs/bench/5-growth.json
	@$(BIN)/python -m benchmarks.results runs/bench/*.json

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
