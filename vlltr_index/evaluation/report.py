"""Rendering of the report as one HTML document, without scripts, external links, or anything to fetch.

Charts are SVG elements that the template writes, not pictures of a plotting library: their colours are variables of
the style sheet (light, dark), their text is real text, and a chart takes a few kilobytes. Every value is escaped by the
template, inside SVG too.
"""

from __future__ import annotations

from base64 import b64encode
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from vlltr_index.data.decoding import open_image
from vlltr_index.embedding.vectors import load_sources
from vlltr_index.errors import InputError, MissingStepError
from vlltr_index.evaluation.charts import Chart, accuracy_chart, gain_chart, loss_chart, reliability_chart
from vlltr_index.evaluation.records import Curves, Gains, Measured, Missing, Report, Thumbnail
from vlltr_index.wording import NO_DIFFERENCE, NOTHING_KNOWN, UNKNOWN, plural, shown

if TYPE_CHECKING:
    from torch import Tensor

    from vlltr_index.recognition.model import Model
    from vlltr_index.schemas.records import ClassScore
    from vlltr_index.store.snapshot import Snapshot

SIDE = 144
"""Longer side of a thumbnail in pixels: twice the size that is shown, for screens of high density."""

_CARDS = {
    "many": "many (100 or more training images)",
    "medium": "medium (21 to 99)",
    "few": "few (20 or fewer)",
    "few5": "few5 (5 or fewer, part of few)",
    "new": "new (added after training)",
}


def render(report: Report) -> str:
    """Render the report as an HTML document."""
    template = environment("vlltr_index.evaluation").get_template("report.html")
    measured = report.measured
    rows = measured.evaluation.rows if isinstance(measured, Measured) else {}
    return template.render(report=report, charts=_charts(report), method=next(iter(rows), ""), shots=_CARDS)


@cache
def environment(package: str) -> Environment:
    """Make the template environment of a package, with the filters that pages share.

    It escapes every value, and what cannot be seen in a text (`wording.shown`); `|e` is for exact values.
    """
    made = Environment(
        loader=PackageLoader(package),
        autoescape=True,
        finalize=lambda value: shown(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    made.filters["percent"] = lambda value: f"{100 * value:.1f}"
    made.filters["signed"] = lambda value: f"{round(100 * value, 1) + 0.0:+.1f}"
    made.filters["points"] = lambda value: f"{round(value, 3) + 0.0:+.3f}"
    made.filters["count"] = lambda value: f"{value:,}"
    made.filters["plural"] = plural
    made.globals["nothing_known"] = NOTHING_KNOWN
    made.globals["unknown"] = UNKNOWN
    made.globals["no_difference"] = NO_DIFFERENCE
    made.tests["missing"] = lambda part: isinstance(part, Missing)
    return made


def _charts(report: Report) -> dict[str, Any]:
    """Make the charts of those parts that the report has."""
    charts: dict[str, Chart | list[Chart]] = {}
    charts["losses"] = [loss_chart(curves) for curves in report.curves if isinstance(curves, Curves)]
    measured = report.measured
    if isinstance(measured, Measured):
        rows = measured.evaluation.rows
        against = measured.evaluation.against
        drawn = list(rows)[:3]  # the method and its branches
        if against in rows:
            drawn.append(against)
        charts["accuracy"] = accuracy_chart({name: rows[name] for name in dict.fromkeys(drawn)})
        errors = measured.evaluation.calibration_error
        charts["reliability"] = reliability_chart(measured.reliability, errors)
        if isinstance(measured.gains, Gains):
            charts["gain"] = gain_chart(measured.gains.groups, measured.gains.against)
    return charts


def thumbnail(source: bytes | str, side: int = SIDE) -> Thumbnail:
    """Make a small picture, as PNG or JPEG, whichever is smaller.

    Args:
        source: Encoded bytes, or a path. If it cannot be read, the thumbnail has the reason instead of a picture.
        side: Its longer side in pixels, at most.
    """
    try:
        image = open_image(source)
    except InputError:
        return Thumbnail(None, problem="cannot be read")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    encoded = []
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 82})):
        target = BytesIO()
        image.save(target, kind, **options)
        encoded.append((kind, target.getvalue()))
    kind, data = min(encoded, key=lambda pair: len(pair[1]))
    return Thumbnail(f"data:image/{kind};base64,{b64encode(data).decode()}", *image.size)


def nearest_pictures(
    model: Model, snapshot: Snapshot, feature: Tensor, score: ClassScore
) -> tuple[Thumbnail, ...]:
    """Find the 3 nearest training pictures of a class, if the image side decided for it and there are stored vectors.

    Args:
        model: Model of a workspace.
        snapshot: The same commit of the workspace.
        feature: Float [D] of the image, unnormalised as the encoder gives it.
        score: The class's score.
    """
    if not score.by_image:
        return ()
    try:
        ids = [near.image_id for near in model.nearest(feature, score.class_id, 3)]
    except MissingStepError:
        return ()
    return tuple(thumbnail(source) for _, source in load_sources(snapshot, ids))
