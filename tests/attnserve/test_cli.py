"""The command line: what each command prints and how it ends."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import attnserve
from attnserve import bundle
from attnserve.cli import COMMANDS, Command, main
from tests.fake_cuda import FakeCuda
from tests.kernels.library import build_library, build_recognisable

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "tests" / "bundles" / "v1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUNDLE, tmp_path / "bundle"))


def run_without(modules: tuple[str, ...], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process where `modules` cannot be imported."""
    code = f"""
import sys
for name in {modules!r}:
    sys.modules[name] = None
from attnserve.cli import main
sys.exit(main())
"""
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: attnserve {command}")
    assert COMMANDS[command].summary.split()[0] in text


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"attnserve {attnserve.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["frobnicate"],
        ["--frobnicate"],
        ["check"],
        ["check", "a", "b"],
        ["check", "a", "--device", "tpu"],
        ["export", "checkpoint"],
        ["variants", "--json"],
        ["train"],
        ["train", "frobnicate"],
        ["serve"],
    ],
    ids=" ".join,
)
def test_asked_for_wrongly_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "usage: attnserve" in shown.err


def test_an_option_that_does_not_exist_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--url", "http://127.0.0.1:8000", "--seconds", "4"])
    assert "unrecognized arguments: --seconds" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["export", "checkpoint", "repository/m/1"], "export"),
        (["train", "nt"], "train"),
        (["train", "nt", "--help"], "train"),
        (["variants"], "variants"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_without_torch_the_extra_is_named(arguments: list[str], command: str) -> None:
    done = run_without(("torch", "onnx", "onnxscript"), *arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    # Whichever is imported first: the extra brings both.
    needs = f"attnserve: `attnserve {command}` needs (torch|onnx): pip install 'attnserve\\[export\\]'\n"
    assert re.fullmatch(needs, done.stderr)


def test_without_onnx_export_names_the_extra() -> None:
    done = run_without(("onnx",), "export", "checkpoint", "repository/m/1")
    assert done.returncode == 1
    assert done.stderr == "attnserve: `attnserve export` needs onnx: pip install 'attnserve[export]'\n"


@pytest.mark.parametrize("missing", ["transformers", "torch"])
def test_without_transformers_the_extra_of_hugging_face_models_is_named(missing: str) -> None:
    done = run_without((missing,), "export-hf", "model", "repository/m/1")
    assert (done.returncode, done.stdout) == (1, "")
    needs = f"attnserve: `attnserve export-hf` needs {missing}: pip install 'attnserve[huggingface]'\n"
    assert done.stderr == needs


def test_without_transformers_a_checkpoint_of_hugging_face_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["BertForMaskedLM"]}')
    done = run_without(("transformers",), "export", str(tmp_path), str(tmp_path / "m" / "1"))
    assert done.returncode == 1
    assert "a Hugging Face model: to export it, pip install 'attnserve[huggingface]'" in done.stderr


@pytest.mark.parametrize("missing", ["aiohttp", "tqdm"])
def test_without_its_client_the_extra_of_a_load_is_named(missing: str) -> None:
    done = run_without((missing,), "bench", "--url", "http://127.0.0.1:8000", "--model", "m")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"attnserve: `attnserve bench` needs {missing}: pip install 'attnserve[bench]'\n"


@pytest.mark.parametrize("missing", ["opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"])
def test_without_the_sdk_the_extra_of_traces_is_named(missing: str, tmp_path: Path) -> None:
    done = run_without((missing,), "serve", str(tmp_path), "--otlp-endpoint", "http://127.0.0.1:1")
    assert (done.returncode, done.stdout) == (1, "")
    needs = r"attnserve: `attnserve serve` needs opentelemetry[\w.]*: pip install 'attnserve\[tracing\]'\n"
    assert re.fullmatch(needs, done.stderr)


def test_an_engine_is_measured_without_the_extra(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = run_without(("aiohttp", "tqdm", "torch"), "bench", str(BUNDLE), "--rounds", "1", "--json", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(file.read_text())["ratios"]) == 4


def test_an_engine_is_measured_with_kernels(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    library = str(build_library())
    assert main(["bench", str(BUNDLE), "--rounds", "1", "--kernels", library, "--json", str(file)]) == 0
    document = json.loads(file.read_text())
    assert document["kernels"] == library
    assert not document["cost"]["pads"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "bundle: expected one, or --url, got neither"),
        (["--rate", "5"], "bundle: expected one, or --url, got neither"),
        ([str(BUNDLE), "--url", "http://h"], "bundle: expected one, or --url, got both"),
        ([str(BUNDLE), "--rate", "5"], "bundle: expected no options of a load beside it, got rate"),
        (["--url", "http://h", "--rounds", "5"], "--url: expected no options of an engine beside it, got rounds"),
        (["--url", "http://h"], "--model: expected the name of a model, got none"),
        ([str(BUNDLE), "--json", "no/such/folder/x"], "--json: expected a file in a folder that exists, got no/such/f"),
    ],
)
def test_bench_measures_one_of_two_things(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 1
    assert capsys.readouterr().err.startswith(f"attnserve: {said}")


@pytest.mark.parametrize("arguments", [("check", str(BUNDLE)), ("serve", "--help"), ("--help",), ("check", "--help")])
def test_what_serves_needs_no_torch(arguments: tuple[str, ...]) -> None:
    extras = ("torch", "onnx", "onnxscript", "tqdm", "jaxtyping", "aiohttp", "opentelemetry")
    done = run_without(extras, *arguments)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_missing_module_that_is_no_extra_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    done = run_without(("numpy",), "check", str(BUNDLE))
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr


def test_variants_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    from attnserve.models.attention.table import variants_table

    assert main(["variants"]) == 0
    assert capsys.readouterr().out == variants_table()


def test_check_prints_the_differences(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(BUNDLE)]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("largest differences of float32 from PyTorch float64, on cpu:\nsequences  longest")
    assert shown.out.endswith("within the certificate\n")
    assert shown.err == ""


def test_check_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(BUNDLE), "--json", "--device", "auto"]) == 0
    report = json.loads(capsys.readouterr().out)
    certificate = bundle.read_manifest(BUNDLE).certificate
    assert report["allowed"] == {"logits": certificate.logits.allowed, "maps": certificate.maps.allowed}
    assert report["passed"] is True
    assert (report["changed"], report["wrong_top"]) == (0, 0)
    assert report["device"] in ("cpu", "cuda")
    assert 0 < report["logits"] <= report["allowed"]["logits"]
    assert 0 < report["maps"] <= report["allowed"]["maps"]
    assert report["table"].endswith("within the certificate")


