"""The command line: one command per stage. Arguments are paths and resources; settings are in files."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from vaebm.cli import options
from vaebm.cli.convert_commands import convert_commands
from vaebm.cli.overview import guide
from vaebm.config import DataSettings
from vaebm.system.errors import UserError
from vaebm.system.startup import imports

app = typer.Typer(
    help="VAEBM: an energy-based model on a hierarchical VAE. One command per stage of the pipeline. "
    "Every command copies its output to a file with `--log FILE`.",
    epilog="Example: `vaebm describe digits`",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

app.add_typer(convert_commands, name="convert")

command = partial(options.in_group, app)

EXAMPLE_RUN = "results/digits/vaebm/seed0"


@app.callback()
def show_the_way(context: typer.Context) -> None:
    """Without a command, print the overview and the next step."""
    if context.invoked_subcommand is None:
        print(guide(Path.cwd()))


@command("data digits --folder data/digits")
def data(
    dataset: Annotated[
        str, typer.Argument(help="A built-in data set, or the name of your own one.", autocompletion=options.data_sets)
    ],
    folder: Annotated[Path, typer.Option(help="Output folder.")],
    settings: Annotated[
        Path | None,
        typer.Option(help="Settings file of your own set; Snakemake writes it to results/data/."),
    ] = None,
    threads: options.Threads = 1,
) -> None:
    """Prepare a data set: images.npy, labels.npy, manifest.json."""
    with imports():
        from vaebm.config.yaml_files import read_settings
        from vaebm.data import prepare
        from vaebm.system.child import contained
    chosen = None if settings is None else read_settings(settings, DataSettings)[1]
    if chosen is not None and chosen.prepared != dataset:
        raise UserError(f"{settings}: expected the settings of {dataset}, found those of {chosen.prepared}")
    contained(lambda: prepare(chosen or dataset, folder, threads))


@command("pin data/digits --pins data.dvc")
def pin(
    folder: Annotated[Path, typer.Argument(help="A prepared data set.")],
    pins: Annotated[Path, typer.Option(help="File with the pinned hashes.")],
    name: Annotated[
        Path | None, typer.Option(help="Entry to compare with; default: the folder.", show_default=False)
    ] = None,
) -> None:
    """Compare a prepared data set with its hash in data.dvc."""
    with imports():
        from vaebm.cli.pin import run
    run(folder, pins, name)


@command(
    "classifier results/digits/classifier/classifier.yaml --data data/digits/manifest.json --model model.safetensors"
)
def classifier(
    settings: options.SettingsFile, data: options.Data, model: options.OutputModel, threads: options.Threads = 1
) -> None:
    """Train the classifier whose features measure image quality."""
    with imports():
        from vaebm.evaluation.classifier import run
        from vaebm.system.device import setup_device

    setup_device(threads, gpus=0)
    run(settings, data, model)


@command(
    "reference results/digits/reference/classifier.yaml --data data/digits/manifest.json "
    "--classifier results/digits/classifier/model.safetensors --output reference.npz"
)
def reference(
    settings: options.SettingsFile,
    data: options.Data,
    output: Annotated[Path, typer.Option(help="Output file (.npz).")],
    classifier: options.ClassifierModel = None,
    threads: options.Threads = 1,
    gpus: options.GPUs = 0,
) -> None:
    """Compute features and statistics of the real images, which distances compare samples with."""
    with imports():
        from vaebm.evaluation.reference import write_reference
        from vaebm.system.device import setup_device

    write_reference(settings, data, classifier, output, setup_device(threads, gpus))


@command("nvae results/digits/nvae/seed0/nvae.yaml --data data/digits/manifest.json --model model.safetensors")
def nvae(
    settings: options.SettingsFile,
    data: options.Data,
    model: options.OutputModel,
    threads: options.Threads = 1,
    gpus: options.GPUs = 0,
    time_limit: options.TimeLimit = None,
    checkpoint_every: options.CheckpointEvery = 60.0,
) -> None:
    """Train the NVAE, with one process per GPU."""
    _one_process_per_gpu(gpus)
    with imports():
        from vaebm.nvae.train import run
        from vaebm.training.loop import Limits
    run(settings, data, model, threads=threads, gpus=gpus, limits=Limits(time_limit, checkpoint_every))


@command(
    f"ebm {EXAMPLE_RUN}/ebm.yaml --data data/digits/manifest.json --nvae results/digits/nvae/seed0/model.safetensors "
    "--model model.safetensors"
)
def ebm(
    settings: options.SettingsFile,
    data: options.Data,
    nvae: options.NVAEModel,
    model: options.OutputModel,
    prior: options.PriorModel = None,
    threads: options.Threads = 1,
    gpus: options.GPUs = 0,
    time_limit: options.TimeLimit = None,
    checkpoint_every: options.CheckpointEvery = 60.0,
) -> None:
    """Train the energy network on a frozen NVAE."""
    _one_process_per_gpu(gpus)
    with imports():
        from vaebm.ebm.train import run
        from vaebm.training.loop import Limits
    run(settings, data, nvae, model, prior, threads=threads, gpus=gpus, limits=Limits(time_limit, checkpoint_every))


@command(
    f"samples {EXAMPLE_RUN}/samples/samples.yaml --nvae results/digits/nvae/seed0/model.safetensors "
    f"--energy {EXAMPLE_RUN}/model.safetensors --shard 0 --output shard.npy"
)
def samples(
    settings: options.SettingsFile,
    nvae: options.NVAEModel,
    shard: Annotated[int, typer.Option(min=0, help="Index of the shard.")],
    output: Annotated[Path, typer.Option(help="Output file (.npy).")],
    energy: options.EnergyModel = None,
    prior: options.PriorModel = None,
    threads: options.Threads = 1,
    gpus: options.GPUs = 0,
) -> None:
    """Draw one shard of samples: decoder means after the test chain."""
    with imports():
        from vaebm.samples import run
    run(settings, nvae, energy, shard, output, prior, threads=threads, gpus=gpus)


@command(
    f"evaluation {EXAMPLE_RUN}/evaluation/evaluation.yaml --data data/digits/manifest.json "
    f"--nvae results/digits/nvae/seed0/model.safetensors --energy {EXAMPLE_RUN}/model.safetensors "
    "--extractor results/digits/reference/classifier.yaml --classifier results/digits/classifier/model.safetensors "
    f"--reference results/digits/reference/classifier.npz --metrics {EXAMPLE_RUN}/evaluation/metrics.json "
    f"{EXAMPLE_RUN}/samples/shard-000.npy"
)
def evaluation(
    settings: options.SettingsFile,
    shards: Annotated[
        list[Path],
        typer.Argument(
            help="Shards of the samples; or images of another program: a folder of PNG files, a .npy or .npz file."
        ),
    ],
    data: options.Data,
    extractor: Annotated[Path, typer.Option(help="Settings file of the extractor, next to the reference.")],
    reference: Annotated[Path, typer.Option(help="Output of `vaebm reference`.")],
    metrics: Annotated[Path, typer.Option(help="Output file: …/evaluation/metrics.json.")],
    nvae: options.MeasuredNVAE = None,
    energy: options.EnergyModel = None,
    prior: options.PriorModel = None,
    classifier: options.ClassifierModel = None,
    ood: options.OODManifests = None,
    threads: options.Threads = 1,
    gpus: options.GPUs = 0,
) -> None:
    """Measure one model and its samples."""
    with imports():
        from vaebm.evaluation.inputs import Files
        from vaebm.evaluation.stage import run
        from vaebm.system.device import setup_device

    files = Files(settings, data, nvae, energy, extractor, classifier, reference, shards, metrics, ood or [], prior)
    run(files, setup_device(threads, gpus))


@command("benchmarks --compare ../other/results")
def benchmarks(
    metrics: Annotated[
        list[Path] | None,
        typer.Argument(
            help="metrics.json of each run; omit them to read all that the results folder has.", show_default=False
        ),
    ] = None,
    paper: Annotated[Path, typer.Option(help="The paper's values.")] = Path("config/paper.yaml"),
    experiments: Annotated[Path, typer.Option(help="Folder of the experiment files.")] = Path("config/experiments"),
    results: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results"),
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="A setting of these runs that is not in their file, as KEY=VALUE.", show_default=False
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Experiment file of these runs, if their folder has another name.")
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(help="Another folder of results, or its benchmarks.json, to compare with.")
    ] = None,
) -> None:
    """Write table and report of all results and the paper's values, or compare two folders of results."""
    if metrics or compare is None:
        with imports():
            from vaebm.report.aggregate import run
        run(metrics or [], paper, experiments, results, changes or [], base)
    if compare is not None:
        with imports():
            from vaebm.report.compare import run as run_comparison
        run_comparison(results, compare)


