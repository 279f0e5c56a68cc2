"""The tab Review in Gradio: its layout, its keys, and which piece is redrawn after which event."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from vlltr_index.cli.render import report_lines
from vlltr_index.cli.ui.review_service import ReviewService, choices_of, review_piece
from vlltr_index.cli.ui.service import piece
from vlltr_index.errors import VlltrError
from vlltr_index.pipelines.review.queue import Entry
from vlltr_index.wording import plural

_Drawing = dict[Any, Any]  # component to what it shows

_FOLLOW = 2.0  # seconds between two checks for progress, and for decisions of other tabs
_CHANGED = "That picture was decided on or changed since it was shown."

_DO = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-do]');
  if (button) trigger(button.dataset.do === 'save' ? 'save' : 'make', {});
});
"""
_SAID = """
element.setAttribute('role', 'status');
element.setAttribute('aria-live', 'polite');
watch('value', () => document.dispatchEvent(new Event('vl-said')));
"""
_ENTRY = """
const shown = () => element.querySelector('.vl-entry, .vl-end');
const field = () => element.querySelector('#vl-other');
const spelled = (name) => name.normalize('NFC').toLowerCase().trim().replace(/\\s+/g, ' ');
const left = () => element.querySelectorAll('[data-drop][aria-pressed="false"]').length;
let typed = 0;  // when a key was pressed in the field
let deaf = 0;  // until when keys do nothing, since another entry came while somebody was typing
let waiting = 0;  // until when an answer is awaited
document.addEventListener('vl-said', () => { waiting = 0; });
const act = (name, more = {}) => {
  typed = 0;
  waiting = Date.now() + 1500;
  trigger('act', {act: name, turn: shown().dataset.turn, ...more});
};
const submit = () => {
  if (!field().value.trim()) return field().focus();
  const dropped = [...element.querySelectorAll('[data-drop][aria-pressed="true"]')];
  const name = field().value;
  field().value = '';  // what comes next is another picture
  field().blur();
  act(field().form.dataset.form, {name, dropped: dropped.map((one) => one.dataset.drop).join(' ')});
};
const say = () => {
  const name = field().value.trim();
  const known = [...document.querySelectorAll('#vl-names option')].some((one) => spelled(one.value) === spelled(name));
  const adds = field().form.dataset.form === 'add' ? `, of ${left()} picture${left() === 1 ? '' : 's'}` : '';
  let said = '';
  if (name && known) said = `Enter: the class ${name}${adds}.`;
  else if (name) said = `No class has this name. Enter makes the new class ${name}${adds}.`;
  element.querySelector('#vl-says').textContent = said;
};
const drop = (button) => {
  button.setAttribute('aria-pressed', button.getAttribute('aria-pressed') === 'true' ? 'false' : 'true');
  say();
};
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-act], [data-drop]');
  if (!button) return;
  if (button.dataset.drop) drop(button);
  else act(button.dataset.act, button.dataset.number ? {number: button.dataset.number} : {});
});
element.addEventListener('submit', (event) => {
  event.preventDefault();
  submit();
});
element.addEventListener('input', say);
const onKey = (event) => {
  if (!element.isConnected) return document.removeEventListener('keydown', onKey);
  if (!element.checkVisibility() || event.defaultPrevented || event.isComposing) return;
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
  if (event.target === field() && event.key === 'Escape') return shown().focus({preventScroll: true});
  if (event.target.closest('input, textarea, select, [contenteditable]')) {
    if (event.target === field()) typed = Date.now();
    return;
  }
  if (Date.now() < Math.max(deaf, waiting)) return;
  const key = event.key.toLowerCase();
  if (event.shiftKey && key === 's') return document.querySelector('[data-do="save"]')?.click();
  if (!shown() || event.shiftKey) return;
  if (key === 'enter' && event.target.closest('button, a, summary, [role="tab"]')) return;
  const button = [...element.querySelectorAll('[aria-keyshortcuts]')].find(
    (one) => one.getAttribute('aria-keyshortcuts').toLowerCase() === key
  );
  if (button) button.click();
  else if (key === 'c') field()?.focus();
  else if (key === 'enter' && field()) submit();
  else return;
  event.preventDefault();
};
document.addEventListener('keydown', onKey);
watch('value', () => {
  const place = shown();
  const focused = document.activeElement;
  waiting = 0;
  deaf = Date.now() - typed < 2000 ? Date.now() + 3000 : 0;
  if (!place || focused?.matches('input, textarea, select')) return;
  place.focus({preventScroll: true});
  if (place.getBoundingClientRect().top < 0) place.scrollIntoView({block: 'start'});
});
"""


