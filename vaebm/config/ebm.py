"""Settings of stage `ebm`."""

from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    model_validator,
)

from vaebm.config.base import MOST_CHANNELS, Choice, Decay, Fraction, Registered, Settings, Several, later
from vaebm.config.checkpoint import ModelSettings
from vaebm.system.plugins import Implementation, Registry

PotentialKind = Literal["noise", "density", "pixels"]

Start = Literal["prior", "uniform"]

Positives = Literal["clean", "matched"]


ENERGIES: Registry["EnergyFacts"] = Registry("energy network")

KERNELS: Registry["KernelFacts"] = Registry("transition kernel")


class NetworkSettings(Choice):
    """Network of a plug-in."""

    registry = ENERGIES
    tag: ClassVar = "kind"
    kind: Annotated[str, Registered(ENERGIES)] = later("residual")
    """Name of a registered energy network."""


class EnergyNetworkSettings(NetworkSettings):
    """Energy network (VAEBM appendix E): a stem, residual blocks, a sum over positions, a linear head."""

    channels: PositiveInt = 128
    """n, channels of the stem."""
    widths: Annotated[list[PositiveInt], Field(min_length=1)] = [1, 1, 2, 2, 2, 2]
    """Output channels of each residual block, in units of n."""
    down: list[NonNegativeInt] = [0, 2, 4]
    """Indices, from 0, of the blocks that end with a 2×2 mean pool."""

    @model_validator(mode="after")
    def _blocks_can_be_built(self) -> Self:
        plugin = not isinstance(self, EnergyNetworkSettings)  # pydantic asks for these too
        if not plugin and any(block >= len(self.widths) for block in self.down):
            raise ValueError(f"down must name blocks 0 to {len(self.widths) - 1}, found {self.down}")
        if not plugin and (most := self.channels * max(self.widths)) > MOST_CHANNELS:
            raise ValueError(f"expected at most {MOST_CHANNELS:,} channels in a block, found {most:,}")
        return self


class ChainSettings(Choice):
    """Chain of a plug-in's kernel."""

    registry = KERNELS
    tag: ClassVar = "kernel"
    kernel: Annotated[str, Registered(KERNELS)] = later("langevin")
    """Name of a registered transition kernel."""
    steps: NonNegativeInt
    """K, number of steps."""
    step_size: PositiveFloat
    """η in ε ← ε − η/2 ∇U(ε) + √η ω; √η is the time step of `underdamped`."""

    @property
    def chosen(self) -> dict[str, Any]:
        """The values, without those of settings added later that have their default."""
        return {name: getattr(self, name) for name in self.model_dump()}

    @property
    def gradient_evaluations(self) -> int:
        """Gradients of U that each chain computes."""
        return self.steps and self.steps + KERNELS[self.kernel].first

    @property
    def off(self) -> "ChainSettings":
        """The settings of no chain."""
        return self.model_copy(update={"steps": 0, "step_size": 1.0})


class LangevinSettings(ChainSettings):
    """Chain in noise space (VAEBM section 3.2, algorithm 1)."""

    schedule: Literal["constant", "linear", "cosine"] = later("constant")
    """η over the steps: constant, or a decay from `step_size` at the first step to `final_step_size` at the last."""
    final_step_size: PositiveFloat | None = later(None)
    """η at the end of a decay; None: a tenth of `step_size`."""
    temperature: PositiveFloat = later(1.0)
    """τ, factor of the noise's variance, in ε ← ε − η/2 ∇U(ε) + √(η τ) ω: chains move towards exp(−U / τ)."""
    friction: PositiveFloat = later(1.0)
    """γ of `underdamped`: a step of size η keeps exp(−γ √η) of the momentum."""

    @model_validator(mode="after")
    def _momenta_have_friction(self) -> Self:
        if isinstance(self, LangevinSettings) and self.friction != 1.0 and self.kernel != "underdamped":
            raise ValueError(f"friction belongs to kernel underdamped, found kernel {self.kernel}")
        return self

    @property
    def off(self) -> "LangevinSettings":
        """The settings of no chain."""
        return LangevinSettings(steps=0, step_size=1.0)


