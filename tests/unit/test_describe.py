"""Descriptions of experiments: published counts, closed forms of the work, and the bytes that autograd saves."""

from pathlib import Path

import pytest
import torch
import yaml
from small_nvae import network
from torch import nn

from vaebm.cli.describe import (
    blank,
    build,
    describe_experiment,
    duration,
    energy_update,
    inference,
    langevin_step,
    nvae_training,
    parameters,
    prepared_weights,
    run,
)
from vaebm.cli.work import Work, measured, quantity
from vaebm.config import EnergyNetworkSettings
from vaebm.config.yaml_files import read_experiment
from vaebm.energy.network import EnergyNetwork
from vaebm.fast import PreparedDecoder, PreparedEnergy
from vaebm.model import VAEBM
from vaebm.nvae.cells import BilinearUp, FactorizedReduce, ResidualCell
from vaebm.nvae.flows import CausalConv2d
from vaebm.nvae.model import NVAE
from vaebm.system.errors import UserError

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "config" / "experiments"


def networks(device: str, **changes: object) -> tuple[NVAE, EnergyNetwork]:
    """A small NVAE of 3×16×16 images with everything in it, and an energy."""
    settings = network(**{"channels_encoder": 8, "flows": 1, "architecture": "res_mbconv"} | changes)
    with torch.device(device):
        return NVAE(settings, (3, 16, 16)), EnergyNetwork(EnergyNetworkSettings(channels=4, widths=[1, 2], down=[1]), 3)


def test_a_model_from_elsewhere_takes_no_training() -> None:
    said = describe_experiment(EXPERIMENTS / "cifar10_published.yaml", 10.0)
    assert "nvae is taken from checkpoints/nvae_cifar10.pt" in said and "energy training" in said
    assert "NVAE training" not in said and "NVAE training" in describe_experiment(EXPERIMENTS / "cifar10.yaml", 10.0)


@pytest.mark.parametrize(
    ("name", "nvae", "energy"),
    [
        ("cifar10", 130_744_004, 5_137_921),
        ("celeba64", 65_005_372, 4_337_537),
        ("lsun_church64", 65_005_372, 5_813_633),
        ("celebahq256", 365_372_032, 14_207_105),
    ],
)
def test_parameters_are_those_of_the_published_models(name: str, nvae: int, energy: int) -> None:
    """Counted on the published programs; the experiment files hold the architectures."""
    vae, network = build(read_experiment(EXPERIMENTS / f"{name}.yaml"))
    assert network is not None and (parameters(vae), parameters(network)) == (nvae, energy)
    if name == "cifar10":
        assert sum(parameter.numel() for parameter in vae.decoder_parameters()) == 51_718_860


