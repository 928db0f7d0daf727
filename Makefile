# make demo    the whole pipeline on the simulated demo cohort, then runs/demo/report.html
# make test    lint and all tests; make test-fast: those that are quick
# make smoke   the same pipeline in its smallest form, as continuous integration runs it
# make studies arms of the classifier over seeds, saliency maps held against the truth (an hour on two cores), and the
#              whole chain held against a planted change and against none (make controls), training subjects repeated on
#              purpose (make canaries), switches against memorisation (make memorisation)
# make bench   speed and accuracy checks, printed beside references
# make clean   removes what demo and smoke made (not the environment)
#
# Every command sets up .venv from requirements.txt first, unless it is there and unchanged. What is finished is not done
# again; an interrupted command continues where it stopped.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m
STAMP := $(VENV)/.requirements
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.PHONY: demo smoke studies arms maps controls canaries memorisation smoke-studies smoke-paper test test-fast lint bench venv clean

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

# ---- the pipeline, once for each preset -------------------------------------------------------------------------------
# All that it makes lies in data/<preset> and runs/<preset>, and its result in fid_results/<preset>.json: a user's own
# tables, latents and volumes are never met. Arguments: $(1) preset, $(2) cohort flags, $(3) split flags, $(4) volumes per
# class, $(5) sampling flags, $(6) both classes' volumes, $(7) saliency flags, $(8) volumes of TLE on the right: those
# of even seeds have another side, and the same noise, in the class's own folder
define pipeline
runs/$(1)/.done/cohort: | venv
	$(RUN) cohort.make_demo --out data/$(1) --index data/$(1)/pickle_prep_$(1).csv $(2)
	mkdir -p $$(@D) && touch $$@
runs/$(1)/.done/split: runs/$(1)/.done/cohort
	$(RUN) cohort.split --index data/$(1)/pickle_prep_$(1).csv --out data/$(1) $(3)
	touch $$@
runs/$(1)/.done/vae: runs/$(1)/.done/split
	$(RUN) VAE.train $(1)
	$(RUN) VAE.infer --checkpoint runs/$(1)/vae/checkpoints/best.pt --csv data/$(1)/test.csv --out runs/$(1)/infer \
	  --cache-dir data/$(1)/cache
	touch $$@
runs/$(1)/.done/latents: runs/$(1)/.done/vae
	$(RUN) VAE.save_latent --checkpoint runs/$(1)/vae/checkpoints/best.pt --csv data/$(1)/train.csv data/$(1)/val.csv \
	  --out runs/$(1)/latents --cache-dir data/$(1)/cache
	touch $$@
runs/$(1)/.done/diffusion: runs/$(1)/.done/latents
	$(RUN) diffusion.train $(1) --vae runs/$(1)/vae/checkpoints/best.pt
	touch $$@
runs/$(1)/.done/synthetic: runs/$(1)/.done/diffusion
	for label in HC TLE; do
	  $(RUN) diffusion.save_synth --vae runs/$(1)/vae/checkpoints/best.pt --diffusion runs/$(1)/diffusion/checkpoints/best.pt \
	    --label $$$$label --out runs/$(1)/synthetic_data_pkls_$$$$label --count $(4) $(5)
	done
	$(RUN) diffusion.save_synth --vae runs/$(1)/vae/checkpoints/best.pt --diffusion runs/$(1)/diffusion/checkpoints/best.pt \
	  --label TLE --side R --out runs/$(1)/synthetic_swap --count $(8) $(5)
	touch $$@
runs/$(1)/.done/evaluation: runs/$(1)/.done/synthetic
	$(RUN) evaluation.evaluate_synth --real-train data/$(1)/train.csv --real-test data/$(1)/test.csv \
	  --synth-hc runs/$(1)/synthetic_data_pkls_HC --synth-tle runs/$(1)/synthetic_data_pkls_TLE \
	  --synth-swap runs/$(1)/synthetic_swap --grid $(1) --truth data/$(1)/truth.csv --out fid_results/$(1).json \
	  --cache-dir runs/$(1)/evaluation \
	  --vae runs/$(1)/vae/checkpoints/best.pt --diffusion runs/$(1)/diffusion/checkpoints/best.pt
	touch $$@