@command("describe cifar10 --tflops 20")
def describe(
    experiment: Annotated[
        Path,
        typer.Argument(
            help="An experiment: a name in config/experiments, or a file.", autocompletion=options.experiments_here
        ),
    ],
    tflops: Annotated[float, typer.Option(help="TFLOP/s that all devices of a stage sustain together.")] = 10.0,
    settings: Annotated[bool, typer.Option("--settings", help="Print every setting and the file it is from.")] = False,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting, as KEY=VALUE.", show_default=False)
    ] = None,
) -> None:
    """Estimate parameters, work, memory and time of an experiment, without data and training."""
    with imports():
        from vaebm.cli.describe import print_settings, run
    if settings:
        print_settings(experiment, changes or [])
    else:
        run(experiment, tflops, changes or [])


@command(f"export {EXAMPLE_RUN}/samples pngs")
def export(
    places: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[SAMPLES] [FOLDER]", help="Folder of the samples, and a new folder for PNG files."),
    ] = None,
    real: Annotated[
        Path | None, typer.Option(help="A prepared data set: export its training images, not samples.")
    ] = None,
    npz: Annotated[Path | None, typer.Option(help="One .npz file, with the array arr_0, instead of PNG files.")] = None,
    threads: options.Threads = 1,
) -> None:
    """Write samples or training images as files that other programs read."""
    with imports():
        from vaebm.cli.export import run
    run(places or [], real, npz, threads)


