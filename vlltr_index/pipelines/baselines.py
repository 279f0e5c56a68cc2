"""Train the baselines of a workspace (`vlltr train baseline`) and score images with them (`vlltr evaluate`).

What can be chosen is chosen on split val, or on held-back training images where there is none; never on test.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlltr_index.embedding.loading import image_set, image_vectors_of, open_encoder, usable_images
from vlltr_index.embedding.vectors import all_embedded, embed_images, embed_sentences
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.errors import FingerprintMismatch, MissingStepError, UsageError, WorkspaceError
from vlltr_index.evaluation import baselines as rules
from vlltr_index.pipelines import training
from vlltr_index.schemas.records import BASELINES
from vlltr_index.schemas.tables import sentence_vectors_name
from vlltr_index.tensors import choose_device, class_positions, cosine_logits
from vlltr_index.train.cvlp import train_image_only
from vlltr_index.train.data import TrainImages
from vlltr_index.train.distributed import own_part

if TYPE_CHECKING:
    from vlltr_index.schemas.config import BaselineConfig, BaselinesConfig
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.objects import Kind
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.transaction import Transaction
    from vlltr_index.store.workspace import Workspace

FC = "image-only"
ADJUSTED = "image-only + logit adjustment"
"""The strongest image-only row: what the method is compared with unless another row is named."""

Rule = Literal["linear", "cosine", "knn", "tip"]
Tower = Literal["fc", "own"]
_PLAIN = ("label", "rule", "tower", "checkpoint", "image_fp", "settings", "probabilities", "note")
_S = TypeVar("_S")  # a setting
_M = TypeVar("_M")  # the model fitted with it
_Fit = Callable[[float, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class BaselineRow:
    """One baseline classifier: a scoring rule over the features of one visual tower.

    The rule `linear` needs the tensors weight and bias; `cosine` weight and the setting `scale`; `tip` keys,
    key_labels, prototypes and `scale`, `alpha`, `beta`; `knn` the commit's sentences and `k`, `text_fp`.
    """

    label: str
    rule: Rule
    tower: Tower  # the fc baseline's, or the workspace's own
    checkpoint: str | None  # of the encoder; None where it is the recipe's pretrained start
    image_fp: str | None  # of the encoder; None where it has not been looked up
    class_ids: Tensor  # int64 [C], ascending
    tensors: dict[str, Tensor]  # float32 but for labels
    settings: dict[
        str, Any
    ]  # numbers that the rule needs, the chosen setting, and the images it was chosen on
    probabilities: bool = True  # whether the softmax of its scores is a probability
    note: str = ""  # a remark for readers of the table

    def scores(self, features: Tensor, snapshot: Snapshot) -> Tensor:
        """Return scores [N, C] for unnormalised features [N, D] of this row's tower."""
        t = {k: v.to(features.device) for k, v in self.tensors.items()}
        numbers = self.settings
        if self.rule == "linear":
            return rules.linear_logits(features, t["weight"], t["bias"])
        if self.rule == "cosine":
            return cosine_logits(features, t["weight"], numbers["scale"])
        if self.rule == "tip":
            cache = rules.TipCache(t["keys"], t["key_labels"], t["prototypes"], numbers["scale"])
            return rules.tip_logits(features, cache, numbers["alpha"], numbers["beta"])
        sentences = sentences_of(snapshot, self.class_ids)
        name = sentence_vectors_name(numbers["text_fp"])
        vectors = snapshot.store.vectors(name, "text_hash", sentences.hashes)
        return rules.knn_sentence_logits(
            features,
            vectors.to(features.device),
            sentences.labels,
            num_classes=len(self.class_ids),
            k=numbers["k"],
        )


@dataclass(frozen=True, eq=False)
class Sentences:
    """Sentences of some classes; labels int64 [N_t] are positions in `class_ids` int64 [C]."""

    class_ids: Tensor
    labels: Tensor
    hashes: list[str]
    texts: list[str]
    prompts: Tensor  # bool [N_t], made from the class name


