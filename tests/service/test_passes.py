"""Passes beside the plain one: what is switched off in each, and whose answer is whose."""

import json

import numpy as np

from attnserve.service.job import LogitsAnswer
from attnserve.service.passes import list_ablations, make_jobs, sort_answers, switch_off
from attnserve.service.preprocess import parse_attention
from attnserve.service.sequences import Reader

NAMES = frozenset({"layers.0.query"})


def parse(manifest, **fields):
    body = {"sequences": [[1, 2], [3]], "layers": [1, 0, 1], "heads": [3, 1], **fields}
    return parse_attention(json.dumps(body).encode(), Reader(manifest))


def test_an_ordinary_question_takes_one_pass(make_manifest):
    manifest = make_manifest()
    request = parse(manifest)
    jobs = make_jobs(request, manifest, NAMES)
    assert [job.sequence.tolist() for job in jobs] == [[1, 2], [3]]
    assert all(job.head_scale is None and job.captures == NAMES for job in jobs)
    answers = [LogitsAnswer(logits=np.zeros((1, 10)), captures={}) for _ in jobs]
    passes = sort_answers(request, answers)
    assert (passes.plain, passes.ablated, passes.without) == (answers, [], {})


def test_ablations_come_after_it(make_manifest):
    manifest = make_manifest()
    request = parse(manifest, ablate=[[0, 0], [-1, -1]], diagnostics=["importance"])
    # Each head once, however often it is named.
    ablations = [((0, 0), (1, 3)), ((0, 1),), ((0, 3),), ((1, 1),), ((1, 3),)]
    assert list_ablations(request) == ablations
    jobs = make_jobs(request, manifest, NAMES)
    assert len(jobs) == 2 * 6
    for place, job in enumerate(jobs[2:]):
        assert job.sequence.tolist() == [[1, 2], [3]][place % 2]
        assert not job.captures
        off = {tuple(head) for head in np.argwhere(job.head_scale == 0).tolist()}
        assert off == set(ablations[place // 2])
        assert set(np.unique(job.head_scale)) == {0, 1}
    answers = [LogitsAnswer(logits=np.full((1, 10), place), captures={}) for place in range(12)]
    passes = sort_answers(request, answers)
    assert passes.plain == answers[:2]
    assert passes.ablated == answers[2:4]
    assert list(passes.without) == [heads[0] for heads in ablations[1:]]
    assert passes.without[1, 3] == answers[10:]


def test_the_scale_of_heads_is_of_all_of_them(make_manifest):
    scale = switch_off([(1, 2)], make_manifest())
    assert (scale.shape, scale.dtype) == ((2, 4), np.float32)
    assert scale.sum() == 7
    assert scale[1, 2] == 0
