"""Answers as dataclasses: all that is said, and nothing that breaks when more is said."""

import copy

from attnserve.client.answers import Model, read_model, read_predicted
from tests.attnserve.client.conftest import DOCUMENT


def test_an_answer_is_typed():
    predicted = read_predicted(DOCUMENT)
    assert (predicted.model, predicted.version, predicted.warnings) == ("m", 2, ("careful",))
    (prediction,) = predicted.predictions
    assert prediction.positions == (1,)
    assert (prediction.best.id, prediction.best.label, prediction.best.probability) == (3, "c", 0.75)
    assert predicted.tokens[0][0].span == (0, 1)
    assert repr(predicted) == "Predicted(m/2: 'c' 0.75)"


def test_the_best_is_that_of_the_last_position():
    document = copy.deepcopy(DOCUMENT)
    document["predictions"][0] = {"positions": [0, 1], "top": [[candidate(1)], [candidate(2), candidate(0)]]}
    assert read_predicted(document).predictions[0].best.id == 2


def test_a_classification_has_no_positions():
    document = copy.deepcopy(DOCUMENT)
    document["predictions"] = [{"positions": None, "top": [[candidate(number)]]} for number in range(5)]
    predicted = read_predicted(document)
    assert predicted.predictions[0].positions is None
    assert repr(predicted) == "Predicted(m/2: 0 0.5, 1 0.5, 2 0.5, and 2 more)"


def test_fields_of_later_services_are_passed_over():
    found = read_model({"name": "m", "version": 1, "versions": [1, 2], "ready": True, "colour": "green"})
    assert found == Model(name="m", version=1, versions=(1, 2), ready=True)


def candidate(number):
    return {"id": number, "label": None, "probability": 0.5, "logit": 0.0}
