"""What a second elastic image adds to a light element, and what a wrong one costs.

    python -m benchmarks.images                       # atomic columns at 4 counts, method="auto", a minute
    python -m benchmarks.images --seeds 3

The phantom has heavy and light columns; the phase image goes with Z to the power of 0.7, which the fit does not know.
The wrong images are one of another field of view, and noise.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from benchmarks.common import conclude, machine

SIZE, COUNTS = 64, 4
GAIN_DB, COST_DB = 2.0, 0.1


def fitted(images, maps):
    """Fused maps, and the weights of the images in the fit of the largest weight."""
    from hyperspy_fusion import FusedMultiModal

    model = FusedMultiModal(images, maps)
    model.fit(show_progressbar=False)
    fused = model.as_signal()
    return fused, fused.metadata.Fusion.get_item("image_weights", np.ones(1))


def report(seed):
    """Print PSNR in dB for one draw; whether both bars are met."""
    from hyperspy_fusion import data

    scan = data.atomic_columns((SIZE, SIZE), counts=COUNTS, seed=seed)
    maps, haadf = scan.signals()
    phase = scan.phase(seed=seed + 1)
    other = phase._deepcopy_with_new_data(data.core_shell((SIZE, SIZE)).phase().data)
    noise = phase._deepcopy_with_new_data(np.random.default_rng(seed).normal(size=(SIZE, SIZE)))
    others = {"HAADF alone": [], "and phase": [phase], "and another field of view": [other], "and noise": [noise]}
    psnr, weights = {}, {}
    for name, further in others.items():
        fused, weights[name] = fitted([haadf, *further], maps)
        pairs = zip(scan.elements, scan.truth, strict=True)
        psnr[name] = np.array([data.psnr(fused.get_map(e).data, truth) for e, truth in pairs])
        listed = " ".join(f"{e} {value:5.2f}" for e, value in zip(scan.elements, psnr[name], strict=True))
        chosen = ", ".join(f"{w:g}" for w in weights[name])
        print(f"  seed {seed}  {name:26s} {listed} dB   weights {chosen}", flush=True)
    alone, light = psnr["HAADF alone"], scan.elements.index("O")
    wrong = ("and another field of view", "and noise")
    gain = psnr["and phase"][light] - alone[light]
    cost = max((alone - psnr[name]).max() for name in wrong)
    print(f"  seed {seed}  O gains {gain:.2f} dB by the phase; wrong images cost {max(cost, 0):.2f} dB at most")
    return gain >= GAIN_DB and cost <= COST_DB and all(weights[name][1] == 0 for name in wrong)


def main(argv=None):
    """Exit status: 0 where all bars are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args(argv)
    print(machine())
    return conclude([report(seed) for seed in range(arguments.seeds)])


if __name__ == "__main__":
    sys.exit(main())