@dataclass(frozen=True)
class Seat:
    """State of one browser tab.

    Attributes:
        turn: How many entries it was shown; a key pressed for one that is not shown any more has an older number.
        entry: What it looks at.
        large: Which of the entry's pictures is large.
        at: In a page for reading only: its position in the list.
        number: The list that was drawn.
        error: Why no list could be made, as it was drawn.
        bar: What was drawn above the entry.
        end: What was drawn instead of an entry.
        names: What was drawn of the classes that can be chosen.
    """

    turn: int = 0
    entry: Entry | None = None
    large: int = 0
    at: int = 0
    number: int = 0
    error: VlltrError | None = None
    bar: str = ""
    end: str = ""
    names: str = ""


class ReviewTab:
    """The tab's components and their handlers; made inside a `gr.Tab`."""

    def __init__(self, tab: gr.Tab, desk: ReviewService) -> None:
        self._desk = desk
        self._seat = gr.State(Seat())
        self._bar = gr.HTML(js_on_load=_DO, elem_id="vl-bar")
        self._report = gr.HTML(js_on_load=_SAID, elem_id="vl-review-report")
        self._said = gr.HTML(js_on_load=_SAID, elem_id="vl-said")
        self._entry = gr.HTML(js_on_load=_ENTRY, elem_id="vl-review")
        self._names = gr.HTML(elem_id="vl-class-names")
        self._timer = gr.Timer(_FOLLOW, active=False)
        self._drawn = [self._seat, self._bar, self._report, self._said, self._entry, self._names, self._timer]
        self._on(tab.select, self._open)
        self._on(self._timer.tick, self._follow)
        self._on(self._entry.act, self._act, trigger_mode="multiple")
        self._on(self._bar.make, self._make)
        if not desk.read_only:
            quiet = {"show_progress": "hidden", "api_visibility": "private"}
            begun = self._bar.save(self._say_so, None, self._said, **quiet)
            saved = begun.then(self._save, None, self._report, concurrency_id="write", **quiet)
            self._on(saved.then, self._look_again)

    def _on(self, listen: Callable[..., Any], handler: Callable[..., Any], **more: Any) -> None:
        """Connect a handler that takes the seat and draws; one runs at a time."""
        shared = {"concurrency_id": "review", "show_progress": "hidden", "api_visibility": "private"}
        listen(handler, self._seat, self._drawn, **shared, **more)

    # Handlers.

    def _open(self, seat: Seat) -> _Drawing:
        """Draw everything, and follow what other tabs and commands do."""
        seat = replace(seat, bar="", names="", number=seat.number or self._desk.number)
        return self._draw(seat) | {self._timer: gr.Timer(active=True)}

    def _follow(self, seat: Seat) -> _Drawing:
        """Draw what became of the list, and of the entry."""
        return self._draw(seat)

    def _make(self, seat: Seat) -> _Drawing:
        self._desk.make()
        return self._draw(seat) | {self._report: ""}

    def _say_so(self) -> str:
        counts = self._desk.counts()
        return review_piece("said", f"Saving {plural(counts.decided, 'decision')}.", counts)

    def _save(self) -> Any:
        """Make a commit of all decisions; nothing is drawn if there are none, as after a second press of the key."""
        try:
            report, before = self._desk.save()
        except VlltrError as error:
            return piece("error", error)
        if report is None:
            return gr.skip()
        lines = report_lines(report)
        if before is not None:
            lines.append(f"To take it back: vlltr rollback {before}")
            lines.append("Make the list again to see how answers to pictures that were held out moved.")
        return piece("notice", lines)

    def _look_again(self, seat: Seat) -> _Drawing:
        """Draw what is left after decisions were saved."""
        return {self._said: ""} | self._draw(seat)

    def _act(self, seat: Seat, event: gr.EventData) -> _Drawing:
        """Keep what was decided of the entry, and show the next one."""
        if _told(event, "turn") != str(seat.turn):
            return {self._seat: seat}
        act = _told(event, "act")
        if act == "look" and seat.entry is not None:
            return self._look(seat, seat.entry, _told(event, "number"))
        if self._desk.read_only:
            step = {"skip": 1, "undo": -1}.get(act, 0)
            return self._draw(replace(seat, at=seat.at + step))
        try:
            if act == "undo":
                return self._undo(seat)
            if seat.entry is None:
                return {self._seat: seat}
            dropped = [int(word) for word in _told(event, "dropped").split() if word.isdecimal()]
            name = self._name(seat.entry, event)
            said = self._desk.decide(seat.entry, act, name, dropped, seat.large)
        except VlltrError as error:
            return self._draw(seat) | {self._said: piece("error", error)}
        return self._draw(seat, said)

    def _undo(self, seat: Seat) -> _Drawing:
        """Take the last decision back, and show its entry."""
        found = self._desk.undo()
        if found is None:
            return self._draw(seat, "There is no decision to take back.")
        seat = replace(seat, entry=found, large=0, turn=seat.turn + 1)
        return self._draw_entry(found, seat.turn) | self._draw(seat, "Taken back.")

    def _look(self, seat: Seat, entry: Entry, number: str) -> _Drawing:
        """Make another picture of the entry the large one."""
        places = map(str, range(len(self._desk.show(entry).thumbnails)))
        if number not in places:
            return {self._seat: seat}
        seat = replace(seat, large=int(number), turn=seat.turn + 1)
        return {self._seat: seat} | self._draw_entry(entry, seat.turn, seat.large)

    def _name(self, entry: Entry, event: gr.EventData) -> str:
        """Return the class that was chosen, by its key or by its name."""
        number = _told(event, "number")
        names = {str(one.number): one.name for one in choices_of(entry)}
        return names.get(number, _told(event, "name"))

    # Drawing.

    def _draw(self, seat: Seat, said: str | None = None) -> _Drawing:
        """Return what changed: the next entry, unless the one that is shown is still to be decided, and the counts."""
        drawn: _Drawing = {}
        try:
            at, entry = self._next(seat)
            counts = self._desk.counts()
            names = "" if self._desk.read_only else review_piece("names", self._desk.names())
            if entry != seat.entry and entry is not None:
                drawn |= self._draw_entry(entry, seat.turn + 1)
        except VlltrError as raised:
            return {self._seat: seat, self._said: piece("error", raised)}
        found = self._desk.found
        error = self._desk.error
        if error is not None and error is not seat.error:
            drawn[self._report] = piece("error", error)
        elif found is not None and seat.number != self._desk.number:
            drawn[self._report] = piece("notice", report_lines(replace(found, entries=())))
        elif said is None and seat.entry not in (None, entry) and not self._desk.read_only:
            said = _CHANGED
        if said is not None:
            drawn[self._said] = review_piece("said", said, counts)
        making = self._desk.progress()
        folders = bool(self._desk.folders)
        bar = review_piece("bar", found is not None, counts, making, folders, self._desk.read_only)
        turn = seat.turn + (entry != seat.entry)
        ended = found is not None and entry is None
        end = review_piece("end", counts, turn, self._desk.read_only) if ended else ""
        for component, now, before in (
            (self._bar, bar, seat.bar),
            (self._names, names, seat.names),
            (self._entry, end, seat.end if entry is None else ""),
        ):
            if now != before:
                drawn[component] = now
        large = seat.large if entry == seat.entry else 0
        return drawn | {self._seat: Seat(turn, entry, large, at, self._desk.number, error, bar, end, names)}

    def _next(self, seat: Seat) -> tuple[int, Entry | None]:
        """Return what is shown: the same entry as long as it can be decided; with its position, for reading only."""
        if self._desk.read_only:
            return self._desk.at(seat.at)
        return 0, self._desk.next(seat.entry)

    def _draw_entry(self, entry: Entry, turn: int, large: int = 0) -> _Drawing:
        shown = self._desk.show(entry, large)
        return {self._entry: review_piece("entry", shown, turn, self._desk.read_only)}


def _told(event: gr.EventData, name: str) -> str:
    """Return a text of an event, empty if it has none of that name."""
    value = getattr(event, name, "")
    return value if isinstance(value, str) else ""