runs/$(1)/.done/classifier: runs/$(1)/.done/synthetic
	for arm in "classifier " "classifier_real_synthetic --synth-count $(6)" "classifier_synthetic --real 0 --synth-count $(6)"; do
	  $(RUN) classifier.train $(1) --run-dir runs/$(1)/$$$${arm%% *} $$$${arm#* }
	done
	$(RUN) classifier.compare runs/$(1)/classifier runs/$(1)/classifier_real_synthetic runs/$(1)/classifier_synthetic \
	  --truth data/$(1)/truth.csv --train-csv data/$(1)/train.csv --out runs/$(1)/arms.json --figures runs/$(1)/comparison
	touch $$@
runs/$(1)/.done/saliency: runs/$(1)/.done/classifier
	$(RUN) classifier.generate_saliency_maps --checkpoint runs/$(1)/classifier/checkpoints/best.pt --csv data/$(1)/test.csv \
	  --volumes runs/$(1)/synthetic_data_pkls_HC runs/$(1)/synthetic_data_pkls_TLE --out runs/$(1)/saliency \
	  --cache-dir data/$(1)/cache $(7)
	touch $$@
$(1): runs/$(1)/.done/evaluation runs/$(1)/.done/saliency
	$(RUN) notebooks.report $(1)
endef

$(eval $(call pipeline,demo,,--val-percent 8 --test-percent 16,90,--steps 15,180,--limit 16,16))
$(eval $(call pipeline,smoke,--subjects 36 --spacing-mm 8,--val-percent 20 --test-percent 30,12,--steps 5,24,--limit 4,8))

# ---- longer studies of the demo, which the report shows when they are there --------------------------------------------
studies: arms maps controls canaries memorisation
arms: runs/demo/.done/synthetic
	$(RUN) classifier.run_arms demo --seeds 0 1 2
	for reference in real real_200 real_100; do
	  $(RUN) classifier.compare --arms runs/demo/arms --reference $$reference --truth data/demo/truth.csv \
	    --train-csv data/demo/train.csv --out runs/demo/arms_study$${reference#real}.json --figures runs/demo/arms_study$${reference#real}
	done
maps: venv
	$(RUN) classifier.validate_saliency demo
	$(RUN) classifier.validate_saliency doses
controls: venv
	$(RUN) benchmarks.controls demo
canaries: runs/demo/.done/latents
	$(RUN) evaluation.canaries demo
memorisation: runs/demo/.done/latents
	$(RUN) benchmarks.memorisation
smoke-studies: runs/smoke/.done/synthetic
	$(RUN) classifier.run_arms smoke
	$(RUN) classifier.compare --arms runs/smoke/arms --reference real --out runs/smoke/arms_study.json \
	  --figures runs/smoke/arms_study
	$(RUN) classifier.validate_saliency smoke
	$(RUN) benchmarks.controls smoke

# What the presets paper and flow are made of, and smoke is not: levels with halving and doubling, perceptual and
# adversarial terms, augmentation, recomputed activations, prediction of noise, rectified flow, rotary positions, patches
# with and without padding. Every setting that is not named here is the preset's own.
smoke-paper: runs/smoke/.done/split
	here=runs/smoke/paper
	vae=$$here/vae/checkpoints/best.pt
	brief="--steps 6 --warmup-steps 2 --val-every-steps 3 --save-every-steps 3 --log-every-steps 3 --seed 0"
	$(RUN) VAE.train paper --grid smoke --train-csv data/smoke/train.csv --val-csv data/smoke/val.csv --run-dir $$here/vae \
	  --cache-dir data/smoke/cache \
	  --model.channels 8 16 32 --model.groups 8 --model.attention --recompute --batch-size 2 --loss.perceptual 0.1 \
	  --loss.perceptual-slices 2 --loss.adversarial 0.1 --loss.adversarial-start-step 2 --loss.adversarial-warmup-steps 2 \
	  --augment.rotate-degrees 5 --augment.shift-voxels 1 --augment.gamma 0.1 --augment.bias 0.1 --augment.flip 0.5 $$brief
	$(RUN) VAE.infer --checkpoint $$vae --csv data/smoke/test.csv --out $$here/infer --cache-dir data/smoke/cache
	$(RUN) VAE.save_latent --checkpoint $$vae --csv data/smoke/train.csv data/smoke/val.csv --out $$here/latents \
	  --cache-dir data/smoke/cache
	for preset in paper flow; do
	  patch=$$(test $$preset = paper && echo "4 2 4" || echo "1 2 1")
	  $(RUN) diffusion.train $$preset --latents $$here/latents --vae $$vae --run-dir $$here/$$preset --model.dim 48 --model.depth 2 \
	    --model.heads 1 --model.patch $$patch --batch-size 4 --sample-every-steps 3 $$brief
	  $(RUN) diffusion.save_synth --vae $$vae --diffusion $$here/$$preset/checkpoints/best.pt --label TLE --count 2 --steps 4 \
	    --guidance 2 --out $$here/$$preset/synthetic_TLE
	done

clean:
	rm -rf runs/demo runs/smoke data/demo data/smoke fid_results/demo* fid_results/smoke*
