import json
import shutil
from functools import cache

import pytest
import torch
from huggingface_hub import constants

from mmfuse import Detector, create_detector, load
from mmfuse.errors import UserError
from mmfuse.model import checkpoint
from mmfuse.model import hub as hub_module
from mmfuse.recipes import load_recipe
from mmfuse.training.start import read_start

NAMES = ["config.json", "model.safetensors"]


@cache
def tiny(seed=0, classes=("person", "car"), placement="first"):
    torch.manual_seed(seed)
    options = {"classes": classes, "placement": placement, "input_size": (64, 64)}
    return create_detector("d-4", {"rgb": 3, "thermal": 1}, **options).eval()


@pytest.fixture
def shared(tmp_path):
    """A detector and the folder that it was saved to."""
    detector = tiny()
    detector.save_pretrained(tmp_path / "shared", card="# A page\n", notes={"name": "x", "val": {"ap": 0.5}})
    return detector, tmp_path / "shared"


def same(a, b):
    own, other = a.state_dict(), b.state_dict()
    return own.keys() == other.keys() and all(torch.equal(own[key], other[key]) for key in own)


# ---- folders


def test_a_folder_comes_back_as_it_was_with_its_notes(shared):
    detector, folder = shared
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", *NAMES]
    for loaded in (Detector.from_pretrained(folder), load(folder), load(folder / "model.safetensors")):
        assert same(loaded, detector)
        assert json.dumps(loaded.spec) == json.dumps(detector.spec)
        assert loaded.classes == ("person", "car")
    assert checkpoint.read(folder / "model.safetensors")[1]["notes"]["val"] == {"ap": 0.5}
    assert json.loads((folder / "config.json").read_text())["spec"]["modalities"] == {"rgb": 3, "thermal": 1}


def test_late_fusion_is_shared_too(tmp_path):
    detector = tiny(placement="boxes")
    detector.save_pretrained(tmp_path / "x")
    assert same(load(tmp_path / "x"), detector)
    assert not (tmp_path / "x" / "README.md").exists()


def test_a_folder_with_something_in_it_stays_as_it_is(shared):
    _, folder = shared
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match="is not an empty folder; give a new one"):
        tiny(1).save_pretrained(folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folded_detector_leaves_nothing_behind(tmp_path):
    with pytest.raises(UserError, match="a folded detector can't be saved"):
        tiny().folded().save_pretrained(tmp_path / "x" / "y")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda c: c["spec"].update(size="d-3"), "describes another detector than model.safetensors"),
        (lambda c: c["spec"].update(widht=3), "'widht' is not a known key; did you mean 'width'"),
        (lambda c: c["spec"].update(width=10**6), "no detector has more than"),
        (lambda c: c.update(format="mmfuse-2"), "is of the format 'mmfuse-2', this version reads mmfuse-3"),
        (lambda c: c.update(auto_map={"AutoModel": "code.py"}), "isn't the config.json of a detector of mmfuse's"),
        (lambda c: c.pop("spec"), "isn't the config.json of a detector of mmfuse's"),
    ],
)
def test_a_configuration_is_read_strictly(shared, change, problem):
    _, folder = shared
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=problem):
        load(folder)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b" " * 2**20 + b"{}"])
def test_a_configuration_that_is_no_json_or_too_large_is_one_line(shared, content):
    _, folder = shared
    (folder / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"isn't the config.json of a detector of mmfuse's") as told:
        load(folder)
    assert "\n" not in str(told.value)


def test_a_run_s_best_comes_before_what_else_lies_in_its_folder(shared):
    _, folder = shared
    other = tiny(1)
    checkpoint.save_detector(folder / "best.safetensors", other, {})
    assert same(load(folder), other)


# ---- the Hub


def test_what_is_pushed_is_fetched_from_its_commit_alone(hub):
    first, second = tiny(0), tiny(1)
    name = first.push_to_hub("me/streets", card="# A page\n")
    assert sorted(dict(hub.repositories["me/streets"])[name.partition("@")[2]]) == ["README.md", *NAMES]
    second.push_to_hub("me/streets")
    assert [len(files) for _, files in hub.repositories["me/streets"]] == [3, 3]
    hub.asked.clear()
    assert same(load(name), first)
    commit = name.partition("@")[2]
    assert set(hub.fetched) == {(commit, file) for file in NAMES}
    assert same(load("hub:me/streets"), second)
    assert same(Detector.from_pretrained("me/streets", revision=commit), first)
    assert same(Detector.from_pretrained("me/streets"), second)


def test_both_files_are_of_one_commit_though_the_branch_moves_on_between(hub, monkeypatch):
    first = tiny(0)
    first.push_to_hub("me/x")
    real = checkpoint.fetch

    def moving(name, file):
        found = real(name, file)
        if file == "config.json":
            tiny(1, classes=("a", "b", "c")).push_to_hub("me/x")
        return found

    monkeypatch.setattr(checkpoint, "fetch", moving)
    assert same(load("hub:me/x"), first)


