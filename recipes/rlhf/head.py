"""Log-probabilities of tokens straight from hidden states, without holding the logits of a large vocabulary."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from recipes.rlhf import ppo_math
from recipes.rlhf.packing import rounded

BLOCK_BYTES = 2**27  # of float32 logits; what fits in one block is kept for the backward pass, else it is made again
CACHED_NUMBERS = 2**19  # float32 numbers that a CPU's caches hold


def head_logprobs(
    head: nn.Module, hidden: Tensor, tokens: Tensor, temperature: float, with_entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """log softmax(head(hidden) / temperature) at `tokens`, and where asked the entropy: float32 [N] each.

    Takes hidden states [N, H] and tokens [N]. A plain linear head, V tokens wide, is applied block by block and its
    gradient worked out by hand: of logits [N, V] no more than one block is ever held. Any other head (under an adapter,
    quantised, sharded by ZeRO-3) is called as it is.
    """
    if type(head) is nn.Linear and head.weight.shape == (head.out_features, head.in_features):
        more = rounded(len(tokens)) - len(tokens)
        hidden, filled = pad(hidden, (0, 0, 0, more)), pad(tokens, (0, more))
        logprobs, entropy = _HeadLogprobs.apply(hidden, head.weight, head.bias, filled, temperature, with_entropy)
        return logprobs[: len(tokens)], entropy[: len(tokens)] if with_entropy else None
    return logprobs_of(head(hidden), tokens, temperature, with_entropy)


def logprobs_of(
    logits: Tensor, tokens: Tensor, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """As `head_logprobs`, from logits [N, V] that are there already."""
    logits = logits.float() / temperature
    return ppo_math.token_logprobs(logits, tokens), ppo_math.token_entropy(logits) if with_entropy else None


class _HeadLogprobs(torch.autograd.Function):
    """With z the logits, p their softmax, a the token: d log p_a / dz = 1_a - p and dH / dz = -p (log p + H).

    Products of matrices run over a whole block; what is done number by number runs over few rows at a time, so that they
    stay in the processor's cache from one operation to the next.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, tokens, temperature, with_entropy):
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        ctx.temperature, ctx.dtypes, ctx.kept = temperature, (hidden.dtype, weight.dtype), None
        states, weight = (hidden / temperature).to(dtype), weight.to(dtype)  # N x H numbers to divide, not N x V
        bias = None if bias is None else (bias / temperature).to(dtype)
        ctx.block = max(1, BLOCK_BYTES // (4 * len(weight)))
        ctx.rows = max(1, CACHED_NUMBERS // len(weight)) if device == "cpu" else ctx.block
        logprobs, entropies = [], []
        with torch.autocast(device, enabled=False):
            for block, chosen in zip(states.split(ctx.block), tokens.split(ctx.block), strict=True):
                raw = linear(block, weight, bias)
                for logits, token in zip(raw.split(ctx.rows), chosen.split(ctx.rows), strict=True):
                    every = logits.log_softmax(dim=-1, dtype=torch.float32)
                    logprobs.append(every.gather(-1, token.unsqueeze(-1)).squeeze(-1))
                    if with_entropy:
                        entropies.append(-every.exp().mul_(every).sum(dim=-1))
        if len(states) <= ctx.block and any(ctx.needs_input_grad):
            ctx.kept = raw
        logprobs, entropy = torch.cat(logprobs), torch.cat(entropies) if with_entropy else None
        ctx.save_for_backward(states, weight, bias, tokens, logprobs, entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx, grad_logprobs, grad_entropy):
        states, weight, bias, tokens, logprobs, entropy = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        needs_entropy = entropy is not None
        grad_states, grad_weight, grad_bias = [], None, None
        with torch.autocast(states.device.type, enabled=False):
            for start in range(0, len(states), ctx.block):
                block = slice(start, start + ctx.block)
                raw = ctx.kept if ctx.kept is not None else linear(states[block], weight, bias)
                factor = -torch.ones_like(grad_logprobs[block]) if needs_entropy else -grad_logprobs[block]
                for first in range(0, len(raw), ctx.rows):  # the gradient takes the place of the logits
                    rows = slice(start + first, min(start + first + ctx.rows, start + len(raw)))
                    logits, token = raw[first : first + ctx.rows], tokens[rows].unsqueeze(-1)
                    if needs_entropy:
                        every, slope = (
                            logits.log_softmax(dim=-1, dtype=torch.float32),
                            grad_logprobs[rows].unsqueeze(-1),
                        )
                        slopes = slope + grad_entropy[rows].unsqueeze(-1) * (every + entropy[rows].unsqueeze(-1))
                        logits.copy_(every.exp_().mul_(slopes).scatter_add_(1, token, -slope))
                    else:  # p - 1_a; what a whole row is multiplied by waits for products that are narrower
                        logits.copy_(logits.softmax(dim=-1))
                        logits.scatter_(1, token, torch.expm1(logprobs[rows]).to(logits.dtype).unsqueeze(-1))
                if needs_hidden:
                    grad_states.append((raw @ weight) * factor.unsqueeze(-1))
                if needs_weight:
                    part = (raw.T @ (states[block] * factor.unsqueeze(-1)).to(raw.dtype)).to(ctx.dtypes[1])
                    grad_weight = part if grad_weight is None else grad_weight.add_(part)
                if needs_bias:
                    part = (raw.T @ factor.to(raw.dtype)).to(ctx.dtypes[1]) / ctx.temperature
                    grad_bias = part if grad_bias is None else grad_bias.add_(part)
        ctx.kept = None
        grad_hidden = torch.cat(grad_states).to(ctx.dtypes[0]) / ctx.temperature if needs_hidden else None
        return grad_hidden, grad_weight, grad_bias, None, None, None
