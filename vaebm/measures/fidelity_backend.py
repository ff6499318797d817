"""torch-fidelity, imported after the declaration of torchvision's operators, and without torch's compiler.

torchvision imports the compiler, which takes 0.7 s, for a question that only its box operators ask.
"""

import sys
from unittest.mock import Mock

import vaebm.system.torchvision_shim  # noqa: F401  before torch-fidelity

_stand_ins = [name for name in ("torch._dynamo", "torch._dynamo.utils") if name not in sys.modules]
sys.modules |= dict.fromkeys(_stand_ins, Mock(**{"is_compile_supported.return_value": False}))
try:
    import torch_fidelity as torch_fidelity
finally:
    list(map(sys.modules.pop, _stand_ins))
