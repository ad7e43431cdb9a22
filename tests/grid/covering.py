"""Choices that obey rules, and so many of them that every legal pair of values of two fields is in one."""

import itertools
import random
from collections.abc import Collection, Iterator
from typing import Any

from tests.grid.rules import FIELDS, RULES, Choice, Rule

# Of so many rows the one with the most new pairs is taken: more of them make fewer rows, and take longer.
NUM_CANDIDATES = 3


NAMES = list(FIELDS)
# The number of a field, and of one of its values. Numbers because there are thousands of pairs to look up.
Item = tuple[int, int]
# By falling number of the field.
Pair = tuple[Item, Item]


def pairs_of(items: Collection[Item]) -> Iterator[Pair]:
    """All pairs of items of two fields; items come by rising number of the field."""
    return ((other, one) for one, other in itertools.combinations(items, 2) if one[0] != other[0])


def items_of(choice: Choice) -> list[Item]:
    return [(number, FIELDS[name].index(choice[name])) for number, name in enumerate(NAMES)]


def choice_of(items: Collection[Item]) -> Choice:
    """Of some fields only, if those are all there are."""
    return {NAMES[field]: FIELDS[NAMES[field]][value] for field, value in items}


EVERY_ITEM = [(field, value) for field, name in enumerate(NAMES) for value in range(len(FIELDS[name]))]


def complete(
    fixed: Choice, draw: random.Random, wanted: Collection[Pair] = (), rules: Collection[Rule] = RULES
) -> Choice | None:
    """A choice with these values that obeys the rules, with many of the wanted pairs; None if there is none."""
    domains = {name: [fixed[name]] if name in fixed else list(values) for name, values in FIELDS.items()}
    if not narrow(domains, rules, rules):
        return None
    return search(domains, draw, wanted, rules)


def search(
    domains: dict[str, list[Any]], draw: random.Random, wanted: Collection[Pair], rules: Collection[Rule]
) -> Choice | None:
    open_fields = [name for name, values in domains.items() if len(values) > 1]
    if not open_fields:
        return {name: values[0] for name, values in domains.items()}
    name = draw.choice(open_fields)
    number = NAMES.index(name)
    settled = [
        (field, FIELDS[other].index(domains[other][0])) for field, other in enumerate(NAMES) if len(domains[other]) == 1
    ]
    values = draw.sample(domains[name], len(domains[name]))
    if wanted:
        mine = {value: (number, FIELDS[name].index(value)) for value in values}
        gain = {
            value: sum((max(own, item), min(own, item)) in wanted for item in settled) for value, own in mine.items()
        }
        values.sort(key=lambda value: -gain[value])
    for value in values:
        narrowed = {**domains, name: [value]}
        if narrow(narrowed, [rule for rule in rules if name in rule.fields], rules):
            found = search(narrowed, draw, wanted, rules)
            if found is not None:
                return found
    return None


def narrow(domains: dict[str, list[Any]], pending: Collection[Rule], rules: Collection[Rule]) -> bool:
    """Drop values that some rule allows with no values of its other fields; False when a field has none left."""
    todo = list(pending)
    while todo:
        rule = todo.pop()
        allowed = [
            values for values in itertools.product(*(domains[name] for name in rule.fields)) if rule.holds(*values)
        ]
        if not allowed:
            return False
        for name, kept in zip(rule.fields, zip(*allowed, strict=True), strict=True):
            if len(left := [value for value in domains[name] if value in kept]) < len(domains[name]):
                domains[name] = left
                todo += [other for other in rules if other is not rule and name in other.fields]
    return True


def is_legal(pair: Pair) -> bool:
    """Whether any choice that obeys the rules has this pair."""
    return complete(choice_of(pair), random.Random(0)) is not None


def cover(seed: int) -> list[Choice]:
    """Choices that obey the rules, with every legal pair in one of them; the first ones have the most."""
    draw = random.Random(seed)
    wanted = set(pairs_of(EVERY_ITEM))
    for item in EVERY_ITEM:
        if complete(choice_of([item]), draw) is None:
            wanted = {pair for pair in wanted if item not in pair}
    order = sorted(wanted)
    draw.shuffle(order)
    rows = []
    for pair in order:
        if pair not in wanted:
            continue
        found = [complete(choice_of(pair), draw, wanted) for _ in range(NUM_CANDIDATES)]
        candidates = [row for row in found if row is not None]
        if not candidates:
            wanted.remove(pair)
            continue
        covered = [wanted.intersection(pairs_of(items_of(row))) for row in candidates]
        best = max(range(len(candidates)), key=lambda index: len(covered[index]))
        rows.append(candidates[best])
        wanted -= covered[best]
    return rows
