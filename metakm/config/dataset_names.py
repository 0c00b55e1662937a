"""Several datasets in one setting, from which tasks are drawn alternately; see `metakm.data.alternating`."""

from __future__ import annotations

from metakm.errors import UserError

SEPARATOR = "+"
"""Between their names."""


def dataset_names(name: str) -> tuple[str, ...]:
    """The datasets of a run, by what its config calls them.

    Raises:
        UserError: no text; or a dataset that is named twice, which would only change its share.
    """
    if not isinstance(name, str):
        raise UserError(
            f"Expected dataset to be a name, or several joined by {SEPARATOR!r}, such as flowers+grocery-store, got "
            f"{name!r}; write it as one text"
        )
    names = tuple(name.split(SEPARATOR))
    if twice := [each for each in dict.fromkeys(names) if names.count(each) > 1]:
        raise UserError(f"Expected each dataset once, got {twice[0]!r} {names.count(twice[0])} times; name it once")
    return names
