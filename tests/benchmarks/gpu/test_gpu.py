"""The whole command on the CPU, with as little as there can be."""

import json
from pathlib import Path

import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu.parts import PARTS


def test_time_that_is_left_is_shared():
    names = list(PARTS)
    shares = {name: part.share for name, part in PARTS.items()}
    assert command.share_time(names, 600.0) == pytest.approx(600 * shares["check"] / sum(shares.values()))
    assert command.share_time(["kernels"], 77.0) == 77.0
    assert command.share_time(names, -5.0) == 0.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--minutes", "0"), "--minutes: expected a number > 0"),
        (("--minutes", "nan"), "--minutes: expected a number > 0"),
        (("--device", "cpu", "--record", "docs/gpu.md"), "--record: expected a run on a GPU, got --device cpu"),
        (("--record", "README.md"), "--record: expected a page with <!-- proofs -->"),
        (("--json", "/nowhere/gpu.json"), "--json: expected a file in a folder that exists"),
        (("--only", "check", "nothing"), "invalid choice: 'nothing'"),
        (("--prepare", "--skip-exports"), "not allowed with"),
    ],
)
def test_options_that_mean_nothing(arguments, words, capsys):
    with pytest.raises(SystemExit):
        command.read_arguments(arguments)
    assert words in capsys.readouterr().err


def test_parts_come_in_the_order_of_their_worth():
    assert command.read_arguments(("--only", "memory", "check")).only == ["check", "memory"]


def test_a_machine_without_a_gpu(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(
        command, "look_around", lambda: {"unusable": {"cuda": "this machine has no NVIDIA driver"}, "faults": []}
    )
    assert command.main(["--bundles", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.err == "device: expected a usable cuda device, got none: this machine has no NVIDIA driver\n"
    assert said.out == ""


def test_what_is_looked_at_is_exported_first(monkeypatch, plan):
    wanted = []
    monkeypatch.setattr(command, "prepare", lambda bundles: wanted.append(list(bundles)) or list(bundles))
    for only, number in (("kernels", 0), ("check", 1), ("servers", 1)):
        code = command.main(["--prepare", "--only", only], lambda *_: plan)
        assert (len(wanted[-1]), code) == (number, 1 if number else 0)


@pytest.mark.slow
def test_all_of_it(plan, bundles, checkpoint, tmp_path, capfd):
    folder = tmp_path / "bundles"
    (folder / "float32").mkdir(parents=True)
    (folder / "float32" / "tiny").symlink_to(bundles)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "tiny").symlink_to(checkpoint)
    report = tmp_path / "gpu.json"
    arguments = ["--device", "cpu", "--bundles", str(folder), "--skip-exports", "--json", str(report)]
    code = command.main(arguments, lambda device, place: type(plan)(**vars(plan) | {"folder": place}))
    said = capfd.readouterr()
    assert code == 0, said.out + said.err
    document = json.loads(report.read_text())
    assert list(document["parts"]) == list(PARTS)
    verdicts = {name: part["verdict"] for name, part in document["parts"].items()}
    # Golden is golden anywhere; all the rest is a GPU's to show.
    assert verdicts == {name: "passed" if name == "check" else "not judged" for name in PARTS}
    servers = [finding["cells"] for finding in document["parts"]["servers"]["findings"]]
    assert [cells["server"] for cells in servers] == ["attnserve", "PyTorch, eager"]
    assert said.out.count("**On the CPU: a trial of these programs") == len(PARTS)
    assert not [path for path in Path("/proc").glob("[0-9]*") if is_of(path, folder)], "a server was left behind"


def is_of(process: Path, folder: Path) -> bool:
    """Whether a process was told of a folder."""
    try:
        return str(folder).encode() in (process / "cmdline").read_bytes()
    except OSError:  # It has ended meanwhile.
        return False
