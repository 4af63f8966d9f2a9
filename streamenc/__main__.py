"""`python -m streamenc`: the command line."""

from streamenc.cli.main import main

main()
