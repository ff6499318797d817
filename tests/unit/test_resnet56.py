"""The ResNet-56 of CIFAR-10 as an extractor: its form, its checkpoints, and what is refused."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vaebm.evaluation.extractors import Extractor
from vaebm.evaluation.resnet56 import MEAN, STD, ResNet56, load_resnet56, shortcut
from vaebm.measures import bootstrap
from vaebm.measures.frechet import Statistics
from vaebm.records.files import dump
from vaebm.system.device import seeded
from vaebm.system.errors import UserError


def random_state(seed: int) -> dict[str, torch.Tensor]:
    """Weights of no meaning, the statistics of batch norm included."""
    with seeded(seed):
        model = ResNet56()
        for name, tensor in model.state_dict().items():
            if name.endswith("running_mean"):
                tensor.normal_(0, 0.1)
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
    return {
        name: tensor.clone() for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")
    }


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8))


def by_hand(state: dict[str, torch.Tensor], images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The network from its weights alone, one operation after the other, in double precision."""
    state = {name: tensor.double() for name, tensor in state.items()}

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        mean, var, gain, bias = (
            state[f"{name}.{part}"].view(1, -1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + 1e-5) * gain + bias

    x = torch.stack([(images[:, colour].double() / 255 - MEAN[colour]) / STD[colour] for colour in range(3)], dim=1)
    x = norm(F.conv2d(x, state["conv1.weight"], padding=1), "bn1").relu()
    for stage in (1, 2, 3):
        for block in range(9):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = norm(F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1), f"{name}.bn1").relu()
            y = norm(F.conv2d(y, state[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
            if stride == 2:
                around = torch.zeros_like(y)
                quarter = y.shape[1] // 4
                around[:, quarter : 3 * quarter] = x[:, :, 0::2, 0::2]
            else:
                around = x
            x = (y + around).relu()
    features = x.flatten(2).mean(2)
    return features, features @ state["linear.weight"].T + state["linear.bias"]


def test_network_is_what_its_weights_say_by_hand(tmp_path: Path) -> None:
    state = random_state(0)
    model = load_resnet56(saved(tmp_path / "weights.th", state))
    features, logits = by_hand(state, IMAGES)
    # single against double precision over 56 layers
    assert torch.allclose(model.features(IMAGES).double(), features, rtol=1e-4, atol=1e-5)
    assert torch.allclose(model(IMAGES).double(), logits, rtol=1e-4, atol=1e-4)
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())


def test_size_is_that_of_the_published_network() -> None:
    """0.85 M parameters (He et al., 2016, table 6), none in shortcuts; 55 convolutions and the linear layer."""
    model = ResNet56()
    convolutions = 9 * (3 * 16 + 18 * 16 * 16 + 16 * 32 + 17 * 32 * 32 + 32 * 64 + 17 * 64 * 64)
    norms, linear = 2 * (19 * 16 + 18 * 32 + 18 * 64), 64 * 10 + 10
    assert sum(parameter.numel() for parameter in model.parameters()) == convolutions + norms + linear == 853_018
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(layers) == 56


def test_shortcut_takes_every_second_pixel_and_adds_zeros_on_both_sides() -> None:
    x = torch.arange(2 * 16 * 8 * 8, dtype=torch.float32).reshape(2, 16, 8, 8) + 1
    found = shortcut(x, 32, 2)
    assert found.shape == (2, 32, 4, 4)
    assert torch.equal(found[:, 8:24], x[..., ::2, ::2]) and not found[:, :8].any() and not found[:, 24:].any()
    assert torch.equal(shortcut(x, 16, 1), x)


def test_checkpoints_are_read_in_the_forms_that_they_come_in(tmp_path: Path) -> None:
    """With `module.` before the names, under `state_dict`, with counts of batches: the same network."""
    state = random_state(1)
    expected = load_resnet56(saved(tmp_path / "bare.th", state))(IMAGES)
    prefixed = {f"module.{name}": tensor for name, tensor in state.items()}
    counted = prefixed | {"module.bn1.num_batches_tracked": torch.tensor(5)}
    for name, content in {"prefixed": prefixed, "wrapped": {"best_prec1": 90.0, "state_dict": counted}}.items():
        assert torch.equal(load_resnet56(saved(tmp_path / f"{name}.th", content))(IMAGES), expected)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda state: [1, 2], "found another kind of file"),
        (
            lambda state: {name: tensor for name, tensor in state.items() if name != "linear.bias"},
            "found no linear.bias in it",
        ),
        (
            lambda state: state | {"layer2.0.downsample.weight": torch.zeros(1)},
            "found also layer2.0.downsample.weight in it",
        ),
        (
            lambda state: state | {"linear.weight": torch.zeros(100, 64)},
            r"with linear.weight \(10, 64\), found \(100, 64\)",
        ),
        (lambda state: state | {"linear.weight": 3}, r"with linear.weight \(10, 64\), found int"),
        (lambda state: {"state_dict": state, "who": Path()}, "found an object of pathlib.* in it, which is not read"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, harm, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load_resnet56(saved(tmp_path / "weights.th", harm(random_state(0))))
    assert str(tmp_path / "weights.th") in str(error.value) and "\n" not in str(error.value)


def test_extractor_names_the_bytes_of_its_weights(tmp_path: Path) -> None:
    path = saved(tmp_path / "weights.th", random_state(2))
    extractor = Extractor.of("resnet56", path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert extractor.weights == digest and extractor.name == f"resnet56-{digest[:12]}"
    assert dump(extractor.describe((3, 32, 32))) | {"torch-fidelity": ""} == {
        "kind": "resnet56",
        "name": extractor.name,
        "weights": digest,
        "features": 64,
        "torch-fidelity": "",
    }
    found, model = extractor.extract(IMAGES), load_resnet56(path)
    assert found.features.dtype == np.float32 and np.array_equal(found.features, model.features(IMAGES).numpy())
    assert found.logits.shape == (6, 1, 10) and np.array_equal(found.logits[:, 0], model(IMAGES).numpy())
    with pytest.raises(UserError, match=r"resnet56 is made for images \(3, 32, 32\), found \(3, 64, 64\)"):
        extractor.extract(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(
        UserError,
        match=r"none.th: expected the weights of resnet56, found No such file.*; "
        r"evaluation.resnet56_weights names the file",
    ):
        Extractor.of("resnet56", tmp_path / "none.th")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_gpu_gives_the_features_and_the_resamples_of_the_cpu(tmp_path: Path) -> None:
    path = saved(tmp_path / "weights.th", random_state(0))
    cpu, gpu = (Extractor.of("resnet56", path, device).extract(IMAGES) for device in ("cpu", "cuda"))
    # single precision, where a GPU may round factors of convolutions to TF32: 2⁻¹¹ each
    assert np.allclose(cpu.features, gpu.features, rtol=1e-2, atol=1e-2 * np.abs(cpu.features).max())
    counts = np.ones((2, len(IMAGES)), dtype=np.int64)
    reference = Statistics.of(cpu.features[::-1] + 1)
    there = [bootstrap.frechet_replicates(cpu.features, counts, [reference], device) for device in ("cpu", "cuda")]
    # double precision on both; roots of eigenvalues that should be 0 are rounding errors
    assert np.allclose(*there, rtol=1e-4)
    kernels = [bootstrap.kid_replicates(cpu.features, cpu.features + 1, counts, device) for device in ("cpu", "cuda")]
    assert np.allclose(*kernels, rtol=1e-2)
