"""The command line, for `python -m posttrain`."""

from posttrain.cli.main import main

main()
