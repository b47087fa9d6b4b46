"""The FLOP model of a decoder-only transformer, shared by balance, MFU and the estimator.

Numbers count one multiply and one add as two FLOPs. Attention is causal inside each document, so a document of l
tokens has l^2/2 (query, key) pairs; over a row only the sum of squared document lengths matters. A layer with state costs the
same for every token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sft_dist.pack.architecture import Mixers

Count = TypeVar("Count", float, NDArray[np.float64])

# Matrix products of a backward pass cost twice the forward: the gradient of the input, and that of the weight (or of the
# other factor, in attention). A frozen weight needs the first only; what lies below everything trained needs neither.
BACKWARD = 2.0
# Fused attention recomputes the scores in backward: five products where forward has two.
ATTENTION_BACKWARD_DONE = 2.5


@dataclass(frozen=True, kw_only=True, slots=True)
class CostModel:
    """Forward FLOPs by what they are proportional to, and what a backward pass costs over the forward.

    Attributes:
        linear_flops_per_token: Matrix products of all layers, and recurrences, a token.
        attention_flops_per_pair: Scores and weighted sum of all layers that attend, a (query, key) pair.
        head_flops_per_target: The vocabulary projection, which runs over target tokens only.
        linear_backward: Backward over forward of the layers' matrix products; 2 where all weights are trained.
        attention_backward: The same of scores and weighted sum.
        head_backward: The same of the vocabulary projection.
    """

    linear_flops_per_token: float
    attention_flops_per_pair: float
    head_flops_per_target: float = 0.0
    linear_backward: float = BACKWARD
    attention_backward: float = BACKWARD
    head_backward: float = BACKWARD

    @classmethod
    def of_shape(
        cls,
        *,
        hidden_size: int,
        layers: int,
        attention_size: int,
        kv_size: int,
        intermediate_size: int,
        vocab_size: int,
        mlp_matrices: int = 3,
        active_experts: int = 1,
        experts: int = 0,
        shared_size: int = 0,
        mixers: Mixers | None = None,
        dense_layers: int = 0,
        dense_size: int = 0,
        latent: tuple[int, int] | None = None,
    ) -> CostModel:
        """Derive the model from a transformer's shape.

        Args:
            hidden_size: Width of the residual stream.
            layers: Transformer blocks.
            attention_size: Query heads x head size.
            kv_size: Key-value heads x head size.
            intermediate_size: Width of the feed-forward layer, of one expert where there are several.
            vocab_size: Rows of the output embedding.
            mlp_matrices: 3 for gated feed-forward layers (SwiGLU, GeGLU), 2 for plain ones.
            active_experts: Experts that one token passes, shared ones included; 1 for dense models.
            experts: Experts that the router chooses from; 0 for dense models.
            shared_size: Width that every token passes beside its experts.
            mixers: What the layers mix tokens with; None: all of them attend.
            dense_layers: Feed-forward layers without experts, in a mixture of experts.
            dense_size: Their width.
            latent: Of latent attention: elements of a layer's matrices, and widths of queries and values together.
        """
        mixers = mixers or Mixers(attending=layers, keeping=0, feeding=layers)
        attention, both = latent or (hidden_size * (2 * attention_size + 2 * kv_size), 2 * attention_size)
        width = intermediate_size * active_experts + shared_size
        feed_forward = mlp_matrices * hidden_size * width + hidden_size * experts
        sparse = mixers.feeding - dense_layers
        fed = sparse * feed_forward + dense_layers * mlp_matrices * hidden_size * dense_size
        return cls(
            linear_flops_per_token=2.0 * (mixers.attending * attention + fed)
            + mixers.keeping * (2.0 * mixers.state_weights + mixers.state_flops),
            attention_flops_per_pair=2.0 * mixers.attending * both,
            head_flops_per_target=2.0 * hidden_size * vocab_size,
        )

    def row_cost(self, tokens: Count, squared_tokens: Count, target_tokens: Count | float = 0.0) -> Count:
        """Return forward FLOPs, of one row or element by element of many.

        Args:
            tokens: Tokens.
            squared_tokens: Sum of squared document lengths.
            target_tokens: Tokens that carry loss.
        """
        return (
            self.linear_flops_per_token * tokens
            + self.attention_flops_per_pair * 0.5 * squared_tokens
            + self.head_flops_per_target * target_tokens
        )

    def useful_flops(self, tokens: float, squared_tokens: float, target_tokens: float) -> float:
        """Return FLOPs of forward and backward that the mathematics needs: the numerator of MFU."""
        return (
            (1.0 + self.linear_backward) * self.linear_flops_per_token * tokens
            + (1.0 + self.attention_backward) * self.attention_flops_per_pair * 0.5 * squared_tokens
            + (1.0 + self.head_backward) * self.head_flops_per_target * target_tokens
        )

    def on_device(self, *, recomputed: bool) -> CostModel:
        """Return what a device spends, forward and backward together, as a model of its own: for balance, by `row_cost`.

        Args:
            recomputed: Layers are run again in the backward pass (gradient checkpointing); the vocabulary projection is not.
        """
        again = 1.0 if recomputed else 0.0
        scores = ATTENTION_BACKWARD_DONE if self.attention_backward else 0.0
        return replace(
            self,
            linear_flops_per_token=(1.0 + self.linear_backward + again) * self.linear_flops_per_token,
            attention_flops_per_pair=(1.0 + scores + again) * self.attention_flops_per_pair,
            head_flops_per_target=(1.0 + self.head_backward) * self.head_flops_per_target,
        )
