"""A training step as the planner sees it: the models, what passes through them, and in what numbers."""

from dataclasses import dataclass, replace

import torch

from recipes.planner.activations import Activations, Numbers, of_layers, of_logits
from recipes.planner.architecture import Adapter, Architecture

# Bytes a weight of bitsandbytes' types, constants included: 4 bits, and a float32 for each block of 64; with double
# quantisation a byte for it, and a float32 for 256 of those (Dettmers et al. 2023, QLoRA, arXiv 2305.14314, section 3).
QUANTISED = {"4bit": 0.5 + 4 / 64, "4bit-double": 0.5 + 1 / 64 + 4 / (64 * 256), "8bit": 1 + 4 / 4096}

# Numbers that an optimizer keeps for each parameter, each as wide as the parameter; of the 8-bit ones a byte for each
# and a float32 for a block of 256 (Dettmers et al. 2022, arXiv 2110.02861). Adafactor's rows and columns are next to none.
STATES = {"adamw": 2, "ademamix": 3, "lion": 1, "rmsprop": 1, "adagrad": 1, "sgd": 0, "adafactor": 0}


def scorer(architecture: Architecture) -> int:
    """Parameters of a model of this architecture with one score in place of an output head."""
    head = 0 if architecture.tied else architecture.head
    return architecture.parameters - head + architecture.hidden


def optimizer_kind(name: str) -> str:
    """The key in `STATES` of a name of transformers' `optim`, or what would be one."""
    return name.removeprefix("paged_").partition("_")[0]


@dataclass(frozen=True)
class Role:
    """A model beside the trained ones that is only read: a reference, a reward model."""

    name: str
    parameters: int


@dataclass(frozen=True)
class Value:
    """PPO's value model: `form` is "separate" (a model of its own), "shared" (a head on the policy's trunk) or "adapter" (a
    head on the policy's base under an adapter of its own); `parameters` are those of the model, or of the head, and
    `embedding` how many of them embed tokens."""

    form: str
    parameters: int
    embedding: int = 0


