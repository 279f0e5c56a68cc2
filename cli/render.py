"""Lines of the reports that `Context.run`, `show` and `step` print by themselves, one function a kind.

A new report gets its function here, and a place in `_LOOKS`. Answers are in `answers.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vlltr_index.cli.answers import prediction_lines
from vlltr_index.cli.terminal import percent, table, terminal_width
from vlltr_index.schemas.fingerprint import short
from vlltr_index.schemas.records import FEW_UNITS
from vlltr_index.wording import plural, preview, units_of_pictures

if TYPE_CHECKING:
    from rich.table import Table

    from vlltr_index.anchors.selection import SelectReport
    from vlltr_index.classes.effect import Effect
    from vlltr_index.classes.relabelling import RelabelReport
    from vlltr_index.classes.report import ChangeReport, ClassState
    from vlltr_index.evaluation.metrics import EvaluationReport, Interval
    from vlltr_index.pipelines.build_index import IndexReport
    from vlltr_index.pipelines.embed import EmbedReport
    from vlltr_index.pipelines.history import DiffReport, PruneReport, RollbackReport
    from vlltr_index.pipelines.import_release import ImportReport
    from vlltr_index.pipelines.ingest import IngestReport
    from vlltr_index.pipelines.predict import PredictReport
    from vlltr_index.pipelines.report import ReportFile
    from vlltr_index.pipelines.review.queue import Entry, Review
    from vlltr_index.pipelines.status import StatusReport
    from vlltr_index.pipelines.taxonomy import TaxonomyReport
    from vlltr_index.pipelines.train_baseline import BaselineRow
    from vlltr_index.pipelines.train_lgr import RefitReport
    from vlltr_index.pipelines.training import TrainReport
    from vlltr_index.recognition.exported.writing import ExportReport
    from vlltr_index.schemas.records import Prediction
    from vlltr_index.store.workspace import Workspace

_BINS = ("overall", "each class", "many", "medium", "few", "new")  # more do not fit into 80 columns
_RESULTS = ("EvaluationReport", "ReportFile", "Prediction")  # what their commands are run for
_CHANGES = 10  # pictures with another class that are listed
_LEFT_OUT = 20  # entries of a file of corrections that are named
_LISTED = 20  # pictures to look at that are listed
_SHOWN = 3  # classes of a change that are reported one by one
_UNCHOSEN = {"scale", "text_fp", "parts", "frequency"}  # settings of baselines that are not one of several


def report_lines(report: Any) -> list[str | Table]:
    """Return a report as lines of text and tables; of several reports those of each."""
    if isinstance(report, list):
        return [line for one in report for line in report_lines(one)]
    return _LOOKS[type(report).__name__](report)


def remarks(report: Any) -> list[str]:
    """Return what is said before a report's lines, and is left out under `-q`."""
    return _REMARKS[type(report).__name__](report) if type(report).__name__ in _REMARKS else []


def is_result(report: Any) -> bool:
    """Say whether a report, or each of a list, is what its command is run for, and so is shown under `-q` too."""
    return all(type(one).__name__ in _RESULTS for one in (report if isinstance(report, list) else [report]))


def workspace_line(workspace: Workspace) -> str:
    """Say that a workspace was made, or was there already."""
    if workspace.history.last().id:
        return f"The workspace {workspace.address} is there already, and stays as it is."
    return f"Made the workspace {workspace.address} (recipe {workspace.recipe.name})."


