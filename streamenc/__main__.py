"""`python -m streamenc`: the command line."""

from streamenc.cli import main

main()
