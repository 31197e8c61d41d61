"""The pretrained models that sevenn and mace-torch know, under the names their users know.

Names, links and cache files follow ``sevenn.util.pretrained_name_to_path`` (0.10 to 0.13) and
``mace.calculators.foundations_models`` (0.3.16), so that files these packages downloaded are found.
Licences are those the distributions state: MACE's README and download messages name one for each model;
SevenNet's weights come with its repository, which went from GPL-3.0 (sevenn 0.10) to MIT in June 2025.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from ase_finetune.potentials.published_hashes import PUBLISHED_SHA256

Availability = Literal["shipped", "cached", "download", "unsupported"]


@dataclass(frozen=True)
class ModelInfo:
    """A pretrained model.

    Attributes
    ----------
    name, aliases
        What :func:`load_potential` accepts, in any case.
    backend
        ``"sevenn"`` or ``"mace"``.
    file
        Name below the folder where the backend keeps its models.
    url
        Where it is downloaded from; ``None`` if it only comes with the package.
    licence
        Of the weights, as far as their distribution states it.
    elements
        Atomic numbers; ``None`` if they are only known from the file.
    availability
        ``"shipped"`` with the installed package, ``"cached"`` by an earlier download, ``"download"``
        on first use, or ``"unsupported"``: not usable here, ``note`` says why.
    heads
        Heads or modalities where one must be chosen; empty if there is one, or they are only known from
        the file.
    note
        What to know before using it.
    sha256
        Of the official file, in hexadecimal digits, where it is known from public sources.
    """

    name: str
    aliases: tuple[str, ...]
    backend: Literal["sevenn", "mace"]
    file: str
    url: str | None
    licence: str
    elements: tuple[int, ...] | None = None
    availability: Availability = "download"
    heads: tuple[str, ...] = ()
    note: str = ""
    sha256: str | None = None


#: H to Bi and Ac to Pu: the 89 elements of MPtrj.
_MP_ELEMENTS = (*range(1, 84), *range(89, 95))
_ORGANIC_ELEMENTS = (1, 6, 7, 8, 9, 15, 16, 17, 35, 53)

_SEVENN_LICENCE = "that of SevenNet's repository: MIT since June 2025, GPL-3.0 as shipped with sevenn 0.10"
_MIT = "MIT"
_ASL = "ASL (Academic Software License, no commercial use; https://github.com/gabor1/ASL)"

_SEVENN_URL = "https://github.com/MDIL-SNU/SevenNet/releases/download"
_MACE_MP_URL = "https://github.com/ACEsuit/mace-mp/releases/download"
_FOUNDATIONS_URL = "https://github.com/ACEsuit/mace-foundations/releases/download"
_MACE_OFF_URL = "https://raw.githubusercontent.com/ACEsuit/mace-off/main/mace_off23"
_ANICC_URL = "https://github.com/ACEsuit/mace/raw/main/mace/calculators/foundations_models/ani500k_large_CC.model"

_OMNI_HEADS = tuple(
    "mpa,omat24,matpes_pbe,oc20,oc22,odac23,omol25_low,omol25_high,spice,qcml,pet_mad,mp r2scan,matpes_r2scan".split(
        ","
    )
)
_MH1_HEADS = ("matpes_r2scan", "mp_pbe_refit_add", "spice_wB97M", "oc20_usemppbe", "omol", "omat_pbe")


def _sevennet(
    name: str,
    file: str,
    release: str | None = None,
    *aliases: str,
    elements: tuple[int, ...] | None = None,
    heads: tuple[str, ...] = (),
    note: str = "",
) -> ModelInfo:
    url = None if release is None else f"{_SEVENN_URL}/{release}/{PurePosixPath(file).name}"
    names = (f"sevennet-{name.removeprefix('7net-')}", *aliases)
    return ModelInfo(name, names, "sevenn", file, url, _SEVENN_LICENCE, elements=elements, heads=heads, note=note)


def _mace_mp(
    name: str,
    url: str,
    *aliases: str,
    licence: str = _MIT,
    elements: tuple[int, ...] | None = _MP_ELEMENTS,
    heads: tuple[str, ...] = (),
    note: str = "",
) -> ModelInfo:
    # mace_mp() and mace_polar() drop everything but letters, digits and _ from the file's name ...
    file = "".join(c for c in PurePosixPath(url).name if c.isalnum() or c == "_")
    return ModelInfo(
        name, aliases, "mace", file, url, licence, elements=elements, heads=heads, note=note, sha256=_published(url)
    )


def _mace_plain(
    name: str, url: str, *aliases: str, licence: str = _ASL, elements: tuple[int, ...] | None = None, note: str = ""
) -> ModelInfo:
    # ... and mace_off(), mace_omol() and mace_anicc() keep it.
    file = PurePosixPath(url).name
    return ModelInfo(name, aliases, "mace", file, url, licence, elements=elements, note=note, sha256=_published(url))


def _published(url: str) -> str | None:
    return PUBLISHED_SHA256.get("/".join(url.split("/")[-2:]))


def _mace_polar(size: str) -> ModelInfo:
    url = f"{_FOUNDATIONS_URL}/mace_polar_1/MACE-POLAR-1-{size.upper()}.model"
    note = "not supported: its long-range electrostatics needs more than the vectors between neighbours"
    info = _mace_mp(
        f"mace-polar-1-{size}", url, f"polar-1-{size}", licence="see the model's page", elements=None, note=note
    )
    return ModelInfo(**{**vars(info), "availability": "unsupported"})


SEVENNET_MODELS = (
    _sevennet(
        "7net-0",
        "SevenNet_0__11Jul2024/checkpoint_sevennet_0.pth",
        None,
        *("7net-0_11jul2024", "7net-0_11july2024", "sevennet-0_11jul2024", "sevennet-0_11july2024"),
        elements=_MP_ELEMENTS,
        note="MPtrj; the fastest SevenNet",
    ),
    _sevennet(
        "7net-0_22may2024",
        "SevenNet_0__22May2024/checkpoint_sevennet_0.pth",
        elements=_MP_ELEMENTS,
        note="MPtrj; superseded by 7net-0",
    ),
    _sevennet("7net-l3i5", "SevenNet_l3i5/checkpoint_l3i5.pth", elements=_MP_ELEMENTS, note="MPtrj"),
    _sevennet(
        "7net-mf-0",
        "SevenNet_MF_0/checkpoint_sevennet_mf_0.pth",
        elements=_MP_ELEMENTS,
        heads=("R2SCAN", "PBE"),
        note="comes with later versions of sevenn (0.13 has it)",
    ),
    _sevennet(
        "7net-mf-ompa",
        "SevenNet_MF_ompa/checkpoint_sevennet_mf_ompa.pth",
        "v0.11.0.cp",
        heads=("mpa", "omat24"),
        note="MPtrj, sAlex and OMat24",
    ),
    _sevennet("7net-omat", "SevenNet_omat/checkpoint_sevennet_omat.pth", "v0.11.0.cp", note="OMat24"),
    _sevennet(
        "7net-omni",
        "SevenNet_omni/checkpoint_sevennet_omni.pth",
        "v0.12.0.cp",
        heads=_OMNI_HEADS,
        note="15 data sets; its authors recommend the head mpa for PBE",
    ),
    _sevennet(
        "7net-omni-i8",
        "SevenNet_omni_i8/checkpoint_sevennet_omni_i8.pth",
        "v0.12.1.cp",
        heads=_OMNI_HEADS,
        note="a larger 7net-omni",
    ),
    _sevennet(
        "7net-omni-i12",
        "SevenNet_omni_i12/checkpoint_sevennet_omni_i12.pth",
        "v0.12.1.cp",
        heads=_OMNI_HEADS,
        note="the largest 7net-omni",
    ),
)

MACE_MODELS = (
    _mace_mp(
        "mace-mp-0-small", f"{_MACE_MP_URL}/mace_mp_0/2023-12-10-mace-128-L0_energy_epoch-249.model", note="MPtrj"
    ),
    _mace_mp(
        "mace-mp-0-medium",
        f"{_MACE_MP_URL}/mace_mp_0/2023-12-03-mace-128-L1_epoch-199.model",
        "mace-mp-0",
        note="MPtrj",
    ),
    _mace_mp("mace-mp-0-large", f"{_MACE_MP_URL}/mace_mp_0/MACE_MPtrj_2022.9.model", note="MPtrj"),
    _mace_mp("mace-mp-0b-small", f"{_MACE_MP_URL}/mace_mp_0b/mace_agnesi_small.model", "small-0b", note="MPtrj"),
    _mace_mp("mace-mp-0b-medium", f"{_MACE_MP_URL}/mace_mp_0b/mace_agnesi_medium.model", "medium-0b", note="MPtrj"),
    *(
        _mace_mp(
            f"mace-mp-0b2-{size}",
            f"{_MACE_MP_URL}/mace_mp_0b2/mace-{size}-density-agnesi-stress.model",
            f"{size}-0b2",
            note="MPtrj",
        )
        for size in ("small", "medium", "large")
    ),
    _mace_mp(
        "mace-mp-0b3-medium",
        f"{_MACE_MP_URL}/mace_mp_0b3/mace-mp-0b3-medium.model",
        *("mace-mp-0b3", "medium-0b3"),
        note="MPtrj",
    ),
    _mace_mp(
        "mace-mpa-0",
        f"{_MACE_MP_URL}/mace_mpa_0/mace-mpa-0-medium.model",
        *("mace-mpa-0-medium", "medium-mpa-0"),
        note="MPtrj and sAlex; the default of mace_mp()",
    ),
    *(
        _mace_mp(
            f"mace-omat-0-{size}",
            f"{_MACE_MP_URL}/mace_omat_0/mace-omat-0-{size}.model",
            *aliases,
            licence=_ASL,
            note="OMat24",
        )
        for size, aliases in (("small", ("small-omat-0",)), ("medium", ("mace-omat-0", "medium-omat-0")))
    ),
    _mace_mp(
        "mace-matpes-pbe-0",
        f"{_FOUNDATIONS_URL}/mace_matpes_0/MACE-matpes-pbe-omat-ft.model",
        licence=_ASL,
        note="MatPES PBE, no +U",
    ),
    _mace_mp(
        "mace-matpes-r2scan-0",
        f"{_FOUNDATIONS_URL}/mace_matpes_0/MACE-matpes-r2scan-omat-ft.model",
        licence=_ASL,
        note="MatPES r2SCAN",
    ),
    _mace_mp("mace-mh-0", f"{_FOUNDATIONS_URL}/mace_mh_1/mace-mh-0.model", "mh-0", licence=_ASL, note="several heads"),
    _mace_mp(
        "mace-mh-1",
        f"{_FOUNDATIONS_URL}/mace_mh_1/mace-mh-1.model",
        "mh-1",
        licence=_ASL,
        heads=_MH1_HEADS,
        note="crystals, surfaces and molecules",
    ),
    *(
        _mace_plain(
            f"mace-off23-{size}",
            f"{_MACE_OFF_URL}/MACE-OFF23_{size}.model",
            f"mace-off23_{size}",
            elements=_ORGANIC_ELEMENTS,
            note="SPICE; neutral organic molecules",
        )
        for size in ("small", "medium", "large")
    ),
    _mace_plain(
        "mace-omol-0",
        f"{_FOUNDATIONS_URL}/mace_omol_0/MACE-omol-0-extra-large-1024.model",
        *("mace-omol-0-extra-large", "extra_large"),
        note="OMol25; evaluated here as neutral with spin multiplicity 1",
    ),
    _mace_plain("mace-anicc", _ANICC_URL, "anicc", licence=_MIT, elements=(1, 6, 7, 8), note="ANI coupled cluster"),
    *(_mace_polar(size) for size in ("s", "m", "l")),
)

CATALOG: tuple[ModelInfo, ...] = SEVENNET_MODELS + MACE_MODELS
