"""What a second elastic image adds to a light element, and what a wrong one costs.

    python -m benchmarks.images                       # 4 counts, method="auto", a minute
    python -m benchmarks.images --seeds 6 --size 48

One phantom is a lattice of heavy and light columns, one is not; the phase image goes with Z to the power of 0.7, which
the fit does not know. The wrong images are one of another field of view, noise, a phase image that is shifted, and
noise beside a right phase image. The bar of the gain is that of the lattice at 64 x 64.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from benchmarks.common import conclude, machine

SIZE, COUNTS = 64, 4
GAIN_DB, COST_DB = 2.0, 0.1
# each phantom with that of another field of view
PHANTOMS = {"atomic_columns": "core_shell", "core_shell": "atomic_columns"}


def fitted(images, maps):
    """Fused maps, and the weights of the images in the fit of the largest weight."""
    from hyperspy_fusion import FusedMultiModal

    model = FusedMultiModal(images, maps)
    model.fit(show_progressbar=False)
    fused = model.as_signal()
    return fused, fused.metadata.Fusion.get_item("image_weights", np.ones(1))


def report(name, size, seed):
    """Print PSNR in dB for one draw; whether its bars are met."""
    from hyperspy_fusion import data

    shape, rng = (size, size), np.random.default_rng(seed)
    scan = getattr(data, name)(shape, counts=COUNTS, seed=seed)
    maps, haadf = scan.signals()
    phase = scan.phase(seed=seed + 1)
    other = phase._deepcopy_with_new_data(getattr(data, PHANTOMS[name])(shape).phase().data)
    noise = phase._deepcopy_with_new_data(rng.normal(size=shape))
    shifted = phase._deepcopy_with_new_data(np.roll(phase.data, rng.integers(3, size - 3, 2), axis=(0, 1)))
    right = {"HAADF alone": [], "and phase": [phase]}
    wrong = {
        "and another field": [other],
        "and noise": [noise],
        "and shifted": [shifted],
        "phase and noise": [phase, noise],
    }
    psnr, weights, cost = {}, {}, 0.0
    for label, further in (right | wrong).items():
        fused, weights[label] = fitted([haadf, *further], maps)
        pairs = zip(scan.elements, scan.truth, strict=True)
        psnr[label] = np.array([data.psnr(fused.get_map(e).data, truth) for e, truth in pairs])
        listed = " ".join(f"{e} {value:5.2f}" for e, value in zip(scan.elements, psnr[label], strict=True))
        chosen = ", ".join(f"{w:g}" for w in weights[label])
        print(f"  {name} {seed}  {label:18s} {listed} dB   weights {chosen}", flush=True)
        if label in wrong:
            cost = max(cost, (psnr["HAADF alone" if len(further) == 1 else "and phase"] - psnr[label]).max())
    gain = (psnr["and phase"] - psnr["HAADF alone"])[-1]
    print(
        f"  {name} {seed}  {scan.elements[-1]} gains {gain:.2f} dB by the phase; wrong ones cost {cost:.2f} dB at most"
    )
    has_gain = gain >= GAIN_DB or name != "atomic_columns" or size != SIZE
    return has_gain and cost <= COST_DB and all(weights[label][-1] == 0 for label in wrong)


def main(argv=None):
    """Exit status: 0 where all bars are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--size", type=int, default=SIZE)
    arguments = parser.parse_args(argv)
    print(machine())
    return conclude([report(name, arguments.size, seed) for name in PHANTOMS for seed in range(arguments.seeds)])


if __name__ == "__main__":
    sys.exit(main())
