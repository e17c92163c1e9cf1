"""Fused maps by element, as attributes of a model."""

from __future__ import annotations


class Components:
    """Fused maps by element: ``components.Fe``, ``components["Fe"]``, iteration, length."""

    def __init__(self, model):
        self._model = model

    def __getattr__(self, name):
        if name.startswith("_") or name not in self._model.elements:
            raise AttributeError(f"There is no component {name!r}: there are {', '.join(self._model.elements)}.")
        return self._model[name]

    def __getitem__(self, key):
        return self._model[self._model.elements[key] if isinstance(key, int) else key]

    def __len__(self):
        return len(self._model.elements)

    def __dir__(self):
        return [*super().__dir__(), *self._model.elements]

    def __repr__(self):
        lines = [f"{i:4d} | {element}" for i, element in enumerate(self._model.elements)]
        return "\n".join(["   # | element", "---- | -------", *lines])
