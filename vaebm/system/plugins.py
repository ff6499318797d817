"""Plug-ins: modules that add entries to the registries (docs/how-to/plug-ins.md).

Installed packages name a module as an entry point of the group `vaebm.plugins`. Each plugins/*.py next to the Snakefile
is one too, also next to one that uses this workflow as a module. They are imported at the first look into a registry.
"""

import contextlib
import hashlib
import os
import re
import sys
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_file_location
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from vaebm.system.errors import UserError, brief

GROUP = "vaebm.plugins"
"""Group of entry points, and prefix of the modules in plugins/."""

SNAKEFILES = ("Snakefile", "snakefile", "workflow/Snakefile", "workflow/snakefile")
"""Where Snakemake looks for a Snakefile."""

NAMED = "VAEBM_SNAKEFILE"
"""Variable with the Snakefile of a run (`snakemake --snakefile`), which its jobs inherit."""

NAME = r"[A-Za-z0-9_][A-Za-z0-9_-]*"
"""Names of experiments, variants and entries: they become parts of paths, shell lines and MLflow's names."""

Registrable = TypeVar("Registrable")

Implementation = str | Callable[..., Any]
"""A function or class, or `module:name` of one, whose module is imported at its first use."""


def imported(reference: Implementation) -> Any:
    """The object of a reference."""
    if callable(reference):
        return reference
    module, _, name = reference.partition(":")
    return attrgetter(name)(import_module(module))


class Plugin(NamedTuple):
    """Origin of an entry."""

    module: str

    @property
    def package(self) -> str:
        """The package, or the module of a file in plugins/."""
        return self.module if self.module.startswith(f"{GROUP}.") else self.module.partition(".")[0]

    @property
    def version(self) -> str:
        """Version of the distribution, or `__version__` of the module, by default 0."""
        return _released(self.package) or str(getattr(sys.modules[self.module], "__version__", "0"))

    @property
    def sha256(self) -> str:
        """Hash of its source: the file, or all Python files of the package."""
        source = Path(sys.modules[self.package].__file__ or sys.modules[self.module].__file__ or "")
        files = sorted(source.parent.rglob("*.py")) if source.name == "__init__.py" else [source]
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@cache
def _released(package: str) -> str | None:
    """Version of the distribution whose plug-in is in `package`; None: it has none."""
    points = entry_points(group=GROUP)
    return next((point.dist.version for point in points if point.dist and point.module.split(".")[0] == package), None)


_loading: str | None = None
_problem: UserError | None = None
_loaded = False


class Registry(UserDict[str, Registrable]):
    """Mapping, name → entry; `registry[name] = entry` in a plug-in adds one.

    Args:
        what: description of an entry, for errors.
    """

    def __init__(self, what: str, own: dict[str, Registrable] | None = None):
        self.what, self.own, self.plugins = what, own or {}, dict[str, Plugin]()

    @property
    def data(self) -> dict[str, Registrable]:  # type: ignore[override]  # read at each look
        """All entries."""
        load_plugins()
        return self.own

    def __setitem__(self, name: str, entry: Registrable) -> None:
        if not re.fullmatch(NAME, name):
            raise ValueError(f"expected a name of letters, digits, _ and -, found {name!r}")
        if name not in self.own:
            self.plugins[name] = Plugin(_loading or sys._getframe(1).f_globals["__name__"])  # or the user imports it
        elif _loading:
            raise ValueError(f"there is a {self.what} {name!r} already; choose another name")
        self.own[name] = entry

    def stamped(self, name: str) -> str:
        """The name as dumps have it: with the version of its plug-in, on which results depend."""
        return f"{name}=={self.plugins[name].version}" if name in self.plugins else name

    def origin(self, name: str) -> str:
        """The `stamped` name of a plug-in's entry and the hash of its source.

        Raises:
            UserError: no plug-in has such an entry.
        """
        if name not in self.plugins:
            exist = ", ".join(self.plugins) or "none"
            raise UserError(f"there is no {self.what} {brief(name)!r} of a plug-in; those that exist: {exist}")
        return f"{self.stamped(name)} sha256:{self.plugins[name].sha256}"

    def check(self, text: str, what: str = "", known: Iterable[str] = (), advice: str = "") -> str:
        """The name in `text`, which is a name or a `stamped` one.

        `what` (description of an entry), `known` (names) and `advice` only appear in errors.

        Raises:
            UserError: there is no such entry, or a plug-in of another version.
        """
        name, _, version = text.partition("==")
        if name not in self:
            what, names = what or self.what, ", ".join(known or self)
            advice = f"; {advice}" if advice else ""
            raise UserError(f"there is no {what} {brief(name)!r}; {what}s that exist: {names}{advice}")
        if version and text != self.stamped(name):
            raise UserError(f"expected {brief(text)}, found {self.stamped(name)}; install that version or run it again")
        return name


def load_plugins() -> None:
    """Import all plug-ins, once.

    Raises:
        UserError: one of them cannot be imported; the line names it.
    """
    global _loaded, _problem
    if _problem is not None:
        raise _problem
    if _loaded:
        return
    _loaded = True
    try:
        for point in sorted(entry_points(group=GROUP), key=lambda point: (point.module, point.name)):
            with _registering(point.module, f"{point.module} (entry point {point.name})"):
                point.load()
        for file in _files():
            spec = spec_from_file_location(f"{GROUP}.{file.stem}", file.absolute())
            assert spec is not None and spec.loader is not None
            module = sys.modules[spec.name] = module_from_spec(spec)
            with _registering(spec.name, str(file)):
                spec.loader.exec_module(module)
    except UserError as problem:
        _problem = problem
        raise


def _files() -> list[Path]:
    """Plug-ins in plugins/ of this folder, if it has a Snakefile, and next to every Snakefile."""
    here = [Path(name) for name in SNAKEFILES if Path(name).is_file()]
    folders = [Path("plugins")] if here else []
    for snakefile in (*here, Path(os.environ.get(NAMED, ""))):
        folder = snakefile.parent / "plugins"
        if snakefile.name and folder.resolve() not in map(Path.resolve, folders):
            folders.append(folder)
    return [file for folder in folders for file in sorted(folder.glob("*.py"))]


@contextlib.contextmanager
def _registering(module: str, where: str) -> Iterator[None]:
    """Within this context new entries belong to `module`."""
    global _loading
    _loading = module
    try:
        yield
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{where}: expected a plug-in, found one that cannot be imported "
            f"({type(error).__name__}: {brief(error)}); correct or remove it"
        ) from None
    finally:
        _loading = None
