"""The weights of a causal LM in blocks of few bits: made of its folder, or taken as they are from a GGUF file.

A *block file* (safetensors) holds the tiles of all products of a model under the names of its parameters, those of its
output layer under ``lm_head.weight``, and how many rows each has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from speech_mtp.files import replacing
from speech_mtp.lm.weight_files import WeightFiles
from speech_mtp.nn.blocks import BLOCK, Blocks

OUTPUT = "lm_head.weight"
"""Name of the output layer, which is kept in 8 bits: 4 bits there cost as much quality as in all the layers."""
_EMBEDDING = "model.embed_tokens.weight"
_GGUF = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Products of a layer as GGUF names them (``blk.0.attn_q.weight``), and as ``transformers`` does."""

BlocksOf = Callable[[str, Tensor], Blocks]
"""A parameter's name in the model and its values ``[N, K]`` -> the blocks that stand for it."""


def rounded(kind: str) -> BlocksOf:
    """Rounds values to blocks of ``kind``, and those of the output layer to 8 bits."""
    return lambda name, weight: Blocks.of(weight, "q8" if name == OUTPUT else kind, careful=True)


def among(blocks: Mapping[str, Blocks]) -> BlocksOf:
    """Gives the blocks that are there under the parameter's name. Raises ValueError where they do not fit it."""

    def found(name: str, weight: Tensor) -> Blocks:
        there = blocks.get(name)
        if there is None or there.shape != tuple(weight.shape):
            raise ValueError(
                f"The blocks do not fit the model: {name} is {tuple(weight.shape)} in the model and "
                f"{there and there.shape} among the blocks; remove the file of blocks, it is made again."
            )
        return there

    return found


def of_folder(folder: Path, kind: str) -> dict[str, Blocks]:
    """The products and the output layer of the model in ``folder``, rounded."""
    files, make = WeightFiles(folder), rounded(kind)
    products = tuple(f"{name}.weight" for name in _GGUF.values())
    made = {name: make(name, files[name]) for name in files.names() if name.endswith(products)}
    return made | {OUTPUT: make(OUTPUT, files[OUTPUT if OUTPUT in files else _EMBEDDING])}


def of_gguf(path: Path) -> dict[str, Blocks]:
    """The products and the output layer of a GGUF file: blocks of Q4_0, Q4_1 and Q8_0 as they are (none goes through
    floats), all other kinds rounded to ``q8``. Needs the package ``gguf``."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    made = {name: _blocks_of(tensors[own], _row_order(reader, own)) for own, name in _named(tensors)}
    output = tensors.get("output.weight") or tensors["token_embd.weight"]
    return made | {OUTPUT: _blocks_of(output, None)}


def _named(tensors: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Names of products in a GGUF file, with those that ``transformers`` gives them."""
    for own in tensors:
        parts = own.split(".")
        if parts[0] == "blk" and parts[2] in _GGUF and parts[3] == "weight":
            yield own, f"model.layers.{parts[1]}.{_GGUF[parts[2]]}.weight"


def _row_order(reader: Any, name: str) -> Tensor | None:
    """Where ``transformers`` has the rows of queries and keys: files of Llama's architecture turn neighbouring numbers
    of a head together, ``transformers`` those of its two halves."""
    kind = "attn_q" if ".attn_q." in name else "attn_k" if ".attn_k." in name else None
    architecture = _field(reader, "general.architecture")
    if kind is None or architecture != "llama":
        return None
    heads = int(_field(reader, "llama.attention.head_count"))
    if kind == "attn_k":
        heads = int(_field(reader, "llama.attention.head_count_kv", heads))
    rows = next(int(t.shape[1]) for t in reader.tensors if t.name == name)
    return torch.arange(rows).view(heads, rows // heads // 2, 2).transpose(1, 2).flatten()


def _field(reader: Any, name: str, usual: Any = None) -> Any:
    field = reader.get_field(name)
    return usual if field is None else field.contents()


def _blocks_of(tensor: Any, order: Tensor | None) -> Blocks:
    blocks = gguf_blocks(torch.from_numpy(tensor.data.copy()), tensor.tensor_type.name)
    if blocks is None:
        from gguf import dequantize

        floats = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        return Blocks.of(floats[_all(order)], "q8", careful=True)
    least = None if blocks.least is None else blocks.least[_all(order)]
    return Blocks.make(blocks.quants[_all(order)], blocks.scale[_all(order)], least)


def _all(order: Tensor | None) -> Tensor | slice:
    return slice(None) if order is None else order


def gguf_blocks(data: Tensor, kind: str) -> Blocks | None:
    """The bytes ``[N, B]`` of a matrix in GGUF's ``Q4_0``, ``Q4_1`` or ``Q8_0`` as blocks; None for other kinds::

        Q4_0   scale, 16 bytes             scale * (q - 8)
        Q4_1   scale, least, 16 bytes      scale * q + least
        Q8_0   scale, 32 bytes             scale * q

    The low halves of 16 bytes are the first 16 numbers of a block, the high halves the others."""
    head = {"Q4_0": 1, "Q4_1": 2, "Q8_0": 1}.get(kind)
    if head is None:
        return None
    each = data.unflatten(1, (-1, 2 * head + (BLOCK if kind == "Q8_0" else BLOCK // 2)))
    numbers = each[..., : 2 * head].contiguous().view(torch.float16)
    scale, body = numbers[..., 0].contiguous(), each[..., 2 * head :]
    if kind == "Q8_0":
        return Blocks.make(body.contiguous().view(torch.int8).flatten(1), scale)
    least = numbers[..., 1].contiguous() if kind == "Q4_1" else -8 * scale
    return Blocks.make(torch.cat([body & 15, body >> 4], -1).to(torch.int8).flatten(1), scale, least)


# -- block files ------------------------------------------------------------------------------------------------------
def save_blocks(blocks: Mapping[str, Blocks], path: Path) -> None:
    """Write a block file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {name: str(block.rows) for name, block in blocks.items()}
    with replacing(path) as temporary:
        try:
            save_file({name: block.tiles for name, block in blocks.items()}, temporary, rows)
        except SafetensorError as error:  # a full disk among others
            raise OSError(str(error)) from error


def load_blocks(path: Path) -> dict[str, Blocks]:
    """What :func:`save_blocks` wrote. Raises OSError for a file that is not whole."""
    try:
        with safe_open(path, "pt") as file:
            rows = file.metadata() or {}
            return {name: Blocks(file.get_tensor(name), int(rows[name])) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError) as error:
        raise OSError(f"{path} is damaged ({error}); remove it, it is made again.") from error
