"""Import this module right before torchvision or torch-fidelity: it imports torchvision, also with a CPU-only torch.

The published torchvision wheels are built for CUDA. With a CPU-only torch their compiled library does not load, and
`import torchvision` fails at an undeclared operator. Declaring the schemas is enough for data sets, transforms and
torch-fidelity; the box operators stay unavailable. Nothing is declared where the compiled library loads.

One box operator asks torch's compiler for one function. Its import takes longer than torch's, and nothing here
compiles, so torchvision is given a stand-in that imports the compiler when it is called.
"""

import importlib
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch


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

COMPILER = "torch._dynamo.utils"
"""The module of which torchvision imports `is_compile_supported`."""


def _import_torchvision() -> None:
    stand_in = ModuleType(COMPILER)
    vars(stand_in)["is_compile_supported"] = lambda kind: importlib.import_module(COMPILER).is_compile_supported(kind)
    used = sys.modules.setdefault(COMPILER, stand_in) is stand_in
    try:
        import torchvision  # noqa: F401
    finally:
        if used:
            del sys.modules[COMPILER]


_import_torchvision()
