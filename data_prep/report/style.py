"""The report's style sheet: one accent colour, light and dark, desktop and phone."""

STYLE = """
:root {
  --paper: #fcfcfa; --raised: #ffffff; --ink: #1c2024; --muted: #646b73;
  --line: #e2e3df; --faint: #c9ccc9; --track: #eff0ec; --lost: #b4b9b8;
  --accent: #0b6e75; --wash: #e3f0ef;
  --sans: -apple-system, "Segoe UI", Roboto, "Noto Sans", "Helvetica Neue", Arial,
    system-ui, sans-serif;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --raised: #1a1e22; --ink: #e4e6e6; --muted: #98a1a8;
    --line: #2b3136; --faint: #4a5258; --track: #22272b; --lost: #5b646a;
    --accent: #58c3c3; --wash: #17312f;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.6 var(--sans); font-variant-numeric: tabular-nums;
}
main { max-width: 1088px; margin: 0 auto; padding: 72px 32px 96px; }
h1, h2, h3, p, ol, ul, figure, table { margin: 0; padding: 0; }
h1 { font-size: 34px; line-height: 1.2; font-weight: 600; letter-spacing: -.015em; }
h2 { font-size: 22px; line-height: 1.3; font-weight: 600; letter-spacing: -.01em; }
h3 { font-size: 15px; font-weight: 600; }
.kicker { color: var(--accent); font-size: 14px; font-weight: 600; margin-bottom: 8px; }
.facts { color: var(--muted); font-size: 14px; margin-top: 10px; }
section { margin-top: 88px; }
.lead { max-width: 70ch; margin-top: 10px; }
.missing { color: var(--muted); margin-top: 10px; max-width: 70ch; }
bdi { overflow-wrap: anywhere; unicode-bidi: isolate; }
mark { background: var(--wash); color: inherit; border-radius: 2px; }
.unseen {
  position: absolute; width: 1px; height: 1px; overflow: hidden;
  clip-path: inset(50%); white-space: nowrap;
}

.headline {
  list-style: none; display: grid; grid-template-columns: repeat(4, 1fr);
  margin-top: 44px; border-top: 2px solid var(--ink);
  border-bottom: 1px solid var(--line);
}
.headline li { position: relative; padding: 20px 20px 22px 0; min-width: 0; }
.headline li + li { padding-left: 24px; }
.headline li + li::before {
  content: "\\2192"; position: absolute; left: -10px; top: 30px; color: var(--muted);
}
.headline b {
  display: block; font-size: 33px; line-height: 1.25; font-weight: 600;
  letter-spacing: -.02em;
}
.headline li:last-child b { color: var(--accent); }
.headline .none b { color: var(--muted) !important; font-weight: 400; }
.headline span { display: block; font-size: 15px; }
.headline small { display: block; font-size: 13px; color: var(--muted); }

figure { margin-top: 32px; min-width: 0; }
figcaption {
  color: var(--muted); font-size: 14px; line-height: 1.5; margin-top: 12px;
  max-width: 72ch;
}
figcaption b { color: var(--ink); font-weight: 600; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 0 48px; }
.pair > * { min-width: 0; }
.group { margin-top: 32px; }
.group + .group { margin-top: 56px; }
.group > h3 { margin-bottom: 14px; }
.warning { color: var(--ink); font-weight: 600; }
code { font-size: .9em; white-space: nowrap; }
.group figure { margin-top: 12px; }
.scroll { overflow-x: auto; }

svg { display: block; max-width: 100%; height: auto; }
.narrow { display: none; }
svg text { font: 12px var(--sans); fill: var(--muted); }
svg .axis { fill: var(--muted); }
svg .grid, svg .tick { stroke: var(--line); }
svg .base { stroke: var(--faint); }
svg .line {
  fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round;
}
svg .line.ink { stroke: var(--ink); stroke-width: 1.5; }
svg .line.accent { stroke: var(--accent); stroke-width: 2.25; }
svg .line.dashed { stroke: var(--accent); stroke-width: 1.5; stroke-dasharray: 1 5; }
svg .line.muted { stroke: var(--muted); stroke-width: 1.5; }
svg .rule { stroke: var(--muted); stroke-dasharray: 4 4; }
svg .name {
  font-size: 13px; font-weight: 600; paint-order: stroke; stroke: var(--paper);
  stroke-width: 5px; stroke-linejoin: round; stroke-dasharray: none;
}
svg .name.ink { fill: var(--ink); }
svg .name.accent, svg .name.dashed { fill: var(--accent); }
svg .name.dashed, svg .name.rule { font-weight: 400; }
svg .strip rect { fill: transparent; }
svg .strip g { opacity: 0; pointer-events: none; }
svg .strip:hover rect { fill: var(--ink); fill-opacity: .06; }
svg .strip:hover g { opacity: 1; }
svg .strip circle { stroke: var(--paper); stroke-width: 1.5; }
svg .strip text { fill: var(--ink); }
svg circle.accent, svg circle.dashed { fill: var(--accent); }
svg circle.ink { fill: var(--ink); }
svg circle.muted { fill: var(--muted); }

.bar { width: 100%; height: 10px; }
.bar .track { fill: var(--track); }
.bar .out { fill: var(--accent); }
.bar .lost { fill: var(--lost); }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: right; padding: 7px 0 7px 20px; white-space: nowrap; }
th { font-weight: 400; color: var(--muted); vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { border-bottom: 1px solid var(--ink); }
tbody tr { border-bottom: 1px solid var(--line); }
tbody th { color: var(--ink); text-align: left; vertical-align: middle; }
td.strong { font-weight: 600; color: var(--accent); }
.funnel { table-layout: fixed; }
.funnel col.what { width: 210px; }
.funnel col.count { width: 96px; }
.funnel col.share { width: 84px; }
.funnel tbody th { white-space: normal; line-height: 1.3; overflow-wrap: anywhere; }
.funnel + figcaption { margin-top: 22px; }
.funnel td.bars { padding-right: 0; }
.funnel tbody tr { border: 0; }
.funnel .stage > * { padding-top: 15px; font-weight: 600; }
.funnel .lost > * { padding-top: 1px; padding-bottom: 1px; color: var(--muted); }
.funnel .lost th { padding-left: 16px; font-size: 13px; }
.funnel .lost .bar { height: 6px; }
.evaluation .plot { width: 300px; min-width: 200px; }
.evaluation .plot div { display: flex; justify-content: space-between; }
.evaluation .group th { padding-top: 20px; font-weight: 600; }
.interval { width: 100%; height: 20px; overflow: visible; }
.interval .faint { stroke: var(--line); }
.interval line.accent { stroke: var(--accent); stroke-width: 2.5; }
.interval .untrained { stroke: var(--muted); stroke-width: 1.5; }
.interval .chance { stroke: var(--ink); stroke-width: 1.5; }
.shares tbody tr { border: 0; }
.shares th, .shares td { padding-top: 2px; padding-bottom: 2px; }
.shares th { width: 38%; overflow-wrap: anywhere; white-space: normal; }
.shares td.bars { width: 34%; }

.entries { list-style: none; border-top: 1px solid var(--ink); margin-top: 10px; }
.entries > li {
  display: grid; grid-template-columns: 150px 1fr; gap: 4px 20px;
  padding: 14px 0; border-bottom: 1px solid var(--line);
}
.entries > li > * { min-width: 0; }
.entries b { display: block; font-weight: 600; line-height: 1.35; }
.entries .change { color: var(--muted); font-size: 13px; }
.entries .change em { font-style: normal; color: var(--accent); }
.entries ul { list-style: none; font-size: 14px; line-height: 1.4; }
.entries ul li { display: flex; gap: 10px; align-items: center; min-height: 34px; }
.entries ul li + li { margin-top: 6px; }
.entries ul li > :last-child { min-width: 0; }
.picture {
  flex: none; width: 30px; height: 30px; object-fit: contain; background: #fff;
  border-radius: 3px; border: 1px solid var(--line); color: var(--muted);
}

.grid-cards {
  list-style: none; margin-top: 28px; display: grid; gap: 40px 36px;
  grid-template-columns: repeat(auto-fill, minmax(300px, 1fr));
}
.card {
  display: grid; grid-template-columns: 88px 1fr; gap: 16px; align-items: start;
  min-width: 0; padding-top: 12px; border-top: 1px solid var(--line);
}
.card > * { min-width: 0; }
.card .picture { width: 88px; height: 88px; }
.card h3 { font-size: 14px; line-height: 1.35; }
.card ol { list-style: none; font-size: 13px; line-height: 1.4; margin-top: 6px; }
.card ol li {
  display: grid; grid-template-columns: 18px 1fr 34px; color: var(--muted);
}
.card ol li > * { min-width: 0; }
.card ol .score { text-align: right; }
.card ol .right { color: var(--accent); font-weight: 600; }
.card .note { font-size: 13px; color: var(--muted); margin-top: 4px; }

footer {
  margin-top: 96px; padding-top: 16px; border-top: 1px solid var(--line);
  color: var(--muted); font-size: 13px;
}
@media (max-width: 860px) {
  .pair { grid-template-columns: 1fr; }
  .pair > figure + figure, .pair > div + div { margin-top: 40px; }
}
@media (max-width: 640px) {
  main { padding: 36px 16px 64px; }
  h1 { font-size: 27px; }
  h2 { font-size: 20px; }
  section { margin-top: 64px; }
  .wide { display: none; }
  .narrow { display: block; }
  .headline { grid-template-columns: 1fr; margin-top: 32px; border-bottom: 0; }
  .headline li, .headline li + li {
    display: grid; grid-template-columns: 118px 1fr; gap: 0 16px;
    padding: 12px 0; align-items: baseline; border-bottom: 1px solid var(--line);
  }
  .headline li + li::before { content: none; }
  .headline b { font-size: 22px; grid-row: span 2; }
  .funnel col.what { width: 126px; }
  .funnel col.count { width: 62px; }
  .funnel col.share { width: 58px; }
  .funnel th, .funnel td { font-size: 13px; padding-left: 8px; }
  .funnel .lost th { padding-left: 10px; font-size: 12px; }
  .funnel .stage th, .funnel thead th:first-child { padding-left: 0; }
  .evaluation tbody th:first-child, .evaluation thead th:first-child {
    position: sticky; left: 0; background: var(--paper); padding-right: 8px;
  }
  .entries > li { grid-template-columns: 1fr; }
  .grid-cards { grid-template-columns: 1fr; gap: 24px; }
}
@media print { .narrow { display: none; } .wide { display: block; } }
"""
