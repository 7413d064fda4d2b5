"""The documentation's own example is an expert."""

import asyncio
import re
from pathlib import Path

from fastapi import FastAPI

from services.contracts.experts import ConformanceReport
from services.experts.protocol.client import ExpertClient
from services.experts.protocol.conformance import check
from tests.serving import serve

DOCS = Path(__file__).resolve().parents[3] / "docs" / "bring-an-expert.md"


def test_the_expert_in_the_documentation_conforms_in_every_case() -> None:
    source = re.search(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert source is not None
    namespace: dict[str, object] = {}
    exec(compile(source[1], "brevity.py", "exec"), namespace)  # noqa: S102 -- our own documentation
    app = namespace["app"]
    assert isinstance(app, FastAPI)

    async def go(url: str) -> ConformanceReport:
        async with ExpertClient(["127.0.0.0/8"]) as client:
            return await check(url, None, client)

    with serve(app) as url:
        report = asyncio.run(go(url))
    assert report.passed
    assert [c.name for c in report.checks if not c.passed] == []
    assert any(c.name == "answers score" and "a result in" in c.detail for c in report.checks)
