// Share of the prompt's entries kept per layer and KV head, a grid per method at one setting.
function startHeat() {
  const section = document.getElementById("heat");
  const host = section.querySelector("[data-host]");
  const controls = section.querySelector(".controls");
  const has = data.panels.map((_, i) => points.filter((p) => p.panel === i && p.kept.length && !isFull(p.series)));
  const panels = has.flatMap((found, i) => (found.length ? [[i, data.panels[i].heading]] : []));
  if (!panels.length) return void host.append(make("p", { class: "soft" }, "No record says what was kept."));
  let panel = panels[0][0];
  let at = "";
  const scale = make("span");
  choose(controls, "task", panels, (value) => { panel = Number(value); refill(); });
  const choice = choose(controls, "setting", [], (value) => { at = value; show(); });
  controls.append(scale);

  function refill() {
    const all = settings(has[panel]);
    at = all.includes(at) ? at : all[Math.floor(all.length / 2)] ?? "";
    choice.replaceChildren(...all.map((text) => make("option", { value: text, ...(text === at && { selected: "" }) }, text)));
    show();
  }

  function show() {
    const found = has[panel].filter((p) => p.setting === at || !p.setting).sort((a, b) => a.series - b.series);
    const most = Math.max(...found.flatMap((p) => p.kept.flat()), 1e-9);
    scale.replaceChildren(ramp("0", most.toFixed(2)));
    host.replaceChildren(...found.map((p) => card(p.series, p.setting, heat(p, most))));
    apply();
  }

  refill();
}

function heat(point, most) {
  const { kept } = point;
  return grid({
    name: `Entries kept by ${data.series[point.series]}`,
    columns: kept.map((_, layer) => String(layer)),
    rows: kept[0].map((_, head) => String(head)),
    every: Math.ceil(kept.length / 10),
    value: (c, r) => kept[c][r] / most,
    say: (c, r) => [
      `${data.series[point.series]} ${point.setting}`.trim(),
      [["row", `layer ${c}, KV head ${r}`], ["kept", `${(100 * kept[c][r]).toFixed(1)} % of the prompt's entries`], ...record(point)],
    ],
    across: "layer", up: "rows: KV heads",
  });
}
