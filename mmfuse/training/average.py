"""The moving average of a detector's weights and buffers, which is what is scored and kept."""

from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, _foreach_copy_, _foreach_lerp_

from mmfuse.model.detector import Detector


class Average(ModelEmaV3):
    """timm's average of one detector, in two calls a step however many tensors there are.

    They are looked up once: timm asks both modules for all of them in every step, which takes the host longer than what
    is done with them, and copies those that aren't floats one by one. So neither module may be given other tensors.
    """

    def __init__(self, detector: Detector, decay: float) -> None:
        super().__init__(detector, decay, use_warmup=True)
        pairs = list(zip(self.module.state_dict().values(), detector.state_dict().values(), strict=True))
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self._copied = [pair for pair in pairs if not pair[0].is_floating_point()]

    def apply_update_(self, model: Detector, decay: float) -> None:
        """Moves the average towards the detector, by one less `decay` of the way; called by `update`."""
        _foreach_lerp_(*_lists(self._averaged), weight=1.0 - decay)
        if self._copied:
            _foreach_copy_(*_lists(self._copied))


def _lists(pairs: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    return [own for own, _ in pairs], [theirs for _, theirs in pairs]
