"""Other people's models: what `examples/` promises, held to a ViT written a second time, and run as a user would."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from attnserve.packing import add_leading_row, pack
from attnserve.runtime import Runtime
from tests.conftest import Served, free_port, wait_for

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
NUM_HEADS, NUM_PATCHES = 3, 16


def load_script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


deit, random_deit = load_script("deit"), load_script("random_deit")
DOT_PRODUCT = {"variant": "dot_product"}
ELLIPTICAL = {"variant": "elliptical", "scope": "sequence", "scaling": "max"}


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    """Not to be changed: copy it."""
    return random_deit.random_weights(seed=1)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Neither square nor the same: a transposed grid would go unnoticed."""
    return np.random.default_rng(3).normal(size=(3, 3, 8, 32)).astype(np.float32)


def plain_vit(tensors: dict[str, Tensor], images: np.ndarray, lengths: list[int], *, elliptical: bool) -> Tensor:
    """Logits [B, 10] in float64: convolution, a padded batch and torch's own attention, by timm's names.

    Of each image the first `lengths` patches are read; elliptical with scaling max, as docs/attention.md has it.
    """
    state = {name: tensor.double() for name, tensor in tensors.items()}

    def linear(name: str, x: Tensor) -> Tensor:
        return functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    kernel, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    patches = functional.conv2d(torch.from_numpy(images).double(), kernel, bias, stride=4).flatten(2).mT
    x = torch.cat([state["cls_token"].expand(len(images), -1, -1), patches], dim=1) + state["pos_embed"]
    is_row = torch.arange(1 + NUM_PATCHES) <= torch.tensor(lengths)[:, None]
    previous = None
    for index in range(3):
        block = f"blocks.{index}"
        qkv = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", x))
        query, key, value = (part.unflatten(-1, (NUM_HEADS, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        if elliptical and previous is not None:
            change = ((value - previous).abs() * is_row[:, None, :, None]).sum(2, keepdim=True)
            query = query * change / change.amax(-1, keepdim=True)
        previous = value
        attended = functional.scaled_dot_product_attention(query, key, value, is_row[:, None, None, :])
        x = x + linear(f"{block}.attn.proj", attended.transpose(1, 2).flatten(2))
        hidden = linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x))
        x = x + linear(f"{block}.mlp.fc2", functional.gelu(hidden))
    return linear("head", norm("norm", x[:, 0]))


def packed_images(model: Any, images: np.ndarray, lengths: list[int]) -> Any:
    cut = [deit.cut_patches(image, model.sizes)[:length] for image, length in zip(images, lengths, strict=True)]
    return pack([add_leading_row(patches) for patches in cut])


@pytest.mark.parametrize("attention", [DOT_PRODUCT, ELLIPTICAL], ids=lambda attention: attention["variant"])
@torch.no_grad()
def test_module_is_the_plain_vit(tensors: dict[str, Tensor], images: np.ndarray, attention: dict[str, str]) -> None:
    model = deit.load_deit(tensors, NUM_HEADS, **attention).double()
    lengths = [NUM_PATCHES, 5, NUM_PATCHES]
    packed = packed_images(model, images, lengths)
    inputs, positions, slots = map(torch.from_numpy, (packed.inputs, packed.positions, packed.slots))
    logits = model(inputs.double(), positions, slots, slots[:, 0])
    expected = plain_vit(tensors, images, lengths, elliptical=attention is ELLIPTICAL)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)


