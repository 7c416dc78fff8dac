"""The HTML report: what it says, and that names stay text."""

from __future__ import annotations

import base64
import hashlib
import re
from itertools import pairwise
from pathlib import Path

import pytest
from pages import HOSTILE, Parsed, hostile_page, page, place, region, report
from test_drawing import check

import onnxfuse
from onnxfuse.outcome import Compared, Examined, Exit, Failure, Judgement, Outcome
from onnxfuse.records import (
    Counts,
    Difference,
    Equivalence,
    RegionError,
    Spread,
    Verification,
)
from onnxfuse.refusal import Code
from onnxfuse.report.drawing import draw
from onnxfuse.report.page import percent, render

FIXTURES = Path(__file__).parent.parent / "fixtures"

# What the page says.


def test_totals_are_told_before_and_after():
    text = Parsed(page()).text
    for told in ("9 → 5", "4 → 2", "2,000 → 1,500", "500,000 → 400,000", "40,000 → 30,000"):
        assert told in text
    assert "−20 %" in text


def test_a_plan_leaves_out_bytes_and_says_would():
    plain = region(error=None, ranges=(), ranges_after=())
    after = Counts(5, 2, 0, 1, 2)
    found = report([plain], planned=True, after=after, verification=None)
    text = Parsed(page(found, "explain")).text
    assert "File size" not in text
    assert "Would be fused" in text
    assert "Would become" in text
    assert "a plan reads no kernel" in text


def test_a_region_has_its_expression_error_counts_and_names():
    parsed = Parsed(page())
    for told in ("Conv3×3 + Conv1×1 + BN", "0.95×", "163,840", "147,456", "0.59", "1×8×9×9"):
        assert told in parsed.text
    codes = parsed.inside("code")
    assert {"conv3", "conv1", "bn", "add", "sum", "sum_fused"} <= set(codes)
    assert "3×3 8→8" in parsed.inside("text")


def test_an_error_of_nothing_is_exact():
    exact = RegionError(0.0, 1e-9, 0.0, 0.0, ((1, 2),))
    assert "error exact" in Parsed(page(report([region(error=exact)]))).text


def test_ranges_are_shown_with_why_they_matter():
    text = Parsed(page()).text
    for told in ("kernel_before", "kernel_after", "1.5×", "4.0×", "one scale", "64 of the 256"):
        assert told in text


def test_a_kernel_of_zeros_has_no_ratio():
    nothing = (Spread("zeros", 0.0, 0.0, 0.0),)
    text = Parsed(page(report([region(ranges=nothing, ranges_after=nothing)]))).text
    assert "zeros" in text
    assert "Before quantisation" not in text


def test_places_left_alone_are_grouped_by_reason_with_advice():
    kept = [place("1"), place("2", Code.STRIDE), place("3"), place("4", Code.GRAPH_OUTPUT)]
    text = Parsed(page(report(refusals=kept))).text
    assert "Left alone 4" in text
    assert text.index("cost 2") < text.index("graph-output 1")
    assert "remove the graph output if nobody needs it" in text
    assert "it would be dearer3" in text
    assert "Conv1×1∘Conv3×3" in text


def test_borders_and_approximations_are_told():
    error = RegionError(1e-15, 1e-12, 1e-7, 1e-7, ((1, 2),), border=0.25)
    text = Parsed(page(report([region(constant="plane", approximate=True, error=error)]))).text
    assert "convolution of ones" in text
    assert "approximate at the border" in text
    assert "0.25 of the output's RMS" in text


def test_a_region_without_a_drawing_lists_its_nodes():
    bare = region(drawn=(), drawn_after=(), nodes=("move/1", "move/2"), ranges=(), ranges_after=())
    parsed = Parsed(page(report([bare])))
    assert {"move/1", "move/2"} <= set(parsed.inside("code"))
    assert "Not drawn" in parsed.text


def test_budgets_sizes_uncounted_work_and_notes_are_told():
    budgets = (Judgement("bytes", 40_000, 30_000, "onnxfuse.toml"), Judgement("macs", 1, 2, "flag"))
    found = report(
        assumed={"x": (1, 3, None, 224)}, before=Counts(9, 4, 1, 2, 3, 4, uncounted=2),
        verification=Verification("not-run", notes=("no memory",)),
    )  # fmt: skip
    text = Parsed(page(found, "check", budgets=budgets, gate=True)).text
    for told in ("40,000, at most 30,000", "exceeded", "within", "onnxfuse.toml", "x 1×3×?×224",
                 "2 operators is not in the MACs", "no memory", "not run"):  # fmt: skip
        assert told in text
    assert "1 region not fused, 1 budget exceeded" in text


@pytest.mark.parametrize(
    ("code", "told"),
    [(Exit.USAGE, "Not usable"), (Exit.UNPROVED, "Not proved equal"), (130, "Interrupted")],
)
def test_a_failure_is_told(code, told):
    failed = Examined("m.onnx", failure=Failure(Exit(code), "it went wrong"))
    text = Parsed(render(Outcome("fuse", (failed,), version="1"))).text
    assert told in text
    assert "it went wrong" in text


def test_several_files_have_an_overview_with_findings_first():
    fine = Examined("fine.onnx", report([]), gate=True)
    found = Examined("found.onnx", report(), gate=True)
    failed = Examined("failed.onnx", failure=Failure(Exit.USAGE, "no such file"))
    parsed = Parsed(render(Outcome("check", (fine, found, failed), version="1", notes=("Hm.",))))
    assert "2 of 3 models need attention" in parsed.text
    assert "Hm." in parsed.text
    names = [code for code in parsed.inside("code") if code.endswith(".onnx")]
    assert names == ["found.onnx", "failed.onnx", "fine.onnx"] * 2


