# Each target works as the first command on a fresh checkout: whatever it needs is made first.
#   make setup [ACCEL=cuda|metal|vulkan|rpc]   .venv, with llama.cpp built for this machine
#   make setup WHEELS=URL   the same without a compiler: llama.cpp from a package index or a directory of wheels
#   make demo     pull the starter model and ask it a question
#   make test     the test suite; ARGS are pytest's: make test ARGS="tests/cli/test_ask.py -k stop"
#   make wheels   dist/cerebrum_llama-*.whl: llama.cpp for any processor; on Linux for x86-64 and ARM64
#   make test-wheel [KERNELS=haswell,zen4]   the tests of the engine again with that wheel, or one with these kernels
#                 alone, and once more with its kernels for AVX2
#   make fuzz     many damaged and hostile inputs, thousands of cases of each property and, after `make peers`, all
#                 architectures and chat templates of llama.cpp, in minutes
#   make quick    no slow tests and no property tests
#   make slow     the slow tests and the property tests: the rest of `make test`
#   make coverage   the quick tests with the share of statements they run, and its minimum
#   make check    format, lint, types
#   make docs     generated pages of docs/reference, from the code
#   make catalogue   sizes and pinned revisions of models.toml, from the Hugging Face Hub
#   make dist     dist/cerebrum_cli-*: the source archive, and the wheel, which needs that of `make wheels`
#   make test-dist  what `make dist` and `make wheels` made, installed by pip, uv and pipx
#   make picture MODEL=FILE [NAME=NAME]   docs/*.svg and accuracy.png, from real chats, a vote, an evaluation
#   make peers    llama.cpp's own programs and `llm`, for the benchmarks; the programs for `make fuzz` too
#   make bench [DATA=DIR] [SHAPE=FILE] [MODEL=FILE]   the benchmarks of speed, into benchmarks/RESULTS.md; DIR holds the
#                 questions of MT-bench and GSM8K, the first FILE is a model of Mistral-7B's shape, the second an
#                 instruction model (see benchmarks/all.py); without them, what needs them is left out

PYTHON ?= python3
ACCEL ?=
WHEELS ?=
KERNELS ?=
DATA ?=
SHAPE ?=
MODEL ?=
NAME ?= qwen2.5-coder
ARGS ?=
# All but benchmarks/RESULTS.md, which the benchmarks write.
PAGES := README.md CONTRIBUTING.md SECURITY.md CHANGELOG.md docs scripts/nano/README.md .github/pull_request_template.md
VENV := .venv
BIN := $(VENV)/bin
# Without bytecode, each of the hundreds of processes of the tests would compile the package.
unexport PYTHONDONTWRITEBYTECODE
INSTALLED := $(VENV)/.installed$(if $(ACCEL),-$(ACCEL))$(if $(WHEELS),-$(firstword $(shell printf %s "$(WHEELS)" | cksum)))

WHEEL := $(VENV)/wheel/.installed$(if $(KERNELS),-$(KERNELS))

.PHONY: setup demo test test-wheel wheels quick slow fuzz coverage check format lock docs catalogue dist test-dist picture peers bench clean

setup: $(VENV)/.setup

$(VENV)/.setup: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --no-compile --group dev
	touch $@

$(INSTALLED): pyproject.toml
	ACCEL="$(ACCEL)" WHEELS="$(WHEELS)" PYTHON="$(PYTHON)" scripts/setup.sh
	touch $@

demo: $(INSTALLED)
	$(BIN)/cerebrum pull starter
	$(BIN)/cerebrum ask -m starter --stats "Out of six apples three are bad. What is the probability of picking a good one?"

# Four processes for two cores: many tests wait for other processes.
test: setup
	$(BIN)/python -m pytest --numprocesses 4 --dist loadfile $(ARGS)

slow: setup
	$(BIN)/python -m pytest --numprocesses 4 --dist loadfile -m "(slow or hypothesis) and not fuzz" $(ARGS)

wheels: setup
	rm -f dist/cerebrum_llama-*.whl
	$(BIN)/python -m pip install --quiet --group wheels
	for architecture in $(if $(filter Darwin,$(shell uname)),arm64,x86_64 aarch64); do \
		PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python scripts/wheels.py $$architecture dist || exit; \
	done

test-wheel: setup $(WHEEL)
	scripts/test_wheel.sh $(ARGS)

$(WHEEL): $(INSTALLED) scripts/wheels.py scripts/zig_cc.py scripts/llama.cmake
	rm -rf $(VENV)/wheel
	$(BIN)/python -m pip install --quiet --group wheels
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python scripts/wheels.py $(shell uname -m) $(VENV)/wheel $(KERNELS)
	touch $@

fuzz: setup
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m "fuzz or hypothesis" --hypothesis-profile fuzz $(ARGS)

quick: setup
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m "not slow and not hypothesis and not fuzz" $(ARGS)

coverage: setup
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m "not slow and not hypothesis and not fuzz" --cov $(ARGS)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mdformat --check $(PAGES)
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/mdformat $(PAGES)

lock: # with the versions of requirements.txt, where they still fit
	uv pip compile --universal --python-version 3.11 --all-extras --group dev --generate-hashes -q -o requirements.txt pyproject.toml

docs: setup
	$(BIN)/python docs/reference.py

catalogue: setup
	$(BIN)/python scripts/catalogue.py

dist: setup
	$(BIN)/python scripts/dist.py dist

test-dist:
	scripts/test_dist.sh dist "$(PYTHON)"

picture: setup
	$(BIN)/python docs/picture.py "$(MODEL)" "$(NAME)"

peers: setup
	benchmarks/peers.sh $(BIN)/python

bench: peers
	$(BIN)/cerebrum pull --quiet starter
	$(BIN)/python -m benchmarks.all $(if $(DATA),--data "$(DATA)") $(if $(SHAPE),--shape "$(SHAPE)") $(if $(MODEL),--model "$(MODEL)")

clean:
	rm -rf $(VENV) .coverage .peers .mypy_cache .ruff_cache .pytest_cache dist
