// Mean score by depth of the needle and length of the prompt, a grid per method at one setting.
function startDepth() {
  const section = document.getElementById("depth");
  const host = section.querySelector("[data-host]");
  const controls = section.querySelector(".controls");
  const found = points.filter((p) => p.depth);
  const name = (p) => data.panels[p.panel].subject;
  const tasks = [...new Set(found.map(name))];
  if (!tasks.length) return void host.append(make("p", { class: "soft" }, "No task of this sweep has needles at a known depth."));
  let task = tasks[0];
  let at = "";
  choose(controls, "task", tasks.map((t) => [t, t]), (value) => { task = value; refill(); });
  const choice = choose(controls, "setting", [], (value) => { at = value; show(); });
  controls.append(ramp("0", "score 1"));

  function refill() {
    const all = settings(found.filter((p) => name(p) === task));
    at = all.includes(at) ? at : all[Math.floor(all.length / 2)] ?? "";
    choice.replaceChildren(...all.map((text) => make("option", { value: text, ...(text === at && { selected: "" }) }, text)));
    show();
  }

  function show() {
    const here = found.filter((p) => name(p) === task && (p.setting === at || !p.setting));
    const places = [...new Set(here.map((p) => p.series))].sort((a, b) => (isFull(b) - isFull(a)) || a - b);
    host.replaceChildren(...places.map((place) => {
      const own = here.filter((p) => p.series === place).sort((a, b) => data.panels[a.panel].length - data.panels[b.panel].length);
      return card(place, own[0].setting, depths(own));
    }));
    apply();
  }

  refill();
}

function depths(own) {
  const share = 100 / data.bins;
  const part = (r) => `${Math.round(r * share)}-${Math.round((r + 1) * share)} %`;
  return grid({
    name: `Score by depth, ${data.series[own[0].series]}`,
    columns: own.map((p) => number.format(data.panels[p.panel].length)),
    rows: Array.from({ length: data.bins }, (_, r) => part(r)),
    tall: 26,
    value: (c, r) => (own[c].depth[r][0] ? own[c].depth[r][1] : null),
    words: (c, r) => own[c].depth[r][1].toFixed(2),
    say: (c, r) => [
      `${data.series[own[c].series]} ${own[c].setting}`.trim(),
      [
        ["where", `depth ${part(r)} of ${number.format(data.panels[own[c].panel].length)} tokens`],
        ["here", `score ${own[c].depth[r][1].toFixed(3)}, n = ${own[c].depth[r][0]}`],
        ...record(own[c]),
      ],
    ],
    across: "prompt tokens", up: "rows: depth",
  });
}
