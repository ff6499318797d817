"""What the rules share: the experiments, their settings files, and functions that look things up in them."""

import sys
from pathlib import Path

from vaebm.config import BASELINE
from vaebm.config.raw_files import absent
from vaebm.config.weights import weights_hash
from vaebm.config.yaml_files import check_prepared, read_experiment, read_yaml, write_data_settings, write_settings
from vaebm.system.errors import UserError

CONFIG = "config/config.yaml"


def chosen(content, overrides):
    """Names of the experiments, and the seeds, that config.yaml and the command line ask for; anything else there is an error."""
    if not isinstance(content, dict):
        raise UserError(f"{CONFIG}: expected the keys experiments and seeds, found {content!r}")
    config = {**content, **overrides}
    if unknown := sorted(set(config) - {"experiments", "seeds"}):
        raise UserError(f"{CONFIG}: {unknown[0]}: unknown key; keys that exist: experiments, seeds")
    names, seeds = config.get("experiments"), config.get("seeds")
    if isinstance(overrides.get("seeds"), list):  # on the command line Snakemake reads the numbers in a list as text
        seeds = [int(seed) if isinstance(seed, str) and seed.isdecimal() else seed for seed in seeds]
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names) and len(set(names)) == len(names)):
        raise UserError(f"{CONFIG}: experiments: expected a list of different names, as [digits], found {names!r}")
    if not (isinstance(seeds, list) and seeds and all(type(seed) is int and seed >= 0 for seed in seeds) and len(set(seeds)) == len(seeds)):
        raise UserError(f"{CONFIG}: seeds: expected a list of different integers from 0, as [0, 1, 2], found {seeds!r}")
    return names, seeds


# A mistake in any of these files ends here, in one line, before anything starts; that is why no `configfile:` reads the first.
try:
    names, SEEDS = chosen(read_yaml(Path(CONFIG)), config)
    EXPERIMENTS = {name: read_experiment(Path(f"config/experiments/{name}.yaml")) for name in names}
except UserError as error:
    sys.exit(str(error))

# Every job reads this file again; only the run that starts them may say what they do.
if workflow.is_main_process:
    for name, experiment in EXPERIMENTS.items():
        write_settings(experiment, Path("results", name), SEEDS)

# What the pipeline cannot run ends here too, after its settings files are there: whoever has its images can run its stages by hand.
if lacking := [
    f"config/experiments/{name}.yaml: expected an experiment that Snakemake can run, found one without {' and without '.join(experiment.missing)}; "
    f"`vaebm describe {name}` says what it takes, and its stages run by hand with the settings files under results/{name}/ (`vaebm nvae --help`)"
    for name, experiment in EXPERIMENTS.items()
    if experiment.missing
]:
    sys.exit("\n".join(lacking))


def trained_by(stage):
    """Pattern of the models that a stage trains; none of them: a pattern that nothing matches."""
    return "|".join({model for experiment in EXPERIMENTS.values() for model in experiment.models if experiment.stage_of(model).name == stage}) or "(?!)"


if workflow.is_main_process:
    for name, experiment in EXPERIMENTS.items():
        try:
            if weights := experiment.evaluation.extraction.weights:
                weights_hash(experiment.evaluation.extractor, weights)
        except UserError as error:
            sys.exit(f"config/experiments/{name}.yaml: evaluation: {error}")


SETS = {}
for name, experiment in EXPERIMENTS.items():
    for one in experiment.sets:
        section, keys = ("evaluation.ood", "") if one in experiment.ood_data else ("data", "data.")
        if SETS.setdefault(one.prepared, one) != one:
            advice = f"give both the same {keys}path" if one.facts.train else f"give one of them a {keys}name of its own"
            sys.exit(f"config/experiments/{name}.yaml: {section}: another experiment has other settings for data/{one.prepared}; {advice}")
        if workflow.is_main_process:
            write_data_settings(one, Path("results/data"))
            if (problem := absent(one.dataset, one.path, f"{keys}path")) and not Path(f"data/{one.prepared}/manifest.json").is_file():
                sys.exit(f"config/experiments/{name}.yaml: {section}: {problem}")
            try:
                check_prepared(experiment, one, Path("data", one.prepared))
            except UserError as error:
                sys.exit(f"config/experiments/{name}.yaml: {section}: {error}")


wildcard_constraints:
    dataset=r"\w+",
    experiment=r"[^/]+",
    extractor=r"\w+",
    variant=r"\w+",
    seed=r"\d+",
    shard=r"\d{3}",


def runs(pattern):
    """`pattern` for every experiment, variant and seed."""
    return [
        path for name, experiment in EXPERIMENTS.items() for path in expand(pattern, experiment=name, variant=experiment.models, seed=SEEDS, allow_missing=True)
    ]


