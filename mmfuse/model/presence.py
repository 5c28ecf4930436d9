"""Which sensors the images of a batch have: the one form of absence inside a detector."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmfuse.errors import UserError
from mmfuse.sample import check_masks, to_device


class Rows:
    """Those images of a batch of `batch` that have something.

    The host knows them: `mask` is (B,) bool there, or True for all of them and False for none. What it leaves out isn't
    run at all. `trusted` (B,) bool, if given, may leave out more, on the device, which the host doesn't read: that is
    run, and must count for nothing. `belief` (B,), if given, is what it counts for in each image, from 0 to 1. With
    `elsewhere` other processes may have images of it: then it is run in any case, on no image if there is none here.
    """

    def __init__(
        self,
        batch: int,
        mask: Tensor | bool,
        trusted: Tensor | None = None,
        belief: Tensor | None = None,
        elsewhere: bool = False,
    ) -> None:
        self.batch = batch
        self.mask = mask
        self.trusted = trusted
        self.belief = belief
        self.elsewhere = elsewhere
        self._on: dict[torch.device, Tensor] = {}
        self._places: dict[torch.device, Tensor] = {}

    @classmethod
    def of(
        cls, mask: Tensor, trusted: Tensor | None = None, belief: Tensor | None = None, elsewhere: bool = False
    ) -> "Rows":
        """Reads a mask (B,) bool."""
        host = mask.cpu()
        kept = True if bool(host.all()) else host if elsewhere or bool(host.any()) else False
        return cls(len(host), kept, trusted, belief, elsewhere)

    @property
    def everything(self) -> bool:
        """Whether all images have it for certain and in full, so that nothing needs to be masked or weighed."""
        return self.mask is True and self.trusted is None and self.belief is None

    @property
    def nothing(self) -> bool:
        """Whether no image has it, here or elsewhere."""
        return self.mask is False

    @property
    def host(self) -> Tensor:
        """The mask (B,) bool of what is run, on the host."""
        return self.mask if isinstance(self.mask, Tensor) else torch.full((self.batch,), self.mask, device="cpu")

    def places(self, device: torch.device) -> Tensor:
        """Returns the places in the batch of what is run (n,) int64; they are found on the host, which doesn't wait."""
        if device not in self._places:
            every = self.mask is True
            self._places[device] = (
                torch.arange(self.batch, device=device) if every else to_device(self.host.nonzero()[:, 0], device)
            )
        return self._places[device]

    def on(self, device: torch.device) -> Tensor:
        """Returns a mask on a device, (B,) bool, or (1,) where it is the same for all images."""
        if device not in self._on:
            known = isinstance(self.mask, Tensor)
            mask = to_device(self.host, device) if known else torch.full((1,), bool(self.mask), device=device)
            self._on[device] = mask if self.trusted is None else mask & self.trusted
        return self._on[device]

    def share(self, device: torch.device) -> Tensor:
        """Returns what it counts for on a device, 0 to 1, (B,), or (1,) where it is the same for all images."""
        there = self.on(device).float()
        return there if self.belief is None else there * self.belief.to(device)

    def take(self, x: Tensor) -> Tensor:
        """Returns those of `x` (B, …) that are run."""
        return x if self.mask is True else x.index_select(0, self.places(x.device))

    def run(self, function: Callable[..., Any], *maps: Tensor | None) -> Any:
        """Runs a function of `maps` (B, …) on these images; the results of the others are 0.

        So what is absent costs nothing and doesn't enter the statistics of batch norms. The function returns a tensor
        or a list.
        """
        if self.mask is True:
            return function(*maps)
        made = function(*(None if x is None else self.take(x) for x in maps))
        return self._spread(made) if isinstance(made, Tensor) else [self._spread(x) for x in made]

    def _spread(self, x: Tensor) -> Tensor:
        return x.new_zeros(self.batch, *x.shape[1:]).index_copy(0, self.places(x.device), x)

    def keep(self, x: Tensor, otherwise: Tensor | float = 0.0) -> Tensor:
        """Returns `x` (B, C, H, W) in these images and `otherwise` in the others, whatever `x` holds there."""
        return x if self.everything else torch.where(self.on(x.device)[:, None, None, None], x, otherwise)

    def within(self, other: "Rows") -> "Rows":
        """Returns which of the images that `other` runs these are."""
        if other.mask is True:
            return self
        count = int(other.host.sum())
        trusted, belief = (None if x is None else other.take(x) for x in (self.trusted, self.belief))
        if not isinstance(self.mask, Tensor):
            return Rows(count, self.mask, trusted, belief, self.elsewhere)
        return Rows.of(self.mask[other.host], trusted, belief, self.elsewhere)

    def __or__(self, other: "Rows") -> "Rows":
        if self.everything or other.nothing:
            return self
        if other.everything or self.nothing:
            return other
        trusted, belief = self._combined(other, torch.logical_or, torch.maximum)
        if self.mask is True or other.mask is True:
            return Rows(self.batch, True, trusted, belief)
        return Rows.of(self.host | other.host, trusted, belief, self.elsewhere or other.elsewhere)

    def __and__(self, other: "Rows") -> "Rows":
        if self.everything or other.nothing:
            return other
        if other.everything or self.nothing:
            return self
        trusted, belief = self._combined(other, torch.logical_and, torch.minimum)
        if self.mask is True and other.mask is True:
            return Rows(self.batch, True, trusted, belief)
        return Rows.of(self.host & other.host, trusted, belief, self.elsewhere and other.elsewhere)

    def _combined(
        self, other: "Rows", join: Callable[[Tensor, Tensor], Tensor], weigh: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Tensor | None, Tensor | None]:
        trusted = next((x for x in (self.trusted, other.trusted) if x is not None), None)
        belief = next((x for x in (self.belief, other.belief) if x is not None), None)
        return (
            None if trusted is None else join(self.on(trusted.device), other.on(trusted.device)),
            None if belief is None else weigh(self.share(belief.device), other.share(belief.device)),
        )


