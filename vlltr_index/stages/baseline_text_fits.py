"""How each baseline that reads sentences is made, over the workspace's own encoder."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlltr_index.baselines import HeadTraining, class_means, cosine_logits, knn_sentence_logits
from vlltr_index.baselines_text import (
    TipCache,
    choose_tip,
    first_of_each_class,
    tune_cache_keys,
    waffle_noise,
    waffle_text,
)
from vlltr_index.corpus.prompts import class_prompts
from vlltr_index.embedding import embed_sentences
from vlltr_index.errors import MissingStepError
from vlltr_index.loading import load_bank, view_suffix
from vlltr_index.metrics import balanced_accuracy
from vlltr_index.schemas.tables import image_vectors_name, sentence_vectors_name
from vlltr_index.stages.baseline_fits import Making, TowerData, choose, own_data
from vlltr_index.stages.baselines import BaselineRow, Sentences, sentences_of
from vlltr_index.stages.training import starting_encoder

if TYPE_CHECKING:
    from vlltr_index.encoder import Encoder

__all__ = ["TEXT_FITS"]

_WORD = re.compile(r"[a-z]{3,}")


def _vectors(making: Making, encoder: Encoder, sentences: Sentences) -> Tensor:
    """Stored vectors of the sentences, embedded where they lack; float32 [N_t, D], unnormalised."""
    with making.workspace.transaction("embed for a baseline") as tx:  # only the cache grows: no commit
        embed_sentences(tx, encoder, sentences.hashes, sentences.texts, making.progress)
    name = sentence_vectors_name(encoder.text_fp)
    return making.snapshot.store.vectors(name, "text_hash", sentences.hashes)[1]


def _ensemble(making: Making, encoder: Encoder, sentences: Sentences) -> tuple[Tensor, str]:
    """Prompt ensemble: mean of each class's normalised prompt vectors, [C, D]; all sentences where it has none."""
    prompted = torch.bincount(sentences.labels[sentences.prompts], minlength=len(sentences.class_ids)) > 0
    kept = sentences.prompts | ~prompted[sentences.labels]
    places = kept.nonzero()[:, 0].tolist()
    chosen = Sentences(
        sentences.class_ids,
        sentences.labels[kept],
        [sentences.hashes[i] for i in places],
        [sentences.texts[i] for i in places],
        sentences.prompts[kept],
    )
    bare = int((~prompted).sum())
    note = (
        f"{bare:,} of {len(prompted):,} classes have no prompt: the mean of all their sentences"
        if bare
        else ""
    )
    return class_means(_vectors(making, encoder, chosen), chosen.labels, len(prompted)), note


def _zero_shot(making: Making) -> list[BaselineRow]:
    sentences = sentences_of(making.snapshot)
    data = own_data(making, sentences.class_ids)
    weight, note = _ensemble(making, data.encoder, sentences)
    rows = [
        data.row("zero-shot", "cosine", {"weight": weight}, {"scale": data.encoder.logit_scale}, note=note)
    ]
    if data.checkpoint is not None and making.workspace.recipe.encoder.pretrained:
        start = starting_encoder(making.workspace.recipe, None, 0)
        start.eval()
        weight, note = _ensemble(making, start, sentences)
        rows.append(
            BaselineRow(
                "zero-shot, starting weights",
                "cosine",
                "start",
                None,
                start.image_fp,
                sentences.class_ids,
                {"weight": weight},
                {"scale": start.logit_scale},
                note=note,
            )
        )
    return rows


def _knn(making: Making) -> list[BaselineRow]:
    sentences = sentences_of(making.snapshot)
    data = own_data(making, sentences.class_ids)
    vectors, classes = _vectors(making, data.encoder, sentences), len(sentences.class_ids)
    k, _, facts = choose(
        data,
        making.config.neighbours,
        lambda k, rows: k,
        lambda k: knn_sentence_logits(data.seen, vectors, sentences.labels, classes, k),
    )
    settings = {"k": k, "text_fp": data.encoder.text_fp, **facts}
    return [data.row("knn", "knn", {}, settings, probabilities=False)]


def _tip_adapter(making: Making) -> list[BaselineRow]:
    data, prototypes, note = _tip_data(making)
    cache, alpha, beta, facts = _tip_choice(making, data, prototypes)
    return [_tip_row(data, "tip-adapter", cache, alpha, beta, facts, note)]


def _tip_adapter_f(making: Making) -> list[BaselineRow]:
    config = making.config
    data, prototypes, note = _tip_data(making)
    cache, alpha, beta, facts = _tip_choice(making, data, prototypes)
    places = first_of_each_class(data.labels, config.cache_images)
    views = _stored_views(making, data, places)
    if len(views) == 1:
        note = "; ".join(filter(None, (note, "the keys learned from plain views alone")))
    training = HeadTraining(config.tip_epochs, config.batch_size, config.tip_lr, 0.0, 1.0, 0.0, config.seed)
    tuned = tune_cache_keys(views, data.labels[places], cache, alpha, beta, training, making.progress)
    if data.chosen_on == "val":
        alpha, beta, accuracy = choose_tip(data.seen, data.seen_labels, tuned, config.alphas, config.betas)
        facts["accuracy"] = round(accuracy, 4)
    return [_tip_row(data, "tip-adapter-f", tuned, alpha, beta, {**facts, "views": len(views)}, note)]


