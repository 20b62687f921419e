#!/usr/bin/env python3
"""Ratio of two checkouts: a benchmark of each, in turn, in one run.

Each round runs the benchmark of the first checkout, then that of the second, each in
the environment of its own path.sh. The numbers of their Markdown tables are compared
where both have the row and the column. Do not set DUS_VENV: two checkouts that share an
environment install themselves there in turn.

    git worktree add ../before COMMIT
    tools/benchmarks/compare_checkouts.py ../before . train_step.py --arms lora
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

from tabulate import tabulate

# The words come as arguments, so that nothing of them is read by the shell.
RUN = '. ./path.sh > /dev/null && exec "${MAIN_ROOT}/tools/benchmarks/$0" "$@"'


def get_parser():
    """Build the command's parser."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path, help="a checkout")
    parser.add_argument("after", type=Path, help="another one")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side")
    parser.add_argument("--recipe", default="an4", help="whose path.sh is used")
    parser.add_argument("benchmark", help="file in tools/benchmarks of both checkouts")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="of the benchmark")
    return parser


def run(checkout, options):
    """Run the benchmark of a checkout.

    Returns:
        Its numbers by row and column.

    Raises:
        RuntimeError: It fails, or prints no table.
    """
    done = subprocess.run(
        ["bash", "-c", RUN, options.benchmark, *options.options],
        cwd=checkout / "egs2" / options.recipe / "dus1",
        stdout=subprocess.PIPE,
        text=True,
    )
    found = numbers(done.stdout)
    if done.returncode or not found:
        raise RuntimeError(
            f"{checkout}: {options.benchmark} ended with code {done.returncode} and "
            f"{len(found)} numbers in tables; its messages are above"
        )
    return found


def numbers(text):
    """Return the numbers in Markdown tables by (row, column); the first of each."""
    found, header = {}, None
    for line in text.splitlines():
        if not line.startswith("|"):
            header = None
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        header = header or cells
        for column, cell in zip(header[1:], cells[1:]):
            try:
                found.setdefault((cells[0], column), float(cell.replace(",", "")))
            except ValueError:
                pass  # a text
    return found


def main(cmd=None):
    """Measure and print."""
    options = get_parser().parse_args(cmd)
    sides = {"before": options.before, "after": options.after}
    measured = {side: [] for side in sides}
    for number in range(options.rounds):
        for side, checkout in sides.items():
            print(f"round {number + 1}: {checkout}", file=sys.stderr, flush=True)
            measured[side].append(run(checkout, options))
    rows = []
    for row, column in measured["before"][0]:
        before, after = (
            [found.get((row, column)) for found in measured[side]] for side in sides
        )
        if None in (*before, *after) or not all(before):
            continue
        ratios = sorted(new / old for old, new in zip(before, after))
        medians = statistics.median(before), statistics.median(after)
        ratio = medians[1] / medians[0]
        spread = f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
        values = (f"{value:g}" for value in medians)
        rows.append([row, column, *values, f"{ratio:.3f}", spread])
    header = ["row", "column", "before", "after", "ratio", "of each round"]
    print(tabulate(rows, header, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