class EnergyFacts(NamedTuple):
    """A registered energy network."""

    network: Implementation
    """Function or class of settings and channels: a module from images (B, C, H, W) in [0, 1] to energies (B,)."""
    settings: type[NetworkSettings] = NetworkSettings
    """Class of its settings."""


class KernelFacts(NamedTuple):
    """A registered transition kernel."""

    run: Implementation
    """Function like `chain.langevin.langevin`; its keywords are the settings but `kernel`, `noise` and `callback`."""
    settings: type[ChainSettings] = ChainSettings
    """Class of its settings."""
    first: int = 0
    """Gradients that a chain computes before its first step; then it is one for each step."""
    transitions: Implementation | None = None
    """Function like `chain.langevin.transitions`, for diagnostics."""


ENERGIES.own.update(residual=EnergyFacts("vaebm.energy.network:EnergyNetwork", EnergyNetworkSettings))
_CHAIN = "vaebm.chain"
KERNELS.own.update(
    langevin=KernelFacts(f"{_CHAIN}.langevin:langevin", LangevinSettings, 0, f"{_CHAIN}.langevin:transitions"),
    mala=KernelFacts(f"{_CHAIN}.mala:mala", LangevinSettings, 1, f"{_CHAIN}.mala:mala_transitions"),
    underdamped=KernelFacts(
        f"{_CHAIN}.underdamped:underdamped", LangevinSettings, 0, f"{_CHAIN}.underdamped:underdamped_transitions"
    ),
)


class ReplaySettings(Settings):
    """Replay buffer: chains continue from the final states of earlier chains (persistent chains)."""

    capacity: PositiveInt = 10_000
    """Stored states, over all processes; new states replace the oldest."""
    probability: Fraction = 0.6
    """Probability that a chain starts from a stored state."""
    anneal_iterations: PositiveInt = 5000
    """Iterations over which `probability` grows linearly from 0."""


class EBMTrainingSettings(Settings):
    """Training of the energy by contrastive divergence (VAEBM section 3.1)."""

    iterations: PositiveInt = 30_000
    """Updates of the energy's weights."""
    batch: Several = 32
    """Positive images and chains per update, over all processes."""
    chain_every: PositiveInt = later(1)
    """Iterations between calls of the chain. One call runs the chains of all of them, with the energy of the first; 1
    as published."""
    flip: bool = False
    """Mirror each training image left to right with probability 1/2; the paper does so except for digits."""
    precision: Literal["float32", "tf32", "bfloat16", "float64"] = "float32"
    """`tf32`: TF32 convolutions and matrix products on NVIDIA GPUs. `bfloat16`: TF32, and bfloat16 features of both
    networks within chains. `float64`: for comparison."""
    learning_rate: PositiveFloat = 4e-5
    """Adam learning rate."""
    learning_rate_decay: Literal["none", "cosine"] = "none"
    """Constant, as published, or a cosine to zero."""
    beta1: Decay = 0.99
    """Adam β₁, decay of the mean gradient."""
    beta2: Decay = 0.999
    """Adam β₂, decay of the mean squared gradient."""
    weight_decay: NonNegativeFloat = 3e-5
    """L2 term added to the gradient."""
    spectral_weight: NonNegativeFloat = 0.2
    """Weight of the spectral penalty, the sum of the largest singular values of all convolutions."""
    adaptive_clip: bool = True
    """Clip each gradient at three standard deviations of its history."""
    gradient_norm_limit: PositiveFloat | None = None
    """Largest norm of the whole gradient, applied after the adaptive clip; None: no limit, as in the paper."""
    gradient_penalty: NonNegativeFloat = later(0.0)
    """Weight of ½ (mean ‖∇E(x⁺)‖² + mean ‖∇E(x⁻)‖²) of positives x⁺ and negatives x⁻; 0 in the paper. It needs second
    derivatives of the energy network."""
    energy_penalty: NonNegativeFloat = 0.0
    """Weight of the mean squared energy of positives and negatives; 0 in the paper."""
    average_decay: Decay = 0.0
    """Decay of the moving average of the weights; 0: the model has the raw weights, as in the paper."""
    snapshot_every: PositiveInt = 500
    """Iterations between snapshots."""