def sentences_of(snapshot: Snapshot, class_ids: Tensor | None = None) -> Sentences:
    """Read the commit's sentences of `class_ids`, ordered by sentence_id; by default of every class that has one.

    Raises:
        MissingStepError: If there is none.
    """
    rows = snapshot.table("sentences", ["sentence_id", "class_id", "text_hash", "text", "source"])
    rows = rows.sort_by("sentence_id")
    owner = torch.tensor(rows["class_id"].to_pylist(), dtype=torch.int64)
    if class_ids is None:
        active = torch.tensor(snapshot.class_table().ids, dtype=torch.int64)
        class_ids = torch.unique(owner[torch.isin(owner, active)])
    positions = class_positions(class_ids, owner)
    kept = (positions >= 0).nonzero()[:, 0]
    if not len(kept):
        raise MissingStepError("there are no sentences", "Run: vlltr ingest text PATH")
    rows = rows.take(kept.numpy())
    return Sentences(
        class_ids=class_ids,
        labels=positions[kept],
        hashes=rows["text_hash"].to_pylist(),
        texts=rows["text"].to_pylist(),
        prompts=torch.tensor([source == "prompt" for source in rows["source"].to_pylist()]),
    )


def train_baseline_stage(
    workspace: Workspace, config: BaselineConfig, progress: Progress | None = None, resume: bool = True
) -> training.TrainReport:
    """Train the image-only baseline: the recipe's visual tower and a linear layer with cross-entropy; commit it.

    An interrupted run of the same settings goes on with `resume`, with as many processes or others.

    Raises:
        MissingStepError: If there are no training images.
        WorkspaceError: If the training images changed meanwhile.
        ConfigError: If the batch cannot be shared out among the processes.
    """
    recipe = workspace.recipe

    def prepare(snapshot: Snapshot) -> tuple[training.TrainingSet, str]:
        data = training.training_set(snapshot, with_texts=False)
        own_part(config.batch_size)
        return data, training.run_key("baseline-fc", recipe, config, data)

    command = "train baseline fc"
    with training.training_run(workspace, command, resume, prepare, facts=training.image_facts) as run:
        encoder = training.starting_encoder(recipe, [["a"]], config.seed)
        data = run.data
        images = TrainImages(data.sources, data.labels, encoder, config.augment, workers=config.workers)
        stage = train_image_only(encoder, images, config, run_dir=run.folder, progress=progress)

        def keep(tx: Transaction) -> str:
            digest = training.keep_stage(workspace, stage, data, kind="baseline-fc", config=config)
            tx.note(baseline_fc=digest)
            return digest

        digest = run.commit(keep)
    return training.stage_report(run, "baseline fc", digest, data, stage=stage, epochs=config.epochs)


def train_baseline(
    workspace: Workspace, name: str, config: BaselinesConfig, progress: Progress | None = None
) -> list[BaselineRow]:
    """Fit one of `BASELINES` on stored vectors and commit its rows under its name; others may write meanwhile.

    Raises:
        UsageError: If there is no such baseline.
        MissingStepError: If a step before has not been run; the hint names it.
    """
    if name not in _FITS:
        raise UsageError(f"no baseline {name!r}", f"There are: fc, {', '.join(BASELINES)}.")
    rows = _FITS[name](_Making(workspace, workspace.snapshot(), config, progress))
    with workspace.transaction(f"train baseline {name}") as tx:
        digest = workspace.objects.put("heads", lambda path: _save(rows, path))
        tx.note(baselines={**tx.commit.info.baselines, name: digest})
    return rows


def _save(rows: list[BaselineRow], folder: Path) -> None:
    """Write `baseline.json` and `baseline.safetensors` into `folder`."""
    tensors = {
        f"{number}.{name}": value.clone(memory_format=torch.contiguous_format)
        for number, row in enumerate(rows)
        for name, value in {**row.tensors, "class_ids": row.class_ids}.items()
    }
    save_file(tensors, folder / "baseline.safetensors")
    record = {"format": 1, "rows": [{name: getattr(row, name) for name in _PLAIN} for row in rows]}
    text = json.dumps(record, indent=2, sort_keys=True) + "\n"
    (folder / "baseline.json").write_text(text, encoding="utf-8")


def _load(snapshot: Snapshot, name: str, digest: str) -> list[BaselineRow]:
    """Read the rows of a committed baseline."""
    folder = _kept(snapshot, "heads", digest, name)
    tensors = load_file(folder / "baseline.safetensors")
    rows = []
    record = json.loads((folder / "baseline.json").read_text(encoding="utf-8"))
    for number, facts in enumerate(record["rows"]):
        prefix = f"{number}."
        own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        rows.append(BaselineRow(class_ids=own.pop("class_ids"), tensors=own, **facts))
    return rows


