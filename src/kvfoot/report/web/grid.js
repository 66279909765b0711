// A grid of coloured cells: kept entries, or scores. The ramp is cividis: even steps, also without red or green.
const RAMP = [[0, 32, 76], [61, 78, 107], [124, 123, 120], [188, 174, 108], [255, 234, 70]];

function colour(share) {
  const at = Math.min(1, Math.max(0, share)) * (RAMP.length - 1);
  const i = Math.min(RAMP.length - 2, Math.floor(at));
  return `rgb(${RAMP[i].map((low, k) => Math.round(low + (RAMP[i + 1][k] - low) * (at - i))).join(" ")})`;
}

function ramp(low, high) {
  const bar = draw("svg", { width: 120, height: 12, viewBox: "0 0 120 12", "aria-hidden": "true" });
  for (let i = 0; i < 40; i++) bar.append(draw("rect", { x: 3 * i, width: 3.5, height: 12, fill: colour(i / 39) }));
  return make("span", { class: "ramp" }, low, bar, high);
}

// spec: columns, rows (names); value(c, r) in [0, 1] or null; words(c, r): text in a cell; say(c, r): its record;
// across, up: names of the axes; every: columns between two labels.
function grid(spec) {
  const wide = 340;
  const left = Math.max(26, 12 + 7 * Math.max(...spec.rows.map((name) => name.length)));
  const step = Math.min(110, (wide - left - 6) / spec.columns.length);
  const tall = spec.tall ?? Math.max(7, Math.min(18, 260 / spec.rows.length));
  const gap = step > 6 ? 1 : 0;
  const height = spec.rows.length * tall + 34;
  const chart = draw("svg", { class: "chart", viewBox: `0 0 ${wide} ${height}`, role: "img", "aria-label": spec.name });
  const rowsEvery = Math.ceil(12 / tall);
  spec.rows.forEach((name, r) => r % rowsEvery || chart.append(label(left - 6, (r + 0.5) * tall + 4, name, "end")));
  spec.columns.forEach((name, c) => {
    if (c % (spec.every ?? 1) === 0) chart.append(label(left + (c + 0.5) * step, spec.rows.length * tall + 14, name, "middle"));
    spec.rows.forEach((_, r) => {
      const value = spec.value(c, r);
      if (value === null) return;
      const cell = draw("rect", {
        class: "m", "data-say": "", x: (left + c * step).toFixed(1), y: (r * tall).toFixed(1),
        width: (step - gap).toFixed(1), height: (tall - gap).toFixed(1), rx: gap, style: `fill:${colour(value)};stroke-width:0`,
      });
      says.set(cell, () => spec.say(c, r));
      chart.append(cell);
      if (spec.words) {
        const ink = value > 0.55 ? "#14181d" : "#ffffff";
        chart.append(draw("text", {
          x: left + (c + 0.5) * step, y: (r + 0.5) * tall + 4, "text-anchor": "middle",
          style: `fill:${ink};pointer-events:none`,
        }, spec.words(c, r)));
      }
    });
  });
  chart.append(label(left, height - 4, spec.across));
  chart.append(label(wide - 6, height - 4, spec.up, "end"));
  return chart;
}

function card(place, setting, chart) {
  const title = make("h3", {}, swatch(place), `${data.series[place]} ${setting}`.trim());
  const name = `${title.textContent}: arrow keys go from cell to cell`;
  const figure = make("figure", { class: "card s", "data-s": place, tabindex: "0", role: "group", "aria-label": name }, title, chart);
  listen(figure);
  return figure;
}
