"""The study of the leak: what nothing announces, with a metric over the past and with one over all of a sequence."""

import math

from attnserve.models.recipes.leak import COMPARED, MEASURES
from attnserve.models.studies.study import Cell, Figure, Study, Table

ROWS = {name: f"{options} --score-every 50 --stop-at 0.99" for name, options in COMPARED.items()}

FIRST_COPY = Table(
    title="The first copy",
    rows=ROWS,
    measures=MEASURES,
    shows="""The leaky model names every first copy: it reads its own targets, through a metric of eight numbers
per head. Left with the prefix, which is all that a served model has, it does no better than chance and is sure of
it. With the metric of the past, and with dot-product attention, nothing is right beyond chance. This shows that
the published estimator can leak all of a target, not that it does so in every model.""",
)

STUDY = Study(
    name="leak",
    recipe="leak",
    title="The leak of the published elliptical metric",
    setup="""Twelve random tokens of four symbols, then twelve copies of a token of four others. Nothing before
the first copy says which it is: at best a quarter of guesses are right, at ln 4 = 1.386 nats. The published code
makes the metric of a causal model of all steps of a sequence, later ones included; here that is `--scope
sequence-leaky`. Three layers, four heads, width 32, AdamW, 400 steps or until 99 % are right; 512 new sequences.""",
    tables=(FIRST_COPY,),
    figures=(
        Figure(
            name="leak",
            title="The first copy, with the whole sequence in the model and with its prefix alone",
            vertical="nats (dashed: ln 4)",
            groups={
                place: {name: Cell(options=options, column=column) for name, options in ROWS.items()}
                for place, column in {"whole sequence": "nats", "prefix alone": "nats_prefix"}.items()
            },
            line=math.log(4),
        ),
    ),
)
