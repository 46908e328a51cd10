"""Parameters as fields of pydantic models: the body of the API, the shapes of a load profile."""

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, WithJsonSchema

from contract.parameters import Parameter
from contract.rules import Adapters, Choice

# JSON schema's words for bounds, and pydantic's
BOUNDS = {"minimum": "ge", "maximum": "le", "minLength": "min_length", "maxLength": "max_length"}


def field(parameter: Parameter, required: bool = False) -> tuple[Any, Any]:
    """Type and field with the bounds that hold in every geometry, and every name the parameter goes by."""
    rule = parameter.rule
    kind: Any = Literal[rule.names] if isinstance(rule, Choice) else rule.python
    bounds = {BOUNDS[name]: bound for name, bound in rule.schema().items() if name in BOUNDS}
    about: dict[str, Any] = {"description": f"{parameter.help or parameter.label + '.'} Allowed: {rule.words()}."}
    if parameter.aliases:
        about["validation_alias"] = AliasChoices(parameter.name, *parameter.aliases)
    if isinstance(rule, Adapters):  # in all the forms that `contract.adapters` reads
        return Annotated[Any, WithJsonSchema({"type": "array"} | rule.schema())], Field(None, **about)
    if required:
        return kind, Field(**bounds, **about)
    return Annotated[kind, Field(**bounds)] | None, Field(None, **about)
