"""The fenced code blocks of the README, of CONTRIBUTING and of the pages in docs/."""

import re
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@dataclass(frozen=True)
class Block:
    """Code of one language, and the line of the page before its first one."""

    page: Path
    language: str
    text: str
    line: int

    @property
    def file(self):
        """The file that a Python block is to be written to, as its first line says; None for a block to run."""
        named = re.match(r"# (\w+\.py)\n", self.text)
        return named[1] if named else None


def page_id(page):
    return page.relative_to(ROOT).as_posix()


def blocks(page, *languages):
    """The blocks of a page in their order, of some languages or of all."""
    text = page.read_text()
    found = re.finditer(r"^( *)```(\S*)[^\n]*\n(.*?)^\1```$", text, re.DOTALL | re.MULTILINE)
    every = [Block(page, m[2], textwrap.dedent(m[3]), text[: m.start(3)].count("\n")) for m in found]
    return [block for block in every if not languages or block.language in languages]


def block_with(word, page):
    (found,) = [block for block in blocks(page, "python") if word in block.text]
    return found


def commands(page):
    """The words of each command of a page's shell blocks; `a && b` are two."""
    lines = "".join(block.text for block in blocks(page, "bash")).replace("\\\n", " ").splitlines()
    parts = [part for line in lines for part in line.split(" && ")]
    return [words for part in parts if (words := shlex.split(part, comments=True))]


def run_blocks(page):
    """Write the page's files and run its other Python blocks, one after the other, sharing their names.

    Long loops take two turns: `range(100)` is `range(2)`.
    """
    names = {"__name__": "__main__"}
    for block in blocks(page, "python"):
        if block.file:
            Path(block.file).write_text(block.text)
        else:
            short = re.sub(r"\brange\(\d\d+\)", "range(2)", block.text)
            exec(compile("\n" * block.line + short, str(page), "exec"), names)
