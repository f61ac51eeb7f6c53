"""The commands that the documents show: lines of shell blocks, indented or fenced, and inline code."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    "README.md", "ARCHITECTURE.md", "THREAT_MODEL.md", *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))
)
LEADS = r"(?:[$#] |[\w./-]*/|exec )?"


def shell_blocks(text: str) -> list[str]:
    """The shell code of one document."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    indented = re.findall(r"^ {4}(.*)$", outside, re.MULTILINE)
    return [block for language, block in fences if language in ("sh", "console")] + indented


def commands_of(text: str) -> list[str]:
    """Every `seedproof …` command, without the marks of what may be left out."""
    joined = "\n".join(shell_blocks(text)).replace("\\\n", " ")
    lines = re.findall(rf"^{LEADS}(seedproof .*?)(?: +# .*|&)?$", joined, re.MULTILINE)
    inline = [" ".join(found.split()) for found in re.findall(r"`(seedproof [^`]+)`", text)]
    return [re.sub(r"[\[\]…]|\.\.\.", "", line) for line in [*lines, *inline]]


def all_commands() -> list[str]:
    """Those of all documents, each once."""
    return list(dict.fromkeys(line for name in DOCUMENTS for line in commands_of((ROOT / name).read_text())))
