"""The memory that the conversion of a published file takes: less than the file and the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import run
from published_files import network, write_published

MEASURE = """
import sys
from pathlib import Path
from vaebm.nvae.published_checkpoint import convert_published_nvae

def resident(kind):
    return int(next(line for line in open("/proc/self/status") if line.startswith(kind)).split()[1]) * 1024

convert_published_nvae(Path(sys.argv[1]), Path(sys.argv[3]))  # what the libraries take at their first use
Path("/proc/self/clear_refs").write_text("5")  # resets the peak
before = resident("VmRSS")
convert_published_nvae(Path(sys.argv[2]), Path(sys.argv[4]))
print("taken", resident("VmHWM") - before)
"""


@pytest.mark.parametrize(("channels", "legacy"), [(96, False), (80, True), (96, True)])
def test_conversion_takes_less_than_the_file_and_the_weights(tmp_path: Path, channels: int, legacy: bool) -> None:
    """The state of the optimiser is twice as large as the weights, in blocks of any size."""
    small, large = network(), network(channels_encoder=channels, channels_decoder=channels)
    weights = sum(tensor.nbytes for tensor in large.state_dict().values())
    files = [
        write_published(tmp_path / f"{number}.pt", one, legacy=legacy) for number, one in enumerate((small, large))
    ]
    size = files[1].stat().st_size
    assert 10e6 < weights < size / 2.9 < 150e6
    done = run("-c", MEASURE, *files, tmp_path / "a", tmp_path / "b", folder=tmp_path)
    taken = int(done.stdout.rsplit("taken ", 1)[1])
    assert weights < taken < size + weights, (taken, size, weights)
