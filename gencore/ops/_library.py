"""Registration with torch.library: one schema, one fake and one autograd formula an op, whatever implementation runs.

A dispatch key holds one kernel, and reference and C++ share the CPU, Triton and CUDA the GPU. So every schema ends in
``str impl``, and the one registered function looks the kernel up by that name; the choice is then readable in compiled
graphs and in profiles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

LIBRARY = torch.library.Library("gencore", "FRAGMENT")


def define(
    schema: str,
    kernels: Mapping[str, Callable[..., Any]],
    fake: Callable[..., Any],
    *,
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Register ``gencore::<schema>`` and return the callable op.

    Args:
        schema: without the namespace; its last argument is ``str impl``.
        kernels: from an implementation's name to the function that takes all arguments but ``impl``.
        fake: the shapes, dtypes and strides of the results (all arguments, ``impl`` included).
        setup_context, backward: the autograd formula, as for :func:`torch.library.register_autograd`.
    """
    name = schema.partition("(")[0]
    qualified = f"gencore::{name}"

    def kernel(*args: Any) -> Any:
        return kernels[args[-1]](*args[:-1])

    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides))
    LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, fake, lib=LIBRARY)
    op = getattr(torch.ops.gencore, name).default
    if backward is not None and setup_context is not None:
        if _DIRECT_AUTOGRAD:
            _register_autograd_directly(name, op, setup_context, backward)
        else:
            torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=LIBRARY)
    return op


# torch.library.register_autograd costs a call of ten arguments 45 us, most of it in looking up defaults that our
# schemas do not have; the same registration by hand costs 10. A torch without the names that it needs gets the
# library's.
_NEEDED = ("_AutoDispatchBelowAutograd", "_after_autograd_keyset", "_any_requires_grad")
_DIRECT_AUTOGRAD = all(hasattr(torch._C, name) for name in _NEEDED)


def _register_autograd_directly(
    name: str, op: Any, setup_context: Callable[..., None], backward: Callable[..., Any]
) -> None:
    below_autograd = torch._C._AutoDispatchBelowAutograd
    after_autograd = torch._C._after_autograd_keyset
    arguments, results = (
        _Lists([i for i, x in enumerate(values) if str(x.type) == "List[Tensor]"])
        for values in (op._schema.arguments, op._schema.returns)
    )
    single = len(op._schema.returns) == 1

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, keyset: Any, lengths: Any, result_lengths: list[int], *flat: Any) -> Any:
            args = arguments.nested(flat, lengths)
            with below_autograd():
                output = op.redispatch(keyset & after_autograd, *args)
            setup_context(ctx, args, output)
            flat_output, ctx.result_lengths = results.flat((output,) if single else output)
            result_lengths += ctx.result_lengths
            return flat_output[0] if single and not results.places else tuple(flat_output)

        @staticmethod
        def backward(ctx: Any, *flat: Any) -> Any:
            grads = backward(ctx, *results.nested(flat, ctx.result_lengths))
            return None, None, None, *arguments.flat(grads)[0]

    Function.__name__ = f"{name}_autograd"  # what grad_fn shows

    def autograd_kernel(keyset: Any, *args: Any) -> Any:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            flat, lengths = arguments.flat(args)
            result_lengths: list[int] = []
            output = Function.apply(keyset, lengths, result_lengths, *flat)
            if not results.places:
                return output
            nested = results.nested(output, result_lengths)
            return nested[0] if single else tuple(nested)
        with below_autograd():
            return op.redispatch(keyset & after_autograd, *args)

    LIBRARY.impl(name, autograd_kernel, "Autograd", with_keyset=True)


class _Lists:
    """An autograd function does not see into lists of tensors: it gets what they hold, one after another."""

    def __init__(self, places: Sequence[int]) -> None:
        self.places = places

    def flat(self, values: Sequence[Any]) -> tuple[Sequence[Any], list[int]]:
        """The values with the lists at ``places`` taken apart, and the lengths of these."""
        if not self.places:
            return values, []
        flat: list[Any] = []
        for i, value in enumerate(values):
            if i in self.places:
                flat += value
            else:
                flat.append(value)
        return flat, [len(values[i]) for i in self.places]

    def nested(self, flat: Sequence[Any], lengths: Sequence[int]) -> Sequence[Any]:
        """The inverse of :meth:`flat`."""
        if not self.places:
            return flat
        values: list[Any] = []
        rest = iter(flat)
        for place, length in zip(self.places, lengths, strict=True):
            values += islice(rest, place - len(values))
            values.append(list(islice(rest, length)))
        return [*values, *rest]


def differentiate(
    function: Callable[..., Sequence[Tensor] | Tensor],
    inputs: Sequence[Tensor | None],
    grad_outputs: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Vector-Jacobian product of a plain PyTorch ``function`` at ``inputs``, by recomputation.

    This is how the backward ops get their own derivative: from the reference formula of the backward, which PyTorch
    differentiates. The result is itself differentiable when a graph is being created.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = [x if x is None or (create_graph and x.requires_grad) else x.detach().requires_grad_() for x in inputs]
        outputs = function(*leaves)
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        pairs = [
            (out, grad)
            for out, grad in zip(outputs, grad_outputs, strict=True)
            if grad is not None and isinstance(out, Tensor) and out.requires_grad
        ]
        wanted = [x for x in leaves if x is not None]
        if not pairs or not wanted:
            return [None] * len(leaves)
        grads = iter(
            torch.autograd.grad(
                [out for out, _ in pairs],
                wanted,
                [grad for _, grad in pairs],
                create_graph=create_graph,
                allow_unused=True,
            )
        )
    return [None if x is None else next(grads) for x in leaves]
