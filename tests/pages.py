"""Reports made by hand, the worst names there are, and pages taken apart."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

from onnxfuse.outcome import Compared, Examined, Exit, Failure, Judgement, Outcome
from onnxfuse.records import (
    Counts,
    Difference,
    Equivalence,
    Kept,
    Operator,
    OutputError,
    RegionError,
    RegionReport,
    Report,
    Spread,
    Verification,
)
from onnxfuse.refusal import Code
from onnxfuse.report.page import render

VOID = {"meta", "input", "br", "hr", "img", "link"}
HOSTILE = [
    "<script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 1">',
    "</style></title></svg></code><script>window.hacked = 1</script>",
    "javascript:window.hacked=1",
    "' onclick='window.hacked = 1' x='",
    "{{ 7 * 7 }} {% raw %} {{ outcome }}",
    "<!-- --> ]]> &amp; &#60;script&#62;",
    "\u202e txet desrever \u2066\u200b",
    "line\nbreak\ttab\r\0nul\x1b[31m",
    "half a pair \ud800 and the other \udfff",
    "https://example.com/x.js",
    "n" * 3000,
    "",
]


def op(name, kind="Conv", inputs=("x",), detail="", outputs=None):
    return Operator(name, kind, detail, tuple(inputs), outputs or (f"{name}_out",))


def block(n="", source="x"):
    """A RepVGG block: three branches and their sum."""
    return (
        op(f"conv3{n}", inputs=(source,), detail="3×3 8→8"),
        op(f"conv1{n}", inputs=(source,), detail="1×1 8→8"),
        op(f"bn{n}", "BatchNormalization", (source,), "8 channels"),
        op(f"add{n}", "Add", (f"conv3{n}_out", f"conv1{n}_out")),
        op(f"sum{n}", "Add", (f"add{n}_out", f"bn{n}_out")),
    )


def region(n="", **changes):
    drawn = block(n)
    made = RegionReport(
        root=f"sum{n}_out",
        node=f"sum{n}",
        nodes=tuple(operator.name for operator in drawn),
        was="2 Conv, BN, 2 Add",
        became="Conv 3×3",
        expression="Conv3×3 + Conv1×1 + BN",
        before=Counts(5, 2, 1, 688, 163_840),
        after=Counts(1, 1, 0, 584, 147_456),
        error=RegionError(1.8e-15, 6.4e-13, 9.0e-8, 8.55e-8, ((1, 8, 9, 9),)),
        estimate=0.59,
        drawn=drawn,
        drawn_after=(op(f"sum{n}_fused", detail="3×3 8→8", outputs=(f"sum{n}_out",)),),
        ranges=(Spread("kernel_before", 0.1, 0.2, 0.3),),
        ranges_after=(Spread("kernel_after", 0.1, 0.2, 0.8),),
    )
    return replace(made, **changes)


def place(n="", code=Code.COST, **changes):
    drawn = (op(f"kept{n}", inputs=("y",), detail="1×1 8→64"),)
    made = Kept(
        code, f"it would be dearer{n}", f"kept{n}", "Conv1×1∘Conv3×3", ("a", "b"), "t", drawn
    )
    return replace(made, **changes)


def report(regions=None, refusals=(), **changes):
    made = Report(
        "0.1.0",
        False,
        (region(),) if regions is None else tuple(regions),
        tuple(refusals),
        Counts(9, 4, 1, 2_000, 500_000, 40_000),
        Counts(5, 2, 0, 1_500, 400_000, 30_000),
        Verification("passed", ("x:1x8x9x9",), (OutputError("final", 1e-7, 5e-6),)),
    )
    return replace(made, **changes)


def page(found=None, command="fuse", **changes):
    return render(
        Outcome(command, (Examined("a/model.onnx", found or report(), **changes),), None, "0.1.0")
    )


class Parsed(HTMLParser):
    """Tags with their attributes and the text in each; complains about what is not closed."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.stack[-1] if self.stack else "", data))

    @property
    def text(self):
        told = "".join(data for tag, data in self.texts if tag not in ("style", "script"))
        return re.sub(r"\s+", " ", told)

    def inside(self, tag):
        return [data for where, data in self.texts if where == tag]

    def all(self, attribute):
        return [attrs[attribute] for _, attrs in self.attributes if attribute in attrs]


def hostile_page():
    regions, refusals = [], []
    for n, name in enumerate(HOSTILE):
        first = Operator(name, name, name, (name, f"other{n}"), (f"{name}o",))
        second = Operator(name, "Add", "", (f"{name}o",), (name + "end",))
        regions.append(
            region(
                str(n), root=name, node=name, nodes=(name,), was=name, became=name, expression=name,
                drawn=(first, second), drawn_after=(first,), constant=name,
                ranges=(Spread(name, 1, 2, 3),), ranges_after=(Spread(name, 1, 2, 3),),
            )
        )  # fmt: skip
        refusals.append(place(text=name, node=name, expression=name, root=name, drawn=(first,)))
    name = "".join(HOSTILE)
    found = report(
        regions, refusals, assumed={name: (1,)},
        verification=Verification("passed", (name,), (OutputError(name, 1, 2),), (name,)),
    )  # fmt: skip
    files = (
        Examined(name, found, (Judgement(name, 1, 2, name),), output=name),
        Examined(name, failure=Failure(Exit.USAGE, name)),
    )
    compared = Compared(name, name, Equivalence(name, (name,), (Difference(name, True),), (name,)))
    return render(Outcome("check", files, compared, "0.1.0", (name,)))
