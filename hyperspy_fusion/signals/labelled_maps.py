"""A stack of maps whose metadata name the element of each, through slices, stacks and arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
from hyperspy.signals import Signal2D

from hyperspy_fusion.grid.axes import STACK_AXES
from hyperspy_fusion.identify.elements import no_map_of
from hyperspy_fusion.identify.map_identity import identify_stack, metadata_names

# of this package, and of hyperspy.api.stack
ELEMENT_AXIS, STACK_AXIS = STACK_AXES
# a signal like the maps; their variance is where HyperSpy has it
_BACKGROUND = "Element_maps.background"
# what the metadata list map by map
_PER_MAP = ("Sample.elements", "Element_maps.xray_lines")


class LabelledMaps(Signal2D):
    """Maps ``(n_elements | x, y)`` whose elements and noise metadata follow all that HyperSpy does to the signal."""

    # cut as the maps are
    _additional_slicing_targets = [*Signal2D._additional_slicing_targets, f"metadata.{_BACKGROUND}"]

    # ---- noise metadata -------------------------------------------------------------------------

    @property
    def known_background(self):
        """Counts of each map that are not of its element, as a signal like the maps, in their units; None if unknown.

        Made by ``element_maps(..., background=...)``. Maps that are calculated with do not keep it. The variance of
        maps is that of HyperSpy, ``get_noise_variance``.
        """
        return self.metadata.get_item(_BACKGROUND)

    def _deepcopy_with_new_data(self, data=None, copy_variance=False, **options):
        twin = super()._deepcopy_with_new_data(data, copy_variance=copy_variance, **options)
        if not copy_variance:
            twin._forget_noise()
        return twin

    def _forget_noise(self):
        """New pixels have another background and variance."""
        for path, key in (_BACKGROUND.split("."), ("Signal.Noise_properties", "variance")):
            node = self.metadata.get_item(path)
            if node is not None and node.has_item(key):
                delattr(node, key)

    # ---- which map is which element ------------------------------------------------------------

    @property
    def elements(self):
        """Element symbols, one for each map, in order; right for every slice of the stack.

        Of maps stacked by ``hyperspy.api.stack`` they come from the metadata of each, which HyperSpy keeps.

        Raises
        ------
        ValueError
            Where the maps are no longer those of single elements, as after a sum over elements, or where the metadata
            do not name them.
        """
        elements = self._named_elements()
        if elements is None:
            names = ", ".join(metadata_names(self.metadata, "Sample.elements")) or "(none)"
            raise ValueError(
                f"{self!r} has no map for each of the elements {names}: slice the stack of maps with inav or get_map "
                "instead of summing or mixing elements, and let hyperspy.api.stack keep the metadata of maps."
            )
        return elements

    def _named_elements(self) -> Any:
        """One symbol for each map along `_map_axis`; None where the metadata do not name them."""
        names, axis = metadata_names(self.metadata, "Sample.elements"), self._map_axis()
        if axis is not None and axis.name == STACK_AXIS:
            found = [one.element for one in identify_stack(self, axis)] if self._stacked_metadata() else [None]
            return None if None in found else found
        # the metadata of a stack are those of its first signal
        stacked = self._stacked_metadata()
        if stacked is not None:
            same = [metadata_names(one, "Sample.elements") == names for one in stacked]
            if not same or not all(same):
                return None
        if axis is None:
            return names if len(names) == 1 and not self.axes_manager.navigation_dimension else None
        places = _places(axis.axis, len(names))
        return None if places is None else [names[i] for i in places]

    def get_map(self, element):
        """The map of one element, ``(|x, y)``, titled by its symbol.

        Parameters
        ----------
        element : str
            Symbol, as in :attr:`elements`.

        Returns
        -------
        ElementMaps
            In the units of the maps.

        Raises
        ------
        ValueError
            Where there is no such map, or several.
        """
        elements = self.elements
        if element not in elements:
            raise ValueError(no_map_of(element, elements))
        if elements.count(element) > 1:
            raise ValueError(f"There are {elements.count(element)} maps of {element!r}: take one of them by inav.")
        return self.deepcopy() if self._map_axis() is None else self._map_at(elements.index(element))

    def _map_at(self, index):
        """The map at ``index`` of `_map_axis`, which need not be the first axis of inav."""
        slices = [index if axis is self._map_axis() else slice(None) for axis in self.axes_manager.navigation_axes]
        one = self.inav[tuple(slices)]
        lines = metadata_names(one.metadata, "Element_maps.xray_lines")
        if len(lines) == 1:
            # where exspy's quantification looks for it
            one.metadata.set_item("Sample.xray_lines", lines[0].split("+"))
        return one

    def split(self, axis="auto", number_of_parts="auto", step_sizes="auto"):
        """As HyperSpy's; along the axis of the elements, the default, the map of each element, titled by its symbol."""
        own_axis = self._map_axis()
        manual = number_of_parts != "auto" or step_sizes != "auto"
        if own_axis is None or manual or (axis != "auto" and self.axes_manager[axis] is not own_axis):
            found = super().split(axis=axis, number_of_parts=number_of_parts, step_sizes=step_sizes)
            for one in found:
                if isinstance(one, LabelledMaps):
                    one._cut_labels()
            return found
        return [self._map_at(i) for i in range(own_axis.size)]

    def rebin(self, new_shape=None, scale=None, crop=True, dtype=None, out=None):
        """As HyperSpy's, along x and y: maps of different elements are not added up.

        Rebinned maps have no modelled HAADF image: rebin :meth:`ElementMaps.modelled_haadf` of the result instead.

        Raises
        ------
        ValueError
            For rebinning over elements.
        """
        axis = self._axis(ELEMENT_AXIS)
        if axis is not None:
            at = self.axes_manager._get_axes_in_natural_order().index(axis)
            if (scale is not None and scale[at] != 1) or (new_shape is not None and new_shape[at] != axis.size):
                raise ValueError("Rebinning over elements would add up maps of different elements: rebin x and y only.")
        binned = super().rebin(new_shape=new_shape, scale=scale, crop=crop, dtype=dtype, out=out)
        result = binned if out is None else out
        if self.known_background is not None:
            background = self.known_background.rebin(new_shape=new_shape, scale=scale, crop=crop)
            result.metadata.set_item(_BACKGROUND, background)
        if result.data.shape != self.data.shape:
            result._mark_changed("rebinned")
        return binned

    def crop(self, axis, start=None, end=None, convert_units=False):
        """As HyperSpy's."""
        for signal in (self.known_background, self.get_noise_variance()):
            if hasattr(signal, "axes_manager"):
                signal.crop(self.axes_manager[axis].index_in_axes_manager, start=start, end=end)
        super().crop(axis, start=start, end=end, convert_units=convert_units)
        self._cut_labels()

    def _slicer(self, slices, isNavigation=None, out=None):
        sliced = super()._slicer(slices, isNavigation, out)
        result = sliced if out is None else out
        if isinstance(result, LabelledMaps):
            if out is not None:
                for key in filter(self.metadata.has_item, _PER_MAP):
                    out.metadata.set_item(key, metadata_names(self.metadata, key))
                out._original_metadata = self.original_metadata.deepcopy()
            array_slices = self._get_array_slices(slices, isNavigation)
            at = {a.name: a.axis[array_slices[a.index_in_array]] for a in self.axes_manager.navigation_axes}
            named = ELEMENT_AXIS in at and result._cut_labels(np.atleast_1d(at[ELEMENT_AXIS]))
            if STACK_AXIS in at and result._axis(STACK_AXIS) is None:
                result._restore_metadata(round(at[STACK_AXIS]))
            if named and result._axis(ELEMENT_AXIS) is None:
                result.metadata.General.title = result.metadata.Sample.elements[0]
        return sliced

    def _cut_labels(self, values=None):
        """Shorten the lists of the metadata to the maps at ``values`` of the element axis (now: all of it).

        HyperSpy leaves the lists whole and the axis calibrated, and drops the calibration when it stacks.
        False where the metadata do not name these maps.
        """
        axis = self._axis(ELEMENT_AXIS)
        if values is None:
            values = [] if axis is None else axis.axis
        cut = [_cut_lists(tree, values) for tree in (self.metadata, *(self._stacked_metadata() or []))]
        if cut[0] and axis is not None:
            axis.scale, axis.offset = 1, 0
        return cut[0]

    def _restore_metadata(self, index):
        """Take the metadata that a signal had before ``hyperspy.api.stack`` put it at ``index``."""
        before = self.original_metadata.get_item(f"stack_elements.element{index}")
        if before is not None:
            self._metadata = before.metadata.deepcopy()
            self._original_metadata = before.original_metadata.deepcopy()

    def _stacked_metadata(self):
        """Metadata of the signals that HyperSpy stacked here; empty where it kept none; None for no stack."""
        nodes = self.original_metadata.get_item("stack_elements")
        if nodes is not None:
            return [nodes[key].metadata for key in nodes.keys()]
        return [] if self.metadata.has_item("_HyperSpy.Stacking_history") else None

    def _axis(self, name):
        return next((a for a in self.axes_manager.navigation_axes if a.name == name), None)

    def _map_axis(self):
        """The navigation axis along which one element follows another, None where there is none."""
        alone = self.axes_manager.navigation_dimension == 1
        return self._axis(ELEMENT_AXIS) or (self._axis(STACK_AXIS) if alone else None)

    # ---- arithmetic ------------------------------------------------------------------------------

    def _binary_operator_ruler(self, other, op_name):
        mixed = isinstance(other, LabelledMaps) and other.data.dtype != bool
        mixed = mixed and other._named_elements() != self._named_elements()
        result = self._after_arithmetic(super()._binary_operator_ruler(other, op_name))
        if mixed:
            # a ratio of Fe and O is a map of neither
            result.metadata.set_item("Sample.elements", [])
            result.metadata.General.title = f"{op_name.strip('_')} of several maps"
        return result

    def _unary_operator_ruler(self, op_name):
        return self._after_arithmetic(super()._unary_operator_ruler(op_name))

    @staticmethod
    def _after_arithmetic(result):
        result._mark_changed("changed by arithmetic")
        result._forget_noise()
        return result

    def _mark_changed(self, how):
        """Note in ``metadata.Fusion`` that the maps are no longer those of the fit."""
        for node in filter(self.metadata.has_item, ("Fusion", "Fused_frames")):
            self.metadata.set_item(f"{node}.changed", how)


def _places(values, size):
    """Axis values as places in a list of ``size`` names; None where they are none."""
    places = np.round(values).astype(int)
    inside = places.size and places.min() >= 0 and places.max() < size
    return places if inside and np.allclose(values, places, atol=1e-6) else None


def _cut_lists(tree, values):
    """Shorten what ``tree`` lists map by map; False where it does not name the maps at ``values``."""
    places = _places(values, len(metadata_names(tree, "Sample.elements")))
    if places is None:
        return False
    for key in filter(tree.has_item, _PER_MAP):
        names = metadata_names(tree, key)
        tree.set_item(key, [names[i] for i in places])
    return True