def need(stage, what):
    """Function of the wildcards: `what` a job of `stage` may use; one for several experiments, or for none, the most that one of them allows.

    Snakemake cuts a rule's `threads` to the CPUs of the machine that it runs on. `cpus_per_task`, the number that a stage computes with
    and that Slurm is asked for, stays; `nodes=1` keeps Slurm from spreading the GPUs of one job over several machines.
    """

    def of(wildcards):
        name, dataset = wildcards.get("experiment"), wildcards.get("dataset")
        asking = [one for key, one in EXPERIMENTS.items() if name in (None, key) and (dataset is None or dataset in {each.prepared for each in one.sets})]
        return max(getattr(getattr(one.resources, stage), what) for one in asking or EXPERIMENTS.values())

    return of


def prepared(dataset):
    """The prepared images of a data set. That they were compared with their pin comes first, but never makes anything anew."""
    return {
        "data": f"data/{dataset}/manifest.json",
        "arrays": [f"data/{dataset}/images.npy", f"data/{dataset}/labels.npy"],
        "pinned": ancient(f"results/data/{dataset}.pinned"),
    }


def data_settings_of(wildcards):
    """The settings file of a data set, where its name does not say everything."""
    return [] if wildcards.dataset not in SETS or SETS[wildcards.dataset].bare else f"results/data/{wildcards.dataset}.yaml"


def images_of(wildcards):
    """What a data set's settings say of its images. Without the path: other settings make the set anew, another place of the same raw files does not."""
    return SETS[wildcards.dataset].model_dump_json(exclude={"path"}) if wildcards.dataset in SETS else ""


def settings_option(wildcards, input):
    """The option that names that file."""
    return f"--settings {input.settings}" if input.settings else ""


def data_of(wildcards):
    """The prepared images of an experiment."""
    return prepared(EXPERIMENTS[wildcards.experiment].data.prepared)


def judged_data_of(wildcards):
    """The prepared images that an experiment's classifier is trained on: of stacks those of their channels."""
    return prepared(EXPERIMENTS[wildcards.experiment].judged)


def classifier_of(wildcards):
    """The classifier of an experiment that trains one: to measure with, or to tell the modes of stacks; the latter is no statistics' business."""
    evaluation = EXPERIMENTS[wildcards.experiment].evaluation
    needed = evaluation.classifier is not None and wildcards.get("extractor", "classifier") == "classifier"
    return {"classifier": f"results/{wildcards.experiment}/classifier/model.pt"} if needed else {}


def classifier_option(wildcards, input):
    """The option that names the classifier, where there is one."""
    return f"--classifier {input.classifier}" if "classifier" in input.keys() else ""


def reference_of(wildcards):
    """What an experiment's samples are measured with: the statistics of its images, the extractor's settings, the classifier if there is one."""
    reference = f"results/{wildcards.experiment}/reference/{EXPERIMENTS[wildcards.experiment].evaluation.extractor}"
    return {"reference": f"{reference}.npz", "extractor": ancient(f"{reference}.yaml"), **classifier_of(wildcards)}


def weights_of(wildcards):
    """Which weights an extractor has, by their bytes: another place of the same file makes nothing anew."""
    extraction = EXPERIMENTS[wildcards.experiment].evaluation.extraction
    return weights_hash(extraction.name, extraction.weights) if extraction.weights and extraction.name != "inception" else ""


def ood_of(wildcards):
    """The prepared images of the data sets that an experiment's held-out images are told from."""
    sets = [prepared(data.prepared) for data in EXPERIMENTS[wildcards.experiment].ood_data]
    return {"ood": [each["data"] for each in sets], "ood_files": [file for each in sets for file in [*each["arrays"], each["pinned"]]]}


def ood_options(wildcards, input):
    """The options that name their manifests."""
    return " ".join(f"--ood {manifest}" for manifest in input.ood)


def together(wildcards):
    """The manifests of all sets that data.dvc pins, for one of them."""
    pinned = [out["path"] for out in read_yaml(Path("data.dvc"))["outs"]]
    return [f"{folder}/manifest.json" for folder in pinned if f"data/{wildcards.dataset}" in pinned]


def models_of(wildcards):
    """The frozen models that a variant's samples come from; the generator of a GAN is an NVAE of its own."""
    model = f"results/{{}}/{{}}/seed{wildcards.seed}/model.pt"
    own, nvae = (model.format(wildcards.experiment, name) for name in (wildcards.variant, BASELINE))
    if EXPERIMENTS[wildcards.experiment].stage_of(wildcards.variant).name == "ebm":
        return {"nvae": nvae, "energy": own}
    return {"nvae": own}


def energy_option(wildcards, input):
    """The option that names the energy, for the variants that have one."""
    return f"--energy {input.energy}" if "energy" in input.keys() else ""


def shards_of(wildcards):
    """The files that hold a variant's samples."""
    shards = EXPERIMENTS[wildcards.experiment].samples.shards
    return [f"results/{wildcards.experiment}/{wildcards.variant}/seed{wildcards.seed}/samples/shard-{index:03}.npy" for index in range(shards)]
