"""Runs a benchmark, writes its result and prints its table: `python -m benchmarks NAME`; without a name it lists them.

`python -m benchmarks tables` puts all results into docs/performance.md.
"""

import argparse
import inspect
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import (
    epoch,
    exported,
    forward,
    fusions,
    gpu_inference,
    gpu_training,
    growth,
    loader,
    losses,
    mmfuse_train,
    postprocess,
    results,
    training,
)  # fmt: skip
from mmfuse.errors import UserError

ON_A_GPU = (gpu_inference, gpu_training, mmfuse_train)
MODULES = {
    module.__name__.rpartition(".")[2]: module
    for module in (forward, exported, training, losses, postprocess, growth, epoch, fusions, loader, *ON_A_GPU)
}
HELP = {
    "side": "pixels of the square images",
    "objects": "in each image",
    "images": "pairs in an epoch",
    "workers": "processes on either side",
    "small": "seconds, on any device, to see that it runs",
    "minutes": "nothing begins after these",
    "only": "the cases whose names begin like this",
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
            value = {"action": "store_true"} if option.default is False else {"type": type(option.default)}
            own.add_argument(flag, **value, default=option.default, help=HELP.get(option.name, " "))
        threads = torch.get_num_threads() if module in ON_A_GPU else 2
        own.add_argument("--threads", type=int, default=threads, help="of this process")
        own.add_argument("--results", type=Path, default=results.RESULTS, help="folder of the results")
    options = vars(parser.parse_args(arguments))
    name, folder = options.pop("name"), options.pop("results", None)
    if name is None:
        parser.print_help()
    elif name == "tables":
        print(f"{options['page']}: {', '.join(results.rewrite(options['page'], folder)) or 'no tables'}")
    else:
        torch.set_num_threads(options["threads"])
        found = MODULES[name].measure(**{key: value for key, value in options.items() if key != "threads"})
        result = json.loads(results.save(name, options, found, folder).read_text())
        print(results.table(result) + "\n".join(result["notes"]), end="\n" * bool(result["notes"]))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
