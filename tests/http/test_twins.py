"""Served twins: one model per task, as right over HTTP as it is in PyTorch, answer by answer."""

import shutil

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from attnserve.models import load_checkpoint
from attnserve.models.recipes.corpus import read_packages
from attnserve.models.recipes.images import cut_patches, load_digits, split_digits
from attnserve.models.recipes.recurrence import NT
from tests.conftest import COMMITTED

pytestmark = pytest.mark.http

NAMES = ("nt-expressive", "nt-elliptical", "nt-dot-product", "digits-elliptical", "text-expressive")


@pytest.fixture(scope="module")
def twins(committed_bundles, start_server, tmp_path_factory):
    repository = shutil.copytree(committed_bundles, tmp_path_factory.mktemp("twins") / "repository")
    with start_server(repository) as served:
        yield served


def questions_of(checkpoint):
    """Sequences nobody trained on, and the right answers at the steps that have one."""
    if checkpoint.card["recipe"] == "nt":
        task = NT(symbols=checkpoint.card["symbols"], delay=checkpoint.card["delay"])
        tokens = task.sample(np.random.default_rng(99), 24, 129)
        return list(tokens[:, :-1]), [row[task.delay :] for row in tokens]
    if checkpoint.card["recipe"] == "digits":
        _, images = split_digits(load_digits(), seed=checkpoint.card["seed"])
        return list(cut_patches(images.images)), [[number] for number in images.classes]
    tokenizer = Tokenizer.from_file(str(checkpoint.tokenizer))
    # Of another package than the two it was trained on.
    documents = [encoding.ids for encoding in tokenizer.encode_batch(list(read_packages(["onnx"]).training[:40]))]
    documents = [np.array(ids[:129]) for ids in documents if len(ids) > 8]
    return [ids[:-1] for ids in documents], [ids[1:] for ids in documents]


@pytest.mark.parametrize("name", NAMES)
def test_accuracy_over_http_is_that_of_pytorch(twins, name):
    checkpoint = load_checkpoint(COMMITTED[name])
    sequences, targets = questions_of(checkpoint)
    right = np.concatenate(targets)
    with torch.no_grad():
        answers = checkpoint.model.predict(sequences)
        logits = torch.cat([rows[-len(steps) :] for rows, steps in zip(answers, targets, strict=True)])
    own = logits.argmax(-1).numpy()
    document = {"sequences": [sequence.tolist() for sequence in sequences], "top_k": 1}
    if checkpoint.card["recipe"] != "digits":
        document["positions"] = "all"
    predictions = twins.ask("predict", document, model=name)["predictions"]
    served = np.concatenate(
        [
            [step[0]["id"] for step in prediction["top"][-len(steps) :]]
            for prediction, steps in zip(predictions, targets, strict=True)
        ]
    )

    # Where two answers are as likely but for rounding, either may be the first: hardly anywhere.
    best = logits.topk(2).values
    is_close = (best[:, 0] - best[:, 1] < 1e-3).numpy()
    assert is_close.mean() < 0.005
    assert (served == own)[~is_close].all()
    assert abs((served == right).mean() - (own == right).mean()) <= is_close.mean()
    assert (own == right).mean() > {"nt": 0.999, "digits": 0.97, "text": 0.2}[checkpoint.card["recipe"]]
