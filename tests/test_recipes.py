from dataclasses import dataclass
from pathlib import Path

import pytest

from mmfuse.errors import UserError
from mmfuse.recipes import DataRecipe, Recipe, load_recipe, unknown_name
from mmfuse.strict_yaml import build, override, parse_yaml, plain, read_yaml, save_yaml

GOOD = {"name": "fused", "card": "card.yaml", "modalities": ["rgb", "thermal"]}


def fails(call, *parts: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def recipe(**changes) -> Recipe:
    return build(Recipe, GOOD | changes, "r.yaml")


def test_only_true_and_false_are_switches():
    values = parse_yaml("a: off\nb: no\nc: true\nd: False\ne: on", "x")
    assert values == {"a": "off", "b": "no", "c": True, "d": False, "e": "on"}
    assert recipe(doubt="off").doubt == "off"


def test_the_loss_of_each_sensor_alone_is_the_default_where_sensors_meet():
    assert recipe().train.branch_weight == 1
    assert recipe(train={"branch_losses": 0}).train.branch_weight == 0
    for placement in ("channels", "boxes"):
        assert recipe(model={"placement": placement}).train.branch_losses is None


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"train": {"faults": 1.5}}, ["train.faults: 1.5", "use a share from 0 to 1"]),
        ({"doubt": "dropp"}, ["doubt: 'dropp'", "did you mean 'drop'"]),
        ({"modalitys": ["rgb"]}, ["r.yaml", "'modalitys' is not a known key", "did you mean 'modalities'?"]),
        ({"train": {"epoch": 3}}, ["r.yaml: train: 'epoch'", "did you mean 'epochs'?"]),
        ({"train": {"zzzzzz": 3}}, ["'zzzzzz'", "use one of epochs, batch_size"]),
        ({3: 4}, ["3 is not a known key"]),
        ({"train": {"epochs": True}}, ["train.epochs: True is not a whole number", "write one"]),
        ({"train": {"epochs": 2.0}}, ["epochs: 2.0 is not a whole number"]),
        ({"train": {"epochs": None}}, ["epochs: None is not a whole number"]),
        ({"train": {"lr": "fast"}}, ["lr: 'fast' is not a number", "write one"]),
        ({"train": {"lr": True}}, ["lr: True is not a number"]),
        ({"train": {"lr": 10**400}}, ["lr: 1000", "is not a finite number"]),
        ({"name": 5}, ["name: 5 is not text", "put it in quotes"]),
        ({"model": {"pretrained": "yes"}}, ["pretrained: 'yes'", "write true, false or a file"]),
        ({"model": {"pretrained": 1}}, ["pretrained: 1", "write true or false"]),
        ({"modalities": "rgb"}, ["modalities: 'rgb' is not a list", "write one"]),
        ({"modalities": [1]}, ["modalities: 1 is not text"]),
        ({"train": 5}, ["train: 5 is not a mapping", "write 'key: value' lines"]),
        ({"train": {"optimizer": "adam"}}, ["'adam' is not a known value", "did you mean 'adamw'?"]),
        ({"model": {"flavour": ["tf"]}}, ["['tf'] is not a known value"]),
        ({"data": {"on_bad_sample": "skipp"}}, ["data.on_bad_sample: 'skipp' is not", "did you mean 'skip'?"]),
        ({"data": {"cache": True}}, ["data.cache: True is not text"]),
        ({"data": {"input_size": [64]}}, ["input_size: [64] has 1 entries; give 2"]),
    ],
)
def test_a_wrong_value_is_one_line_with_place_and_fix(changes, parts):
    fails(lambda: build(Recipe, GOOD | changes, "r.yaml"), *parts)


@pytest.mark.parametrize("missing", GOOD)
def test_a_missing_key_is_named(missing):
    values = {k: v for k, v in GOOD.items() if k != missing}
    fails(lambda: build(Recipe, values, "r.yaml"), "r.yaml", f"the key '{missing}' is missing", "add it")


@pytest.mark.parametrize("values", [None, [], "text", 3])
def test_build_refuses_what_is_no_mapping(values):
    fails(lambda: build(Recipe, values, "r.yaml"), "r.yaml", "is not a mapping")


