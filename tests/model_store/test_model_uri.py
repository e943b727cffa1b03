from __future__ import annotations

import pytest

from model_store.model_uri import ModelUri
from pipeline.user_error import UserError


@pytest.mark.parametrize(
    ("text", "name", "at"),
    [
        ("models:/digits/3", "digits", 3),
        ("models:/a.b_c-d/12", "a.b_c-d", 12),
        ("models:/digits@champion", "digits", "champion"),
        ("models:/digits@my-own", "digits", "my-own"),
    ],
)
def test_a_version_by_number_or_alias(text: str, name: str, at: int | str) -> None:
    uri = ModelUri.parse(text)
    assert (uri.name, uri.at) == (name, at)
    assert str(uri) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "digits/3",
        "models:/digits",
        "models:/digits/latest",
        "models:/digits/-1",
        "models:/digits/3/artifacts",
        "models:/digits@",
        "models:/dig its/3",
        "models:/x'y/3",
        "models://digits/3",
        "models:/m-0123456789",
        "runs:/abc/model",
        "models:/digits/3\n",
    ],
)
def test_what_names_no_version_is_told(text: str) -> None:
    with pytest.raises(UserError, match=r"names no version: give models:/NAME/NUMBER, or models:/NAME@ALIAS"):
        ModelUri.parse(text)
