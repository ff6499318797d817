"""The configuration, and functions that find the inputs, parameters and resources of a job in it."""

import os
import sys
from pathlib import Path

from vaebm.config import BASELINE, EXTRACTORS, PRIOR, fingerprint
from vaebm.config import Resources as StageResources  # Snakemake has another Resources
from vaebm.config.base import NAME
from vaebm.config.checkpoint import portable
from vaebm.config.foreign import foreign_state
from vaebm.config.pipeline import pinned_sets, resolve
from vaebm.config.weights import plugin_hash, weights_hash
from vaebm.records.files import read_tracking
from vaebm.records.metrics import metric
from vaebm.system.errors import UserError
from vaebm.system.files import checksum, snakemake_record
from vaebm.system.plugins import NAMED

os.environ[NAMED] = str(workflow.main_snakefile)  # plug-ins next to it, which every command of this run finds

# A dry run, and a run next to another one, change nothing under results/: they plan with settings files in another folder.
# Jobs read the Snakefile too, while their run holds the lock.
LOOKING = workflow.output_settings.dryrun or any(Path(".snakemake/locks").glob("*.lock"))
INSTEAD = Path(".snakemake/settings") if LOOKING else Path()

# A mistake in any configuration file ends the run here in one line, so no `configfile:` reads the first one.
try:
    EXPERIMENTS, SEEDS, DATASETS, WRITTEN, CHANGES = resolve(config, workflow.is_main_process, INSTEAD, bool(STORAGE))
    for name in (variant.metric for experiment in EXPERIMENTS.values() for variant in experiment.variants.values() if variant.metric):
        metric(name)
    PINNED = [*pinned_sets(Path("data.dvc"))] if Path("data.dvc").exists() else []
except UserError as error:
    sys.exit(str(error))


wildcard_constraints:
    dataset=NAME,
    experiment=NAME,
    extractor=NAME,
    variant=NAME,
    seed=r"\d+",
    shard=r"\d{3}",


def settings(pattern, kept=False):
    """Function of the wildcards: a settings file, or that with which a dry run plans.

    Args:
        kept: whether other settings rerun nothing.
    """

    def of(wildcards):
        path = pattern.format(**wildcards)
        if LOOKING and WRITTEN and workflow.executor_plugin and not workflow.dryrun:  # before the run takes the lock
            expected = f"{next(iter(WRITTEN))}: expected the settings of the run that holds the lock, found others"
            sys.exit(f"{expected}; wait for its end, or, if it was killed: snakemake --unlock")
        return path if STORAGE or kept and Path(path).exists() else WRITTEN.get(path, path)

    return of


def has_ood(experiment, variant):
    """Whether a separate job measures a variant's OOD sets."""
    return experiment.ood_data and experiment.stage_of(variant).name != "images"


def is_trained(experiment, variant):
    """Whether a variant has a training of its own, or the copy of one."""
    return experiment.stage_of(variant).name != "images" and not experiment.checkpoint_of(variant)


def runs(pattern, chosen=lambda experiment, variant: True):
    """`pattern` for every seed of every `chosen` variant of every experiment."""
    return [
        path
        for name, experiment in EXPERIMENTS.items()
        for variant in experiment.models
        if chosen(experiment, variant)
        for path in expand(pattern, experiment=name, variant=variant, seed=experiment.seeds_of(variant, SEEDS))
    ]


def pictures(folder, caption, stage):
    """Pictures of a training as an output: the curves, for Snakemake's report, or all for a storage."""
    labels = {"stage": stage, "seed": "{seed}"}
    curves = report(f"{folder}/pictures/curves.png", caption=caption, category="Training", subcategory="{experiment}", labels=labels)
    return directory(f"{folder}/pictures") if STORAGE else curves


def pictures_of_runs():
    """Folders of pictures for the table's report."""
    run = "results/{experiment}/{variant}/seed{seed}"
    evaluated = [*runs(f"{run}/evaluation/pictures"), *runs(f"{run}/evaluation/ood", has_ood)]
    classifiers = [f"results/{name}/classifier/pictures" for name, one in EXPERIMENTS.items() if one.evaluation.classifier]
    return stored(*runs(f"{run}/pictures", is_trained), *evaluated, *classifiers)


def experiments_of(rule):
    """Pattern of the experiments, followed by their models in results/, whose models a rule makes."""

    def makes(experiment, model):
        own = "same_energy" if experiment.same_energy(model) else experiment.stage_of(model).name
        return "pretrained" if experiment.checkpoint_of(model) else own

    models = [f"{name}/{model}" for name, experiment in EXPERIMENTS.items() for model in experiment.models if makes(experiment, model) == rule]
    return f"(?=(?:{'|'.join(models)})/){NAME}" if models else "(?!)"


