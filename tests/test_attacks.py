"""A short selection of the catalogue of attacks; `make attacks` tries all of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.attacks.classes import CLASSES, LONG
from tests.attacks.ground import Ground, ground
from tests.hub import LoopbackHub


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, _running_hub: LoopbackHub) -> Iterator[Ground]:
    with ground(tmp_path_factory.mktemp("attacks"), full=False) as place:
        yield place


@pytest.mark.parametrize("name", [name for name in CLASSES if name not in LONG])
def test_the_app_holds(place: Ground, name: str) -> None:
    tries = list(CLASSES[name](place))
    assert len(tries) > 1
    assert not (lost := [one.what for one in tries if not one.held]), "\n".join(lost)
