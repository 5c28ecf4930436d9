"""Where a training starts from that goes on from trained runs: one of each modality, or any one."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from mmfuse.errors import UserError
from mmfuse.model import checkpoint
from mmfuse.model.detector import Detector, FusionDetector
from mmfuse.model.grafting import adopt, graft, misfit
from mmfuse.sensor import Sensor


@dataclass(frozen=True)
class Start:
    """Trained detectors of a modality each, by modality; `main` is the best of them on its validation split.

    Or, where `whole` is given, one detector of any modalities; `paths` has its own for each of them.
    """

    singles: Mapping[str, FusionDetector]
    paths: Mapping[str, str]
    main: str
    whole: Detector | None = None

    def sensors(self, sensors: Mapping[str, Sensor]) -> dict[str, Sensor]:
        """Returns those of the card's `sensors` that have a run, with the statistics that the run was trained with.

        Raises:
            UserError: a run encoded its sensor otherwise.
        """
        found = {}
        known = {m: single.sensors[m] for m, single in self.singles.items()}
        if self.whole is not None:
            known = {m: sensor for m, sensor in self.whole.sensors.items() if m in sensors}
        for m, theirs in known.items():
            own = sensors[m]
            for key in ("channels", "encoding", "near", "far", "range"):
                here, there = getattr(own, key) or getattr(theirs, key), getattr(theirs, key)
                if here != there:
                    where = f"init: {m}: {self.paths[m]}"
                    raise UserError(f"{where} has the sensor's {key} {there!r}, the card {here!r}; make them equal")
            measured = {key: getattr(own, key) or getattr(theirs, key) for key in ("range", "dtype", "seen", "gaps")}
            found[m] = replace(own, **measured, mean=theirs.mean, std=theirs.std)
        return found

    def initialise(self, detector: Detector) -> None:
        """Sets the weights of a detector that is to be trained; see `grafting.graft` and `grafting.adopt`.

        Raises:
            UserError: a run doesn't fit the detector.
        """
        if self.whole is not None:
            try:
                print(adopt(detector, self.whole).to_text())
            except UserError as error:
                raise UserError(f"init: {self.main} {error}") from None
            return
        for modality, single in self.singles.items():
            if problem := misfit(detector, modality, single):
                raise UserError(f"init: {modality}: {self.paths[modality]} {problem}")
        try:
            graft(detector, self.singles, self.main)
        except UserError as error:
            raise UserError(f"init: {error}") from None


def read_start(init: Mapping[str, str] | str) -> Start | None:
    """Reads a run (a folder or checkpoint) or those of modalities; None where there is none.

    Raises:
        UserError: one is missing or is no checkpoint of one detector's, or there are several and one isn't scored.
    """
    if isinstance(init, str):
        try:
            whole = checkpoint.load(init)
        except UserError as error:
            raise UserError(f"init: {error}") from None
        return Start({}, dict.fromkeys(whole.modalities, init), init, whole)
    singles, scores = {}, {}
    for modality, run in init.items():
        try:
            path = checkpoint.located(run)
            single = checkpoint.load(path)
            notes = checkpoint.read(path, with_tensors=False)[1].get("notes", {})
        except UserError as error:
            raise UserError(f"init: {modality}: {error}") from None
        if not isinstance(single, FusionDetector) or single.modalities != (modality,):
            reads = ", ".join(single.modalities)
            fix = f"give a run of {modality} alone, or init={run} for all that it reads"
            raise UserError(f"init: {modality}: {run} reads {reads}; {fix}")
        singles[modality], scores[modality] = single, notes.get("val", {}).get("ap")
    if not singles:
        return None
    unscored = [m for m, score in scores.items() if score is None]
    if unscored and len(scores) > 1:
        m = unscored[0]
        raise UserError(f"init: {m}: {init[m]} has no AP on a validation split, so it can't be compared; give a run")
    return Start(singles, dict(init), max(scores, key=lambda m: scores[m] or 0.0))