def test_build_names_a_value_that_should_be_a_mapping():
    @dataclass
    class Holder:
        numbers: dict[str, int]

    assert build(Holder, {"numbers": {"a": 1}}, "h").numbers == {"a": 1}
    fails(lambda: build(Holder, {"numbers": [1]}, "h"), "numbers: [1] is not a mapping")
    fails(lambda: build(Holder, {"numbers": {"a": "x"}}, "h"), "numbers.a: 'x' is not a whole number")


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("train", "epochs", 0),
        ("train", "batch_size", -1),
        ("train", "evaluate_every", 0),
        ("train", "lr", 0.0),
        ("train", "clip_norm", -1.0),
        ("train", "ema_decay", 1.0),
        ("train", "weight_decay", -0.1),
        ("train", "warmup_epochs", -1.0),
        ("train", "seed", -1),
        ("train", "modality_dropout", 1.1),
        ("train", "branch_losses", -0.1),
        ("train", "distillation", -1.0),
        ("data", "hflip", 1.5),
        ("data", "color_jitter", 1.0),
        ("data", "workers", -1),
        ("data", "input_size", [128, 0]),
        ("data", "scale_jitter", [1.5, 0.5]),
        ("data", "scale_jitter", [0.0, 1.0]),
        ("data", "cache", ""),
        ("data", "shift", {"rgb": -1.0}),
        ("data", "rotation", {"rgb": 181.0}),
    ],
)
def test_a_value_out_of_range_is_refused(section, key, value):
    inner = "".join(f".{name}" for name in value) if isinstance(value, dict) else ""
    fails(lambda: recipe(**{section: {key: value}}), "r.yaml", f"{section}.{key}{inner}: ", "is not allowed; use")


@pytest.mark.parametrize("name", ["", "..", "a/b", "two words", "-rf", "a\nb"])
def test_a_name_can_be_a_folder(name):
    fails(lambda: recipe(name=name), f"name: {name!r}", "use letters")


@pytest.mark.parametrize("modalities", [[], ["rgb", "rgb"]])
def test_modalities_are_some_and_different(modalities):
    fails(lambda: recipe(modalities=modalities), f"modalities: {modalities}", "name ")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a: 1\na: 2\n", ["r.yaml:2", "'a' stands twice", "remove one"]),
        ("train:\n  lr: 1\n  lr: 2\n", ["r.yaml:3", "'lr' stands twice"]),
        ("a: &x 1\nb: *x\n", ["r.yaml:2", "'*x' is not allowed", "write it out"]),
        ("a: !!python/object:os.system {}\n", ["r.yaml:1", "python/object:os.system' is not allowed", "plain value"]),
        ("a: !!bool x\n", ["r.yaml:1", "bool' is not allowed"]),
        ("a: !own 3\n", ["r.yaml:1", "'!own' is not allowed"]),
        ("[a, b]: 1\n", ["r.yaml:1", "a key is a list or a mapping", "use text"]),
        ("{{a: 1}: 2}\n", ["r.yaml:1", "a key is a list or a mapping"]),
        ("a: [1,\n", ["r.yaml:2", "expected"]),
        ("a: 1\n---\nb: 2\n", ["r.yaml:2", "another document"]),
        ("a: 2024-13-45\n", ["r.yaml", "month"]),
        ("a: \x00\n", ["r.yaml", "special characters are not allowed"]),
        ("[" * 5000, ["r.yaml"]),
    ],
)
def test_yaml_that_surprises_is_refused(text, parts):
    fails(lambda: parse_yaml(text, "r.yaml"), *parts)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("-2E3", -2000.0), (".5e1", 5.0), ("1.5e+2", 150.0), ("3", 3), ("1e", "1e"), ("e5", "e5")],
)
def test_numbers_are_read_as_people_write_them(text, value):
    read = parse_yaml(text, "")
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("text", [".nan", ".inf", "-.inf", "1e999"])
def test_a_number_is_finite(text):
    fails(lambda: recipe(train={"lr": parse_yaml(text, "")}), "train.lr: ", "is not a finite number")


