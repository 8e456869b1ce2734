"""One ``OpSpec`` per op, one file each; all of them are found by importing this package."""

from importlib import import_module
from pkgutil import iter_modules

from tests.opspec import OpSpec

SPECS: tuple[OpSpec, ...] = tuple(
    import_module(f"{__name__}.{module.name}").SPEC
    for module in sorted(iter_modules(__path__), key=lambda m: m.name)
    if not module.name.startswith("_")
)
