"""Everything that the package imports from torch-fidelity, after the declaration of torchvision's operators."""

import vaebm.system.torchvision_shim  # noqa: F401  before torch-fidelity

# isort: split
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torch_fidelity.utils import create_feature_extractor, get_featuresdict_from_dataset
from torch_fidelity.version import __version__ as TORCH_FIDELITY

__all__ = [
    "FEATURE_EXTRACTORS_REGISTRY",
    "KEY_METRIC_FID",
    "KEY_METRIC_ISC_MEAN",
    "KEY_METRIC_ISC_STD",
    "KEY_METRIC_KID_MEAN",
    "KEY_METRIC_PRECISION",
    "KEY_METRIC_RECALL",
    "TORCH_FIDELITY",
    "FeatureExtractorBase",
    "FeatureExtractorInceptionV3",
    "create_feature_extractor",
    "fid_statistics_to_metric",
    "get_featuresdict_from_dataset",
    "isc_features_to_metric",
    "kid_features_to_metric",
    "prc_features_to_metric",
    "register_feature_extractor",
]