def _kept(snapshot: Snapshot, kind: Kind, digest: str, name: str) -> Path:
    """The folder of a committed baseline, whose files must be those that were written."""
    try:
        return snapshot.objects.whole(kind, digest)
    except WorkspaceError as error:
        raise type(error)(error.message, f"Make it again: vlltr train baseline {name}") from None


def fc_checkpoint(snapshot: Snapshot) -> Path:
    """The folder of the fc baseline's tower and classifier.

    Raises:
        MissingStepError: If it was not trained, or is gone.
        WorkspaceError: If it is damaged.
    """
    digest = snapshot.commit.info.baseline_fc
    if not digest:
        raise MissingStepError(
            "the image-only baseline has not been trained yet", "Run: vlltr train baseline fc"
        )
    return _kept(snapshot, "checkpoints", digest, "fc")


def _rows(snapshot: Snapshot) -> Iterator[tuple[str, BaselineRow]]:
    """Name and row of each committed baseline, in the order of the table."""
    info = snapshot.commit.info
    if info.baseline_fc:
        folder = fc_checkpoint(snapshot)
        config = json.loads((folder / "train.json").read_text(encoding="utf-8"))["config"]
        visual = load_file(folder / "visual.safetensors")
        tensors = {"weight": visual["weight"], "bias": visual["bias"]}
        ids = visual["class_ids"]
        row = BaselineRow(
            FC, "linear", "fc", info.baseline_fc, image_fp=None, class_ids=ids, tensors=tensors, settings={}
        )
        yield "fc", row
        if config["logit_adjustment"] == 0:
            bias = rules.adjusted_logits(visual["bias"], visual["counts"], config["sampler_power"])
            yield "fc", replace(row, label=ADJUSTED, tensors={**tensors, "bias": bias})
    for name in BASELINES:
        if name in info.baselines:
            yield from ((name, row) for row in _load(snapshot, name, info.baselines[name]))


def baseline_labels(snapshot: Snapshot) -> list[str]:
    """Names of the rows that `score_baselines` gives, in its order.

    Raises:
        MissingStepError: If a baseline's files are gone.
        WorkspaceError: If they are damaged.
    """
    return [row.label for _, row in _rows(snapshot)]


def score_baselines(
    workspace: Workspace,
    snapshot: Snapshot,
    split: str,
    image_ids: list[str],
    progress: Progress | None = None,
) -> Iterator[tuple[BaselineRow, Tensor]]:
    """Yield each baseline row of the commit with its scores float [N, C] for `image_ids` of `split`, in their order.

    The image-only baseline has a row as trained and, if it was trained without logit adjustment, one with logit
    adjustment after training. Images without vectors are embedded first (resumable), with `progress`.

    Raises:
        MissingStepError: If a baseline's files are gone.
        WorkspaceError: If they are damaged.
        FingerprintMismatch: If the encoder a baseline was made with is not there any more.
    """
    known: dict[tuple[str | None, str | None], Tensor] = {}  # of the last row's tower
    for name, row in _rows(snapshot):
        tower = row.checkpoint, row.image_fp
        if tower not in known:
            image_fp = row.image_fp
            if image_fp is None or not all_embedded(snapshot, image_fp, image_ids):
                encoder = _encoder_of(snapshot, row, name)
                image_fp = encoder.image_fp
                _embed(workspace, encoder, split, image_ids=image_ids, progress=progress)
            features = image_vectors_of(snapshot, image_ids, image_fp=image_fp)
            known = {tower: features.to(choose_device())}
        note = "; ".join(filter(None, (row.note, _age(row, snapshot, name))))
        yield replace(row, note=note), row.scores(known[tower], snapshot).cpu()


def _encoder_of(snapshot: Snapshot, row: BaselineRow, name: str) -> Encoder:
    """The encoder that a row was made with."""
    if row.checkpoint is not None:
        encoder = Encoder.open(snapshot.objects.path("checkpoints", row.checkpoint))
    else:
        encoder = training.starting_encoder(snapshot.recipe)
    if row.image_fp not in (None, encoder.image_fp):
        raise FingerprintMismatch(
            f"baseline {name!r} was made with encoder {row.image_fp}, the one that loads now is {encoder.image_fp}",
            f"Make it again: vlltr train baseline {name}",
        )
    return encoder


