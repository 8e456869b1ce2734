"""Finds and loads the C++ extensions, once, without noise: what is missing is told by :func:`gencore.env`, and by a
warning of the first op that would have run on it.

This module is responsible for the verdict *which native code is there*. Which implementation runs is decided in
:mod:`gencore.dispatch`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

_DIRECTORY = Path(__file__).parent
REBUILD = "run `make build` in a checkout, or `pip install --no-build-isolation --force-reinstall --no-deps gencore`"


@dataclass(frozen=True)
class Extension:
    """Whether a native library is loaded, and if not, why and what mends it."""

    loaded: bool
    reason: str = ""
    fix: str = ""
    isa: str = ""


def build_record() -> dict[str, Any]:
    """What the build wrote about itself: compiler, instruction sets, torch version, or the reason that it gave up."""
    path = _DIRECTORY / "_build.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _load() -> Extension:
    library = _DIRECTORY / "_C.so"
    record = build_record()
    if not library.exists():
        reason = record.get("reason", "gencore was installed without building its C++ extension")
        return Extension(False, reason, REBUILD)
    try:
        torch.ops.load_library(str(library))
        isa = ("baseline", "avx2", "avx512")[torch.ops.gencore_c.isa()]
    except (OSError, RuntimeError, AttributeError) as error:
        built_with = record.get("torch", "an unknown version")
        first_line = str(error).splitlines()[0]
        reason = f"{library.name} does not load ({first_line}); it was built with torch {built_with}"
        return Extension(False, f"{reason}, this is torch {torch.__version__}", REBUILD)
    return Extension(True, isa=isa)


def _load_memory() -> tuple[Extension, ModuleType | None]:
    library = _DIRECTORY / f"_memory{EXTENSION_SUFFIXES[0]}"
    if not library.exists():
        reason = build_record().get("reason", "gencore was installed without building it for this Python")
        return Extension(False, reason, REBUILD), None
    spec = spec_from_file_location("gencore._memory", library)
    assert spec is not None
    assert spec.loader is not None
    try:
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        reason = f"{library.name} does not load ({str(error).splitlines()[0]}); this is torch {torch.__version__}"
        return Extension(False, reason, REBUILD), None
    # It derives from a C++ class of torch, whose layout may change from one minor version to the next.
    built, running = (version.split(".")[:2] for version in (module.TORCH_VERSION, torch.__version__))
    if built != running:
        reason = f"{library.name} was built with torch {module.TORCH_VERSION}, this is torch {torch.__version__}"
        return Extension(False, reason, REBUILD), None
    return Extension(True), module


EXTENSION = _load()
MEMORY_EXTENSION, MEMORY_MODULE = _load_memory()
HAVE_TRITON = find_spec("triton") is not None
