"""Names that datasets' own tests import from ``utils``."""

from __future__ import annotations

import pytest

require_pil = pytest.mark.usefixtures()
require_torchcodec = pytest.mark.skip(reason="sound is not used here")


def xfail_if_500_502_http_error(test: object) -> object:
    """Ours has no such hiccups: what fails, fails."""
    return test


def for_all_test_methods(*decorators: object) -> object:
    return lambda cls: cls
