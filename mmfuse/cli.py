"""The command line: a thin verb for each public function, which imports what it needs when it runs."""

import argparse
import dataclasses
import errno
import gc
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

import mmfuse
from mmfuse.errors import UserError
from mmfuse.recipes import Recipe
from mmfuse.shipped import copy, find, shipped

if TYPE_CHECKING:
    from mmfuse.convert.datasets import ConvertedCard
    from mmfuse.convert.effdet import Conversion
    from mmfuse.run import Run

DOUBTING = get_args(get_type_hints(Recipe)["doubt"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a verb and returns the exit code: 0, 2 for a user's mistake, 130 when interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        options, rest = _parser().parse_known_args(words)
        verb: Callable[[argparse.Namespace, list[str]], int] = options.verb
        code = verb(options, rest)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"mmfuse: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mmfuse: interrupted; nothing is left half written, and train --resume goes on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"mmfuse: {_refused(error)}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if not (told := _lost_worker(str(error))):
            raise
        print(f"mmfuse: {told}", file=sys.stderr)
        return 2


def _refused(error: OSError) -> str:
    """Returns what the system refused: of a file where it names one, else of a stream or a process."""
    what = error.strerror or str(error)
    if error.filename is not None:
        return f"{error.filename}: {what}; check the path"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG):
        return f"standard output: {what}; check where it goes"
    return f"the system refused: {what}; use fewer processes that read images (data.workers, --workers), or free memory"


def _lost_worker(error: str) -> str:
    """Returns what became of a process that reads images, given torch's words for it, which come wherever the main
    process is at that time; empty where they are about something else.
    """
    if "DataLoader worker" not in error:
        return ""
    if "Bus error" in error or "shared memory" in error or "unable to write to file </torch" in error:
        fix = "make it larger (docker run --shm-size=8g), or let no processes read images (data.workers=0, --workers 0)"
        return f"shared memory (/dev/shm) is too small for what the processes that read images hand over; {fix}"
    if (ended := re.search(r"killed by signal: (\w+)|exited unexpectedly", error)) is None:
        return ""
    how = f"was ended by the system ({ended[1]})" if ended[1] else "ended by itself"
    fix = "use fewer of them (data.workers, --workers), or smaller batches"
    return f"a process that reads images {how}, most likely for want of memory; {fix}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mmfuse", description="Detect objects with any number of sensors.")
    parser.add_argument("--version", action="version", version=f"mmfuse {mmfuse.__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, run: Callable[..., int], text: str, as_json: bool = True) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(verb=run, usage=added.error)
        if as_json:
            added.add_argument("--json", action="store_true", help="print JSON")
        return added

    add = verb("demo", _demo, "generate a paired set, train each sensor and their fusion, compare", as_json=False)
    add.add_argument("--out", default="runs/demo", help="folder (default: %(default)s)")
    add.add_argument("--seeds", type=int, nargs="+", default=[0], help="training seeds (default: 0)")

    add = verb("synthesize", _synthesize, "write the embedded paired set", as_json=False)
    add.add_argument("folder")
    add.add_argument("--seed", type=int, default=0)

    add = verb("train", _train, "train the detector of a recipe", as_json=False)
    add.add_argument("recipe", help="recipe file (YAML)")
    add.add_argument("assignments", nargs="*", metavar="key=value", help="changes, such as train.epochs=20")
    add.add_argument("--out", help="run folder (default: runs/NAME)")
    add.add_argument("--resume", action="store_true", help="go on with the run in the folder")
    text = "go on with a run even if its data changed, and write that down"
    add.add_argument("--accept-changed-data", action="store_true", help=text)

    def moved(added: argparse.ArgumentParser) -> None:
        added.add_argument("--card", metavar="FILE", help="the dataset's card, where it moved")
        added.add_argument("--root", metavar="FOLDER", help="the dataset's folder, in place of the card's")

    moved(add)

    doubting = "what comes of a sensor that isn't believed (default: the recipe's)"
    add = verb("evaluate", _evaluate, "score a run on a split")
    add.add_argument("run", help="run folder")
    add.add_argument("--split", default="test")
    add.add_argument("--without", action="append", default=[], metavar="MODALITY", help="leave a sensor out")
    add.add_argument("--soft-nms", action="store_true", help="lower the scores of overlapping boxes, don't drop them")
    add.add_argument("--doubt", choices=DOUBTING, help=doubting)
    moved(add)

    add = verb("calibrate", _calibrate, "fit when the sensors of a run are doubted")
    add.add_argument("run", help="run folder")
    moved(add)

    def severity(added: argparse.ArgumentParser, default: str) -> None:
        text = f"1 to 5, once for each (default: {default})"
        added.add_argument("--severity", type=int, action="append", default=[], metavar="N", help=text)

    add = verb("robustness", _robustness, "score a run on corrupted images: AP against severity")
    add.add_argument("run", help="run folder")
    add.add_argument("--split", default="test")
    add.add_argument("--modality", action="append", default=[], help="corrupt this one alone (default: each in turn)")
    text = "such as fog, once for each (default: all)"
    add.add_argument("--corruption", action="append", default=[], metavar="NAME", help=text)
    severity(add, "all")
    add.add_argument("--limit", type=int, metavar="N", help="score N images, evenly spaced (default: all)")
    add.add_argument("--seed", type=int, default=0, help="seed of the corruptions (default: %(default)s)")
    moved(add)

    add = verb("compare", _compare, "compare runs or recipes in one table")
    add.add_argument("inputs", nargs="+", metavar="RUN|RECIPE|key=value")
    add.add_argument("--seeds", type=int, nargs="+", help="training seeds for recipes")
    add.add_argument("--split", default="test")
    add.add_argument("--reference", metavar="MODEL", help="what differences are taken to (default: best single sensor)")
    text = "score models of several sensors with each sensor under it, too; once for each, or all (default: none)"
    add.add_argument("--corruption", action="append", default=[], metavar="NAME", help=text)
    severity(add, "5")
    add.add_argument("--out", default="runs/comparison", help="report folder (default: %(default)s)")
    moved(add)

    add = verb("predict", _predict, "find objects in scenes: SOURCE, or --MODALITY PART for each sensor")
    add.add_argument("run", metavar="RUN", help="run folder, checkpoint, or hub:USER/NAME[@REVISION]")
    text = (
        "card (.yaml), COCO file (.json), bag, or folder with one for each sensor; default: --MODALITY PART for each, "
    )
    add.add_argument(
        "source", nargs="?", metavar="SOURCE", help=text + "a file, folder, video or camera:0; topics of a bag"
    )
    add.add_argument("--split", default="test", help="of a card (default: %(default)s)")
    add.add_argument("--root", metavar="FOLDER", help="the dataset's folder, in place of the card's")
    text = "pair frames at most so far apart: seconds (default: 0.05), or folders by the numbers that name their files"
    add.add_argument("--tolerance", type=float, metavar="T", help=text)
    text = (
        "write .jsonl, COCO results (.json), a picture (.png), video (.mp4) or folder of pictures; goes on if stopped"
    )
    add.add_argument("--out", metavar="OUT", help=text)
    text = "say where objects are, by the depth sensor and its calibration"
    add.add_argument("--3d", action="store_true", dest="positions", help=text)
    text = "lowest score, or best: for each class that of the highest F1 on validation (default: %(default)s)"
    add.add_argument("--threshold", type=_threshold, default=0.3, metavar="SCORE", help=text)
    add.add_argument("--max-detections", type=int, default=100, metavar="N", help="in a scene (default: %(default)s)")
    add.add_argument("--classes", metavar="NAME,NAME", help="tell these alone (default: all)")
    add.add_argument("--device", help="cpu, cuda or cuda:0 (default: cuda if there is one)")
    add.add_argument("--batch-size", type=int, default=8, metavar="N", help="scenes at once (default: %(default)s)")
    add.add_argument("--workers", type=int, metavar="N", help="processes that read files (default: cores to spare)")
    add.add_argument("--doubt", choices=DOUBTING, help=doubting)

    add = verb("publish", _publish, "share a run's detector: as a folder, or on the Hugging Face Hub", as_json=False)
    add.add_argument("run", help="run folder")
    add.add_argument("--to", required=True, metavar="FOLDER|hub:USER/NAME", help="a new folder, or a name on the Hub")
    add.add_argument("--comparison", metavar="FOLDER", help="put this report by compare on its page")
    add.add_argument("--private", action="store_true", help="make a new repository for nobody else to see")

    for kind in ("recipe", "card"):
        text = f"list the {kind}s that come along; show one, or copy it"
        add = verb(f"{kind}s", partial(_shipped, kind), text)
        add.add_argument("name", nargs="?", metavar="NAME", help=f"of the {kind} to show")
        add.add_argument("--out", metavar="FOLDER", help="copy it to configs/ and datasets/ there")

    add = verb("new", _new, "write a card for a folder by looking at it, and check it")
    add.add_argument("card", metavar="CARD", help="new file (YAML)")
    add.add_argument("folder", metavar="FOLDER", help="the dataset's folder")
    add = verb(
        "export", _export, "write a detector as a file that other programs run, once it is shown to find the same"
    )
    add.add_argument("run", metavar="RUN", help="run folder, or checkpoint")
    add.add_argument("--out", required=True, metavar="FILE", help="new file (.onnx, or .pt2 for PyTorch)")
    text = "of the network: fp32, fp16, or int8, calibrated and scored on validation (default: %(default)s)"
    add.add_argument("--precision", choices=("fp32", "fp16", "int8"), default="fp32", help=text)
    text = "at which it sees (default: as in training)"
    add.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help=text)
    add.add_argument(
        "--batch", type=int, default=1, metavar="N", help="images at once, 0 for any (default: %(default)s)"
    )
    add.add_argument("--threshold", type=float, default=0.0, help="lowest score (default: %(default)s)")
    text = "at which a box falls to a better one (default: %(default)s)"
    add.add_argument("--iou-threshold", type=float, default=0.5, metavar="IOU", help=text)
    add.add_argument("--max-detections", type=int, default=100, metavar="N", help="in an image (default: %(default)s)")
    add.add_argument("--doubt", choices=DOUBTING, help=doubting)
    text = "suppress by ONNX's NonMaxSuppression, in single precision, in place of steps in double"
    add.add_argument("--standard-nms", action="store_true", help=text)
    text = "compile a .pt2 for this machine's processor (AOTInductor)"
    add.add_argument("--aot", action="store_true", help=text)
    moved(add)

    add = verb("check", _check, "check a dataset and its card")
    add.add_argument("card", help="dataset card (YAML)")
    add.add_argument("--root", help="the dataset's folder, in place of the card's")
    text = "count objects that are too small to be learnt at it"
    add.add_argument("--input-size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help=text)

    add = verb("unpack", _unpack, "unpack a dataset's zip or tar archive, whole or not at all", as_json=False)
    add.add_argument("archive")
    add.add_argument("--out", required=True, metavar="FOLDER", help="new or empty folder")

    add = verb("convert", _convert, "convert effdet's weights, a detector or a dataset")
    sources = "effdet FILE|NAME, nyu LABELED.mat SPLITS.mat or ultralytics DATA.yaml; with --to: run, detector or card"
    add.add_argument("source", nargs="+", metavar="SOURCE", help=sources)
    add.add_argument("--to", choices=("effdet", "coco"), help="what to write of a detector or card of mmfuse's")
    add.add_argument("--out", required=True, help="file to write; for nyu a new folder")
    add.add_argument("--size", help="size of the detector, where the weights don't tell it")
    add.add_argument("--modality", action="append", metavar="NAME=CHANNELS", help="once for each (default: rgb=3)")
    add.add_argument("--classes", metavar="NAME,NAME", help="names of the classes; for nyu those to take")

    add = verb("shares", _shares, "set each modality's share in the fusion beside the AP that is lost without it")
    add.add_argument("run", help="run folder")
    add.add_argument("--split", default="test")
    moved(add)
    return parser


def _import_libraries() -> None:
    """Imports what every network needs, which takes seconds, and a third less while no garbage is looked for."""
    gc.disable()
    import timm  # noqa: F401
    import torchvision  # noqa: F401

    gc.freeze()
    gc.enable()


def _run(options: argparse.Namespace, folder: str) -> "Run":
    """Returns a run, with its data where it lies now."""
    from mmfuse.exporting.runs import open_run

    return open_run(folder, options.card, options.root)


def _threshold(text: str) -> float | str:
    return text if text == "best" else float(text)


def _no_rest(options: argparse.Namespace, rest: list[str]) -> None:
    if rest:
        options.usage(f"unrecognized arguments: {' '.join(rest)}")


def _demo(options: argparse.Namespace, rest: list[str]) -> int:
    _import_libraries()
    from mmfuse.verbs.demo import demo

    _no_rest(options, rest)
    demo(options.out, options.seeds)
    _show_report(Path(options.out))
    return 0


def _synthesize(options: argparse.Namespace, rest: list[str]) -> int:
    from mmfuse.embedded.dataset import generate

    _no_rest(options, rest)
    print(generate(Path(options.folder), seed=options.seed))
    return 0


def _train(options: argparse.Namespace, rest: list[str]) -> int:
    _import_libraries()
    from mmfuse.recipes import load_recipe
    from mmfuse.training.loop import train

    behind_flags = [word for word in rest if "=" in word and not word.startswith("-")]
    _no_rest(options, [word for word in rest if word not in behind_flags])
    recipe = load_recipe(options.recipe, options.assignments + behind_flags).moved(options.card, options.root)
    accept = options.accept_changed_data
    run = train(recipe, folder=options.out, resume=options.resume, accept_changed_data=accept)
    if int(os.environ.get("RANK", 0)) == 0:
        best = max((row for row in run.metrics if "val_ap" in row), key=lambda row: row["val_ap"])
        print(f"{run.folder}: best val AP {best['val_ap']:.3f} at epoch {best['epoch']:.0f}")
    return 0


def _evaluate(options: argparse.Namespace, rest: list[str]) -> int:
    _import_libraries()
    from mmfuse.evaluation.score import evaluate
    from mmfuse.report.charts import confusion_matrices, threshold_curves
    from mmfuse.report.tables import dropped_text, other_scores_text, scores_text, thresholds_text

    _no_rest(options, rest)
    run = _run(options, options.run)
    found = evaluate(
        run,
        split=options.split,
        without=options.without,
        soft=options.soft_nms,
        doubt=options.doubt,
    )
    curves, taken = found.curves, found.curves.confusion
    place, title = run.folder, f"{run.folder.name}, {found.name}"
    known = {name: curve for name, curve in curves.per_class.items() if curve is not None}
    pictures = [place / f"{found.name}-{kind}.png" for kind in ("curves", "confusion")]
    lines = {"all classes": curves.overall} | known
    threshold_curves(lines, pictures[0], title, strong="all classes", chosen=taken.thresholds)
    confusion_matrices({"": taken}, pictures[1], title)
    parts = scores_text(found.scores), thresholds_text(taken), other_scores_text(found.others)
    text = "\n\n".join(part for part in (*parts, dropped_text(found.dropped)) if part)
    text += f"\n\nwritten: {', '.join(map(str, (place / f'{found.name}.json', *pictures)))}"
    others = {metric: dataclasses.asdict(scores) for metric, scores in found.others.items()}
    values = dataclasses.asdict(found.scores) | others | {"curves": dataclasses.asdict(curves)}
    _print(options, values | {"dropped": found.dropped}, text)
    return 0


def _calibrate(options: argparse.Namespace, rest: list[str]) -> int:
    _import_libraries()
    from mmfuse.report.tables import doubt_text
    from mmfuse.training.doubt_calibration import calibrate

    _no_rest(options, rest)
    rows = calibrate(_run(options, options.run))
    _print(options, {m: dataclasses.asdict(row) for m, row in rows.items()}, doubt_text(rows))
    return 0


def _robustness(options: argparse.Namespace, rest: list[str]) -> int:
    _import_libraries()
    from mmfuse.report.tables import robustness_markdown
    from mmfuse.verbs.robustness import robustness

    _no_rest(options, rest)
    result = robustness(
        _run(options, options.run),
        split=options.split,
        modalities=options.modality,
        corruptions=options.corruption,
        severities=options.severity,
        limit=options.limit,
        seed=options.seed,
    )
    _print(options, dataclasses.asdict(result), robustness_markdown(result).strip())
    return 0


def _compare(options: argparse.Namespace, rest: list[str]) -> int:
    _import_libraries()
    from mmfuse.verbs.compare import compare

    _no_rest(options, rest)
    assignments = [text for text in options.inputs if "=" in text and not Path(text).exists()]
    named = [text for text in options.inputs if text not in assignments]
    from mmfuse.exporting.runs import is_exported

    is_run = {text: is_exported(text) or (Path(text) / "config.yaml").exists() for text in named}
    inputs = [_run(options, text) if is_run[text] else text for text in named]
    assignments += [f"card={options.card}"] if options.card else []
    assignments += [f"data.root={options.root}"] if options.root else []
    comparison = compare(
        inputs,
        assignments,
        seeds=options.seeds,
        split=options.split,
        reference=options.reference,
        corruptions=options.corruption,
        severities=options.severity or [5],
        out=options.out,
    )
    if options.json:
        print(json.dumps(dataclasses.asdict(comparison), indent=2))
    else:
        _show_report(Path(options.out))
    return 0


def _predict(options: argparse.Namespace, rest: list[str]) -> int:
    _import_libraries()
    from mmfuse.exporting.runs import thresholds_of
    from mmfuse.sources.opening import scenes as open_scenes
    from mmfuse.verbs.predict import open_model, predict

    given = _parts_of(options, rest)
    threshold = thresholds_of(options.run) if options.threshold == "best" else options.threshold
    if not threshold and options.threshold == "best":
        raise UserError(f"--threshold: none were chosen for {options.run}, by training on validation; give a score")
    detector, doubt = open_model(options.run, options.device)
    source, topics = (options.source, given) if options.source else (given, None)
    scenes = open_scenes(
        detector, source, split=options.split, root=options.root, topics=topics, tolerance=options.tolerance
    )
    found = predict(
        detector,
        scenes,
        threshold=threshold,
        max_detections=options.max_detections,
        classes=options.classes.split(",") if options.classes else (),
        doubt=options.doubt or doubt,
        batch_size=options.batch_size,
        workers=options.workers,
        positions=options.positions,
        out=options.out,
        progress=options.out is not None,
    )
    counts: Counter[str] = Counter()
    problems: list[str] = []
    for one in found:
        counts.update(["scenes"] if one.answered else ["scenes", "scenes without an answer"])
        counts.update([*(f"{m} is missing" for m in one.lost), *(f"{m} isn't believed" for m in one.found.dropped)])
        if len(one.found.disagreeing) > 1:
            counts[f"{' and '.join(one.found.disagreeing)} show different scenes"] += 1
        counts["objects"] += len(one.found)
        problems += one.problems[: 1 - len(problems)]
        if options.json:
            print(json.dumps(one.to_dict()), flush=True)
        elif not options.out and one.answered:
            print(one.to_text(), flush=True)
    if int(os.environ.get("RANK", 0)):
        return 0
    if problems and counts["scenes"] == counts["scenes without an answer"]:
        raise UserError(problems[0])
    if not options.json:
        _tell_scenes(counts, problems, options.out)
    return 0


def _export(options: argparse.Namespace, rest: list[str]) -> int:
    _import_libraries()
    from mmfuse.verbs.export import export

    _no_rest(options, rest)
    made = export(
        _run(options, options.run),
        options.out,
        precision=options.precision,
        size=tuple(options.size) if options.size else None,
        batch=options.batch,
        threshold=options.threshold,
        iou_threshold=options.iou_threshold,
        max_detections=options.max_detections,
        doubt=options.doubt,
        standard_nms=options.standard_nms,
        aot=options.aot,
    )
    _print(
        options,
        json.loads(made.header.to_json()) | {"path": made.path, "compared": made.compared, "drawn": made.drawn},
        made.to_text(),
    )
    return 0


def _tell_scenes(counts: Mapping[str, int], problems: Sequence[str], out: str | None) -> None:
    """Prints what became of many scenes, and of one what went wrong."""
    scenes = counts.get("scenes", 0)
    numbers = ("scenes", "scenes without an answer", "objects")
    rest = [f"{name} in {n}" for name, n in sorted(counts.items()) if name not in numbers]
    if unanswered := counts.get("scenes without an answer", 0):
        rest.append(f"no answer for {unanswered}")
    if scenes != 1 or out or rest:
        share = " in this process" if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""
        text = f"{scenes} scene{'s' * (scenes != 1)}{share}, {counts.get('objects', 0)} objects"
        print("; ".join([f"{out}: {text}" if out else text, *rest]), file=sys.stdout if out else sys.stderr)
    if problems:
        print(f"mmfuse: {problems[0]}", file=sys.stderr)


def _parts_of(options: argparse.Namespace, rest: Sequence[str]) -> dict[str, str]:
    """Returns what is given for each modality as --MODALITY PART."""
    if len(rest) % 2 or any(not word.startswith("--") for word in rest[::2]):
        options.usage("give each sensor as --MODALITY PART, such as --rgb a.png --thermal b.png")
    given: dict[str, str] = {}
    for flag, part in zip(rest[::2], rest[1::2], strict=True):
        if (modality := flag.removeprefix("--")) in given:
            raise UserError(f"{flag}: is given twice, as {given[modality]} and {part}; give each sensor once")
        given[modality] = part
    return given


def _publish(options: argparse.Namespace, rest: list[str]) -> int:
    _import_libraries()
    from mmfuse.verbs.publish import publish

    _no_rest(options, rest)
    print(publish(options.run, options.to, comparison=options.comparison, private=options.private))
    return 0


def _shipped(kind: Literal["recipe", "card"], options: argparse.Namespace, rest: list[str]) -> int:
    _no_rest(options, rest)
    if options.name is None and options.out is not None:
        options.usage(f"name the {kind} to copy")
    if options.name is None:
        names = list(shipped(kind))
        _print(options, names, "\n".join(names))
    elif options.out is None:
        print(find(kind, options.name).read_text(), end="")
    else:
        copied = [str(path) for path in copy(kind, options.name, Path(options.out))]
        _print(options, copied, "\n".join(copied))
    return 0


def _new(options: argparse.Namespace, rest: list[str]) -> int:
    from mmfuse.data.checks.check import check
    from mmfuse.data.new_card import new_card

    _no_rest(options, rest)
    path = new_card(options.card, options.folder)
    report = check(path)
    _print(options, dataclasses.asdict(report), f"{path.read_text()}\n{report.to_text()}\ncard: {path}")
    return 2 if report.errors else 0


def _check(options: argparse.Namespace, rest: list[str]) -> int:
    from mmfuse.data.checks.check import check

    _no_rest(options, rest)
    if options.input_size and min(options.input_size) < 1:
        raise UserError(f"--input-size: {options.input_size} is not allowed; use height and width in pixels")
    size = tuple(options.input_size) if options.input_size else None
    report = check(options.card, options.root, input_size=size)
    _print(options, dataclasses.asdict(report), report.to_text())
    return 2 if report.errors else 0


def _unpack(options: argparse.Namespace, rest: list[str]) -> int:
    from mmfuse.convert.archives import unpack

    _no_rest(options, rest)
    print(f"{options.out}: {unpack(options.archive, options.out)} files")
    return 0


def _convert(options: argparse.Namespace, rest: list[str]) -> int:
    from mmfuse.convert.datasets import from_nyu, from_ultralytics, to_coco
    from mmfuse.convert.effdet import from_effdet, to_effdet

    _no_rest(options, rest)
    done: Conversion | ConvertedCard
    classes = None if options.classes is None else options.classes.split(",")
    details = options.size is not None or options.modality is not None
    match options.source, options.to, details, classes:
        case ["effdet", weights], None, _, _:
            modalities = _channels(options.modality or [])
            done = from_effdet(weights, options.out, size=options.size, modalities=modalities, classes=classes)
        case ["nyu", labelled, splits], None, False, _:
            done = from_nyu(labelled, splits, options.out, classes=classes)
        case ["ultralytics", data], None, False, None:
            done = from_ultralytics(data, options.out)
        case [source], "effdet" | "coco", False, None:
            done = (to_effdet if options.to == "effdet" else to_coco)(source, options.out)
        case _:
            options.usage(
                "write effdet FILE|NAME, nyu LABELED.mat SPLITS.mat, ultralytics DATA.yaml, "
                "RUN|DETECTOR --to effdet or CARD --to coco, each with --out"
            )
    _print(options, dataclasses.asdict(done), done.to_text())
    return 0


def _channels(words: Sequence[str]) -> dict[str, int]:
    """Returns the channels of each modality of NAME=CHANNELS words."""
    channels: dict[str, int] = {}
    for word in words:
        name, _, count = word.partition("=")
        if not name or name in channels or not re.fullmatch("[1-9][0-9]*", count):
            raise UserError(f"--modality: {word!r} is not allowed; write each once as NAME=CHANNELS, such as thermal=1")
        channels[name] = int(count)
    return channels


def _shares(options: argparse.Namespace, rest: list[str]) -> int:
    _import_libraries()
    from mmfuse.report.tables import shares_markdown
    from mmfuse.verbs.shares import shares

    _no_rest(options, rest)
    result = shares(_run(options, options.run), split=options.split)
    _print(options, dataclasses.asdict(result), shares_markdown(result).strip())
    return 0


def _print(options: argparse.Namespace, values: Any, text: str) -> None:
    print(json.dumps(values, indent=2) if options.json else text)


def _show_report(out: Path) -> None:
    print((out / "report.md").read_text().partition("## AP per class")[0].strip())
    print(f"\nreport: {out / 'report.md'}, as a page: {out / 'report.html'}")


if __name__ == "__main__":
    sys.exit(main())
