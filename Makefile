# Everything a user or developer types starts here: `make help`. Written for GNU make 3.81 (macOS) and later.
PYTHON ?= python3
LAB_ARGS ?=
TEST_ARGS ?=
BENCH_ARGS ?=

VENV := .venv
RUN := $(VENV)/bin/python
LISTS := pyproject.toml constraints.txt
STAMP := $(VENV)/.stamp-$(shell cat $(LISTS) | cksum | cut -d " " -f 1)
EXTRAS := notebooks,napari,nnunet,dev
# JupyterLab refuses to run as root (in a container, say) unless it is told to.
ALLOW_ROOT := $(shell test "$$(id -u)" = 0 && echo --allow-root)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help lab demo test lint format system system-if-missing course course-times nbgrader bench constraints clean say-lab say-demo say-test

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

lab: say-lab $(STAMP) ## set everything up and open JupyterLab on notebooks/; options: LAB_ARGS="--no-browser --port 9999"
	@$(RUN) -m jupyterlab --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/notebooks $(ALLOW_ROOT) $(LAB_ARGS)

say-lab:
	@echo "make lab: opens JupyterLab on notebooks/; the first time it installs into $(VENV) (about 5 minutes on a fast line, 3.3 GB to download), later it starts within 5 seconds"

demo: say-demo $(STAMP) ## train a small xLSTM-UNet on cells made here, then write one page of scores and pictures
	@$(VENV)/bin/xlstm-unet-lab train phantom_microscopy --model xlstm_unet_bot --model-option 'features=[16,32,64]' --patch-size 96,96 --steps 120 --learning-rate 3e-3 --run-directory runs/demo
	@$(VENV)/bin/xlstm-unet-lab report runs/demo --which last --out runs/demo/report.html

say-demo:
	@echo "make demo: trains for about a minute on 2 cores and writes runs/demo/report.html (the first time it installs as make lab does); the next time it only writes the page anew"

test: say-test system-if-missing $(STAMP) ## set everything up and run every check and test; options: TEST_ARGS="-k mlstm"
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m pytest $(TEST_ARGS)

say-test:
	@echo "make test: runs ruff and every test; the first time it installs into $(VENV) (about 5 minutes on a fast line, 3.3 GB to download), later the tests start within seconds and take about 17 minutes on 2 cores"

lint: $(STAMP) ## check style and formatting
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .

format: $(STAMP) ## mend style and formatting where that can be done automatically
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .

system: ## install the system libraries for napari and the browser tests (Debian, Ubuntu)
	@tools/system_packages.sh install

system-if-missing:
	@tools/system_packages.sh install-if-root

course: $(STAMP) ## build both notebooks of every lesson from solutions/*.py; CHECK=1 only compares
	@$(RUN) -m xlstm_unet_lab.course.authoring.build $(if $(CHECK),--check)

course-times: $(STAMP) ## run every lesson in profile cpu, write the minutes into their headers, build them anew
	@$(RUN) -m xlstm_unet_lab.course.authoring.build --times; status=$$?; $(RUN) -m xlstm_unet_lab.course.authoring.build && exit $$status

nbgrader: $(STAMP) ## write the lessons as a course for nbgrader into runs/nbgrader
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(RUN) -m xlstm_unet_lab.course.authoring.build --nbgrader runs/nbgrader

bench: $(STAMP) ## measure speed and memory side by side, results in benchmarks/results/; options: BENCH_ARGS
	@$(RUN) -m benchmarks $(BENCH_ARGS)

constraints: $(STAMP) ## write the exact versions installed in .venv to constraints.txt
	@$(RUN) tools/write_constraints.py constraints.txt
	@rm -f $(VENV)/.stamp* && touch $(VENV)/.stamp-$$(cat $(LISTS) | cksum | cut -d " " -f 1)

clean: ## remove caches and build leftovers (delete .venv by hand to install afresh)
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find . -path ./$(VENV) -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -prune -exec rm -rf {} +

# The stamp is written last, so an install that failed or was interrupted is tried again. Its name holds a checksum of
# the two lists, so files that are merely newer (after a checkout, say) install nothing.
$(STAMP):
	@rm -f $(VENV)/.stamp*
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is older than Python 3.11 or missing: name another one, for example make lab PYTHON=python3.12"; exit 1; }
	@$(RUN) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(RUN) -m pip install --disable-pip-version-check --editable '.[$(EXTRAS)]' --constraint constraints.txt
	@$(RUN) -m ipykernel install --sys-prefix --name xlstm-unet-lab --display-name "xLSTM-UNet Lab"
	@touch $@
