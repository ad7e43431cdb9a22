"""`Interrupt`: how a run that is under way is ended."""

from attnserve.recordings import GRAPH_ID, NO_GRAPH


class Interrupted(Exception):
    """A run was ended before its end."""


class Interrupt:
    """Ends a run that is under way in another thread: it goes on to the end of a node of the graph, and no further."""

    def __init__(self) -> None:
        import onnxruntime

        self.options = onnxruntime.RunOptions()
        """Of the run."""
        # Its end is no error.
        self.options.log_severity_level = 4
        # A graph could be recorded of half a run; without graphs it means nothing.
        self.options.add_run_config_entry(GRAPH_ID, NO_GRAPH)
        self.is_set = False

    def set(self) -> None:
        """End it, if it runs."""
        self.is_set = True
        self.options.terminate = True

    def check(self) -> None:
        """Raise what an interrupted run raises, in between.

        Raises:
            Interrupted: it has been set.
        """
        if self.is_set:
            raise Interrupted