@pytest.mark.export
@pytest.mark.parametrize("attention", [DOT_PRODUCT, ELLIPTICAL], ids=lambda attention: attention["variant"])
def test_bundle_is_the_plain_vit(
    tensors: dict[str, Tensor], images: np.ndarray, attention: dict[str, str], tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "weights.safetensors")
    np.save(tmp_path / "image.npy", images[0])
    (tmp_path / "labels.txt").write_text("\n".join("abcdefghij"))
    place, request = tmp_path / "deit" / "1", tmp_path / "request.json"
    flags = [word for name, value in attention.items() for word in (f"--{name}", value)]
    files = [f"--{name}={tmp_path / file}" for name, file in (("labels", "labels.txt"), ("image", "image.npy"))]
    command = [str(tmp_path / "weights.safetensors"), str(place), f"--heads={NUM_HEADS}", f"--request={request}"]
    deit.main([*command, *flags, *files])
    runtime = Runtime(place)
    manifest = runtime.manifest
    assert (manifest.task, manifest.pooling, manifest.leading_row) == ("classify_sequence", "first", True)
    assert (manifest.max_length, manifest.num_features) == (NUM_PATCHES, 48)
    assert manifest.labels == tuple("abcdefghij")
    assert [layer.variant for layer in manifest.layers] == ["dot_product", *[attention["variant"]] * 2]
    # What is sent is what the convolution reads; alone, as golden has it, and with another.
    sent = np.array(json.loads(request.read_text())["sequences"][0], np.float32)
    model = deit.load_deit(tensors, NUM_HEADS, **attention)
    np.testing.assert_array_equal(sent, deit.cut_patches(images[0], model.sizes))
    for number in (1, 3):
        lengths = [NUM_PATCHES] * number
        packed = packed_images(model, images[:number], lengths)
        logits = runtime.run(packed, packed.slots[:, 0], ["logits"])["logits"]
        expected = plain_vit(tensors, images[:number], lengths, elliptical=attention is ELLIPTICAL)
        assert np.abs(logits - expected.numpy()).max() <= manifest.certificate.logits.allowed


@pytest.mark.parametrize(
    ("missing", "named"),
    [("heads", "--heads"), ("variant", "--variant"), ("scope", "scope"), ("scaling", "scaling")],
)
def test_what_no_tensor_says_has_to_be_said(
    tensors: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str], missing: str, named: str
) -> None:
    save_file(tensors, tmp_path / "weights.safetensors")
    given = {"heads": "3", **ELLIPTICAL}
    flags = [f"--{name}={value}" for name, value in given.items() if name != missing]
    with pytest.raises(SystemExit) as stopped:
        deit.main([str(tmp_path / "weights.safetensors"), str(tmp_path / "deit" / "1"), *flags])
    assert stopped.value.code
    assert f": {named}" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "deit").exists()


