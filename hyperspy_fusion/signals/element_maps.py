"""Stacks of element maps as a HyperSpy signal that knows which map is which element."""

from __future__ import annotations

import numpy as np
from hyperspy.signals import LazySignal2D, Signal2D

from hyperspy_fusion.grid.axes import STACK_AXES
from hyperspy_fusion.identify.elements import no_map_of
from hyperspy_fusion.identify.map_identity import identify_stack, metadata_names
from hyperspy_fusion.signals.fuse_method import fuse

# of this package, and of hyperspy.api.stack
ELEMENT_AXIS, STACK_AXIS = STACK_AXES
# where the known background of maps is, a signal as they are; their variance is where HyperSpy has it
BACKGROUND = "metadata.Element_maps.background"
# what the metadata list map by map
_PER_MAP = ("Sample.elements", "Element_maps.xray_lines")


class ElementMaps(Signal2D):
    """Element maps ``(n_elements | x, y)``: one map for each element, in the order of :attr:`elements`.

    Made by :func:`hyperspy_fusion.element_maps` and :func:`hyperspy_fusion.fuse`; saved and loaded by HyperSpy as
    signal type ``element_maps``. The result of a fit carries its parameters and cost history in
    ``metadata.Fusion``.
    """

    _signal_type = "element_maps"
    # what the maps were fused from; shared by slices and copies, not saved
    _inputs = None
    # replicates of the fit; shared and not saved alike
    _errors = None

    # what is known of the noise is cut as the maps are
    _additional_slicing_targets = [*Signal2D._additional_slicing_targets, BACKGROUND]

    fuse = fuse

    def __deepcopy__(self, memo):
        twin = super().__deepcopy__(memo)
        twin._inputs, twin._errors = self._inputs, self._errors
        return twin

    # ---- what is known of the noise -------------------------------------------------------------

    @property
    def known_background(self):
        """Counts of each map that are not of its element, as a signal like the maps, in their units; None if unknown.

        Made by ``element_maps(..., background=...)``. Maps that are calculated with do not keep it. The variance of
        maps is that of HyperSpy, ``get_noise_variance``.
        """
        return self.metadata.get_item(BACKGROUND.removeprefix("metadata."))

    def _deepcopy_with_new_data(self, data=None, copy_variance=False, **options):
        twin = super()._deepcopy_with_new_data(data, copy_variance=copy_variance, **options)
        if not copy_variance:
            twin._forget_noise()
        return twin

    def _forget_noise(self):
        """New pixels have another background and variance."""
        for path, key in (("Element_maps", "background"), ("Signal.Noise_properties", "variance")):
            node = self.metadata.get_item(path)
            if node is not None and node.has_item(key):
                delattr(node, key)

    def _noise_signals(self):
        known = (self.known_background, self.get_noise_variance())
        return [signal for signal in known if hasattr(signal, "axes_manager")]

    # ---- which map is which element ------------------------------------------------------------

    @property
    def elements(self):
        """Element symbols, one for each map, in order; right for every slice of the stack.

        Of maps stacked by ``hyperspy.api.stack``: what the metadata of each, which HyperSpy keeps, say of it.

        Raises
        ------
        ValueError
            Where the maps are no longer those of single elements, as after a sum over elements, or where
            nothing tells which they are.
        """
        elements = self._known_elements()
        if elements is None:
            names = ", ".join(metadata_names(self.metadata, "Sample.elements")) or "(none)"
            raise ValueError(
                f"{self!r} has no map for each of the elements {names}: slice the stack of maps with inav or get_map "
                "instead of summing or mixing elements, and let hyperspy.api.stack keep the metadata of maps."
            )
        return elements

    def _known_elements(self):
        """One symbol for each map along `_map_axis`; None where the metadata do not tell."""
        names, axis = metadata_names(self.metadata, "Sample.elements"), self._map_axis()
        if axis is not None and axis.name == STACK_AXIS:
            found = [identity.element for identity in identify_stack(self, axis)] if self._members() else [None]
            return None if None in found else found
        if not self._members_agree():
            return None
        if axis is None:
            return names if len(names) == 1 and not self.axes_manager.navigation_dimension else None
        places = _whole_numbers(axis.axis, len(names))
        return None if places is None else [names[i] for i in places]

    def get_map(self, element):
        """The map of one element, ``(|x, y)``, titled by its symbol.

        Parameters
        ----------
        element : str
            Symbol, as in :attr:`elements`.

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
        """The maps of the single elements, each titled by its symbol; other axes are split as by HyperSpy."""
        own_axis = self._map_axis()
        manual = number_of_parts != "auto" or step_sizes != "auto"
        if own_axis is None or manual or (axis != "auto" and self.axes_manager[axis] is not own_axis):
            parts = super().split(axis=axis, number_of_parts=number_of_parts, step_sizes=step_sizes)
            for part in parts:
                if isinstance(part, ElementMaps):
                    part._cut_labels()
            return parts
        return [self._map_at(i) for i in range(own_axis.size)]

    def rebin(self, new_shape=None, scale=None, crop=True, dtype=None, out=None):
        """As HyperSpy's, along x and y: maps of different elements are not added up.

        Pixels are added up, which the HAADF forward model of a fit does not know of: rebin :meth:`modelled_haadf` of its
        result, for rebinned maps have none.
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
            result.metadata.set_item("Element_maps.background", background)
        if result.data.shape != self.data.shape:
            result._mark_changed("rebinned")
        return binned

    def crop(self, axis, start=None, end=None, convert_units=False):
        """As HyperSpy's."""
        for signal in self._noise_signals():
            signal.crop(self.axes_manager[axis].index_in_axes_manager, start=start, end=end)
        super().crop(axis, start=start, end=end, convert_units=convert_units)
        self._cut_labels()

    def _slicer(self, slices, isNavigation=None, out=None):
        sliced = super()._slicer(slices, isNavigation, out)
        result = sliced if out is None else out
        if isinstance(result, ElementMaps):
            if out is not None:
                _copy_labels(self, out)
            array_slices = self._get_array_slices(slices, isNavigation)
            at = {a.name: a.axis[array_slices[a.index_in_array]] for a in self.axes_manager.navigation_axes}
            named = ELEMENT_AXIS in at and result._cut_labels(np.atleast_1d(at[ELEMENT_AXIS]))
            if STACK_AXIS in at and result._axis(STACK_AXIS) is None:
                result._become_member(round(at[STACK_AXIS]))
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
        cut = [_cut_lists(tree, values) for tree in (self.metadata, *(self._members() or []))]
        if cut[0] and axis is not None:
            axis.scale, axis.offset = 1, 0
        return cut[0]

    def _become_member(self, index):
        """Take the metadata that a map or result had before ``hyperspy.api.stack`` made it member ``index``."""
        member = self.original_metadata.get_item(f"stack_elements.element{index}")
        if member is not None:
            self._metadata = member.metadata.deepcopy()
            self._original_metadata = member.original_metadata.deepcopy()

    def _members(self):
        """Metadata of the signals that HyperSpy stacked here; empty where it kept none; None for no stack."""
        nodes = self.original_metadata.get_item("stack_elements")
        if nodes is not None:
            return [nodes[key].metadata for key in nodes.keys()]
        return [] if self.metadata.has_item("_HyperSpy.Stacking_history") else None

    def _members_agree(self):
        """Whether the metadata, which are those of the first member of a stack, name the maps of all."""
        members = self._members()
        if members is None:
            return True
        names = metadata_names(self.metadata, "Sample.elements")
        return bool(members) and all(metadata_names(member, "Sample.elements") == names for member in members)

    def _axis(self, name):
        return next((a for a in self.axes_manager.navigation_axes if a.name == name), None)

    def _map_axis(self):
        """The navigation axis along which one element follows another, None where there is none."""
        alone = self.axes_manager.navigation_dimension == 1
        return self._axis(ELEMENT_AXIS) or (self._axis(STACK_AXIS) if alone else None)

    # ---- arithmetic ------------------------------------------------------------------------------

    def _binary_operator_ruler(self, other, op_name):
        mixed = isinstance(other, ElementMaps) and other.data.dtype != bool
        mixed = mixed and other._known_elements() != self._known_elements()
        result = super()._binary_operator_ruler(other, op_name)
        result._mark_changed("changed by arithmetic")
        result._forget_noise()
        if mixed:
            # a ratio of Fe and O is a map of neither
            result.metadata.set_item("Sample.elements", [])
            result.metadata.General.title = f"{op_name.strip('_')} of several maps"
        return result

    def _unary_operator_ruler(self, op_name):
        result = super()._unary_operator_ruler(op_name)
        result._mark_changed("changed by arithmetic")
        result._forget_noise()
        return result

    def _mark_changed(self, how):
        """Note in ``metadata.Fusion`` that the maps are no longer those of the fit."""
        if self.metadata.has_item("Fusion"):
            self.metadata.set_item("Fusion.changed", how)

    # ---- the fit behind the maps ----------------------------------------------------------------

    def _fit(self):
        """``metadata.Fusion`` as a dictionary; a sentence where these maps are no result of a fit."""
        if not self.metadata.has_item("Fusion"):
            raise ValueError("These maps are not the result of a fit: call fuse(haadf) on them first.")
        return _in_memory(self.metadata.Fusion.as_dictionary())

    def modelled_haadf(self):
        """The HAADF image that the fused maps explain, ``(|x, y)``, in the units of the measured one.

        Needs the maps of all fused elements: the image of fewer is the part of the signal that those explain.
        It is calculated from the maps as they are.

        Raises
        ------
        ValueError
            Where the maps are not the result of a fit, or no longer: rebinned, calculated with, stacked, or edited.
            Edited pixels of a crop, which has no total to compare with, are not noticed.
        """
        from hyperspy_fusion.results.fused_maps import modelled_haadf

        return modelled_haadf(self)

    # ---- composition ------------------------------------------------------------------------------

    def atomic_percent(self, method, factors=None, *, vacuum=0.05, errors=None):
        """Composition in atomic percent, by exspy's quantification, without absorption correction.

        Parameters
        ----------
        method : {"CL", "zeta", "cross_section"}
            Cliff-Lorimer, zeta-factors or cross-sections. For maps of which each unit stands for one atom, as the
            intensities of a fitted EELS model do, "cross_section" with factors of 1.
        factors : dict, list or float, optional
            k-factors, zeta-factors or cross-sections: ``{element: factor}``, or a list **in the order of**
            :attr:`elements`, or one for all. Not needed for "cross_section" and maps of EELS edges by
            :func:`hyperspy_fusion.element_maps`, which know exspy's hydrogenic ones.
        vacuum : float
            Pixels are NaN where the mass thickness (of "cross_section": the number of atoms) that the maps amount to is
            at or below this part of its 99th percentile. 0 leaves out only pixels with nothing in any map.
        errors : ElementMaps, BaseSignal or array, optional
            Standard errors of these maps, in their units. None takes those of a fit with ``errors=True``, else the
            noise variance of the maps, ``get_noise_variance()``, where they have one.

        Returns
        -------
        ElementMaps
            Percent that sum to 100 in each pixel. Where errors are known, their squares are its
            ``get_noise_variance()``: propagated to first order, elements taken to be independent and factors exact.

        Notes
        -----
        Negative intensities are taken for 0. Percent are the same for any width of windows that all X-ray lines have in
        common. For absorption correction, and for mass thickness, pass the maps to exspy:
        ``eds.quantification(fused.split(), "zeta", factors, absorption_correction=True)``. These are amounts, and need
        all counts of a line: first divide maps of windows of 1.2 FWHM (`integration_windows`) by the 0.84 that they
        hold of it; those of 2 FWHM hold 0.98.
        """
        from hyperspy_fusion.results.composition import composition

        return composition(self, method, factors, "atomic", vacuum, self._given_or_known(errors))

    def weight_percent(self, method, factors=None, *, vacuum=0.05, errors=None):
        """Composition in weight percent; all else is as in :meth:`atomic_percent`."""
        from hyperspy_fusion.results.composition import composition

        return composition(self, method, factors, "weight", vacuum, self._given_or_known(errors))

    def region_means(self, region=None, *, errors=None, independent=None):
        """Mean of each map over a region, with its standard error as far as that of its pixels is known.

        For maps of any kind, of atomic per cent as well: the mean of the pixels as they are. But for the result of a
        fit with ``errors=True``, or a crop of it, the value and error of :meth:`region_mean`, which takes the
        counts of the region into account: smoothing across its edge does not bias it.

        Parameters
        ----------
        region : HyperSpy ROI, BaseSignal or array of bool, optional
            A :class:`hyperspy.api.roi.RectangularROI` or ``CircleROI`` in the units of the axes, or True where a pixel
            is in the region, (ny, nx). All pixels by default. A warning tells of a ROI that reaches beyond the maps.
        errors : ElementMaps, BaseSignal or array, optional
            Standard errors of the pixels, for the mean of these as they are; by default those of the fit, else the root
            of ``get_noise_variance()`` where there is one.
        independent : bool, optional
            Whether pixels err independently: the error of the mean is then the smaller the more there are. Those of a
            fit do not, which False takes to the extreme: all err in one direction, and the mean as much as they do.
            None is False for the result of a fit, for maps of EELS edges, whose background is shared, and for what was
            made of these, and True otherwise.

        Returns
        -------
        dict
            ``{element: (value, error)}``, the error NaN where it is not known. Pixels of NaN do not count.
        """
        from hyperspy_fusion.results import composition, uncertainty

        known = uncertainty.region_means(self, region) if errors is None and independent is None else None
        if known is not None:
            return known
        return composition.region_means(self, region, self._given_or_known(errors), independent)

    def region_percent(self, region, method, factors=None, *, units="atomic", errors=None):
        """Composition of a region: that of the mean counts of every map, and not the mean of the pixels' compositions.

        Of the result of a fit with ``errors=True`` it is that of ``region_mean``, which smoothing does not bias, with
        errors that know what those of the elements have in common. Of other maps it is that of the plain means. Errors
        of ``factors`` are in neither.

        Parameters
        ----------
        region : ROI, array or signal of bool, or None
            As for `region_means`; None takes all pixels, vacuum included.
        method, factors
            As for `atomic_percent`.
        units : {"atomic", "weight"}
        errors : ElementMaps, BaseSignal or array, optional
            Standard errors of the pixels, as for `region_means`, for the composition of the plain means.

        Returns
        -------
        dict
            ``{element: (value, error)}`` in per cent, named tuples; NaN for errors that are not known.

        Examples
        --------
        >>> fused.region_percent(roi, "CL", {"Fe": 1.21, "O": 1.9})["Fe"].error  # doctest: +SKIP
        """
        from hyperspy_fusion.results.uncertainty import region_percent

        return region_percent(self, region, method, factors, units, errors)

    def line_profile(self, start, end=None, linewidth=0.0, *, errors=None, independent=None):
        """Profile of each map along a line, by HyperSpy's ``Line2DROI``.

        Parameters
        ----------
        start, end : tuple of float
            (x, y) in the units of the axes. Or a :class:`hyperspy.api.roi.Line2DROI` as ``start`` alone.
        linewidth : float
            Width in the units of the axes over which the mean is taken; 0 for that of the ROI, else for one pixel.
        errors, independent
            As in :meth:`region_means`, of the pixels across the line.

        Returns
        -------
        Signal1D
            ``(element|distance)``; the variance is its ``get_noise_variance()`` where errors are known. NaN beyond the
            maps, of which there is a warning, and where no pixel across the line has a value.

        Raises
        ------
        ValueError
            Where all of the line is beyond the maps.
        TypeError
            For what is no line.
        """
        from hyperspy_fusion.results.composition import line_profile
        from hyperspy_fusion.results.regions import line_ends

        return line_profile(self, *line_ends(start, end, linewidth), self._given_or_known(errors), independent)

    def plot_convergence(self):
        """Plot the terms of the objective, and the duality gap where there is one, against the iterations of the fit.

        Returns
        -------
        numpy.ndarray
            The matplotlib axes.
        """
        from hyperspy_fusion.results.plot import plot_convergence

        fit = self._fit()
        return plot_convergence(fit["cost_history"], fit["parameters"])

    def plot_selection(self):
        """Plot how well the fits that were compared predict data held out, where weights were chosen.

        The bars are standard errors of the difference from the fit of the largest weight: much smaller than that of a
        score, for both predict the same data.

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        ValueError
            Where no weights were chosen: by method="auto", or lambda_tv="auto" of the published method.
        """
        from hyperspy_fusion.results.plot import plot_selection

        fit = self._fit()
        if "selection" not in fit:
            raise ValueError('No weights were chosen in this fit, all were given: fuse by method="auto".')
        return plot_selection(fit["selection"])

    def plot_fusion(self, crop=None, maps=None, haadf=None, errors=False, same_limits=True):
        """Plot measured over fused maps, element by element, beside the measured and the modelled HAADF image.

        Measured and fused map of an element have the same colours. The brightest pixels lie beyond them, 0.2 % of a map
        and 2 % of a measured one, for noise alone would set them otherwise.

        Parameters
        ----------
        crop : tuple, optional
            ``(left, right, top, bottom)``: whole numbers are pixels, other numbers are in the units of the axes.
        maps : ElementMaps, optional
            The measured maps. Known to the result of a fit, but not saved with it.
        haadf : Signal2D, optional
            The measured HAADF image. Known to the result of a fit, but not saved with it.
        errors : bool
            Whether to plot the standard errors of the fused maps below them; see :meth:`standard_errors`.
        same_limits : bool
            False gives every panel colours of its own: to compare shapes, where no values are to be compared.

        Returns
        -------
        numpy.ndarray
            The matplotlib axes.
        """
        from hyperspy_fusion.results.fused_maps import plot_fused

        found = np.atleast_3d(self.standard_errors().data.T).T if errors else None
        return plot_fused(self, crop=crop, maps=maps, haadf=haadf, errors=found, same_limits=same_limits)

    # ---- errors ----------------------------------------------------------------------------------

    def standard_errors(self):
        """The standard error of every pixel, as :class:`ElementMaps` in the units of the maps.

        Scatter by noise, and what smoothing costs as far as the counts show it. Neighbouring pixels are wrong together:
        for regions use :meth:`region_mean`. Known to the result of a fit with ``errors=True``, and to crops of it, but
        not saved with it. Maps that were constant, and not fitted, are NaN.

        Raises
        ------
        ValueError
            Where the errors are not known, or the maps are no longer those of the fit.
        """
        from hyperspy_fusion.results.uncertainty import standard_errors

        return standard_errors(self)

    def _given_or_known(self, errors):
        """``errors``, or where they are None those of the fit, as far as the maps are still its own."""
        if errors is not None or self._errors is None:
            return errors
        try:
            return self.standard_errors()
        except ValueError:
            return None

    def region_mean(self, region, element):
        """The mean of one element over a region, with its standard error.

        Parameters
        ----------
        region : array or BaseSignal of bool, or HyperSpy ROI
            ``(ny, nx)``, True inside; or a ROI that covers an area. It must not be chosen by looking at the pixels of
            the same map above a threshold, which picks upward errors.
        element : str
            Symbol, as in :attr:`elements`.

        Returns
        -------
        RegionMean
            ``value`` and ``error`` in the units of the maps, and what they come from: the means of the fused and the
            measured map. A warning tells where half of the region or more was not measured, or a tenth in a block.

        Raises
        ------
        ValueError, TypeError
            Where the errors are not known (see :meth:`standard_errors`), or for a region that is none.
        """
        from hyperspy_fusion.results.uncertainty import region_mean

        return region_mean(self, region, element)

    def ratio(self, region, element, other):
        """The region mean of one element over that of another, with its standard error.

        A ratio of the units of the maps, as counts per counts, and not of atoms, also where cross-sections are known:
        for that divide each element by its cross-section, or multiply it by its k-factor over its atomic weight.

        Parameters
        ----------
        region
            As for :meth:`region_mean`.
        element, other : str
            Symbols of numerator and denominator.

        Returns
        -------
        Ratio
            ``value`` and ``error``.
        """
        from hyperspy_fusion.results.uncertainty import ratio

        return ratio(self, region, element, other)

    def export(self, folder, overwrite=False):
        """Write a calibrated .tif of each map and one .h5 of maps, HAADF, cost history and parameters.

        The HAADF image is cropped as the maps are, and left out where it is not known, as after loading. The modelled
        one is left out where maps of fitted elements are missing: it would look like a bad fit.

        Parameters
        ----------
        folder : str or pathlib.Path
            Made where it does not exist.
        overwrite : bool
            Without it a folder that exists is refused.

        Returns
        -------
        list of pathlib.Path
            The files written.
        """
        from hyperspy_fusion.io.export import export_maps
        from hyperspy_fusion.results.fused_maps import inputs_of_part, whole_modelled_haadf

        images = {"HAADF": inputs_of_part(self).haadf, "HAADF_modelled": whole_modelled_haadf(self)}
        return export_maps(self, {k: v for k, v in images.items() if v is not None}, folder, overwrite=overwrite)


