"""`scripts/bench TABLE`: finds the table's module by name and runs it. It knows no measurement."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from pathlib import Path

#: Name of a table → the module beside this file whose ``run(rounds)`` measures it, prints it and returns an exit code.
TABLES = {
    "cluster": "cluster",
    "commit": "commit",
    "images": "images",
    "memory": "memory",
    "posture": "posture",
    "scheduler": "placement",
    "start": "start",
}
#: How often a table measures unless it is told, where it is not 5.
ROUNDS = {"start": 50, "memory": 1, "commit": 3, "scheduler": 3}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure Covey beside its peers, in one run.")
    parser.add_argument("table", nargs="?", default="cluster", help=f"one of {', '.join(TABLES)}")
    parser.add_argument(
        "--rounds", type=int, help="how often each is measured, medians are printed (5, start: 50, memory: 1, scheduler: 3)"
    )
    parser.add_argument("--trace", metavar="DIR", help="of the table scheduler: the openb lists to pack (else a synthetic one)")
    options = parser.parse_args(argv)
    if options.table not in TABLES:
        sys.stderr.write(f"bench: there is no table {options.table!r}; there are: {', '.join(TABLES)}\n")
        return 2
    rounds = options.rounds if options.rounds is not None else ROUNDS.get(options.table, 5)
    if rounds < 1:
        sys.stderr.write("bench: --rounds is a number from 1\n")
        return 2
    # What a table has started ends with its contexts, so an end from outside has to unwind them.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    more = {"trace": options.trace} if options.table == "scheduler" else {}
    return int(importlib.import_module(TABLES[options.table]).run(rounds, **more))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
