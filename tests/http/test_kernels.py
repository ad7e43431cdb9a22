"""A service with native kernels answers as one without them does, and says that it has them."""

import numpy as np
import pytest

from attnserve.cli import main
from attnserve.runtime import Runtime
from tests.kernels.library import build_library, build_recognisable

pytestmark = [pytest.mark.http, pytest.mark.export]

QUESTION = {
    "sequences": [[3, 1, 4, 1, 5, 9, 2, 6], [2], list(range(20)) * 15],
    "top_k": 20,
    "attention": {"quantity": "diagnostics", "diagnostics": ["entropy", "distance"]},
}


def logits_of(prediction):
    """Of the last step, by id."""
    (entries,) = prediction["top"]
    return [entry["logit"] for entry in sorted(entries, key=lambda entry: entry["id"])]


def test_answers_are_the_same_within_the_certificate(bundles, server, start_server):
    allowed = Runtime(bundles / "tiny" / "1").manifest.certificate.logits.allowed
    with start_server(bundles, "--kernels", str(build_library())) as served:
        model = served.client.get("/v1/models/tiny").json()
        assert (model["kernels"], model["tuning"]["cost"]["pads"]) == ("on", False)
        assert 'model_info{device="cpu",kernels="on",' in served.client.get("/metrics").text
        found, expected = (one.ask("predict", QUESTION) for one in (served, server))
        for one, other in zip(found["predictions"], expected["predictions"], strict=True):
            np.testing.assert_allclose(logits_of(one), logits_of(other), rtol=0, atol=2 * allowed)
    assert f"kernels: {build_library()}" in served.log.read_text()
    assert server.client.get("/v1/models/tiny").json()["kernels"] == "off"


def test_kernels_that_fail_golden_do_not_answer(bundles, server, start_server):
    with start_server(bundles, "--kernels", str(build_recognisable())) as served:
        assert served.client.get("/v1/models/tiny").json()["kernels"] == "failed"
        assert 'kernels="failed"' in served.client.get("/metrics").text
        assert served.ask("predict", QUESTION) == server.ask("predict", QUESTION)
    assert "kernels are switched off" in served.log.read_text()


@pytest.mark.parametrize("text", [None, "not a library"])
def test_a_library_asked_for_by_name_must_be_one(text, tmp_path, capsys):
    library = tmp_path / "kernels.so"
    if text is not None:
        library.write_text(text)
    assert main(["serve", str(tmp_path), "--kernels", str(library)]) == 1
    assert "attnserve: --kernels (ATTNSERVE_KERNELS): expected " in capsys.readouterr().err