@pytest.mark.parametrize(
    ("heads", "attention", "message"),
    [
        (5, DOT_PRODUCT, "heads: expected a number that divides the width 24, got 5"),
        (0, DOT_PRODUCT, "heads: expected a number that divides the width 24, got 0"),
        (3, {"variant": "cosine"}, "variant: expected one of"),
        (3, {**DOT_PRODUCT, "scaling": "max"}, "scaling: only elliptical attention has one"),
        (3, {**ELLIPTICAL, "scope": "prefix"}, "scope: a bidirectional model sees the whole sequence"),
    ],
)
def test_flags_that_make_no_sense(tensors: dict[str, Tensor], heads: int, attention: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        deit.load_deit(tensors, heads, **attention)


@pytest.mark.parametrize("name", random_deit.random_weights())
def test_every_tensor_is_needed(tensors: dict[str, Tensor], name: str) -> None:
    rest = {other: tensor for other, tensor in tensors.items() if other != name}
    with pytest.raises(ValueError, match=rf"^{re.escape(name)}: missing; expected shape \["):
        deit.load_deit(rest, NUM_HEADS, **DOT_PRODUCT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dist_token": torch.zeros(1, 1, 24)}, "dist_token: unknown tensor"),
        ({"blocks.3.norm1.weight": torch.ones(24)}, "blocks.3.attn.proj.bias: missing; expected shape [24]"),
        ({"cls_token": torch.zeros(24)}, "cls_token: expected shape [1, 1, 24], got [24]"),
        ({"pos_embed": torch.zeros(17, 24)}, "pos_embed: expected shape [1, 1 + P, D], got [17, 24]"),
        ({"blocks.1.attn.qkv.weight": torch.ones(24, 24)}, "blocks.1.attn.qkv.weight: expected shape [72, 24], got [2"),
        (
            {"patch_embed.proj.weight": torch.ones(24, 3, 4, 2)},
            "patch_embed.proj.weight: expected shape [24, 3, 4, 4], got [24, 3, 4, 2]",
        ),
        ({"norm.bias": torch.full((24,), torch.nan)}, "norm.bias: expected finite floating-point numbers"),
        ({"norm.bias": torch.ones(24, dtype=torch.int64)}, "norm.bias: expected finite floating-point numbers"),
    ],
)
def test_odd_tensors_are_named(tensors: dict[str, Tensor], changes: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        deit.load_deit({**tensors, **changes}, NUM_HEADS, **DOT_PRODUCT)


def test_a_pickle_is_not_loaded(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(tensors, tmp_path / "deit.pth")
    with pytest.raises(ValueError, match=r"deit\.pth.*pickle.*runs code.*convert it where you trust it"):
        deit.read_weights(tmp_path / "deit.pth")
    with pytest.raises(ValueError, match=r"^weights: expected a safetensors file, got .*missing"):
        deit.read_weights(tmp_path / "missing.safetensors")


@pytest.mark.parametrize("shape", [(3, 16), (1, 16, 16), (3, 16, 18), (3, 16, 20), (3, 8, 16)])
def test_images_of_other_sizes_are_refused(tensors: dict[str, Tensor], shape: tuple[int, ...]) -> None:
    sizes = deit.read_sizes(tensors)
    with pytest.raises(ValueError, match=r"^image: expected \[3, H, W\] of 16 patches of 4 x 4 pixels, got \["):
        deit.cut_patches(np.zeros(shape), sizes)


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder with nothing but `examples/` in it, and an environment into which a wheel was installed."""
    tree, home, folder = (tmp_path_factory.mktemp(name) for name in ("tree", "home", "user"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for source in tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"][
        "package-dir"
    ].values():
        shutil.copytree(ROOT / source, tree / source, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(EXAMPLES, folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(home), str(tree))
    run(sys.executable, "-m", "venv", "--without-pip", str(home / "env"))
    (wheel,) = home.glob("*.whl")
    run(*pip, "--python", str(home / "env" / "bin" / "python"), "install", "--no-deps", "--no-index", str(wheel))
    shutil.rmtree(tree)
    # Dependencies are read from this environment; a path, unlike a site folder, brings no editable install with it.
    changes = {"PYTHONPATH": sysconfig.get_path("purelib"), "PATH": f"{home / 'env' / 'bin'}:{os.environ['PATH']}"}
    return folder, {**os.environ, **changes}


def run(*command: str, **options: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def served(user: tuple[Path, dict[str, str]], tmp_path: Path) -> Iterator[Served]:
    """What the README has one type, up to the service."""
    folder, environment = user
    page = (EXAMPLES / "README.md").read_text("utf-8")
    lines = re.findall(r"^```bash\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[0].splitlines()
    assert (lines[0], lines[-1]) == ("pip install 'attnserve[export]'", "attnserve serve repository")
    output = run("bash", "-euo", "pipefail", "-c", "\n".join(lines[1:-1]), cwd=folder, env=environment)
    assert "after 3 5 3 comes 5, after 6 1 6 1 comes 6" in output
    assert "within the certificate" in output.splitlines()[-1]
    port, log = free_port(), tmp_path / "stderr"
    command = ["attnserve", "serve", "repository", "--port", str(port), "--num-threads", "1", "--tuning-seconds", "0.2"]
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, cwd=folder, env=environment, stderr=stderr)
    with process, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        try:
            found = Served(client=client, process=process, log=log)
            wait_for(found, "/readyz")
            yield found
        finally:
            process.send_signal(signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.packaging
@pytest.mark.export
@pytest.mark.http
def test_examples_run_where_the_wheel_is_installed(user: tuple[Path, dict[str, str]], served: Served) -> None:
    folder, environment = user
    packages = "import attnserve.export as e, attnserve.models as m, attnserve.service as s; "
    files = run("python", "-c", f"{packages}print(e.__file__, m.__file__, s.__file__)", cwd=folder, env=environment)
    assert all("/env/" in file and not Path(file).is_relative_to(ROOT) for file in files.split()), files
    (answer,) = served.ask("predict", {"sequences": [[3, 5, 3]], "top_k": 1}, model="echo")["predictions"]
    assert answer["top"][0][0]["id"] == 5
    body = (folder / "request.json").read_bytes()
    asked = served.ask("attention", body, model="deit")
    assert asked["variants"] == ["dot_product", "elliptical", "elliptical"]
    weights = load_file(folder / "weights.safetensors")
    patches = np.array(json.loads(body)["sequences"][0], np.float32)
    grid = patches.reshape(4, 4, 3, 4, 4).transpose(2, 0, 3, 1, 4).reshape(1, 3, 16, 16)
    (logits,) = plain_vit(weights, grid, [NUM_PATCHES], elliptical=True)
    (entries,) = asked["predictions"][0]["top"]
    assert [entry["id"] for entry in entries] == logits.argsort(descending=True)[:5].tolist()
    for entry in entries:
        assert abs(entry["logit"] - float(logits[entry["id"]])) < 1e-4
