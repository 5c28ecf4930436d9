"""Object detection with any number of sensors, fused in one cross-modal weighted BiFPN."""

from mmfuse.compare import compare as compare
from mmfuse.convert.archives import unpack as unpack
from mmfuse.convert.datasets import from_nyu as from_nyu
from mmfuse.convert.datasets import from_ultralytics as from_ultralytics
from mmfuse.convert.datasets import to_coco as to_coco
from mmfuse.convert.effdet import from_effdet as from_effdet
from mmfuse.convert.effdet import to_effdet as to_effdet
from mmfuse.data.annotations.cards import load_card as load_card
from mmfuse.data.checks.check import check as check
from mmfuse.data.images.scenes import prepare_scene as prepare_scene
from mmfuse.errors import UserError as UserError
from mmfuse.evaluation.score import evaluate as evaluate
from mmfuse.lift import OrientedBox as OrientedBox
from mmfuse.lift import Position as Position
from mmfuse.lift import lift as lift
from mmfuse.model.build import create_detector as create_detector
from mmfuse.model.checkpoint import load as load
from mmfuse.model.detector import Detector as Detector
from mmfuse.model.detector import FusionDetector as FusionDetector
from mmfuse.model.detector import Outputs as Outputs
from mmfuse.model.ensemble import BoxEnsemble as BoxEnsemble
from mmfuse.predict import predict as predict
from mmfuse.recipes import Recipe as Recipe
from mmfuse.recipes import load_recipe as load_recipe
from mmfuse.robustness import robustness as robustness
from mmfuse.run import Run as Run
from mmfuse.sample import Batch as Batch
from mmfuse.sample import Detections as Detections
from mmfuse.sample import Sample as Sample
from mmfuse.sample import Targets as Targets
from mmfuse.sensor import Calibration as Calibration
from mmfuse.sensor import Sensor as Sensor
from mmfuse.shares import shares as shares
from mmfuse.training.doubt_calibration import calibrate as calibrate
from mmfuse.training.loop import train as train

__version__ = "0.1.0"
