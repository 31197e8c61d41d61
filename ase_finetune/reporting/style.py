"""The looks of a page."""

from __future__ import annotations

from ase_finetune.reporting.palette import css_variables

_CSS = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;color-scheme:light dark}
body{margin:0;background:var(--surface);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Noto Sans","DejaVu Sans",sans-serif;overflow-wrap:break-word}
main{max-width:1120px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .3rem;letter-spacing:-.01em}
h2{font-size:1.28rem;margin:2.6rem 0 .4rem;padding-top:1.1rem;border-top:1px solid var(--grid)}
h3{font-size:1.02rem;margin:1.8rem 0 .2rem}
p{margin:.4rem 0;max-width:72ch}
a{color:var(--target)}
small,.lead,figcaption,.missing{color:var(--muted)}
.missing{font-size:.86rem}
.lead{margin:0 0 1.2rem}
nav{display:flex;flex-wrap:wrap;gap:.2rem 1rem;font-size:.9rem;margin:1rem 0 0}
nav a{text-decoration:none;padding:.15rem 0}
.headline{font-size:1.12rem;font-weight:650;line-height:1.4;margin:.7rem 0;max-width:none;padding-left:.8rem;
border-left:5px solid var(--before)}
.headline.better{border-color:var(--better)}
.headline.worse{border-color:var(--worse)}
.answers{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:0 28px;margin:.2rem 0 1rem}
.answers h3{margin-top:.8rem}
.answers table{width:100%}
.tiles{display:flex;flex-wrap:wrap;gap:10px;margin:.7rem 0}
.tile{flex:1 1 230px;min-width:0;padding:.65rem .85rem;background:var(--raised);border-radius:6px;
border-left:4px solid var(--before)}
.tile.better{border-color:var(--better)}
.tile.worse{border-color:var(--worse)}
.tile div{font-size:.82rem;color:var(--muted);line-height:1.3}
.tile strong{display:block;font-size:1.1rem;font-variant-numeric:tabular-nums;line-height:1.35}
.tile em{font-style:normal;font-size:.86rem;line-height:1.3;color:var(--muted);display:block}
.tile.better em{font-weight:600;color:var(--better)}
.tile.worse em{font-weight:600;color:var(--worse)}
ul,ol{padding-left:1.15rem;margin:.5rem 0;max-width:76ch}
ol{padding-left:1.6rem}
li{margin:.3rem 0}
.warnings li::marker{content:"!  ";color:var(--kept);font-weight:700}
figure{margin:.9rem 0 0}
figcaption{font-size:.86rem;line-height:1.45;max-width:80ch;margin-top:.35rem}
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:14px 24px;align-items:start}
.panels figcaption{margin-top:1.6rem}
.panels img{display:block;width:100%;height:auto;border-radius:4px}
.panels svg{display:block;width:100%;height:auto;overflow:hidden}
.panels svg *{stroke-linejoin:round;stroke-linecap:butt}
.panels svg text{font-family:inherit!important}
.periodic{display:grid;grid-template-columns:repeat(18,minmax(0,1fr));grid-template-rows:repeat(7,auto) .6rem;gap:3px;
max-width:960px;margin-top:.6rem}
.periodic>*{aspect-ratio:1/1;border-radius:4px;display:flex;flex-direction:column;align-items:center;
justify-content:center;font-style:normal;font-size:.85rem;line-height:1.15;min-width:0}
.periodic i{background:var(--raised);color:var(--before)}
.periodic b{color:var(--ink);font-weight:650}
.periodic span{font-size:.66rem;font-weight:500;white-space:nowrap;font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto;margin:.7rem 0}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:.3rem .7rem;border-bottom:1px solid var(--grid);vertical-align:top;white-space:nowrap}
th[scope=row],thead th:first-child,.words td,.words th{text-align:left}
th[scope=row]{font-weight:500}
thead th{color:var(--muted);font-weight:600;font-size:.8rem}
.words td,.words th,.wide th[scope=row]{white-space:normal;overflow-wrap:anywhere}
details{margin:.7rem 0;max-width:100%}
summary{cursor:pointer;color:var(--target);font-size:.9rem}
pre{background:var(--raised);border-radius:6px;padding:.8rem;font-size:.78rem;line-height:1.4;overflow-x:auto;
max-width:100%}
footer{margin-top:3rem;font-size:.82rem;color:var(--muted)}
@media (max-width:640px){
main{padding:18px 14px 40px}
h1{font-size:1.35rem}
.headline{font-size:1rem}
.tiles{gap:8px}
.tile{flex-basis:150px;padding:.5rem .6rem}
.tile strong{font-size:1rem}
.periodic{gap:1px}
.periodic>*{border-radius:2px;font-size:.66rem}
.periodic span{display:none}
.panels figcaption{margin-top:0}
th,td{padding:.3rem .45rem}
}
@page{size:A4;margin:14mm 13mm}
@media print{
html{color-scheme:light;font-size:10pt}
th,td{white-space:normal;overflow-wrap:anywhere}
body{background:none}
main{max-width:none;padding:0}
nav,details:not([open]){display:none}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}
figure,.tile,tr{break-inside:avoid}
h2,h3{break-after:avoid}
h2{margin-top:1.6rem}
.panels{grid-template-columns:repeat(2,minmax(0,1fr))}
.scroll,pre{overflow:visible}
pre{white-space:pre-wrap}
}
"""


def stylesheet() -> str:
    """CSS of a page that follows light and dark, fits a phone, and prints in light colours on A4."""
    light, dark = css_variables(dark=False), css_variables(dark=True)
    return f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}{_CSS}"
