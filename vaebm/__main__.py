"""`python -m vaebm`: the same as the command `vaebm`."""

from vaebm.cli import main

main()
