"""The command line: one command per stage. Arguments are paths and facts of the machine; settings live in the files."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from vaebm.cli.options import (
    CheckpointEvery,
    ClassifierModel,
    Data,
    EnergyModel,
    GPUs,
    Log,
    Model,
    NVAEModel,
    Settings,
    Threads,
    TimeLimit,
    data_sets,
    experiments_here,
)
from vaebm.cli.overview import guide
from vaebm.config import DataSettings
from vaebm.system.errors import UserError
from vaebm.system.log_file import asked_for, mirrored
from vaebm.system.startup import imports


def _example(command: str) -> str:
    return f"Example: `vaebm {command}`"


app = typer.Typer(
    help="VAEBM: an energy-based model on a hierarchical VAE. The pipeline's stages, each as a command.",
    epilog=_example("describe digits"),
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

RUN = "results/digits/vaebm/seed0"


@app.callback()
def show_the_way(context: typer.Context) -> None:
    """Without a command: what there is, and what to type next."""
    if context.invoked_subcommand is None:
        print(guide(Path.cwd()))


@app.command(epilog=_example("data digits --folder data/digits"))
def data(
    dataset: Annotated[
        str, typer.Argument(help="Name of the data set, or what its settings file calls it.", autocompletion=data_sets)
    ],
    folder: Annotated[Path, typer.Option(help="Where it goes.")],
    settings: Annotated[
        Path | None,
        typer.Option(help="Settings file; none: the raw files stand in raw/DATASET, or are fetched to there."),
    ] = None,
    threads: Threads = 1,
    log: Log = None,
) -> None:
    """Prepare a data set: images.npy, labels.npy, manifest.json."""
    with imports():
        from vaebm.config.yaml_files import read_settings
        from vaebm.data import prepare
    chosen = None if settings is None else read_settings(settings, DataSettings)[1]
    if chosen is not None and chosen.prepared != dataset:
        raise UserError(f"{settings}: expected the settings of {dataset}, found those of {chosen.prepared}")
    prepare(chosen or dataset, folder, threads)


@app.command(epilog=_example("pin data/digits --pins data.dvc"))
def pin(
    folder: Annotated[Path, typer.Argument(help="A prepared data set.")],
    pins: Annotated[Path, typer.Option(help="The file that pins its bytes.")],
    log: Log = None,
) -> None:
    """Compare a prepared data set with the bytes that data.dvc pins."""
    with imports():
        from vaebm.cli.pin import run
    run(folder, pins)


@app.command(
    epilog=_example(
        "classifier results/digits/classifier/classifier.yaml --data data/digits/manifest.json --model classifier.pt"
    )
)
def classifier(settings: Settings, data: Data, model: Model, threads: Threads = 1, log: Log = None) -> None:
    """Train the classifier whose features measure image quality."""
    with imports():
        from vaebm.evaluation.classifier import run
        from vaebm.system.device import prepare

    prepare(threads, gpus=0)
    run(settings, data, model)


@app.command(
    epilog=_example(
        "reference results/digits/reference/classifier.yaml --data data/digits/manifest.json "
        "--classifier results/digits/classifier/model.pt --output reference.npz"
    )
)
def reference(
    settings: Settings,
    data: Data,
    output: Annotated[Path, typer.Option(help="Where the statistics go.")],
    classifier: ClassifierModel = None,
    threads: Threads = 1,
    gpus: GPUs = 0,
    log: Log = None,
) -> None:
    """Compute the statistics of the training and held-out images."""
    with imports():
        from vaebm.evaluation.reference import reference as run
        from vaebm.system.device import prepare

    run(settings, data, classifier, output, prepare(threads, gpus))


@app.command(
    epilog=_example("nvae results/digits/nvae/seed0/nvae.yaml --data data/digits/manifest.json --model model.pt")
)
def nvae(
    settings: Settings,
    data: Data,
    model: Model,
    threads: Threads = 1,
    gpus: GPUs = 0,
    time_limit: TimeLimit = None,
    checkpoint_every: CheckpointEvery = 60.0,
    log: Log = None,
) -> None:
    """Train the NVAE, on several GPUs with a process for each."""
    _one_process_per_gpu(gpus)
    with imports():
        from vaebm.nvae.train import run
        from vaebm.training.loop import Limits
    run(settings, data, model, threads=threads, gpus=gpus, limits=Limits(time_limit, checkpoint_every))


@app.command(
    epilog=_example(
        f"ebm {RUN}/ebm.yaml --data data/digits/manifest.json --nvae results/digits/nvae/seed0/model.pt --model model.pt"
    )
)
def ebm(
    settings: Settings,
    data: Data,
    nvae: NVAEModel,
    model: Model,
    threads: Threads = 1,
    gpus: GPUs = 0,
    time_limit: TimeLimit = None,
    checkpoint_every: CheckpointEvery = 60.0,
    log: Log = None,
) -> None:
    """Train the energy network on a frozen NVAE."""
    _one_process_per_gpu(gpus)
    with imports():
        from vaebm.ebm.train import run
        from vaebm.training.loop import Limits
    run(settings, data, nvae, model, threads=threads, gpus=gpus, limits=Limits(time_limit, checkpoint_every))


@app.command(
    epilog=_example(
        "wgan results/digits_ablation/wgan/seed0/wgan.yaml --data data/digits/manifest.json --nvae nvae.pt --model model.pt"
    )
)
def wgan(
    settings: Settings,
    data: Data,
    nvae: NVAEModel,
    model: Model,
    threads: Threads = 1,
    gpus: GPUs = 0,
    time_limit: TimeLimit = None,
    checkpoint_every: CheckpointEvery = 60.0,
    log: Log = None,
) -> None:
    """Train the NVAE's decoder further as the generator of a GAN, for the ablation."""
    with imports():
        from vaebm.ebm.wgan import run
        from vaebm.training.loop import Limits
    run(settings, data, nvae, model, threads=threads, gpus=gpus, limits=Limits(time_limit, checkpoint_every))


