"""A name is one worker's, and is free again when he is gone."""

import pytest

from attnserve.worker.names import hold_name


def test_workers_of_a_host_are_numbered(tmp_path):
    with hold_name(tmp_path, "", "host") as first:
        with hold_name(tmp_path, "", "host") as second, hold_name(tmp_path, "", "host") as third:
            assert [first, second, third] == ["host", "host-2", "host-3"]
        # The same as before, not the next one.
        with hold_name(tmp_path, "", "host") as again:
            assert again == "host-2"


def test_a_name_that_is_taken_is_refused(tmp_path):
    with hold_name(tmp_path, "mine", "host") as name:
        assert name == "mine"
        with (
            pytest.raises(ValueError, match=r"^--name .* got 'mine', which runs already$"),
            hold_name(tmp_path, "mine", "host"),
        ):
            pass
    with hold_name(tmp_path, "mine", "host"):
        pass


def test_errors_of_a_worker_are_its_own(tmp_path):
    with pytest.raises(OSError, match="no space"), hold_name(tmp_path, "mine", "host"):
        raise OSError(28, "no space")


@pytest.mark.parametrize(
    ("host", "name"), [("a b/c", "a-b-c"), ("", "worker"), ("...", "worker"), ("x" * 99, "x" * 50)]
)
def test_any_host_has_a_name(tmp_path, host, name):
    with hold_name(tmp_path, "", host) as found:
        assert found == name


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(ValueError, match=r"^--checkpoints .*cannot be written"),
        hold_name(tmp_path / "file", "", "host"),
    ):
        pass
