"""What tests of exported files share: a run, and what it is exported to."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mmfuse
from mmfuse import strict_yaml
from mmfuse.data.annotations.cards import card_of
from mmfuse.exporting.graph import traced
from mmfuse.model import checkpoint
from mmfuse.recipes import load_recipe
from mmfuse.run import Run, build_detector
from mmfuse.verbs import export as export_verb


@pytest.fixture(scope="package")
def run(tmp_path_factory, paired_set):
    """The run of a detector of two sensors that wasn't trained, whose outputs are spread, so that detections differ."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "recipe.yaml").write_text(
        f"card: {paired_set}\nname: both\nmodalities: [rgb, thermal]\n"
        "model: {size: d-4, backbone: test_resnet, width: 16}\ndata: {input_size: [96, 128], workers: 0}\n"
    )
    recipe = load_recipe(folder / "recipe.yaml")
    card = card_of(recipe)
    measured = {"rgb": ((110.0,) * 3, (60.0,) * 3, "uint8"), "thermal": ((0.4,), (0.2,), "uint16")}
    sensors = {
        m: replace(card.modalities[m], mean=mean, std=std, dtype=kind, range=() if m == "rgb" else (0.0, 65535.0))
        for m, (mean, std, kind) in measured.items()
    }
    torch.manual_seed(0)
    detector = build_detector(recipe, sensors, card.classes).eval()
    detector.class_head.predict.pointwise.weight.data *= 8
    detector.class_head.predict.pointwise.bias.data += 3.5
    detector.begin_doubt()
    for doubt in detector.doubts.values():
        doubt.threshold.fill_(1e9)
    checkpoint.save_detector(folder / "best.safetensors", detector, {})
    strict_yaml.save_yaml(folder / "config.yaml", recipe.to_dict())
    return Run(folder)


@pytest.fixture(scope="package")
def exported(run):
    """The run as an ONNX file, and what was traced for it."""
    programs = []

    def spy(*options):
        programs.append(traced(*options))
        return programs[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_verb, "traced", spy)
        return Path(mmfuse.export(run, run.folder / "d.onnx").path), programs[0]


@pytest.fixture(scope="package")
def file(exported):
    """The run as an ONNX file."""
    return exported[0]
