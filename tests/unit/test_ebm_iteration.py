"""An iteration of the energy's training: where its chains start, what it changes, what it measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from ebm_stage import REPLAY, make_nvae, settings
from torch import Tensor

from vaebm.chain.diagnostics import diagnose
from vaebm.config import EBMSettings
from vaebm.ebm.ahead import AHEAD
from vaebm.ebm.contrastive_divergence import positives
from vaebm.ebm.iteration import SMALL, EBMTrainer, initialize
from vaebm.energy.network import EnergyNetwork
from vaebm.noise import NoiseSource
from vaebm.system.device import seeded


def make_trainer(bits: int = 8, **changes: Any) -> EBMTrainer:
    """In double precision, initialised."""
    stage = EBMSettings.model_validate(settings(**changes))
    nvae = make_nvae(bits).double()
    with seeded(1):
        energy = EnergyNetwork(stage.network, 1).double()
    initialize(energy, nvae, images(40), stage, seed=0)
    return EBMTrainer(nvae, energy, stage, seed=0)


def images(count: int = 4) -> Tensor:
    return torch.randint(0, 256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def iterate(trainer: EBMTrainer, steps: range) -> None:
    for step in steps:
        trainer.gradients(trainer.batch(step, images(40)), step)
        trainer.update(1e-3)


@pytest.mark.parametrize("potential", ["noise", "density"])
def test_each_chain_follows_its_own_gradient(potential: str) -> None:
    """Two of four chains end where they end in a batch of two: to rounding, which depends on the size of a batch."""
    two, four = make_trainer(potential=potential), make_trainer(potential=potential)
    two.gradients(images()[:2], 0)
    four.gradients(images(), 0)
    start, _ = four.start(images(), 0, NoiseSource(0, "chain", range(4)))
    for alone, among, begin in zip(two.ends, four.ends, start, strict=True):
        torch.testing.assert_close(alone, among[:2], rtol=1e-12, atol=1e-12)
        assert (among - begin).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("potential", "start"), [("noise", "prior"), ("density", "prior"), ("pixels", "prior"), ("pixels", "uniform")]
)
def test_an_iteration_moves_the_energy_alone(potential: str, start: str) -> None:
    """All of its parameters but the head's bias, which no difference of energies sees, and nothing of the NVAE."""
    trainer, nvae = (
        make_trainer(potential=potential, start=start, training={"energy_penalty": 0.0, "weight_decay": 0.0}),
        make_nvae().double(),
    )
    before = {name: value.clone() for name, value in trainer.energy.state_dict().items()}
    iterate(trainer, range(1))
    moved = {name for name, value in trainer.energy.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == set(before) - {"head.bias"}
    assert all(torch.equal(value, trainer.nvae.state_dict()[name]) for name, value in nvae.state_dict().items())


def test_chains_from_encoded_images_start_at_the_posteriors_draw() -> None:
    """The last quarter of the chains decodes to the reconstructions of their images; the others are new."""
    trainer, chosen = make_trainer(encoded=0.25), images(8)
    noise = NoiseSource(0, "chain", range(16, 24))
    eps_z, eps_x = trainer.start(chosen, 2, noise)
    fresh, fresh_x = trainer.vaebm.initial_noise(noise)
    posterior = trainer.nvae(chosen[6:].double() / 255, noise=NoiseSource(0, "encoded", range(22, 24)))
    decoded, log_p = trainer.vaebm.decode([part[6:] for part in eps_z])
    torch.testing.assert_close(decoded.mean, posterior.pixels.mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(log_p, posterior.log_p, rtol=1e-10, atol=1e-10)
    assert torch.equal(eps_x, fresh_x)
    for part, new in zip(eps_z, fresh, strict=True):
        assert torch.equal(part[:6], new[:6]) and not torch.isclose(part[6:], new[6:]).any()


def test_replayed_chains_go_on_where_the_last_ones_ended() -> None:
    """Probability 1, buffer of one batch: the chains start from the last ends in some order, with new pixel noise."""
    trainer = make_trainer(replay={"capacity": 4, "probability": 1.0, "anneal_iterations": 1})
    iterate(trainer, range(3))
    noise = NoiseSource(0, "chain", range(12, 16))
    eps_z, eps_x = trainer.start(images(), 3, noise)
    assert torch.equal(eps_x, trainer.vaebm.initial_noise(noise)[1])
    order = [(trainer.ends[0] == chain).flatten(1).all(1).nonzero().item() for chain in eps_z[0]]
    assert sorted(order) == [0, 1, 2, 3]
    assert all(torch.equal(part, end[order]) for part, end in zip(eps_z, trainer.ends, strict=True))


@pytest.mark.parametrize(("quantized", "levels"), [(True, 31), (False, 255)])
def test_positives_have_the_depth_of_the_nvae_or_of_the_file(quantized: bool, levels: int) -> None:
    trainer, seen = make_trainer(bits=5, quantize_positives=quantized), list[Tensor]()
    trainer.energy.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    trainer.gradients(images(), 0)
    positive = seen[-1].chunk(2)[0]  # before the chains' images
    assert torch.equal((positive * levels).round() / levels, positive)
    assert len(positive.unique()) > 0.5 * min(levels, 256)


def test_positives_of_a_block_of_iterations_are_those_of_each_alone() -> None:
    """To rounding; in the same bits after a resume within the block, and others after a restart with another seed."""
    whole, resumed, data = make_trainer(positives="matched"), make_trainer(positives="matched"), images(40)
    for step in (0, 1, AHEAD - 1, AHEAD + 3):
        noise = NoiseSource(0, "positives", range(4 * step, 4 * step + 4))
        alone = positives(whole.nvae, whole.batch(step, data), whole.stage, noise)
        found = whole.positives(step, data)
        torch.testing.assert_close(found, alone, rtol=1e-12, atol=1e-12)
    assert torch.equal(resumed.positives(step, data), found)
    whole.restart(whole.snapshot())
    assert not torch.isclose(whole.positives(step, data), found).all()
    large = torch.zeros(40, 1, 64, 64, dtype=torch.uint8)
    assert 4 * large[0].numel() > SMALL and whole.positives(0, large) is None
    assert make_trainer().positives(0, data) is None


@pytest.mark.parametrize("encoded", [0.0, 0.5])
def test_negatives_of_a_call_are_those_of_each_iteration_with_the_energy_of_the_first(encoded: float) -> None:
    """To rounding; in the same bits after a resume between two calls, and others after a restart with another seed."""
    changes: dict[str, Any] = {"encoded": encoded, "training": {"chain_every": 3}}
    trainer, fresh, resumed, data = *(make_trainer(**changes) for _ in range(3)), images(40)
    alone = make_trainer(encoded=encoded)
    seen = list[Tensor]()
    alone.energy.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    for step in range(3):
        found = trainer.negatives(step, data)
        alone.gradients(alone.batch(step, data), step)  # without an update
        torch.testing.assert_close(found, seen[-1].chunk(2)[1], rtol=1e-12, atol=1e-12)
        trainer.gradients(trainer.batch(step, data), step, None, found)
        trainer.update(1e-1)
    resumed.load_state_dict(trainer.state_dict())
    assert torch.equal(resumed.negatives(2, data), found)
    following = trainer.negatives(3, data)
    assert not torch.isclose(following, fresh.negatives(3, data)).all()  # the energy has moved
    trainer.restart(trainer.snapshot())
    assert not torch.isclose(trainer.negatives(3, data), following).all()
    assert alone.negatives(0, data) is None


def test_the_norm_of_the_gradient_is_limited_after_the_other_clip() -> None:
    """Same direction, the length asked for; the figure is that before."""
    free, limited = make_trainer(), make_trainer(training={"gradient_norm_limit": 0.5})
    for trainer in (free, limited):
        seen = trainer.gradients(images(), 0)
        trainer.update(1e-3)
    before, after = (
        torch.cat([p.grad.flatten() for p in trainer.parameters if p.grad is not None]) for trainer in (free, limited)
    )
    assert seen.gradient_norm == pytest.approx(before.norm().item(), rel=1e-12) and seen.gradient_norm > 1.0
    torch.testing.assert_close(
        after, before * (0.5 / before.norm()), rtol=1e-5, atol=1e-12
    )  # torch adds 1e-6 to the norm


def test_only_the_energy_moves() -> None:
    trainer = make_trainer()
    before = {name: value.clone() for name, value in trainer.nvae.state_dict().items()}
    weights = [parameter.clone() for parameter in trainer.parameters]
    iterate(trainer, range(2))
    assert all(torch.equal(value, before[name]) for name, value in trainer.nvae.state_dict().items())
    assert not any(torch.equal(*pair) for pair in zip(trainer.parameters, weights, strict=True))


def test_a_restart_has_the_snapshots_weights_and_another_seed(tmp_path: Path) -> None:
    """Restores optimiser, average and singular vectors; the buffer is empty; chains and batches are new and fixed."""
    trainer = make_trainer(replay=REPLAY)
    iterate(trainer, range(3))
    torch.save(trainer.snapshot(), tmp_path / "snapshot.pt")
    weights, old = (
        [parameter.clone() for parameter in trainer.parameters],
        (trainer.batch(5, images(40)), trainer.noise_seed),
    )
    iterate(trainer, range(3, 6))
    ends = []
    for _ in range(2):
        again = make_trainer(replay=REPLAY)
        again.restart(torch.load(tmp_path / "snapshot.pt", weights_only=True))
        assert (
            again.restarts == 1 and again.noise_seed != old[1] and not torch.equal(again.batch(5, images(40)), old[0])
        )
        assert all(torch.equal(*pair) for pair in zip(again.parameters, weights, strict=True))
        assert again.buffer is not None and len(again.buffer) == 0
        assert [float(state["step"]) for state in again.optimizer.state_dict()["state"].values()] == [3.0] * len(
            weights
        )
        assert again.average.updates == 3 and bool(again.spectral.started)
        iterate(again, range(3, 6))
        ends.append(again.ends)
    assert all(torch.equal(*pair) for pair in zip(*ends, strict=True))
    assert not any(torch.equal(*pair) for pair in zip(ends[0], trainer.ends, strict=True))


@pytest.mark.parametrize("steps", [3, 0])
def test_figures_of_chains_do_not_depend_on_how_many_run_at_once(steps: int) -> None:
    trainer, noise, seen = make_trainer(), NoiseSource(0, "chain", range(7)), list[Tensor]()
    eps_z, eps_x = trainer.vaebm.initial_noise(noise)

    def observe(eps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        images = trainer.vaebm.decode(eps[:-1])[0].sample(eps[-1])
        seen.append(trainer.energy(images))
        return seen[-1], images

    def potential(eps: Sequence[Tensor]) -> Tensor:
        return trainer.vaebm.potential(eps[:-1], eps[-1])

    whole, parts = (
        diagnose(potential, [*eps_z, eps_x], observe, steps=steps, step_size=0.02, noise=noise, batch=batch)
        for batch in (None, 3)
    )
    for name, value in asdict(whole).items():
        assert getattr(parts, name) == pytest.approx(value, rel=1e-10, abs=1e-12), name
    torch.testing.assert_close(
        torch.cat(seen[steps + 1 :: steps + 1]), seen[0], rtol=1e-10, atol=1e-12
    )  # in order: starts first
