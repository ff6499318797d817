"""What an environment may do to a command: files of other processes, logs, locks, variables, encodings."""

from __future__ import annotations

import ast
import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import refused, run, vaebm

from vaebm.cli import pin
from vaebm.system import files
from vaebm.system.checkpoint import save_model
from vaebm.system.errors import MOST, UserError, brief, listed
from vaebm.system.files import found_at, locked, write_json, writing

ROOT = Path(__file__).parents[2]


def _dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_writing_keeps_temporaries_of_live_processes_and_removes_those_of_dead_ones(tmp_path: Path) -> None:
    path = tmp_path / "a[1].json"
    live = [f".{path.name}.{files._host}.{os.getppid()}.3.tmp", f".{path.name}.{os.getppid()}.tmp", ".b.json.1.tmp"]
    dead = [f".{path.name}.{files._host}.{_dead_process()}.3.tmp", f".{path.name}.{_dead_process()}.tmp"]
    for name in [*live, *dead, f".{path.name}.elsewhere.1.2.tmp"]:
        (tmp_path / name).touch()
    write_json(path, 1)
    assert {*os.listdir(tmp_path)} == {path.name, *live, f".{path.name}.elsewhere.1.2.tmp"}
    os.utime(tmp_path / f".{path.name}.elsewhere.1.2.tmp", (0, 0))
    write_json(path, 2)
    assert {*os.listdir(tmp_path)} == {path.name, *live} and path.read_text() == "2\n"


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with writing(path) as one:
        with writing(path) as other:
            other.write(b"other")
        one.write(b"one")
    assert path.read_bytes() == b"one" and os.listdir(tmp_path) == ["model.pt"]


def test_writers_in_several_processes_all_succeed(tmp_path: Path) -> None:
    program = "from pathlib import Path; from vaebm.system.files import write_json\n"
    program += "for number in range(100): write_json(Path('a.json'), [number] * 100)"
    writers = [subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path) for _ in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0] and os.listdir(tmp_path) == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == [99] * 100


