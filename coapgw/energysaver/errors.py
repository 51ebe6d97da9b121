"""What is wrong with a template, or with a payload for it."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from coapgw.errors import CoapgwError, Untranslatable


@attrs.frozen
class Mistake:
    """One mistake of a template: where (a JSON pointer, RFC 6901) and a sentence."""

    path: str
    sentence: str

    def __str__(self) -> str:
        """Put both in a line."""
        return f"{self.path or 'the template'}: {self.sentence}"


class TemplateInvalid(CoapgwError):
    """A text that is no template; it has every mistake that was found."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        """Take one mistake at least."""
        super().__init__("\n".join(map(str, mistakes)))
        self.mistakes = mistakes


class PayloadDoesNotFit(Untranslatable):
    """A payload that the template cannot translate."""

    def __init__(self, asset: str, error: str) -> None:
        """Name the asset that could not be had, and why."""
        super().__init__(f"Asset path:{asset}, Error: {error}")
