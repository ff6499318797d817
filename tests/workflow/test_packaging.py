"""One set of versions, packages that are whole, a base install that is enough, and commands that say what they lack."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
import yaml
from commands import run
from networks import ENERGY, NETWORK
from packaging.requirements import Requirement

from vaebm.config import SamplesSettings
from vaebm.config.ebm import ChainSettings
from vaebm.energy.network import EnergyNetwork
from vaebm.nvae.model import NVAE
from vaebm.system.checkpoint import save_model
from vaebm.tracking.mirror import NEEDS

ROOT = Path(__file__).parents[2]


def normal(requirement: str) -> str:
    """Name of a requirement, as package indexes compare them."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def pins(lines: list[str]) -> dict[str, str]:
    """Name → version of lines such as torch==2.13.0."""
    exact = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {normal(name): version.strip() for name, version in exact}


def project() -> dict:
    """The section project of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def direct() -> set[str]:
    """Names that pyproject.toml asks for, in all extras: `dev` has the others."""
    extras = project()["optional-dependencies"]
    own = [line for one in extras.values() for line in one if line.startswith("vaebm[")]
    named = [extra for line in own for extra in Requirement(line).extras]
    assert {*named, "dev"} == {*extras}
    return {normal(line) for line in [*project()["dependencies"], *sum(extras.values(), [])]} - {"vaebm"}


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> Path:
    """The folder of the wheel and the sdist from which it was built."""
    folder = tmp_path_factory.mktemp("packages")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "vaebm", folder / "vaebm", ignore=shutil.ignore_patterns("__pycache__"))
    run("-m", "build", "--no-isolation", folder=folder)
    return folder / "dist"


@pytest.fixture(scope="module")
def installed(packages, tmp_path_factory) -> Path:
    """The folder into which the wheel is unpacked."""
    folder = tmp_path_factory.mktemp("installed")
    ZipFile(*packages.glob("*.whl")).extractall(folder)
    return folder


def others(installed: Path, extra: str = "") -> list[str]:
    """Modules of this environment that the wheel with an extra does not bring."""
    (own,) = metadata.distributions(path=[str(installed)])
    brought, waiting = {"vaebm"}, [(line, extra) for line in own.requires]
    while waiting:
        line, extra = waiting.pop()
        requirement = Requirement(line)
        name = normal(requirement.name)
        if name not in brought and (requirement.marker is None or requirement.marker.evaluate({"extra": extra})):
            brought.add(name)
            waiting += [(line, "") for line in metadata.requires(name) or []]
    assert "huggingface-hub" in brought and "typer" not in brought
    return [
        module for module, names in metadata.packages_distributions().items() if not brought & {*map(normal, names)}
    ]


def python(program: str, installed: Path, folder: Path, hidden: list[str]) -> subprocess.CompletedProcess[str]:
    """A finished program that imports the wheel and has no modules `hidden`."""
    hide = f"import sys; sys.modules.update(dict.fromkeys({hidden!r}))"
    return run("-c", f"{hide}\n{program}", folder=folder, PYTHONPATH=str(installed))


def test_packages_are_whole(packages, installed):
    """Indexes take them, and every file of the package is in the wheel."""
    checked = run("-m", "twine", "check", "--strict", *packages.iterdir(), folder=packages, NO_COLOR="1")
    assert checked.stdout.count("PASSED") == 2, checked.stdout
    files = {path.relative_to(ROOT) for path in (ROOT / "vaebm").rglob("*") if path.suffix not in ("", ".pyc")}
    assert {path.relative_to(installed) for path in installed.glob("vaebm/**/*") if path.is_file()} == files


def test_version_and_address_are_the_same_everywhere(installed, tmp_path):
    """The version is pyproject.toml's; the address is a placeholder that CONTRIBUTING.md says how to replace."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    version, address = project()["version"], project()["urls"]["Homepage"]
    assert python("import vaebm; print(vaebm.__version__)", installed, tmp_path, []).stdout.strip() == version
    assert citation["version"] == version and f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text()
    assert citation["repository-code"] == address and address in (ROOT / "CONTRIBUTING.md").read_text()


