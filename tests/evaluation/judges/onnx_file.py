"""A two-class network as an .onnx file, written field by field: the package onnx is not needed."""

from pathlib import Path

import numpy as np


def write_classifier(path: Path, weight: np.ndarray) -> Path:
    """Softmax of the mean colour (N, 3) times `weight` (3, 2), for pictures (N, 256, 256, 3) float32."""
    nodes = [
        node("ReduceMean", ["pictures"], "mean", ints("axes", [1, 2]) + integer("keepdims", 0)),
        node("MatMul", ["mean", "weight"], "logits", b""),
        node("Softmax", ["logits"], "scores", integer("axis", -1)),
    ]
    tensor = varint(1, 3) + varint(1, 2) + varint(2, 1) + text(8, "weight")
    tensor += block(9, weight.astype("<f4").tobytes())
    graph = b"".join(block(1, one) for one in nodes) + text(2, "classifier") + block(5, tensor)
    graph += block(11, value("pictures", [None, 256, 256, 3])) + block(12, value("scores", [None, 2]))
    path.write_bytes(varint(1, 8) + block(7, graph) + block(8, text(1, "") + varint(2, 13)))
    return path


def node(kind: str, inputs: list[str], output: str, attributes: bytes) -> bytes:
    return b"".join(text(1, name) for name in inputs) + text(2, output) + text(4, kind) + attributes


def ints(name: str, values: list[int]) -> bytes:
    return block(5, text(1, name) + b"".join(varint(8, one) for one in values) + varint(20, 7))


def integer(name: str, number: int) -> bytes:
    return block(5, text(1, name) + varint(3, number) + varint(20, 2))


def value(name: str, shape: list[int | None]) -> bytes:
    sides = b"".join(block(1, text(2, "N") if side is None else varint(1, side)) for side in shape)
    return text(1, name) + block(2, block(1, varint(1, 1) + block(2, sides)))


def text(field: int, content: str) -> bytes:
    return block(field, content.encode())


def block(field: int, content: bytes) -> bytes:
    return _number(field << 3 | 2) + _number(len(content)) + content


def varint(field: int, number: int) -> bytes:
    return _number(field << 3) + _number(number % 2**64)


def _number(number: int) -> bytes:
    parts = bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])