def _ingest(report: IngestReport) -> list[str]:
    by_split = ", ".join(f"{name} {count:,}" for name, count in sorted(report.splits.items()))
    same = "there before" if report.kind == "images" else "repeated or there before"
    if report.moved is None:
        first = f"{report.added:,} added"
    else:
        first = f"{report.moved:,} moved, {report.gone:,} gone, {report.added:,} new"
    more = [(report.updated, "updated"), (report.unchanged, same)]
    said = ", ".join([first, *(f"{count:,} {what}" for count, what in more if count)])
    lines = ["A dry run, which commits nothing:"] if report.dry_run else []
    lines += [f"{report.source}: {report.kind} {said}" + (f" ({by_split})" if by_split else "") + "."]
    if report.prompts:
        lines.append(f"Made from the class names: {plural(report.prompts, 'prompt')}.")
    lines.append(f"Classes: {report.classes:,}, {report.classes_added:,} of them new.")
    if report.quarantined:
        lines.append(
            f"Kept aside with the reason: {plural(report.quarantined, 'image')} that cannot be read."
        )
    if report.skipped:
        lines.append(f"Left out: {plural(report.skipped, 'entry', 'entries')}.")
    if report.unknown_class:
        unknown = plural(report.unknown_class, "image")
        lines.append(f"Left out, as the workspace has no class of that name: {unknown}.")
    if report.duplicates_across_splits:
        twice = f"{plural(report.duplicates_across_splits, 'image')} ({', '.join(report.duplicates_in)})"
        lines.append(f"Warning: in more than one split, byte for byte: {twice}.")
    lines += _grouped(report)
    if report.in_two_classes:
        lines.append(
            f"Warning: in two classes, byte for byte: {plural(report.in_two_classes, 'image')}. "
            "Put each into one of them (vlltr images relabel), or remove a copy. "
            "All of them, once embedded: vlltr review"
        )
    if report.corrected:
        lines.append(f"Kept as corrected, not as the source says: {plural(report.corrected, 'image')}.")
    if report.overruled:
        lines.append(
            "Corrected before and moved or changed since, so that the source counts:"
            f" {plural(report.overruled, 'image')}."
        )
    if report.removed:
        stays = plural(report.removed, "image" if report.kind == "images" else "sentence")
        lines.append(f"Stays removed, as it was by hand: {stays}. To bring it back: the same without --sync.")
    lines += [f"  {note}" for note in report.notes]
    return [*lines, f"Next: {report.next_step}"] if report.next_step else lines


def _grouped(report: IngestReport) -> list[str]:
    """Return how many images belong together, by what was said or by when they were taken."""
    lines = []
    images = sum(report.splits.values())
    if report.grouped:
        way = "" if report.grouping == "auto" else f" (--group {report.grouping})"
        some = f"{report.grouped:,} of {plural(images, 'picture')}"
        lines.append(f"In {plural(report.groups, 'group')}, which are held out together{way}: {some}.")
    if report.mixed_groups and report.grouping.startswith("name:"):
        lines.append(
            f"Of several classes: {plural(report.mixed_groups, 'group')}. If their files only have like names, read the"
            " class folder, too: --group 'path:^([^/]+/[^_.]+)'"
        )
    if report.in_bursts:
        lines.append(
            f"{report.in_bursts:,} of {plural(images, 'picture lies', 'pictures lie')} within two seconds of another:"
            " they are held out together (--group seconds:N changes that)."
        )
    return lines


def _taxonomy(report: TaxonomyReport) -> list[str]:
    nodes = f"{plural(report.nodes, 'name')} in the tree of classes"
    return [
        f"{report.source}: {nodes}, {report.changed:,} of them new or moved.",
        f"Classes: {report.classes:,}, {report.placed:,} of them with a parent.",
        *(f"  {note}" for note in report.notes),
    ]


def _import(report: ImportReport) -> list[str]:
    after = f", saved after epoch {report.epoch}" if report.epoch is not None else ""
    lines = [
        f"{report.source}: stage {report.stage} of the release{after}.",
        f"Encoder: {report.encoder}, {report.dim} wide, images of {report.image_size} pixels.",
    ]
    if report.head:
        new = f"{report.classes_added:,} of them new in the workspace"
        lines.append(
            f"Head: {report.classes:,} classes, {new}, weight of the visual branch {report.alpha:g}."
        )
    if report.anchors:
        how = "without their sentences (vlltr select would choose new ones)"
        lines.append(f"Anchors: {report.anchors:,} vectors {how}.")
    return [*lines, *(f"  {note}" for note in report.notes), f"Next: {report.next_step}"]


