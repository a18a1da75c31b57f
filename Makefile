# Every target makes the environment first if it is missing. `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
STS ?=
RUN ?=
BEIR ?=
FACTOR ?= 10
# One more than two cores: many tests wait for processes that they start.
JOBS ?= 3

# Of a fresh environment nothing is compiled. Where Python is told to keep nothing that it compiles, as in many images of
# containers, each command would compile torch and all that it imports again: 15 seconds of the 25 until one is at work.
unexport PYTHONDONTWRITEBYTECODE

# Of the paper's tables: at which scale (paper, small, smoke), with which seeds, on which files, and anything else.
SCALE ?= paper
SEEDS ?=
TRIPLETS ?=
DEV ?=
PAIRS ?=
ARGS ?=
FILES := $(if $(TRIPLETS),data.train=$(TRIPLETS)) $(if $(DEV),data.dev=$(DEV)) $(if $(STS),eval.folder=$(STS)) $(ARGS)
STUDY_ARGS := --scale $(SCALE) $(if $(SEEDS),--seeds $(SEEDS)) $(FILES)

.DEFAULT_GOAL := help
.PHONY: help install demo release test test-lowest test-slow test-load fuzz audit check fix sts retrieval bench gpu docs clean study choices verdicts paper table1 table2 table3 table4 table5 table6 figure1

help:  ## list the targets
	@grep -hE '^[a-z0-9 -]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

$(VENV)/.made: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	@# Compiling what nobody imports would take pip a minute or two; Python compiles the rest when it is imported.
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint $(CONSTRAINTS) --editable '.[dev]'
	@touch $@

install: $(VENV)/.made  ## make the environment in .venv with the tested versions

# Questions in words of one's own, which the demo's embedder answers with functions of the standard library.
demo: install  ## fine-tune SmolLM2-135M to find Python functions by what they do, and search (minutes on 2 cores)
	$(BIN)/python -m cft.run data=docstrings eval=docstrings model.pooling=mean
	@documents=$$(ls -t outputs/smollm2-docstrings-*/evaluations/docstrings-*/documents.txt | head -n 1); \
	for question in "how do I copy a file" "pick a random element" "turn a string into a date"; do \
		echo; echo "$$question"; \
		$(BIN)/python -m cft.similar run="$${documents%%/evaluations/*}" "$$question" "$$documents" top=3 || exit; \
	done

test: install  ## run the tests, in JOBS=3 processes (minutes on 2 cores)
	$(BIN)/python -m pytest -m "not slow and not gpu" -n $(JOBS) --dist loadgroup --no-loadscope-reorder

test-lowest:  ## run the tests with the lowest supported versions (constraints-lowest.txt, an environment of its own)
	$(MAKE) test VENV=.venv-lowest CONSTRAINTS=constraints-lowest.txt

test-slow: install  ## run the tests that want the real SmolLM2 weights or real data
	$(BIN)/python -m pytest -m "slow and not gpu"

test-load: install  ## 200 jobs in one process, a million texts: memory and file handles (half an hour on 2 cores)
	$(BIN)/python -m pytest -m slow -s tests/promises/test_load.py

fuzz: install  ## spoilt files, settings and kills by the hundred: FACTOR times what the tests do (hours at 10)
	CFT_FUZZ=$(FACTOR) $(BIN)/python -m pytest tests/promises/test_fuzz_data.py tests/promises/test_fuzz_config.py tests/promises/test_crash.py

audit:  ## ask whether the tested versions have known weaknesses; fails where the advisories cannot be had
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	.venv-audit/bin/python -m pip_audit --strict --no-deps --disable-pip --requirement constraints.txt

check: install  ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: install  ## repair what lint and formatting can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

sts: install  ## score all-MiniLM-L6-v2 on the nine STS sets; STS=FOLDER reads them from files instead of the hub
	$(BIN)/python -m cft.run model=minilm train.steps=0 eval=sts train.precision=fp32 $(if $(STS),eval.folder=$(STS))