@app.command(
    epilog=_example(
        f"samples {RUN}/samples/samples.yaml --nvae results/digits/nvae/seed0/model.pt --energy {RUN}/model.pt --shard 0 --output shard.npy"
    )
)
def samples(
    settings: Settings,
    nvae: NVAEModel,
    shard: Annotated[int, typer.Option(min=0, help="Which part of the images.")],
    output: Annotated[Path, typer.Option(help="Where the images go.")],
    energy: EnergyModel = None,
    threads: Threads = 1,
    gpus: GPUs = 0,
    log: Log = None,
) -> None:
    """Draw one shard of samples: decoder means after the test chain."""
    with imports():
        from vaebm.samples import run
    run(settings, nvae, energy, shard, output, threads=threads, gpus=gpus)


@app.command(
    epilog=_example(
        f"evaluation {RUN}/evaluation/evaluation.yaml --data data/digits/manifest.json --nvae results/digits/nvae/seed0/model.pt "
        f"--energy {RUN}/model.pt --extractor results/digits/reference/classifier.yaml --classifier results/digits/classifier/model.pt "
        "--reference results/digits/reference/classifier.npz "
        f"--metrics {RUN}/evaluation/metrics.json {RUN}/samples/shard-000.npy {RUN}/samples/shard-001.npy"
    )
)
def evaluation(
    settings: Settings,
    shards: Annotated[list[Path], typer.Argument(help="The samples.")],
    data: Data,
    nvae: NVAEModel,
    extractor: Annotated[Path, typer.Option(help="Settings file of the extractor.")],
    reference: Annotated[Path, typer.Option(help="Statistics of the real images.")],
    metrics: Annotated[
        Path, typer.Option(help="Where the figures go: results/EXPERIMENT/VARIANT/seedK/evaluation/metrics.json.")
    ],
    energy: EnergyModel = None,
    classifier: ClassifierModel = None,
    ood: Annotated[
        list[Path] | None,
        typer.Option(help="manifest.json of a data set that held-out images are told from.", show_default=False),
    ] = None,
    threads: Threads = 1,
    gpus: GPUs = 0,
    log: Log = None,
) -> None:
    """Measure samples and models."""
    with imports():
        from vaebm.evaluation.stage import run
        from vaebm.system.device import prepare

    run(
        settings,
        data,
        nvae,
        energy,
        extractor,
        classifier,
        reference,
        shards,
        metrics,
        ood or [],
        prepare(threads, gpus),
    )


