"""Every backend against the slow twin; what auto chooses and why."""

from __future__ import annotations

import pytest
import torch

from sft_dist.core.errors import UserError
from sft_dist.model import attention, backends
from sft_dist.model.attention import Needs

CU = torch.tensor([0, 3, 4, 11], dtype=torch.int32)


def qkv(heads: int = 4, kv: int = 2) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    return tuple(torch.randn(1, n, 11, 8, generator=g, requires_grad=True) for n in (heads, kv, kv))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sliding_window": 3},
        {"softcap": 2.0},
        {"s_aux": torch.tensor([0.5, -1.0, 2.0, 0.0])},
        {"sliding_window": 2, "softcap": 5.0},
    ],
)
def test_per_document_equals_the_dense_twin(options: dict[str, object]) -> None:
    outs, grads = [], []
    for attend in (backends.sdpa_dense, backends.sdpa_per_doc):
        q, k, v = qkv()
        out, _ = attend(None, q, k, v, None, scaling=0.3, cu_seq_lens_q=CU, **options)
        (out * torch.arange(out.numel()).view(out.shape)).sum().backward()
        outs.append(out)
        grads.append(torch.cat([x.grad.flatten() for x in (q, k, v)]))
    assert outs[0].shape == (1, 11, 4, 8)
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-4)


def test_the_dense_twin_by_eye() -> None:
    """Equal scores: each token is the mean of its document's values so far."""
    q = k = torch.zeros(1, 1, 4, 1)
    v = torch.tensor([1.0, 3.0, 10.0, 20.0]).view(1, 1, 4, 1)
    cu = torch.tensor([0, 2, 4], dtype=torch.int32)
    assert backends.sdpa_dense(None, q, k, v, scaling=1.0, cu_seq_lens_q=cu)[0].flatten().tolist() == [
        1.0,
        2.0,
        10.0,
        15.0,
    ]
    assert backends.sdpa_dense(None, q, k, v, scaling=1.0, cu_seq_lens_q=cu, sliding_window=1)[
        0
    ].flatten().tolist() == [1.0, 3.0, 10.0, 20.0]


@pytest.mark.parametrize("name", sorted(backends.BACKENDS))
def test_no_backend_guesses_document_borders(name: str) -> None:
    q, k, v = qkv()
    with pytest.raises((UserError, ImportError), match="documents would see one another|flash_attn"):
        backends.BACKENDS[name].attend(None, q, k, v, None, scaling=0.3)


@pytest.mark.parametrize("name", sorted(backends.BACKENDS))
def test_a_mask_of_the_model_itself_is_never_dropped(name: str) -> None:
    q, k, v = qkv()
    with pytest.raises((UserError, ImportError), match="a mask or a bias of its own|flash_attn"):
        backends.BACKENDS[name].attend(
            None, q, k, v, torch.zeros(1, 1, 11, 11), scaling=0.3, cu_seq_lens_q=CU
        )


GPU = Needs(head_dim=64, dtype=torch.bfloat16, device="cuda")
CPU = Needs(head_dim=64, dtype=torch.float32, device="cpu")


def test_auto_on_cpu_is_per_document_and_says_why() -> None:
    name, reason = attention.choose_backend("auto", [CPU])
    assert name == "sdpa_per_doc"
    assert "flash: it needs a CUDA device" in reason


@pytest.mark.parametrize(
    ("needs", "flash_attn", "expected"),
    [
        (GPU, True, "flash"),
        (GPU, False, "varlen"),
        (GPU._replace(softcap=True), True, "flash"),
        (GPU._replace(softcap=True), False, "flex"),
        (GPU._replace(sinks=True), True, "flex"),
        (GPU._replace(dtype=torch.float32), True, "flex"),
        (GPU._replace(head_dim=512), True, "flex"),
        (GPU._replace(head_dim=192, value_dim=128), True, "flex"),
        (GPU._replace(head_dim=128, value_dim=128), False, "varlen"),
    ],
)
def test_auto_on_a_gpu_takes_the_fastest_that_is_right(
    monkeypatch: pytest.MonkeyPatch, needs: Needs, flash_attn: bool, expected: str
) -> None:
    found = backends.importlib.util.find_spec
    monkeypatch.setattr(
        backends.importlib.util, "find_spec", lambda n: flash_attn or None if n == "flash_attn" else found(n)
    )
    assert attention.choose_backend("auto", [needs])[0] == expected


