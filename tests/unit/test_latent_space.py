"""Images in noise space: encoding, paths between images, temperature."""

import math

import numpy as np
import pytest
import torch
from networks import ENERGY, NETWORK, as_a_user
from PIL import Image

from vaebm.config.ebm import ChainSettings, LangevinSettings
from vaebm.energy.network import EnergyNetwork
from vaebm.evaluation import plots
from vaebm.model import VAEBM, PixelEBM
from vaebm.model.latent_space import great_circle, posterior_noise
from vaebm.noise import NoiseSource
from vaebm.nvae.model import NVAE
from vaebm.system.errors import UserError


@pytest.fixture
def model():
    torch.manual_seed(0)
    nvae, energy = NVAE(NETWORK, (1, 8, 8)).eval().requires_grad_(False), EnergyNetwork(ENERGY, 1)
    energy.initialize(torch.rand(16, 1, 8, 8))
    return VAEBM(nvae, energy.requires_grad_(False), chain=ChainSettings(steps=2, step_size=0.01)).double()


def test_a_great_circle_turns_evenly_and_keeps_the_norm():
    """Orthogonal ends of norm 2, in two groups: the point at t is 2 (cos(t π/2) e₀ + sin(t π/2) e₁)."""
    first = [torch.tensor([[2.0, 0.0]]).double(), torch.zeros(1, 1, 2).double()]
    last = [torch.zeros(1, 2).double(), torch.tensor([[[0.0, 2.0]]]).double()]
    places = torch.tensor([0.0, 0.25, 1.0])
    one, other = great_circle(first, last, places)
    turn = places.double() * math.pi / 2
    assert torch.allclose(one[0, :, 0], 2 * turn.cos(), atol=1e-12)
    assert torch.allclose(other[0, :, 0, 1], 2 * turn.sin(), atol=1e-12)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_parallel_ends_have_finite_paths(sign):
    first = [torch.tensor([[1.0, 2.0]]).double()]
    (path,) = great_circle(first, [sign * first[0]], torch.linspace(0, 1, 3))
    assert torch.isfinite(path).all()
    assert torch.allclose(path[0, 0], first[0][0], atol=1e-5)
    assert torch.allclose(path[0, 2], sign * first[0][0], atol=1e-5)


def test_encoded_noise_decodes_to_the_posterior_s_reconstruction(model):
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    noise = NoiseSource(3, "encoded", range(5))
    expected = model.nvae(model.nvae.as_input(images), noise=noise).pixels.mean.clamp(0, 1)
    assert torch.allclose(model.reconstruct(images, seed=3), expected, atol=1e-12)
    parts = posterior_noise(model.nvae, images, 3, batch=2)
    assert all(map(torch.allclose, parts, posterior_noise(model.nvae, images, 3)))


def test_paths_end_at_the_reconstructions_and_chains_move_them(model):
    first, last = torch.rand(2, 2, 1, 8, 8).double()
    paths = model.interpolate(first, last, 4, seed=1)
    assert paths.shape == (2, 4, 1, 8, 8)
    assert torch.allclose(paths[:, 0], model.reconstruct(first, seed=1), atol=1e-9)
    assert torch.allclose(paths[:, -1], model.reconstruct(last, seed=1), atol=1e-9)
    assert not torch.allclose(model.interpolate(first, last, 4, seed=1, steps=2), paths)


