"""The page in Gradio: its layout, and which piece is redrawn after which event.

A visit's state lives in the server, one for each tab. Each handler takes it, and returns it with what to draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
from torch import Tensor

from vlltr_index.cli.render import report_lines
from vlltr_index.cli.ui.review_service import ReviewService
from vlltr_index.cli.ui.review_tab import ReviewTab
from vlltr_index.cli.ui.service import MAX_PICTURES, MAX_TOGETHER, MAX_UPLOAD, PageService, names_of, piece
from vlltr_index.errors import VlltrError
from vlltr_index.recognition.counterfactual import Examination, ExaminedClass
from vlltr_index.wording import shown

_Drawing = dict[Any, Any]  # component to what it shows

_TOP = 5
_FOLLOW = 3.0  # seconds between two checks for a newer commit
_TIDY = (600, 7200)  # seconds between two clean-ups of uploaded files, and the age at which they are deleted
_QUEUE = 100  # events that may wait

_CHOOSE = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-choose]');
  if (button) trigger('choose', {name: button.dataset.choose});
});
"""
_STRIKE = """
let last = null;
element.addEventListener('change', (event) => {
  const box = event.target.closest('[data-strike]');
  if (!box) return;
  last = box.dataset.strike;
  trigger('strike', {sentence: last, struck: box.checked});
});
watch('value', () => {
  if (last) element.querySelector(`[data-strike="${CSS.escape(last)}"]`)?.focus({preventScroll: true});
});
"""


@dataclass(frozen=True)
class Visit:
    """State of one browser tab."""

    feature: Tensor | None = None  # the picture's, [D]
    image_fp: str | None = None  # fingerprint of the tower that it is from
    struck: frozenset[str] = frozenset()
    chosen: str | None = None
    first: str | None = None
    second: str | None = None
    commit: int = 0  # the commit that was drawn last
    offered: int | None = None  # the commit that the undo button names


# Gradio would make an error of the name of a class that another tab removed; here the best class is shown then.
_CHOICE = {"allow_custom_value": True}


def _path(payload: Any) -> str | None:
    """Return an uploaded file's path; Gradio would decode the picture before its size is checked."""
    return None if payload is None else payload.path


def build_page(desk: PageService, reviewing: ReviewService) -> gr.Blocks:
    """Build the page of a workspace; with `read_only` nothing on it adds, decides or undoes."""
    name = desk.workspace.path.name
    with gr.Blocks(title=f"{shown(name)} · vlltr", analytics_enabled=False, delete_cache=_TIDY) as page:
        status = gr.HTML(elem_id="vl-top")
        with gr.Tabs():
            with gr.Tab("Recognise"):
                _Page(page, desk, name, status)
            with gr.Tab("Review") as tab:
                ReviewTab(tab, reviewing)
    return page.queue(max_size=_QUEUE, default_concurrency_limit=1)