def test_nothing_is_unpickled_and_nothing_large_is_fetched_of_what_isn_t_ours(hub):
    hub.commit("you/bert", {"config.json": b'{"architectures": ["Bert"]}', "model.safetensors": b"x" * 1000})
    hub.commit("you/pickle", {"config.json": b"{}", "pytorch_model.bin": b"cos\nsystem\n(S'false'\ntR."})
    for name in ("bert", "pickle"):
        with pytest.raises(UserError, match=rf"^hub:you/{name}: isn't the config.json of a detector of mmfuse's"):
            load(f"hub:you/{name}")
    assert {file for _, file in hub.fetched} == {"config.json"}


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("hub:you/nothing", "there is nothing of that name on the Hub; check the name, or log in"),
        ("hub:me/streets@v9", "has no revision 'v9'"),
        ("hub:you/page", "has no config.json and model.safetensors"),
        ("hub:streets", "is not a name on the Hub; write hub:user/name"),
        ("hub:me/streets@", "is not a name on the Hub"),
        ("hub:../../etc", "is not a name on the Hub"),
        ("hub:me/a b", "is not a name on the Hub"),
    ],
)
def test_what_isn_t_there_is_one_line(hub, name, problem):
    hub.commit("me/streets", {"config.json": b"{}"})
    hub.commit("you/page", {"README.md": b"# nothing else"})
    with pytest.raises(UserError, match=problem) as told:
        load(name)
    assert str(told.value).startswith(name)
    assert "\n" not in str(told.value)


def test_a_name_that_is_neither_a_folder_nor_on_the_hub_is_one_line(hub, shared):
    with pytest.raises(UserError, match="hub:nothing/here: there is nothing of that name on the Hub"):
        Detector.from_pretrained("nothing/here")
    with pytest.raises(UserError, match=r"revision: .*shared is a folder, which has none; leave out 'v1'"):
        Detector.from_pretrained(shared[1], revision="v1")


def test_without_a_network_it_fails_at_once_or_takes_what_was_fetched(hub, monkeypatch):
    detector = tiny()
    name = detector.push_to_hub("me/x")
    load(name)
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    assert same(load(name), detector)
    with pytest.raises(UserError, match="hub:me/y: the Hub isn't reached, and it wasn't fetched before; connect"):
        load("hub:me/y")
    with pytest.raises(UserError, match="hub:me/y: the Hub isn't reached; connect, or write a folder"):
        detector.push_to_hub("me/y")
    assert waited == []
    assert constants.HF_HUB_OFFLINE is False


def test_who_may_not_write_is_told_and_a_revision_can_t_be_pushed_to(hub, shared, monkeypatch):
    detector, folder = shared
    with pytest.raises(UserError, match="hub:me/x@v1: a revision can't be chosen, pushing makes one"):
        hub_module.push(folder, hub_module.HubName("me/x", "v1"))
    monkeypatch.setenv("HF_TOKEN", "stranger")
    with pytest.raises(UserError, match=r"hub:me/x: .*hf auth login"):
        detector.push_to_hub("me/x")
    assert hub.repositories == {}


def test_a_folded_detector_makes_no_repository(hub):
    with pytest.raises(UserError, match="a folded detector can't be saved"):
        tiny().folded().push_to_hub("me/x")
    assert hub.asked == []


# ---- where a run or checkpoint is expected


def test_trainings_and_detectors_start_from_the_hub(hub, paired_set, tmp_path):
    torch.manual_seed(0)
    single = create_detector("d-4", {"rgb": 3}, classes=["person", "car", "bicycle"], input_size=(64, 64))
    name = single.push_to_hub("me/x", notes={"val": {"ap": 0.5}})
    recipe = tmp_path / "x.yaml"
    for init in (name, {"rgb": name}):
        recipe.write_text(json.dumps({"card": str(paired_set), "modalities": ["rgb"], "init": init}))
        start = read_start(load_recipe(recipe).init)
        assert same(start.whole or start.singles["rgb"], single)
    model = {"size": "d-4", "weights": "hub:me/x@v1.0"}
    recipe.write_text(json.dumps({"card": str(paired_set), "modalities": ["rgb"], "model": model}))
    assert load_recipe(recipe).model.weights == "hub:me/x@v1.0"
    assert checkpoint.is_checkpoint(name)


def test_a_cache_that_was_spoilt_is_told(hub, tmp_path):
    name = tiny().push_to_hub("me/x")
    load(name)
    for blob in (tmp_path / "cache").rglob("blobs/*"):
        blob.write_bytes(blob.read_bytes()[:100])
    with pytest.raises(UserError, match=r"hub:me/x@.*isn't the config.json of a detector"):
        load(name)
    shutil.rmtree(tmp_path / "cache")
    load(name)