def same_energy(wildcards):
    """Files of the run whose energy a combination of a grid takes."""
    variant = EXPERIMENTS[wildcards.experiment].same_energy(wildcards.variant)
    files = {"model": "model.safetensors", "training": "training.json", "history": "history.jsonl"}
    folder = f"results/{wildcards.experiment}/{variant}/seed{wildcards.seed}"
    return {"pictures": stored(f"{folder}/pictures")} | {name: f"{folder}/{file}" for name, file in files.items()}


def settings_of_stage(wildcards, kept=False):
    """Settings file of the stage that trains a variant's model; `kept` as in `settings`."""
    stage = EXPERIMENTS[wildcards.experiment].stage_of(wildcards.variant).name
    return settings(f"results/{{experiment}}/{{variant}}/seed{{seed}}/{stage}.yaml", kept)(wildcards)


def nvae_below(wildcards):
    """NVAE below an energy from a checkpoint. Not one that is trained here: the energy's file is checked before that training."""
    nvae = f"results/{wildcards.experiment}/{BASELINE}/seed{wildcards.seed}/model.safetensors"
    return {"nvae": nvae} if wildcards.variant != BASELINE and EXPERIMENTS[wildcards.experiment].checkpoint_of(BASELINE) else {}


def checkpoint_file_of(wildcards):
    """Local file or folder from which a model is taken."""
    source = EXPERIMENTS[wildcards.experiment].checkpoint_of(wildcards.variant)
    return [] if source.is_hub else here(source.file(wildcards.seed))


def checkpoint_hash(wildcards):
    """Hash of a checkpoint's settings without its path, and of its local file."""
    stage = EXPERIMENTS[wildcards.experiment].stage_of(wildcards.variant).settings
    file = None if stage.checkpoint.is_hub else checksum(stage.checkpoint.file(wildcards.seed))
    return fingerprint([portable(stage.model_dump()), file])


def resource(stage, name):
    """Function of the wildcards: a resource of a job of `stage`, the largest value of all experiments that share the job."""

    def of(wildcards):
        experiment, dataset = wildcards.get("experiment"), wildcards.get("dataset")
        sharing = [
            one for key, one in EXPERIMENTS.items() if experiment in (None, key) and (dataset is None or dataset in {each.prepared for each in one.datasets})
        ]
        return max(getattr(getattr(one.resources, stage), name) for one in sharing or EXPERIMENTS.values())

    return of


def resources_of(stage):
    """All resources of the jobs of `stage`.

    Snakemake limits a rule's `threads` to the CPUs of its own machine. `cpus_per_task`, the number of threads of a stage and of
    CPUs in Slurm, has no such limit. `nodes=1` keeps the GPUs of a job on one machine.
    """
    names = StageResources.model_fields[stage].annotation.model_fields
    count = resource(stage, "gpu")
    gres = {"gres": lambda wildcards: f"{GRES}:{count(wildcards)}" if count(wildcards) else ""} if GRES else {}  # none for a job without GPU
    gpus = {"nodes": 1, GPU: count, **gres} if "gpu" in names else {}
    return {"cpus_per_task": resource(stage, "threads"), **gpus, "mem_mb": resource(stage, "mem_mb"), "runtime": resource(stage, "runtime")}


def prepared(dataset):
    """Files of a prepared data set. The comparison with its pin comes first but triggers no rerun."""
    return {
        "data": f"data/{dataset}/manifest.json",
        "arrays": [f"data/{dataset}/images.npy", f"data/{dataset}/labels.npy"],
        "pinned": ancient(f"results/data/{dataset}.pinned"),
    }


def data_settings_of(wildcards):
    """Settings file of a data set that needs files. Without a shared file system, its job runs on the machine that has them."""
    data, path = DATASETS.get(wildcards.dataset), f"results/data/{wildcards.dataset}.yaml"
    written = WRITTEN.get(path, path) if STORAGE and not Path(path).exists() else settings(path, kept=True)(wildcards)
    return local(written) if data is not None and data.needs_files else []


def preparable():
    """Pattern of the data sets that `data` prepares: not those of data.dvc that are there, whole, and that no chosen experiment uses."""

    def is_whole(file):
        return Path(file).is_file() and not snakemake_record("incomplete", file).exists()

    files = ("images.npy", "labels.npy", "manifest.json")
    kept = [name for name in {Path(folder).name for folder in PINNED} - {*DATASETS} if all(is_whole(f"data/{name}/{file}") for file in files)]
    return f"(?!(?:{'|'.join(kept)})/){NAME}"