class _Page:
    """The components of the tab Recognise and their handlers; made inside a `gr.Tab`."""

    def __init__(self, page: gr.Blocks, desk: PageService, name: str, status: gr.HTML) -> None:
        self._desk = desk
        self._name = name
        self._status = status
        self._visit = gr.State(Visit())
        self._notice = gr.HTML(elem_id="vl-notice")
        self._lay_out_answer()
        if not desk.read_only:
            self._lay_out_changes()
        self._drawn = [self._visit, self._status, self._notice, self._best, self._class, self._sentences]
        self._drawn += [self._put_back, self._first, self._second, self._comparison]
        self._drawn += [] if desk.read_only else [self._undo]
        self._connect(page)

    def _lay_out_answer(self) -> None:
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=280):
                self._picture = gr.Image(
                    label="Picture: drop it, paste it, or choose a file",
                    type="filepath",
                    sources=["upload", "clipboard"],
                    height=280,
                    buttons=[],
                    elem_id="vl-picture",
                )
                self._picture.preprocess = _path
            with gr.Column(scale=3, min_width=280):
                self._best = gr.HTML(
                    piece("best", [], None), js_on_load=_CHOOSE, elem_id="vl-best", min_height=120
                )
        gr.HTML("<h2>Sentences behind the answer</h2>")
        with gr.Row(equal_height=False):
            self._class = gr.Dropdown(**_CHOICE, label="class", scale=3, min_width=200, elem_id="vl-class")
            self._put_back = gr.Button(
                "Put all back", interactive=False, scale=1, min_width=160, elem_id="vl-put-back"
            )
        self._sentences = gr.HTML(piece("sentences", None), js_on_load=_STRIKE, elem_id="vl-sentences")
        gr.HTML("<h2>Why one class and not another</h2>")
        with gr.Row(equal_height=False):
            self._first = gr.Dropdown(**_CHOICE, label="this class", min_width=200, elem_id="vl-first")
            self._second = gr.Dropdown(
                **_CHOICE, label="and not this one", min_width=200, elem_id="vl-second"
            )
        self._comparison = gr.HTML(piece("comparison", None), elem_id="vl-comparison")

    def _lay_out_changes(self) -> None:
        gr.HTML("<h2>Add a class</h2>")
        with gr.Row(equal_height=False):
            with gr.Column(min_width=280):
                self._new_name = gr.Textbox(label="name", max_lines=1, max_length=200, elem_id="vl-new-name")
                self._new_text = gr.Textbox(
                    label="text: what it looks like, in whole sentences", lines=5, elem_id="vl-new-text"
                )
            with gr.Column(min_width=280):
                self._new_pictures = gr.File(
                    label=f"pictures, if there are any: at most {MAX_PICTURES} of {MAX_UPLOAD >> 20} MiB,"
                    f" {MAX_TOGETHER >> 20} MiB together",
                    file_count="multiple",
                    type="filepath",
                    height=180,
                    elem_id="vl-new-pictures",
                )
        with gr.Row():
            self._add = gr.Button("Add this class", variant="primary", elem_id="vl-add")
            self._undo = gr.Button("Nothing to undo", interactive=False, elem_id="vl-undo")
        self._report = gr.HTML(elem_id="vl-report")

    def _connect(self, page: gr.Blocks) -> None:
        with_picture = [self._picture]
        self._on(page.load, self._draw)
        self._on(gr.Timer(_FOLLOW).tick, self._follow, with_picture)
        self._on(self._picture.change, self._look, with_picture, trigger_mode="always_last")
        self._on(self._best.choose, self._choose_there, with_picture, trigger_mode="always_last")
        self._on(self._sentences.strike, self._strike, with_picture, trigger_mode="multiple")
        self._on(self._put_back.click, self._put_all_back, with_picture)
        self._on(self._class.input, self._choose, [*with_picture, self._class], trigger_mode="always_last")
        pair = [*with_picture, self._first, self._second]
        for side in (self._first, self._second):
            self._on(side.input, self._compare, pair, trigger_mode="always_last")
        if self._desk.read_only:
            return
        form = [self._new_name, self._new_text, self._new_pictures]
        write = {"concurrency_id": "write", "api_visibility": "private"}
        added = self._add.click(self._add_class, form, [*form, self._report], **write)
        self._on(added.then, self._look_again, with_picture)
        undone = self._undo.click(self._take_back, self._visit, self._report, **write)
        self._on(undone.then, self._look_again, with_picture)

    def _on(
        self, listen: Callable[..., Any], handler: Callable[..., Any], inputs: Any = (), **more: Any
    ) -> None:
        """Connect a handler that reads the visit and draws; one runs at a time, so that none gets an outdated visit."""
        shared = {"concurrency_id": "visit", "show_progress": "hidden", "api_visibility": "private"}
        listen(handler, [self._visit, *inputs], self._drawn, **shared, **more)

    # Handlers: each takes the visit, and what its components hold.

    def _look(self, visit: Visit, picture: str | None) -> _Drawing:
        """Show another picture, or none."""
        if picture is None:
            return self._draw(Visit()) | {self._notice: ""}
        try:
            found = self._desk.examine(Path(picture))
        except VlltrError as error:
            return self._draw(Visit()) | {self._notice: piece("error", error)}
        return self._draw(Visit(found.feature, found.model.saved.image_fp))

    def _choose_there(self, visit: Visit, picture: str | None, event: gr.EventData) -> _Drawing:
        return self._choose(visit, picture, str(getattr(event, "name", "")))

    def _choose(self, visit: Visit, picture: str | None, name: str | None) -> _Drawing:
        """Show another class's sentences."""
        return self._draw(replace(visit, chosen=name), picture)

    def _strike(self, visit: Visit, picture: str | None, event: gr.EventData) -> _Drawing:
        """Leave a sentence out, or put it back."""
        one = {str(getattr(event, "sentence", ""))}
        struck = visit.struck | one if getattr(event, "struck", False) is True else visit.struck - one
        return self._draw(replace(visit, struck=struck), picture)

    def _put_all_back(self, visit: Visit, picture: str | None) -> _Drawing:
        return self._draw(replace(visit, struck=frozenset()), picture)

    def _compare(self, visit: Visit, picture: str | None, first: str | None, second: str | None) -> _Drawing:
        return self._draw(replace(visit, first=first, second=second), picture)

    def _follow(self, visit: Visit, picture: str | None) -> _Drawing:
        """Redraw everything if there is a newer commit, or another commit to undo."""
        if (self._desk.model().commit, self._desk.offer()[0]) == (visit.commit, visit.offered):
            return {self._visit: visit}
        return self._draw(visit, picture)

    def _look_again(self, visit: Visit, picture: str | None) -> _Drawing:
        """Redraw the picture's best classes after a change made on this page."""
        return self._draw(replace(visit, chosen=None, first=None, second=None), picture)

    def _add_class(self, name: str, text: str, pictures: list[str] | None) -> tuple[Any, ...]:
        """Add a class; the form is emptied on success."""
        try:
            report = self._desk.add(name, text, [(Path(p).name, Path(p)) for p in pictures or ()])
        except VlltrError as error:
            return gr.skip(), gr.skip(), gr.skip(), piece("error", error)
        return "", "", None, piece("notice", report_lines(report))

    def _take_back(self, visit: Visit) -> str:
        """Undo the commit that the button names."""
        _, name = self._desk.offer()
        try:
            report = self._desk.undo(visit.offered or 0)
        except VlltrError as error:
            return piece("error", error)
        said = f"Commit {report.commit} has the state of commit {report.target}."
        back = f"To have the class back: vlltr rollback {report.commit - 1}"
        return piece("notice", [f"Undone: the class {name!r} is gone again.", f"{said} {back}"])

    # Drawing.

    def _draw(self, visit: Visit, picture: str | None = None) -> _Drawing:
        """Return all that a visit shows; what depends on the commit is left out if the commit is unchanged."""
        model = self._desk.model()
        notice = ""
        try:
            found = self._examination(visit, picture)
            best = found.best(_TOP, visit.struck) if found is not None else []
        except VlltrError as error:
            found = None
            best = []
            notice = piece("error", error)
            visit = Visit(commit=visit.commit, offered=visit.offered)
        names = names_of(model)
        number = model.commit
        # An error about a picture stays until there is another picture.
        drawn: _Drawing = {self._notice: notice} if notice or found is not None else {}
        choices = {}
        (offered, name) = self._desk.offer()
        if (visit.commit, visit.offered) != (number, offered):
            visit = replace(visit, commit=number, offered=offered)
            facts = (self._name, number, len(names), self._desk.read_only)
            drawn[self._status] = piece("status", *facts)
            if not self._desk.read_only:
                label = f"Undo: add {name!r}" if offered else "Nothing to undo"
                drawn[self._undo] = gr.update(value=label, interactive=bool(offered))
            choices = {"choices": names}
        visit = _settled(visit, best, names)
        drawn |= {self._visit: visit, self._best: piece("best", best, visit.chosen)}
        boxes = {self._class: visit.chosen, self._first: visit.first, self._second: visit.second}
        for box, value in boxes.items():
            drawn[box] = gr.update(value=value, interactive=found is not None, **choices)
        drawn[self._put_back] = gr.update(interactive=bool(visit.struck))
        return drawn | self._draw_sentences(found, visit)

    def _examination(self, visit: Visit, picture: str | None) -> Examination | None:
        """Examine the visit's picture under the current commit; it is read again if the encoder changed."""
        if visit.feature is None or visit.image_fp is None:
            return None
        model = self._desk.answering()
        if model.saved.image_fp == visit.image_fp:
            return Examination(model, visit.feature)
        return self._desk.examine(Path(picture or ""))

    def _draw_sentences(self, found: Examination | None, visit: Visit) -> _Drawing:
        """Return the sentences of the chosen class, and the comparison of two classes, to draw."""
        if found is None or visit.chosen is None:
            empty = {self._sentences: piece("sentences", None)}
            return empty | {self._comparison: piece("comparison", None)}
        try:
            one = found.look(visit.chosen, visit.struck)
            sentences = piece("sentences", one, self._desk.neighbours(found, one))
        except VlltrError as error:
            sentences = piece("error", error)
        try:
            assert visit.first is not None  # `_settled` sets both
            assert visit.second is not None
            two = piece("comparison", found.compare(visit.first, visit.second, visit.struck))
        except VlltrError as error:
            two = piece("error", error)
        return {self._sentences: sentences, self._comparison: two}


def _settled(visit: Visit, best: Sequence[ExaminedClass], names: Sequence[str]) -> Visit:
    """Return the visit with default classes in place of none or removed ones; with no class if there is no picture."""
    if not best:
        return replace(visit, chosen=None, first=None, second=None)
    there = set(names)
    top = best[0].name
    runner_up = best[min(1, len(best) - 1)].name
    return replace(
        visit,
        chosen=visit.chosen if visit.chosen in there else top,
        first=visit.first if visit.first in there else top,
        second=visit.second if visit.second in there else runner_up,
    )
