"""Prints how often sensors of two scenes are told from those of one, on test, for results.md.

.venv/bin/python docs/measure_agreement.py CARD HEIGHTxWIDTH SENSOR SENSOR [...] [--root FOLDER]
"""

import argparse

import torch

from mmfuse import create_detector
from mmfuse.data.annotations.cards import load_card
from mmfuse.data.annotations.readers import read_split
from mmfuse.data.loader import eval_loader
from mmfuse.data.measuring import measure
from mmfuse.recipes import DataRecipe
from mmfuse.training.agreement_calibration import fit_agreement, told_on


def main() -> None:
    """Fits agreement on train and val as `mmfuse.calibrate` does, and prints what it tells on test."""
    parser = argparse.ArgumentParser()
    parser.add_argument("card")
    parser.add_argument("size")
    parser.add_argument("sensors", nargs="+")
    parser.add_argument("--root")
    options = parser.parse_args()
    card = load_card(options.card, options.root)
    height, width = map(int, options.size.split("x"))
    train, val, test = (
        [r for r in read_split(card, split) if all(m in r.files for m in options.sensors)]
        for split in ("train", "val", "test")
    )
    sensors = measure(train, {m: card.modalities[m] for m in options.sensors}, DataRecipe(workers=0))
    channels = {m: sensor.encoded_channels for m, sensor in sensors.items()}
    detector = create_detector("d-2", channels, classes=card.classes, sensors=sensors, input_size=(height, width))
    detector.eval().begin_doubt()
    with torch.inference_mode():
        loaded = lambda records: eval_loader(records, sensors, (height, width), 8, 0)  # noqa: E731
        fit_agreement(detector, train, val, loaded, 0)
        for m, row in told_on(detector, test, loaded, 0).items():
            sound = ", ".join(f"{condition} {share:.1%}" for condition, share in row.sound.items() if share is not None)
            swapped = "none of one size" if row.swapped is None else f"{row.swapped:.1%}"
            print(f"{m}: sound {sound}; swapped {swapped}")


if __name__ == "__main__":
    main()
