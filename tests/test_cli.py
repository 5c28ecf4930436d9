import json
import shutil
import sys
import zipfile

import pytest
import yaml

from mmfuse import __main__, cli
from mmfuse.cli import main
from mmfuse.run import Run
from mmfuse.verbs import demo as demo_module


@pytest.fixture
def run(recipe_file, tmp_path, capsys):
    folder = tmp_path / "run"
    words = ["train", str(recipe_file("rgb", "thermal")), "data.hflip=0", "--out", str(folder), "train.epochs=1"]
    assert main(words) == 0
    assert "best val AP" in capsys.readouterr().out
    recipe = Run(folder).recipe
    assert (recipe.train.epochs, recipe.data.hflip) == (1, 0.0)  # whether before or behind a flag
    return folder


def test_verbs_print_what_they_found(run, paired_set, tmp_path, capsys):
    assert main(["evaluate", str(run), "--without", "rgb", "--json"]) == 0
    assert 0 <= json.loads(capsys.readouterr().out)["ap"] <= 1
    assert main(["evaluate", str(run)]) == 0
    assert "| day" in capsys.readouterr().out
    assert main(["shares", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["whole"]["shares"]["rgb"][0] == pytest.approx(0.5, abs=0.1)
    image = str(next((paired_set.parent / "thermal").rglob("*.png")))
    assert main(["predict", str(run), "--thermal", image, "--out", str(tmp_path / "p.png"), "--threshold", "0"]) == 0
    assert "thermal" not in capsys.readouterr().out.splitlines()[-1]
    assert (tmp_path / "p.png").exists()
    assert main(["check", str(paired_set)]) == 0
    assert "errors: 0" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_is_scored_after_its_data_moved(paired_set, recipe_file, tmp_path, capsys):
    old, new, apart = (tmp_path / name for name in ("set", "moved", "apart"))
    shutil.copytree(paired_set.parent, old)
    runs = [str(tmp_path / name) for name in ("both", "single")]
    for run, modalities in zip(runs, (("rgb", "thermal"), ("rgb",)), strict=True):
        words = [f"card={old / paired_set.name}", "train.epochs=1", "--out", run]
        assert main(["train", str(recipe_file(*modalities)), *words]) == 0
    assert main(["evaluate", runs[0]]) == 0
    before = json.loads((tmp_path / "both" / "test.json").read_text())
    old.rename(new)
    assert main(["evaluate", runs[0]]) == 2
    assert "the recipe's card does not exist; check the path, or give --card" in capsys.readouterr().err
    card = ["--card", str(new / paired_set.name)]
    assert main(["evaluate", runs[0], *card]) == 0
    after = json.loads((tmp_path / "both" / "test.json").read_text())
    assert [after[key] for key in ("digest", "scores")] == [before[key] for key in ("digest", "scores")]
    apart.mkdir()
    (new / paired_set.name).rename(apart / "card.yaml")
    moved = ["--card", str(apart / "card.yaml"), "--root", str(new)]
    assert main(["evaluate", runs[0], *moved[:2]]) == 2
    for words in (
        ["evaluate", runs[0]],
        ["shares", runs[0]],
        ["robustness", runs[0], "--corruption", "fog", "--severity", "1", "--limit", "2"],
        ["compare", *runs, "--out", str(tmp_path / "report")],
    ):
        capsys.readouterr()
        code = main([*words, *moved])
        assert (code, capsys.readouterr().err.partition("mmfuse: ")[2]) == (0, ""), words
    assert main(["calibrate", runs[0], *moved]) == 2
    assert (
        "card.yaml: 8 training images have all of rgb, thermal; give 16" in capsys.readouterr().err
    )  # so it read them


def test_a_card_s_own_metrics_are_scored_too(paired_set, tmp_path, capsys):
    card = yaml.safe_load(paired_set.read_text()) | {"root": str(paired_set.parent)}
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(card | {"metrics": ["miss_rate", "voc_11_point"]}))
    recipe = tmp_path / "rgb.yaml"
    recipe.write_text(
        "card: card.yaml\nmodalities: [rgb]\nmodel: {size: d-4}\ndata: {input_size: [96, 128], workers: 0}\n"
        "train: {epochs: 1, batch_size: 4}\n"
    )
    assert main(["train", str(recipe), "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--soft-nms"]) == 0
    text = capsys.readouterr().out
    told = (
        "At IoU 0.5. Thresholds are those of the highest F1 on val.",
        "test-soft-curves.png",
        "test-soft-confusion.png",
    )
    for words in (*told, "miss rate reasonable, %", "miss rate all, %", "voc 11 point", "| night"):
        assert words in text
    assert main(["evaluate", str(tmp_path / "run"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    stored = json.loads((tmp_path / "run" / "test.json").read_text())
    for name in ("miss_rate_reasonable", "miss_rate_all", "voc_11_point", "curves"):
        assert printed[name] == stored[name]
    assert 0 <= printed["miss_rate_all"]["miss_rate"] <= 1
    for suffix in (".json", "-curves.png", "-confusion.png"):
        assert (tmp_path / "run" / f"test-soft{suffix}").exists()
    card["metrics"] = ["mr2"]
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(card))
    assert main(["evaluate", str(tmp_path / "run")]) == 2
    assert "'mr2' is not a known value" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["train", "nowhere.yaml"],
        ["evaluate", "nowhere"],
        ["compare", "nowhere", "nowhere"],
        ["predict", "nowhere", "--rgb", "a.png"],
        ["shares", "nowhere"],
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("mmfuse: ")
    assert printed.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_card_with_mistakes_exits_with_2(tmp_path, capsys):
    assert main(["check", str(tmp_path / "none.yaml")]) == 2


def test_what_check_counts_is_printed_as_text_and_json(paired_set, capsys):
    assert main(["check", str(paired_set)]) == 0
    assert "    depth: uint16, " in capsys.readouterr().out
    assert main(["check", str(paired_set), "--json"]) == 0
    depth = json.loads(capsys.readouterr().out)["splits"]["train"]["sensors"]["depth"]
    assert (depth["types"], depth["unit"], depth["blank"], depth["constant"]) == ({"uint16": 8}, "m", 0, 0)
    assert 0 < depth["range"][0] < depth["range"][1] < 65.536


def test_an_archive_is_unpacked_whole_or_not_at_all(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("set/1.txt", "one")
    words = ["unpack", str(tmp_path / "a.zip"), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: 1 files\n"
    assert (tmp_path / "out/set/1.txt").read_text() == "one"
    assert main(words) == 2
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as file:
        file.writestr("../2.txt", "two")
    assert main([*words[:-1], str(tmp_path / "other")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("mmfuse: ") for line in lines] == [True, True]
    assert "not an empty folder" in lines[0]
    assert "'../2.txt' leads out" in lines[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "out"]


def test_a_folder_that_cannot_be_written_is_one_line(recipe_file, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["train", str(recipe_file("rgb")), "--out", str(tmp_path / "file" / "run")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("mmfuse: ")
    assert "Traceback" not in error


def test_the_fused_recipe_of_the_demo_starts_from_the_sensors_trained_alike(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(demo_module, "generate", lambda root: root)
    monkeypatch.setattr(
        demo_module, "compare", lambda recipes, seeds, corruptions, out: seen.extend(recipes) or {"seeds": list(seeds)}
    )
    assert demo_module.demo(tmp_path / "one") == {"seeds": [0]}
    seen.clear()
    assert demo_module.demo(tmp_path, [4, 5]) == {"seeds": [4, 5]}
    recipes = [yaml.safe_load(path.read_text()) for path in seen]
    assert [r.pop("modalities") for r in recipes] == [["rgb"], ["thermal"], ["rgb", "thermal"]]
    assert [r.pop("name") for r in recipes] == ["rgb", "thermal", "rgb_thermal"]
    assert recipes[0] == recipes[1]
    assert recipes[2]["init"] == {"rgb": "rgb.yaml", "thermal": "thermal.yaml"}
    for key in ("card", "model", "data"):
        assert recipes[2][key] == recipes[0][key]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device"), "standard output: No space left on device; check where it goes"),
        (OSError(28, "No space left on device", "a.png"), "a.png: No space left on device; check the path"),
        (OSError(12, "Cannot allocate memory"), "the system refused: Cannot allocate memory; use fewer processes"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            "a process that reads images was ended by the system (Killed), most likely for want of memory; use fewer",
        ),
        (
            RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"),
            "a process that reads images ended by itself",
        ),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that …"),
            "shared memory (/dev/shm) is too small",
        ),
        (
            RuntimeError(
                "Caught RuntimeError in DataLoader worker process 0.\n…unable to write to file </torch_1_2>: …"
            ),
            "shared memory (/dev/shm) is too small",
        ),
    ],
)
def test_what_the_system_refuses_or_ends_is_one_line(error, told, monkeypatch, capsys):
    def fails(*arguments):
        raise error

    monkeypatch.setattr(cli, "_check", fails)
    assert main(["check", "card.yaml"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"mmfuse: {told}")
    assert said.count("\n") == 1


@pytest.mark.parametrize("text", ["CUDA error: …", "Caught KeyError in DataLoader worker process 0.\n…"])
def test_a_mistake_of_our_own_keeps_its_traceback(text, monkeypatch):
    def fails(*arguments):
        raise RuntimeError(text)

    monkeypatch.setattr(cli, "_check", fails)
    with pytest.raises(RuntimeError, match=text[:10]):
        main(["check", "card.yaml"])


def test_an_interrupt_while_the_command_line_is_imported_is_one_line(monkeypatch, capsys):
    class Interrupted:
        def find_spec(self, name, *arguments):
            if name == "mmfuse.cli":
                raise KeyboardInterrupt

    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "mmfuse.cli")
    assert __main__.main() == 130
    assert capsys.readouterr().err == "mmfuse: interrupted\n"
