// The methods that are shown (none picked: all), and the task.
const picked = new Set();
const every = document.getElementById("every");
const chips = [...document.querySelectorAll(".chip[data-s]")];

function visible(place) {
  return picked.size === 0 || picked.has(place) || isFull(place);
}

function apply(only = null) {
  for (const part of document.querySelectorAll(".s[data-s]")) {
    const place = Number(part.dataset.s);
    const here = only === null ? visible(place) : place === only || isFull(place);
    if (part instanceof SVGElement) part.classList.toggle("dim", !here);
    else if (only === null) part.classList.toggle("away", !visible(place));
  }
}

function pick(place) {
  if (!picked.delete(place)) picked.add(place);
  for (const chip of chips) chip.setAttribute("aria-pressed", picked.has(Number(chip.dataset.s)));
  every.hidden = picked.size === 0;
  apply();
}

for (const chip of chips) {
  const place = Number(chip.dataset.s);
  chip.addEventListener("click", () => pick(place));
  chip.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && apply(place));
  chip.addEventListener("pointerleave", () => apply());
}
every.addEventListener("click", () => [...picked].forEach(pick));

function filter(value) {
  for (const part of document.querySelectorAll("[data-panel]")) {
    part.hidden = value !== "" && data.panels[part.dataset.panel].subject !== value;
  }
}

function startFilter() {
  const tasks = new Set(data.panels.map((panel) => panel.subject));
  const select = document.getElementById("panels");
  select.append(make("option", { value: "" }, "all"));
  for (const value of tasks) select.append(make("option", { value }, value));
  select.addEventListener("change", () => filter(select.value));
  document.getElementById("filter").hidden = tasks.size < 2;
}
