"""Say what a workspace holds, what is stale, and the next command (`vlltr status`), without loading torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from vlltr_index.errors import MissingStepError, WorkspaceError
from vlltr_index.schemas.fingerprint import short
from vlltr_index.schemas.manifests import EncoderSummary, HeadSummary
from vlltr_index.schemas.records import MANY_ANCHORS
from vlltr_index.schemas.tables import content_id, image_vectors_name, sentence_vectors_name
from vlltr_index.store.holdout import digest_images, held_images, score_image_rows
from vlltr_index.store.tables import quote
from vlltr_index.store.transaction import check_tags
from vlltr_index.wording import plural

if TYPE_CHECKING:
    from vlltr_index.store.objects import Kind, Objects
    from vlltr_index.store.snapshot import Commit, Snapshot
    from vlltr_index.store.workspace import Workspace

# Before the commit a split's name; after it crops, rule, prior and retrieval.
_KEPT = re.compile(r"evaluate-.+?-(\d+)(?:-crops-\d+)?(?:-[a-z][a-z0-9-]*)?\.json")


@dataclass(frozen=True)
class StatusReport:
    """Report on what a workspace holds.

    Attributes:
        workspace: Its folder.
        recipe: The recipe's name.
        commit: Number of the newest commit, and the command that made it; null before the first.
        command: That command.
        writing: Who is writing to it now.
        classes: Classes in use.
        images: Usable images by split: those with a class, and readable.
        units: Observations that the head counts the training images as: those that belong together, such as a burst or
            near duplicates, as fewer than they are. Null before it has been trained.
        quarantined: Images that cannot be read.
        sentences: Sentences of all classes.
        encoder: The model, and where its weights are from.
        sentence_vectors: Sentences that have a vector of the commit's fingerprint.
        image_vectors: Usable images that have one.
        anchors: Selected sentences.
        head: Digest of the head.
        texts: What it uses texts for, in words; null for a head of the protocols paper and release.
        index: Digest of the index.
        measured: At which commit the model was measured last, and what changed since, in words; if it never was, why.
            Null before the head has been trained.
        stale: What is missing or no longer fits, in words, in the order to mend it.
        next: The command to run next.
    """

    workspace: str
    recipe: str
    commit: int | None
    command: str | None
    writing: str | None
    classes: int
    images: dict[str, int]
    units: int | None
    quarantined: int
    sentences: int
    encoder: str
    sentence_vectors: int
    image_vectors: int
    anchors: int
    head: str | None
    texts: str | None
    index: str | None
    measured: str | None
    stale: tuple[str, ...]
    next: str


def status(workspace: Workspace, at: int | None = None) -> StatusReport:
    """Inspect the newest commit, or number `at`, and the vectors stored for it.

    Raises:
        WorkspaceError: If the commit's file is damaged, or the history is not that of the tables.
    """
    snapshot = workspace.snapshot(at)
    commit = snapshot.commit
    config = workspace.recipe.encoder
    if at is None:
        check_tags(workspace.store, commit)
    rows = snapshot.table("images", ["image_id", "content_hash", "split", "class_id", "problem"])
    usable = rows.filter(pc.and_(pc.is_valid(rows["class_id"]), pc.is_null(rows["problem"])))
    first = {"train": 0, "val": 1, "test": 2}
    counts = Counter(usable["split"].to_pylist())
    images = {split: counts[split] for split in sorted(counts, key=lambda s: (first.get(s, 3), s))}
    hashes = snapshot.table("sentences", ["text_hash"])["text_hash"].to_pylist()
    contents = map(content_id, usable["image_id"].to_pylist(), usable["content_hash"].to_pylist())
    keys = [f"{content}:0" for content in contents]
    text_vectors = 0
    image_vectors = 0
    if commit.text_fp:
        text_vectors = _there(snapshot, sentence_vectors_name(commit.text_fp), "text_hash", hashes)
    if commit.image_fp:
        image_vectors = _there(snapshot, image_vectors_name(commit.image_fp), "vector_key", keys)
    encoder = f"{config.model}, {config.pretrained or 'not trained yet'}"
    if commit.checkpoint:
        model = (_trained(workspace, commit.checkpoint) or (config.model,))[0]
        encoder = f"{model}, trained here ({short(commit.checkpoint)})"
    lacking = {"sentence": len(hashes) - text_vectors, "image": len(keys) - image_vectors}
    todo = list(_todo(workspace, snapshot, images, lacking))
    way = "vlltr evaluate"
    measured, mend = _measured(workspace, snapshot, way) if commit.head else (None, False)
    if commit.head and not images.get("test") and not commit.info.folds:
        measured, mend = _UNMEASURABLE, False
    use = way if mend else "vlltr predict IMAGE --explain 3"
    return StatusReport(
        workspace=workspace.address,
        recipe=workspace.recipe.name,
        commit=commit.id or None,
        command=commit.command or None,
        writing=workspace.storage.writer(),
        classes=len(snapshot.class_table()),
        images=images,
        units=sum(snapshot.table("class_stats", ["images"])["images"].to_pylist()) if commit.head else None,
        quarantined=rows.num_rows - rows["problem"].null_count,
        sentences=len(hashes),
        encoder=encoder,
        sentence_vectors=text_vectors,
        image_vectors=image_vectors,
        anchors=snapshot.count("anchors"),
        head=commit.head,
        texts=_texts(workspace, commit) if commit.head else None,
        index=commit.index.digest if commit.index else None,
        measured=measured,
        stale=tuple(what for what, _ in todo),
        next=todo[0][1] if todo else use,
    )


def _measured(workspace: Workspace, snapshot: Snapshot, way: str) -> tuple[str, bool]:
    """Say when the model was measured last, whatever was asked for, and what changed since; and whether to do it again.

    Args:
        workspace: The workspace.
        snapshot: The commit.
        way: The command that measures.
    """
    found = map(_KEPT.fullmatch, workspace.storage.names("reports"))
    kept = sorted({int(one[1]) for one in found if one and int(one[1]) <= snapshot.commit.id}, reverse=True)
    if not kept:
        return f"not yet: {way}", True
    told = dict[int, str]()
    for number in kept:
        try:
            told[number] = _changes(workspace.snapshot(number), snapshot)
        except WorkspaceError:  # it was pruned
            told[number] = "what changed since is not known"
        if not told[number]:  # also after a rollback to it
            return f"at commit {number}", False
    return f"at commit {kept[0]}; {told[kept[0]]}: {way}", True


def _changes(then: Snapshot, now: Snapshot) -> str:
    """Say what changed between two commits that the model's accuracy depends on; nothing if it is the same."""
    if then.commit.head != now.commit.head:
        return "the head was trained since"
    classes = len(set(then.class_table().ids) ^ set(now.class_table().ids))
    tables = then.commit.tables, now.commit.tables
    same = {name: tables[0].get(name) == tables[1].get(name) for name in ("images", "sentences")}
    images = 0 if same["images"] else len({image for image, _ in _labels(then) ^ _labels(now)})
    sentences = 0 if same["sentences"] else len(_sentence_ids(then) ^ _sentence_ids(now))
    kinds = ((classes, "class", "classes"), (images, "image", "images"), (sentences, "sentence", "sentences"))
    told = [plural(*kind) for kind in kinds if kind[0]]
    if told:
        return f"{', '.join(told)} came, went or changed since"
    return "" if then.commit.selection_id == now.commit.selection_id else "anchors were selected since"


