# One command each; `make` prints them. Set-up is a step of every target and does nothing the second time.

PYTHON  ?= python3
VENV    ?= .venv
VARIANT ?= quickstart
CONFIG  ?= quickstart
LAUNCH  ?=
SEED    ?=
RUNS    ?= runs
ARGS    ?=

# VENV= (empty) takes PYTHON, the active environment, as it is and installs nothing.
RUN     := $(if $(VENV),$(VENV)/bin/python,$(PYTHON))
READY   := $(if $(VENV),$(VENV)/.ready)
RECIPES := $(RUN) -m recipes

.DEFAULT_GOAL := help
.PHONY: look-again help setup rlhf rlhf-seeds forms methods parity sft rm ppo dpo kto rloo grpo recipe list validate results verify chat lint format test clean

help: ## these lines
	@awk -F ':.*## ' '/^[a-z -]+:.*## / { printf "  make %-22s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# ------------------------------------------------------------------------------------------------------------ set-up
setup: $(READY) ## create .venv and install what is needed (PYTHON=, VENV= point elsewhere)

$(VENV)/.ready: requirements.txt
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

# ---------------------------------------------------------------------------------------- the main job, stage by stage
# A stage is looked at again when its config, a module of its family or a stage before it changed, and remade if that is one
# of its own. Stages without a config named VARIANT are left out: a set of configs may start from a model that exists.
result = $(RUNS)/$(1)/$(VARIANT)/result.json
exists = $(wildcard configs/$(1)/$(VARIANT).yaml)

