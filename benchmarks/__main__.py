"""Runs a benchmark, writes its result and prints its table: `python -m benchmarks NAME`; without a name it lists them.

`python -m benchmarks tables` puts all results into docs/performance.md.
"""

import argparse
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import epoch, forward, fusions, growth, loader, losses, postprocess, results, training
from mmfuse.errors import UserError

MODULES = {
    module.__name__.rpartition(".")[2]: module
    for module in (forward, training, losses, postprocess, growth, epoch, fusions, loader)
}
HELP = {
    "side": "pixels of the square images",
    "objects": "in each image",
    "images": "pairs in an epoch",
    "workers": "processes on either side",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what the arguments say; the options of a benchmark are the arguments of its `measure`."""
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    names = parser.add_subparsers(dest="name", metavar="NAME")
    tables = names.add_parser("tables", help="put the tables of all results into a page")
    tables.add_argument("--page", type=Path, default=results.PAGE)
    tables.add_argument("--results", type=Path, default=results.RESULTS)
    for name, module in MODULES.items():
        summary = (module.__doc__ or "").partition("\n")[0]
        own = names.add_parser(name, help=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        for option in inspect.signature(module.measure).parameters.values():
            flag = f"--{option.name.replace('_', '-')}"
            own.add_argument(flag, type=type(option.default), default=option.default, help=HELP.get(option.name, " "))
        own.add_argument("--threads", type=int, default=2, help="of this process")
        own.add_argument("--results", type=Path, default=results.RESULTS, help="folder of the results")
    options = vars(parser.parse_args(arguments))
    name, folder = options.pop("name"), options.pop("results", None)
    if name is None:
        parser.print_help()
    elif name == "tables":
        print(f"{options['page']}: {', '.join(results.rewrite(options['page'], folder)) or 'no tables'}")
    else:
        torch.set_num_threads(options["threads"])
        rows = MODULES[name].measure(**{key: value for key, value in options.items() if key != "threads"})
        print(results.table(results.save(name, options, rows, folder)), end="")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