def _labels(snapshot: Snapshot) -> set[tuple[str, int | None]]:
    """Return the images with their classes."""
    rows = snapshot.table("images", ["image_id", "class_id"])
    return set(zip(rows["image_id"].to_pylist(), rows["class_id"].to_pylist(), strict=True))


def _sentence_ids(snapshot: Snapshot) -> set[str]:
    return set(snapshot.table("sentences", ["sentence_id"])["sentence_id"].to_pylist())


def _there(snapshot: Snapshot, name: str, column: str, keys: Iterable[str]) -> int:
    """Count how many of `keys` a table of vectors has."""
    have = snapshot.store.keys(name, column)
    return sum(key in have for key in keys)


_UNMEASURABLE = "no image is in split test, and train lgr held out no image"
_BESIDE = (
    0.25  # share of anchors outside the index above which a new index is quicker than exact search of these
)
_Steps = Iterator[tuple[str, str]]


def _todo(
    workspace: Workspace, snapshot: Snapshot, images: dict[str, int], lacking: dict[str, int]
) -> _Steps:
    """Yield what is to do and the command that does it; `lacking` counts rows without a vector, by kind."""
    commit = snapshot.commit
    add_text = "vlltr ingest text PATH"
    if not images.get("train"):
        yield "there are no training images", "vlltr ingest images PATH --split train"
    told = set(snapshot.table("sentences", ["class_id"])["class_id"].to_pylist())
    if not told:
        yield "there is no text", add_text
    elif bare := len(set(snapshot.class_table().ids) - told):
        yield f"{plural(bare, 'class has', 'classes have')} no text", add_text
    yield from _encoder_steps(workspace, commit)
    if not commit.text_fp or not commit.image_fp:
        if snapshot.has("sentences") or snapshot.has("images"):
            yield "nothing has been embedded with this encoder", "vlltr embed"
    elif change := vectors_change(snapshot):
        yield change, "vlltr embed --force"
    elif any(lacking.values()):
        missing = [plural(n, kind) for kind, n in lacking.items() if n]
        yield f"without a vector: {' and '.join(missing)}", "vlltr embed"
    elif other := reading_change(snapshot):
        yield other, "vlltr embed"
    if commit.selection_id:
        yield from _selection_steps(snapshot)
        yield from _head_steps(workspace, commit)
        yield from _index_steps(workspace, snapshot)
    elif commit.text_fp:
        yield "no anchor sentences have been selected", "vlltr select"


