// Elements and the page's data. Texts are set as text, never parsed as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

function make(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function draw(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function label(x, y, text, anchor = "start", kind = "") {
  return draw("text", { x, y, "text-anchor": anchor, ...(kind && { class: kind }) }, text);
}

const fullPlaces = new Set(data.full.map((name) => data.series.indexOf(name)));
const isFull = (place) => fullPlaces.has(place);
const look = (place) => (isFull(place) ? "f" : `c${place % 8}${place > 8 ? " again" : ""}`);
const number = new Intl.NumberFormat("en-US");
const compact = new Intl.NumberFormat("en-US", { notation: "compact", maximumSignificantDigits: 3 });
const points = Object.values(data.points);

// The legend's mark of a series, as the charts draw it.
function swatch(place) {
  return document.querySelector(`.chip[data-s="${place}"] svg`).cloneNode(true);
}

// A labelled choice; change(value) is called at once and after every change.
function choose(host, name, options, change) {
  const select = make("select", {}, ...options.map(([value, text]) => make("option", { value }, text)));
  select.addEventListener("change", () => change(select.value));
  host.append(make("label", {}, name, select));
  return select;
}

function settings(found) {
  const order = (text) => Number(text.split("=")[1]);
  return [...new Set(found.map((point) => point.setting))].filter(Boolean).sort((a, b) => order(b) - order(a));
}
