"""One real sandbox for the tests of experts that run code."""

from collections.abc import Iterator

import pytest

from tests.sandbox.conftest import SandboxServer


@pytest.fixture(scope="session")
def sandbox_url() -> Iterator[str]:
    """The URL of a running sandbox that asks for the key `key`."""
    with SandboxServer(key="key") as server:
        yield f"http://127.0.0.1:{server.port}"
