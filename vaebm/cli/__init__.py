"""The command line."""

from vaebm.cli.commands import main

__all__ = ["main"]
