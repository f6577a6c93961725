"""Completion in bash, which cuts a line into words at `=` as well: `a=b` arrives as three."""

from __future__ import annotations

from typing import Any

from click.shell_completion import BashComplete, CompletionItem

__all__ = ["Bash"]


class Bash(BashComplete):
    """Click's completion for bash, with the words put together again."""

    #: What stands before bash's own word in ours, and is not to be repeated.
    _before = ""

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the cursor, and the one at it."""
        args, incomplete = super().get_completion_args()
        words: list[str] = []
        open_word = False
        for word in [*args, incomplete]:
            glued = open_word or (word == "=" and bool(words))
            if glued:
                words[-1] += word
            else:
                words.append(word)
            open_word = word == "="
        last = words.pop()
        # After an option's own `=` Click itself offers values only.
        before = last.rpartition("=")[0] + "=" if "=" in last else ""
        self._before = before.partition("=")[2] if before.startswith("-") else before
        return words, last

    def format_completion(self, item: CompletionItem[Any]) -> str:
        """One item, less what bash takes for words of their own."""
        return f"{item.type},{item.value.removeprefix(self._before)}"