def _train(report: TrainReport) -> list[str]:
    epochs = f", {plural(report.epochs, 'epoch')}" if report.epochs else ""
    apart = ""
    if report.units is not None and report.units < report.images:
        apart = f" ({units_of_pictures(report.units)})"
    of = f"{plural(report.images, 'image')}{apart} of {plural(report.classes, 'class', 'classes')}"
    lines = [
        f"Trained {report.what} on {of}{epochs}{' (resumed)' if report.resumed else ''}: {report.digest[:16]}"
    ]
    if report.held_images or report.held_classes:
        classes = f" and {plural(report.held_classes, 'class', 'classes')}" if report.held_classes else ""
        lines.append(
            f"Held out of this stage, so that train lgr can choose by what it never saw:"
            f" {plural(report.held_images, 'image')}{classes} (cvlp.hold_out, cvlp.hold_out_classes)"
        )
    return [*lines, *report.notes]


def _embed(report: EmbedReport) -> list[str]:
    lines = [
        f"Embedded {plural(report.sentences, 'sentence')} ({report.sentences_before:,} there before) and"
        f" {plural(report.images, 'image vector')} ({report.images_before:,} there before)."
    ]
    if report.read is not None:
        lines.append(
            f"The sentence model {report.reader} read {plural(report.read, 'sentence')}"
            f" ({report.read_before:,} read before)."
        )
    if report.truncated:
        cut = plural(report.truncated, "sentence was", "sentences were")
        lines.append(f"{cut} longer than the encoder's context of {report.context} tokens, and cut there.")
    if report.unreadable:
        unread = plural(report.unreadable, "image")
        lines.append(f"{unread} could not be read again: kept aside with the reason.")
    return [*lines, *report.notes]


def _select(report: SelectReport) -> list[str]:
    lines = [
        f"Selected {plural(report.anchors, 'anchor')} of {plural(report.sentences, 'sentence')} for"
        f" {plural(report.classes, 'class', 'classes')} ({report.mode}, {plural(report.images, 'image')})."
    ]
    if report.without_images:
        bare = plural(len(report.without_images), "class has", "classes have")
        names = preview(report.without_images)
        lines.append(
            f"{bare} no image to select by (or stage 1 kept them out), and sentences are ranked by text: {names}."
        )
    if report.classes_without_sentences:
        silent = plural(report.classes_without_sentences, "class has", "classes have")
        lines.append(f"{silent} no sentence, and no anchor: they are told by their images alone.")
    return lines


def _index(report: IndexReport) -> list[str]:
    what = f"an index of kind {report.kind}" if report.anchors else "no index"
    return [f"Built {what}: {report.reason}."]


def baseline_line(row: BaselineRow) -> str:
    """Return a baseline with its settings and its note."""
    chosen = ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in row.settings.items()
        if key not in _UNCHOSEN
    )
    facts = "; ".join(filter(None, (chosen, row.note)))
    return f"{row.label}: {facts}" if facts else row.label


def _evaluation(report: EvaluationReport) -> list[str | Table]:
    from vlltr_index.evaluation.verdict import caveats, verdict

    first = caveats(report)
    rest = verdict(report)[len(first) :]
    return [*first, evaluation_table(report), *_rank_tables(report), *difference_lines(report), "", *rest]


def _evaluation_remarks(report: EvaluationReport) -> list[str]:
    return [f"{name}: {note}" for name, note in report.notes.items()]


def evaluation_table(report: EvaluationReport) -> Table:
    """Return a table of rows by bin, with 95 % intervals; of few units without each class counted alike."""
    first = report.rows["vl-ltr"]
    there = set(first.top1) if first.balanced.few else {*first.top1, "each class"}
    columns = [b for b in _BINS if b in there]
    rows = []
    for name, row in report.rows.items():
        found = row.top1 | {"each class": row.balanced}
        values = [found[b] for b in columns]
        cells = [_share(one) + ("" if one.few else f" ±{50 * (one.high - one.low):.1f}") for one in values]
        rows.append([name, *cells])
    title = (
        f"Top-1 on {report.split}: {report.images:,} images, {report.classes:,} classes;"
        f" {report.convention} bounds (many >= 100, few <= 20)"
    )
    return table(title, ["", *columns], rows)