def _embed(
    workspace: Workspace, encoder: Encoder, split: str, image_ids: list[str], progress: Progress | None
) -> None:
    """Embed the images that have no vector yet; a commit is made only if some of them cannot be read."""
    if not all_embedded(workspace.snapshot(), encoder.image_fp, image_ids):
        with workspace.transaction("embed for a baseline") as tx:
            embed_images(tx, encoder.eval(), split, progress=progress)


def _age(row: BaselineRow, snapshot: Snapshot, name: str) -> str:
    """Return a note if the row was fitted with a tower that is no longer the commit's, else an empty string."""
    now = snapshot.commit.info.baseline_fc if row.tower == "fc" else snapshot.commit.checkpoint
    return "" if now == row.checkpoint else f"made with an earlier tower: vlltr train baseline {name}"


@dataclass(frozen=True)
class _Making:
    """Inputs that every baseline's fit function gets."""

    workspace: Workspace
    snapshot: Snapshot
    config: BaselinesConfig
    progress: Progress | None

    def split(self, encoder: Encoder, split: str, class_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return features [N, D] and labels [N] of a split's images of `class_ids`; missing vectors are embedded
        first."""
        ids = usable_images(self.workspace.snapshot(), split, [])["image_id"].to_pylist()
        _embed(self.workspace, encoder, split, image_ids=ids, progress=self.progress)
        found = image_set(self.workspace.snapshot(), split, image_fp=encoder.image_fp)  # the readable ones
        labels = class_positions(class_ids, found.class_ids)
        device = choose_device()
        return found.features[labels >= 0].to(device), labels[labels >= 0].to(device)

    def trained_classes(self) -> Tensor:
        """Return the ids of the classes with training images, int64 [C], ascending."""
        owners = usable_images(self.snapshot, "train", [])["class_id"].to_pylist()
        return torch.tensor(sorted(set(owners)), dtype=torch.int64)

    def training(self, lr: float) -> rules.HeadTraining:
        """Return the training settings of cRT and LWS: class-balanced sampling and plain cross-entropy."""
        c = self.config
        return rules.HeadTraining(
            epochs=c.epochs,
            batch_size=c.batch_size,
            lr=lr,
            weight_decay=c.weight_decay,
            sampler_power=1.0,
            logit_adjustment=0.0,
            seed=c.seed,
        )


@dataclass(frozen=True, eq=False)
class _Tower:
    """Training features of one visual tower, and the images that settings are chosen on."""

    encoder: Encoder
    whose: Tower
    checkpoint: str | None
    class_ids: Tensor  # int64 [C]
    features: Tensor  # float32 [N, D], unnormalised
    labels: Tensor  # int64 [N], positions in `class_ids`
    fitted: Tensor  # bool [N], images to fit on while settings are tried
    seen: Tensor  # float32 [M, D], features of the images that settings are chosen on
    seen_labels: Tensor  # int64 [M]
    chosen_on: str  # which images these are, in words

    @classmethod
    def load(
        cls, making: _Making, encoder: Encoder, whose: Tower, checkpoint: str | None, class_ids: Tensor
    ) -> _Tower:
        """Read splits train and val; without val, hold back some training images to choose settings on."""
        features, labels = making.split(encoder, "train", class_ids)
        fitted = torch.ones(len(labels), dtype=torch.bool)
        chosen_on = "val"
        try:
            seen, seen_labels = making.split(encoder, "val", class_ids)
        except MissingStepError:
            fitted = ~rules.hold_back(labels, making.config.held_back)
            seen = features[~fitted]
            seen_labels = labels[~fitted]
            chosen_on = "held-back training images" if len(seen) else "nothing: defaults"
        return cls(
            encoder=encoder,
            whose=whose,
            checkpoint=checkpoint,
            class_ids=class_ids,
            features=features,
            labels=labels,
            fitted=fitted,
            seen=seen,
            seen_labels=seen_labels,
            chosen_on=chosen_on,
        )

    def row(
        self, label: str, rule: Rule, tensors: dict[str, Tensor], settings: dict[str, Any], **more: Any
    ) -> BaselineRow:
        """Build a row over this tower's features and classes; `more` are its other fields."""
        tensors = {k: v.cpu().float() if v.is_floating_point() else v.cpu() for k, v in tensors.items()}
        return BaselineRow(
            label=label,
            rule=rule,
            tower=self.whose,
            checkpoint=self.checkpoint,
            image_fp=self.encoder.image_fp,
            class_ids=self.class_ids,
            tensors=tensors,
            settings=settings,
            **more,
        )

    def choose(
        self, settings: Sequence[_S], fit: Callable[[_S, Tensor, Tensor], _M], scores: Callable[[_M], Tensor]
    ) -> tuple[_S, _M, dict[str, Any]]:
        """Fit with every setting, keep the one most accurate on `seen`, and fit it again if images were held back.

        `fit` maps a setting, features and labels to a model, `scores` a model to scores of `seen`. If there is nothing
        to choose on, the middle setting is taken. Returns the setting, the model, and the facts for the record.
        """
        facts: dict[str, Any] = {"chosen_on": self.chosen_on}
        if not len(self.seen):
            middle = settings[len(settings) // 2]
            return middle, fit(middle, self.features, self.labels), facts
        tried = [fit(setting, self.features[self.fitted], self.labels[self.fitted]) for setting in settings]
        at, accuracy = rules.best_setting(range(len(tried)), lambda at: scores(tried[at]), self.seen_labels)
        model = tried[at] if self.fitted.all() else fit(settings[at], self.features, self.labels)
        return settings[at], model, {**facts, "accuracy": round(accuracy, 4)}

    def linear(self, label: str, setting: str, values: Sequence[float], fit: _Fit) -> list[BaselineRow]:
        """Fit a linear classifier with one setting to choose, and return its row; `fit` returns weight and bias."""
        value, (w, b), facts = self.choose(values, fit, lambda wb: rules.linear_logits(self.seen, *wb))
        return [self.row(label, "linear", {"weight": w, "bias": b}, {setting: value, **facts})]


def _own_tower(making: _Making, class_ids: Tensor) -> _Tower:
    """Features of the workspace's encoder: the checkpoint its commit names, or the recipe's pretrained weights."""
    encoder = open_encoder(making.snapshot)
    return _Tower.load(making, encoder, "own", making.snapshot.commit.checkpoint, class_ids)


def _fc_tower(making: _Making) -> tuple[_Tower, Tensor, Tensor]:
    """Features of the fc baseline's tower, and its classifier's weight and bias for their classes."""
    folder = fc_checkpoint(making.snapshot)
    visual = load_file(folder / "visual.safetensors")
    rows = torch.isin(visual["class_ids"], making.trained_classes())
    digest = making.snapshot.commit.info.baseline_fc
    class_ids = visual["class_ids"][rows]
    tower = _Tower.load(making, Encoder.open(folder), "fc", checkpoint=digest, class_ids=class_ids)
    device = tower.features.device
    return tower, visual["weight"][rows].to(device), visual["bias"][rows].to(device)


def _ncm(making: _Making) -> list[BaselineRow]:
    own = making.snapshot.commit.info.baseline_fc is None
    tower = _own_tower(making, making.trained_classes()) if own else _fc_tower(making)[0]
    means = rules.class_means(tower.features, tower.labels, len(tower.class_ids))
    return [tower.row("ncm", "cosine", {"weight": means}, {"scale": 1.0}, probabilities=False)]


def _crt(making: _Making) -> list[BaselineRow]:
    tower, weight, _ = _fc_tower(making)

    def fit(lr: float, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return rules.fc_head(
            features, labels, len(weight), training=making.training(lr), progress=making.progress
        )

    return tower.linear("crt", "lr", making.config.lrs, fit)


def _tau_norm(making: _Making) -> list[BaselineRow]:
    tower, weight, bias = _fc_tower(making)

    def fit(tau: float, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return rules.tau_normalised(weight, tau), torch.zeros_like(bias)

    return tower.linear("tau-norm", "tau", making.config.taus, fit)


def _lws(making: _Making) -> list[BaselineRow]:
    tower, weight, bias = _fc_tower(making)

    def fit(lr: float, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        factors = rules.lws_scales(
            features, labels, weight, bias, training=making.training(lr), progress=making.progress
        )
        return weight * factors[:, None], bias * factors

    return tower.linear("lws", "lr", making.config.lrs, fit)


def _discriminant(making: _Making) -> list[BaselineRow]:
    tower = _own_tower(making, making.trained_classes())
    features = tower.features.double()
    classes = len(tower.class_ids)
    weight, bias = rules.shrunk_discriminant(features, tower.labels, classes)
    return [tower.row("discriminant", "linear", {"weight": weight, "bias": bias}, {})]


def _zero_shot(making: _Making) -> list[BaselineRow]:
    sentences = sentences_of(making.snapshot)
    tower = _own_tower(making, sentences.class_ids)
    weight, note = _ensemble(making, tower.encoder, sentences)
    scale = {"scale": tower.encoder.logit_scale}
    return [tower.row("zero-shot", "cosine", {"weight": weight}, scale, note=note)]


def _knn(making: _Making) -> list[BaselineRow]:
    sentences = sentences_of(making.snapshot)
    tower = _own_tower(making, sentences.class_ids)
    vectors = _vectors(making, tower.encoder, sentences.hashes, sentences.texts)
    classes = len(tower.class_ids)

    def fit(k: int, features: Tensor, labels: Tensor) -> int:
        return k

    def scores(k: int) -> Tensor:
        return rules.knn_sentence_logits(tower.seen, vectors, sentences.labels, num_classes=classes, k=k)

    k, _, facts = tower.choose(making.config.neighbours, fit, scores)
    settings = {"k": k, "text_fp": tower.encoder.text_fp, **facts}
    return [tower.row("knn", "knn", {}, settings, probabilities=False)]


def _tip_adapter(making: _Making) -> list[BaselineRow]:
    sentences = sentences_of(making.snapshot)
    config = making.config
    tower = _own_tower(making, sentences.class_ids)
    prototypes, note = _ensemble(making, tower.encoder, sentences)

    def cache(features: Tensor, labels: Tensor) -> rules.TipCache:
        places = rules.first_of_each_class(labels, config.cache_images)
        return rules.TipCache(features[places], labels[places], prototypes, tower.encoder.logit_scale)

    facts: dict[str, Any] = {"chosen_on": tower.chosen_on}
    alpha = config.alphas[len(config.alphas) // 2]
    beta = config.betas[len(config.betas) // 2]
    if len(tower.seen):
        tried = cache(tower.features[tower.fitted], tower.labels[tower.fitted])
        (alpha, beta), accuracy = rules.choose_tip(
            tower.seen, tower.seen_labels, tried, alphas=config.alphas, betas=config.betas
        )
        facts["accuracy"] = round(accuracy, 4)
    kept = cache(tower.features, tower.labels)
    tensors = {"keys": kept.keys, "key_labels": kept.labels, "prototypes": prototypes}
    settings = {"alpha": alpha, "beta": beta, "scale": kept.scale, **facts}
    return [tower.row("tip-adapter", "tip", tensors, settings, note=note)]


def _ensemble(making: _Making, encoder: Encoder, sentences: Sentences) -> tuple[Tensor, str]:
    """Return class weights [C, D] and a note: each class's mean normalised prompt vector, or that of all its
    sentences."""
    classes = len(sentences.class_ids)
    prompted = torch.bincount(sentences.labels[sentences.prompts], minlength=classes) > 0
    kept = (sentences.prompts | ~prompted[sentences.labels]).nonzero()[:, 0]
    hashes = [sentences.hashes[i] for i in kept.tolist()]
    texts = [sentences.texts[i] for i in kept.tolist()]
    bare = int((~prompted).sum())
    note = f"{bare:,} of {classes:,} classes have no prompt: the mean of all their sentences" if bare else ""
    vectors = _vectors(making, encoder, hashes, texts)
    return rules.class_means(vectors, sentences.labels[kept], classes), note


def _vectors(making: _Making, encoder: Encoder, hashes: list[str], texts: list[str]) -> Tensor:
    """Return vectors of sentences, float32 [N_t, D], unnormalised; missing ones are embedded first."""
    name = sentence_vectors_name(encoder.text_fp)
    store = making.workspace.store
    try:
        return store.vectors(name, "text_hash", hashes).to(choose_device())
    except MissingStepError:
        with making.workspace.transaction("embed for a baseline") as tx:  # only the cache grows: no commit
            embed_sentences(tx, encoder, hashes, texts, progress=making.progress)
    return store.vectors(name, "text_hash", hashes).to(choose_device())


_FITS = {
    "ncm": _ncm,
    "crt": _crt,
    "tau-norm": _tau_norm,
    "lws": _lws,
    "discriminant": _discriminant,
    "zero-shot": _zero_shot,
    "knn": _knn,
    "tip-adapter": _tip_adapter,
}
assert tuple(_FITS) == BASELINES
