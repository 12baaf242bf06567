# Everything here needs Python 3.11+, pip and a C compiler; it installs the rest
# into .venv.
PYTHON ?= python3
BIN := .venv/bin
RUN := quickstart_run

# A command starts in half the time once its libraries are compiled to bytecode.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart test test-slow test-parity lint bench docs plans clean

quickstart: .venv/quickstart
	$(BIN)/python -m examples.quickstart.run --workdir=$(RUN) $(ARGS)

# By two processes, file by file in the order of conftest: what tests of a file share is
# made once.
test: lint
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: .venv/dev
	$(BIN)/pytest -m slow $(ARGS)

# Against torch, transformers and open_clip themselves. Also brings what some tests skip
# without: the TPU compiler, W&B, Dataflow's client and a server of s3://.
test-parity: .venv/parity
	$(BIN)/pytest tests/parity $(ARGS)

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m compileall -q configs data_prep examples metaclip_jax tests benchmarks
	$(BIN)/mypy

# Half an hour on a machine with nothing else to do; writes docs/benchmarks.md.
bench: .venv/parity
	$(BIN)/python -m benchmarks.run_all $(ARGS)

# The pages that are made from the code.
docs: .venv/dev
	$(BIN)/python docs/write_config.py
	$(BIN)/python docs/write_tasks.py
	$(BIN)/python docs/write_languages.py

# Compiles for TPUs for about an hour, or what has changed; writes docs/tpu_plans.md.
plans: .venv/parity
	$(BIN)/python -m benchmarks.tpu_plans $(ARGS)

clean:
	rm -rf .venv build *.egg-info $(RUN)

# uv installs the same packages as pip several times faster.
.venv/quickstart .venv/dev: setup.py constraints.txt
	test -x $(BIN)/uv || { $(PYTHON) -m venv .venv && $(BIN)/pip install -q uv; }
	VIRTUAL_ENV=.venv $(BIN)/uv pip install -q -c constraints.txt -e '.[$(@F)]'
	touch $@

# pip, since it heeds a machine's own choice among torch's builds, which uv does not.
# open_clip and clip_benchmark alone: they ask for a torchvision that the tests replace.
.venv/parity: .venv/dev
	$(BIN)/pip install -q -c constraints.txt torch==2.13.0 transformers==5.23.0
	$(BIN)/pip install -q --no-deps open_clip_torch==3.3.0 clip_benchmark==1.6.2
	VIRTUAL_ENV=.venv $(BIN)/uv pip install -q -c constraints.txt libtpu wandb \
	    google-cloud-dataflow-client \
	    ImageHash==4.3.2 nltk==3.10.4 scikit-image==0.26.0 -e '.[s3,lingua]' 'moto[s3]' flask flask-cors
	touch $@
