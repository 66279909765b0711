// Entries stored after every pass of one sample: the prompt and the answer side by side, each on its own scale.
const SPACE = { left: 52, right: 14, top: 26, bottom: 40, height: 320 };

function startTimeline() {
  const section = document.getElementById("timeline");
  const host = section.querySelector("[data-host]");
  const controls = section.querySelector(".controls");
  const has = data.panels.map((_, i) => points.filter((p) => p.panel === i && p.line));
  const panels = has.flatMap((found, i) => (found.length ? [[i, data.panels[i].heading]] : []));
  if (!panels.length) return void host.append(make("p", { class: "soft" }, "No sample with a timeline was run under every setting."));
  let panel = panels[0][0];
  let at = "";
  choose(controls, "task", panels, (value) => { panel = Number(value); refill(); });
  const choice = choose(controls, "setting", [], (value) => { at = value; show(); });
  const which = make("span", { class: "ramp" });
  controls.append(which);
  const figure = make("figure", { class: "card", tabindex: "0", role: "group", "aria-label": "entries stored over one run" });
  host.append(figure);
  listen(figure);

  function refill() {
    const all = settings(has[panel]);
    at = all.includes(at) ? at : all[Math.floor(all.length / 2)] ?? "";
    choice.replaceChildren(...all.map((text) => make("option", { value: text, ...(text === at && { selected: "" }) }, text)));
    show();
  }

  function show() {
    const found = has[panel].filter((p) => p.setting === at || !p.setting);
    which.textContent = `sample ${found[0].line.sample}`;
    figure.replaceChildren(timeline(found, Math.max(300, figure.clientWidth - 18)));
    apply();
  }

  refill();
  let wide = figure.clientWidth;
  new ResizeObserver(() => {
    if (Math.abs(figure.clientWidth - wide) < 2) return;
    wide = figure.clientWidth;
    show();
  }).observe(figure);
}

function timeline(found, width) {
  const { left, right, top, bottom, height } = SPACE;
  const prompt = Math.max(...found.map((p) => p.line.prompt));
  const answer = Math.max(...found.map((p) => p.line.seen.at(-1))) - prompt;
  const room = width - left - right;
  const border = answer > 0 ? left + room * 0.68 : left + room;
  const most = Math.max(...found.flatMap((p) => p.line.stored), ...found.map((p) => p.line.rows * p.line.prompt));
  const step = round(most / 4);
  const high = Math.ceil(most / step) * step;
  const x = (n) => (n <= prompt ? left + ((border - left) * n) / prompt : border + ((left + room - border) * (n - prompt)) / answer);
  const y = (n) => top + (height - top - bottom) * (1 - n / high);
  const chart = draw("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Entries stored over one run" });
  for (let v = 0; v <= high + 1e-6; v += step) {
    chart.append(draw("path", { class: "grid", d: `M${left} ${y(v)}H${width - right}` }), label(left - 7, y(v) + 4, compact.format(v), "end"));
  }
  const across = round(prompt / (width > 600 ? 6 : 3));
  for (let v = 0; v <= prompt - across * 0.3; v += across) chart.append(label(x(v), height - bottom + 17, compact.format(v), "middle"));
  chart.append(label(border, height - bottom + 17, number.format(prompt), "middle"));
  if (answer > 0) {
    chart.append(draw("path", { class: "axis", d: `M${border} ${top - 8}V${height - bottom}` }));
    chart.append(label(border - 6, top - 12, "prompt", "end"), label(border + 6, top - 12, "answer"));
    chart.append(label(width - right, height - bottom + 17, `+${number.format(answer)}`, "end"));
  }
  chart.append(label(left - 44, top - 12, "entries"), label(left + room / 2, height - 6, "tokens seen", "middle"));
  for (const point of [...found].sort((a, b) => b.series - a.series)) chart.append(steps(point, x, y));
  return chart;
}

// A stair: what is stored stays until the next pass.
function steps(point, x, y) {
  const { seen, stored, rows } = point.line;
  let path = `M${x(0)} ${y(0)}`;
  const group = draw("g", { class: `s ${look(point.series)}`, "data-s": point.series });
  const dots = seen.map((n, i) => {
    path += `H${x(n).toFixed(1)}V${y(stored[i]).toFixed(1)}`;
    const dot = draw("circle", { class: "m", "data-say": "", cx: x(n).toFixed(1), cy: y(stored[i]).toFixed(1), r: 3 });
    says.set(dot, () => [
      `${data.series[point.series]} ${point.setting}`.trim(),
      [
        ["after", `${number.format(n)} tokens`],
        ["stored", `${number.format(stored[i])} entries` + (rows ? `, ${((100 * stored[i]) / (rows * n)).toFixed(1)} % of full attention` : "")],
        ...record(point),
      ],
    ]);
    return dot;
  });
  group.append(draw("path", { class: "l", d: path }), ...dots);
  return group;
}

function round(rough) {
  const power = 10 ** Math.floor(Math.log10(Math.max(1, rough)));
  return [1, 2, 5, 10].map((m) => m * power).find((v) => v >= rough) ?? power * 10;
}
