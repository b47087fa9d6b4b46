"""The fast path of layers with state: a layer sees the whole row, and its kernels are told where the documents begin.

In: a layer of transformers and a device. Out: its forward pass with the kernels of this table in the place of those that
transformers would call, or why there is none.

transformers reaches a kernel by a function of the model's own module, which runs torch code that refuses borders where the package
is missing, and silently drops keywords that the package does not know where it is there. No public hook hands borders to all of them:
most layers pass none. So the forward pass of a layer is run as it stands, in a namespace in which the names of these functions mean
the kernels themselves: one mechanism for every family, nothing of transformers is changed, and a keyword that a kernel does not
know is an error. Where a release calls them by other names, there is no fast path, and `tests/model/test_recurrent_kernels.py` says so.

Shapes: T tokens of the row, S documents, C channels, W width of a convolution.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FunctionType, MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sft_dist.core.errors import UserError
from sft_dist.model.attention import WITHOUT_EFFECT

# what a model hands down about the borders of the row; a layer that sees one document, or a kernel that is told by us, needs none
HANDED_DOWN = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"}


class Row:
    """Where the documents of a packed row lie."""

    def __init__(self, cu_S1: Tensor, tokens: int) -> None:
        self.cu_S1 = cu_S1
        self.tokens = tokens
        self._lengths: tuple[int, ...] | None = None
        self._index: Tensor | None = None

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each document; the host waits for the device, once a row."""
        if self._lengths is None:
            self._lengths = tuple(self.cu_S1.diff().tolist())
        return self._lengths

    @property
    def seq_idx(self) -> Tensor:
        """The document of each token, int32 [1, T]."""
        if self._index is None:
            token_T = torch.arange(self.tokens, device=self.cu_S1.device)
            self._index = torch.bucketize(token_T, self.cu_S1[1:], right=True, out_int32=True)[None]
        return self._index

    @property
    def cu_seqlens(self) -> Tensor:
        """Where each document begins, and the end, int32 [S + 1]: the same tensor for every layer, by which kernels cache."""
        return self.cu_S1


@dataclass(slots=True)
class Borders:
    """Where the documents of the current row lie; one object, shared by a model and its layers with state.

    Attributes:
        row: The current row.
        by_kernel: The layers that can call their kernels on the whole row do so; else each document alone.
        layers: Those layers.
    """

    row: Row | None = None
    by_kernel: bool = False
    layers: list[nn.Module] = field(default_factory=list)


class Source(NamedTuple):
    """A package that has a kernel.

    Attributes:
        module: Where the function lies.
        function: Its name there.
        borders: The argument that tells it where documents begin: an attribute of `Row`.
        install: What installs it.
        adapt: From the package's function to one with the arguments that transformers uses; None: they are the same.
        device: On which it runs.
    """

    module: str
    function: str
    borders: str
    install: str
    adapt: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None
    device: str = "cuda"


class Kernel(NamedTuple):
    """What transformers calls by the name of a kernel.

    Attributes:
        called: Names of the function in the modules of models.
        sources: Packages that have it and take borders, the first that serves; none: no such package is known.
        fused: It does the work of others and is handed bare weights. A layer goes on with the others where it returns None.
    """

    called: tuple[str, ...]
    sources: tuple[Source, ...] = ()
    fused: bool = False


class Found(NamedTuple):
    """A kernel that is there and takes borders."""

    call: Callable[..., Any]
    borders: str
    title: str


