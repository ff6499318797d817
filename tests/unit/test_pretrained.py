"""Models as folders: what is loaded draws the same images, and only files that are right are loaded."""

import json
import re

import huggingface_hub
import huggingface_hub.constants
import pytest
import torch
from networks import ENERGY, NETWORK
from safetensors import safe_open
from torch import nn

from vaebm import VAEBM
from vaebm.config.ebm import ENERGIES, ChainSettings, EnergyFacts, NetworkSettings
from vaebm.energy.network import EnergyNetwork, build_energy
from vaebm.model import build_model
from vaebm.nvae.model import NVAE
from vaebm.system.device import to_device_channels_last
from vaebm.system.errors import UserError


def made(potential="noise", start="prior", positives="clean", energy=True) -> VAEBM:
    """A random model for 8×8 greyscale images."""
    torch.manual_seed(0)
    nvae = to_device_channels_last(NVAE(NETWORK, (1, 8, 8)).eval().requires_grad_(False), torch.device("cpu"))
    if not energy:
        return VAEBM(nvae, None)
    network = EnergyNetwork(ENERGY, 1).requires_grad_(False)
    network.initialize(torch.rand(16, 1, 8, 8))
    to_device_channels_last(network, torch.device("cpu"))  # the layout decides the last bits
    model = build_model(nvae, network, potential, start, positives)
    model.test_chain = ChainSettings(steps=3, step_size=0.01)
    return model


@pytest.fixture
def saved(tmp_path):
    """The folder of a model."""
    made().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"potential": "density"},
        {"positives": "matched"},
        {"potential": "pixels", "start": "uniform"},
        {"energy": False},
    ],
)
def test_a_loaded_model_draws_the_same_images(tmp_path, settings):
    model = made(**settings)
    model.save_pretrained(tmp_path)
    loaded = VAEBM.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert not any(module.training for module in loaded.modules())
    tagged = "  - energy-based-model\n" in (tmp_path / "README.md").read_text()
    assert tagged == (model.energy is not None)
    assert torch.equal(loaded.sample(4, seed=1), model.sample(4, seed=1))
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(loaded.score(images), model.score(images))


def test_files_are_the_hub_s_layout(saved):
    assert sorted(path.name for path in saved.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    with safe_open(saved / "model.safetensors", "pt") as file:
        assert {name.partition(".")[0] for name in file.keys()} == {"nvae", "energy"}  # noqa: SIM118
    readme = (saved / "README.md").read_text()
    assert readme.startswith("---\nlibrary_name: vaebm\n")
    assert "3 Langevin steps of size 0.01" in readme


def test_another_folder_and_a_device_that_is_not_there_are_one_line(saved):
    with pytest.raises(UserError, match="device: expected a device that torch can use .*, found cuda:99 "):
        VAEBM.from_pretrained(saved, device="cuda:99")
    (saved / "config.json").unlink()
    expected = "config.json: expected the configuration of a model that `save_pretrained` wrote, found no file; `VAEBM."
    with pytest.raises(UserError, match=expected):
        VAEBM.from_pretrained(saved)


def test_the_chain_of_the_configuration_counts(saved):
    content = json.loads((saved / "config.json").read_text())
    content["chain"]["steps"] = 7
    (saved / "config.json").write_text(json.dumps(content))
    assert VAEBM.from_pretrained(saved).test_chain.steps == 7


def test_a_repository_of_the_hub_is_read_from_its_cache_without_a_connection(saved, tmp_path, monkeypatch):
    cache, commit = tmp_path / "cache", "0" * 40
    snapshot = cache / "models--somebody--digits" / "snapshots" / commit
    snapshot.parent.mkdir(parents=True)
    saved.rename(snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(VAEBM.from_pretrained("somebody/digits").sample(2), made().sample(2))
    with pytest.raises(UserError, match="somebody/else: expected a folder of a model"):
        VAEBM.from_pretrained("somebody/else")


def test_pushing_makes_one_upload(monkeypatch):
    calls = []

    class Hub:
        def create_repo(self, repository, **options):
            calls.append(("create", repository, options))
            return f"https://hub/{repository}"

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            calls.append(("upload", repo_id, sorted(path.name for path in folder_path.iterdir())))
            assert 'from_pretrained("somebody/digits")' in (folder_path / "README.md").read_text()

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert made().push_to_hub("somebody/digits", private=True) == "https://hub/somebody/digits"
    files = ["README.md", "config.json", "model.safetensors"]
    creation = ("create", "somebody/digits", {"private": True, "exist_ok": True})
    assert calls == [creation, ("upload", "somebody/digits", files)]


def test_a_network_of_a_plugin_travels_and_one_of_no_registry_is_one_line(tmp_path, monkeypatch):
    def build(settings, channels):
        return nn.Sequential(nn.Flatten(), nn.Linear(64 * channels, 1), nn.Flatten(0)).requires_grad_(False)

    monkeypatch.setitem(ENERGIES.own, "linear", EnergyFacts(build, NetworkSettings))
    model = VAEBM(made(energy=False).nvae, build_energy(NetworkSettings(kind="linear"), 1))
    model.save_pretrained(tmp_path)
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(VAEBM.from_pretrained(tmp_path).energy(images), model.energy(images))
    with pytest.raises(UserError, match="save_pretrained: energy.* there is no energy network 'Sequential'"):
        VAEBM(model.nvae, build(None, 1)).save_pretrained(tmp_path / "other")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "config.json",
            lambda text: text.replace('"latents": 2', '"latents": 3'),
            "expected the weights of config.json",
        ),
        (
            "config.json",
            lambda text: text.replace('"start": "prior"', '"start": "here"'),
            "config.json: start: Input should be 'prior' or 'uniform', found 'here'",
        ),
        ("config.json", lambda text: text.replace('"shape"', '"form"'), "config.json"),
        ("config.json", lambda text: text.replace("[", "", 1), "config.json"),
        ("model.safetensors", lambda text: text[:-4] + "\x00\x00\x01\x00", "the file is damaged"),
        ("model.safetensors", lambda text: text[:-4], "model.safetensors: expected a model of kind 'vaebm'"),
    ],
)
def test_other_files_are_one_line(saved, file, change, message):
    path = saved / file
    path.write_bytes(change(path.read_bytes().decode("latin-1")).encode("latin-1"))
    with pytest.raises(UserError, match=re.escape(message)):
        VAEBM.from_pretrained(saved)