def test_base_install_samples_without_unix(installed, tmp_path):
    """Models load, draw and are saved without the extras, fcntl and /proc."""
    nvae, energy = NVAE(NETWORK, (1, 8, 8)), EnergyNetwork(ENERGY, 1)
    energy.initialize(torch.rand(16, 1, 8, 8))
    seed, facts = tmp_path / "vaebm" / "seed0", {"shape": [1, 8, 8], "potential": "noise", "start": "prior"}
    save_model(tmp_path / "nvae/seed0/model.safetensors", "nvae", NETWORK.model_dump(), nvae.state_dict(), **facts)
    save_model(seed / "model.safetensors", "energy", ENERGY.model_dump(), energy.state_dict(), **facts)
    samples = SamplesSettings(count=4, batch=2, shards=1, chain=ChainSettings(steps=2, step_size=0.01))
    (seed / "samples").mkdir()
    (seed / "samples" / "samples.yaml").write_text(json.dumps({"seed": 0, "samples": samples.model_dump()}))
    program = """if True:
        def hide(event, arguments):
            if event == "open" and str(arguments[0]).startswith("/proc"):
                raise FileNotFoundError(2, "hidden", arguments[0])
        sys.addaudithook(hide)
        import torch
        from vaebm import VAEBM
        model = VAEBM.from_results("vaebm")
        model.save_pretrained("saved")
        saved = VAEBM.from_pretrained("saved")
        images = model.sample(4, seed=1)
        assert torch.equal(images, saved.sample(4, seed=1)) and saved.score(images).shape == (4,)
        print(sys.modules["vaebm"].__file__)
    """
    done = python(program, installed, tmp_path, [*others(installed), "fcntl"])
    assert done.returncode == 0 and Path(done.stdout.strip()).is_relative_to(installed), done.stderr


def test_evaluation_is_enough_for_all_but_commands(installed, tmp_path):
    """Every other module can be imported."""
    program = """if True:
        import pkgutil, vaebm
        for module in pkgutil.walk_packages(vaebm.__path__, "vaebm.", onerror=lambda name: None):
            if not module.name.startswith(("vaebm.cli", "vaebm.fast.triton_kernels", "vaebm.__main__")):
                __import__(module.name)
    """
    done = python(program, installed, tmp_path, others(installed, "evaluation"))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [
        (None, (), "pipeline"),
        ("torch_fidelity", ("reference", "reference.yaml", "--data", "data", "--output", "output"), "evaluation"),
        ("sklearn", ("data", "digits", "--folder", "digits"), "evaluation"),  # in a child process
    ],
)
def test_a_command_names_the_extra_that_it_lacks(installed, tmp_path, module, arguments, extra):
    """In one line; None: nothing but the base install."""
    program = f"sys.argv[1:] = {arguments}\nfrom vaebm.__main__ import start\nstart()"
    done = python(program, installed, tmp_path, [module] if module else others(installed))
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert f'pip install "vaebm[{extra}]"' in done.stderr and (module or "typer") in done.stderr


def test_conda_environment_has_the_same_pins():
    """environment.yml holds what pyproject.toml asks for, in the versions of constraints.txt."""
    constraints = pins((ROOT / "constraints.txt").read_text().splitlines())
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"][-1]["pip"]
    assert pins(listed) == {name: constraints[name] for name in direct()}


def test_a_registered_model_asks_for_the_base_install():
    """In MLflow's list; the package itself travels as code."""
    assert sorted(map(normal, NEEDS)) == sorted(map(normal, project()["dependencies"]))


def test_constraints_fit_every_build():
    """No local version, which only one index has."""
    constraints = pins((ROOT / "constraints.txt").read_text().splitlines())
    assert constraints["torch"] == "2.13.0" and not any("+" in version for version in constraints.values())


def test_no_python_is_one_line(tmp_path):
    """make says what it expected; nothing is installed."""
    for tool in ("make", "sh", "test"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    done = subprocess.run(
        ["make", "run"], cwd=tmp_path, env={"PATH": str(tmp_path / "bin")}, capture_output=True, text=True
    )
    assert done.returncode != 0 and done.stdout == ""
    assert done.stderr.splitlines()[0].startswith("make: expected Python 3.11 or newer")
    assert not (tmp_path / ".venv").exists()


def test_ci_runs_what_a_newcomer_runs():
    """Lint, then exactly `make test`."""
    commands = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith("make")]
    assert commands == ["make lint", "make test"]


def test_nothing_names_a_folder_of_one_machine():
    """Also not the folder beside the project that its makers share."""
    foreign = re.compile("|".join([r"(?<![\w.])/wo" + "rk/", r"(?<![\w.])/op" + "t/", r"\.\./sha" + "red"]))
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        path = Path(ROOT, name)
        if (
            path.suffix in {".py", ".smk", ".yaml", ".yml", ".toml", ".md", ".txt", ".rst", ".j2", ""}
            and path.is_file()
        ):
            assert not foreign.search(path.read_text()), name
