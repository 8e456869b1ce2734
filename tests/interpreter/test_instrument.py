"""The instruments find what they are for: each mistake is made once, on purpose."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError  # wraps what a kernel raises

from tests.interpreter.instrument import checked_memory


@triton.jit
def _copy(x, y, n, SHIFT: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i + SHIFT, mask=i < n).to(y.dtype.element_ty), mask=i < n)


@triton.jit
def _everybody_stores_the_first(x):
    tl.store(x, tl.program_id(0))


@triton.jit
def _two_lanes_store_one(x):
    i = tl.arange(0, 4)
    tl.store(x + i // 2, i)


@triton.jit
def _neighbours(x, BLOCK: tl.constexpr):
    i = tl.program_id(0)
    tl.store(x + i, tl.load(x + i + 1))


@triton.jit
def _add(x, y, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i) + tl.load(x + i))


def test_bfloat16_rounds_to_nearest_even() -> None:
    x = torch.cat([torch.randn(509), torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, float("inf")])])
    y = torch.empty(512, dtype=torch.bfloat16)
    _copy[(4,)](x, y, 512, SHIFT=0, BLOCK=128)
    assert torch.equal(y, x.bfloat16())


def test_bfloat16_arithmetic_is_refused() -> None:
    x = torch.ones(16, dtype=torch.bfloat16)
    with pytest.raises(InterpreterError, match="binary_op on bfloat16"):
        _add[(1,)](x, torch.empty_like(x), BLOCK=16)


def test_reading_past_the_end_is_found() -> None:
    x, y = torch.ones(100), torch.empty(100)
    with checked_memory() as check:
        _copy[(2,)](x, y, 100, SHIFT=0, BLOCK=64)
        assert check.launches == [["_copy", 400, 400, 2]]
        with pytest.raises(InterpreterError, match="program 1 loads out of bounds in 1 of 36 lanes"):
            _copy[(2,)](x, y, 100, SHIFT=1, BLOCK=64)


def test_races_are_found() -> None:
    x = torch.zeros(8, dtype=torch.int32)
    with checked_memory():
        with pytest.raises(InterpreterError, match="program 1 stores what program 0 of the same launch stored"):
            _everybody_stores_the_first[(2,)](x)
        with pytest.raises(InterpreterError, match="one address from two lanes"):
            _two_lanes_store_one[(1,)](x)
        with pytest.raises(InterpreterError, match="stores what another program of the same launch loads"):
            _neighbours[(3,)](x, BLOCK=1)


@triton.jit
def _double_by_address(addresses, tensors, BLOCK: tl.constexpr):
    for i in tl.static_range(len(tensors)):
        tl.store(addresses + i, tensors[i].to(tl.int64))
    i = tl.arange(0, BLOCK)
    for tensor in range(2):
        x = tl.load(addresses + tensor).to(tl.pointer_type(tl.float32))
        tl.store(x + i, tl.load(x + i) * 2)


def test_tensors_in_a_tuple_belong_to_the_launch() -> None:
    tensors, addresses = (torch.ones(4), torch.ones(8)), torch.empty(2, dtype=torch.int64)
    with checked_memory():
        _double_by_address[(1,)](addresses, tensors, BLOCK=4)
        assert [x.tolist() for x in tensors] == [[2.0] * 4, [2.0] * 4 + [1.0] * 4]
        with pytest.raises(InterpreterError, match="loads out of bounds in 4 of 8 lanes"):
            _double_by_address[(1,)](addresses, tensors, BLOCK=8)


@triton.jit
def _product(a, b, out):
    index = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    tl.store(out + index, tl.dot(tl.load(a + index), tl.load(b + index)))


def test_products_of_bfloat16_are_exact_and_summed_in_float32() -> None:
    a, b = (torch.randn(16, 16).bfloat16() for _ in range(2))
    out = torch.empty(16, 16)
    _product[(1,)](a, b, out)
    torch.testing.assert_close(out, a.float() @ b.float())
