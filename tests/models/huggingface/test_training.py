"""A choice of attention is kept with the model, because transformers does not keep it."""

from pathlib import Path

import pytest
from transformers import BertForMaskedLM

from attnserve.models.huggingface import HuggingFaceError, Settings, configure, inspect, load, register, save
from attnserve.models.huggingface.settings import read_settings
from tests.models.huggingface import zoo


def test_what_was_configured_comes_back(tmp_path: Path) -> None:
    model = zoo.make("BertForMaskedLM")
    configure(model, "elliptical", scope="sequence", scaling="mean")
    save(model, tmp_path)
    loaded = load(tmp_path)
    expected = Settings(variant="elliptical", scope="sequence", scaling="mean")
    assert read_settings(loaded.config) == expected
    assert inspect(loaded).variant == "elliptical"


def test_the_name_alone_is_enough_for_expressive_attention(tmp_path: Path) -> None:
    register()
    zoo.save(tmp_path / "plain", "BertForMaskedLM")
    model = BertForMaskedLM.from_pretrained(tmp_path / "plain", attn_implementation="expressive")
    save(model, tmp_path / "expressive")
    assert read_settings(load(tmp_path / "expressive").config) == Settings(variant="expressive")


def test_a_plain_model_is_saved_as_dot_product(tmp_path: Path) -> None:
    save(zoo.make("BertForMaskedLM"), tmp_path)
    assert read_settings(load(tmp_path).config) == Settings()


@pytest.mark.parametrize(
    ("variant", "numbers", "message"),
    [
        ("quadratic", {}, "variant: expected one of dot_product, expressive, elliptical, got 'quadratic'"),
        ("elliptical", {}, "scaling: elliptical attention needs one of max, mean, got None"),
        ("expressive", {"epsilon": -1.0}, "epsilon: expected 0 or a float32 number > 0, got -1.0"),
        ("expressive", {"scope": "prefix"}, "scope: only elliptical attention has one"),
    ],
)
def test_what_no_variant_could_mean_is_refused(variant: str, numbers: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configure(zoo.make("BertForMaskedLM"), variant, **numbers)


def test_a_config_that_says_something_else_is_refused() -> None:
    model = zoo.make("BertForMaskedLM")
    model.config.attnserve = {"variant": "expressive", "window": 3}
    with pytest.raises(ValueError, match=r"attnserve\.window: unknown field"):
        read_settings(model.config)


def test_elliptical_attention_by_name_alone_is_refused_when_it_is_saved(tmp_path: Path) -> None:
    register()
    model = zoo.make("BertForMaskedLM")
    model.set_attn_implementation("elliptical")
    with pytest.raises(ValueError, match="scaling: elliptical attention needs"):
        save(model, tmp_path)


def test_a_causal_model_that_would_see_its_own_targets_is_refused() -> None:
    with pytest.raises(ValueError, match="scope: 'sequence' lets a causal model see its own targets"):
        configure(zoo.make("GPT2LMHeadModel"), "elliptical", scope="sequence", scaling="max")


def test_a_model_that_would_go_on_with_softmax_is_refused() -> None:
    model = zoo.make("MPNetForTokenClassification", zoo.PLAIN)
    with pytest.raises(HuggingFaceError, match="does not attend through transformers' AttentionInterface"):
        configure(model, "expressive")
