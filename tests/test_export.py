"""Models leave for other runtimes: ``torch.jit.trace``, ``torch.export``, and graphs of PyTorch's own ops for ONNX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gencore

Pick = Callable[[Any], tuple[nn.Module, tuple[Tensor, ...]]]
CASES: dict[str, tuple[str, Pick]] = {
    "dcgan": ("dcgan_32", lambda m: (m.generator, (torch.randn(2, m.config.latent),))),
    "vae": ("vae_32", lambda m: (m, (torch.rand(2, 1, 32, 32),))),
    "gan3d": ("gan3d_32", lambda m: (m.generator, (torch.rand(1, m.config.latent),))),
    "sngan": ("sngan_32", lambda m: (m.discriminator, (torch.randn(2, 3, 32, 32),))),
    "biggan": ("biggan_32", lambda m: (m.generator, (torch.randn(2, m.config.latent), torch.tensor([1, 2])))),
    "stylegan2": ("stylegan2_32", lambda m: (m.generator, (torch.randn(2, 512),))),
    "stylegan2 discriminator": ("stylegan2_32", lambda m: (m.discriminator, (torch.randn(4, 3, 32, 32),))),
}


@pytest.mark.parametrize("case", CASES)
def test_a_model_is_traced_and_exported(case: str) -> None:
    name, pick = CASES[case]
    net, inputs = pick(gencore.create_model(name).eval())

    def result(network: Callable[..., Any]) -> Tensor:
        torch.manual_seed(0)  # noise and codes
        y = network(*inputs)
        return y[0] if isinstance(y, (tuple, list)) else y

    with torch.no_grad():
        wanted = result(net)
        close = {"rtol": 1e-4, "atol": 1e-5 * float(wanted.abs().max())}
        torch.testing.assert_close(result(torch.export.export(net, inputs).module()), wanted, **close)
        torch.testing.assert_close(result(torch.jit.trace(net, inputs, check_trace=False)), wanted, **close)
        with gencore.backend("reference"):
            exported = torch.export.export(net, inputs)
        torch.testing.assert_close(result(exported.module()), wanted, **close)
    # What an exporter to ONNX cannot translate: ops of gencore's own, random numbers with a generator.
    called = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert not {target for target in called if "gencore" in target or "generator" in target}
