"""A GPU that is pretended on the CPU, so that mistakes which only a GPU shows are seen without one.

Tensors made on it, or moved to it, say that they lie on `cuda:0`. What would fail there fails: operations on both
devices at once, NumPy's view of a tensor, random numbers from a CPU's generator. What costs is counted: kernels,
copies, and the times that the program waits for the device: to read a value or a whole tensor, to learn the size of a
result (`nonzero`, masks as indices), and for each copy that it does not call `non_blocking`.

    with pretended() as card:
        head.to("cuda")(features.to("cuda"), bank.to("cuda"))
    assert card.waits.total() <= 2, card.waits

Values are those of the CPU: of speed, and of rounding on a GPU, it knows nothing.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

__all__ = ["Card", "CardTensor", "pretended"]

CUDA = torch.device("cuda", 0)
_ASKS = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount",
    "isin", "equal", "_linalg_eigh", "_linalg_solve_ex",
}  # fmt: skip
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


@dataclass
class Card:
    """What was done on the device, and where in the project the program waited for it."""

    kernels: int = 0
    copies: int = 0
    waits: Counter[str] = field(default_factory=Counter)

    def wait(self, why: str) -> None:
        """Note that the program waits."""
        self.waits[f"{why} at {_place()}"] += 1


def _place() -> str:
    """The innermost line that is neither torch's nor this file's."""
    for frame in reversed(traceback.extract_stack()):
        if "/torch/" not in frame.filename and frame.filename != __file__:
            return f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}"
    return "?"


def _inner(value: Any) -> Any:
    return value.held if isinstance(value, CardTensor) else value


def _outer(value: Any) -> Any:
    return CardTensor(value) if isinstance(value, Tensor) and not isinstance(value, CardTensor) else value


class CardTensor(Tensor):
    """A tensor on the pretended device; `held` is what it holds."""

    held: Tensor
    card: ClassVar[Card] = Card()

    @staticmethod
    def __new__(cls, held: Tensor) -> CardTensor:
        """Around a tensor of the CPU, which it takes over."""
        dense = held.layout == torch.strided  # others have no strides
        lies = {"strides": held.stride(), "storage_offset": held.storage_offset()} if dense else {}
        made: CardTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]  # torch's own, without a type
            cls, held.size(), dtype=held.dtype, **lies
        )
        made.held = held
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]  # an attribute in torch's annotations
        """Where it says that it lies."""
        return CUDA

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]  # as above
        """True."""
        return True

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]  # as above
        """False."""
        return False

    def __repr__(self, **options: Any) -> str:
        return f"CardTensor({self.held})"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """One operation: see that it could run on the device, count it, and run it on the CPU."""
        options, name = dict(kwargs or {}), func._schema.name.split("::")[1].split(".")[0]
        if options.get("device") is not None:
            options["device"] = torch.device("cpu")
        if name == "copy_":
            return _copy(func, *args, **options)
        if name in _INDEXING:
            _check_index(args)
        else:
            _check_together(name, args, options)
        if name in _ASKS:
            cls.card.wait(name)
        returns = func._schema.returns
        alias = returns[0].alias_info if returns else None
        cls.card.kernels += alias is None or alias.is_write
        result = func(*tree_map(_inner, args), **tree_map(_inner, options))
        if alias is not None and alias.is_write:  # in place
            return options.get("out", args[0])
        return tree_map(_outer, result)


def _copy(func: Any, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    if isinstance(target, CardTensor) != isinstance(source, CardTensor) and source.dim():
        CardTensor.card.copies += 1
        if not non_blocking or isinstance(source, CardTensor):
            CardTensor.card.wait("copy_")
    func(_inner(target), _inner(source))
    return target


def _check_together(name: str, args: Any, options: Any) -> None:
    tensors = [v for v in tree_flatten((args, options))[0] if isinstance(v, Tensor)]
    apart = [list(v.shape) for v in tensors if not isinstance(v, CardTensor) and v.dim()]
    if apart:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but {name} got some on cuda:0 and some on the CPU: {apart}"
        )


def _check_index(args: tuple[Any, ...]) -> None:
    """Indices may be on the CPU, what they take from and put in may not be apart; masks have to be counted."""
    own, places = args[0], [place for place in args[1] if place is not None]
    if not isinstance(own, CardTensor) and any(isinstance(place, CardTensor) for place in places):
        raise RuntimeError(
            "indices should be either on the CPU or on the same device as the indexed tensor (cpu)"
        )
    if len(args) > 2 and args[2].dim() and isinstance(args[2], CardTensor) != isinstance(own, CardTensor):
        raise RuntimeError("index_put_: values and the tensor they are put into lie on two devices")
    for place in places:
        if not isinstance(place, CardTensor):
            CardTensor.card.copies += 1
            CardTensor.card.wait("an index on the CPU")
        elif place.dtype in (torch.bool, torch.uint8):
            CardTensor.card.wait("a mask as index")


class _Pretending(TorchFunctionMode):
    """Sees the calls that name a device, or ask for a tensor's values, before torch does."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options, name = dict(kwargs or {}), getattr(func, "__name__", "")
        first = args[0] if args else None
        if isinstance(first, Tensor) and name in ("to", "cpu", "cuda"):
            return self._moved(first, name, args[1:], options)
        if isinstance(first, CardTensor) and name in ("numpy", "__array__"):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        if isinstance(first, CardTensor) and name == "tolist":
            CardTensor.card.wait(name)
            return first.held.tolist()
        wanted = options.get("device")
        if wanted is None or torch.device(wanted).type != "cuda":
            return func(*args, **options)
        if options.get("generator") is not None:
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        if isinstance(first, Tensor):  # `as_tensor`, `zeros_like`, `new_zeros`
            return self._moved(func(*args, **{**options, "device": None}), "to", (CUDA,), {})
        learns = options.pop("requires_grad", False)
        made = func(*args, **{**options, "device": "cpu"})
        CardTensor.card.kernels += 1
        if name in ("tensor", "as_tensor"):
            CardTensor.card.copies += 1
            CardTensor.card.wait(name)
        return CardTensor(made).requires_grad_(learns)

    def _moved(self, value: Tensor, name: str, rest: tuple[Any, ...], options: dict[str, Any]) -> Tensor:
        device, dtype = options.get("device"), options.get("dtype")
        blocking = not options.get("non_blocking", False)
        for one in rest:
            if isinstance(one, torch.dtype):
                dtype = one
            elif isinstance(one, Tensor):
                device, dtype = one.device, one.dtype
            elif isinstance(one, str | torch.device):
                device = one
            elif isinstance(one, bool):
                blocking = not one
        if name != "to":
            device = name
        here, there = isinstance(value, CardTensor), value.device if device is None else torch.device(device)
        if dtype is not None and dtype != value.dtype:
            value = value.type(dtype)
        if here == (there.type == "cuda"):
            return value
        CardTensor.card.copies += 1
        if here or blocking:
            CardTensor.card.wait("to the CPU" if here else "to the GPU")
        moved: Tensor = _Move.apply(value)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return moved


class _Move(torch.autograd.Function):
    """From one device to the other, with the gradient the other way."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.held.clone() if isinstance(value, CardTensor) else CardTensor(value.detach().clone())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,) = grads
        return grad.held.clone() if isinstance(grad, CardTensor) else CardTensor(grad.clone())


@contextmanager
def pretended() -> Iterator[Card]:
    """While it is entered, there is a GPU: what is done on it is counted."""
    card = CardTensor.card = Card()
    facts: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "get_device_name": lambda device=None: "a pretended GPU",
    }
    with pytest.MonkeyPatch.context() as patch, _Pretending():
        for name, said in facts.items():
            patch.setattr(torch.cuda, name, said)
        # A torch with CUDA would ask the driver whether it captures a graph.
        patch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
        # Views of inference tensors cannot be wrapped: `inference_mode` is `no_grad` here.
        patch.setattr(torch._C, "_InferenceMode", lambda on: torch.no_grad() if on else nullcontext())
        # `Module.to` would else put what it moved into the old parameters, which are no tensors of this device.
        patch.setattr(torch.__future__, "get_overwrite_module_params_on_conversion", lambda: True)
        yield card
