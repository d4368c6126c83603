"""The style sheet of the page, light and dark."""

from __future__ import annotations

# Eight colors of one lightness each, told apart by people who see fewer of them, too (after Okabe
# and Ito), with 3:1 and more against the ground that they stand on.
_LIGHT = ("#0072b2", "#c2410c", "#00796b", "#a8327e", "#7a5c00", "#4b4bc8", "#b3261e", "#5f6b73")
_DARK = ("#56b4e9", "#f59e5b", "#2dd4a7", "#f08cc8", "#e6c229", "#a5a5ff", "#ff8a80", "#aab4bc")

# A drawing has no more curves.
NUM_COLORS = len(_LIGHT)


def _colors(colors: tuple[str, ...]) -> str:
    return "".join(f"--c{number}:{color};" for number, color in enumerate(colors))


_CURVES = "".join(
    f".c{number}{{stroke:var(--c{number});background:var(--c{number})}}"
    for number in range(NUM_COLORS)
)

STYLE = (
    ":root{color-scheme:light dark;--ground:#fff;--raised:#f5f6f8;--line:#dcdfe4;--text:#1b1f24;"
    f"--soft:#59626e;--accent:#0b5cad;--pad:#b4540a;{_colors(_LIGHT)}}}"
    "@media(prefers-color-scheme:dark){:root{--ground:#111418;--raised:#1a1e24;--line:#323842;"
    f"--text:#e8ebef;--soft:#a3acb8;--accent:#78b7ff;--pad:#ffab5e;{_colors(_DARK)}}}}}"
    "*{box-sizing:border-box}"
    "body{margin:0 auto;max-width:1200px;padding:1.5rem clamp(.9rem,3vw,2rem) 3rem;"
    "background:var(--ground);color:var(--text);"
    "font:15px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',sans-serif;"
    "overflow-wrap:anywhere}"
    "h1{font-size:1.45rem;line-height:1.25;margin:0 0 .5rem}"
    "h2{font-size:1.2rem;margin:0}"
    "h3{font-size:.95rem;margin:1.4rem 0 .5rem}"
    "h4{font:500 .85rem ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;margin:.9rem 0 .4rem}"
    "small{font:400 .85rem system-ui,sans-serif;color:var(--soft)}"
    "code,dd,.places td,.plot figcaption{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"
    "monospace}"
    "a{color:var(--accent)}"
    ".facts{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;list-style:none;margin:0;padding:0;"
    "color:var(--soft)}"
    "nav{display:flex;flex-wrap:wrap;gap:.4rem;margin-top:.9rem}"
    "nav a{padding:.15rem .6rem;border:1px solid var(--line);border-radius:99px;"
    "text-decoration:none}"
    "section{border-top:1px solid var(--line);margin-top:1.6rem;padding-top:1.3rem}"
    ".task{margin:.6rem 0 0;padding:.45rem .8rem;border-left:3px solid var(--accent);"
    "background:var(--raised);border-radius:0 6px 6px 0;font-size:1.05rem}"
    ".frames{display:grid;grid-template-columns:repeat(auto-fit,minmax(104px,1fr));gap:.6rem}"
    "figure{margin:0;min-width:0}"
    ".frame{max-width:320px}"
    ".frame img{display:block;width:100%;height:auto;border-radius:5px;background:var(--raised)}"
    ".frame.padded img{outline:2px dashed var(--pad);outline-offset:-2px;opacity:.75}"
    ".frame figcaption{font-size:.8rem;color:var(--soft);text-align:center;"
    "font-variant-numeric:tabular-nums}"
    ".frame b{color:var(--pad);font-weight:600}"
    ".problem{margin:.2rem 0;padding:.5rem .8rem;border:1px solid var(--pad);border-radius:6px}"
    ".note{color:var(--soft);margin:.3rem 0}"
    ".plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,430px),1fr));"
    "gap:1.2rem 1.6rem}"
    ".plot figcaption{font-size:.85rem;margin-bottom:.35rem}"
    ".chart{display:grid;grid-template-columns:3.5rem 1fr;grid-template-rows:150px auto auto}"
    ".chart svg{width:100%;height:150px;background:var(--raised);border-radius:4px;"
    "overflow:hidden;display:block}"
    ".chart path{fill:none;vector-effect:non-scaling-stroke;stroke-width:1.6;"
    "stroke-linejoin:round}"
    ".chart .dots{stroke-width:4.5;stroke-linecap:round}"
    ".chart .grid{stroke:var(--line);stroke-width:1}"
    ".chart .row{stroke:var(--text);stroke-width:1;stroke-dasharray:3 3}"
    ".chart .pad{fill:var(--pad);opacity:.2}"
    "i.pad{display:inline-block;width:.9em;height:.75em;background:var(--pad);opacity:.35;"
    "margin-left:.8em}"
    ".ys,.xs{position:relative;font-size:.75rem;color:var(--soft);"
    "font-variant-numeric:tabular-nums}"
    ".ys span{position:absolute;white-space:nowrap;right:.4rem;transform:translateY(-50%);"
    "line-height:1}"
    ".xs{grid-column:2;height:1.25rem}"
    ".xs span{position:absolute;transform:translateX(-50%)}"
    ".unit{grid-column:2;text-align:right;font-size:.75rem;color:var(--soft);line-height:1}"
    ".legend{list-style:none;display:flex;flex-wrap:wrap;gap:.1rem .9rem;margin:.35rem 0 0 3.5rem;"
    "padding:0;font-size:.8rem}"
    ".legend i{display:inline-block;width:.9em;height:3px;border-radius:2px;vertical-align:middle;"
    "margin-right:.4em}"
    ".legend .value{color:var(--soft);font-variant-numeric:tabular-nums}"
    ".words{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));"
    "gap:.5rem 1.4rem;margin:0}"
    ".words dt{font-size:.8rem;color:var(--soft)}"
    ".words dd{margin:0;font-size:.85rem;white-space:pre-wrap;max-height:12rem;overflow:auto}"
    "details{margin-top:1.3rem}"
    "summary{cursor:pointer;color:var(--accent)}"
    ".places{display:flex;flex-wrap:wrap;gap:.9rem 2rem;margin-top:.7rem}"
    "table{border-collapse:collapse;font-size:.85rem}"
    "caption{text-align:left;font-weight:600}"
    "th{text-align:left;font-weight:400;color:var(--soft);padding:.1rem .9rem .1rem 0;"
    "vertical-align:top;white-space:nowrap}"
    "td{padding:.1rem 0}"
    "footer{border-top:1px solid var(--line);margin-top:2rem;padding-top:.8rem;color:var(--soft);"
    "font-size:.85rem}" + _CURVES
)
