"""The options of a command as its sweep's parent run keeps them, in JSON. Pure."""

from __future__ import annotations

import json
from dataclasses import fields
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from sweeps.experiment import SweepOptions
from trainables.errors import BadInputError

S = TypeVar("S", bound=SweepOptions)
STORE = "tracking_uri"  # the option that is not kept: it may hold a password, and a store may move


def format_kept_options(options: SweepOptions) -> str:
    """Return all options but the store as JSON, so that a later version with other defaults finds the same trials."""
    return json.dumps({field.name: getattr(options, field.name) for field in fields(options) if field.name != STORE})


def parse_kept_options(options_type: type[S], text: str, tracking_uri: str) -> S:
    """Return the options that `format_kept_options` has kept, with this store.

    Raises:
        BadInputError: The text holds no options of this class, or they describe no sweep.
    """
    kinds = get_type_hints(options_type)
    names = {field.name for field in fields(options_type)} - {STORE}
    try:
        kept = json.loads(text)
        if not isinstance(kept, dict) or not kept.keys() <= names:
            raise ValueError("they are not options of this version")
        values = {name: convert(value, kinds[name], name) for name, value in kept.items()}
        options = options_type(**values, tracking_uri=tracking_uri)
        options.first_stage()
    except ValueError as error:  # of JSON, of `convert`, or `BadInputError`
        name = options_type.experiment
        raise BadInputError(
            f"the options that the tracking store keeps of the last {name} sweep cannot be used ({error}); run the "
            f"sweep again, or give its options: analysis/report.py {name} --seeds …"
        ) from None
    return options


def convert(value: Any, kind: Any, name: str) -> Any:
    """Return a value that was read from JSON as an option of this type has it.

    Raises:
        ValueError: The option cannot have this value.
    """
    if get_origin(kind) is tuple and isinstance(value, list):
        return tuple(convert(item, get_args(kind)[0], name) for item in value)
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError(f"{name} is {value!r}")
        return value
    if isinstance(kind, UnionType):  # one type or None
        return None if value is None else convert(value, get_args(kind)[0], name)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{name} is {value!r}")
    return value
