"""Converts detectors from and to the files of other libraries, and datasets to COCO JSON."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from mmfuse.convert import nyu, ultralytics
from mmfuse.data.annotations.cards import load_card
from mmfuse.data.annotations.coco import coco_card, coco_split
from mmfuse.data.annotations.readers import read_split
from mmfuse.errors import UserError
from mmfuse.files import named_like, new_folder, resolved, write_whole
from mmfuse.strict_yaml import save_yaml


@dataclasses.dataclass(frozen=True)
class ConvertedCard:
    """A card that was written, and for each split its `file`, and how many `images` and `boxes` it holds."""

    path: str
    splits: dict[str, dict[str, str | int]]

    def to_text(self) -> str:
        """Returns a line for the card and one for each split."""
        lines = (f"{s['file']}: {name}, {s['images']} images, {s['boxes']} boxes" for name, s in self.splits.items())
        return "\n".join([self.path, *lines])


def to_coco(card: str | Path, out: str | Path, *, root: str | None = None) -> ConvertedCard:
    """Writes the splits of a card as COCO JSON with a file for each modality, and a card that reads them.

    The JSON files, OUT_SPLIT.json, are put into the dataset's folder, which the paths in them are relative to. The new
    card gives the same images, boxes, labels, conditions and sequences.

    Args:
        card: the dataset card.
        out: the new card, .yaml.
        root: the dataset's folder, in place of the card's.

    Raises:
        UserError: the card or a split has a mistake, or a file that isn't such a conversion would be replaced.
    """
    out, source = named_like(out, ".yaml"), load_card(card, root)
    if resolved(out) == resolved(Path(card)):
        raise UserError(f"out: {out} is the card itself; give another name")
    names = {split: f"{out.stem}_{split}.json" for split in source.splits}
    taken = {split.file for split in source.splits.values()} & set(names.values())
    if taken:
        raise UserError(f"out: {min(taken)} is a split of {card} itself; give another name than {out.stem}")
    splits: dict[str, dict[str, str | int]] = {}
    dictionaries = {split: coco_split(source, read_split(source, split)) for split in source.splits}
    for split, dictionary in dictionaries.items():
        write_whole(source.root / names[split], json.dumps(dictionary).encode())
        counts = {"images": len(dictionary["images"]), "boxes": len(dictionary["annotations"])}
        splits[split] = {"file": str(source.root / names[split]), **counts}
    save_yaml(out, coco_card(source, names))
    return ConvertedCard(str(out), splits)


def from_nyu(
    labelled: str | Path, splits: str | Path, out: str | Path, *, classes: Sequence[str] | None = None
) -> ConvertedCard:
    """Writes NYU Depth v2 as image files, COCO JSON and a card, card.yaml; see `mmfuse.convert.nyu.write_nyu`.

    Args:
        labelled: nyu_depth_v2_labeled.mat, which is read image by image.
        splits: splits.mat.
        out: a new folder, which appears when all is written.
        classes: the labels to take, by default the usual 19.

    Raises:
        UserError: a file isn't the published one, a class isn't in it, or `out` is there and not empty.
    """
    out = Path(out)
    with new_folder(out) as folder:
        counts = nyu.write_nyu(Path(labelled), Path(splits), folder, nyu.CLASSES if classes is None else classes)
    splits_of = {split: {**found, "file": str(out / str(found["file"]))} for split, found in counts.items()}
    return ConvertedCard(str(out / "card.yaml"), splits_of)


def from_ultralytics(data: str | Path, out: str | Path) -> ConvertedCard:
    """Writes a card for a dataset in Ultralytics' layout, with one modality named image; the data stays where it is.

    See `mmfuse.convert.ultralytics.card_values` for what is read of data.yaml. `check` the card to see what it holds.

    Args:
        data: data.yaml.
        out: the card, .yaml.

    Raises:
        UserError: the file or the layout has a mistake, or `out` is the file itself.
    """
    out = named_like(out, ".yaml")
    if resolved(out) == resolved(Path(data)):
        raise UserError(f"out: {out} is the file itself; give another name")
    save_yaml(out, ultralytics.card_values(Path(data)))
    return ConvertedCard(str(out), {})
