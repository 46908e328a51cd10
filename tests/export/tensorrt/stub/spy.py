"""TensorRT's real Python bindings over a stub library, recording every call.

Each call goes through the real bindings, which raise TypeError for an argument of the wrong kind and AttributeError for
a name that this version does not have. What the stub cannot answer (numbers, texts, bytes) comes from `ANSWERS`.
"""

import ctypes
import sys
from pathlib import Path

LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
CONSTRUCTED = ("Builder", "OnnxParser", "Runtime")  # wrapped; enums and base classes are the real ones
SIMPLE = (bool, int, float, str, bytes, tuple, list, type(None))


def load(libraries: Path, bindings: Path, major: int):
    """The bindings' module; the libraries must be loaded first, as they are not where the loader looks."""
    for name in LIBRARIES:
        ctypes.CDLL(str(libraries / f"lib{name}.so.{major}"), mode=ctypes.RTLD_GLOBAL)
    sys.path.insert(0, str(bindings))
    import tensorrt_bindings

    return tensorrt_bindings


class Spy:
    """A real object of the bindings; `calls` gets (class, member, arguments)."""

    def __init__(self, real, calls: list, answers: dict):
        object.__setattr__(self, "_real", real)
        object.__setattr__(self, "_calls", calls)
        object.__setattr__(self, "_answers", answers)

    def __getattr__(self, name: str):
        kind = type(self._real).__name__
        answer = self._answers.get((kind, name), ...)
        if not callable(getattr(type(self._real), name)):  # a property; AttributeError if this version has no such name
            self._calls.append((kind, name, ()))
            return answer if answer is not ... else self._wrap(getattr(self._real, name))
        return lambda *arguments: self._call(kind, name, arguments, answer)

    def _call(self, kind: str, name: str, arguments: tuple, answer):
        self._calls.append((kind, name, tuple(shown(a) for a in arguments)))
        if kind == "ParserError":  # returns C strings, which the stub has none of
            return answer
        real = getattr(self._real, name)(*(a._real if isinstance(a, Spy) else a for a in arguments))
        return answer if answer is not ... else self._wrap(real)

    def __setattr__(self, name: str, value) -> None:
        if not isinstance(getattr(type(self._real), name, None), property):
            raise AttributeError(f"{type(self._real).__name__} has no property {name}")
        setattr(self._real, name, value)
        self._calls.append((type(self._real).__name__, name, (shown(value),)))

    def _wrap(self, value):
        return value if isinstance(value, SIMPLE) else Spy(value, self._calls, self._answers)


def shown(value) -> str:
    if isinstance(value, Spy):
        return type(value._real).__name__
    return repr(value) if isinstance(value, SIMPLE) else type(value).__name__ + ":" + getattr(value, "name", "")


class Module:
    """The bindings' module whose objects are spies."""

    def __init__(self, real, answers: dict):
        self._real, self.calls, self._answers = real, [], answers

    def __getattr__(self, name: str):
        value = getattr(self._real, name)
        if name not in CONSTRUCTED:
            return value
        return lambda *arguments: self._construct(name, value, arguments)

    def _construct(self, name: str, cls, arguments: tuple) -> Spy:
        self.calls.append((name, "__init__", tuple(shown(a) for a in arguments)))
        return Spy(cls(*(a._real if isinstance(a, Spy) else a for a in arguments)), self.calls, self._answers)