def test_a_whole_number_is_a_number():
    lr = recipe(train={"lr": 1}).train.lr
    assert (lr, type(lr)) == (1.0, float)


def test_unknown_name_falls_back_to_all_names():
    assert unknown_name("bifpm", ["fpn", "bifpn"], "pyramid") == "'bifpm' is not a known pyramid; did you mean 'bifpn'?"
    assert unknown_name("x", ["fpn", "bifpn"], "pyramid") == "'x' is not a known pyramid; use one of fpn, bifpn"


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"\x89PNG\r\n\xff\xfe", ["is not a text file", "give a YAML file"]),
        (b"- a\n- b\n", ["holds no mapping", "'key: value'"]),
        (b"", ["holds no mapping"]),
        (None, ["No such file", "check the path"]),
    ],
)
def test_a_file_that_holds_no_mapping_is_named(tmp_path: Path, content, parts):
    path = tmp_path / "r.yaml"
    if content is not None:
        path.write_bytes(content)
    fails(lambda: read_yaml(path), str(path), *parts)


def test_a_folder_is_not_a_recipe(tmp_path: Path):
    fails(lambda: read_yaml(tmp_path), str(tmp_path), "check the path")


def test_override_sets_nested_values_and_leaves_its_argument():
    values = {"train": {"epochs": 1}, "name": "a"}
    changed = override(
        values, ["train.epochs=20", "model.size=d-2", "train.lr=1e-4", "modalities=[rgb, thermal]", "x="]
    )
    assert changed == {
        "train": {"epochs": 20, "lr": 1e-4},
        "name": "a",
        "model": {"size": "d-2"},
        "modalities": ["rgb", "thermal"],
        "x": None,
    }
    assert values == {"train": {"epochs": 1}, "name": "a"}


@pytest.mark.parametrize(
    ("assignment", "parts"),
    [
        ("train.epochs", ["'train.epochs' is not an assignment", "write key=value"]),
        ("=3", ["'=3' is not an assignment"]),
        ("name.first=3", ["'name.first=3'", "'name' holds a value"]),
        ("train.lr=[1", ["train.lr=[1"]),
    ],
)
def test_override_explains_its_syntax(assignment, parts):
    fails(lambda: override(GOOD, [assignment]), *parts)


