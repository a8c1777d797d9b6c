# make demo    install, write a synthetic cohort, index it, query it, write a report
# make test    install what the tests need (Debian packages too) and run them all
# make check   the fast tests alone
# make help    the rest
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip --disable-pip-version-check install -q -c constraints.txt

.PHONY: demo pacs test check site package lint format docs kill-test flip-test fuzz-folders fuzz attack benchmarks cohorts cross-validation weights figures reference debian clean help

# torch comes first and alone, from the one constraints file: no resolver may choose another build
$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) pip
	$(PIP) torch
	$(PIP) -e .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(PIP) -e '.[all]' --group dev
	touch $@

demo: $(VENV)/installed  ## install, write a synthetic cohort, index it, query it, write a report
	$(BIN)/cbir demo demo/cohort
	$(BIN)/cbir demo demo/new --patients 3 --seed 1
	$(BIN)/cbir index demo/cohort --index demo/index
	$(BIN)/cbir query demo/new/SYNTH-1-001 --index demo/index -k 5 --report demo/report.html
	@echo "open demo/report.html in a browser"

pacs: $(VENV)/installed-test debian  ## a real Orthanc, the service and the sample cohort on loopback, until Ctrl-C
	$(BIN)/python -m pacs.run

debian:  ## Debian packages that tests and `make pacs` need
	@sh tests/debian.sh

SERVERS := engines or browser or pacs

# a file of tests stays in one process; what starts servers of its own has the machine for itself
test: $(VENV)/installed-test debian lint  ## install what tests need and run them all
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist loadfile -m "not ($(SERVERS))"; \
	beside=$$?; $(BIN)/python -m pytest -m "$(SERVERS)" && exit $$beside

# twice as many workers as cores: every other test waits for a child process or a socket
check: $(VENV)/installed-test lint  ## ruff, mypy and all fast tests, in parallel: two minutes of two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $$((2 * $$(nproc))) --dist worksteal \
	  -m "not (slow or real or $(SERVERS))"

lint: $(VENV)/installed-test  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-test  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

site: $(VENV)/installed-test  ## the documentation as pages, in build/site
	$(BIN)/mkdocs build --strict

package: $(VENV)/installed-test  ## build sdist and wheel, install each into an empty environment, try it there
	rm -rf dist build/empty
	$(BIN)/python -m build --no-isolation
	for kind in whl tar.gz; do \
	  $(PYTHON) -m venv --clear build/empty && build/empty/bin/pip --disable-pip-version-check install -q -c constraints.txt torch && \
	  build/empty/bin/pip --disable-pip-version-check install -q -c constraints.txt dist/*.$$kind && \
	  build/empty/bin/python tests/support/smoke.py build/empty || exit 1; \
	done

docs: $(VENV)/installed-test  ## regenerate the tables of results and the CLI help in the documents
	$(BIN)/python -m benchmarks.documents

kill-test: $(VENV)/installed-test  ## 1,000 kills, errors of the disk and Ctrl-C, each at any system call of a verb; 30 of real runs
	for kind in kills errors interrupts; do \
	  nice $(BIN)/python -m tests.support.faults $$kind --count 1000 --record || exit 1; \
	done
	nice $(BIN)/python -m pytest tests/indexer/test_crash.py --runs-killed 30

flip-test: $(VENV)/installed-test  ## flip 50 bits in every file of an index, 1,000 in its catalog
	nice $(BIN)/python -m tests.support.faults flips --count 50 --record

fuzz-folders: $(VENV)/installed-test  ## 10,000 commands on hostile index folders
	nice $(BIN)/python -m tests.support.faults folders --count 10000 --record

fuzz: $(VENV)/installed-test  ## read 50,000 mutated files of every kind in runs, and as many sent to the service
	$(BIN)/python -m pytest --record tests/indexer/test_fuzz.py --fuzz 50000 --timeout 7200
	$(BIN)/python -m pytest --record tests/service/test_fuzz.py --fuzz 50000 --timeout 7200
	$(BIN)/python -m pytest --record tests/service/test_planted.py --planted 1000 --timeout 1200

attack: $(VENV)/installed-test  ## floods, idle and slow connections, poison, while clients ask, for 10 minutes
	CBIR_ATTACK=600 $(BIN)/python -m pytest -s --record --timeout 1800 tests/service/test_attack.py

benchmarks: figures  ## measure again all that the documents state (needs ../shared/data)
	$(BIN)/python -m benchmarks.baseline
	nice $(BIN)/python -m benchmarks.paper
	$(BIN)/python -m benchmarks.radiomics
	$(BIN)/python -m benchmarks.peers
	$(BIN)/python -m benchmarks.readers
	$(BIN)/python -m benchmarks.ingest
	$(BIN)/python -m benchmarks.index
	$(BIN)/python -m benchmarks.index --enlarged 1000000
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.scale --sizes 1000000 --lists 1024
	$(BIN)/python -m benchmarks.plots
	$(BIN)/python -m benchmarks.service
	$(BIN)/python -m benchmarks.live
	$(BIN)/python -m benchmarks.sample
	$(BIN)/python -m benchmarks.documents

cohorts: $(VENV)/installed-test  ## judge what is made of public cohorts by the tables of their truth
	$(BIN)/python -m benchmarks.cohort_layouts
	$(BIN)/python -m benchmarks.documents

cross-validation: $(VENV)/installed-test  ## train the networks of the five folds (4 hours of one core)
	nice $(BIN)/python -m benchmarks.cohorts

weights: $(VENV)/installed-test  ## train the encoder that is shipped (50 minutes of one core), after the folds'
	$(BIN)/python -m benchmarks.regions
	nice $(BIN)/python -m benchmarks.cohorts --final

figures: $(VENV)/installed-test  ## judge the networks of the folds, and write the tables
	$(BIN)/python -m benchmarks.figshare
	$(BIN)/python -m benchmarks.grades
	$(BIN)/python -m benchmarks.views
	$(BIN)/python -m benchmarks.likeness
	$(BIN)/python -m benchmarks.resemblance
	$(BIN)/python -m benchmarks.regions
	$(BIN)/python -m benchmarks.volumes
	$(BIN)/python -m benchmarks.ablation
	$(BIN)/python -m benchmarks.calibration
	$(BIN)/python -m benchmarks.every_grade
	$(BIN)/python -m benchmarks.open_set
	$(BIN)/python -m benchmarks.explanation
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.planes
	$(BIN)/python -m benchmarks.scanner_grids
	$(BIN)/python -m benchmarks.documents

reference: $(VENV)/installed-test  ## make the reference cases of the package anew (needs ../shared/data)
	$(BIN)/python -m benchmarks.reference
	$(BIN)/python -m benchmarks.reference --calibrate

clean:  ## remove what make made
	rm -rf $(VENV) demo artifacts build dist

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'