def _encoder_steps(workspace: Workspace, commit: Commit) -> _Steps:
    command = "vlltr train cvlp"
    checkpoint = commit.checkpoint
    if not checkpoint:
        if not workspace.recipe.encoder.pretrained:
            yield "the encoder has not been trained", command
    elif _gone(workspace.objects, "checkpoints", checkpoint):
        yield f"the encoder's files are gone: {short(checkpoint)}", command
    elif change := encoder_change(workspace, checkpoint):
        yield change, command


def encoder_change(workspace: Workspace, checkpoint: str) -> str | None:
    """Describe how the encoder named in `vlltr.toml` differs from a checkpoint's, or return None if it does not."""
    asked = workspace.recipe.encoder
    trained = _trained(workspace, checkpoint)
    named = asked.family.is_place or "/" in asked.model or ":" in asked.model
    if trained is None or named:  # a folder, or a name on a hub
        return None
    model, size, resize = trained
    plain = "-quickgelu"  # this suffix of a model's name depends on its weights
    same = model.removesuffix(plain) == asked.model.removesuffix(plain)
    if same and asked.image_size in (None, size) and asked.resize in (None, resize):
        return None
    wanted = _described(asked.model, asked.image_size, asked.resize)
    return f"the recipe's encoder is {wanted}, the trained one {_described(*trained)}"


def vectors_change(snapshot: Snapshot) -> str | None:
    """Describe how the encoder named in `vlltr.toml` differs from that of the stored vectors, or return None if not."""
    made, asked = snapshot.commit.info.encoder, snapshot.recipe.encoder
    if made is None or snapshot.commit.checkpoint:
        return None
    told = [
        _described(f"{one.model}:{one.pretrained}", one.image_size, one.resize)
        + (" in bf16" if one.precision == "bf16" else "")  # tf32 makes vectors that stand for those of fp32
        for one in (asked, made)
    ]
    return None if told[0] == told[1] else f"the recipe's encoder is {told[0]}, that of the vectors {told[1]}"


def reading_change(snapshot: Snapshot) -> str | None:
    """Say what read the sentences if it was not the recipe's `prior.text`, or return None if it was."""
    reading = snapshot.commit.info.reading
    wanted = snapshot.recipe.prior.text
    found = None if reading is None else reading.model
    if wanted == found:
        return None
    return f"prior.text is {wanted or 'none'}, and the sentences were read by {found or 'none'}"


def _described(model: str, size: int | None, resize: int | None) -> str:
    """Describe an encoder in words, such as `RN50 at 224 px out of 256 px`."""
    return model + (f" at {size} px" if size else "") + (f" out of {resize} px" if resize else "")


def _trained(workspace: Workspace, digest: str) -> tuple[str, int, int | None] | None:
    """Read from a checkpoint its open_clip model, its image size, and the size that images are resized to before."""
    try:
        name = "encoder.json"
        found = EncoderSummary.parse(workspace.objects.file("checkpoints", digest, name), name)
        return found.name, found.image_size, found.resize
    except (OSError, ValueError, WorkspaceError):
        return None


