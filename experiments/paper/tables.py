"""The paper's tables as data: networks, how they are trained and measured, the numbers published.

Accuracies are in percent, FLOPs and parameters in millions, as printed in Tables 1 to 7, Fig. 9 and
§5.5 of Ning et al.; None is a number that the text does not give.
"""

import dataclasses
from typing import Literal

Recipe = Literal["clean", "mibb", "mibb_3e-4", "adsaf"]
"""How a network is trained: without faults, or by FTT under MiBB with a rate chosen by the paper's
rule, under MiBB at p_m = 3e-4, or under stuck-at faults."""

Numbers = tuple[float | None, ...]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Faults that trained networks are measured under.

    Attributes:
        name: of its folders and columns.
        faults: text of the model, without a rate.
        rates: to visit; tables that show some of them share the campaigns of those that show all.
        encoding: of weights.
        title: as in the paper.
        some: the rates that a table shows, if not all.
    """

    name: str
    faults: str
    rates: tuple[float, ...]
    encoding: Literal["twos_complement", "sign_magnitude"]
    title: str
    some: tuple[float, ...] = ()

    @property
    def shown(self) -> tuple[float, ...]:
        """The rates that are columns of a table."""
        return self.some or self.rates

    @property
    def short(self) -> str:
        """The title without what its rates are of."""
        return self.title.partition(",")[0]

    def at(self, *rates: float) -> "Sweep":
        """The same where only some rates are shown."""
        return dataclasses.replace(self, some=rates)


@dataclasses.dataclass(frozen=True)
class Row:
    """One trained network.

    Attributes:
        label: as in the paper.
        network: a name of `ftnas_jax.models`, `w_ftt_net_20`, `w_ftt_net_40`, `found:SEARCH` for
            the best architecture of a search, `sample:SEARCH:NUMBER` for a random architecture,
            `sep_conv_5x5:NUMBER` for a random one of SepConv 5x5 alone, `stack:PRIMITIVE` or
            `blocks`.
        recipe: how it is trained.
        clean: its accuracy without faults.
        faulty: its accuracies at the rates of the table's sweeps.
        flops: of one image.
        parameters: of the network.
    """

    label: str
    network: str
    recipe: Recipe
    clean: float | None = None
    faulty: Numbers = ()
    flops: float | None = None
    parameters: float | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows, measured under sweeps.

    Attributes:
        name: for the command line.
        title: what the paper calls it.
        sweeps: whose rates are its columns.
        rows: trained networks.
        remark: what a reader has to know, or empty.
    """

    name: str
    title: str
    sweeps: tuple[Sweep, ...]
    rows: tuple[Row, ...]
    remark: str = ""


_MIBB = Sweep("mibb", "mibb", (3e-6, 1e-5, 3e-5, 1e-4, 3e-4), "twos_complement", "MiBB, p_m")
_ADSAF = Sweep(
    "adsaf",
    "stuck_at:ratio=0.837,layers=!classifier",
    (0.04, 0.06, 0.08, 0.10, 0.12),
    "sign_magnitude",
    "8bit-adSAF, p",
)
_ONE_BIT = Sweep(
    "adsaf_1bit",
    "stuck_bits:ratio=0.837,layers=!classifier",
    (0.02, 0.04, 0.06, 0.08, 0.10),
    "sign_magnitude",
    "1bit-adSAF, p",
)
_FLIPS = Sweep(
    "ibf",
    "bit_flip:layers=!classifier",
    (1e-3, 3e-3, 1e-2, 2e-2, 4e-2),
    "sign_magnitude",
    "iBF, rate of a bit",
)

_RESNET, _VGG, _MOBILENET = (1110.0, 11.16), (626.0, 14.65), (182.0, 2.30)

_FOUND = (
    "F-FTT-Net and the FT-Nets were published as pictures or not at all: these rows are the best "
    "architectures of other searches."
)