def test_the_decoder_side_is_what_decoding_uses() -> None:
    """Nothing else gets a gradient from it."""
    nvae, _ = networks("meta")
    pixels, log_p = nvae.decode(blank(nvae, 1)[1])
    gradients = torch.autograd.grad(pixels.mean.sum() + log_p.sum(), list(nvae.parameters()), allow_unused=True)
    assert sum(parameter.numel() for parameter in nvae.decoder_parameters()) == sum(
        gradient.numel() for gradient in gradients if gradient is not None
    )


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_a_convolution_backwards_takes_twice_its_way_forwards(groups: int) -> None:
    """Also where it is grouped or depthwise."""
    conv = nn.Conv2d(8, 16, 5, stride=2, padding=2, groups=groups, device="meta")
    with measured(conv) as work:
        out = conv(torch.empty(3, 8, 12, 12, device="meta", requires_grad=True))
        forward = work().flop
        out.sum().backward()
    assert forward == 2 * 3 * (6 * 6 * 16) * (8 // groups * 5 * 5)
    assert work().flop == 3 * forward


def test_work_of_the_energy_by_hand() -> None:
    """Multiply-adds of stem, two blocks and head on 16×16; the update needs no gradient of the images."""
    _, energy = networks("meta")
    stem, first, head = 256 * 27 * 4, 256 * 2 * 36 * 4, 8
    second = 256 * (36 + 72 + 4) * 8  # two 3×3 convolutions and the skip's 1×1
    once, update = energy_update(energy, torch.empty(5, 3, 16, 16, device="meta"))
    assert once == Work(5 * 2 * (stem + first + second + head), 0)
    assert update.flop == 2 * (3 * once.flop - 5 * 2 * stem)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"groups": [1], "channels_encoder": 4},
        {"architecture": "res_bnswish"},
        {"flows": 0, "decoder": "logistic_mixture"},
    ],
)
def test_work_of_the_nvae_by_hand(changes: dict[str, object]) -> None:
    """Per convolution and linear layer: 2 × output size × weights per output channel; backward twice that.

    Prepared chains do less work before a strided convolution or a pooling (`fast`).
    """
    nvae, energy = networks("cpu", **changes)
    flop = dict.fromkeys(nvae.modules(), 0)

    def count(layer: nn.Module, inputs: object, out: torch.Tensor) -> None:
        weight = layer.weight
        if isinstance(layer, CausalConv2d):  # the mask removes the third row
            weight = weight[:, :, :2]
        flop[layer] += 2 * out.numel() * weight[0].numel()

    def count_together(cell: ResidualCell, inputs: object, out: torch.Tensor) -> None:
        """A gate's two layers in training, and a skip's four convolutions: one product of 2×2 blocks with zeros."""
        gate = cell.branch[-1]
        if cell.training:
            flop[gate] += 2 * len(out) * sum(matrix.numel() for matrix in gate.parameters() if matrix.dim() > 1)
        if isinstance(cell.skip, FactorizedReduce):
            flop[cell.skip] += 2 * out.numel() * 4 * cell.skip.convs[0].in_channels

    flop |= dict.fromkeys(energy.modules(), 0)
    for layer in flop:
        if isinstance(layer, ResidualCell):
            layer.register_forward_hook(count_together)
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    x, eps = blank(nvae, 3)
    nvae.eval()(x, eps=eps)
    whole, stem = sum(flop.values()), flop[nvae.stem]
    flop.update(dict.fromkeys(flop, 0))
    nvae.decode(eps)
    decoded = sum(flop.values())
    energy(x)
    up = [cell for cell in nvae.modules() if isinstance(cell, ResidualCell) and isinstance(cell.skip, BilinearUp)]
    down = [block for block in energy.blocks if block.down]
    assert up and down
    moved = [next(layer for layer in cell.branch.modules() if isinstance(layer, nn.Conv2d)) for cell in up]
    moved += [block.skip for block in down]
    saved = sum(0.75 * flop[layer] for layer in moved if layer.kernel_size == (1, 1))
    saved += sum((1 - 4 / 9) * flop[block.second] for block in down)  # 4×4 at every fourth pixel instead of 3×3 at each
    step_flop = 2 * (sum(flop.values()) - saved)  # no weight has a gradient

    nvae, energy = networks("meta", **changes)
    forward, step = nvae_training(nvae, 3)
    assert forward.flop == whole
    assert step.flop == 3 * whole - stem  # the images have no gradient
    assert [work.flop for work in inference(nvae, 3)] == [decoded, whole]
    if nvae.settings.decoder == "normal":
        assert langevin_step(VAEBM(nvae, energy), 3).flop == pytest.approx(step_flop, rel=1e-12)


def test_activations_are_the_bytes_that_autograd_saves() -> None:
    """The same on tensors with values: shapes alone tell the whole."""
    found = []
    for device in ("cpu", "meta"):
        nvae, energy = networks(device)
        training, update = nvae_training(nvae, 3), energy_update(energy, blank(nvae, 3)[0])
        found.append((training, update, langevin_step(VAEBM(nvae, energy, "density"), 3)))
    assert found[0] == found[1]


def test_prepared_weights_by_hand() -> None:
    """Stem, two convolutions and skip of a block, head; 3×3 and pointwise weights are there transposed, too."""
    energy = EnergyNetwork(EnergyNetworkSettings(channels=4, widths=[2], down=[0]), 3)
    stem, first, second, skip, head = 2 * 3 * 4 * 9 + 4, 2 * 4 * 8 * 9 + 8, 8 * 8 * 16 + 8, 2 * 4 * 8 + 8, 8 + 1
    assert sum(tensor.numel() for tensor in PreparedEnergy(energy).tensors()) == stem + first + second + skip + head
    nvae, whole = networks("meta")
    decoder = sum(tensor.nbytes for tensor in PreparedDecoder(nvae).tensors())
    assert prepared_weights(VAEBM(nvae.eval(), whole)) == decoder + sum(
        tensor.nbytes for tensor in PreparedEnergy(whole).tensors()
    )


