# Everything a user or developer types starts here: `make help`. Written for GNU make 3.81 (macOS) and later.
PYTHON ?= python3
TORCH ?=
WORKERS ?= 2
LAB_ARGS ?=
TEST_ARGS ?=
BENCH_ARGS ?=

VENV := .venv
RUN := $(VENV)/bin/python
LISTS := pyproject.toml constraints.txt
SUM := $(shell cat $(LISTS) | cksum | cut -d " " -f 1)
# Two set-ups: what students need, and everything.
LAB := $(VENV)/.stamp-$(SUM)-lab
ALL := $(VENV)/.stamp-$(SUM)-all
$(LAB): EXTRAS := notebooks,napari,nnunet
$(ALL): EXTRAS := notebooks,napari,nnunet,dev,site
PYTEST := $(RUN) -m pytest --numprocesses $(WORKERS)
# The type checker's command, the last of `make check` and `make test`.
TYPES := $(RUN) -m mypy --num-workers $(WORKERS)
# JupyterLab refuses to run as root (in a container, say) unless it is told to.
ALLOW_ROOT := $(shell test "$$(id -u)" = 0 && echo --allow-root)

# Python may keep what it has compiled, whatever the surroundings say: everything below starts many processes.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help lab demo check test lint types format system system-if-missing course course-times nbgrader bench site constraints clean say-lab say-demo say-check say-test

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

lab: say-lab $(LAB) ## set everything up and open JupyterLab on notebooks/; options: LAB_ARGS="--no-browser --port 9999"; TORCH=cpu at the first time
	@$(RUN) -m jupyterlab --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/notebooks $(ALLOW_ROOT) $(LAB_ARGS)

say-lab:
	@echo "make lab: opens JupyterLab on notebooks/; the first time it installs into $(VENV) (about 1 minute beyond the download of 3.3 GB; make lab TORCH=cpu asks for PyTorch's build for processors, 200 MB in place of 3 GB, which was not tried where this was written), later it starts within 5 seconds"

demo: say-demo $(LAB) ## train a small xLSTM-UNet on cells made here, then write one page of scores and pictures
	@$(VENV)/bin/xlstm-unet-lab train phantom_microscopy --model xlstm_unet_bot --model-option 'features=[16,32,64]' --patch-size 96,96 --steps 120 --learning-rate 3e-3 --run-directory runs/demo
	@$(VENV)/bin/xlstm-unet-lab report runs/demo --which last --out runs/demo/report.html

say-demo:
	@echo "make demo: trains for about a minute on 2 cores and writes runs/demo/report.html (the first time it installs as make lab does); the next time it only writes the page anew"

check: say-check lint ## check style, the fast tests and types, within 90 seconds on 2 cores; options as for make test
	@$(PYTEST) -m "not slow" $(TEST_ARGS)
	@$(TYPES)

say-check:
	@echo "make check: style, the fast tests and types, within 90 seconds on 2 cores; the first time it installs as make test does"

test: say-test system-if-missing lint ## set everything up and run every check and test; options: TEST_ARGS="-k mlstm" WORKERS=4
	@$(PYTEST) $(TEST_ARGS)
	@$(TYPES)

say-test:
	@echo "make test: runs every check and test; the first time it installs into $(VENV) (about 1 minute beyond the download of 3.3 GB), later the tests start within seconds and take about 16 minutes on 2 cores"

lint: $(ALL) ## check style and formatting
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .

types: $(ALL) ## check types
	@$(TYPES)

format: $(ALL) ## mend style and formatting where that can be done automatically
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .

system: ## install the system libraries for napari and the browser tests (Debian, Ubuntu)
	@tools/system_packages.sh install

system-if-missing:
	@tools/system_packages.sh install-if-root

course: $(LAB) ## build both notebooks of every lesson from solutions/*.py; CHECK=1 only compares
	@$(RUN) -m xlstm_unet_lab.course.authoring.build $(if $(CHECK),--check)

course-times: $(LAB) ## run every lesson in profile cpu, write the minutes into their headers, build them anew
	@$(RUN) -m xlstm_unet_lab.course.authoring.build --times; status=$$?; $(RUN) -m xlstm_unet_lab.course.authoring.build && exit $$status

nbgrader: $(ALL) ## write the lessons as a course for nbgrader into runs/nbgrader
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(RUN) -m xlstm_unet_lab.course.authoring.build --nbgrader runs/nbgrader

bench: $(ALL) ## measure speed and memory side by side, results in benchmarks/results/; options: BENCH_ARGS
	@$(RUN) -m benchmarks $(BENCH_ARGS)

# -W: a warning, of a link that leads nowhere for one, stops the build; --keep-going names all of them first.
site: $(ALL) ## build guides, lessons, data sheets and API reference into build/site, to be opened at index.html
	@$(RUN) tools/site_pages.py build/site_source
	@$(RUN) -m sphinx -W --keep-going -q -n -c docs -d build/site_doctrees build/site_source build/site
	@echo "make site: built build/site/index.html"

constraints: $(ALL) ## write the exact versions installed in .venv to constraints.txt
	@$(RUN) tools/write_constraints.py constraints.txt
	@rm -f $(VENV)/.stamp*
	@sum=$$(cat $(LISTS) | cksum | cut -d " " -f 1); touch $(VENV)/.stamp-$$sum-lab $(VENV)/.stamp-$$sum-all

clean: ## remove caches and build leftovers (delete .venv by hand to install afresh)
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find . -path ./$(VENV) -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -prune -exec rm -rf {} +

# The stamps are written last, so an install that failed or was interrupted is tried again. Their names hold a checksum
# of the two lists, so files that are merely newer (after a checkout, say) install nothing.
# uv needs a sixth of pip's time. It does not read pip's settings, so where only those lead to the packages, pip installs.
WHAT = --editable '.[$(EXTRAS)]' --constraint constraints.txt
PIP := $(RUN) -m pip install --disable-pip-version-check
UV := $(VENV)/bin/uv pip install --python $(RUN)
ifeq ($(TORCH),)
INSTALL = $(UV) $(WHAT) || { echo "make: uv did not install (see above); pip does, which takes about 5 minutes"; $(PIP) $(WHAT); }
else  # only uv knows where the other builds of PyTorch lie
INSTALL = $(UV) --torch-backend $(TORCH) $(WHAT)
endif

$(LAB) $(ALL):
	@rm -f $(VENV)/.stamp*
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is older than Python 3.11 or missing: name another one, for example make lab PYTHON=python3.12"; exit 1; }
	@$(RUN) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(PIP) --quiet uv --constraint constraints.txt || echo "make: pip found no uv"
	$(INSTALL)
	@$(RUN) -m ipykernel install --sys-prefix --name xlstm-unet-lab --display-name "xLSTM-UNet Lab"
	@touch $(LAB) $@
