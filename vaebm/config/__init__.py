"""The experiment: one YAML file, validated once, one settings file per stage.

Every setting of the pipeline is a field of one of these classes. Nothing here imports torch or mlflow, because every
job imports this package.
"""

from vaebm.config.base import S, Settings, fingerprint
from vaebm.config.data import DataSettings
from vaebm.config.datasets import DATASETS, DatasetFacts
from vaebm.config.ebm import ChainSettings, EBMSettings, EBMTrainingSettings, EnergyNetworkSettings, GuardSettings
from vaebm.config.evaluation import ClassifierSettings, EvaluationSettings, ExtractorSettings, SamplesSettings
from vaebm.config.experiment import BASELINE, STAGES, CPUResources, Experiment, GPUResources, Resources, Stage, Variant
from vaebm.config.nvae import NVAENetworkSettings, NVAESettings, NVAETrainingSettings
from vaebm.config.wgan import WGANSettings

__all__ = [
    "BASELINE",
    "CPUResources",
    "ChainSettings",
    "ClassifierSettings",
    "DATASETS",
    "DataSettings",
    "DatasetFacts",
    "EBMSettings",
    "EBMTrainingSettings",
    "EnergyNetworkSettings",
    "EvaluationSettings",
    "Experiment",
    "ExtractorSettings",
    "GPUResources",
    "GuardSettings",
    "NVAENetworkSettings",
    "NVAESettings",
    "NVAETrainingSettings",
    "Resources",
    "S",
    "STAGES",
    "Stage",
    "SamplesSettings",
    "Settings",
    "Variant",
    "WGANSettings",
    "fingerprint",
]