def test_a_named_backend_that_is_wrong_is_refused() -> None:
    with pytest.raises(
        UserError, match="model.attention=flash cannot run here: it needs a CUDA device.*model.attention=auto"
    ):
        attention.choose_backend("flash", [CPU])
    assert attention.choose_backend("sdpa_dense", [CPU]) == ("sdpa_dense", "as configured")


def test_one_model_may_need_several_backends() -> None:
    """Gemma 4: heads of 256 in sliding layers, of 512 in the others."""
    kinds = [GPU._replace(head_dim=256, sliding_window=True), GPU._replace(head_dim=512)]
    assert attention.choose_backend("auto", kinds)[0].endswith("varlen+flex")
    with pytest.raises(UserError, match="model.attention=varlen cannot run here: head size 512"):
        attention.choose_backend("varlen", kinds)


@pytest.mark.parametrize(
    ("name", "value"), [("position_bias", torch.zeros(1)), ("is_causal", False), ("soft_cap", 3.0)]
)
def test_an_unknown_keyword_is_an_error(name: str, value: object) -> None:
    from transformers import AttentionInterface

    attention.register()
    attend = AttentionInterface()[attention.registered_name("auto")]
    q, k, v = qkv()
    with pytest.raises(UserError, match=f"asks attention for {name}"):
        attend(torch.nn.Linear(1, 1), q, k, v, None, scaling=0.3, cu_seq_lens_q=CU, **{name: value})
    out, _ = attend(torch.nn.Linear(1, 1), q, k, v, None, scaling=0.3, cu_seq_lens_q=CU, dropout=0.0)
    torch.testing.assert_close(out, backends.sdpa_per_doc(None, q, k, v, scaling=0.3, cu_seq_lens_q=CU)[0])


def test_a_named_backend_refuses_what_it_would_drop() -> None:
    from transformers import AttentionInterface

    attention.register()
    q, k, v = qkv()
    attend = AttentionInterface()[attention.registered_name("varlen")]
    with pytest.raises(UserError, match="model.attention=varlen cannot run here"):
        attend(torch.nn.Linear(1, 1), q, k, v, None, scaling=0.3, cu_seq_lens_q=CU, s_aux=torch.zeros(4))


def test_chunks_are_more_borders() -> None:
    assert attention.chunk_borders(torch.tensor([0, 3, 4, 11]), 2).tolist() == [0, 2, 3, 4, 6, 8, 10, 11]


@pytest.mark.parametrize("window", [None, 1, 3, 130, 200])
@pytest.mark.parametrize(
    "ends", [[1], [128], [300], [256, 512], [1, 2, 3, 130, 131, 400, 640], [5, 127, 128, 129, 700]]
)
def test_blocks_of_flex_are_those_that_torch_finds(ends: list[int], window: int | None) -> None:
    from torch.nn.attention.flex_attention import create_block_mask

    cu = torch.tensor([0, *ends], dtype=torch.int32)
    ours = backends.block_mask(cu, ends[-1], window)
    theirs = create_block_mask(ours.mask_mod, None, None, ends[-1], ends[-1], device="cpu")
    assert ours.shape == theirs.shape
    for kind in ("kv", "full_kv", "q", "full_q"):
        counts = [getattr(m, f"{kind}_num_blocks")[0, 0] for m in (ours, theirs)]
        places = [getattr(m, f"{kind}_indices")[0, 0] for m in (ours, theirs)]
        assert torch.equal(*counts)
        for n, a, b in zip(counts[0].tolist(), *places, strict=True):
            assert a[:n].tolist() == b[:n].tolist()


