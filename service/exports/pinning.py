"""Pinning: of which files an export is to be. What is uploaded or written later is of no concern to it."""

from pathlib import Path

from attnserve.checkpoint_files import FolderError, pin_folder
from attnserve.checkpoints import Checkpoints, CheckpointsError
from attnserve.jobs import locate_checkpoints
from attnserve.service.problems import Invalid, Unavailable
from attnserve.service.settings import Settings


class Pinner:
    """Finds the files of checkpoints, uploaded or in folders that the service may read.

    Args:
        repository: beside whose bundles uploads are, unless settings say otherwise.
        settings: of the service.
    """

    def __init__(self, repository: Path, settings: Settings) -> None:
        self._checkpoints = Checkpoints(locate_checkpoints(repository, settings.checkpoints))
        self._folders = settings.checkpoint_paths

    def pin(self, checkpoint: str) -> dict[str, str]:
        """sha256 of every file of a checkpoint, by name.

        Args:
            checkpoint: name of an upload, or absolute path of a folder.

        Raises:
            Invalid: there is no such checkpoint, it lacks a file, or the service may not read it.
            Unavailable: the disk does not answer.
        """
        try:
            return self._pin(checkpoint)
        except (CheckpointsError, FolderError) as error:
            field, _, message = str(error).partition(": ")
            hint = "; --checkpoint-paths says which folders may be read" if checkpoint.startswith("/") else ""
            raise Invalid.about(field, message + hint) from None
        except OSError as error:
            raise Unavailable(f"checkpoints cannot be read: {error.strerror}") from None

    def _pin(self, checkpoint: str) -> dict[str, str]:
        if checkpoint.startswith("/"):
            return pin_folder(checkpoint, self._folders)
        return self._checkpoints.pin(checkpoint)