class LazyElementMaps(ElementMaps, LazySignal2D):
    """Lazy twin of :class:`ElementMaps`."""

    _lazy = True


def _whole_numbers(values, size):
    """Positions from axis values, or None where they are not positions in a list of ``size`` names."""
    positions = np.round(values).astype(int)
    inside = positions.size and positions.min() >= 0 and positions.max() < size
    return positions if inside and np.allclose(values, positions, atol=1e-6) else None


def _cut_lists(tree, values):
    """Shorten what ``tree`` lists map by map; False where it does not name the maps at ``values``."""
    places = _whole_numbers(values, len(metadata_names(tree, "Sample.elements")))
    if places is None:
        return False
    for key in filter(tree.has_item, _PER_MAP):
        names = metadata_names(tree, key)
        tree.set_item(key, [names[i] for i in places])
    return True


def _copy_labels(source, out):
    """What ``out=`` of a slice needs to be labelled anew."""
    for key in _PER_MAP:
        if source.metadata.has_item(key):
            out.metadata.set_item(key, metadata_names(source.metadata, key))
    out._original_metadata = source.original_metadata.deepcopy()


def _in_memory(node):
    """A metadata dictionary with NumPy arrays for the dask arrays that lazily loaded files have in them."""
    return {
        key: _in_memory(value) if isinstance(value, dict) else np.asarray(value) if hasattr(value, "dask") else value
        for key, value in node.items()
    }