EMBEDDED := $(if $(filter quickstart,$(VARIANT)),$(wildcard recipes/embedded/*.py))

# A variant on data that have to be brought into form first has a script for that.
DATA    := $(if $(wildcard scripts/prepare_$(VARIANT).py),runs/data/$(VARIANT))
$(DATA): | $(READY)
	$(RUN) -m scripts.prepare_$(VARIANT) --output_dir $@

ifneq ($(and $(LAUNCH),$(filter rlhf rlhf-seeds forms methods,$(MAKECMDGOALS))),)
$(error LAUNCH is for one recipe, such as make sft: several stages run as their configs say)
endif

# Settings on the command line are no files: with them every stage is looked at.
CHANGED := $(if $(strip $(SEED)$(ARGS)),look-again)
look-again:

define stage # name, stages before it
ifneq ($(call exists,$(1)),)
PIPELINE += $(call result,$(1))
$(call result,$(1)): $(CHANGED) $(call exists,$(1)) $(wildcard $(dir recipes/$(1))*.py) $(EMBEDDED) $(foreach before,$(2),$(if $(call exists,$(before)),$(call result,$(before)))) | $(READY) $(DATA)
	$(RECIPES) run $(1)/$(VARIANT) --runs_dir $(RUNS) --overwrite changed $(if $(SEED),--seed $(SEED)) $(ARGS)
endif
endef

$(eval $(call stage,tokenization/train,))
$(eval $(call stage,pretraining/causal,tokenization/train))
$(eval $(call stage,finetuning/sft,pretraining/causal))
$(eval $(call stage,rlhf/judge,))
$(eval $(call stage,rlhf/reward,finetuning/sft))
$(eval $(call stage,rlhf/ppo,finetuning/sft rlhf/reward))
$(eval $(call stage,rlhf/evaluate,pretraining/causal finetuning/sft rlhf/judge rlhf/reward rlhf/ppo))

rlhf: $(PIPELINE) | $(READY) ## tokenizer, base, SFT, reward model, PPO, report (VARIANT=name for another set of configs)
	@test -n "$(PIPELINE)" || { echo "error: no config is named '$(VARIANT)' in configs/*/*/" >&2; exit 2; }
	$(RUN) -m scripts.report --variant $(VARIANT) --runs_dir $(RUNS)

rlhf-seeds: | $(READY) ## the main job three times, with seeds 0, 1, 2, and one table of all three
	$(foreach seed,0 1 2,$(MAKE) rlhf VARIANT=$(VARIANT) SEED=$(seed) RUNS=$(RUNS)/seed-$(seed) &&) true
	$(RUN) -m scripts.report --variant $(VARIANT) --runs_dir $(foreach seed,0 1 2,$(RUNS)/seed-$(seed)) --output_dir $(RUNS)/rlhf-seeds

FORMS = $(patsubst configs/rlhf/ppo/$(VARIANT)-%.yaml,%,$(wildcard configs/rlhf/ppo/$(VARIANT)-*.yaml))
forms: rlhf-seeds ## PPO's forms on the same three seeds, and one table of them
	$(foreach seed,0 1 2,$(foreach form,$(FORMS),$(RECIPES) run rlhf/ppo/$(VARIANT)-$(form) --runs_dir $(RUNS)/seed-$(seed) --seed $(seed) --overwrite changed $(ARGS) &&) $(RECIPES) run rlhf/evaluate/$(VARIANT)-forms --runs_dir $(RUNS)/seed-$(seed) --seed $(seed) --overwrite changed &&) true
	$(RUN) -m scripts.report --variant $(VARIANT)-forms --runs_dir $(foreach seed,0 1 2,$(RUNS)/seed-$(seed)) --output_dir $(RUNS)/$(VARIANT)-forms-seeds

methods: rlhf ## DPO, KTO, RLOO and GRPO too, and one comparison of all of them with PPO
	$(foreach method,dpo kto rloo grpo,$(RECIPES) run rlhf/$(method)/$(VARIANT) --runs_dir $(RUNS) --overwrite changed $(if $(SEED),--seed $(SEED)) $(ARGS) &&) true
	$(RECIPES) run rlhf/evaluate/$(VARIANT)-methods --runs_dir $(RUNS) --overwrite changed $(if $(SEED),--seed $(SEED))
	$(RUN) -m scripts.report --variant $(VARIANT)-methods --runs_dir $(RUNS) --output_dir $(RUNS)/rlhf-methods

# ------------------------------------------------------------------------------------------------------- single runs
launch = $(RECIPES) run $(if $(findstring /,$(CONFIG)),$(CONFIG),$(1)/$(CONFIG)) $(if $(LAUNCH),--launch $(LAUNCH)) $(ARGS)

sft: | $(READY) ## supervised fine-tuning (CONFIG=name LAUNCH=profile ARGS="--key value")
	$(call launch,finetuning/sft)
rm: | $(READY) ## reward model (as sft)
	$(call launch,rlhf/reward)
ppo dpo kto rloo grpo: | $(READY) ## one of these methods (as sft)
	$(call launch,rlhf/$@)
recipe: | $(READY) ## any config: CONFIG=family/recipe/variant
	$(call launch,)
chat: | $(READY) ## talk to a model: MODEL=runs/rlhf/ppo/quickstart
	$(RUN) -m scripts.chat $(MODEL) $(ARGS)

# ------------------------------------------------------------------------------------------------------------ checks
list: | $(READY) ## every recipe and config
	@$(RECIPES) list
validate: | $(READY) ## parse every config, build its arguments, load no weights
	$(RECIPES) validate
lint: | $(READY) ## style
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
format: | $(READY) ## put the style right
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .
QUICKSTARTS = $(patsubst configs/%.yaml,%,$(wildcard configs/*/*/quickstart*.yaml))
results: rlhf ## run every quickstart that changed, publish them to results/
	$(foreach config,$(QUICKSTARTS),$(RECIPES) run $(config) --with_inputs --runs_dir $(RUNS) --overwrite changed &&) true
	$(RECIPES) results --runs_dir $(RUNS)
test: | $(READY) ## all tests that take seconds
	HF_HUB_OFFLINE=1 $(RUN) -m pytest -m "not slow" --numprocesses logical --maxprocesses 8 --dist loadgroup $(ARGS)
parity: | $(READY) ## one training job under every strategy, and how far its losses are from one process's
	$(RUN) -m scripts.parity --output_dir $(RUNS)/parity
verify: rlhf ## the tests that take minutes, and the committed results against a new run
	HF_HUB_OFFLINE=1 $(RUN) -m pytest -m slow $(ARGS)
	$(RECIPES) results --runs_dir $(RUNS) --check
clean: ## remove all runs
	rm -rf $(RUNS)