def test_the_picture_has_pairs_of_images_around_paths_and_the_chain_below(model, tmp_path):
    """Seven images make three pairs; each cell is 40 pixels wide and has a line of 2."""
    images = torch.randint(0, 256, (7, 1, 8, 8), dtype=torch.uint8)
    rows = {}
    for name, energy in (("vaebm", model.energy), ("nvae", None)):
        found = VAEBM(model.nvae, energy, chain=model.test_chain)
        plots.interpolations(found, images, 0, tmp_path / f"{name}.png")
        cells = np.asarray(Image.open(tmp_path / f"{name}.png"))[..., 0]
        rows[name] = cells[2:, 2:].reshape(-1, 42, 8, 42)[:, :40:5, :, :40:5].swapaxes(1, 2)
    assert rows["vaebm"].shape == (6, 8, 8, 8) and np.array_equal(rows["vaebm"][::2], rows["nvae"])
    ends = rows["nvae"][:, [0, 7]]
    assert np.array_equal(ends, images[:6].reshape(2, 3, 8, 8).swapaxes(0, 1))
    assert (rows["vaebm"][1::2, [0, 7]] == 214).all() and not np.array_equal(rows["vaebm"][1::2], rows["nvae"])


def test_temperature_scales_the_priors(model):
    """Without a chain the images are those of the decoder at that temperature; 0 draws one image."""
    eps, _ = model.initial_noise(NoiseSource(0, "samples", range(3)))
    expected = model.nvae.decode(eps, temperature=0.7)[0].mean.clamp(0, 1)
    assert torch.allclose(model.sample(3, steps=0, temperature=0.7), expected, atol=1e-12)
    cold = model.sample(3, steps=0, temperature=0.0)
    assert torch.allclose(cold, cold[:1].expand_as(cold), atol=1e-12)
    assert torch.isfinite(model.sample(2, temperature=1e6)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *[({"temperature": bad}, "temperature: expected a number from 0, found") for bad in (-0.1, math.inf, math.nan)],
        ({"steps": -1}, "chain: steps: "),
        ({"step_size": -1.0}, "chain: step_size: "),
        ({"step_size": math.nan}, "chain: step_size: "),
        *[({"count": bad}, f"count: expected an integer from 1, found {bad}") for bad in (0, -1, 2.5)],
        *[({"batch": bad}, f"batch: expected an integer from 1, found {bad}") for bad in (0, -1)],
    ],
)
def test_arguments_out_of_range_are_refused(model, arguments, message):
    with as_a_user(), pytest.raises(UserError, match=message):
        model.sample(**{"count": 1} | arguments)


def test_chains_and_paths_have_at_least_one_image(model):
    images = torch.rand(2, 1, 8, 8).double()
    for call in (model.chain, lambda count: model.interpolate(images, images, count)):
        with pytest.raises(UserError, match="count: expected an integer from 1, found 0"):
            call(0)
    assert torch.allclose(model.interpolate(images, images.flip(0), 1)[:, 0], model.reconstruct(images), atol=1e-9)


def test_steps_need_a_step_size_where_there_is_no_test_chain(model):
    """Without one the chain would walk with η = 1, the step size of no chain."""
    alone, images = VAEBM(model.nvae, None), torch.rand(2, 1, 8, 8).double()
    noise = NoiseSource(0, "samples", range(2))
    calls = [
        lambda model, **size: model.sample(2, steps=3, **size),
        lambda model, **size: model.chain(2, steps=3, **size)[-1],
        lambda model, **size: model.refine(*model.initial_noise(noise), noise=noise, steps=3, **size)[1],
        lambda model: model.interpolate(images, images.flip(0), 3, steps=3),
    ]
    chained = VAEBM(model.nvae, None, chain=ChainSettings(steps=3, step_size=0.2))
    for number, call in enumerate(calls):
        with pytest.raises(UserError, match="step_size: expected one without a test chain, found none"):
            call(alone)
        assert number == 3 or torch.equal(call(alone, step_size=0.2), call(chained))
    assert torch.equal(alone.sample(2, step_size=0.2), alone.sample(2, steps=0))


def test_a_whole_chain_takes_no_further_numbers(model):
    noise = NoiseSource(0, "samples", range(2))
    start, chain = model.initial_noise(noise), ChainSettings(steps=1, step_size=0.1)
    for given in ({"steps": 3}, {"step_size": 0.2}):
        with pytest.raises(UserError, match=f"{next(iter(given))}: expected none with chain"):
            model.refine(*start, noise=noise, chain=chain, **given)
    whole, parts = (
        model.refine(*start, noise=noise, **one) for one in ({"chain": chain}, {"steps": 1, "step_size": 0.1})
    )
    assert torch.equal(whole[1], parts[1]) and not torch.equal(whole[1], start[1])


