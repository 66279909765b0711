// The record of a mark: under the pointer, at the keyboard's mark, or kept open by a click.
const tip = document.getElementById("tip");
const says = new WeakMap(); // element -> () => [title, rows]
let shown = null;
let kept = false;

function record(point) {
  return [...point.rows, ...data.records[point.record]];
}

function speak(mark) {
  const tell = says.get(mark);
  if (tell) return tell();
  const point = data.points[mark.dataset.p];
  const name = `${data.series[point.series]} ${point.setting}`.trim();
  const beside = coincident(mark);
  const also = beside.length ? [["also here", beside.join(", ")]] : [];
  return [name, [["task", data.panels[point.panel].heading], ...also, ...record(point)]];
}

// Names of other points of the chart that lie under this one.
function coincident(mark) {
  const [x, y] = middle(mark);
  const others = marks(mark.closest("figure")).filter((other) => {
    const [ox, oy] = middle(other);
    return other !== mark && Math.hypot(ox - x, oy - y) < 3;
  });
  return others.map(({ dataset: { p } }) => `${data.series[data.points[p].series]} ${data.points[p].setting}`.trim());
}

function show(mark, x, y, keep = false) {
  if (shown !== mark) {
    shown?.classList.remove("on");
    mark.classList.add("on");
    const [title, rows] = speak(mark);
    const list = make("dl");
    for (const [name, text] of rows) list.append(make("dt", {}, name), make("dd", {}, text));
    tip.replaceChildren(make("h3", {}, title), list);
    shown = mark;
  }
  kept = keep;
  tip.classList.toggle("kept", keep);
  tip.querySelector("button")?.remove();
  if (keep) {
    const close = make("button", { type: "button", "aria-label": "Close" }, "×");
    close.addEventListener("click", hide);
    tip.firstChild.append(close);
  }
  tip.classList.toggle("above", y > innerHeight / 2); // a narrow window's sheet leaves the mark free
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = x + 18 + width > innerWidth ? x - width - 18 : x + 18;
  const top = y + 14 + height > innerHeight ? innerHeight - height - 8 : y + 14;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${Math.max(8, top)}px`;
}

function hide() {
  shown?.classList.remove("on");
  shown = null;
  kept = false;
  tip.hidden = true;
}

function marks(host) {
  return [...host.querySelectorAll(".m[data-p], .m[data-say]")].filter((mark) => !mark.closest(".dim, .away"));
}

function middle(mark) {
  const box = mark.getBoundingClientRect();
  return [box.left + box.width / 2, box.top + box.height / 2];
}

function near(host, x, y, reach) {
  let best = null;
  let least = reach;
  for (const mark of marks(host)) {
    const [mx, my] = middle(mark);
    const far = Math.hypot(mx - x, my - y);
    if (far <= least) [best, least] = [mark, far];
  }
  return best;
}

// The next mark in a direction: near, and more ahead than aside.
function next(host, from, dx, dy) {
  const [x, y] = middle(from);
  let best = null;
  let least = Infinity;
  for (const mark of marks(host)) {
    const [mx, my] = middle(mark);
    const ahead = (mx - x) * dx + (my - y) * dy;
    const aside = Math.abs((mx - x) * dy) + Math.abs((my - y) * dx);
    if (mark !== from && ahead > 0.5 && ahead + 2 * aside < least) [best, least] = [mark, ahead + 2 * aside];
  }
  return best;
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function listen(host) {
  const hit = (event) => event.target.closest?.(".m[data-say]") ?? near(host, event.clientX, event.clientY, 26);
  host.addEventListener("pointermove", (event) => {
    if (kept || event.pointerType === "touch") return;
    const mark = hit(event);
    if (mark) show(mark, event.clientX, event.clientY);
    else hide();
  });
  host.addEventListener("pointerleave", () => kept || hide());
  host.addEventListener("click", (event) => {
    const mark = hit(event);
    if (mark) show(mark, event.clientX, event.clientY, true);
    else hide();
  });
  host.addEventListener("blur", () => kept || hide());
  host.addEventListener("keydown", (event) => {
    const own = shown && host.contains(shown) ? shown : null;
    if (event.key === "Enter" && own) show(own, ...middle(own), true);
    const way = ARROWS[event.key];
    if (!way) return;
    event.preventDefault();
    const mark = own ? next(host, own, ...way) : marks(host)[0];
    if (mark) show(mark, ...middle(mark));
  });
}

document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