@command("publish results/digits/vaebm digits-vaebm")
def publish(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="results/EXPERIMENT/VARIANT, or a seed of it.")],
    folder: Annotated[Path, typer.Argument(help="Output folder.")],
    licence: Annotated[str | None, typer.Option(help="Licence of the weights, for the model card.")] = None,
) -> None:
    """Write a finished model as a folder for `VAEBM.from_pretrained` and the Hugging Face hub, with a model card."""
    with imports():
        from vaebm.cli.publish import run
    run(run_folder, folder, licence)


@command("track results/digits")
def track(results: Annotated[Path, typer.Argument(help="results/EXPERIMENT.")]) -> None:
    """Mirror an experiment's results to MLflow, without duplicates."""
    with imports():
        from vaebm.tracking import run
    run(results)


@command("clean --delete")
def clean(
    results: Annotated[Path, typer.Argument(help="Folder of the results.")] = Path("results"),
    delete: Annotated[bool, typer.Option("--delete", help="Remove them; without this option they are listed.")] = False,
) -> None:
    """Remove checkpoints and snapshots of finished trainings; unfinished trainings, models and samples stay."""
    from vaebm.cli.clean import run

    run(results, delete)


def _one_process_per_gpu(gpus: int) -> None:
    """Launch this command once per requested and available GPU, unless this is such a process.

    This process holds the GPU leases and ends last.
    """
    if gpus < 2:
        return
    import torch

    from vaebm.system.distributed import launch, launched_world_size
    from vaebm.system.gpu_lease import reserve_gpus

    if launched_world_size() > 1:
        return
    reserve_gpus(gpus)
    if (found := min(gpus, torch.cuda.device_count())) > 1:
        sys.exit(launch(found, ["-m", "vaebm", *sys.argv[1:]]))