@pytest.mark.parametrize("window", [None, 3])
def test_flex_counts_sinks_as_the_twin_does(monkeypatch: pytest.MonkeyPatch, window: int | None) -> None:
    """The forward pass, uncompiled: its backward pass needs a CUDA device."""
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(backends, "_compiled_flex", lambda: flex_attention)
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, n, 450, 16, generator=g) for n in (4, 2, 2))
    cu = torch.tensor([0, 30, 31, 128, 450], dtype=torch.int32)
    options = {
        "scaling": 0.3,
        "cu_seq_lens_q": cu,
        "sliding_window": window,
        "s_aux": torch.tensor([0.5, -1.0, 2.0, 0.0]),
    }
    with torch.no_grad():
        ours, reference = (
            attend(None, q, k, v, **options)[0] for attend in (backends.flex, backends.sdpa_dense)
        )
    torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("version", ["2.11", "2.12"])
@pytest.mark.parametrize("kv", [2, 4])
def test_varlen_calls_torch_as_each_version_wants(
    monkeypatch: pytest.MonkeyPatch, version: str, kv: int
) -> None:
    """torch 2.11 has no `enable_gqa`; from 2.12 on fewer key-value heads without it are refused."""

    def attend(q, k, v, cu, max_q, *, scale, window_size, enable_gqa):  # type: ignore[no-untyped-def]
        assert window_size == (-1, 0)
        assert k.size(1) == q.size(1) or enable_gqa
        out = backends.sdpa_dense(
            None, *(x.transpose(0, 1)[None] for x in (q, k, v)), scaling=scale, cu_seq_lens_q=cu
        )
        return out[0][0]

    def old(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)):  # type: ignore[no-untyped-def]
        return attend(q, k, v, cu_seq_q, max_q, scale=scale, window_size=window_size, enable_gqa=True)

    def new(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):  # type: ignore[no-untyped-def]
        return attend(q, k, v, cu_seq_q, max_q, scale=scale, window_size=window_size, enable_gqa=enable_gqa)

    there = {"2.11": old, "2.12": new}[version]
    monkeypatch.setattr(backends, "varlen_attn", there)
    monkeypatch.setattr(backends, "FEWER_HEADS", backends.fewer_heads(there))
    q, k, v = qkv(kv=kv)
    options = {"scaling": 0.3, "cu_seq_lens_q": CU, "max_length_q": 7}
    ours, reference = (f(None, q, k, v, None, **options)[0] for f in (backends.varlen, backends.sdpa_dense))
    torch.testing.assert_close(ours, reference)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["varlen", "flash", "flex", "sdpa_per_doc"])
def test_gpu_backends_equal_the_twin(name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    g = torch.Generator("cuda").manual_seed(0)
    q, k, v = (
        torch.randn(1, n, 128, 64, generator=g, device="cuda", dtype=torch.bfloat16) for n in (8, 2, 2)
    )
    cu = torch.tensor([0, 30, 31, 128], dtype=torch.int32, device="cuda")
    reference = backends.sdpa_dense(None, q.float(), k.float(), v.float(), scaling=0.125, cu_seq_lens_q=cu)[0]
    out = backends.BACKENDS[name].attend(
        None, q, k, v, None, scaling=0.125, cu_seq_lens_q=cu, max_length_q=97
    )[0]
    assert float((out.float() - reference).norm() / reference.norm()) < 1e-2


@pytest.mark.gpu
def test_flex_gradients_of_sinks_equal_the_twin() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    cu = torch.tensor([0, 30, 31, 128], dtype=torch.int32, device="cuda")
    grads = []
    for attend in (backends.flex, backends.sdpa_dense):
        g = torch.Generator("cuda").manual_seed(0)
        q, k, v = (
            torch.randn(1, n, 128, 64, generator=g, device="cuda", requires_grad=True) for n in (8, 2, 2)
        )
        sinks = torch.randn(8, generator=g, device="cuda", requires_grad=True)
        out = attend(None, q, k, v, scaling=0.125, cu_seq_lens_q=cu, s_aux=sinks)[0]
        (out * torch.linspace(-1, 1, out.numel(), device="cuda").view(out.shape)).sum().backward()
        grads.append([x.grad for x in (q, k, v, sinks)])
    for ours, reference in zip(*grads, strict=True):
        assert float((ours - reference).norm() / reference.norm()) < 1e-2
