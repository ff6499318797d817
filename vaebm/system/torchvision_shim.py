"""Import this module right before torchvision or torch-fidelity: it imports torchvision, also with a CPU-only torch.

The published torchvision wheels are built for CUDA. With a CPU-only torch their compiled library does not load, and
`import torchvision` fails at an undeclared operator. Declaring the schemas is enough for data sets, transforms and
torch-fidelity; the box operators stay unavailable. Nothing is declared where the compiled library loads.
"""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch

from vaebm.system.startup import import_compiler_later


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

import_compiler_later()
import_module("torchvision")  # which imports the compiler
