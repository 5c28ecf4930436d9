"""The Hugging Face Hub: detectors that are fetched from it, of one revision alone, and pushed to it."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self, cast
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from torch import nn

from mmfuse.errors import UserError
from mmfuse.files import HUB

if TYPE_CHECKING:
    from mmfuse.model.detector import Detector

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
"""What a detector is there: a checkpoint, what its header says of it for all who don't read checkpoints, and a page."""


def is_hub(name: str | Path) -> bool:
    """Whether it names something on the Hub."""
    return str(name).startswith(HUB)


@dataclass(frozen=True)
class HubName:
    """A repository on the Hub and, where it isn't the newest of its main branch, a revision: branch, tag or commit."""

    repo: str
    revision: str | None = None

    @classmethod
    def read(cls, text: str | Path) -> Self:
        """Reads "hub:user/name" or "hub:user/name@revision".

        Raises:
            UserError: it is something else.
        """
        found = re.fullmatch(rf"{HUB}([\w.-]+/[\w.-]+)(?:@([^\s@]+))?", str(text), re.ASCII)
        if not found or ".." in str(text) or "--" in found[1]:
            raise UserError(f"{text}: is not a name on the Hub; write hub:user/name or hub:user/name@revision")
        return cls(found[1], found[2])

    def __str__(self) -> str:
        return HUB + self.repo + (f"@{self.revision}" if self.revision else "")


def fetch(name: HubName, file: str) -> tuple[Path, HubName]:
    """Fetches a file, if it wasn't before, and returns where it lies and the name of the commit that it is of.

    Where the Hub isn't reached it is what was fetched before, at once.

    Raises:
        UserError: there is no such file, revision or repository that may be read, or the Hub isn't reached.
    """
    from huggingface_hub import hf_hub_download

    with reaching(), _one_line(name):
        path = Path(hf_hub_download(name.repo, file, revision=name.revision))
    return path, replace(name, revision=path.parent.name)


def push(folder: Path, name: HubName, *, private: bool = False) -> HubName:
    """Pushes the files of a folder as one commit, whose name is returned; the repository is made where there is none.

    Raises:
        UserError: the name has a revision, the Hub isn't reached, or doesn't let the user write there.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    if name.revision:
        raise UserError(f"{name}: a revision can't be chosen, pushing makes one; leave out @{name.revision}")
    files = [CommitOperationAdd(path.name, path) for path in sorted(folder.iterdir())]
    with reaching() as reached, _one_line(name):
        if not reached:
            raise UserError(f"{name}: the Hub isn't reached; connect, or write a folder")
        api = HfApi()
        api.create_repo(name.repo, private=private, exist_ok=True)
        commit = api.create_commit(name.repo, files, commit_message="Push a detector of mmfuse")
    return replace(name, revision=commit.oid)


class OnHub:
    """What a detector does with the Hub and with folders like those there, by the names that are usual for it.

    These are not the methods of huggingface_hub's mixin, which reads any configuration, falls back on a pickle, takes
    its two files of two commits where a branch moves on between, and leaves the page of an older detector beside a new
    one.
    """

    def save_pretrained(self, folder: str | Path, *, card: str = "", notes: Mapping[str, Any] | None = None) -> None:
        """Writes a new folder as it lies on the Hub: weights, configuration and, if given, the page `card`.

        `mmfuse.publish` writes the page of a run. `notes` travel in the header of the weights.

        Raises:
            UserError: the folder isn't new or empty, or the detector is folded.
        """
        from mmfuse.model.checkpoint import save_folder

        save_folder(Path(folder), cast("Detector", self), notes or {}, card)

    def push_to_hub(
        self, repo_id: str, *, card: str = "", notes: Mapping[str, Any] | None = None, private: bool = False
    ) -> str:
        """Pushes what `save_pretrained` writes to "user/name", and returns its name with the commit, for `load`.

        Raises:
            UserError: the detector is folded, the Hub isn't reached, or doesn't let the user write there.
        """
        name = HubName.read(HUB + repo_id)
        with TemporaryDirectory() as place:
            folder = Path(place) / "detector"
            self.save_pretrained(folder, card=card, notes=notes)
            return str(push(folder, name, private=private))

    @staticmethod
    def from_pretrained(
        name: str | Path,
        *,
        revision: str | None = None,
        device: str = "cpu",
        backbones: Mapping[str, nn.Module] | None = None,
    ) -> "Detector":
        """Returns the detector of a folder, or of "user/name" on the Hub; see `mmfuse.load`, which takes both.

        Raises:
            UserError: it isn't there, isn't a detector of mmfuse's, or the Hub isn't reached.
        """
        from mmfuse.model.checkpoint import load

        place = Path(name)
        if not place.is_dir():
            place = Path(f"{HUB}{name}" + (f"@{revision}" if revision else ""))
        elif revision is not None:
            raise UserError(f"revision: {name} is a folder, which has none; leave out {revision!r}")
        return load(place, device, backbones=backbones)


@contextmanager
def reaching() -> Iterator[bool]:
    """Tells whether the Hub is reached; in the block, where it isn't, huggingface_hub takes what it has, at once."""
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = offline or not _reached(constants.ENDPOINT)
    try:
        yield not constants.HF_HUB_OFFLINE
    finally:
        constants.HF_HUB_OFFLINE = offline


def _reached(address: str) -> bool:
    """Whether a server answers within three seconds, through the proxy that is set, if any."""
    try:
        with urlopen(Request(address, method="HEAD"), timeout=3):  # noqa: S310 - the hub's own address
            return True
    except HTTPError:  # which a server sent
        return True
    except OSError:
        return False


@contextmanager
def _one_line(name: HubName) -> Iterator[None]:
    """Says what the Hub refuses in one line."""
    from huggingface_hub import errors

    try:
        yield
    except UserError:
        raise
    except errors.GatedRepoError:
        raise UserError(
            f"{name}: its owner wants to be asked first; ask on its page, then log in (hf auth login)"
        ) from None
    except errors.RepositoryNotFoundError:
        fix = "check the name, or log in (hf auth login) if it is private"
        raise UserError(f"{name}: there is nothing of that name on the Hub; {fix}") from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{name}: has no revision {name.revision!r}; check its branches, tags and commits") from None
    except errors.LocalEntryNotFoundError:
        raise UserError(
            f"{name}: the Hub isn't reached, and it wasn't fetched before; connect, or give a folder"
        ) from None
    except errors.RemoteEntryNotFoundError:
        raise UserError(f"{name}: has no {CONFIG} and {WEIGHTS}; give a detector of mmfuse's") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            fix = "log in with a token that may write (hf auth login)"
            raise UserError(f"{name}: the Hub doesn't let you do this ({status}); {fix}") from None
        raise UserError(f"{name}: the Hub answers {status}; try again later") from None
    except (OSError, ValueError, RuntimeError) as error:
        detail = " ".join(str(error).split())[:120]
        raise UserError(f"{name}: can't be had from the Hub ({detail}); try again, or give a folder") from None
