"""Equations for MkDocs: turns blocks of LaTeX into MathML, which browsers show without a script."""

import re
from typing import Any

from latex2mathml.converter import convert

_BLOCK = re.compile(r"^```math\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    return _BLOCK.sub(lambda block: convert(" ".join(block[1].split()), display="block"), markdown)
