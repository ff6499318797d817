"""The energy network, its objective, and what keeps its training safe."""

import pytest
import torch
from torch import Tensor

from vaebm.config import EBMTrainingSettings, EnergyNetworkSettings
from vaebm.ebm.contrastive_divergence import WeightAverage, adaptive_clip, contrastive_divergence
from vaebm.ebm.train import energy_learning_rate
from vaebm.energy.network import EnergyNetwork, lipswish
from vaebm.nvae.layers import DataInitializedConv2d


def network(**changes: object) -> EnergyNetwork:
    """A small network in double precision."""
    torch.manual_seed(0)
    settings = EnergyNetworkSettings.model_validate({"channels": 8, "widths": [1, 1, 2, 2], "down": [0, 2]} | changes)
    return EnergyNetwork(settings, 1).double()


def test_data_dependent_initialisation_sets_every_convolution() -> None:
    """On the batch that it saw, each channel of each convolution has mean 0 (where it has a bias) and deviation 0.2."""
    energy, images = network(), torch.rand(64, 1, 8, 8, dtype=torch.float64)
    energy.initialize(images)
    outputs = {}
    for name, layer in energy.named_modules():
        if isinstance(layer, DataInitializedConv2d):
            layer.register_forward_hook(
                lambda layer, _, out, name=name: outputs.update({name: (layer.bias is not None, out)})
            )
    energy(images)
    assert len(outputs) == 1 + 4 * 2 + 2
    for bias, out in outputs.values():
        assert out.std(dim=(0, 2, 3)).tolist() == pytest.approx([0.2] * out.shape[1], rel=1e-3)
        if bias:
            assert out.mean(dim=(0, 2, 3)).abs().max() < 1e-9


def test_skip_connections_only_where_width_or_resolution_change() -> None:
    assert [block.skip is not None for block in network().blocks] == [True, False, True, False]
    assert all(block.skip is None or block.skip.bias is None for block in network().blocks)


def test_head_sums_over_positions() -> None:
    """Twice the image side by side, each half seeing only itself, has twice the pooled features."""
    energy = network(widths=[1], down=[])
    with torch.no_grad():
        for layer in energy.modules():
            if isinstance(layer, DataInitializedConv2d):  # only the centre tap: no pixel sees its neighbours
                centre = layer.weight.shape[-1] // 2
                kept = layer.weight[:, :, centre, centre].clone()
                layer.weight.zero_()[:, :, centre, centre] = kept
    x = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    bias = energy.head.bias
    torch.testing.assert_close(energy(torch.cat([x, x], dim=3)) - bias, 2 * (energy(x) - bias))


def test_lipswish_has_a_lipschitz_constant_below_one() -> None:
    x = torch.linspace(-20, 20, 100_001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(lipswish(x).sum(), x)
    assert 0.99 < slope.max() < 1.0


def test_contrastive_divergence_and_its_penalty() -> None:
    energy = lambda x: x.flatten(1).sum(1)  # noqa: E731
    positive, negative = torch.full((2, 1, 1, 1), 1.0), torch.tensor([3.0, 5.0]).reshape(2, 1, 1, 1)
    plain = contrastive_divergence(energy, positive, negative)  # type: ignore[arg-type]
    assert plain.loss == plain.gap == -3.0
    assert plain.spread == pytest.approx(1.0)  # variances 0 and 2
    assert contrastive_divergence(energy, positive, negative, 0.1).loss == pytest.approx(-3.0 + 0.1 * (1.0 + 17.0))


def test_gradient_penalty_is_the_mean_squared_slope() -> None:
    """E = a/2 ‖x‖² has the slope a x: penalty and its derivative in a by hand."""
    a = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    positive, negative = torch.rand(2, 3, 1, 4, 4, dtype=torch.float64)
    squares = [images.square().flatten(1).sum(dim=1).mean() for images in (positive, negative)]

    def energy(x: Tensor) -> Tensor:
        return a / 2 * x.square().flatten(1).sum(dim=1)

    loss = contrastive_divergence(energy, positive, negative, gradient_penalty=0.3).loss
    gap = (squares[0] - squares[1]) / 2
    torch.testing.assert_close(loss, a * gap + 0.15 * a**2 * sum(squares))
    torch.testing.assert_close(torch.autograd.grad(loss, a)[0], gap + 0.3 * a.detach() * sum(squares))


def test_an_energy_that_sees_its_batch_has_data_and_chains_in_two_passes() -> None:
    """Statistics of both together would be others; the package's network has none, and one pass gives the same."""
    images = torch.rand(2, 4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    network = EnergyNetwork(EnergyNetworkSettings(channels=4, widths=[1], down=[]), 1)
    plug_in = torch.nn.Sequential(
        torch.nn.BatchNorm2d(1), torch.nn.Flatten(), torch.nn.Linear(64, 1), torch.nn.Flatten(0)
    )
    for energy, passes in ((network, [8]), (plug_in, [4, 4])):
        seen = list[int]()
        with torch.no_grad():
            expected = [energy(part) for part in images]
        energy.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(len(output)))
        found = contrastive_divergence(energy, *images)
        torch.testing.assert_close([found.positive, found.negative], expected)
        assert seen == passes


def test_adaptive_clip_follows_adams_second_moment() -> None:
    """First step unclipped; then every element is bounded by 3 √(v / (1 − β₂^t)) + 0.1 with the v before the step."""
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.Adam([parameter], lr=1e-3, betas=(0.99, 0.999))
    parameter.grad = torch.tensor([100.0, 1.0, 0.0])
    adaptive_clip(optimizer)
    assert parameter.grad.tolist() == [100.0, 1.0, 0.0]
    optimizer.step()
    parameter.grad = torch.tensor([1e6, -1e6, 1e6])
    adaptive_clip(optimizer)
    assert parameter.grad.tolist() == pytest.approx([300.1, -3.1, 0.1])


def test_weight_average_is_warmed_up_and_restored() -> None:
    weight = torch.zeros(1)
    average = WeightAverage([weight], 0.5)
    expected = 0.0
    for update in range(1, 30):
        weight.fill_(float(update))
        average.update()
        decay = min(0.5, update / (update + 9))
        expected = decay * expected + (1 - decay) * update
    assert average.mean[0].item() == pytest.approx(expected)
    again = WeightAverage([weight], 0.5)
    again.load_state_dict(average.state_dict())
    assert again.updates == 29 and torch.equal(again.mean[0], average.mean[0])
    without = WeightAverage([weight], 0.0)
    weight.fill_(5.0)
    without.update()
    assert without.mean[0].item() == 5.0


def test_learning_rate_decay() -> None:
    settings = EBMTrainingSettings(iterations=100, batch=2, learning_rate=1.0, learning_rate_decay="cosine")
    assert [energy_learning_rate(step, settings) for step in (0, 50, 100)] == pytest.approx([1.0, 0.5, 0.0], abs=1e-12)
    assert energy_learning_rate(50, settings.model_copy(update={"learning_rate_decay": "none"})) == 1.0