@dataclass(frozen=True)
class Rollout:
    """What is sampled for a policy to learn from, on one process.

    `responses` in all, `together` at a time, each `prompt` + `length` tokens at most; `epochs` passes over them.
    `gathered_once`: weights that FSDP2 has put together for one token stay so for the others. `based`: the policy without
    its adapter is the reference, and passes over it once more.
    """

    prompt: int
    length: int
    responses: int
    together: int
    epochs: int
    gathered_once: bool = True
    based: bool = False

    @property
    def chunks(self) -> int:
        return -(-self.responses // self.together)


@dataclass(frozen=True)
class Workload:
    """One training config.

    Attributes:
        sequences: sequences in a micro-batch as the model sees them, so two for a pair; `pair` is 2 for such data.
        length: tokens in each, at most; `written` are those that a decoder writes when an encoder has read these.
        attention: "eager"; "flash", which needs no mask; or sdpa for rows that are "packed" or "padded", which has one.
        loss: how the loss is made from hidden states; see `activations.of_logits`.
        others, offloaded: models that are only read, and whether the host keeps the one that is not at work.
        sync_each_batch: whether gradients are reduced after every micro-batch (`accelerator_config`).
        tokens, steps: of the whole training, one of them or neither, where nobody knows.
        notes: what was assumed, in sentences.
    """

    name: str
    architecture: Architecture
    sequences: int
    length: int
    accumulation: int
    weights: torch.dtype
    bf16: bool
    checkpointing: bool
    attention: str
    optimizer: str
    pair: int = 1
    quantised: str | None = None
    adapter: Adapter | None = None
    loss: str = "full"
    value: Value | None = None
    others: tuple[Role, ...] = ()
    offloaded: bool = False
    rollout: Rollout | None = None
    sync_each_batch: bool = False
    written: int = 0
    tokens: int | None = None
    steps: int | None = None
    notes: tuple[str, ...] = ()

    # ------------------------------------------------------------------------------------------------ what is trained
    @property
    def head(self) -> int:
        """Parameters of the output head, which a reward model has a single row of."""
        return self.architecture.hidden if self.loss == "score" else self.architecture.head

    @property
    def parameters(self) -> int:
        """Parameters of the model."""
        return scorer(self.architecture) if self.loss == "score" else self.architecture.parameters

    @property
    def trained(self) -> int:
        """Parameters that are trained."""
        value = self.value.parameters if self.value else 0
        if self.adapter is None:
            return self.parameters + value
        adapters = 2 if self.value and self.value.form == "adapter" else 1
        return self.adapter.parameters(self.architecture) * adapters + value

    @property
    def trunks(self) -> int:
        """How often a micro-batch goes through decoder layers: twice where the value has its own trunk or adapter."""
        return 2 if self.value and self.value.form != "shared" else 1

    @property
    def frozen(self) -> int:
        """Parameters under an adapter, without those that bitsandbytes has quantised."""
        if self.adapter is None:
            return 0
        return self.parameters - (self.architecture.linear if self.quantised else 0)

    @property
    def quantised_bytes(self) -> float:
        """Of the weights that bitsandbytes has quantised."""
        return self.architecture.linear * QUANTISED[self.quantised] if self.quantised else 0.0

    @property
    def tokens_per_pass(self) -> int:
        """Tokens of one micro-batch on one process."""
        return self.sequences * (self.length + self.written)

    @property
    def steps_per_rollout(self) -> float:
        """Optimizer steps that one rollout serves."""
        return self.rollout.epochs * self.rollout.responses / (self.sequences * self.accumulation)

    @property
    def can_be_split(self) -> bool:
        """Whether its layers or matrices can be spread over processes: a plain language model's can."""
        plain = self.adapter is None and self.rollout is None and not self.others
        return plain and self.loss in ("full", "tiles")

    def optimizer_bytes(self, width: int) -> float:
        """Of the optimizer's states for each parameter of `width` bytes."""
        return STATES[optimizer_kind(self.optimizer)] * (1 + 4 / 256 if "8bit" in self.optimizer else width)

    @property
    def optimizer_temporary(self) -> bool:
        """Whether a step of the optimizer makes a copy of one state, as torch's unfused AdamW does on GPUs."""
        return self.optimizer == "adamw_torch"

    # ----------------------------------------------------------------------------------------------- what is computed
    def numbers(self, sharding: str) -> Numbers:
        """In what numbers a process computes: DeepSpeed and FSDP2 cast the weights, the others leave them to autocast."""
        casts = sharding.startswith("zero") or sharding == "fsdp2"
        weights = torch.bfloat16 if casts and self.bf16 else self.weights
        return Numbers(weights, self.bf16 and not sharding.startswith("zero"), self.kernel)

    @property
    def kernel(self) -> str:
        """The attention in the words of `Numbers`: a row that is alone in its batch has no padding to mask."""
        if self.attention == "padded" and self.sequences == 1:
            return "flash"
        return self.attention if self.attention in ("eager", "flash") else "sdpa"

    def activations(self, sharding: str, tensor: int = 1) -> Activations:
        """Of one micro-batch in one trunk, with the layers' matrices split over `tensor` processes."""
        architecture = self.architecture.split(tensor) if tensor > 1 else self.architecture
        adapter, numbers = self.adapter, self.numbers(sharding)
        if adapter is not None and numbers.weights == torch.bfloat16 and sharding != "ddp":
            adapter = replace(adapter, in_float32=False)  # cast like all else
        return of_layers(architecture, numbers, self.sequences, self.length, adapter, self.written)

    def logits(self, sharding: str, on_cpus: bool = False) -> int:
        """Bytes at the peak of head and loss."""
        sizes = (self.architecture.vocabulary, self.architecture.hidden, self.numbers(sharding))
        loss = "torch tiles" if self.loss == "tiles" and on_cpus else self.loss
        return of_logits(*sizes, self.sequences * (self.written or self.length), loss, trained=self.adapter is None)

    def cache_bytes(self, width: int) -> int:
        """Of keys and values while responses are sampled: two numbers for each token, layer, key-value head and channel."""
        model, rollout = self.architecture, self.rollout
        numbers = 2 * model.layers * model.key_value_heads * model.head_size
        return rollout.together * (rollout.prompt + rollout.length) * numbers * width

    def changed(self, **values: object) -> "Workload":
        return replace(self, **values)
