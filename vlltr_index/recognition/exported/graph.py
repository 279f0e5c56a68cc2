"""Write a model as an ONNX graph: from resized pixels to the probabilities of all classes.

The graph is a trace of the modules that answer everywhere else: the image tower, the head, the generative model and the
fusion. All classes are scored.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vlltr_index.errors import PretrainedError
from vlltr_index.heads.lgr_autograd import GRAM_FLOATS

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch.onnx import ONNXProgram

    from vlltr_index.recognition.model import Model

OPSET = 18
"""Version of ONNX's operators that graphs are written in."""
INPUT = "pixels"
"""Name of the graph's input, uint8 [B, H, W, 3]."""
ONE_FILE = 2**31 - 2**24
"""Most bytes of weights in the file of a graph, which protobuf limits to 2 GiB; more lie in a file beside it."""
_PRODUCTS = ("Conv", "Gemm", "MatMul")


def output_names(model: Model) -> list[str]:
    """Name a graph's outputs: `probabilities` [B, C] and, if the head has a level for it, `known_score` [B]."""
    return ["probabilities"] if model.rule.threshold is None else ["probabilities", "known_score"]


def check_exportable(model: Model) -> None:
    """Refuse a model that has no graph with the same answers.

    Raises:
        PretrainedError: Naming what stands against it.
    """
    encoder = model.encoder
    if encoder.precision == "bf16":
        raise PretrainedError(
            f"{encoder.name} computes in bfloat16, which an ONNX graph here does not: its answers would be others",
            "Embed and train with precision = 'fp32' in vlltr.toml, then export that.",
        )
    pre = encoder.config["preprocess_cfg"]
    if pre["interpolation"] not in ("bicubic", "bilinear"):
        raise PretrainedError(
            f"{encoder.name} resizes pictures by {pre['interpolation']!r} interpolation, for which there is no code",
            "Use an encoder with bicubic or bilinear interpolation, such as ViT-B-16.",
        )
    size = model.bank.gram_size
    if size > GRAM_FLOATS:
        raise PretrainedError(
            f"{model.bank.num_classes:,} classes with up to {model.bank.whole.width} anchors would need a graph with "
            f"{size * 4 / 2**30:.1f} GiB of inner products of anchors; {GRAM_FLOATS * 4 / 2**30:.0f} GiB are possible",
            "Select fewer anchors: vlltr select --set select.max_anchors=16",
        )


class _Graph(nn.Module):
    """A model, on the CPU, from pixels uint8 [B, H, W, 3] to features [B, D] and what `output_names` names."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Model) -> None:
        super().__init__()
        encoder = model.encoder
        self._model = model
        self.tower = encoder.model  # registered, so that their weights are those of the graph
        self.head = model.saved.head
        self.register_buffer("mean", encoder.mean[:, None, None])
        self.register_buffer("std", encoder.std[:, None, None])

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Normalise, encode and score."""
        scaled = pixels.permute(0, 3, 1, 2).float() / 255.0
        normalised = (scaled - self.mean) / self.std
        features = self._model.encoder.encode_pixels(normalised)
        return features, *self.score(features)

    def score(self, features: Tensor) -> tuple[Tensor, ...]:
        """Score features float32 [B, D] against every class."""
        model = self._model
        text = model.whole(self.head.whole_text_logits(features, model.bank))
        probabilities = model.rule.fuse(model.rule.visual_scores(features), text).probabilities
        if len(output_names(model)) == 1:
            return (probabilities,)
        return probabilities, model.rule.known_scores(features)


def write_graph(model: Model, path: Path, *, half: bool = False) -> None:
    """Write a model as an ONNX file, with its weights in `PATH.data` beside it where they exceed `ONE_FILE`.

    Args:
        model: The model, on the CPU; `check_exportable` has passed it.
        path: The file.
        half: Keep the weights of the image tower in float16, and multiply by them in float16.

    Raises:
        PretrainedError: If torch cannot trace the image tower.
    """
    module = _Graph(model).eval()
    with torch.no_grad():
        module.score(torch.zeros(2, model.encoder.dim))  # what the modules keep is computed now, not traced
        program = _traced(module, model)
    written = program.model
    features = written.graph.outputs.pop(0)
    if half:
        _halve(written.graph, features)
    for part in (written.graph, *written.graph):
        part.metadata_props.clear()  # lines of source code, and where they lie on this machine
    weights = [value.const_value for value in written.graph.initializers.values()]
    size = sum(one.nbytes for one in weights if one is not None)
    program.save(path, external_data=size > ONE_FILE)


def _traced(module: _Graph, model: Model) -> ONNXProgram:
    """Trace a module for any number of pictures."""
    encoder = model.encoder
    pixels = torch.zeros(2, *encoder.image_size, 3, dtype=torch.uint8)
    try:
        with warnings.catch_warnings(), _unlogged():
            warnings.simplefilter("ignore")  # of torch, about its own code
            program = torch.onnx.export(
                module,
                (pixels,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=["features", *output_names(model)],
                optimize=True,
                verbose=False,
            )
    except Exception as error:  # torch, onnxscript and the towers' own code raise many kinds
        why = str(error.__cause__ or error).strip().partition("\n")[0]
        raise PretrainedError(
            f"torch cannot write {encoder.name} as an ONNX graph: {why}",
            "Use an encoder of another kind; docs/howto.md names those that were tried.",
        ) from error
    assert program is not None
    return program


@contextmanager
def _unlogged() -> Iterator[None]:
    """Keep what is logged of single operations from being shown, unless it is an error."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)


def _halve(graph: ir.Graph, features: ir.Value) -> None:
    """Let what `features` is computed from multiply by weights in float16; all between the products stays float32.

    So activations that exceed float16 do no harm, and neither does the rounding of norms and sums.
    """
    import onnx_ir as ir

    tower = set[ir.Node]()
    coming = [features.producer()]
    while coming:
        node = coming.pop()
        if node is not None and node not in tower:
            tower.add(node)
            coming += [value.producer() for value in node.inputs if value is not None]
    for node in [one for one in graph if one in tower and one.op_type in _PRODUCTS]:
        inputs = [value for value in node.inputs if value is not None]
        if not any(value.is_initializer() for value in inputs):
            continue
        for place, value in enumerate(inputs):
            weight = value.const_value if value.is_initializer() else None
            if weight is not None and len(value.uses()) == 1:
                value.const_value = ir.tensor(weight.numpy().astype("float16"), name=value.name)
                value.dtype = ir.DataType.FLOAT16
            else:
                cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT16.value})
                graph.insert_before(node, cast)
                node.replace_input_with(place, cast.outputs[0])
        (result,) = node.outputs
        uses = result.uses()
        back = ir.node("Cast", [result], {"to": ir.DataType.FLOAT.value})
        back.outputs[0].dtype = ir.DataType.FLOAT
        back.outputs[0].shape = result.shape
        result.dtype = ir.DataType.FLOAT16
        graph.insert_after(node, back)
        for use in uses:
            use.node.replace_input_with(use.idx, back.outputs[0])