_RATES_KEPT = (
    "By its rule the paper trained MobileNet-V2 and F-FTT-Net at p_m = 3e-4, ResNet-18 at 1e-4 and "
    "VGG-16 at 3e-5."
)

_BASELINES_4 = (
    Row("ResNet-18", "resnet18", "clean", 94.7, (89.1, 63.4, 11.5, 10.0, 10.0), *_RESNET),
    Row("VGG-16", "vgg16", "clean", 93.1, (78.2, 21.4, 10.0, 10.0, 10.0), *_VGG),
    Row("MobileNet-V2", "mobilenet_v2", "clean", 92.3, (10.0,) * 5, *_MOBILENET),
)
_HARDENED_4 = (
    Row("ResNet-18", "resnet18", "mibb", 79.2, (79.1, 79.6, 78.9, 60.6, 11.3), *_RESNET),
    Row("VGG-16", "vgg16", "mibb", 83.5, (82.4, 77.9, 50.7, 11.1, 10.0), *_VGG),
    Row("MobileNet-V2", "mobilenet_v2", "mibb", 71.2, (70.3, 69.0, 68.7, 68.1, 47.8), *_MOBILENET),
)
_BASELINES_5 = (
    Row("ResNet-18", "resnet18", "clean", 94.7, (64.8, 34.9, 17.8, 12.4, 11.0), *_RESNET),
    Row("VGG-16", "vgg16", "clean", 93.1, (45.7, 21.7, 14.3, 12.6, 10.6), *_VGG),
    Row("MobileNet-V2", "mobilenet_v2", "clean", 92.3, (26.2, 14.3, 11.7, 10.3, 10.5), *_MOBILENET),
)
_HARDENED_5 = (
    Row("ResNet-18", "resnet18", "adsaf", 92.0, (86.4, 77.9, 60.8, 41.6, 25.6), *_RESNET),
    Row("VGG-16", "vgg16", "adsaf", 91.1, (82.6, 73.3, 58.5, 41.7, 28.1), *_VGG),
    Row("MobileNet-V2", "mobilenet_v2", "adsaf", 86.3, (76.6, 55.9, 35.7, 18.7, 15.1), *_MOBILENET),
)
_W_FTT_NET_20 = Row(
    "W-FTT-Net-20", "w_ftt_net_20", "adsaf", 90.8, (86.2, 79.5, 69.6, 53.5, 38.4), 919.0, 2.71
)


def _some(rows: tuple[Row, ...], *places: int) -> tuple[Row, ...]:
    """Rows with their accuracies at some of the rates."""
    return tuple(
        dataclasses.replace(row, faulty=tuple(row.faulty[place] for place in places))
        for row in rows
    )


def _samples(search: str, recipe: Recipe, numbers) -> tuple[Row, ...]:
    return tuple(
        Row(f"sample{i}", f"sample:{search}:{i}", recipe, clean, (faulty,), flops, parameters)
        for i, (clean, faulty, flops, parameters) in enumerate(numbers, 1)
    )


