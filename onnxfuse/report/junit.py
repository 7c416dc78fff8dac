"""JUnit XML, as GitLab and Jenkins read it: a suite for each model, a case for each verdict."""

from __future__ import annotations

import re
from collections import Counter
from itertools import groupby
from xml.etree import ElementTree as ET

from onnxfuse.outcome import Outcome, Verdict

_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def rendered(outcome: Outcome) -> str:
    """The verdicts as ``<testsuites>``; what was only noted is a case that passed."""
    verdicts = list(outcome.verdicts())
    root = ET.Element("testsuites", {"name": f"onnxfuse {outcome.command}"} | _counts(verdicts))
    for file, held in groupby(verdicts, key=lambda verdict: verdict.file):
        mine = list(held)
        suite = ET.SubElement(root, "testsuite", {"name": _text(file)} | _counts(mine))
        for verdict in mine:
            _case(suite, verdict, outcome.command)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _counts(verdicts: list[Verdict]) -> dict[str, str]:
    found = Counter(verdict.status for verdict in verdicts)
    return {
        "tests": str(len(verdicts)),
        "failures": str(found["failed"]),
        "errors": str(found["error"]),
        "skipped": "0",
    }


def _case(suite: ET.Element, verdict: Verdict, command: str) -> None:
    place = _text(verdict.file)
    case = ET.SubElement(
        suite,
        "testcase",
        classname=f"onnxfuse.{command}.{place.replace('.', '_')}",  # readers split it at its dots
        name=_text(verdict.name),
        file=place,
        time="0",
    )
    if verdict.status in ("failed", "error"):
        kind = "failure" if verdict.status == "failed" else "error"
        ET.SubElement(case, kind, message=_text(verdict.text)).text = _text(verdict.text)
    elif verdict.text:
        ET.SubElement(case, "system-out").text = _text(verdict.text)


def _text(text: str) -> str:
    """A text that XML can hold."""
    return _FORBIDDEN.sub("\ufffd", text)