def _share(one: Interval) -> str:
    """Write a share in per cent, or of a few units as a count."""
    return f"{one.count} of {one.images}" if one.few else percent(one.value)


def _rank_tables(report: EvaluationReport) -> list[Table]:
    """Return a table of accuracy by rank, if classes have parents."""
    rows = []
    bins = list[str]()
    for rank, ways in report.ranks.items():
        bins = bins or list(ways["summed"])
        for how, top1 in ways.items():
            cells = [_share(top1[b]) if b in top1 else "-" for b in bins]
            rows.append([rank, how, *cells, f"{top1['overall'].images:,}"])
    title = "By rank: of the best class, and of the most probable name with all that it holds"
    return [table(title, ["rank", "", *bins, "images"], rows, left=2)] if rows else []


def difference_lines(report: EvaluationReport) -> list[str]:
    """Return the paired difference to another row, one line a bin; none if there is no such row."""
    if not report.differences:
        return []
    few = all(d.few for d in report.differences.values())
    unit = "in pictures that are right" if few else "in points [95 % of the paired bootstrap]"
    lines = [f"vl-ltr less {report.against}, {unit}"]
    for name, d in report.differences.items():
        if d.few and name == "balanced":
            continue  # no count of pictures
        shown = "each class" if name == "balanced" else name
        ends = f"{100 * d.value:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]"
        means = " (classes of at most 5 training images)" if name == "few5" else ""
        lines.append(f"  {shown:<10} " + (f"{d.count:+d} of {d.images}" if d.few else ends) + means)
    return lines


def _report_file(report: ReportFile) -> list[str | Table]:
    figures = [] if report.evaluation is None else [*_evaluation(report.evaluation), ""]
    return [*figures, f"Wrote {report.path} ({report.bytes / 2**20:.1f} MiB)."]


def _report_file_remarks(report: ReportFile) -> list[str]:
    lines = [] if report.evaluation is None else _evaluation_remarks(report.evaluation)
    return lines + [f"Not in it: {part.why}. {part.mend}" for part in report.missing]


def _prediction(prediction: Prediction) -> list[str]:
    return prediction_lines(prediction, terminal_width())


def _refit(report: RefitReport) -> list[str]:
    more = ", ".join(report.new_classes[:5]) + (" ..." if len(report.new_classes) > 5 else "")
    alone = "Not recognised, as texts do not predict class means" if report.mute else "Known by text alone"
    lines = [
        f"Trained the head on {plural(report.images, 'image')} of {plural(report.classes, 'class', 'classes')}:"
        f" {report.digest[:16]}",
        f"New in it: {more or 'none'}. {alone}: {plural(report.text_only, 'class', 'classes')}.",
    ]
    effect = effect_lines(report.effect)
    if report.effect.unmeasured:
        effect = ["The new head has not been compared with the one before: vlltr evaluate"]
    return [*lines, *report.notes, *effect, *_warning(report.effect.warning, report.before)]


def _predict(report: PredictReport) -> list[str]:
    before = f", {report.there_before:,} of them before it was stopped" if report.there_before else ""
    unread = f"{plural(report.unreadable, 'picture')} could not be read"
    return [f"Wrote {report.images:,} rows to {report.path}{before}; {unread}."]


def effect_lines(report: Effect) -> list[str]:
    """Return the effect as lines of text."""
    if report.unmeasured:
        return [
            "Accuracy on existing classes was not measured: no training image is held out (vlltr train lgr holds out"
            " images of classes with two groups)."
        ]
    if report.before is None or report.after is None:
        return []
    asked = f"Existing classes on {plural(report.images, 'held-out image')}"
    few = " So few images say little." if report.groups < FEW_UNITS else ""
    before, after = 100 * report.before, 100 * report.after
    return [f"{asked}: balanced accuracy {before:.1f}% before, {after:.1f}% after.{few}"]


