"""Optional packages: imported when they are needed; a missing one is named, with the extra that brings it."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any


class MissingPackage(ImportError):
    """An optional package is not installed; the message names it and the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package}; `pip install 'gencore[{extra}]'`", name=package)


def require(module: str, *, extra: str, purpose: str) -> Any:
    """Import ``module``, or raise :class:`MissingPackage` saying what wanted it and which extra brings it."""
    package = module.partition(".")[0]
    if find_spec(package) is None:
        raise MissingPackage(package, extra, purpose)
    return import_module(module)


def package_file(package: str, *parts: str, extra: str, purpose: str) -> Path:
    """A data file that ships inside ``package``, found without importing it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackage(package, extra, purpose)
    return Path(spec.submodule_search_locations[0], *parts)