def channels_last(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Return a causal convolution over [1, C, T] for a kernel that takes `seq_idx` in memory of [1, T, C] only."""

    def convolve(
        x_1CT: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        activation: str | None = None,
        *,
        seq_idx: Tensor,
    ) -> Tensor:
        if x_1CT.stride(1) != 1:
            x_1CT = x_1CT.mT.contiguous().mT
        return kernel(x_1CT, weight, bias, activation=activation, seq_idx=seq_idx)  # type: ignore[no-any-return]

    return convolve


def tokens_first(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Return a causal convolution over [1, C, T] for a kernel over [1, T, C] that returns its last state too."""

    def convolve(
        x_1CT: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        activation: str | None = None,
        *,
        cu_seqlens: Tensor,
    ) -> Tensor:
        y_1TC, _ = kernel(x_1CT.mT, weight, bias, activation=activation, cu_seqlens=cu_seqlens)
        return y_1TC.mT  # type: ignore[no-any-return]

    return convolve


FLA = "pip install 'sft-dist[linear-attention]'"
CONVOLUTION = "pip install --no-build-isolation causal-conv1d"
MAMBA = "pip install --no-build-isolation causal-conv1d mamba-ssm"
SSD = "mamba_ssm.ops.triton.ssd_combined"

# the name of a kernel in the table of transformers -> where it comes from and how it is told of borders; one entry adds one
KERNELS: dict[str, Kernel] = {
    "chunk_gated_delta_rule": Kernel(
        ("chunk_gated_delta_rule", "torch_chunk_gated_delta_rule"),
        (Source("fla.ops.gated_delta_rule", "chunk_gated_delta_rule", "cu_seqlens", FLA),),
    ),
    "chunk_kda": Kernel(
        ("chunk_kda", "chunk_kimi_delta_attention"),
        (Source("fla.ops.kda", "chunk_kda", "cu_seqlens", FLA),),
    ),
    "causal_conv1d_fn": Kernel(
        ("causal_conv1d_fn",),
        (
            Source("causal_conv1d", "causal_conv1d_fn", "seq_idx", CONVOLUTION, channels_last),
            Source("fla.modules.causal_conv1d", "causal_conv1d", "cu_seqlens", FLA, tokens_first),
        ),
    ),
    "mamba_chunk_scan_combined": Kernel(
        ("mamba_chunk_scan_combined", "mamba2_chunk_scan"),
        (Source(SSD, "mamba_chunk_scan_combined", "seq_idx", MAMBA),),
    ),
    "mamba_split_conv1d_scan_combined": Kernel(
        ("mamba_split_conv1d_scan_combined", "mamba2_split_conv1d_scan_combined"),
        (Source(SSD, "mamba_split_conv1d_scan_combined", "seq_idx", MAMBA),),
        fused=True,
    ),
    "selective_scan_fn": Kernel(("selective_scan_fn", "mamba_selective_scan")),
    "mamba_inner_fn": Kernel(("mamba_inner_fn",), fused=True),
}


def find(name: str, device: str) -> Found | str:
    """Return a kernel that takes borders on a device, or why there is none."""
    sources = KERNELS[name].sources
    if not sources:
        return f"no package is known whose {name} takes the borders of documents"
    reasons = []
    for source in sources:
        package = source.module.partition(".")[0]
        if source.device != device:
            reasons.append(f"{name} of {package} needs a {source.device.upper()} device")
            continue
        try:
            function = getattr(importlib.import_module(source.module), source.function)
            parameters = inspect.signature(function).parameters
        except ImportError as error:
            absent = isinstance(error, ModuleNotFoundError) and error.name == package
            what = "is not installed" if absent else f"cannot be imported ({str(error).splitlines()[0]})"
            reasons.append(f"{package}, which has {name}, {what}: {source.install}")
        except Exception as error:  # noqa: BLE001  packages of kernels look for devices and compilers when they are imported
            reasons.append(
                f"{package}, which has {name}, cannot be imported ({type(error).__name__}: {error})"
            )
        else:
            if source.borders in parameters:
                call = source.adapt(function) if source.adapt else function
                return Found(call, source.borders, f"{source.function} of {package}")
            reasons.append(
                f"{source.function} of {package}{_version(package)} has no argument {source.borders}"
            )
    return ", or ".join(reversed(reasons))  # what is easiest to install is the last source


def _version(package: str) -> str:
    names = importlib.metadata.packages_distributions().get(package, [])
    return f" {importlib.metadata.version(names[0])}" if names else ""


def _own_forward(layer: nn.Module) -> FunctionType:
    forward = inspect.unwrap(type(layer).forward)
    assert isinstance(forward, FunctionType), f"{type(layer).__name__}.forward is a function"
    return forward


def _names(layer: nn.Module, kernels: tuple[str, ...]) -> dict[str, str]:
    """Return the kernels that a layer's forward pass calls -> the name by which it does."""
    forward = _own_forward(layer)
    used = set(forward.__code__.co_names) & forward.__globals__.keys()
    pairs = ((kernel, name) for kernel in kernels for name in KERNELS[kernel].called)
    return {kernel: name for kernel, name in pairs if name in used}


def missing(layer: nn.Module, kernels: tuple[str, ...], device: str) -> str:
    """Return why a layer has no fast path on a device; empty: it has.

    Args:
        layer: A module with state; one on the meta device will do.
        kernels: What a layer of its kind calls, by the names of `KERNELS`.
        device: cuda or cpu.
    """
    needed = [k for k in kernels if not KERNELS[k].fused]
    if not needed:
        return f"{type(layer).__name__} calls no kernel"
    names = _names(layer, kernels)
    if unseen := [k for k in needed if k not in names]:
        from transformers import __version__

        return f"{type(layer).__name__} of transformers {__version__} does not call {unseen[0]} by a name that is known here"
    reasons = [found for k in needed if isinstance(found := find(k, device), str)]
    return "; ".join(reasons)


def titles(kernels: tuple[str, ...], device: str) -> list[str]:
    """Return what the fast path calls, in words."""
    return [found.title for k in kernels if isinstance(found := find(k, device), Found)]


def by_document(layer: nn.Module, kernels: tuple[str, ...]) -> Callable[..., Any]:
    """Return the forward pass of a layer for one document: transformers' own, without fused kernels that pass adapters by."""
    if not kernels or not _is_adapted(layer):
        return layer.forward
    left_out = {name: _nothing for k, name in _names(layer, kernels).items() if KERNELS[k].fused}
    return MethodType(_with(layer, left_out), layer) if left_out else layer.forward


class WholeRows:
    """Makes the forward passes for whole rows of a model's layers: one function for equal layers, which compile once."""

    def __init__(self, device: str, borders: Borders) -> None:
        self.device = device
        self.borders = borders
        self._made: dict[tuple[type[nn.Module], bool], FunctionType] = {}

    def of(self, layer: nn.Module, kernels: tuple[str, ...]) -> Callable[..., Any]:
        """Return the forward pass of a layer of which `missing` has found nothing."""
        adapted = _is_adapted(layer)
        if (type(layer), adapted) not in self._made:
            means: dict[str, Callable[..., Any]] = {}
            for kernel, name in _names(layer, kernels).items():
                found = find(kernel, self.device)
                if KERNELS[kernel].fused and (isinstance(found, str) or adapted):
                    means[name] = _nothing
                else:
                    assert isinstance(found, Found), found
                    means[name] = _told(found, self.borders)
            self._made[type(layer), adapted] = _with(layer, means)
        return MethodType(self._made[type(layer), adapted], layer)


def _with(layer: nn.Module, means: dict[str, Callable[..., Any]]) -> FunctionType:
    """Return a layer's forward pass in which names of its module mean something else."""
    own = _own_forward(layer)
    code = (
        own.__code__.replace()
    )  # torch.compile keeps what it made with the code: none of it holds in another namespace
    forward = FunctionType(
        code, {**own.__globals__, **means}, own.__name__, own.__defaults__, own.__closure__
    )
    forward.__kwdefaults__ = own.__kwdefaults__
    forward.__annotations__ = own.__annotations__
    return forward


def _told(kernel: Found, borders: Borders) -> Callable[..., Any]:
    """Return a kernel that is told of the borders of the current row."""
    known = inspect.signature(kernel.call).parameters

    @torch.compiler.disable  # type: ignore[misc]
    def call(*positional: Any, **named: Any) -> Any:
        unknown = {n for n, x in named.items() if n not in known and x is not None}
        if unknown := unknown - WITHOUT_EFFECT - HANDED_DOWN:
            raise UserError(
                f"the model asks {kernel.title} for {', '.join(sorted(unknown))}, which it does not know and would leave undone; use "
                "model.recurrent=per_document"
            )
        assert borders.row is not None, "the borders of a row are set before its forward pass"
        given = {n: x for n, x in named.items() if n in known}
        return kernel.call(*positional, **given | {kernel.borders: getattr(borders.row, kernel.borders)})

    return call


def _nothing(*_: Any, **__: Any) -> None:
    """What a layer takes for a fused kernel that is not there."""


def _is_adapted(layer: nn.Module) -> bool:
    """Say whether a weight of a layer is not what a fused kernel would be handed: adapters, quantised weights."""
    return any(hasattr(m, "base_layer") for m in layer.modules()) or any(
        isinstance(m, nn.Linear) and type(m) is not nn.Linear for m in layer.modules()
    )
