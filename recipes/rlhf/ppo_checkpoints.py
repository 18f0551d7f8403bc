"""Saving and resuming of PPO: the policy as `from_pretrained` opens it, and beside it all that goes on from there.

The rollout in use is part of a checkpoint, so that a run killed between two optimizer steps ends as if undisturbed.
"""

import os
import time
from collections import defaultdict

import torch
from torch import nn
from transformers import Trainer

from recipes.core.errors import UserError
from recipes.rlhf.ppo_values import VALUE_ADAPTER, ValueHead
from recipes.rlhf.trunk import part_of, train_adapters

STATE_NAME = "ppo_state.pt"
VALUE_FOLDER = "value_model"


class PPOCheckpoints(Trainer):
    """The part of `PPOTrainer` that writes and reads its checkpoints."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        self._is_checkpoint = _internal_call
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """The policy, which `from_pretrained` opens; in a checkpoint also the value model, in a folder of its own."""
        both, output_dir = self.accelerator.unwrap_model(self.model), output_dir or self.args.output_dir
        state_dict = both.state_dict() if state_dict is None else state_dict
        wrapped, self.model = self.model, both.policy
        # of the policy's adapters only its own is the model; a checkpoint keeps the value's too, rewards are as they were
        others = set(getattr(both.policy, "peft_config", {})) - {getattr(both.policy, "active_adapter", None)}
        left_out = {
            name: both.policy.peft_config.pop(name)
            for name in others
            if name != VALUE_ADAPTER or not self._is_checkpoint
        }
        try:
            super()._save(output_dir, part_of(state_dict, "policy."))
        finally:
            self.model = wrapped
            if left_out:
                both.policy.peft_config.update(left_out)
        if self._is_checkpoint and self.args.should_save and state_dict:
            both.value.save(os.path.join(output_dir, VALUE_FOLDER), part_of(state_dict, "value."))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:  # FSDP writes and reads the whole module in a format of its own
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        policy = self.model.policy
        super()._load_from_checkpoint(resume_from_checkpoint, policy)
        if isinstance(self.model.value, ValueHead) and self.model.value.adapter:
            train_adapters(policy, [policy.active_adapter, self.model.value.adapter])  # the library trains one only
        folder = os.path.join(resume_from_checkpoint, VALUE_FOLDER)
        if isinstance(self.model.value, ValueHead):
            self.model.value.load(folder)
        else:
            super()._load_from_checkpoint(folder, self.model.value.model)

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            return super()._load_best_model()
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _rollout_shape(self) -> dict[str, int]:
        """What the optimizer steps of a run are counted by."""
        options = {name: getattr(self.args, name) for name in ("num_mini_batches", "num_ppo_epochs")}
        return {"prompts per rollout": self.rollout_size, **options}

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            in_use = self.state.global_step % self.args.steps_per_rollout > 0
            state = {"rollout": self._rollout if in_use else {}, "rollout_metrics": self._rollout_metrics}
            state |= {"stats": self._rollout_stats, "metrics": dict(self._metrics), "kl_coef": self.kl_coef}
            state |= {"stopped": self.stopped, "steps_taken": self._steps_taken, "score_moments": self.score_moments}
            state["shape"] = self._rollout_shape()
            os.makedirs(output_dir, exist_ok=True)
            torch.save(state, os.path.join(output_dir, STATE_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = os.path.join(checkpoint, STATE_NAME)
        if not os.path.isfile(path):
            raise UserError(f"{checkpoint} holds no {STATE_NAME}: it is not a checkpoint of PPOTrainer")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["shape"] != self._rollout_shape():
            raise UserError(
                f"{checkpoint} was saved with {state['shape']} and now it is {self._rollout_shape()}: resume with the "
                "options it was saved with"
            )
        self._rollout = {name: tensor.to(self.args.device) for name, tensor in state["rollout"].items()}
        self._rollout_stats = state["stats"].to(self.args.device)
        self._rollout_metrics, self.kl_coef = state["rollout_metrics"], state["kl_coef"]
        self.stopped, self._steps_taken = state["stopped"], state["steps_taken"]
        self.score_moments = state["score_moments"].to(self.args.device)
        self._metrics = defaultdict(list, state["metrics"])
        self._rollout_start = time.monotonic()
