"""torch-fidelity, imported after the declaration of torchvision's operators."""

from vaebm.system.torchvision_shim import without_compiler

with without_compiler():
    import torch_fidelity as torch_fidelity
