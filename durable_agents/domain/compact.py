"""How do values that go into every turn's history stay small?

History is paid for by the byte and read by people: what has its default value says nothing and is left out.
"""

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer


class Compact(BaseModel):
    """A frozen model whose JSON leaves out defaults, except `kind`, by which unions are told apart."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_serializer(mode="wrap")
    def _without_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, object]:
        fields = type(self).model_fields
        dumped: dict[str, object] = dump(self)
        return {name: value for name, value in dumped.items() if name == "kind" or getattr(self, name) != fields[name].default}