@app.command(epilog=_example("benchmarks --compare ../other/results"))
def benchmarks(
    metrics: Annotated[
        list[Path] | None,
        typer.Argument(help="metrics.json of every run; none: the figures gathered earlier.", show_default=False),
    ] = None,
    paper: Annotated[Path, typer.Option(help="The paper's figures.")] = Path("config/paper.yaml"),
    experiments: Annotated[Path, typer.Option(help="Folder of the experiment files.")] = Path("config/experiments"),
    results: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results"),
    compare: Annotated[
        Path | None, typer.Option(help="Another folder of results, or its benchmarks.json, to set beside these.")
    ] = None,
    log: Log = None,
) -> None:
    """Set the figures beside the paper's, as table and report, or beside those of other results."""
    if metrics or compare is None:
        with imports():
            from vaebm.report.aggregate import run
        run(metrics or [], paper, experiments, results)
    if compare is not None:
        with imports():
            from vaebm.report.compare import run as run_comparison
        run_comparison(results, compare)


@app.command(epilog=_example("describe cifar10 --tflops 20"))
def describe(
    experiment: Annotated[
        Path,
        typer.Argument(help="An experiment: a name in config/experiments, or a file.", autocompletion=experiments_here),
    ],
    tflops: Annotated[float, typer.Option(help="What all devices of a stage sustain together, in TFLOP/s.")] = 10.0,
    log: Log = None,
) -> None:
    """Tell what an experiment takes: parameters, work, memory and time. Needs no data and trains nothing."""
    with imports():
        from vaebm.cli.describe import run
    run(experiment, tflops)


convert = typer.Typer(
    help="Read a published checkpoint and write it as a model of this project.",
    epilog=_example("convert nvae checkpoint.pt model.pt"),
    no_args_is_help=True,
)
app.add_typer(convert, name="convert")

Published = Annotated[Path, typer.Argument(help="The published checkpoint.", metavar="OFFICIAL")]
Converted = Annotated[Path, typer.Argument(help="Where the model goes.", metavar="MODEL")]


@convert.command("nvae", epilog=_example("convert nvae checkpoint.pt model.pt"))
def convert_nvae(official: Published, model: Converted, log: Log = None) -> None:
    """An NVAE with its own arguments: weights and settings, every key and shape checked."""
    with imports():
        from vaebm.nvae.published_checkpoint import convert
    convert(official, model)


@convert.command("energy", epilog=_example("convert energy EBM_25000.pth model.pt"))
def convert_energy(official: Published, model: Converted, log: Log = None) -> None:
    """An energy network, recognised by its shapes."""
    with imports():
        from vaebm.energy.published_checkpoint import convert
    convert(official, model)


@app.command(epilog=_example("track results/digits"))
def track(results: Annotated[Path, typer.Argument(help="An experiment's results.")], log: Log = None) -> None:
    """Mirror an experiment's results to MLflow; what is there already is not written twice."""
    with imports():
        from vaebm.tracking import run
    run(results)


def _one_process_per_gpu(gpus: int) -> None:
    """Start this command again for each GPU that it asks for and that is there, unless this is one of those processes already.

    The GPUs are this process's, which ends last.
    """
    if gpus < 2:
        return
    import torch

    from vaebm.system.distributed import launch, started
    from vaebm.system.gpu_lease import choose

    if started() > 1:
        return
    choose(gpus)
    if (found := min(gpus, torch.cuda.device_count())) > 1:
        sys.exit(launch(found, ["-m", "vaebm", *sys.argv[1:]]))


def _tell(reason: str) -> None:
    """Print why this command ends, unless another process of the same training has done so."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from vaebm.system.distributed import first_to_fail

        if not first_to_fail():
            return
    print(reason, file=sys.stderr)


def main() -> Any:
    """Run the command line; the last line of the log of a failed command is its message, without a trace for a user's mistake."""
    if (
        "RANK" not in os.environ
    ):  # torchrun sets both; a cluster's shell may set the other alone, which makes no processes
        os.environ.pop("WORLD_SIZE", None)
    with mirrored(asked_for(sys.argv[1:])):
        try:
            app()
        except UserError as error:
            _tell(str(error))
            sys.exit(1)
        except Exception as error:
            from vaebm.system.device import Interrupted

            if isinstance(error, Interrupted):
                _tell(str(error))
                sys.exit(error.status)
            _tell(traceback.format_exc().rstrip())
            sys.exit(1)
