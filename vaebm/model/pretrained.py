"""A model and its files: those of a run, or a folder in the layout of the Hugging Face hub."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Self

import torch
from pydantic import Field, PositiveInt, SerializeAsAny
from torch import nn

from vaebm.config import BASELINE, PRIOR, NoiseEnergySettings, NVAENetworkSettings, SamplesSettings
from vaebm.config.base import Settings, later
from vaebm.config.ebm import ChainSettings, EnergyNetworkSettings, LangevinSettings, Positives, PotentialKind, Start
from vaebm.config.yaml_files import read_settings, validate
from vaebm.energy.network import build_energy, load_energy
from vaebm.energy.noise_energy import NoiseEnergy, load_prior
from vaebm.nvae.model import NVAE, check_decoder, load_nvae
from vaebm.records.files import read_record
from vaebm.records.templates import render
from vaebm.system.checkpoint import load_model, save_model
from vaebm.system.device import freeze
from vaebm.system.errors import UserError, brief
from vaebm.system.files import MODEL, model_of, seed_folder, write_json, writing
from vaebm.system.plugins import load_plugins
from vaebm.system.precision import chain_dtype

MODEL_CONFIG, CARD = "config.json", "README.md"


class PretrainedConfig(Settings):
    """config.json: everything from which `VAEBM.from_pretrained` builds the model."""

    nvae: NVAENetworkSettings
    shape: Annotated[list[PositiveInt], Field(min_length=3, max_length=3)]
    """(C, H, W) of the images."""
    energy: SerializeAsAny[EnergyNetworkSettings] | None
    potential: PotentialKind
    start: Start
    positives: Positives
    chain: SerializeAsAny[LangevinSettings]
    """The test chain."""
    prior: NoiseEnergySettings | None = later(None)


def find_folder(source: Path | str) -> Path:
    """A folder of a model, or that of a hub repository, which is downloaded once.

    Raises:
        UserError: no folder of that name, and no repository, or none that can be reached.
    """
    if (folder := Path(source)).is_dir():
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), allow_patterns=[MODEL_CONFIG, MODEL, CARD]))
    except Exception as error:  # of the network, of the hub, and of a name that is none
        raise UserError(
            f"{source}: expected a folder of a model (`save_pretrained`), or a repository of the Hugging Face hub, "
            f"found neither ({brief(error)})"
        ) from None


def model_card(config: PretrainedConfig, **facts: Any) -> str:
    """README.md of a model: what it is, how to use it, and the `facts` of the run that are known (card.md.j2)."""
    known = {"repository": "ORGANISATION/NAME", "licence": None, "record": None, "rows": [], "training": {}} | facts
    return render("model/card.md.j2", config=config, **known)


class StoredModel(nn.Module):
    """A model of networks that have files; `VAEBM` explains its parts."""

    nvae: NVAE
    """The VAE."""
    energy: nn.Module | None
    """E(x) → (B,) for images x in [0, 1]; None: the NVAE alone."""
    potential_kind: PotentialKind
    """`noise` or `density`, or `pixels` of a `PixelEBM`."""
    test_chain: ChainSettings
    """Chain of `sample`; without steps until one is given or read from a run, so that samples are those of the NVAE."""
    positives: Positives
    """Data in the energy's training, which scores repeat: `clean`, or `matched`, with the decoder's pixel noise."""
    prior: NoiseEnergy | None
    """The energy on noise E_ε(ε_z), not the NVAE's prior p(z); None: there is none."""
    start: Start = "prior"
    """Start of the chains: `prior`, draws from the NVAE's prior p(z), which an energy on noise (the attribute `prior`)
    moves, or `uniform` noise, of a `PixelEBM` only."""
    chain_dtype: torch.dtype | None = None
    """Type of the networks' features within chains, for instance bfloat16; None: the weights' type.

    Chains through the modules, and the decoding of images, always use the weights' type.
    """

    @classmethod
    def of_networks(cls, *parts: Any, **more: Any) -> Self:
        """Build the model in which an energy was trained."""
        raise NotImplementedError

    @classmethod
    def from_results(cls, folder: Path | str, device: torch.device | str = "cpu") -> Self:
        """Load the model of `results/<experiment>/<variant>` (its first seed) or `…/<variant>/seed<k>`, with its chain.

        It is frozen and in eval mode.

        Raises:
            UserError: there is no finished run in `folder`, a file is damaged, or torch cannot use the device.
        """
        folder = seed_folder(Path(folder))
        own = model_of(folder)
        if (content := load_model(own))["kind"] == "nvae":  # the NVAE, or a GAN's generator
            return cls.load(own, None, device)
        nvae, prior = (model_of(folder.parent.parent / name / folder.name) for name in (BASELINE, PRIOR))
        if content["kind"] == "prior":
            model = cls.load(nvae, None, device, own)
        else:
            model = cls.load(nvae, own, device, prior if content.get("prior") else None)
        model.configure_sampling(read_settings(folder / "samples" / "samples.yaml", SamplesSettings)[1])
        return model

    @classmethod
    def load(
        cls,
        nvae: Path | str,
        energy: Path | str | None,
        device: torch.device | str = "cpu",
        prior: Path | str | None = None,
    ) -> Self:
        """Load an NVAE and an energy, frozen, in eval mode, with the potential of the energy's training.

        The model has no test chain: `sample` needs `steps` and `step_size`, or a new `test_chain`.

        Args:
            nvae: model file of the NVAE.
            energy: model file of the energy; None: the NVAE alone.
            device: device of the weights.
            prior: model file of the energy on noise; None: the energy was trained without one.

        Raises:
            UserError: a file is missing or of another kind, the models do not belong to each other, an energy's NVAE
                has no Gaussian decoder, or torch cannot use the device.
        """
        vae, on_noise = load_nvae(nvae, device), None if prior is None else load_prior(prior, device)
        if on_noise is not None and on_noise.shapes != vae.latent_shapes:
            raise UserError(f"{prior}: expected noise {vae.latent_shapes}, as {nvae} has, found {on_noise.shapes}")
        if energy is None:
            return cls.of_networks(vae, None, prior=on_noise).eval()
        check_decoder(vae, nvae)
        content, below = load_model(energy, "energy"), None if prior is None else load_model(prior)["hash"]
        if content.get("prior") != below:
            raise UserError(f"{energy}: expected an energy of the prior {below}, found one of {content.get('prior')}")
        if (shape := tuple(content["shape"])) != vae.shape:
            raise UserError(f"{energy}: expected an energy of images {vae.shape}, as {nvae} has, found one of {shape}")
        own = (content["potential"], content["start"], content.get("positives", "clean"))
        return cls.of_networks(vae, load_energy(energy, device), *own, on_noise).eval()

    @property
    def config(self) -> PretrainedConfig:
        """Architecture, potential and test chain; a `UserError` if the energy is a module without `settings`."""
        energy = getattr(self.energy, "settings", None if self.energy is None else type(self.energy).__name__)
        content = {"nvae": self.nvae.settings, "shape": [*self.nvae.shape], "energy": energy, "chain": self.test_chain}
        content |= {"potential": self.potential_kind, "start": self.start, "positives": self.positives}
        content |= {"prior": self.prior and self.prior.settings}
        return validate(PretrainedConfig, content, "save_pretrained")

    @classmethod
    def of_config(cls, config: PretrainedConfig) -> Self:
        """Build the model of a configuration, with random weights."""
        nvae = NVAE(config.nvae, config.shape)
        prior = None if config.prior is None else NoiseEnergy(config.prior, nvae.latent_shapes)
        if config.energy is None:
            model = cls.of_networks(nvae, None, prior=prior)
        else:
            own = (config.potential, config.start, config.positives)
            model = cls.of_networks(nvae, build_energy(config.energy, config.shape[0]), *own, prior)
        model.test_chain = config.chain
        return model

    def save_pretrained(self, folder: Path | str, readme: str | None = None) -> None:
        """Write config.json, model.safetensors and README.md to `folder`, in the layout of the Hugging Face hub.

        Args:
            folder: made if it does not exist.
            readme: text of README.md; None: what the model is, and how to use it.

        Raises:
            UserError: the energy is a module without `settings`, or a file cannot be written.
        """
        folder, config = Path(folder), self.config
        save_model(folder / MODEL, "vaebm", {}, self.state_dict())
        write_json(folder / MODEL_CONFIG, config.model_dump(mode="json"))
        with writing(folder / CARD) as stream:
            stream.write((readme or model_card(config)).encode())

    @classmethod
    def from_pretrained(cls, source: Path | str, device: torch.device | str = "cpu") -> Self:
        """Load the output of `save_pretrained`, frozen, in eval mode.

        Args:
            source: its folder, or the id of a repository on the Hugging Face hub, which is downloaded once.
            device: device of the weights.

        Raises:
            UserError: neither is there, a file is missing or damaged, the weights do not fit config.json, or torch
                cannot use the device.
        """
        folder = find_folder(source)
        what = "the configuration of a model that `save_pretrained` wrote"
        others = "`VAEBM.from_results` loads a run, `VAEBM.load` model files"
        load_plugins()
        config = read_record(PretrainedConfig, folder / MODEL_CONFIG, what, "save it again", others)
        weights = load_model(folder / MODEL, "vaebm")["weights"]
        try:
            model = cls.of_config(config)
            model.load_state_dict(weights)
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"{folder / MODEL}: expected the weights of {MODEL_CONFIG}'s networks, found others ({brief(error)})"
            ) from None
        return freeze(model, device)

    def push_to_hub(self, repository: str, readme: str | None = None, private: bool = False) -> str:
        """Upload the output of `save_pretrained` to a hub repository in one commit, and return its address.

        Args:
            repository: id, OWNER/NAME; made if it does not exist.
            readme: text of README.md; None: what the model is, and how to use it.
            private: make a new repository private.

        Raises:
            UserError: as for `save_pretrained`; errors of the hub are those of huggingface_hub.
        """
        from huggingface_hub import HfApi

        api = HfApi()
        address = str(api.create_repo(repository, private=private, exist_ok=True))
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, readme or model_card(self.config, repository=repository))
            api.upload_folder(repo_id=repository, folder_path=Path(folder), commit_message="Upload of a VAEBM")
        return address

    def configure_sampling(self, settings: SamplesSettings) -> None:
        """Set the test chain and `chain_dtype` from the settings of the stage `samples`.

        TF32 is a setting of the process (`system.precision`), not of the model.
        """
        self.test_chain, self.chain_dtype = settings.chain, chain_dtype(settings.precision)