def test_a_relative_card_is_looked_up_from_the_recipe(tmp_path: Path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/fused.yaml").write_text("card: ../datasets/set.yaml\nmodalities: [rgb]\n")
    monkeypatch.chdir(tmp_path)
    loaded = load_recipe("configs/fused.yaml", ["train.epochs=3"])
    assert loaded.name == "fused"
    assert loaded.card == str(tmp_path / "datasets/set.yaml")
    assert loaded.train.epochs == 3
    assert load_recipe("configs/fused.yaml", ["card=/a/b.yaml"]).card == "/a/b.yaml"


def test_load_recipe_names_its_file(tmp_path: Path):
    path = tmp_path / "r.yaml"
    path.write_text("card: 5\nmodalities: [rgb]\n")
    fails(lambda: load_recipe(path), str(path), "card: 5 is not text")


def test_a_recipe_survives_yaml(tmp_path: Path):
    kept = recipe(
        model={"size": "d-2", "fusion": "gated", "share_backbone": True},
        data={"input_size": [256, 384], "scale_jitter": [0.8, 1.2], "workers": 0},
        train={"lr": 1e-5, "device": "cpu"},
    )
    save_yaml(tmp_path / "deep/recipe.yaml", kept.to_dict())
    assert build(Recipe, read_yaml(tmp_path / "deep/recipe.yaml"), "again") == kept
    assert kept.data == DataRecipe(input_size=(256, 384), scale_jitter=(0.8, 1.2), workers=0)


def test_plain_has_no_tuples():
    assert plain({"a": (1, [(2,)])}) == {"a": [1, [[2]]]}


def test_a_card_that_an_assignment_gives_is_looked_up_from_the_current_folder(tmp_path, monkeypatch):
    recipe = tmp_path / "recipes" / "r.yaml"
    recipe.parent.mkdir()
    recipe.write_text("card: other.yaml\nmodalities: [a]\n")
    monkeypatch.chdir(tmp_path)
    assert load_recipe(recipe, ["card=cards/mine.yaml"]).card == str((tmp_path / "cards" / "mine.yaml").resolve())
    assert load_recipe(recipe).card == str((tmp_path / "recipes" / "other.yaml").resolve())


def test_weights_are_a_name_or_a_file_that_is_looked_up_like_the_card(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipes" / "r.yaml"
    path.parent.mkdir()

    def weights(model, *assignments):
        path.write_text(f"card: c.yaml\nmodalities: [a]\nmodel: {model}\n")
        return load_recipe(path, assignments).model.weights

    assert weights("{}") is None
    assert weights("{weights: tf_efficientdet_d0}") == "tf_efficientdet_d0"
    assert weights("{weights: ../w/x.pth}") == str(tmp_path / "w" / "x.pth")
    assert weights("{weights: x.pth}", "model.weights=y.safetensors") == str(tmp_path / "y.safetensors")
    assert weights("{}", "model.weights=tf_efficientdet_d1") == "tf_efficientdet_d1"
    assert weights("{weights: /w/x.pth}", "model.size=d1") == "/w/x.pth"
    fails(lambda: weights("{weights: 5}"), "model.weights: 5 is not text")
    save_yaml(tmp_path / "elsewhere" / "config.yaml", load_recipe(path, ["model.weights=x.pth"]).to_dict())
    assert load_recipe(tmp_path / "elsewhere" / "config.yaml").model.weights == str(tmp_path / "x.pth")


@pytest.mark.parametrize("key", ["branch_losses", "distillation"])
@pytest.mark.parametrize("placement", ["channels", "boxes"])
def test_placements_without_branches_can_t_train_them(placement, key):
    changes = {"model": {"placement": placement}, "train": {key: 1.0}}
    fails(lambda: recipe(**changes), f"train.{key}: 1.0 is not allowed; use 0 for placement {placement}")
    assert recipe(**changes, modalities=["rgb"]).model.placement == placement


def test_a_start_is_looked_up_like_the_card(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipes" / "r.yaml"
    path.parent.mkdir()
    path.write_text("card: c.yaml\nmodalities: [a, b]\ninit: {a: ../runs/a, b: /runs/b.safetensors}\n")
    loaded = load_recipe(path, ["init.b=mine/b"])
    assert loaded.init == {"a": str(tmp_path / "runs" / "a"), "b": str(tmp_path / "mine" / "b")}
    assert build(Recipe, plain(loaded.to_dict()), "again") == loaded
    fails(lambda: load_recipe(path, ["init.c=x"]), "init: 'c' is not a known modality of this recipe")
    fails(lambda: load_recipe(path, ["init.a=5"]), "init.a: 5 is not text")
    assert load_recipe(path, ["init=runs/a"]).init == str(tmp_path / "runs" / "a")
    fails(lambda: load_recipe(path, ["init=[a]"]), "init: ['a'] is not text")
    fails(lambda: load_recipe(path, ["model.weights=tf_efficientdet_d0"]), "model.weights: ", "leave it or init out")


def test_a_value_may_be_of_either_kind(tmp_path):
    def read(text):
        (tmp_path / "x.yaml").write_text(f"card: c.yaml\nmodalities: [a, b]\nmodel: {text}\n")
        return load_recipe(tmp_path / "x.yaml").model

    assert read("{backbone: resnet18}").backbone == "resnet18"
    assert read("{backbone: {a: resnet18, b: lcnet_050}}").backbone == {"a": "resnet18", "b": "lcnet_050"}
    assert read("{pretrained: true}").pretrained is True
    with pytest.raises(UserError, match=r"model.pretrained: 3 is not a switch; write true or false"):
        read("{pretrained: 3}")
    with pytest.raises(UserError, match=r"model.backbone.a: 3 is not text"):
        read("{backbone: {a: 3}}")