def _class(one: ClassState, verb: str) -> str:
    text = "its name" if one.text == "name" else "text"
    alone = "not known yet" if one.text == "none" else f"known by {text} alone"
    how = {
        "trained": "known since training",
        "images": "known by its images alone" if one.text == "none" else f"known by {text} and images",
        "none": "its images wait for vlltr train lgr" if one.images else alone,
    }[one.visual]
    return (
        f"{verb} {one.name!r} (class {one.class_id}): {plural(one.sentences, 'sentence')},"
        f" {plural(one.anchors, 'anchor')}, {plural(one.images, 'image')}, {how}."
        + (f" Nearest by {one.rivals_by}: {', '.join(one.rivals)}." if one.rivals else "")
    )


def _change(report: ChangeReport) -> list[str]:
    verb = "Now" if report.changed else "Still"
    if report.added:
        verb = "Would add" if report.dry_run else "Added"
    told = [_class(one, verb) for one in report.classes[:_SHOWN]]
    if report.added and len(report.classes) > _SHOWN:
        told.append(f"{verb} {len(report.classes) - _SHOWN} more classes.")
    lines = [*told, *report.notes] if report.added else [*report.notes, *told]
    dry = ["A dry run, which commits nothing:"] if report.dry_run else []
    return [
        *dry,
        *lines,
        *effect_lines(report.effect),
        *_warning(report.warning, report.before, report.dry_run),
    ]


def _warning(said: str | None, before: int | None, dry_run: bool = False) -> list[str]:
    """Return a warning of a loss, with the way back to the commit `before`."""
    if said is None:
        return []
    return [said if dry_run else f"{said} To take it back: vlltr rollback {before}"]


def _relabel(report: RelabelReport) -> list[str]:
    moved = len(report.relabelled)
    others = len(report.left_out) - report.not_found
    counts = [
        f"{plural(moved, 'picture')} relabelled",
        f"{report.same:,} of that class already",
        f"{report.not_found:,} not found",
    ]
    counts += [f"{report.unsaid:,} without a class"] if report.unsaid else []
    counts += [f"{others:,} left out"] if others else []
    counts += [f"{report.added_images:,} added"] if report.added_images else []
    lines = [f"{report.source}: {', '.join(counts)}."]
    if report.classes_added:
        lines.append(f"Classes made: {', '.join(report.classes_added)}.")
    changes = [f"  {one.image}: {one.before or 'no class'} -> {one.now}" for one in report.relabelled]
    lines += _first(changes, None if report.dry_run else _CHANGES)
    lines += _first([f"  left out: {what}" for what in report.left_out], _LEFT_OUT)
    dry, *rest = _change(report) if report.dry_run else ("", *_change(report))
    return [*filter(None, [dry]), *lines, *rest]


def _first(lines: list[str], most: int | None) -> list[str]:
    """Return the first lines, and how many more there are."""
    more = (
        [] if most is None or len(lines) <= most else [f"  and {len(lines) - most:,} more (--json has all)"]
    )
    return [*lines[:most], *more]


def _review(report: Review) -> list[str]:
    from vlltr_index.pipelines.review.files import summary

    lines = [*summary(report), *report.notes]
    if report.moved is not None:
        moved = report.moved
        lines.append(
            f"Since the list before, on {plural(moved.images, 'picture')} whose label is as it was:"
            f" {percent(moved.before)} % of the held-out answers were right, now {percent(moved.after)} % are (each"
            f" class counted alike; {100 * (moved.after - moved.before):+.1f} points [{100 * moved.low:+.1f},"
            f" {100 * moved.high:+.1f}])."
        )
    return [*lines, *_first([f"  {_entry(one)}" for one in report.entries], _LISTED)]


def _entry(one: Entry) -> str:
    """Return a picture to look at on one line."""
    said = one.class_name or ""
    if one.suggested:
        said += f" -> {one.suggested}?" if said else f"{one.suggested}?"
    if one.verdict is not None:
        said += f" (the label {one.verdict})"
    beside = f", with {plural(len(one.beside), 'picture')} of its own" if one.beside else ""
    return f"{one.reason}: {one.picture}{': ' if said else ''}{said}{beside}"


def _export(report: ExportReport) -> list[str]:
    rows = ", ".join(f"{number:,} {name}" for name, number in report.rows.items())
    return [f"Wrote {report.folder}: {rows} ({report.bytes / 2**20:.1f} MiB).", *report.notes]


