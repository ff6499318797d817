"""Import this module right before torchvision or torch-fidelity: it makes them importable with a CPU-only torch.

The published torchvision wheels are built for CUDA. With a CPU-only torch their compiled library does not load, and
`import torchvision` fails at an undeclared operator. Declaring the schemas is enough for data sets, transforms and
torch-fidelity; the box operators stay unavailable. Nothing is declared where the compiled library loads.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch

COMPILER = "torch._dynamo", "torch._dynamo.utils"
"""Modules of torch's compiler that torchvision imports."""


def _compiled_operators_load() -> bool:
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # importing torchvision then reports that it is missing
    libraries = [path for path in Path(spec.origin).parent.glob("_C*") if path.suffix in {".so", ".pyd"}]
    try:
        for library in libraries:
            torch.ops.load_library(library)
    except OSError:
        return False
    return bool(libraries)


def _declare() -> torch.library.Library | None:
    if _compiled_operators_load():
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


DECLARED = _declare()
"""Declarations, valid as long as this reference; None: the compiled operators loaded."""


def _no(name: str) -> Callable[..., bool]:
    if name.startswith("__"):
        raise AttributeError(name)
    return lambda *_: False


@contextmanager
def without_compiler() -> Iterator[None]:
    """Import torchvision without torch's compiler, which takes 0.7 s, for a question that its box operators alone ask.

    In this context, all functions of `COMPILER` answer False, unless it is loaded already.
    """
    names = [] if COMPILER[1] in sys.modules else COMPILER
    for name in names:
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name])["__getattr__"] = _no
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
