"""Lets torchvision, and so torch-fidelity, be imported beside a CPU-only torch.

The published torchvision wheels are built for CUDA: on a CPU-only torch their compiled library does not load, and then
`import torchvision` stops at an operator that nobody declared. Declaring the schemas is enough for all that is used
here (datasets, transforms, torch-fidelity); the box operators themselves stay unavailable. Where the compiled library
loads, nothing is declared. Import this module right before torchvision or torch-fidelity.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch


def _compiled_operators_load() -> bool:
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # without torchvision its own import says what is missing
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
"""The declarations, which live as long as this reference; None where the compiled operators loaded."""