TABLES = {
    table.name: table
    for table in (
        Table(
            "1",
            "Table 1: baselines under random bit-bias feature faults",
            (_MIBB.at(1e-5, 1e-4),),
            _some(_BASELINES_4, 1, 3),
        ),
        Table(
            "2",
            "Table 2: baselines under stuck-at weight faults",
            (_ADSAF.at(0.04, 0.08),),
            _some(_BASELINES_5, 0, 2),
        ),
        Table(
            "4",
            "Table 4: architectures under MiBB feature faults",
            (_MIBB,),
            (
                *_BASELINES_4,
                Row(
                    *("F-FT-Net", "found:mibb_ft", "clean", 91.0),
                    *((71.3, 22.8, 10.0, 10.0, 10.0), 234.0, 0.61),
                ),
                *_HARDENED_4,
                Row(
                    *("F-FTT-Net", "found:mibb", "mibb", 88.6),
                    *((88.7, 88.5, 88.0, 86.2, 51.0), 245.0, 0.65),
                ),
            ),
            f"{_RATES_KEPT}\n\n{_FOUND}",
        ),
        Table(
            "5",
            "Table 5: architectures under adSAF weight faults",
            (_ADSAF,),
            (
                *_BASELINES_5,
                Row(
                    *("W-FT-Net-20", "found:adsaf_ft", "clean", 91.7),
                    *((54.2, 30.7, 19.6, 15.5, 11.9), 1020.0, 3.05),
                ),
                *_HARDENED_5,
                _W_FTT_NET_20,
                Row(
                    *("W-FTT-Net-40", "w_ftt_net_40", "adsaf", 92.1),
                    *((88.8, 85.5, 79.3, 69.2, 54.2), 3655.0, 10.78),
                ),
            ),
            _FOUND,
        ),
        Table(
            "6",
            "Table 6: the controller against random samples under MiBB feature faults",
            (_MIBB.at(3e-4),),
            (
                *_samples(
                    "mibb",
                    "mibb_3e-4",
                    (
                        (60.2, 19.5, 281.0, 0.81),
                        (79.7, 29.7, 206.0, 0.58),
                        (25.0, 32.2, 340.0, 1.09),
                        (32.9, 25.8, 387.0, 1.23),
                        (17.4, 10.8, 253.0, 0.77),
                    ),
                ),
                Row("F-FTT-Net", "found:mibb", "mibb_3e-4", 88.6, (51.0,), 245.0, 0.65),
            ),
            f"The paper's five samples are not published; these are others. {_FOUND}",
        ),
        Table(
            "7",
            "Table 7: the controller against random samples under adSAF weight faults",
            (_ADSAF.at(0.08),),
            (
                *_samples(
                    "adsaf",
                    "adsaf",
                    (
                        (90.7, 63.6, 705.0, 1.89),
                        (84.7, 36.7, 591.0, 1.54),
                        (90.3, 60.3, 799.0, 2.33),
                        (90.5, 64.0, 874.0, 2.55),
                        (85.2, 45.6, 665.0, 1.83),
                    ),
                ),
                Row("W-FTT-Net", "w_ftt_net_20", "adsaf", 90.7, (68.5,), 919.0, 2.71),
            ),
            "The paper's five samples are not published; these are others.",
        ),
        Table(
            "fig9",
            "Fig. 9: networks trained under 8bit-adSAF, measured under other weight faults",
            (_ADSAF, _ONE_BIT, _FLIPS),
            (*_HARDENED_5, _W_FTT_NET_20),
            "The paper shows curves, and numbers for the first of the three models alone (those of "
            "Table 5); the rates of the other two are ours.",
        ),
        Table(
            "primitives",
            "§5.5: five layers of one primitive, and cells of SepConv 5x5 alone, under MiBB",
            (_MIBB.at(1e-4),),
            (
                *(
                    Row(f"5 x {name}", f"stack:{name}", "mibb_3e-4", None, (accuracy,))
                    for name, accuracy in (
                        ("sep_conv_3x3", 60.0),
                        ("sep_conv_5x5", 65.1),
                        ("dil_conv_3x3", 50.0),
                        ("dil_conv_5x5", 56.3),
                    )
                ),
                *(
                    Row(f"SepConv 5x5, sample{i}", f"sep_conv_5x5:{i}", "mibb_3e-4", None, (None,))
                    for i in range(1, 6)
                ),
            ),
            "Of the cells of SepConv 5x5 the paper gives the best alone, 77.5 %; its sixth, with "
            "the connections of F-FTT-Net, is not published. How wide its stacks are it does not "
            "say: see ftnas_jax.models.stacks.",
        ),
        Table(
            "weights",
            "§5.5: magnitudes of weights, where blocks are drawn anew in every step",
            (),
            (Row("blocks", "blocks", "clean"),),
            "The paper gives 0.036 ± 0.043 for Conv 3x3, 0.112 ± 0.121 for Conv 1x1 and "
            "0.140 ± 0.094 for DepthwiseConv 3x3.",
        ),
    )
}
"""By name."""