def options(*names):
    """Function of the inputs: an option for each of these that a job has."""
    return lambda wildcards, input: " ".join(f"--{name} {input[name]}" for name in names if input.get(name))


def data_of(wildcards):
    """Prepared images of an experiment."""
    return prepared(EXPERIMENTS[wildcards.experiment].data.prepared)


def classifier_of(wildcards):
    """Classifier of an experiment, as the extractor or for the modes of stacks; the reference of another extractor needs none."""
    evaluation = EXPERIMENTS[wildcards.experiment].evaluation
    needed = evaluation.classifier is not None and wildcards.get("extractor", "classifier") == "classifier"
    return {"classifier": f"results/{wildcards.experiment}/classifier/model.safetensors"} if needed else {}


def reference_of(wildcards):
    """Reference statistics and settings of an experiment's extractors, and the classifier if there is one."""
    extractors = EXPERIMENTS[wildcards.experiment].evaluation.extractions
    weights = [here(one.weights) for one in extractors.values()]
    first, *others = (
        [f"{one}.npz", ancient(settings(f"{one}.yaml", kept=True)(wildcards))]
        for one in expand("results/{experiment}/reference/{extractor}", experiment=wildcards.experiment, extractor=extractors)
    )
    return {"reference": first[0], "extractor": first[1], "further": sum([*others, *weights], []), **classifier_of(wildcards)}


def weights_of(wildcards):
    """Hash of an extractor's weights, so that a moved file triggers no rerun."""
    extraction = EXPERIMENTS[wildcards.experiment].evaluation.extractions[wildcards.extractor]
    if extraction.name in EXTRACTORS.plugins:
        return plugin_hash(extraction)
    return weights_hash(extraction.name, extraction.weights, extraction.sha256) if extraction.weights and extraction.name != "inception" else ""


def ood_of(wildcards):
    """Prepared images of an experiment's OOD sets."""
    sets = [prepared(data.prepared) for data in EXPERIMENTS[wildcards.experiment].ood_data]
    return {"ood": [each["data"] for each in sets], "ood_files": [file for each in sets for file in [*each["arrays"], each["pinned"]]]}


def models_of(wildcards):
    """Models from which a variant's samples come; a GAN's generator is an NVAE."""
    model = f"results/{{}}/{{}}/seed{wildcards.seed}/model.safetensors"
    own, nvae = (model.format(wildcards.experiment, name) for name in (wildcards.variant, BASELINE))
    if (stage := EXPERIMENTS[wildcards.experiment].stage_of(wildcards.variant).name) == "ebm":
        return {"nvae": nvae, "energy": own, **prior_below(wildcards)}
    return {"nvae": nvae, "prior": own} if stage == "prior" else {"nvae": own}


def records_of(wildcards):
    """Training records and settings next to the models of `models_of`."""
    stages = {BASELINE: "nvae", PRIOR: "prior", wildcards.variant: EXPERIMENTS[wildcards.experiment].stage_of(wildcards.variant).name}
    folders = [Path(model).parent for model in models_of(wildcards).values()]
    return stored(*(str(folder / name) for folder in folders for name in ("training.json", f"{stages[folder.parts[-2]]}.yaml")))


def prior_below(wildcards):
    """Energy on noise below a variant's energy, if it has one."""
    prior = f"results/{wildcards.experiment}/{PRIOR}/seed{wildcards.seed}/model.safetensors"
    return {"prior": prior} if EXPERIMENTS[wildcards.experiment].stage_of(wildcards.variant).prior else {}


def foreign_images(wildcards):
    """Images of another program."""
    return local(str(Path(EXPERIMENTS[wildcards.experiment].variants[wildcards.variant].images)))


def shard_records_of(wildcards):
    """Records and settings next to a variant's samples."""
    return stored(*(shard.replace(".npy", ".json") for shard in shards_of(wildcards)), str(Path(shards_of(wildcards)[0]).with_name("samples.yaml")))


def shards_of(wildcards):
    """Files with a variant's samples."""
    shards = EXPERIMENTS[wildcards.experiment].samples_of(wildcards.variant).shards
    return [f"results/{wildcards.experiment}/{wildcards.variant}/seed{wildcards.seed}/samples/shard-{index:03}.npy" for index in range(shards)]
