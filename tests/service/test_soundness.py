"""`Soundness` asks one at a time, tells once, and does not hope again."""

import threading

from attnserve.service.soundness import Soundness


def test_what_is_sound_is_asked_each_time():
    asked, lost = [], []
    soundness = Soundness(lambda: not asked.append(1), lambda: lost.append(1))
    assert soundness.ask()
    assert soundness.ask()
    assert (len(asked), lost) == (2, [])


def test_what_is_lost_stays_so_and_is_told_once(caplog):
    answers, lost = [True, False, True], []
    soundness = Soundness(lambda: answers.pop(0), lambda: lost.append(1))
    assert [soundness.ask() for _ in range(4)] == [True, False, False, False]
    assert (answers, lost) == ([True], [1])
    assert caplog.text.count("does not answer golden rightly any more") == 1


def test_others_wait_for_what_one_finds():
    entered, go_on, lost, found = threading.Event(), threading.Event(), [], []

    def is_sound():
        entered.set()
        assert go_on.wait(60)
        return False

    soundness = Soundness(is_sound, lambda: lost.append(1))
    threads = [threading.Thread(target=lambda: found.append(soundness.ask())) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert entered.wait(60)
    assert found == []
    go_on.set()
    for thread in threads:
        thread.join()
    assert (found, lost) == ([False] * 3, [1])
