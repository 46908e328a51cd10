"""MagCache for Wan: skip steps by how much the residual's magnitude has drifted since it was last computed.

Ma et al., MagCache (arXiv:2506.09045), as in MagCache4Wan2.1: from step to step the mean magnitude of the blocks'
residual changes by a ratio that hardly depends on the prompt. While steps are skipped the product of the ratios
drifts from 1; the drifts are summed up, and a step is computed once the sum reaches the threshold or `max_skips` steps in a
row were skipped. A larger threshold skips more. The ratios come from one calibration run.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

# Published ratios of conditional and unconditional calls at 50 steps, in turn, without the leading ones.
_T2V_13B = (
    1.0124, 1.02213, 1.00166, 1.0041, 0.99791, 1.00061, 0.99682, 0.99762, 0.99634, 0.99685, 0.99567, 0.99586, 0.99416,
    0.99422, 0.99578, 0.99575, 0.9957, 0.99563, 0.99511, 0.99506, 0.99535, 0.99531, 0.99552, 0.99549, 0.99541, 0.99539,
    0.9954, 0.99536, 0.99489, 0.99485, 0.99518, 0.99514, 0.99484, 0.99478, 0.99481, 0.99479, 0.99415, 0.99413, 0.99419,
    0.99416, 0.99396, 0.99393, 0.99388, 0.99386, 0.99349, 0.99349, 0.99309, 0.99304, 0.9927, 0.9927, 0.99228, 0.99226,
    0.99171, 0.9917, 0.99137, 0.99135, 0.99068, 0.99063, 0.99005, 0.99003, 0.98944, 0.98942, 0.98849, 0.98849, 0.98758,
    0.98757, 0.98644, 0.98643, 0.98504, 0.98503, 0.9836, 0.98359, 0.98202, 0.98201, 0.97977, 0.97978, 0.97717, 0.97718,
    0.9741, 0.97411, 0.97003, 0.97002, 0.96538, 0.96541, 0.9593, 0.95933, 0.95086, 0.95089, 0.94013, 0.94019, 0.92402,
    0.92414, 0.90241, 0.9026, 0.86821, 0.86868, 0.81838, 0.81939,
)  # fmt: skip
_T2V_14B = (
    1.02504, 1.03017, 1.00025, 1.00251, 0.9985, 0.99962, 0.99779, 0.99771, 0.9966, 0.99658, 0.99482, 0.99476, 0.99467,
    0.99451, 0.99664, 0.99656, 0.99434, 0.99431, 0.99533, 0.99545, 0.99468, 0.99465, 0.99438, 0.99434, 0.99516, 0.99517,
    0.99384, 0.9938, 0.99404, 0.99401, 0.99517, 0.99516, 0.99409, 0.99408, 0.99428, 0.99426, 0.99347, 0.99343, 0.99418,
    0.99416, 0.99271, 0.99269, 0.99313, 0.99311, 0.99215, 0.99215, 0.99218, 0.99215, 0.99216, 0.99217, 0.99163, 0.99161,
    0.99138, 0.99135, 0.98982, 0.9898, 0.98996, 0.98995, 0.9887, 0.98866, 0.98772, 0.9877, 0.98767, 0.98765, 0.98573,
    0.9857, 0.98501, 0.98498, 0.9838, 0.98376, 0.98177, 0.98173, 0.98037, 0.98035, 0.97678, 0.97677, 0.97546, 0.97543,
    0.97184, 0.97183, 0.96711, 0.96708, 0.96349, 0.96345, 0.95629, 0.95625, 0.94926, 0.94929, 0.93964, 0.93961, 0.92511,
    0.92504, 0.90693, 0.90678, 0.8796, 0.87945, 0.86111, 0.86189,
)  # fmt: skip
_TI2V_5B = (
    0.99505, 0.99389, 0.99441, 0.9957, 0.99558, 0.99551, 0.99499, 0.9945, 0.99534, 0.99548, 0.99468, 0.9946, 0.99463,
    0.99458, 0.9946, 0.99453, 0.99408, 0.99404, 0.9945, 0.99441, 0.99409, 0.99398, 0.99403, 0.99397, 0.99382, 0.99377,
    0.99349, 0.99343, 0.99377, 0.99378, 0.9933, 0.99328, 0.99303, 0.99301, 0.99217, 0.99216, 0.992, 0.99201, 0.99201,
    0.99202, 0.99133, 0.99132, 0.99112, 0.9911, 0.99155, 0.99155, 0.98958, 0.98957, 0.98959, 0.98958, 0.98838, 0.98835,
    0.98826, 0.98825, 0.9883, 0.98828, 0.98711, 0.98709, 0.98562, 0.98561, 0.98511, 0.9851, 0.98414, 0.98412, 0.98284,
    0.98282, 0.98104, 0.98101, 0.97981, 0.97979, 0.97849, 0.97849, 0.97557, 0.97554, 0.97398, 0.97395, 0.97171, 0.97166,
    0.96917, 0.96913, 0.96511, 0.96507, 0.96263, 0.96257, 0.95839, 0.95835, 0.95483, 0.95475, 0.94942, 0.94936, 0.9468,
    0.94678, 0.94583, 0.94594, 0.94843, 0.94872, 0.96949, 0.97015,
)  # fmt: skip
# Two experts, 40 steps; the ratio across the switch is left out.
_T2V_A14B_HIGH = (
    1.00124, 1.00155, 0.99822, 0.99851, 0.99696, 0.99687, 0.99703, 0.99732, 0.9966, 0.99679, 0.99602, 0.99658, 0.99578,
    0.99664, 0.99484, 0.9949, 0.99633, 0.996, 0.99659, 0.99683, 0.99534, 0.99549, 0.99584, 0.99577, 0.99681, 0.99694,
    0.99563, 0.99554, 0.9944, 0.99473, 0.99594, 0.9964, 0.99466, 0.99461, 0.99453, 0.99481, 0.99389, 0.99365, 0.99391,
    0.99406, 0.99354, 0.99361, 0.99283, 0.99278, 0.99268, 0.99263, 0.99057, 0.99091, 0.99125, 0.99126,
)  # fmt: skip
_T2V_A14B_LOW = (
    0.98808, 0.98852, 0.98765, 0.98736, 0.9851, 0.98535, 0.98311, 0.98339, 0.9805, 0.9806, 0.97776, 0.97771, 0.97278,
    0.97286, 0.96731, 0.96728, 0.95857, 0.95855, 0.94385, 0.94385, 0.92118, 0.921, 0.88108, 0.88076, 0.80263, 0.80181,
)  # fmt: skip
_I2V_A14B_HIGH = (
    0.99191, 0.99144, 0.99356, 0.99337, 0.99326, 0.99285, 0.99251, 0.99264, 0.99393, 0.99366, 0.9943, 0.9943, 0.99276,
    0.99288, 0.99389, 0.99393, 0.99274, 0.99289, 0.99316, 0.9931, 0.99379, 0.99377, 0.99268, 0.99271, 0.99222, 0.99227,
    0.99175, 0.9916,
)  # fmt: skip
_I2V_A14B_LOW = (
    0.98931, 0.98933, 0.99087, 0.99088, 0.98852, 0.98855, 0.98895, 0.98896, 0.98806, 0.98808, 0.9871, 0.98711, 0.98613,
    0.98618, 0.98434, 0.98435, 0.983, 0.98307, 0.98185, 0.98187, 0.98131, 0.98131, 0.9783, 0.97835, 0.97619, 0.9762,
    0.97264, 0.9727, 0.97088, 0.97098, 0.96568, 0.9658, 0.96045, 0.96055, 0.95322, 0.95335, 0.94579, 0.94594, 0.93297,
    0.93311, 0.91699, 0.9172, 0.89174, 0.89202, 0.8541, 0.85446, 0.79823, 0.79902,
)  # fmt: skip
OFFICIAL = {"t2v-1.3b": _T2V_13B, "t2v-14b": _T2V_14B, "ti2v-5b": _TI2V_5B}
RETENTION, MAX_SKIPS = 0.2, 2  # the authors' default setting
# of each expert its ratios and the share that is always computed, as in MagCache4Wan2.2
OFFICIAL_PAIRS = {
    "t2v-a14b": ((_T2V_A14B_HIGH, 0.4), (_T2V_A14B_LOW, 0.4)),
    "i2v-a14b": ((_I2V_A14B_HIGH, 1.0), (_I2V_A14B_LOW, 0.1)),
}


@dataclass(frozen=True)
class MagCacheModel:
    """How the residual's magnitude of a checkpoint develops over a run.

    `ratios` holds, for each step of the calibration run, the mean magnitude over that of the step before (1 for the
    first). The first share `retention` of the steps is always computed.
    """

    ratios: tuple[float, ...]
    retention: float = RETENTION
    max_skips: int = MAX_SKIPS

    def __post_init__(self):
        object.__setattr__(self, "ratios", tuple(float(r) for r in self.ratios))

    def ratios_for(self, steps: int) -> tuple[float, ...]:
        """Ratios of a run of another length: those of the nearest calibrated steps, as the reference takes them."""
        last = len(self.ratios) - 1
        if steps == 1:
            return (self.ratios[-1],)
        # round() is half-to-even, as numpy's, which the reference uses
        return tuple(self.ratios[round(i * last / (steps - 1))] for i in range(steps))

    def plan(self, time: Tensor, modulation: Tensor, threshold: float) -> tuple[bool, ...]:
        """True for each step that is computed, for as many steps as there are time embeddings."""
        steps = time.shape[0]
        computed, ratio, error, skipped = [], 1.0, 0.0, 0
        for i, step_ratio in enumerate(self.ratios_for(steps)):
            if i >= max(1, int(steps * self.retention)):
                ratio *= step_ratio
                error += abs(1 - ratio)
                skipped += 1
                if error < threshold and skipped <= self.max_skips:
                    computed.append(False)
                    continue
            computed.append(True)
            ratio, error, skipped = 1.0, 0.0, 0
        return tuple(computed)


@cache
def official(variant: str, expert: int = 0) -> MagCacheModel | None:
    """The published ratios of a variant, averaged over both guidance branches: ours skip together. None if there are none."""
    if variant in OFFICIAL_PAIRS:
        ratios, retention = OFFICIAL_PAIRS[variant][expert]
    elif variant in OFFICIAL:
        ratios, retention = OFFICIAL[variant], RETENTION
    else:
        return None
    pairs = zip(ratios[::2], ratios[1::2], strict=True)
    return MagCacheModel((1.0, *((a + b) / 2 for a, b in pairs)), retention)


def magnitude_ratio(residual: Tensor, previous: Tensor) -> float:
    """Mean over the tokens of |residual| / |previous|, both [..., dim]."""
    norms = (torch.linalg.vector_norm(r.float(), dim=-1) for r in (residual, previous))
    return torch.div(*norms).mean().item()
