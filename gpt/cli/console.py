"""A rich Console that shows text as it is: names and paths with brackets, backslashes or colons are no markup."""

from typing import Any

from rich.console import Console
from rich.text import Text

from octavo.gpt.quoting import escaped, is_text


class PlainConsole(Console):
    """No markup and no emoji codes, and control characters are shown escaped. Style is for `Text` alone."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(escaped(text, is_text), **options)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would end the process with exit code 1
