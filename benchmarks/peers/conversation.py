"""A process of ours, on a core of its own, that is told what to do line by line."""

import os
import subprocess
from pathlib import Path


class ConversationEnded(Exception):
    """The process has gone."""


class Conversation:
    """It ends when its standard input does, so it never outlives the runner."""

    def __init__(self, command: list[str], environment: dict[str, str], core: int, folder: Path) -> None:
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )

    def say(self, line: str) -> None:
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise ConversationEnded(f"{self.process.args[:3]}: {error}") from None

    def hear(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise ConversationEnded(f"{self.process.args[:3]} ended with {self.process.wait()}")
        return line.strip()

    def ask(self, line: str) -> str:
        self.say(line)
        return self.hear()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
