"""torch-fidelity, imported after the declaration of torchvision's operators."""

import vaebm.system.torchvision_shim  # noqa: F401  before torch-fidelity

# isort: split
import torch_fidelity as torch_fidelity