def _rollback(report: RollbackReport) -> list[str]:
    if not report.changed:
        return [f"The workspace is in the state of commit {report.target} ({report.command}) already."]
    lines = [f"Commit {report.commit} has the state of commit {report.target} ({report.command})."]
    if report.before != report.target:
        lines[0] += f" Nothing is lost: vlltr rollback {report.before} takes this back."
    lines += [
        f"Commit {n} was given up: what is left of it is history/{n}.json.damaged." for n in report.damaged
    ]
    return [*lines, "vlltr.toml is as it was: what is trained from here on follows it."]


def _diff(report: DiffReport) -> list[str]:
    return [
        f"from commit {report.before} to commit {report.after}",
        *(f"  ran: vlltr {command}" for command in report.commands),
        *(f"  class added: {name}" for name in report.classes_added),
        *(f"  class removed: {name}" for name in report.classes_removed),
        *(f"  class renamed: {old} -> {new}" for old, new in report.classes_renamed),
        *(f"  {name}: {old:,} -> {new:,}" for name, (old, new) in report.rows.items()),
    ]


def _prune(report: PruneReport) -> list[str]:
    gone = (
        f"Gave up {plural(len(report.pruned), 'commit')}; kept: {', '.join(map(str, report.kept)) or 'none'}."
    )
    return [gone, *(f"  removed {name}" for name in report.removed)]


def _units(report: StatusReport) -> list[tuple[str, str]]:
    """Return how many observations the training images count as, where some belong together."""
    images = report.images.get("train", 0)
    if report.units is None or report.units >= images:
        return []
    told = f"{plural(images, 'picture')}, counted as {report.units:,}: those that belong together tell less"
    return [("to learn from", told)]


def status_rows(report: StatusReport) -> list[tuple[str, str]]:
    """Return the status as (label, value) pairs."""
    splits = ", ".join(f"{split} {n:,}" for split, n in report.images.items()) or "none"
    total = sum(report.images.values())
    lines = [
        ("workspace", report.workspace),
        ("recipe", report.recipe),
        ("last commit", f"{report.commit} ({report.command})" if report.commit else "none"),
        ("classes", f"{report.classes:,}"),
        ("images", splits + (f" ({report.quarantined:,} quarantined)" if report.quarantined else "")),
        *_units(report),
        ("sentences", f"{report.sentences:,}"),
        ("encoder", report.encoder),
        ("sentence vectors", f"{report.sentence_vectors:,} of {report.sentences:,}"),
        ("image vectors", f"{report.image_vectors:,} of {total:,}"),
        ("anchors", f"{report.anchors:,}"),
        ("head", short(report.head) if report.head else "none"),
        *([("texts", report.texts)] if report.texts else []),
        ("index", short(report.index) if report.index else "none"),
    ]
    if report.measured:
        lines.append(("measured", report.measured))
    if report.writing:
        lines.append(("now", f"{report.writing} is writing"))
    return [*lines, *(("to do", what) for what in report.stale), ("next", report.next)]


_LOOKS: dict[str, Callable[[Any], list[Any]]] = {
    "Workspace": lambda workspace: [workspace_line(workspace)],
    "IngestReport": _ingest,
    "TaxonomyReport": _taxonomy,
    "ImportReport": _import,
    "TrainReport": _train,
    "EmbedReport": _embed,
    "SelectReport": _select,
    "IndexReport": _index,
    "BaselineRow": lambda row: [baseline_line(row)],
    "EvaluationReport": _evaluation,
    "ReportFile": _report_file,
    "RefitReport": _refit,
    "Prediction": _prediction,
    "PredictReport": _predict,
    "ChangeReport": _change,
    "RelabelReport": _relabel,
    "Review": _review,
    "ExportReport": _export,
    "RollbackReport": _rollback,
    "DiffReport": _diff,
    "PruneReport": _prune,
}
"""By the name of the report's class, so that no report has to be imported to show another."""

_REMARKS: dict[str, Callable[[Any], list[str]]] = {
    "EvaluationReport": _evaluation_remarks,
    "ReportFile": _report_file_remarks,
}
