# make demo    the whole pipeline on the simulated demo cohort, then runs/demo/report.html
# make test    lint and all tests; make test-fast: those that are quick
# make smoke   the same pipeline in its smallest form, as continuous integration runs it
# make studies arms of the classifier over seeds, saliency maps held against the truth (an hour on two cores), and the
#              whole chain held against a planted change and against none (make controls), training subjects repeated on
#              purpose (make canaries), switches against memorisation (make memorisation)
# make anatomy  for the report: real scans of the demo under another label (make counterfactuals, three quarters of an
#              hour), hippocampal volumes that were asked for (make wanted-volumes, ten minutes), regions labelled by our
#              own network (make labels, three quarters of an hour)
# make small-cohorts  generators trained on 25 to 400 subjects, from nothing and from earlier weights (three hours on two
#              cores); make recipes: recipes of training and sampling side by side (an hour and a half); no part of studies
# make bench   speed and accuracy checks, printed beside references
# make bench-gpu  scripts of the preset paper, then every speed target beside what one GPU reaches: under eight minutes
# make clean   removes what demo and smoke made (not the environment)
#
# Every command sets up .venv from requirements.txt first, unless it is there and unchanged. What is finished is not done
# again; an interrupted command continues where it stopped.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m
STAMP := $(VENV)/.requirements
FLOW := $(VENV)/bin/snakemake
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.PHONY: demo smoke studies arms maps controls canaries memorisation anatomy counterfactuals wanted-volumes labels small-cohorts recipes smoke-studies smoke-paper test test-fast lint bench bench-gpu venv clean

# Not the terminal's width: bars in a log file would otherwise fill it.
export TQDM_MININTERVAL ?= 2

venv: $(STAMP)
$(STAMP): requirements.txt pyproject.toml
	@trap 'echo "installation interrupted: run the same command again, and it goes on from there" >&2; exit 130' INT
	$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	echo "installing requirements.txt into $(VENV) (a few minutes the first time)"
	$(VENV)/bin/python -m pip install --quiet --requirement requirements.txt
	touch $@

# A process per core, each with one thread; a file's tests stay together, because they share what they trained.
PYTEST := OMP_NUM_THREADS=1 $(RUN) pytest --numprocesses auto --dist loadfile
test: lint
	$(PYTEST)
test-fast: lint
	$(PYTEST) -m "not slow"

lint: venv
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

bench: venv
	$(RUN) benchmarks.demo_cohort
	$(RUN) benchmarks.vae
	$(RUN) benchmarks.diffusion
	$(RUN) benchmarks.classifier
	$(RUN) benchmarks.check
	$(RUN) benchmarks.privacy
	$(RUN) benchmarks.prepare
	$(RUN) benchmarks.memory
	$(RUN) benchmarks.curves
bench-gpu: venv
	$(RUN) benchmarks.gpu

# ---- the pipeline (workflow/Snakefile): its configuration says what is wanted ---------------------------------------------
# All that it makes lies in data/<name> and runs/<name>, and its result in fid_results/<name>.json: a user's own tables,
# latents and volumes are never met.
demo smoke: venv
	$(FLOW) --configfile workflow/config/$@.yaml

# ---- longer studies of the demo, which the report shows when they are there --------------------------------------------
studies: arms maps controls canaries memorisation
arms: venv
	$(FLOW) arms --configfile workflow/config/demo.yaml
maps: venv
	$(RUN) classifier.validate_saliency demo
	$(RUN) classifier.validate_saliency doses
controls: venv
	$(RUN) benchmarks.controls demo
canaries: venv
	$(FLOW) latents --configfile workflow/config/demo.yaml
	$(RUN) evaluation.canaries demo
memorisation: venv
	$(FLOW) diffusion --configfile workflow/config/demo.yaml
	$(RUN) benchmarks.memorisation
anatomy: counterfactuals wanted-volumes labels
counterfactuals: venv
	$(FLOW) diffusion classifiers --configfile workflow/config/demo.yaml
	$(RUN) benchmarks.counterfactuals
wanted-volumes: venv
	$(FLOW) latents --configfile workflow/config/demo.yaml
	$(RUN) benchmarks.wanted_volumes
labels: venv
	$(FLOW) vae --configfile workflow/config/demo.yaml
	$(RUN) cohort.labelling.train demo
	$(RUN) benchmarks.labels --checkpoint runs/demo/labels/checkpoints/best.pt --csv data/demo/test.csv \
		--truth data/demo/truth.csv --vae runs/demo/vae/checkpoints/best.pt --out fid_results/demo_labels.json
small-cohorts: venv
	$(FLOW) split --configfile workflow/config/demo.yaml
	$(RUN) benchmarks.small_cohorts demo
recipes: venv
	$(FLOW) diffusion --configfile workflow/config/demo.yaml
	$(RUN) benchmarks.recipes
smoke-studies: venv
	$(FLOW) arms --configfile workflow/config/smoke.yaml
	$(RUN) classifier.validate_saliency smoke
	$(RUN) benchmarks.controls smoke
smoke-paper: venv
	$(FLOW) split --configfile workflow/config/smoke.yaml
	$(FLOW) --configfile workflow/config/smoke_paper.yaml
	$(FLOW) --configfile workflow/config/smoke_paper.yaml workflow/config/smoke_flow.yaml

# By whole names: a user's data/smokers is not ours.
clean:
	for name in demo smoke smoke_paper smoke_flow; do
		rm -rf data/$$name runs/$$name fid_results/$$name.* fid_results/$${name}_*
	done
