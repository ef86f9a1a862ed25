"""A size that is found at bind."""

from __future__ import annotations


class AutoType:
    """The type of :data:`Auto`; there is one value of it, also after copying and pickling."""

    _one: AutoType | None = None

    def __new__(cls) -> AutoType:
        """The one value."""
        if cls._one is None:
            cls._one = super().__new__(cls)
        return cls._one

    def __reduce__(self) -> tuple[type[AutoType], tuple[()]]:
        return AutoType, ()

    def __copy__(self) -> AutoType:
        return self

    def __deepcopy__(self, memo: object) -> AutoType:
        return self

    def __repr__(self) -> str:
        return "Auto"


Auto = AutoType()
"""To be inferred from connections, objectives and the first batch."""

Size = int | AutoType
