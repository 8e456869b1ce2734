"""Both ways of registering an op's autograd give the same op."""

from __future__ import annotations

import pytest
import torch

from gencore.ops import _library


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "register_autograd"])
def test_define(direct, monkeypatch):
    monkeypatch.setattr(_library, "_DIRECT", direct)
    name = f"test_square_{'direct' if direct else 'library'}"

    def save(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    op = _library.define(
        f"{name}(Tensor x, float scale, str impl) -> Tensor",
        {"cpu": lambda x, scale: x * x * scale},
        lambda x, scale, impl: torch.empty_like(x),
        setup_context=save,
        backward=lambda ctx, grad: (6.0 * grad * ctx.saved_tensors[0], None, None),
    )
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: op(x, 3.0, "cpu"), (x,))
    assert torch.autograd.gradgradcheck(lambda x: op(x, 3.0, "cpu"), (x,))
    assert not op(x.detach(), 3.0, "cpu").requires_grad
    with torch.no_grad():
        assert not op(x, 3.0, "cpu").requires_grad
    torch.library.opcheck(getattr(torch.ops.gencore, name).default, (x, 3.0, "cpu"))
