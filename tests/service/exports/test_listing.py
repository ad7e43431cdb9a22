"""Pages of jobs: every job once, newest first, whatever is filtered out."""

import pytest

from attnserve.service.exports.listing import BATCH, MAX_LOOKED_AT, list_jobs
from attnserve.service.exports.request import ListRequest
from tests.fake_exports import job_id, make_order


def turn_pages(queue, **fields):
    """Ids page by page."""
    after, pages = None, []
    while not pages or after is not None:
        page = list_jobs(queue, ListRequest(after=after, **fields))
        pages.append([job.id for job in page.jobs])
        after = page.next
    return pages


def test_nothing_is_one_empty_page(queue):
    assert turn_pages(queue) == [[]]


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 6, 100])
def test_every_job_is_on_one_page(queue, limit):
    for number in range(6):
        # Two of each millisecond.
        queue.put(number, created_ms=1000 + number // 2)
    pages = turn_pages(queue, limit=limit)
    assert [each for page in pages for each in page] == [job_id(number) for number in reversed(range(6))]
    assert len(pages) == -(-6 // limit)


def test_new_jobs_do_not_move_the_pages(queue):
    for number in range(4):
        queue.put(number)
    first = list_jobs(queue, ListRequest(limit=2))
    queue.put(9)
    second = list_jobs(queue, ListRequest(limit=2, after=first.next))
    assert [job.id for job in second.jobs] == [job_id(1), job_id(0)]
    assert second.next is None


def test_filters_hold(queue):
    queue.put(1, state="failed")
    queue.put(2, state="succeeded")
    queue.put(3, state="failed", order=make_order(model="other"))
    queue.put(4, state="failed", order=None)
    assert turn_pages(queue, state="failed") == [[job_id(4), job_id(3), job_id(1)]]
    assert turn_pages(queue, state="succeeded") == [[job_id(2)]]
    assert turn_pages(queue, state="failed", model="tiny") == [[job_id(1)]]
    assert turn_pages(queue, model="nobody's") == [[]]


def test_a_rare_job_is_found_page_by_page(queue):
    for number in range(MAX_LOOKED_AT + BATCH + 1):
        queue.put(number, order=make_order(model="tiny" if number else "rare"))
    assert turn_pages(queue, model="rare") == [[], [job_id(0)]]
