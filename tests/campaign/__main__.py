"""`python -m tests.campaign fuzz|soak|chaos`; `make fuzz`, `make soak`, `make chaos`."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from tests.campaign import fuzz
from tests.campaign.target import TARGETS

PARTS = ("nodes", "workers", "disks", "servers", "signals", "peers", "brokers")
FUZZ = """\
examples:
  fuzz --minutes 10                      all targets, ten minutes in all
  fuzz --cases 1000 --only wire --keep   a thousand of one; faults go into its corpus
  fuzz --only wire --case 123            one case once more, in this process
  fuzz --only wire --input FILE          one input, in this process
  fuzz --guided --only wire --minutes 5  guided by coverage (pip install atheris)
"""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_fuzz(
        commands.add_parser(
            "fuzz",
            help="hostile inputs at everything that reads what strangers send",
            description="Hostile inputs at all targets, each in a child process with limits.",
            epilog=FUZZ,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    _add_soak(commands.add_parser("soak", help="eight live streams and a server, for long"))
    _add_chaos(commands.add_parser("chaos", help="what is broken on purpose around a run"))
    given = parser.parse_args(arguments)
    # Either ends it with the table so far, also where a shell began it in the background.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    return int(given.run(given))


def _add_soak(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_soak)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument(
        "--restart-minutes", type=float, default=2.0, help="of the server; 0 for no server"
    )
    parser.add_argument("--out", type=Path, help="a JSON file, in which `soak` is replaced")


def _soak(given: argparse.Namespace) -> int:
    from tests.campaign import soak  # torch, which `fuzz` leaves to its children

    return soak.run(given)


def _add_chaos(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_chaos)
    parser.add_argument("--minutes", type=float, default=5.0, help="more of them break more often")
    parser.add_argument("--only", nargs="+", metavar="PART", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a JSON file, in which `chaos` is replaced")


def _chaos(given: argparse.Namespace) -> int:
    from tests.campaign import chaos

    return chaos.run(given)


def _add_fuzz(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=fuzz.run)
    parser.add_argument(
        "--minutes", type=float, help="for all targets together (3 without --cases)"
    )
    parser.add_argument("--cases", type=int, help="of each target, however long they take")
    parser.add_argument(
        "--only", nargs="+", metavar="TARGET", choices=TARGETS, default=list(TARGETS)
    )
    parser.add_argument("--seed", type=int, default=0, help="another one makes other cases")
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--processes", type=int, default=1, help="targets at a time")
    parser.add_argument("--guided", action="store_true", help="cases by coverage, with atheris")
    parser.add_argument("--case", type=int, help="one case, by its number")
    parser.add_argument("--input", type=Path, help="a file whose bytes are given to the target")
    parser.add_argument("--keep", action="store_true", help="faults go into the corpus")
    parser.add_argument("--out", type=Path, help="a JSON file, in which `fuzz` is replaced")
    parser.add_argument(
        "--output", type=Path, default=fuzz.OUTPUT, help="the folder of inputs that broke a promise"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
