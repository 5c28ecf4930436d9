"""Shares a run: its detector, with a page that says what it is and how well it was measured."""

from pathlib import Path

from mmfuse.errors import UserError
from mmfuse.evaluation.results import Robustness
from mmfuse.files import HUB
from mmfuse.model import checkpoint
from mmfuse.model.hub import HubName, is_hub
from mmfuse.report.model_card import comparison_of, model_card
from mmfuse.report.run_page import stored
from mmfuse.run import Run


def publish(
    run: str | Path | Run, to: str | Path, *, comparison: str | Path | None = None, private: bool = False
) -> str:
    """Writes a run's best detector to a new folder, or pushes it to the Hugging Face Hub, and returns where it is.

    That is for `mmfuse.load`; on the Hub it has the commit. Beside the weights (safetensors) lie `config.json` and a
    page, `README.md`: what the detector sees and in which units, its classes, all scores in the run folder (`evaluate`,
    also without sensors, and `robustness`), the digests of the splits, the data's licence as the card says, and how to
    use it. Paths of this machine aren't in it.

    Args:
        run: the run or its folder.
        to: a new folder, or "hub:user/name".
        comparison: the folder of a report by `mmfuse.compare` that has this run, to be put on the page, too.
        private: whether a repository that isn't there yet is made for nobody else to see.

    Raises:
        UserError: the run has no best detector, the comparison is another run's, the folder isn't new, the Hub isn't
            reached or doesn't let the user write there.
    """
    run = run if isinstance(run, Run) else Run(Path(run))
    name = HubName.read(to) if is_hub(to) else None
    if private and name is None:
        raise UserError(f"private: {to} is a folder, which is as private as you keep it; leave it out")
    detector = checkpoint.load(run.best)
    notes = checkpoint.read(run.best, with_tensors=False)[1].get("notes", {})
    place = "path/to/this/folder" if name is None else str(name)
    compared = None if comparison is None else comparison_of(run, Path(comparison))
    measured = stored(run.folder, "robustness", Robustness, run.digest)
    card = model_card(run, detector, notes, place, compared, measured)
    if name is not None:
        return detector.push_to_hub(str(name).removeprefix(HUB), card=card, notes=notes, private=private)
    detector.save_pretrained(to, card=card, notes=notes)
    return str(to)
