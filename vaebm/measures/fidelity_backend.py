"""Everything that the package imports from torch-fidelity, after the declaration of torchvision's operators."""

import vaebm.system.torchvision_shim  # noqa: F401  before torch-fidelity

# isort: split
from torch_fidelity.feature_extractor_base import FeatureExtractorBase as FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import KEY_METRIC_FID as KEY_METRIC_FID
from torch_fidelity.metric_fid import fid_statistics_to_metric as fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN as KEY_METRIC_ISC_MEAN
from torch_fidelity.metric_isc import KEY_METRIC_ISC_STD as KEY_METRIC_ISC_STD
from torch_fidelity.metric_isc import isc_features_to_metric as isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN as KEY_METRIC_KID_MEAN
from torch_fidelity.metric_kid import kid_features_to_metric as kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION as KEY_METRIC_PRECISION
from torch_fidelity.metric_prc import KEY_METRIC_RECALL as KEY_METRIC_RECALL
from torch_fidelity.metric_prc import prc_features_to_metric as prc_features_to_metric
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY as FEATURE_EXTRACTORS_REGISTRY
from torch_fidelity.registry import register_feature_extractor as register_feature_extractor
from torch_fidelity.utils import create_feature_extractor as create_feature_extractor
from torch_fidelity.utils import get_featuresdict_from_dataset as get_featuresdict_from_dataset
from torch_fidelity.version import __version__

TORCH_FIDELITY = __version__
"""Version of torch-fidelity."""
