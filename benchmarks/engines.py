"""Inference engines beside PyTorch: ONNX Runtime and OpenVINO, where they are installed (extra ``engines``).

Both run the exported graph in float32 with as many threads as torch has, on memory of their own.
"""

from __future__ import annotations

import copy
import io
import logging
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

Call = Callable[[], Tensor]


def available() -> tuple[str, ...]:
    """Names of the engines that can run here."""
    if find_spec("onnx") is None or find_spec("onnxscript") is None:
        return ()
    return tuple(name for name in ENGINES if find_spec(name) is not None)


def inference_calls(model: nn.Module, x: Tensor) -> dict[str, Call]:
    """``model(x)`` on every available engine, by name; the result is a CPU tensor.

    Args:
        model: in evaluation mode, with one tensor in and one out; it is copied.
        x: the input, whose shape the engines may specialise for.
    """
    names = available()
    if not names:
        return {}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        _export(copy.deepcopy(model), x, path)
        return {name: ENGINES[name](path, x) for name in names}


def _export(model: nn.Module, x: Tensor, path: Path) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # torchvision's absence is not news
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), torch.no_grad():
        torch.onnx.export(model, (x,), str(path), input_names=["x"], external_data=False, verbose=False)


def _onnxruntime(path: Path, x: Tensor) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    feed = {"x": x.numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def _openvino(path: Path, x: Tensor) -> Call:
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(core.read_model(path.read_bytes()), "CPU", settings).create_infer_request()
    feed = x.numpy()
    return lambda: torch.from_numpy(request.infer([feed])[0])


ENGINES: dict[str, Callable[[Path, Tensor], Call]] = {"onnxruntime": _onnxruntime, "openvino": _openvino}
