"""The errors that a person reads: one sentence, what is wrong and what mends it."""

from __future__ import annotations

from lab.credentials import hidden

BAD_INPUT = 2
FAILED = 1
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
OUT_OF_MEMORY = 3  # of a child, to `lab`: it tries again with a smaller batch, so no person sees this number


class LabError(Exception):
    """Ends the command with one sentence on stderr and an exit status, never with a traceback."""

    def __init__(self, sentence: str, status: int = BAD_INPUT) -> None:
        sentence = hidden(sentence)  # it reaches terminals, logs and run.json
        super().__init__(sentence)
        self.sentence = sentence
        self.status = status