retrieval: install  ## score it on SciFact and ArguAna in BEIR=FOLDER three ways, beside MTEB's figures (an hour on 2 cores)
	$(if $(BEIR),,$(error BEIR=FOLDER says where SciFact and ArguAna are, in BEIR's layout))
	$(BIN)/python benchmarks/retrieval_published.py --beir $(BEIR)

table1: install  ## the paper's training configuration beside the one that runs
	$(BIN)/python -m cft.report table1 --scale $(SCALE)

table2 table3 table4 table5 table6 figure1: install
	$(BIN)/python -m cft.study run $@ $(STUDY_ARGS)
table2:  ## after fine-tuning (this and those below: SCALE=paper, small or smoke)
table3:  ## before fine-tuning
table4:  ## learning rate
table5:  ## prompts at evaluation
table6:  ## hard negatives
figure1:  ## data efficiency

paper: install  ## all of them in one report; SCALE=small wants TRIPLETS=FILE DEV=FILE STS=FOLDER
	$(BIN)/python -m cft.study run all $(STUDY_ARGS)

# Evidence (docs/study.md, docs/study_tables.md): what training changes, with several seeds; the rest with the first of them.
SEVERAL := table2 table3 table6 study/recipe
ONCE := table4 table5 figure1 $(addprefix study/,learning_rate prompts ablation time distilled longer whole_pass)

STUDY_SEEDS ?= 1,2,3

study: install  ## docs/study.md's trainings, in hours: TRIPLETS=FILE DEV=FILE STS=FOLDER
	$(BIN)/python -m cft.study run $(SEVERAL) --scale study --seeds $(STUDY_SEEDS) $(FILES)
	$(BIN)/python -m cft.study run $(ONCE) --scale study --seeds 1 $(FILES)

# PAIRS="a.jsonl b.jsonl" (question-answer pairs) with TRIPLETS, BEIR=FOLDER and STS=FOLDER adds those of study/roles.
choices: install  ## docs/choices.md's trainings, minutes each on two cores; resumes; TRIPLETS=FILE DEV=FILE for those on NLI
	$(BIN)/python benchmarks/choices.py $(if $(TRIPLETS),--triplets $(TRIPLETS)) $(if $(PAIRS),--pairs $(PAIRS))
	$(BIN)/python -m cft.study run study/choices study/lora study/pooling --scale choices --seeds $(or $(SEEDS),1) $(ARGS)
	$(BIN)/python -m cft.study run study/encoder --scale encoder --seeds $(or $(SEEDS),1,2,3) $(ARGS)
	$(if $(TRIPLETS),$(BIN)/python -m cft.study run study/scored --scale nli --seeds $(or $(SEEDS),1) \
		data.train=$(TRIPLETS) eval.file=$(DEV) $(ARGS))
	$(if $(PAIRS),$(BIN)/python -m cft.study run study/roles --scale questions --seeds $(or $(SEEDS),1) eval.folder=$(BEIR) $(ARGS))
	$(if $(PAIRS),$(BIN)/python -m cft.study run study/roles --scale questions_sts --seeds $(or $(SEEDS),1) eval.folder=$(STS) $(ARGS))

verdicts: install  ## docs/study_tables.md again, from the records beside it: TRIPLETS=FILE STS=FOLDER
	$(BIN)/python -m cft.report $(SEVERAL) $(ONCE) --scale study --into docs/study_tables.md outputs=docs/records $(FILES)

bench: install  ## benchmarks into docs/benchmarks.md; TRIPLETS=FILE and STS=FOLDER for real text
	$(BIN)/python benchmarks/bootstrap.py
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/retrieval_memory.py
	$(BIN)/python benchmarks/mining.py
	$(BIN)/python benchmarks/attention.py
	$(BIN)/python benchmarks/first_step.py
	$(BIN)/python benchmarks/choice_costs.py
	$(BIN)/python benchmarks/long_texts.py
	$(BIN)/python benchmarks/training_step.py $(if $(TRIPLETS),--triplets $(TRIPLETS))
	$(BIN)/python benchmarks/shared_cores.py $(if $(TRIPLETS),--triplets $(TRIPLETS))
	-$(BIN)/python benchmarks/granted_cores.py $(if $(TRIPLETS),--triplets $(TRIPLETS))  # needs the right to make a control group
	$(if $(STS),$(BIN)/python benchmarks/encoding.py --sts $(STS))
	-$(if $(and $(RUN),$(STS),$(TRIPLETS)),$(BIN)/python benchmarks/bfloat16.py --triplets $(TRIPLETS) --sts $(STS) --run $(RUN))

TINY ?=
OUT ?=

gpu: install  ## all that a GPU is asked, in eight minutes: TRIPLETS=FILE STS=FOLDER; TINY=1 only shows that it runs, anywhere
	$(BIN)/python benchmarks/gpu_kit.py $(if $(TINY),--tiny) $(if $(OUT),--out $(OUT)) \
		$(if $(TRIPLETS),--triplets $(TRIPLETS)) $(if $(STS),--sts $(STS)) $(ARGS)

# The upload is a person's: .venv-release/bin/python -m twine upload dist/*
PYTHONS ?= python3.10 python3.11 python3.12 python3.13

release:  ## build sdist and wheel in dist/, check them, and try the wheel in a fresh environment of each of PYTHONS
	rm -rf dist .venv-release
	$(PYTHON) -m venv .venv-release
	.venv-release/bin/python -m pip install --quiet --disable-pip-version-check build twine
	.venv-release/bin/python -m build --outdir dist
	.venv-release/bin/python -m twine check --strict dist/*
	@for python in $(PYTHONS); do \
		$$python --version >/dev/null 2>&1 || { echo "$$python: not on this machine"; continue; }; \
		scratch=$$(mktemp -d) && $$python -m venv $$scratch/env \
		&& $$scratch/env/bin/python -m pip install --quiet --disable-pip-version-check dist/*.whl \
		&& (cd $$scratch && env/bin/cft-run model=tiny logger=none train.steps=2 'data.packages=[peft]' data.rows=200 eval.rows=10) \
		&& echo "$$python: installed, trained and scored" || { echo "$$python: FAILED"; rm -rf $$scratch; exit 1; }; \
		rm -rf $$scratch; \
	done
	@ls -l dist

docs: install  ## the pages of docs/ as a site in outputs/site, settings written anew
	$(BIN)/python -m cft.config.reference docs/configuration.md
	$(BIN)/python docs/write_api.py
	$(BIN)/python -m mkdocs build --strict --quiet
	@echo "written: outputs/site/index.html"

clean:  ## remove caches of the tools (outputs/ and .venv stay)
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist *.egg-info
