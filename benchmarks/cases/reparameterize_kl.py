"""``reparameterize_kl`` beside what most VAEs are written with: exp, randn_like and a KL divergence of four terms."""

from __future__ import annotations

import torch

from benchmarks.case import Call, Case, Cost, Inputs, Maker, Outputs, Problem


class ReparameterizeKl(Case):
    op = "reparameterize_kl"
    differentiable = ("mu", "logvar")
    random_outputs = (0,)
    problems = (
        Problem("128x64", {"rows": 128, "columns": 64}),
        Problem("1024x512", {"rows": 1024, "columns": 512}, quick=True),
        Problem("8192x4096", {"rows": 8192, "columns": 4096}),
    )

    def inputs(self, problem: Problem, make: Maker) -> Inputs:
        shape = problem["rows"], problem["columns"]
        return {"mu": make.normal(*shape), "logvar": make.normal(*shape, scale=0.5)}

    def arguments(self, problem: Problem, inputs: Inputs) -> Call:
        return (inputs["mu"], inputs["logvar"]), {}

    def eager(self, problem: Problem, inputs: Inputs) -> Outputs:
        mu, logvar = inputs["mu"], inputs["logvar"]
        z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
        kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp(), dim=1)
        return z, kl

    def cost(self, problem: Problem, mode: str, itemsize: int) -> Cost:
        numel = problem["rows"] * problem["columns"]
        # Forward: mu, logvar -> z. Backward: grad_z, mu, logvar -> grad_mu, grad_logvar. The noise is arithmetic, but
        # what it costs depends on the generator, so only the formula itself is counted (exp as one operation).
        matrices, operations = (3, 10) if mode == "forward" else (8, 20)
        return Cost(flops=operations * numel, bytes=matrices * numel * itemsize)


CASE = ReparameterizeKl()
