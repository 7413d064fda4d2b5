"""Forms, parsed strictly into a contract: a route gets a typed object or does not run."""

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter, Depends, Request
from fastapi.exceptions import RequestValidationError
from fastapi.params import Depends as Dependency
from pydantic import BaseModel, ValidationError

from services.runtime.errors import InvalidInput
from services.web.visitors import CSRF_FIELD, check_form, read_form

F = TypeVar("F", bound=BaseModel)


class FormNotText(InvalidInput):
    """A field contains a character that the store cannot keep."""

    hint = "Leave NUL characters and lone surrogates out."


def build_pages() -> APIRouter:
    """A router for pages: every form must carry its CSRF token, and no route is in the api's document."""
    return APIRouter(include_in_schema=False, dependencies=[Depends(check_form)])


def as_list(value: object) -> object:
    """A field that may be sent several times, as a list even where it is sent once."""
    return value if isinstance(value, list) else [value]


def check_text(what: str, *values: str) -> None:
    """Pass text that the store can keep. Errors: FormNotText (422)."""
    if any("\0" in value for value in values):
        raise FormNotText(f"{what} holds a NUL character")
    if any("\ud800" <= character <= "\udfff" for value in values for character in value):
        raise FormNotText(f"{what} holds half a character")


def form_of(contract: type[F]) -> Dependency:
    """A dependency that reads the form: `body: Annotated[Contract, form_of(Contract)]`.

    Empty fields are left out, line ends become one character, and repeated names become a list.

    Errors: RequestValidationError, FormUnreadable, FormNotText (422).
    """

    async def read(request: Request) -> F:
        form = await read_form(request)
        given: dict[str, str | list[str]] = {}
        for name in form:
            values = [v.replace("\r\n", "\n") for v in form.getlist(name) if isinstance(v, str) and v != ""]
            check_text(f"the field {name[:100]!r}", name, *values)
            if name != CSRF_FIELD and values:
                given[name] = values[0] if len(values) == 1 else values
        try:
            return contract.model_validate(given)
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from None

    dependency: Callable[[Request], Coroutine[Any, Any, F]] = read
    form: Dependency = Depends(dependency)
    return form