@pytest.mark.parametrize("values", [3, 3_000_000])
def test_full_disk_under_a_model_of_any_size_is_one_line(
    values: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_Output", type("Full", (files._Output,), {"write": _full}))
    with pytest.raises(UserError, match="model.pt: cannot be written: No space left on device"):
        save_model(tmp_path / "model.pt", "energy", {}, {"a": torch.zeros(values)})
    assert os.listdir(tmp_path) == []


def _full(self: files._Output, content: object) -> int:
    self.problem = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    raise self.problem


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_file_system_without_locks_is_reported_once(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(file: object, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", none)
    monkeypatch.setattr(files, "_said_no_locks", False)
    done = []
    for number in range(2):
        with locked(tmp_path / "lock"):
            done.append(number)
    line = capsys.readouterr().err
    assert done == [0, 1] and line.count("\n") == 1 and "without a lock" in line and str(tmp_path / "lock") in line
    monkeypatch.setattr(fcntl, "flock", lambda file, operation: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(OSError, match="broken"), locked(tmp_path / "lock"):
        pass


def test_gpus_are_taken_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vaebm.system import gpu_lease

    monkeypatch.setattr(fcntl, "flock", lambda file, operation: (_ for _ in ()).throw(OSError(errno.ENOSYS, "none")))
    monkeypatch.setattr(gpu_lease, "FOLDER", tmp_path / "locks")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    gpu_lease.reserve_gpus(1, lambda: ["one", "two"])
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4"


def test_log_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for log in ("file/a.log", ".", "a" * 300):
        line = refused("data", "digits", "--folder", "out", "--log", log, folder=tmp_path)
        assert line.startswith(f"{log}: the log cannot be written") and not (tmp_path / "out").exists()


def test_full_disk_under_the_log_does_not_end_the_command(tmp_path: Path) -> None:
    done = vaebm("data", "digits", "--folder", "out", "--log", "/dev/full", folder=tmp_path)
    assert done.returncode == 0 and "/dev/full: the log ends here: No space left" in done.stderr
    assert done.stdout.startswith("out: 1,797 images")


def test_left_over_variables_of_other_programs_are_ignored(tmp_path: Path) -> None:
    for left in (
        {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "RANK": "", "WORLD_SIZE": "abc"},
        {"RANK": "0", "WORLD_SIZE": "2"},
        {"RANK": "3", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"},
    ):
        program = "from vaebm.cli import main; import sys; sys.argv[1:] = ['describe', 'tiny']\n"
        program += "try: main()\nfinally: import vaebm.plots"
        done = run("-c", program, folder=ROOT, **left)
        assert done.returncode == 0 and "models    nvae, vaebm" in done.stdout


def test_any_locale_reads_and_shows_the_same(tmp_path: Path) -> None:
    """ISO-8859-1 has no ε; LC_ALL=C with coercion off is ASCII."""
    plain = vaebm("describe", "tiny", folder=ROOT, PYTHONUTF8="1").stdout
    assert "×" in plain
    bare = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    log = tmp_path / "log"
    done = vaebm("describe", "tiny", "--log", log, folder=ROOT, **bare)
    assert done.returncode == 0 and "\\xd7" in done.stdout and log.read_text(encoding="utf-8").startswith(plain)
    program = "import io, sys; sys.stdout = io.TextIOWrapper(sys.stdout.buffer, 'iso-8859-1')\n"
    program += "from pathlib import Path; from vaebm.config.yaml_files import read_yaml, read_experiment\n"
    program += "[read_experiment(Path(f'config/experiments/{name}.yaml')) for name in ('celeba64', 'digits')]\n"
    program += "read_yaml(Path('config/paper.yaml')); print('all')"
    assert run("-c", program, folder=ROOT, **bare).stdout == "all\n"


def test_text_files_are_opened_as_utf8() -> None:
    """Whatever reads or writes text names its encoding."""
    found = []
    for path in sorted((ROOT / "vaebm").rglob("*.py")):
        name = path.relative_to(ROOT / "vaebm").as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
                mode = next((part.value for part in node.args[:2] if isinstance(part, ast.Constant)), "r")
                opens = called == "open" and mode in ("r", "w", "a", "r+", "w+", "x", os.devnull)
                encoded = any(keyword.arg in ("encoding", "buffering") for keyword in node.keywords)
                if (opens or called in ("read_text", "write_text")) and not encoded:
                    found.append(f"{name}: {ast.unparse(node.func)}")
    binary = {"Image.open", "tarfile.open", "lmdb.open", "os.open", "archive.open", "self._archive.open"}
    assert [call for call in found if call.split(": ")[1] not in binary] == []


def test_errors_are_short_and_printable() -> None:
    assert len(str(UserError("a" * 10**6))) <= MOST and len(brief("x" * 10**6)) <= 170
    assert brief(ValueError("one\ntwo")) == "one" and brief(KeyError("a")) == "KeyError: 'a'"
    assert brief(ValueError()) == "ValueError" and brief("\x1b[31m") == "'\\x1b[31m'"
    assert listed([*"abcde"]) == "a, b, c and 2 more" and listed(["a"]) == "a"
    assert listed(["new\nclass", " ", "x" * 10**6])[:24] == "'new\\nclass', ' ', xxxxx"


def test_what_is_at_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    assert found_at(tmp_path) == "a folder" and found_at(tmp_path / "file") == "a file"
    assert found_at(tmp_path / "file" / "x") == found_at(tmp_path / "none") == "none"
    assert "File name too long" in found_at(tmp_path / ("a" * 300)) and "null" in found_at(tmp_path / "\0")

    def closed(path: Path) -> os.stat_result:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "stat", closed)
    assert found_at(tmp_path) == "one that cannot be read (Permission denied)"


@pytest.fixture
def pinned(tmp_path: Path) -> Path:
    """A project with a pinned data set in data/, a link to another disk, and no DVC project."""
    disk, project = tmp_path / "disk", tmp_path / "project"
    (disk / "digits").mkdir(parents=True)
    project.mkdir()
    for name in pin.PREPARED:
        (disk / "digits" / name).write_text(name)
    (project / "data").symlink_to(disk)
    pins = f"outs:\n- md5: {pin.folder_hash(disk / 'digits')}\n  path: data/digits\n"
    (project / "data.dvc").write_text(pins)
    return project


def test_pin_follows_data_to_another_disk(
    pinned: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pin, "_commit", lambda pins: None)
    monkeypatch.chdir(pinned)
    for folder in (Path("data/digits"), pinned / "data" / "digits"):
        for pins in (Path("data.dvc"), pinned / "data.dvc"):
            pin.run(folder, pins)
            assert capsys.readouterr().out == f"{folder}: the bytes are those that {pins} pins\n"
    (pinned / "data/digits/.DS_Store").touch()
    pin.run(Path("data/digits"), Path("data.dvc"))
    (pinned / "data/digits/notes.txt").touch()
    with pytest.raises(UserError, match="data/digits: expected the bytes that data.dvc pins .*remove notes.txt from"):
        pin.run(Path("data/digits"), Path("data.dvc"))


@pytest.mark.parametrize("content", ["", "outs: 3", "outs: [{path: 3, md5: a}]", "outs: [{path: a}]", "<<<<<<< HEAD"])
def test_damaged_pins_are_one_line(content: str, pinned: Path) -> None:
    (pinned / "data.dvc").write_text(content)
    with pytest.raises(UserError, match="data.dvc:") as error:
        pin.run(pinned / "data/digits", pinned / "data.dvc")
    assert "\n" not in str(error.value)


def test_pins_are_read_under_the_lock(pinned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another `pin` may rewrite data.dvc until it lets go."""
    (pinned / ".dvc").mkdir()
    monkeypatch.setattr(pin, "_commit", lambda pins: None)
    whole = (pinned / "data.dvc").read_text()
    (pinned / "data.dvc").write_text("")
    lock = pinned / ".dvc" / "tmp" / "vaebm-pin.lock"
    lock.parent.mkdir()
    with locked(lock):
        command = [sys.executable, "-m", "vaebm", "pin", "data/digits", "--pins", "data.dvc"]
        other = subprocess.Popen(command, cwd=pinned, stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(1.5)
        (pinned / "data.dvc").write_text(whole)
    assert "the bytes are those that data.dvc pins" in other.communicate(timeout=60)[0] and other.returncode == 0


def test_reason_why_the_cache_was_not_filled_is_given(pinned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC's own words, not its closing advice: an interrupted DVC leaves an empty rwlock."""
    shutil.copytree(ROOT / ".dvc", pinned / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache"))
    subprocess.run(["git", "init", "--quiet"], cwd=pinned, check=True)
    (pinned / ".dvc" / "tmp").mkdir(exist_ok=True)
    (pinned / ".dvc" / "tmp" / "rwlock").touch()
    problem = pin._commit(pinned / "data.dvc")
    assert problem is not None and "rwlock" in problem and "status" in problem and "\n" not in problem