def test_activations_of_one_layer() -> None:
    """A convolution saves its input, silu its own; the weight is none of them, and what is saved twice is held once."""
    conv, x = nn.Conv2d(2, 4, 3, padding=1, device="meta"), torch.empty(5, 2, 6, 6, device="meta")
    with measured(conv) as work:
        out = conv(x)
        saved = [work().activations]
        nn.functional.silu(out)
        saved.append(work().activations)
        nn.functional.silu(out)
        saved.append(work().activations)
    assert saved == [4 * 5 * 2 * 36, 4 * 5 * (2 + 4) * 36, 4 * 5 * (2 + 4) * 36]


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_can_be_described(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales, decoder, stages and resources of each file, with fewer groups and cells to save time."""
    content = read_experiment(path).model_dump(exclude_none=True)
    network = content["nvae"]["network"]
    network.update(
        groups=[2] + [1] * (len(network["groups"]) - 1),
        cells_encoder=1,
        cells_decoder=1,
        preprocess_cells=1,
        postprocess_cells=1,
    )
    monkeypatch.chdir(tmp_path)  # there is no data
    Path("small.yaml").write_text(yaml.safe_dump(content))
    lines = describe_experiment(Path("small.yaml"), 10).splitlines()
    assert list(Path().iterdir()) == [Path("small.yaml")], "nothing is written"
    assert max(map(len, lines)) <= 100
    stages = [name for name in ("data", "nvae", "prior", "ebm", "samples", "evaluation") if name in content]
    assert lines[1] == f"stages    {', '.join(stages)}"
    assert any(line.startswith("missing") for line in lines) == any(
        name not in content for name in ("ebm", "samples", "evaluation")
    )
    assert sum(" group" in line for line in lines) == len(network["groups"])
    assert sum("Langevin step  " in line for line in lines) == (2 if "ebm" in content else 0), "its work and its memory"


def test_time_is_work_over_throughput() -> None:
    """1,500 images in batches of 50 for two epochs are 60 steps."""
    tiny = EXPERIMENTS / "tiny.yaml"
    _, step = nvae_training(build(read_experiment(tiny))[0], 50)
    throughput = 60 * step.flop / 1e12 / (3600 * 55)
    row = next(
        line
        for line in describe_experiment(tiny, throughput).splitlines()
        if line.startswith("  NVAE training  ") and "epochs" in line
    )
    assert row.split("  ")[-1] == f"2 epochs, 60 steps, {quantity(60 * step.flop, 'FLOP')}" and " 55.0 h " in row


def test_recomputation_is_of_the_training_alone(tmp_path: Path) -> None:
    """More work and fewer activations of an NVAE's step; decoder, chains and samples are as they were."""
    kept, again = (tmp_path / f"{name}.yaml" for name in ("kept", "again"))
    kept.write_text((EXPERIMENTS / "tiny.yaml").read_text())
    again.write_text(
        kept.read_text().replace("  training:\n    epochs: 2", "  training:\n    recompute: true\n    epochs: 2")
    )
    pairs = list(zip(*(describe_experiment(path, 10).splitlines()[1:] for path in (kept, again)), strict=True))
    changed = [one[:22].strip() for one, other in pairs if one != other]
    assert changed == ["NVAE training step", "NVAE training", "activations", "NVAE training"], (
        "work, memory, and the NVAE's time"
    )


def test_numbers_are_read_without_an_exponent() -> None:
    assert [quantity(value, "B") for value in (12, 999.4, 999.6, 1.2345e9, 9.996e11, 4e18)] == [
        "12.0 B",
        "999 B",
        "1.00 kB",
        "1.23 GB",
        "1.00 TB",
        "4.00 EB",
    ]
    assert [duration(value) for value in (0.5, 5, 300, 3600 * 55, 86400 * 12)] == [
        "below 1 s",
        "5.00 s",
        "5.00 min",
        "55.0 h",
        "12.0 days",
    ]


def test_by_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    run(Path("tiny"), 10)
    assert capsys.readouterr().out == describe_experiment(Path("config/experiments/tiny.yaml"), 10) + "\n"


@pytest.mark.parametrize(
    ("experiment", "throughput", "message"),
    [
        (
            "cifar11",
            10,
            r"^config/experiments/cifar11.yaml: there is no experiment 'cifar11'; "
            r"experiments that exist: celeba64, .*cifar10, .*$",
        ),
        (
            "elsewhere/mine.yaml",
            10,
            r"^elsewhere/mine.yaml: there is no experiment 'mine'; experiments that exist: none$",
        ),
        ("tiny", 0, r"^--tflops: expected a number above 0, found 0$"),
        ("tiny", float("nan"), r"^--tflops: expected a number above 0, found nan$"),
    ],
)
def test_mistakes_are_one_line(
    experiment: str, throughput: float, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=message):
        run(Path(experiment), throughput)