class GuardSettings(Settings):
    """Divergence guard of the training of the energy."""

    gap_limit: PositiveFloat = 10.0
    """Largest |mean E(data) − mean E(chains)|, in standard deviations of the energies."""
    growth_limit: Annotated[float, Field(gt=1)] = 1000.0
    """Largest |loss| and gradient norm, in multiples of their medians over the last 100 good iterations."""
    patience: PositiveInt = 20
    """Consecutive iterations beyond a limit, or non-finite, after which the training stops."""
    restarts: NonNegativeInt = 0
    """Restarts of a diverged training, each from the last good snapshot with another seed."""
    restart_factor: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Factor applied to the learning rate at each restart."""


class SelectionSettings(Settings):
    """Selection of the snapshot whose images are closest to the training images, measured with the NVAE's features."""

    candidates: PositiveInt = 3
    """Number of last good snapshots to compare, including the end of the training; 1: take the last."""
    images: Several = 1000
    """Images per snapshot, and as many training images, to compare."""
    chain: SerializeAsAny[LangevinSettings] | None = None
    """Chain used to compare snapshots; default: training chain. The longer test chain separates them better."""


class EBMSettings(ModelSettings):
    """Stage `ebm`."""

    network: SerializeAsAny[EnergyNetworkSettings] = EnergyNetworkSettings()
    potential: PotentialKind = "noise"
    """`noise`: exact density in noise space. `density`: as in the published program, without the Jacobian. `pixels`:
    the ablation's energy on images without an NVAE."""
    start: Start = "prior"
    """Start of the chains: samples of the NVAE's prior, or uniform noise (`pixels` only)."""
    chain: SerializeAsAny[LangevinSettings]
    """Training chain."""
    replay: ReplaySettings | None = None
    """Replay buffer; None: no chain continues an earlier one."""
    encoded: Fraction = 0.0
    """Fraction of chains that start from encoded training images; 0 in the paper."""
    negatives: Literal["sample", "mean"] = "sample"
    """Negative images: decoder samples or decoder means."""
    positives: Positives = later("clean")
    """`clean`: training images, as published. `matched`: with the decoder's pixel noise, like the negatives."""
    quantize_positives: bool = True
    """Reduce positive images to the bit depth of the NVAE; false: 8 bits, as published."""
    training: EBMTrainingSettings = EBMTrainingSettings()
    guard: GuardSettings = GuardSettings()
    selection: SelectionSettings = SelectionSettings()

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.start == "uniform" and self.potential != "pixels":
            raise ValueError(f"start uniform belongs to potential pixels, found potential {self.potential}")
        if self.encoded and self.potential == "pixels":
            raise ValueError(
                f"encoded starts are noise of the NVAE: expected 0 with potential pixels, found {self.encoded}"
            )
        if self.positives == "matched" and (self.negatives == "mean" or self.potential == "pixels"):
            found = "potential pixels" if self.potential == "pixels" else "negatives mean"
            raise ValueError(
                "positives matched carry the pixel noise of decoder samples: "
                f"expected negatives with it, found {found}; choose positives clean"
            )
        if self.replay is not None and self.training.chain_every > 1:
            raise ValueError(
                f"training.chain_every: expected 1 with replay, found {self.training.chain_every}; choose one of them"
            )
        if self.replay is not None and self.replay.capacity < self.training.batch:
            raise ValueError(
                f"replay.capacity must be at least training.batch ({self.training.batch}), found {self.replay.capacity}"
            )
        return self
