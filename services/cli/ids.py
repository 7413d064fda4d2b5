"""Ids as people type them: whole, or only the end, which is all that lists and pages show.

A short id is looked for among the newest rows of its list. Answers and groups have no list of their own: their ids are
typed whole.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final, TypeAlias
from uuid import UUID

import typer

from services.cli.client import ApiClient
from services.runtime.errors import Conflict, NotFound

NUM_SHOWN: Final = 8  # characters of an id in a list; the same on the pages
NUM_NEWEST: Final = 1_000  # rows that a short id is looked for among
SHORT: Final = re.compile(r"[0-9a-f-]{4,35}")


class ShortIdUnknown(NotFound):
    """None of the newest rows has an id with this end."""

    title = "No such id"


class ShortIdAmbiguous(Conflict):
    """Several of the newest rows have ids with this end."""

    title = "Ambiguous id"
    hint = "Type more of its end, or all of it."


@dataclass(frozen=True)
class Id:
    """An id as it was typed. noun: what it is of, as the api names their list."""

    text: str
    noun: str

    def find(self, api: ApiClient) -> UUID:
        """The whole id. Errors: ShortIdUnknown (404), ShortIdAmbiguous (409), ApiProblem, ApiUnreachable."""
        if (whole := _read_whole(self.text)) is not None:
            return whole
        ids = [str(item["id"]) for item in api.pages(f"/v1/{self.noun}", NUM_NEWEST)]
        found = [one for one in ids if one.endswith(self.text)]
        if not found:
            listing = "the page /evaluations" if self.noun == EVALUATIONS else f"`preceptor {self.noun} list`"
            raise ShortIdUnknown(
                f"none of the newest {NUM_NEWEST:,} {self.noun} has an id that ends in {self.text}",
                hint=f"They are listed by {listing}. Older ones are found by their whole id only.",
            )
        if len(found) > 1:
            raise ShortIdAmbiguous(f"{len(found)} {self.noun} have ids that end in {self.text}: {', '.join(found)}")
        return UUID(found[0])


def shorten(text: str) -> str:
    """The end of an id, its random part: ids made close together still look different. Other texts stay."""
    return text if _read_whole(text) is None else text[-NUM_SHOWN:]


def _read_whole(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _reader(noun: str) -> Callable[[str], Id]:
    def read(text: str) -> Id:
        if _read_whole(text) is None and not SHORT.fullmatch(text.lower()):
            raise typer.BadParameter(f"{text!r} is neither an id nor the end of one, of 4 characters or more")
        return Id(text.lower(), noun)

    return read


EVALUATIONS: Final = "evaluations"
read_task, read_rollout, read_expert = _reader("tasks"), _reader("rollouts"), _reader("experts")
read_consultation, read_draw, read_correction = _reader("consultations"), _reader("draws"), _reader("corrections")
read_person, read_key, read_session = _reader("persons"), _reader("keys"), _reader("sessions")
read_evaluation, read_measurement = _reader(EVALUATIONS), _reader("measurements")

TaskId: TypeAlias = Annotated[Id, typer.Argument(parser=read_task)]
RolloutId: TypeAlias = Annotated[Id, typer.Argument(parser=read_rollout)]
ExpertId: TypeAlias = Annotated[Id, typer.Argument(parser=read_expert)]
PersonId: TypeAlias = Annotated[Id, typer.Argument(parser=read_person)]
KeyId: TypeAlias = Annotated[Id, typer.Argument(parser=read_key)]
SessionId: TypeAlias = Annotated[Id, typer.Argument(parser=read_session)]