def test_noise_of_other_shapes_is_refused(model):
    """A single chain's noise would otherwise serve all chains."""
    noise = NoiseSource(0, "samples", range(4))
    eps_z, eps_x = model.initial_noise(noise)
    for wrong in ((eps_z[1:], eps_x), ([part[:1] for part in eps_z], eps_x), (eps_z, eps_x[..., 1:])):
        for call in (model.potential, lambda *eps: model.refine(*eps, noise=noise)):
            with as_a_user(), pytest.raises(UserError, match="expected noise of the shapes .*, found"):
                call(*wrong)
    with pytest.raises(UserError, match="noise: expected an index for each of 4 samples, found 1"):
        model.refine(eps_z, eps_x, noise=noise.at([0]))
    with as_a_user(), pytest.raises(UserError, match=r"expected noise of the shapes .*, found \['list'\]"):
        model.decode([eps_z])


def test_a_seed_is_an_integer_of_any_type(model):
    whole = model.sample(1, seed=3)
    with as_a_user():
        for seed in (np.int64(3), torch.tensor(3)):
            assert torch.equal(model.sample(1, seed=seed), whole)
        for seed in (None, 3.0, "3"):
            with pytest.raises(UserError, match=f"seed: expected an integer, found {seed!r}"):
                model.sample(1, seed=seed)


def test_a_subclass_builds_itself_where_its_potential_fits(model):
    class Mine(VAEBM):
        pass

    assert type(Mine.of_networks(model.nvae, None)) is Mine
    assert type(PixelEBM.of_networks(model.nvae, None)) is VAEBM
    assert type(Mine.of_networks(model.nvae, model.energy, "pixels")) is PixelEBM


def test_chains_that_leave_the_finite_numbers_are_an_error(model):
    message = "step_size: expected chains that stay finite, .* with 1e\\+30"
    for call in (model.float().sample, model.chain):
        with pytest.raises(UserError, match=message):
            call(2, steps=5, step_size=1e30)
    model.test_chain = LangevinSettings(steps=2, step_size=1e30)
    with pytest.raises(UserError, match=message):
        model.interpolate(torch.rand(1, 1, 8, 8), torch.rand(1, 1, 8, 8), 2, steps=2)


