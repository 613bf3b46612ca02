# Everything a contributor or a reader types. Each target sets up .venv if it is missing or if the requirements changed.
PYTHON ?= python3
# for `make reproduce`: which papers (none: all), and smoke, laptop or paper
PAPERS ?=
SCALE ?= smoke
BIN := .venv/bin
LIBRARY_NOTEBOOKS = $(filter-out $(wildcard nbs/*/9?_*.ipynb), $(wildcard nbs/*.ipynb nbs/*/*.ipynb))

.PHONY: reproduce test docs lab export notebooks clean

# Re-execute the experiments, print the claims, build the site.
reproduce: .venv/.installed
	$(BIN)/papersuite reproduce $(PAPERS) --scale $(SCALE)
	$(BIN)/papersuite docs

# A copy of the notebooks is run, two at a time with one thread each, and keeps its outputs: tests/test_outputs.py compares them with those that
# readers see. Their tests are left to pytest, and the experiments to tests/test_reproduce.py, which runs them as papermill does. Two processes share
# the test modules; each module stays in one.
test: .venv/.installed
	$(BIN)/python -c 'from papersuite.build.testgen import copy_pages; copy_pages("nbs", "build/nbs")'
	OMP_NUM_THREADS=1 $(BIN)/nbdev-test build/nbs --save --n-workers 2 --skip-file-re '^([_.]|9[0-9]_)'
	OMP_NUM_THREADS=1 $(BIN)/pytest --cov=papersuite -n 2 --dist loadfile

docs: .venv/.installed
	$(BIN)/papersuite docs

lab: .venv/.installed
	$(BIN)/jupyter lab nbs

# Library, generated tests and README.md from the notebooks.
export: .venv/.installed
	$(BIN)/papersuite export

# Fresh outputs in the library notebooks; those of the experiments come from `papersuite reproduce --scale laptop --keep`.
notebooks: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/jupyter nbconvert --to notebook --execute --inplace $(LIBRARY_NOTEBOOKS)
	$(BIN)/nbdev-clean

clean:
	rm -rf .venv _runs _docs _proc build dist *.egg-info .pytest_cache .ruff_cache .coverage htmlcov

.venv/.installed: settings.ini setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 10) and f"papersuite needs Python 3.10 or newer, but $(PYTHON) is {v[0]}.{v[1]}; try: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -c constraints.txt -e '.[dev,docs]'
	touch $@
