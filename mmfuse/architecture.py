"""What a detector is made of: the options that `create_detector`, recipes and checkpoints share."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from mmfuse import scaling
from mmfuse.errors import UserError, require, unknown_name

Placement = Literal["channels", "first", "every", "last", "boxes"]
"""Where modalities meet. Early fusion: as stacked input "channels" of one backbone. Mid fusion: in the "first" cell of
the pyramid, in "every" cell, or after a pyramid for each ("last"). Late fusion: as "boxes" of a detector for each."""

Flavour = Literal["tf", "symmetric"]


@dataclass(frozen=True)
class Architecture:
    """What a detector is made of, whatever its sensors and classes.

    - `size`: "d0" to "d7", "d7x", or "d<number>" by the compound rule, such as "d-2".
    - `pyramid`: a name of `graphs.PYRAMIDS`.
    - `placement`: where the modalities meet, see `Placement`; without effect for one modality.
    - `fusion`: a name of `fusion.FUSIONS`; by default the size's own where a pyramid has one stream (one modality, or
      placement "channels" or "boxes"), "fast" where it has several.
    - `flavour`: "tf" pads and biases like the published weights, "symmetric" like plain PyTorch.
    - `backbone`: a timm model, or one for each modality; by default the size's own.
    - `share_backbone`: one backbone for all modalities, which then need the same number of channels.
    - `align`: the modality onto whose features those of all others are aligned, see `alignment.Alignment`.
    - `width`: channels of pyramid and heads, in place of the size's.
    - `pyramid_depth`: cells of the pyramid, in place of the size's.
    - `head_depth`: convolutions of the heads before the last, in place of the size's.

    The pyramid's and the fusion's names are looked up when a detector is built.
    """

    size: str = "d0"
    pyramid: str = "bifpn"
    placement: Placement = "first"
    fusion: str | None = None
    flavour: Flavour = "tf"
    backbone: str | Mapping[str, str] | None = None
    share_backbone: bool = False
    align: str | None = None
    width: int | None = None
    pyramid_depth: int | None = None
    head_depth: int | None = None

    def __post_init__(self) -> None:
        for what, name, known in (
            ("flavour", self.flavour, get_args(Flavour)),
            ("placement", self.placement, get_args(Placement)),
        ):
            if name not in known:
                raise UserError(f"{what}: {unknown_name(name, known, what)}")
        for what in ("width", "pyramid_depth", "head_depth"):
            number = getattr(self, what)
            require(number is None or number >= 1, what, number, "use at least 1")
        scaling.size(self.size)

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> "Architecture":
        """Reads it from what a checkpoint's header says of its detector; options newer than the file have defaults."""
        known = {f.name for f in fields(cls)}
        return cls(**{key: value for key, value in spec.items() if key in known})

    @property
    def scale(self) -> scaling.Size:
        """The size, with what is set in place of its own."""
        size = scaling.size(self.size)
        return replace(
            size,
            width=self.width or size.width,
            pyramid_depth=self.pyramid_depth or size.pyramid_depth,
            head_depth=self.head_depth or size.head_depth,
        )

    @property
    def apart(self) -> bool:
        """Whether modalities meet outside the pyramid, as channels or as boxes."""
        return self.placement in ("channels", "boxes")

    def backbone_of(self, modality: str) -> str | None:
        """Returns the timm model that is chosen for a modality, None for the size's own."""
        return self.backbone.get(modality) if isinstance(self.backbone, Mapping) else self.backbone

    def check(self, modalities: Collection[str], where: str = "") -> None:
        """Raises a UserError for an option that these modalities can't have; `where` comes before the option's name."""
        backbones = {self.backbone_of(m) for m in modalities}
        alone = len(modalities) == 1
        for what, names in (
            ("backbone", self.backbone if isinstance(self.backbone, Mapping) else ()),
            ("align", [self.align] if self.align is not None and not alone else ()),
        ):
            for name in names:
                if name not in modalities:
                    raise UserError(f"{where}{what}: {unknown_name(name, modalities, 'modality of this detector')}")
        what = "one modality" if alone else f"placement {self.placement}"
        fits = self.align is None or not (alone or self.apart)
        require(fits, f"{where}align", self.align, f"leave it out for {what}")
        if self.share_backbone and self.apart and not alone:
            raise UserError(f"{where}share_backbone: placement {self.placement} has no backbones to share; use first")
        if self.placement == "channels" and len(backbones) > 1:
            raise UserError(
                f"{where}backbone: {self.backbone} differ, but placement channels has one for all; name one"
            )

    def settled(self, modalities: Collection[str]) -> "Architecture":
        """Returns it with what is left open decided for these modalities.

        Raises:
            UserError: an option that they can't have.
        """
        self.check(modalities)
        alone = len(modalities) == 1
        fusion = self.fusion or (self.scale.fusion if alone or self.apart else "fast")
        return replace(self, placement="first" if alone else self.placement, fusion=fusion)

    def member(self, modality: str) -> "Architecture":
        """Returns that of one modality's detector where placement is "boxes"."""
        return replace(self, placement="first", backbone=self.backbone_of(modality))