@pytest.mark.parametrize("passed", [True, False])
def test_check_on_a_gpu_computes_weights_there_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], passed: bool
) -> None:
    def err(_: object, outputs: list[NDArray[Any]]) -> None:
        outputs[0] = outputs[0] * (1 if passed else 2)

    fake = FakeCuda()
    fake.install(monkeypatch.setattr)
    fake.distort_others = err
    # A service would compute them on the CPU.
    assert main(["check", str(BUNDLE), "--device", "cuda"]) == 0
    told = capsys.readouterr().out.partition("attention weights computed on cuda: ")[2]
    assert told.rstrip().endswith("within the certificate" if passed else "OUTSIDE THE CERTIFICATE")
    assert main(["check", str(BUNDLE), "--device", "cuda", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is True
    assert report["weights_there"]["passed"] is passed
    assert (report["weights_there"]["reason"] is None) is passed
    assert main(["check", str(BUNDLE), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["weights_there"] is None


def test_check_with_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    library = str(build_library())
    assert main(["check", str(BUNDLE), "--kernels", library]) == 0
    assert capsys.readouterr().out.endswith(f"within the certificate\nattention computed by {library}\n")
    assert main(["check", str(BUNDLE), "--kernels", library, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kernels"] == library
    assert main(["check", str(BUNDLE), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kernels"] is None


def test_check_fails_wrong_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(BUNDLE), "--kernels", str(build_recognisable())]) == 1
    assert "OUTSIDE THE CERTIFICATE" in capsys.readouterr().out


def test_check_names_kernels_that_are_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("attnserve.kernels.find_kernels", lambda *_: None)
    assert main(["check", str(BUNDLE), "--kernels", "auto"]) == 1
    assert capsys.readouterr().err.startswith("attnserve: kernels: expected a library, found none")


def rewrite_manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / bundle.MANIFEST_FILE
    document = json.loads(path.read_text("utf-8"))
    change(document)
    path.write_text(json.dumps(document), "utf-8")


def rewrite_golden(folder: Path, name: str, value: float) -> None:
    path = folder / bundle.GOLDEN_FILE
    with np.load(path) as archive:
        arrays = {key: archive[key].copy() for key in archive.files}
    arrays[name][(0,) * arrays[name].ndim] = value
    np.savez_compressed(path, **arrays)
    rewrite_manifest(folder, lambda document: document["files"].update(bundle.hash_files(folder)))


@pytest.mark.parametrize("name", ["logits", "maps"])
def test_check_fails_a_lowered_certificate(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite_manifest(folder, lambda document: document["certificate"][name].update(allowed=1e-12))
    assert main(["check", str(folder)]) == 1
    shown = capsys.readouterr()
    assert "OUTSIDE THE CERTIFICATE" in shown.out
    assert "1.0e-12" in shown.out


def test_check_fails_other_truth(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite_golden(folder, "logits", 5.0)
    assert main(["check", str(folder), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is False
    assert report["logits"] > 1


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def test_json_stays_json_where_a_difference_is_nan(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite_golden(folder, "maps", float("nan"))
    assert main(["check", str(folder), "--json"]) == 1
    report = json.loads(capsys.readouterr().out, parse_constant=refuse_constant)
    assert report["maps"] is None
    assert report["passed"] is False
    assert "OUTSIDE THE CERTIFICATE" in report["table"]


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "changed model": (
        lambda folder: (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes() + b"\0"),
        "model.onnx: expected sha256",
    ),
    "truncated golden": (
        lambda folder: (folder / "golden.npz").write_bytes((folder / "golden.npz").read_bytes()[:1000]),
        "golden.npz: expected sha256",
    ),
    "truncated golden, hashed again": (
        lambda folder: (
            (folder / "golden.npz").write_bytes((folder / "golden.npz").read_bytes()[:1000]),
            rewrite_manifest(folder, lambda document: document["files"].update(bundle.hash_files(folder))),
        ),
        "golden.npz: cannot be read as golden",
    ),
    "missing weights graph": (
        lambda folder: (folder / "weights" / "expressive.onnx").unlink(),
        "weights/expressive.onnx: listed in the manifest, but missing",
    ),
    "missing weights graph, not listed": (
        lambda folder: (
            (folder / "weights" / "expressive.onnx").unlink(),
            rewrite_manifest(folder, lambda document: document["files"].pop("weights/expressive.onnx")),
        ),
        "files: weights/expressive.onnx: missing",
    ),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "manifest.json: no such file"),
    "newer": (
        lambda folder: rewrite_manifest(folder, lambda document: document.update(format_version=2)),
        "format_version: this release reads up to 1, got 2; upgrade attnserve",
    ),
    "no bundle": (shutil.rmtree, "manifest.json: no such file"),
}


@pytest.mark.parametrize(("spoil", "said"), DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["text", "json"])
def test_check_names_what_is_damaged(
    folder: Path, spoil: Callable[[Path], Any], said: str, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(folder)
    assert main(["check", str(folder), *flags]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"attnserve: {folder}")
    assert shown.err.count("\n") == 1
    assert said in shown.err


def test_check_says_why_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from attnserve import sessions

    monkeypatch.setattr(sessions, "_has_nvidia_driver", lambda: False)
    assert main(["check", str(BUNDLE), "--device", "cuda"]) == 1
    assert capsys.readouterr().err.startswith("attnserve: device: expected a usable CUDA device, got none: this ")


def test_what_is_no_fault_of_the_user_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(*arguments: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("attnserve.check.replay", stumble)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["check", str(BUNDLE)])


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "attnserve", "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"attnserve {attnserve.__version__}\n")


def test_an_interrupt_is_one_line(capsys, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, "check", Command(summary="", run=interrupt))
    assert main(["check"]) == 130
    assert capsys.readouterr().err == "attnserve: check was interrupted\n"
