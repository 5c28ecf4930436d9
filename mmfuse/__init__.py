"""Object detection with any number of sensors, fused in one cross-modal weighted BiFPN."""

from importlib import import_module
from typing import TYPE_CHECKING

from mmfuse import version

__version__ = version.VERSION

if TYPE_CHECKING:
    from mmfuse.convert.archives import unpack as unpack
    from mmfuse.convert.datasets import from_nyu as from_nyu
    from mmfuse.convert.datasets import from_ultralytics as from_ultralytics
    from mmfuse.convert.datasets import to_coco as to_coco
    from mmfuse.convert.effdet import from_effdet as from_effdet
    from mmfuse.convert.effdet import to_effdet as to_effdet
    from mmfuse.data.annotations.cards import load_card as load_card
    from mmfuse.data.checks.check import check as check
    from mmfuse.data.new_card import new_card as new_card
    from mmfuse.errors import UserError as UserError
    from mmfuse.evaluation.score import evaluate as evaluate
    from mmfuse.exporting.loading import ExportedDetector as ExportedDetector
    from mmfuse.exporting.loading import load as load
    from mmfuse.images.lift import OrientedBox as OrientedBox
    from mmfuse.images.lift import Position as Position
    from mmfuse.images.lift import lift as lift
    from mmfuse.model.build import create_detector as create_detector
    from mmfuse.model.detector import Detector as Detector
    from mmfuse.model.detector import FusionDetector as FusionDetector
    from mmfuse.model.detector import Outputs as Outputs
    from mmfuse.model.ensemble import BoxEnsemble as BoxEnsemble
    from mmfuse.model.fast import FastDetector as FastDetector
    from mmfuse.recipes import Recipe as Recipe
    from mmfuse.recipes import load_recipe as load_recipe
    from mmfuse.report.outputs import Prediction as Prediction
    from mmfuse.run import Run as Run
    from mmfuse.sample import Batch as Batch
    from mmfuse.sample import Detections as Detections
    from mmfuse.sample import Sample as Sample
    from mmfuse.sample import Scene as Scene
    from mmfuse.sample import Targets as Targets
    from mmfuse.sensor import Calibration as Calibration
    from mmfuse.sensor import Sensor as Sensor
    from mmfuse.sources.opening import scenes as scenes
    from mmfuse.training.doubt_calibration import calibrate as calibrate
    from mmfuse.training.loop import train as train
    from mmfuse.verbs.compare import compare as compare
    from mmfuse.verbs.export import export as export
    from mmfuse.verbs.predict import predict as predict
    from mmfuse.verbs.publish import publish as publish
    from mmfuse.verbs.robustness import robustness as robustness
    from mmfuse.verbs.shares import shares as shares

_MODULES = {
    "convert.archives": ("unpack",),
    "convert.datasets": ("from_nyu", "from_ultralytics", "to_coco"),
    "convert.effdet": ("from_effdet", "to_effdet"),
    "data.annotations.cards": ("load_card",),
    "data.checks.check": ("check",),
    "data.new_card": ("new_card",),
    "errors": ("UserError",),
    "evaluation.score": ("evaluate",),
    "exporting.loading": ("ExportedDetector", "load"),
    "model.build": ("create_detector",),
    "model.detector": ("Detector", "FusionDetector", "Outputs"),
    "model.fast": ("FastDetector",),
    "model.ensemble": ("BoxEnsemble",),
    "recipes": ("Recipe", "load_recipe"),
    "report.outputs": ("Prediction",),
    "run": ("Run",),
    "sample": ("Batch", "Detections", "Sample", "Scene", "Targets"),
    "sensor": ("Calibration", "Sensor"),
    "sources.opening": ("scenes",),
    "training.doubt_calibration": ("calibrate",),
    "training.loop": ("train",),
    "verbs.compare": ("compare",),
    "images.lift": ("OrientedBox", "Position", "lift"),
    "verbs.export": ("export",),
    "verbs.predict": ("predict",),
    "verbs.publish": ("publish",),
    "verbs.robustness": ("robustness",),
    "verbs.shares": ("shares",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

if not TYPE_CHECKING:  # a type checker reads the imports above, so that it knows what isn't there

    def __getattr__(name: str) -> object:
        """Imports a public name when it is first asked for, so that `mmfuse --help` needn't wait for torch."""
        if name not in _HOMES:
            raise AttributeError(f"module 'mmfuse' has no attribute {name!r}")
        globals()[name] = getattr(import_module(f"mmfuse.{_HOMES[name]}"), name)
        return globals()[name]

    def __dir__() -> list[str]:
        return sorted({*globals(), *_HOMES})
