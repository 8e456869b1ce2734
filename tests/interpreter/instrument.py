"""Makes Triton's interpreter trustworthy: what it computes wrongly is mended or refused, what it lets pass is caught.

* It keeps bfloat16 as 16-bit integers. Conversions from float32 truncate; here they round to nearest even, as hardware
  does. Arithmetic on it would be done on the integers; here it is refused, as the kernels compute in float32 only.
* It reads and writes whatever an address points at, one program after another. :class:`MemoryCheck` reports lanes that
  leave the tensors of the launch, and bytes that one program writes and another one touches: on a GPU nothing orders
  the programs of a launch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

Builder = interpreter.InterpreterBuilder
Handle = interpreter.TensorHandle


class KernelError(AssertionError):
    """A kernel did what would be undefined on a GPU, or what the interpreter cannot model."""


# --- speed -----------------------------------------------------------------------------------------------------------


def skip_unread_checks() -> None:
    """Integer operations without their check for overflow, which is computed, in 64 bits, and then read in Triton's
    debug mode alone. It takes more than half of the time, as these are the offsets."""
    builder = interpreter.interpreter_builder
    assert not builder.options.debug, "in debug mode the checks are read"
    builder.options = replace(builder.options, sanitize_overflow=False)


# --- bfloat16 --------------------------------------------------------------------------------------------------------


def repair_bfloat16() -> None:
    """Patch the interpreter, for the rest of the process."""
    convert = Builder.cast_impl

    def cast(self: Any, source: Any, target: Any) -> Any:
        if target.scalar == tl.bfloat16 and source.dtype.scalar != tl.bfloat16:
            rounded = torch.from_numpy(np.array(source.data, np.float32)).to(torch.bfloat16)
            return Handle(rounded.view(torch.uint16).numpy(), tl.bfloat16)
        return convert(self, source, target)

    convert_rounding = Builder.create_fp_to_fp

    def cast_rounding(self: Any, source: Any, target: Any, mode: Any) -> Any:
        nearest = mode is None or mode == interpreter._ir.ROUNDING_MODE.RTNE
        if target.scalar == tl.bfloat16 and nearest:
            return cast(self, source, target)
        return convert_rounding(self, source, target, mode)

    Builder.cast_impl = cast
    Builder.create_fp_to_fp = cast_rounding
    multiply = Builder.create_dot

    def multiply_wide(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return multiply(
            self, _widened(a), _widened(b), *rest
        )  # the products of tensor cores are exact, the sums float32

    Builder.create_dot = multiply_wide
    for name in ("binary_op", "unary_op", "create_fma"):
        setattr(Builder, name, _refuse_bfloat16(name, getattr(Builder, name)))
    for cls in (interpreter.ReduceOps, interpreter.ScanOps):
        cls.apply_impl = _refuse_bfloat16(cls.__name__, cls.apply_impl)


def _widened(handle: Any) -> Any:
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    wide = torch.from_numpy(np.array(handle.data)).view(torch.bfloat16).float()
    return Handle(wide.numpy(), tl.float32)


def _refuse_bfloat16(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def checked(self: Any, *args: Any) -> Any:
        for arg in args[0] if args and isinstance(args[0], tuple) else args:
            if getattr(getattr(arg, "dtype", None), "scalar", None) == tl.bfloat16:
                raise KernelError(f"{name} on bfloat16: kernels convert to float32 first")
        return function(self, *args)

    return checked


# --- memory ----------------------------------------------------------------------------------------------------------

_NOBODY = -1
_SEVERAL = np.iinfo(np.int32).max


class _Region:
    """The bytes of one tensor, and which programs of this launch have read and written each."""

    def __init__(self, tensor: torch.Tensor) -> None:
        extent = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        self.start = tensor.data_ptr()
        self.size = extent * tensor.element_size() if tensor.numel() else 0
        self.reader = np.full(self.size, _NOBODY, np.int32)
        self.writer = np.full(self.size, _NOBODY, np.int32)


class MemoryCheck:
    """Watches every load and store of the launches inside :func:`checked_memory`.

    ``launches`` lists (kernel's name, bytes loaded, bytes stored, programs), in order.
    """

    def __init__(self) -> None:
        self.launches: list[list[Any]] = []
        self._regions: list[_Region] = []

    def begin(self, name: str, arguments: list[Any]) -> None:
        tensors = {x.data_ptr(): x for x in _flat(arguments) if isinstance(x, torch.Tensor)}
        self._regions = [_Region(x) for x in tensors.values()]
        self.launches.append([name, 0, 0, 0])

    def access(self, program: int, kind: str, pointers: Any, mask: Any) -> None:
        width = pointers.get_element_ty().primitive_bitwidth // 8
        active = np.broadcast_to(mask.data, pointers.data.shape).astype(bool)
        addresses = pointers.data[active].astype(np.int64).reshape(-1)
        launch = self.launches[-1]
        launch[1 if kind == "loads" else 2] += addresses.size * width
        launch[3] = max(launch[3], program + 1)
        where = f"{launch[0]}, program {program}"
        if (addresses % width).any():
            raise KernelError(f"{where} {kind} a misaligned address")
        inside = np.zeros(addresses.shape, bool)
        for region in self._regions:
            own = (addresses >= region.start) & (addresses + width <= region.start + region.size)
            inside |= own
            if own.any():
                first = addresses[own] - region.start
                self._touch(region, (first[:, None] + np.arange(width)).reshape(-1), program, kind, where)
        if not inside.all():
            raise KernelError(f"{where} {kind} out of bounds in {int((~inside).sum())} of {inside.size} lanes")

    @staticmethod
    def _touch(region: _Region, offsets: np.ndarray, program: int, kind: str, where: str) -> None:
        writer, reader = region.writer[offsets], region.reader[offsets]
        others_wrote = (writer != _NOBODY) & (writer != program)
        if others_wrote.any():
            raise KernelError(f"{where} {kind} what program {writer[others_wrote][0]} of the same launch stored")
        if kind == "loads":
            region.reader[offsets] = np.where((reader == _NOBODY) | (reader == program), program, _SEVERAL)
            return
        if ((reader != _NOBODY) & (reader != program)).any():
            raise KernelError(f"{where} stores what another program of the same launch loads")
        if np.unique(offsets).size != offsets.size:
            raise KernelError(f"{where} stores one address from two lanes")
        region.writer[offsets] = program


def _flat(arguments: Iterable[Any]) -> Iterator[Any]:
    """What tuples among the arguments hold counts as if it stood by itself."""
    for x in arguments:
        if isinstance(x, tuple):
            yield from _flat(x)
        else:
            yield x


@contextmanager
def checked_memory() -> Iterator[MemoryCheck]:
    """Within the block, interpreted kernels that misuse memory raise :class:`KernelError`."""
    check = MemoryCheck()
    executor = interpreter.GridExecutor
    saved = (Builder.create_masked_load, Builder.create_masked_store, executor._init_args_hst)
    load, store, prepare = saved

    def number(builder: Any) -> int:
        (x, y, z), (_, ny, nz) = builder.grid_idx, builder.grid_dim
        return int((x * ny + y) * nz + z)

    def checked_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        check.access(number(self), "loads", pointers, mask)
        return load(self, pointers, mask, *rest)

    def checked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        check.access(number(self), "stores", pointers, mask)
        return store(self, pointers, value, mask, *rest)

    def checked_prepare(self: Any, args: Any, kwargs: Any) -> Any:
        host_args, host_kwargs = prepare(self, args, kwargs)
        check.begin(self.fn.__name__, [*host_args, *host_kwargs.values()])
        return host_args, host_kwargs

    Builder.create_masked_load, Builder.create_masked_store = checked_load, checked_store
    executor._init_args_hst = checked_prepare
    try:
        yield check
    finally:
        Builder.create_masked_load, Builder.create_masked_store, executor._init_args_hst = saved
