from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.neighbours.browser import Browser, Chromium, Firefox
from tests.neighbours.elsewhere import Elsewhere
from tests.support import need


@pytest.fixture(scope="module", params=[Chromium, Firefox], ids=["chromium", "firefox"])
def browser(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser of either kind, for all the tests of a module."""
    kind = request.param
    need(kind.name)
    made = kind(tmp_path_factory.mktemp(kind.name))
    yield made
    made.close()


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    """Another site than the daemon's."""
    made = Elsewhere()
    yield made
    made.close()
