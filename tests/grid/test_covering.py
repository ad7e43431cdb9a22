"""The grid is what it says it is: small, legal, and without a legal pair of values left out."""

import dataclasses

from attnserve.certificate import PRECISIONS
from attnserve.interface import POOLINGS, TASKS
from attnserve.models.attention import VARIANTS
from attnserve.models.attention.elliptical import SCALINGS, SCOPES
from attnserve.models.attention.layer import AttentionConfig
from attnserve.models.config import ACTIVATIONS, NORMS, POSITIONS, TransformerConfig
from attnserve.records import from_json
from tests.grid.configs import GRID, QUICK
from tests.grid.covering import EVERY_ITEM, choice_of, is_legal, items_of, pairs_of
from tests.grid.rules import ABSENT, FIELDS, NUM_LAYERS, RULES, document_of

MIN_CONFIGS = 44
NEVER_LEGAL = {("layers.0.variant", "elliptical")} | {
    (f"layers.0.{field}", value)
    for field in ("scope", "scaling")
    for value in FIELDS[f"layers.0.{field}"]
    if value is not None
}


def test_every_field_there_is_has_values_in_the_grid() -> None:
    own = {field.name for field in dataclasses.fields(TransformerConfig)} - {"format_version", "attention"}
    of_a_layer = {field.name for field in dataclasses.fields(AttentionConfig)}
    assert of_a_layer == {"variant", *ABSENT}
    layers = {f"layers.{layer}.{field}" for layer in range(NUM_LAYERS) for field in of_a_layer}
    assert set(FIELDS) == own | layers | {"precision", "portable"}


def test_every_choice_there_is_is_in_the_grid() -> None:
    for field, choices in {
        "task": TASKS,
        "pooling": POOLINGS,
        "positions": POSITIONS,
        "norm": NORMS,
        "activation": ACTIVATIONS,
        "layers.1.variant": VARIANTS,
        "layers.1.scope": SCOPES,
        "layers.1.scaling": SCALINGS,
        # Nothing but CUDA runs bfloat16.
        "precision": set(PRECISIONS) - {"bfloat16"},
    }.items():
        assert set(FIELDS[field]) - {None} == set(choices), field


def test_there_are_many_configs_and_all_are_different_and_legal() -> None:
    assert len(GRID) >= MIN_CONFIGS
    assert len({tuple(items_of(choice)) for choice in GRID.values()}) == len(GRID)
    for choice in GRID.values():
        assert all(rule.allows(choice) for rule in RULES)
        from_json(TransformerConfig, document_of(choice))


def test_every_legal_value_is_in_a_config() -> None:
    used = {(name, value) for choice in GRID.values() for name, value in choice.items()}
    assert {(name, value) for name, values in FIELDS.items() for value in values} - used == NEVER_LEGAL


def test_every_legal_pair_of_values_is_in_a_config() -> None:
    covered = {pair for choice in GRID.values() for pair in pairs_of(items_of(choice))}
    missing = set(pairs_of(EVERY_ITEM)) - covered
    # Not the grid's word for it: `is_legal` looks for a choice with the pair, and test_refused.py asks the package
    # whether it has the same rules.
    assert not [choice_of(pair) for pair in missing if is_legal(pair)]


def test_heads_need_not_divide_the_width() -> None:
    configs = [from_json(TransformerConfig, document_of(choice)) for choice in GRID.values()]
    assert any(config.channels % 2 and config.channels > 1 for config in configs)
    assert any(config.channels * config.num_heads != config.width for config in configs)
    assert any(1 < config.key_heads < config.num_heads for config in configs)


def test_the_quick_ones_are_of_many_kinds() -> None:
    choices = [GRID[name] for name in QUICK]
    for field in ("task", "causal", "norm", "precision", "portable", "bias"):
        assert len({choice[field] for choice in choices}) > 1, field
    variants = {choice[f"layers.{layer}.variant"] for choice in choices for layer in range(NUM_LAYERS)}
    assert set(VARIANTS) <= variants
    assert {choice["vocabulary_size"] is None for choice in choices} == {True, False}
