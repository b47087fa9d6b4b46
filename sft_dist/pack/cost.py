"""The FLOP model of a decoder-only transformer, shared by balance, MFU and the estimator.

Numbers count one multiply and one add as two FLOPs. Attention is causal inside each document, so a document of l
tokens has l^2/2 (query, key) pairs; over a row only the sum of squared document lengths matters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Count = TypeVar("Count", float, NDArray[np.float64])

# Matrix products of a backward pass cost twice the forward (gradients of input and of weight).
BACKWARD = 2.0
# Fused attention recomputes the scores in backward: five products where forward has two.
ATTENTION_BACKWARD_DONE = 2.5


@dataclass(frozen=True, kw_only=True, slots=True)
class CostModel:
    """Forward FLOPs by what they are proportional to.

    Attributes:
        linear_flops_per_token: Matrix products of all layers, a token.
        attention_flops_per_pair: Scores and weighted sum of all layers, a (query, key) pair.
        head_flops_per_target: The vocabulary projection, which runs over target tokens only.
    """

    linear_flops_per_token: float
    attention_flops_per_pair: float
    head_flops_per_target: float = 0.0

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
        """
        attention = hidden_size * (2 * attention_size + 2 * kv_size)
        feed_forward = mlp_matrices * hidden_size * intermediate_size * active_experts + hidden_size * experts
        return cls(
            linear_flops_per_token=2.0 * layers * (attention + feed_forward),
            attention_flops_per_pair=4.0 * layers * attention_size,
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
        return (1.0 + BACKWARD) * self.row_cost(tokens, squared_tokens, target_tokens)

    def hardware_flops(
        self, tokens: float, squared_tokens: float, target_tokens: float, *, gradient_checkpointing: bool
    ) -> float:
        """Return FLOPs that the device does: with recomputed attention scores and, if so, recomputed layers."""
        again = 1.0 if gradient_checkpointing else 0.0
        return (
            (1.0 + BACKWARD + again) * self.linear_flops_per_token * tokens
            + (1.0 + ATTENTION_BACKWARD_DONE + again) * self.attention_flops_per_pair * 0.5 * squared_tokens
            + (1.0 + BACKWARD) * self.head_flops_per_target * target_tokens
        )
