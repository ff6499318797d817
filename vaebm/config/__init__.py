"""The experiment: one YAML file, validated once, one settings file per stage.

Every setting of the pipeline is a field of one of these classes. Nothing here imports torch or mlflow, because every
job imports this package.
"""

from vaebm.config.base import S, Settings, fingerprint
from vaebm.config.data import DataSettings
from vaebm.config.datasets import DATASETS, DatasetFacts
from vaebm.config.ebm import (
    ENERGIES,
    KERNELS,
    ChainSettings,
    EBMSettings,
    EBMTrainingSettings,
    EnergyFacts,
    EnergyNetworkSettings,
    GuardSettings,
    KernelFacts,
    LangevinSettings,
    NetworkSettings,
)
from vaebm.config.evaluation import (
    EXTRACTORS,
    METRICS,
    ClassifierSettings,
    EvaluationSettings,
    ExtractorFacts,
    ExtractorSettings,
    MetricSettings,
    SamplesSettings,
)
from vaebm.config.experiment import BASELINE, PRIOR, STAGES, Experiment, Stage, Variant
from vaebm.config.nvae import NVAENetworkSettings, NVAESettings, NVAETrainingSettings
from vaebm.config.prior import NoiseEnergySettings, PriorSettings
from vaebm.config.resources import CPUResources, GPUResources, Resources
from vaebm.config.wgan import WGANSettings

__all__ = [
    "BASELINE", "CPUResources", "ChainSettings", "ClassifierSettings", "DATASETS", "DataSettings", "DatasetFacts",
    "EBMSettings", "EBMTrainingSettings", "ENERGIES", "EXTRACTORS", "EnergyFacts", "EnergyNetworkSettings",
    "EvaluationSettings", "Experiment", "ExtractorFacts", "ExtractorSettings", "GPUResources", "GuardSettings",
    "KERNELS", "KernelFacts", "LangevinSettings", "METRICS", "MetricSettings", "NVAENetworkSettings", "NVAESettings",
    "NVAETrainingSettings", "NetworkSettings", "NoiseEnergySettings", "PRIOR", "PriorSettings", "Resources", "S",
    "STAGES", "SamplesSettings", "Settings", "Stage", "Variant", "WGANSettings", "fingerprint",
]  # fmt: skip