def _texts(workspace: Workspace, commit: Commit) -> str | None:
    """Read from a commit's head what it uses texts for."""
    name = "head.json"
    with suppress(OSError, ValueError, WorkspaceError):  # what is gone or damaged is told of elsewhere
        told = HeadSummary.parse(workspace.objects.file("heads", commit.head or "", name), name).texts
        return told or None
    return None


def _selection_steps(snapshot: Snapshot) -> _Steps:
    fits = f"text_fp = {quote(snapshot.commit.text_fp or '')}"
    scored = snapshot.table("sentence_scores", ["sentence_id", "image_set"], fits)
    texts = snapshot.table("sentences", ["sentence_id", "class_id"])
    used = texts.filter(
        pc.is_in(texts["class_id"], value_set=pa.array(snapshot.class_table().ids, pa.int32()))
    )
    config = snapshot.commit.info.select or snapshot.recipe.select
    held = frozenset[str]()
    with suppress(MissingStepError):  # a checkpoint that is gone is told of elsewhere
        held = held_images(snapshot)
    if changed := len(set(used["sentence_id"].to_pylist()) ^ set(scored["sentence_id"].to_pylist())):
        yield f"the selection is from before {plural(changed, 'sentence')} came or went", "vlltr select"
    elif not config.augmented:  # with augmentation the digest depends on more than the images
        rows = score_image_rows(snapshot, config, held)
        contents = list(map(content_id, rows["image_id"].to_pylist(), rows["content_hash"].to_pylist()))
        if set(scored["image_set"].to_pylist()) - {digest_images(rows["class_id"].to_pylist(), contents)}:
            yield "the selection is from before images that it scores against came or went", "vlltr select"


def _head_steps(workspace: Workspace, commit: Commit) -> _Steps:
    command = "vlltr train lgr"
    if not commit.head:
        yield "the head has not been trained", command
    elif _gone(workspace.objects, "heads", commit.head):
        yield f"the head's files are gone: {short(commit.head)}", command
    else:
        try:
            name = "head.json"
            trained = HeadSummary.parse(workspace.objects.file("heads", commit.head, name), name)
            if (trained.text_fp, trained.image_fp) != (commit.text_fp, commit.image_fp):
                yield "the head was trained on another encoder's vectors", command
        except (OSError, ValueError):
            yield f"the head's files are damaged: {short(commit.head)}", command


def _index_steps(workspace: Workspace, snapshot: Snapshot) -> _Steps:
    command = "vlltr index"
    index = snapshot.commit.index
    anchors = snapshot.count("anchors")
    if index is not None and _gone(workspace.objects, "index", index.digest):
        yield f"the index's files are gone: {short(index.digest)}", command
    elif anchors < MANY_ANCHORS or not snapshot.commit.family.has_cosines:
        return  # all classes are scored
    elif index is None:
        yield "there is no index over the anchors", command
    elif index.text_fp != snapshot.commit.text_fp:
        yield "the index is over another encoder's vectors", command
    elif (beside := _anchors_since(workspace, snapshot, index.digest)) > _BESIDE * anchors:
        came = f"{plural(beside, 'anchor')} came or went since the index was built"
        yield f"{came}; those are searched beside it", command


def _anchors_since(workspace: Workspace, snapshot: Snapshot, digest: str) -> int:
    """Count the anchors that were added or removed since the index was built."""
    newest_first = map(workspace.history.read, reversed(workspace.history.ids()))
    since = takewhile(lambda commit: commit.index is not None and commit.index.digest == digest, newest_first)
    built = [snapshot.commit, *since][-1]
    if built.tables.get("anchors") == snapshot.commit.tables.get("anchors"):
        return 0
    try:
        then = workspace.snapshot(built.id).table("anchors", ["anchor_key"])["anchor_key"]
    except WorkspaceError:  # that version of the table was pruned
        return snapshot.count("anchors")
    now = snapshot.table("anchors", ["anchor_key"])["anchor_key"]
    return len(set(then.to_pylist()) ^ set(now.to_pylist()))


def _gone(objects: Objects, kind: Kind, digest: str) -> bool:
    try:
        objects.check(kind, digest)
    except MissingStepError:
        return True
    return False
