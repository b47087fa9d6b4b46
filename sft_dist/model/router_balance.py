"""The load-balance loss of a mixture of experts, over the global batch.

In: the model, a coefficient, the micro-batches of a step. Out: a term of each micro-batch's loss, and the load of each router.

With c_le the tokens of the whole step that layer l gave to expert e, p_le the sum of the router's probabilities over its N tokens,
and L layers of E experts, the term is

    coefficient * mean_l E * sum_e (c_le / N) * (p_le / N)

(arXiv 2101.03961 for one layer). It is taken over the global batch (arXiv 2501.11873): over a micro-batch it would push the few
documents there to use all experts alike. Counts have no gradient, so they have to be known before the first backward pass: one
pass of all micro-batches without gradients, or, where a step has one micro-batch, one reduction between its forward and backward
pass. Padding counts nowhere. As each rank's part is multiplied by the number of ranks and gradients are averaged over them (see
model/loss.py), the term is the same for any number of ranks, micro-batches and packing.

Shapes: T tokens of the micro-batch, L layers with a router, E experts, K experts of each token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sft_dist.core.errors import UserError
from sft_dist.model.parts import decoder_of


def own_coefficient(hf: Any) -> float | None:
    """Return the coefficient that the model's own config names; None for a model without routers that a loss balances."""
    found = getattr(hf.config.get_text_config(), "router_aux_loss_coef", None)
    return None if found is None or _router_of(hf)[0] is None else float(found)


class RouterBalance:
    """Watches the routers of a model, and weighs what they do.

    Attributes:
        names: Of the layers' routers, in order.
    """

    def __init__(self, hf: Any, coefficient: float) -> None:
        """Watch the routers of `hf`.

        Raises:
            UserError: For a model whose routers are not balanced by a loss.
        """
        text = hf.config.get_text_config()
        kind, self._index = _router_of(hf)
        routers = {
            n: m for n, m in decoder_of(hf).named_modules() if kind is not None and isinstance(m, kind)
        }
        if not routers or not hasattr(text, "router_aux_loss_coef"):
            raise UserError(
                f"loss.router_balance is set, and {text.model_type} has no routers that a loss balances (its config knows no "
                "router_aux_loss_coef), so it would do nothing; use loss.router_balance=null"
            )
        self.names = tuple(routers)
        self._coefficient = coefficient
        self._top = int(getattr(text, "num_experts_per_tok", 0))
        self._seen: list[list[tuple[Tensor, Tensor]]] | None = (
            None  # of each layer, while a forward pass runs
        )
        self._counts_LE: Tensor | None = None  # int64 sums of this step
        self._factors_LE: Tensor | None = None  # what each probability of this step weighs
        self._weight = 0.0
        self._reduced = False
        self._once = False
        self.real = 0  # tokens of the current micro-batch before its padding
        for place, router in enumerate(routers.values()):
            router.register_forward_hook(partial(self._watch, place))

    def begin_step(self, count: Callable[[Any], object], batches: Sequence[Any], weight: float) -> None:
        """Make ready for the micro-batches of a step. Collective.

        Args:
            count: Runs one micro-batch forward, without gradients.
            batches: Of this step.
            weight: What the loss sum is divided by, so the term is multiplied by it.
        """
        self._counts_LE = self._factors_LE = None
        self._weight, self._reduced = weight, False
        self._once = len(batches) == 1
        if self._coefficient and not self._once:
            for batch in batches:
                count(batch)
            self._settle()

    def watch(self) -> None:
        """Begin a forward pass in training."""
        self._seen = [[] for _ in self.names]

    def term(self) -> Tensor | float:
        """End a forward pass; return what is added to its loss sum."""
        assert self._seen is not None
        seen, self._seen = self._seen, None
        logits = [torch.cat([x.reshape(-1, x.size(-1)) for x, _ in layer])[: self.real] for layer in seen]
        chosen = [torch.cat([k.reshape(-1, k.size(-1)) for _, k in layer])[: self.real] for layer in seen]
        if not self._reduced:
            E = logits[0].size(-1)
            counts_LE = torch.stack([torch.bincount(k.flatten(), minlength=E) for k in chosen])
            self._counts_LE = counts_LE if self._counts_LE is None else self._counts_LE + counts_LE
        if not self._coefficient or not torch.is_grad_enabled():
            return 0.0
        if self._once and not self._reduced:
            self._settle()
        assert self._factors_LE is not None
        probabilities_LE = torch.stack([x.float().softmax(-1).sum(0) for x in logits])
        return (self._factors_LE * probabilities_LE).sum()

    def loads(self) -> dict[str, float]:
        """Return of each layer the tokens of its busiest expert over the mean; 1 is balanced. Collective, once a step."""
        if not self._reduced:
            self._settle()
        assert self._counts_LE is not None
        worst_L = self._counts_LE.amax(1) * self._counts_LE.size(1) / self._counts_LE.sum(1).clamp(min=1)
        return dict(zip(self.names, worst_L.tolist(), strict=True))

    def _settle(self) -> None:
        """Add up the counts of all ranks, and say what each probability of this step weighs."""
        assert self._counts_LE is not None
        dist.all_reduce(self._counts_LE)
        self._reduced = True
        L, E = self._counts_LE.shape
        tokens_L1 = self._counts_LE.sum(1, keepdim=True).double() / self._top
        factors_LE = self._counts_LE * (self._coefficient * E / L) / tokens_L1.clamp(min=1).square()
        self._factors_LE = (factors_LE * self._weight).float()

    def _watch(self, place: int, _router: nn.Module, _inputs: Any, outputs: Any) -> None:
        if self._seen is None:  # a layer is computed again, or this is no training
            return
        parts = outputs if isinstance(outputs, tuple) else (outputs,)
        logits = parts[self._index]
        chosen = next((x for x in parts if isinstance(x, Tensor) and x.dtype == torch.int64), None)
        if chosen is None:  # only scores come out, by which the greatest logits win
            chosen = logits.topk(self._top, dim=-1).indices
        self._top = chosen.size(-1)
        self._seen[place].append((logits, chosen.detach()))


def _router_of(hf: nn.Module) -> tuple[type[nn.Module] | None, int]:
    """Return the class of a model's routers and where in their output the logits lie, as transformers records them."""
    for records in _records(hf):
        recorder: Any = records.get("router_logits")
        if recorder is not None:
            return getattr(recorder, "target_class", recorder), getattr(recorder, "index", 0)
    return None, 0


def _records(hf: nn.Module) -> Iterator[Mapping[str, Any]]:
    for module in decoder_of(hf), hf, *hf.modules():
        yield getattr(module, "_can_record_outputs", None) or {}