class Presence:
    """Which images of a batch have which sensors: `rows` for every modality; each image has one at least.

    Made once, where a detector checks what it is given. What turns a sensor off turns it off here: `without` before
    anything of it has run or where the host may wait, `doubted` where only the device knows.
    """

    def __init__(self, rows: Mapping[str, Rows]) -> None:
        self.rows = dict(rows)
        self._any: dict[frozenset[str], Rows] = {}
        self._within: dict[tuple[frozenset[str], frozenset[str]], Rows] = {}

    @classmethod
    def of(cls, masks: Mapping[str, Tensor]) -> "Presence":
        """Reads the masks (B,) bool of every modality."""
        return cls({m: Rows.of(mask) for m, mask in masks.items()})

    @classmethod
    def whole(cls, modalities: Sequence[str], batch: int) -> "Presence":
        """All images have all `modalities`."""
        return cls({m: Rows(batch, True) for m in modalities})

    @classmethod
    def given(
        cls, modalities: Sequence[str], images: Mapping[str, Tensor], present: Mapping[str, Tensor]
    ) -> "Presence":
        """Reads what a detector of `modalities` is given: a modality that `present` doesn't name is in all images if it
        is in `images`, and in none if it isn't.

        Raises:
            UserError: an unknown modality, a mask of another shape or type, an image without any sensor.
        """
        batch = next(iter(images.values())).shape[0]  # len would fix it in a traced graph
        if not present:
            return cls({m: Rows(batch, m in images) for m in modalities})
        check_masks(present, modalities, batch)
        rows = {
            m: Rows.of(present[m]) if m in images and m in present else Rows(batch, m in images) for m in modalities
        }
        alone = ~torch.stack([own.host for own in rows.values()]).any(0)
        if bool(alone.any()):
            raise UserError(
                f"present: image {int(alone.nonzero()[0, 0])} of the batch has no sensor at all; leave it out"
            )
        return cls(rows)

    @property
    def batch(self) -> int:
        """The number of images."""
        return next(iter(self.rows.values())).batch

    @property
    def there(self) -> tuple[str, ...]:
        """The modalities that some image has, here or elsewhere."""
        return tuple(m for m, rows in self.rows.items() if not rows.nothing)

    @property
    def plain(self) -> bool:
        """Whether all images have the same sensors for certain, so that no mask is needed."""
        return all(rows.everything or rows.nothing for rows in self.rows.values())

    def any(self, modalities: frozenset[str]) -> Rows:
        """Returns the images that have at least one of `modalities`."""
        if modalities not in self._any:
            first, *others = (self.rows[m] for m in self.rows if m in modalities)
            for rows in others:
                first = first | rows
            self._any[modalities] = first
        return self._any[modalities]

    def within(self, modalities: frozenset[str], others: frozenset[str]) -> Rows:
        """Returns which of the images that have one of `others` have one of `modalities`."""
        key = modalities, others
        if key not in self._within:
            self._within[key] = self.any(modalities).within(self.any(others))
        return self._within[key]

    def elsewhere(self, there: Collection[str]) -> "Presence":
        """Returns it where the images of some process have the modalities `there`, so that each process runs these.

        For their batch norms, and the backward passes of these, wait for one another.
        """
        rows = {m: (own, own.host if own.nothing else own.mask) for m, own in self.rows.items()}
        return Presence(
            {
                m: Rows(own.batch, mask, own.trusted, own.belief, elsewhere=True) if m in there else own
                for m, (own, mask) in rows.items()
            }
        )

    def without(self, off: Mapping[str, Tensor]) -> "Presence":
        """Returns it less the sensors that `off` names, (B,) bool by modality, which the host reads."""
        return Presence(self.rows | {m: self.rows[m] & Rows.of(~mask) for m, mask in off.items()})

    def doubted(self, off: Mapping[str, Tensor]) -> "Presence":
        """Returns it less the sensors that `off` names, (B,) bool by modality on the device, which nobody waits for.

        They run, and count for nothing. Batch norms in training mode count them: it is for a detector in use.
        """
        return Presence(self.rows | {m: self.rows[m] & Rows(mask.shape[0], True, ~mask) for m, mask in off.items()})

    def weighed(self, beliefs: Mapping[str, Tensor]) -> "Presence":
        """Returns it with what the sensors count for, (B,) from 0 to 1 by modality; the best of each image has 1."""
        return Presence({m: Rows(own.batch, own.mask, own.trusted, beliefs[m]) for m, own in self.rows.items()})
