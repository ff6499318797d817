"""Where a figure comes from."""

import subprocess
import sys

from vaebm.system import provenance


def git(folder, *arguments):
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def repository(folder):
    """A repository that looks like this project's, with one commit."""
    (folder / "vaebm").mkdir(parents=True)
    (folder / "vaebm" / "__init__.py").write_text("x = 1\n")
    (folder / "README.md").write_text("text\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    return git(folder, "rev-parse", "HEAD")


def test_commit_and_changes_of_the_program(tmp_path):
    head = repository(tmp_path)
    assert provenance.commit((tmp_path,)) == {"commit": head, "changed": False}
    (tmp_path / "README.md").write_text("other text\n")
    assert provenance.commit((tmp_path,))["changed"] is False, "the README changes no figure"
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "new.yaml").write_text("a: 1\n")
    assert provenance.commit((tmp_path,))["changed"] is True, "a new experiment file is a change"


def test_unknown_outside_a_repository_of_this_project(tmp_path):
    assert provenance.commit((tmp_path,)) == {"commit": "unknown", "changed": "unknown"}
    # installed into the environment of another project, which is a repository too
    other = tmp_path / "other"
    other.mkdir()
    (other / "main.py").write_text("\n")
    git(other, "init", "-q")
    git(other, "add", ".")
    git(other, "commit", "-q", "-m", "first")
    (other / "site-packages" / "vaebm").mkdir(parents=True)
    (other / "site-packages" / "vaebm" / "__init__.py").write_text("x = 1\n")
    assert provenance.commit((other / "site-packages",))["commit"] == "unknown"


def test_the_first_folder_that_knows_counts(tmp_path):
    head = repository(tmp_path / "clone")
    assert provenance.commit((tmp_path, tmp_path / "clone"))["commit"] == head


def test_unknown_without_git(tmp_path, monkeypatch):
    repository(tmp_path)
    monkeypatch.setenv("PATH", "")
    assert provenance.commit((tmp_path,)) == {"commit": "unknown", "changed": "unknown"}


def test_versions_are_those_of_the_running_libraries():
    import torch

    recorded, running = (version.partition("+")[0] for version in (provenance.versions()["torch"], torch.__version__))
    assert recorded == running  # of a build for CUDA the package's metadata do not name the build
    assert set(provenance.versions()) == {"python", *provenance.LIBRARIES}


def test_import_needs_no_torch():
    """Every job that only reads settings would pay seconds for it."""
    script = "import sys, vaebm.system.provenance; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_origin_of_several_parts_names_all_their_commits_and_any_change() -> None:
    one, other = {"commit": "b", "changed": False}, {"commit": ["a", "b"], "changed": True}
    assert provenance.merged([one, one]) == {"commit": ["b"], "changed": False}
    assert provenance.merged([one, other]) == {"commit": ["a", "b"], "changed": True}
    assert provenance.merged([other, {"commit": "unknown", "changed": "unknown"}])["changed"] == "unknown"
