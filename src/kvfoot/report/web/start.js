// Everything that has to be there when the page is.
const theme = document.getElementById("theme");

function dark() {
  return (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
}

function nameTheme() {
  theme.textContent = dark() ? "Light" : "Dark";
}

// The samples that went wrong, those of one task and length at a time.
function startMisses() {
  const cards = [...document.querySelectorAll("[data-miss]")];
  const panels = [...new Set(cards.map((card) => Number(card.dataset.miss)))];
  if (panels.length < 2) return;
  const show = (panel) => cards.forEach((card) => { card.hidden = card.dataset.miss !== panel; });
  choose(document.querySelector("#wrong .controls"), "task", panels.map((i) => [i, data.panels[i].heading]), show);
  show(String(panels[0]));
}

theme.addEventListener("click", () => {
  document.documentElement.dataset.theme = dark() ? "light" : "dark";
  nameTheme();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", nameTheme);
nameTheme();
startFilter();
document.querySelectorAll("figure.card[tabindex]").forEach(listen);
startHeat();
startTimeline();
startDepth();
startMisses();
if (innerWidth < 640) document.getElementById("facts").open = false;
document.documentElement.dataset.ready = "yes";