def test_nothing_at_all_still_makes_a_page():
    assert "0 models examined" in Parsed(render(Outcome("check"))).text
    assert "byte for byte" in Parsed(page(report([]))).text


def test_compared_models_are_told():
    equivalence = Equivalence("different", ("x:1",), (Difference("y", False, 0.5, 2, 1e-6, "NaN"),))
    compared = Compared("a.onnx", "b.onnx", equivalence)
    text = Parsed(render(Outcome("verify", (), compared, "1"))).text
    for told in ("The models differ", "a.onnx", "b.onnx", "5.0e-01", "NaN", "different"):
        assert told in text


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [(5, 5, ""), (0, 3, ""), (5, 1, "−80 %"), (839, 2, "−99.8 %"), (4, 0, "−100 %"),
     (1000, 993, "−0.7 %"), (10, 35, "+250 %")],
)  # fmt: skip
def test_changes_in_percent(before, after, told):
    assert percent(before, after) == told


def test_a_page_is_the_same_every_time():
    outcome = Outcome("fuse", (Examined("m", report([region(str(n)) for n in range(5)])),))
    assert render(outcome) == render(outcome)


# What the page must not do.


def test_hostile_names_stay_text():
    text = hostile_page()
    assert text.encode()
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    parsed, usual = Parsed(text), Parsed(page(report(refusals=[place()])))
    assert parsed.tags.count("script") == parsed.tags.count("style") == 1
    assert "img" not in parsed.tags
    assert set(parsed.tags) <= set(usual.tags) | {"nav", "ul", "thead"}
    assert not [a for _, attrs in parsed.attributes for a in attrs if a.startswith("on")]
    known = {attribute for _, attrs in usual.attributes for attribute in attrs}
    assert {a for _, attrs in parsed.attributes for a in attrs} <= known | {"colspan", "data-title"}
    codes = "".join(parsed.inside("code"))
    assert HOSTILE[0] in codes
    assert "\\u202e" in codes
    assert "line\\nbreak\\ttab\\r\\x00nul" in codes
    assert "\\ud800" in codes
    assert "{{ 7 * 7 }}" in codes


@pytest.mark.parametrize("make", [page, hostile_page])
def test_nothing_is_loaded_and_links_lead_to_the_page_itself(make):
    parsed = Parsed(make())
    ids = parsed.all("id")
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"[a-z0-9-]+", one) for one in ids)
    targets = parsed.all("href")
    assert targets
    assert all(target.startswith("#") and target[1:] in ids for target in targets)
    for attribute in ("src", "srcset", "action", "style", "data", "xlink:href", "ping", "poster"):
        assert parsed.all(attribute) == []
    for text in parsed.inside("style") + parsed.inside("script"):
        assert not re.search(r"url\(|@import|https?:|fetch\(|XMLHttp|innerHTML|eval\(", text)


def test_the_policy_admits_this_style_and_script_alone():
    parsed = Parsed(page())
    content = next(a["content"] for _, a in parsed.attributes if "http-equiv" in a)
    assert content.startswith("default-src 'none';")
    assert "unsafe" not in content
    for tag in ("style", "script"):
        text = "".join(parsed.inside(tag))
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in content


def test_headings_are_in_order_and_landmarks_are_there():
    kept = report(refusals=[place()])
    text = render(
        Outcome("check", (Examined("a", kept, gate=True), Examined("b", kept)), None, "1")
    )
    parsed = Parsed(text)
    levels = [int(tag[1]) for tag in parsed.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert {"main", "header", "footer", "nav", "search"} <= set(parsed.tags)
    assert parsed.all("lang") == ["en"]


def luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1])
def test_text_and_edges_stand_out_in_both_themes(theme):
    style = "".join(Parsed(page()).inside("style"))
    found = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", style)
    colours = {name: pair[theme] for name, *pair in found}
    groups = ["conv", "affine", "sum", "pool", "border", "other"]
    for back in ("page", "card", *groups):
        assert contrast(colours["ink"], colours[back]) >= 7
    for text in ("quiet", "accent", "good-ink", "warn-ink"):
        assert contrast(colours[text], colours["card"]) >= 4.5
        assert text != "quiet" or contrast(colours[text], colours["page"]) >= 4.5
    for tone in ("good", "warn", "bad"):
        assert contrast(colours[f"{tone}-ink"], colours[tone]) >= 4.5
    for edge in (*(f"{one}-line" for one in groups), "old", "new", "wire"):
        assert contrast(colours[edge], colours["card"]) >= 3


@pytest.mark.parametrize(
    "path",
    ["pytorch/dbb_k3_s1.ts", "pytorch/bsconv_s.ts", "keras/dbb_s1_bias.tf2onnx",
     "keras/acnet_k3_s2.tf2onnx-dyn", "paddle/dbb_assign_s1.default-dyn"],
)  # fmt: skip
def test_real_reports_make_sound_pages(path):
    found = onnxfuse.fuse(FIXTURES / f"{path}.onnx")[1]
    for one in [*found.regions, *found.refusals]:
        check(draw(one.drawn))
    for one in found.regions:
        check(draw(one.drawn_after))
        made = [name for operator in one.drawn for name in operator.outputs]
        assert len(made) == len(set(made))
    parsed = Parsed(page(found))
    codes = set(parsed.inside("code"))
    for one in found.regions:
        assert {*one.nodes, one.node, one.expression} <= codes