def test_values_of_another_kind_are_refused(model):
    """A seed of any type would otherwise be hashed, None for instance, so that samples look random and are not."""
    noise = NoiseSource(0, "samples", range(2))
    start, x = model.initial_noise(noise), torch.rand(2, 1, 8, 8).double()
    source, latents = "^noise: expected a NoiseSource, found", "^eps: expected noise of the shapes .*, found"
    cases = [
        (lambda: NoiseSource(0, "samples", 2), r"^index: expected the indices of samples, .* range\(8\), found 2"),
        (lambda: model.initial_noise(0), f"{source} 0; sample_noise"),
        (lambda: model.sample_means(2), f"{source} 2; "),
        (lambda: model.refine(*start, noise=0), f"{source} 0; "),
        (lambda: model.nvae(x, noise=0), f"{source} 0; "),
        (
            lambda: model.refine(*start, noise=noise, chain={"steps": 2}),
            "^chain: expected settings, .*, found {'steps': 2}",
        ),
        (lambda: VAEBM(model.energy, model.nvae), "^nvae: expected an NVAE, .*, found EnergyNetwork"),
        (lambda: VAEBM(model.nvae, None, chain=3), "^chain: expected settings, .*, found 3"),
        (lambda: model.decode(start), rf"{latents} \['list', \(2, 1, 8, 8\)\]"),
        (lambda: model.decode(x), f"{latents} a value of type Tensor"),
        (lambda: model.nvae.encode(x[0]), r"^x: expected a tensor \(N, 1, 8, 8\) .*, found \(1, 8, 8\)"),
        *[
            (lambda wrong=wrong: model.energy(wrong), rf"^x: expected images \(B, 1, H, W\), .*, found {found}")
            for wrong, found in (
                (x[0], r"\(1, 8, 8\)"),
                (x.expand(-1, 3, -1, -1), r"\(2, 3, 8, 8\)"),
                (None, "a value"),
            )
        ],
    ]
    for call, message in cases:
        with as_a_user(), pytest.raises(UserError, match=message):
            call()
    assert torch.equal(model.sample(2, seed=True), model.sample(2, seed=1))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda x: 255 * x, "values from 0 to 255; divide grey levels by 255"),
        (lambda x: 2 * x - 1, "values from -1 to 1; "),
        (lambda x: x * math.nan, "values from nan to nan"),
        (lambda x: x[:0], r"\(0, 1, 8, 8\) torch.float64"),
        (lambda x: x[0], r"\(1, 8, 8\) torch.float64"),
        (lambda x: x.movedim(1, 3), r"\(2, 8, 8, 1\) torch.float64"),
        (lambda x: x[..., 1:], r"\(2, 1, 8, 7\) torch.float64"),
        (lambda x: (255 * x).long(), r"\(2, 1, 8, 8\) torch.int64"),
        (lambda x: x > 0.5, r"\(2, 1, 8, 8\) torch.bool"),
        (lambda x: x.numpy(), "a value of type ndarray; torch.as_tensor converts arrays"),
    ],
)
def test_other_values_than_images_are_refused_everywhere(model, change, found):
    images = torch.linspace(0, 1, 128).double().reshape(2, 1, 8, 8)
    wrong, calls = change(images), (model.score, model.log_likelihood, model.estimate, model.reconstruct, model)
    expected = r"expected a tensor \(N, 1, 8, 8\) of N images, uint8 or floating-point in \[0, 1\], found "
    with as_a_user():
        for call in (*calls, model.nvae.as_input):
            with pytest.raises(UserError, match=f"^images: {expected}{found}"):
                call(wrong)
        for name, ends in (("first", (wrong, images)), ("last", (images, wrong))):
            with pytest.raises(UserError, match=f"^{name}: {expected}{found}"):
                model.interpolate(*ends, 3)


def test_images_have_any_floating_point_type_and_may_be_rounded(model):
    single, images = model.float(), torch.linspace(0, 1, 128).reshape(2, 1, 8, 8)
    half = single.score(images.half())
    assert half.dtype == torch.float32 and torch.equal(half, single.score(images.half().float()))
    assert torch.allclose(single.score(images + 1e-7), single.score(images), atol=1e-2)
    assert single.score(images.double()).dtype == torch.float64


def test_grey_levels_and_images_have_the_same_scores(model):
    grey = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    for score in (model.score, model.log_likelihood):
        assert torch.equal(score(grey), score(grey.double() / 255))
        with pytest.raises(UserError, match=r"\(importance_samples\): expected an integer from 1, found 0"):
            score(grey, importance_samples=0)


def test_paths_need_as_many_ends_as_starts():
    with pytest.raises(UserError, match="last: expected as many images as in first, 2, found 3"):
        great_circle([torch.rand(2, 4)], [torch.rand(3, 4)], torch.linspace(0, 1, 3))


def test_an_energy_on_pixels_has_paths_without_chains(model):
    pixels = PixelEBM(model.nvae, model.energy, "prior")
    images = torch.rand(2, 1, 8, 8).double()
    assert torch.equal(pixels.interpolate(images, images.flip(0), 3), model.interpolate(images, images.flip(0), 3))
    with pytest.raises(UserError, match="expected no steps for an energy on pixels"):
        pixels.interpolate(images, images, 3, steps=1)
