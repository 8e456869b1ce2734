"""Registration with torch.library: one schema, one fake and one autograd formula an op, whatever implementation runs.

A dispatch key holds one kernel, and reference and C++ share the CPU, Triton and CUDA the GPU. So every schema ends in
``str impl``, and the one registered function looks the kernel up by that name; the choice is then readable in compiled
graphs and in profiles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves

LIBRARY = torch.library.Library("gencore", "FRAGMENT")


def define(
    schema: str,
    kernels: Mapping[str, Callable[..., Any]],
    fake: Callable[..., Any],
    *,
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Register ``gencore::<schema>`` and return the function that calls it.

    Args:
        schema: without the namespace; its last argument is ``str impl``. Nothing is modified in place.
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
    formula = None
    if backward is not None and setup_context is not None:
        if not _DIRECT:
            torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=LIBRARY)
            return op
        formula = _register_autograd_directly(name, op, kernel, setup_context, backward)
    return _shortcut(op, kernel, formula) if _DIRECT else op


# torch.library.register_autograd costs a call of ten arguments 45 us, most of it in looking up defaults that our
# schemas do not have; the same registration by hand costs 10. A torch without the names that it needs gets the
# library's.
_NEEDED = (
    "_AutoDispatchBelowAutograd",
    "_after_autograd_keyset",
    "_any_requires_grad",
    "_get_tracing_state",
    "_len_torch_dispatch_stack",
    "_len_torch_function_stack",
)
_DIRECT = all(hasattr(torch._C, name) for name in _NEEDED)


def _register_autograd_directly(
    name: str,
    op: Any,
    kernel: Callable[..., Any],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
) -> Callable[..., Any]:
    """Registers the formula and returns it: ``formula(keyset, *args)``, with None for the keyset to run ``kernel``."""
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
            if keyset is None:
                with below_autograd():
                    output = kernel(*args)
            else:  # an outer level of torch.func records what happens in here, as it does below PyTorch's own formulas
                with below_autograd(), torch.enable_grad():
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
    # The dispatcher has sorted out the levels of torch.func before it comes here: Function.apply would do so again.
    apply = super(torch.autograd.Function, Function).apply

    def formula(keyset: Any, *args: Any) -> Any:
        flat, lengths = arguments.flat(args)
        result_lengths: list[int] = []
        output = apply(keyset, lengths, result_lengths, *flat)
        if not results.places:
            return output
        nested = results.nested(output, result_lengths)
        return nested[0] if single else tuple(nested)

    def autograd_kernel(keyset: Any, *args: Any) -> Any:
        if forward_ad._current_level >= 0:
            _refuse_tangents(name, tree_leaves(args))
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            with enable_single_level_autograd_function():
                return formula(keyset, *args)
        with below_autograd():
            return op.redispatch(keyset & after_autograd, *args)

    LIBRARY.impl(name, autograd_kernel, "Autograd", with_keyset=True)
    return formula


def _refuse_tangents(name: str, args: Sequence[Any]) -> None:
    if any(isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None for x in args):
        raise NotImplementedError(
            f"gencore::{name}: forward-mode differentiation is not offered, and an argument has a tangent; "
            "use reverse mode, or impl='auto' or 'reference'"
        )


# --- the way around the dispatcher -----------------------------------------------------------------------------------

_PLAIN = frozenset(
    {Tensor, torch.nn.Parameter, torch.Generator, torch.Size, list, tuple, str, bool, int, float, type(None)}
)


def _shortcut(op: Any, kernel: Callable[..., Any], formula: Callable[..., Any] | None) -> Callable[..., Any]:
    """``op``, but without the dispatcher (12 us of a call, twice into Python and back) where nobody could tell."""
    below_autograd, any_requires_grad = torch._C._AutoDispatchBelowAutograd, torch._C._any_requires_grad

    lists = [i for i, x in enumerate(op._schema.arguments) if str(x.type) == "List[Tensor]"]

    def call(*args: Any) -> Any:
        if is_watched() or not _PLAIN.issuperset(map(type, args)):
            return op(*args)
        if not all(_PLAIN.issuperset(map(type, args[i])) for i in lists):
            return op(*args)
        if formula is not None and torch.is_grad_enabled() and any_requires_grad(*args):
            return formula(None, *args)
        with below_autograd():
            return kernel(*args)

    return call


_VMAP = torch._C._dispatch_key_parse("VmapMode")


def is_watched() -> bool:
    """Whether a compiler, a mode, torch.func, a tracer, forward-mode differentiation or a profiler is at work."""
    if torch.compiler.is_compiling():
        return True
    c = torch._C
    return bool(
        c._len_torch_dispatch_stack()
        or c._len_torch_function_stack()
        or c._functorch.peek_interpreter_stack() is not None
        or c._get_tracing_state() is not None
        or forward_ad._current_level >= 0
        or c._autograd._profiler_enabled()
        or c._dispatch_tls_is_dispatch_key_included(_VMAP)  # torch.autograd's own, of is_grads_batched
    )


def is_recorded(*tensors: Tensor | None) -> bool:
    """Whether anything wants to know how a result came from ``tensors``: autograd, torch.func, forward mode."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return True
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


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


def triton_kernel(module: str, name: str) -> Callable[[], Callable[..., Any]]:
    """Looks ``name`` up in ``gencore.kernels.<module>`` when called, so that only those who use Triton import it."""
    return lambda: getattr(import_module(f"gencore.kernels.{module}"), name)


def differentiate(
    function: Callable[..., Sequence[Tensor] | Tensor],
    inputs: Sequence[Tensor | None],
    grad_outputs: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Vector-Jacobian product of a plain PyTorch ``function`` at ``inputs``, by recomputation.

    This is how the backward ops get their own derivative: from the reference formula of the backward, which PyTorch
    differentiates. The result is itself differentiable when a graph is being created.
    """
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return _differentiate_in_transform(function, inputs, grad_outputs)
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = [_leaf(x, create_graph) for x in inputs]
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


def _leaf(x: Tensor | None, create_graph: bool) -> Tensor | None:
    """``x`` for :func:`differentiate`, with its history where the result is to be differentiated again. As an alias:
    one input may have been made from another, and what flows through there is not the function's own derivative."""
    if x is None or not (create_graph and x.requires_grad):
        return x if x is None else x.detach().requires_grad_()
    return x.view_as(x)


def _differentiate_in_transform(
    function: Callable[..., Sequence[Tensor] | Tensor],
    inputs: Sequence[Tensor | None],
    grad_outputs: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """:func:`differentiate` by a level of torch.func's own: detaching would cut off the levels around it."""
    given = [i for i, x in enumerate(inputs) if x is not None]

    def results(*values: Tensor) -> tuple[Tensor, ...]:
        full = list(inputs)
        for i, value in zip(given, values, strict=True):
            full[i] = value
        outputs = function(*full)
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        return tuple(out for out, grad in zip(outputs, grad_outputs, strict=True) if grad is not None)

    grads: list[Tensor | None] = [None] * len(inputs)
    wanted = tuple(grad for grad in grad_outputs if grad is not None)
    if given and wanted:
        pullback = torch.func.vjp(results, *(inputs[i] for i in given))[1]
        for i, grad in zip(given, pullback(wanted), strict=True):
            grads[i] = grad
    return grads
