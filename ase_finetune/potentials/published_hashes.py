"""What is known of the content of MACE's official models."""

from __future__ import annotations

#: SHA-256 of MACE's release files by the end of their address. MACE publishes none; these are what public
#: repositories pin for the files they downloaded, each in at least two of independent authors (November 2026).
#: Those of models on which they differ, or that one alone has, are left out.
PUBLISHED_SHA256 = {
    "mace_mp_0/2023-12-10-mace-128-L0_energy_epoch-249.model": (
        "2ddb079cee0e131eaaf6912ba581b394551ead283e95c99cfe78c605d10b5736"
    ),
    "mace_mp_0/2023-12-03-mace-128-L1_epoch-199.model": (
        "01bfe22100139f424713cf921144e5509cbe353d67aa9fa1be9c6e1e0ed35845"
    ),
    "mace_mp_0/MACE_MPtrj_2022.9.model": "f80e992b65ab8f88fdf26964511357c022e92704e4d9bcd086652635a8495b32",
    "mace_mp_0b/mace_agnesi_small.model": "7e3a0abcaf41e03a80e69f778e1b11b29de1cca704783dc25917a736392f8cf0",
    "mace_mp_0b/mace_agnesi_medium.model": "ab8baff639a8f295f3eccad3d3ccf574efb6fb63220bd52cd88664211569e521",
    "mace_mp_0b2/mace-small-density-agnesi-stress.model": (
        "d5773bf9440e96d6eb8c598f84bd0e6369fcfa432f626a87f890e07da3c651c9"
    ),
    "mace_mp_0b2/mace-medium-density-agnesi-stress.model": (
        "a90be07c8aa6623c390fcc4653d3e319c4a356f8b4a53d323f96b2012d375caf"
    ),
    "mace_mp_0b2/mace-large-density-agnesi-stress.model": (
        "348390e758e1c90011c7675e864850f8e9c5b3e7c217f79a2b4bad1baaa657ad"
    ),
    "mace_mp_0b3/mace-mp-0b3-medium.model": "2f2be696351ac9e94fbe01cdfb6f017679acdbd2db7645209ef55fec9826b012",
    "mace_mpa_0/mace-mpa-0-medium.model": "75428afe3a1d7d8062e19bcaabd5c433623cabf308242ec9fb493e38604fb638",
    "mace_omat_0/mace-omat-0-small.model": "0abfde07862cf1e93b8b4d03cb702f29ce9c344ff2fc4de2ec0d7166d6c113a5",
    "mace_omat_0/mace-omat-0-medium.model": "d4b14be9afa294eebdbe31a0280b26a0fa29715771e978cbfd3ca24e0d90307a",
    "mace_matpes_0/MACE-matpes-pbe-omat-ft.model": "e618ad582b84239905b9c3b77ce6e9ce111b0ecd1533223a1a6aac7a696b8aa0",
    "mace_matpes_0/MACE-matpes-r2scan-omat-ft.model": (
        "8f147ecffa1d06a696e5648b13b81abda9c96fda9d0fb3faba3cd3fb27d9bba9"
    ),
    "mace_off23/MACE-OFF23_small.model": "165cce4cfec5a34b9c64d4ebf95de15d71106bb584b7291c8470f0749977c46f",
    "mace_off23/MACE-OFF23_medium.model": "4842c52ad210d6e1f84d6cf1ffa70fae25a7e0d755ed55cf223f43913f587db7",
    "mace_off23/MACE-OFF23_large.model": "a29e397dbf3e7a24ac50a9b0dfc919bd5a62efa346f5895a6237b0950c1d76f4",
}