def _tip_data(making: Making) -> tuple[TowerData, Tensor, str]:
    sentences = sentences_of(making.snapshot)
    data = own_data(making, sentences.class_ids)
    return data, *_ensemble(making, data.encoder, sentences)


def _tip_choice(
    making: Making, data: TowerData, prototypes: Tensor
) -> tuple[TipCache, float, float, dict[str, Any]]:
    """The cache of all training images, and (alpha, beta) chosen with that of the fitted ones."""
    config = making.config

    def cache(rows: Tensor) -> TipCache:
        features, labels = data.features[rows], data.labels[rows]
        places = first_of_each_class(labels, config.cache_images)
        return TipCache(features[places], labels[places], prototypes, data.encoder.logit_scale)

    everything = cache(torch.ones_like(data.fitted))
    if not len(data.seen):
        middle = config.alphas[len(config.alphas) // 2], config.betas[len(config.betas) // 2]
        return everything, *middle, {"chosen_on": data.chosen_on}
    alpha, beta, accuracy = choose_tip(
        data.seen, data.seen_labels, cache(data.fitted), config.alphas, config.betas
    )
    return everything, alpha, beta, {"chosen_on": data.chosen_on, "accuracy": round(accuracy, 4)}


def _tip_row(
    data: TowerData, label: str, cache: TipCache, alpha: float, beta: float, facts: dict[str, Any], note: str
) -> BaselineRow:
    tensors = {"keys": cache.keys, "key_labels": cache.labels, "prototypes": cache.prototypes}
    settings = {"alpha": alpha, "beta": beta, "scale": cache.scale, **facts}
    return data.row(label, "tip", tensors, settings, note=note)


def _stored_views(making: Making, data: TowerData, places: Tensor) -> Tensor:
    """The stored augmented views of training images, [V, K, D]; the plain view alone where there are none.

    A plain view would meet itself among the keys, so it takes no part where there are others.
    """
    commit, augment = making.snapshot.commit, making.workspace.recipe.lgr.augment
    stored = int(commit.info.get("views", 1)) if commit is not None else 1
    ids = [data.image_ids[i] for i in places.tolist()]
    name, found = image_vectors_name(data.encoder.image_fp), []
    for view in range(1, stored):
        keys = [f"{i}:{view_suffix(view, augment)}" for i in ids]
        try:
            found.append(making.snapshot.store.vectors(name, "vector_key", keys)[1])
        except MissingStepError:
            break
    return torch.stack(found) if found else data.features[places][None]


def _waffle(making: Making) -> list[BaselineRow]:
    bank = load_bank(making.snapshot).bank
    data = own_data(making, bank.class_ids)
    counts = bank.offsets.diff()
    weights = [_waffle_prototypes(making, data, counts, seed) for seed in range(making.config.waffle_seeds)]
    facts: dict[str, Any] = {"scale": data.encoder.logit_scale, "chosen_on": data.chosen_on, "seed": 0}
    note = f"random words, seed 0 of {len(weights)}"
    if len(data.seen):
        found = [balanced_accuracy(cosine_logits(data.seen, w), data.seen_labels) for w in weights]
        order = sorted(range(len(found)), key=lambda i: found[i])
        facts |= {"seed": order[len(order) // 2], "accuracies": [round(f, 4) for f in found]}
        note = (
            f"random words, the median of {len(found)} seeds on {data.chosen_on}, where they range from"
            f" {100 * min(found):.1f} to {100 * max(found):.1f} %"
        )
    ours = class_means(bank.vectors, bank.class_of_row, len(counts))
    scale = {"scale": data.encoder.logit_scale}
    return [
        data.row("waffle", "cosine", {"weight": weights[facts["seed"]]}, facts, note=note),
        data.row(
            "waffle with our anchors", "cosine", {"weight": ours}, scale, note="waffle's rule, our sentences"
        ),
    ]


def _waffle_prototypes(making: Making, data: TowerData, counts: Tensor, seed: int) -> Tensor:
    """Means [C, D] of as many meaningless sentences of each class as it has anchors, int64 [C]."""
    recipe, names = making.workspace.recipe, making.snapshot.class_table().names
    words = sorted({w for t in sentences_of(making.snapshot).texts for w in _WORD.findall(t.lower())})
    noise = waffle_noise(words, int(counts.max()), making.config.seed * 1000 + seed)
    template = "a photo of a {}." if recipe.prompts == "clip" else (recipe.prompts or ("{}",))[0]
    prompts = [class_prompts(names[i], [template])[0].text for i in data.class_ids.tolist()]
    texts = [
        waffle_text(prompt, noise[n])
        for prompt, count in zip(prompts, counts.tolist(), strict=True)
        for n in range(count)
    ]
    progress = making.progress
    report = (lambda done, total: progress(f"embed waffle {seed + 1}", done, total)) if progress else None
    vectors = data.encoder.encode_texts(texts, report)
    owner = torch.arange(len(counts)).repeat_interleave(counts)
    return class_means(vectors, owner, len(counts))


TEXT_FITS: dict[str, Callable[[Making], list[BaselineRow]]] = {
    "zero-shot": _zero_shot,
    "knn": _knn,
    "tip-adapter": _tip_adapter,
    "tip-adapter-f": _tip_adapter_f,
    "waffle": _waffle,
}
"""The baselines that read sentences."""
