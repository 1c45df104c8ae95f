// What all pages share. A page's scripts are one module: these names are in scope in all of them.

/** An HTML element: `element("p", {className: "small", onclick: f, "aria-label": "x"}, "text", child)`. */
function element(tag, attributes = {}, ...children) {
  return assign(document.createElement(tag), attributes, children);
}

/** An SVG element, with the same arguments as `element`. */
function svgElement(tag, attributes = {}, ...children) {
  return assign(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function assign(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined) continue;
    const property = typeof value === "function" || (name in node && !(node instanceof SVGElement));
    if (property) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** The element with this id. */
const byId = (id) => document.getElementById(id);

const reducedMotion = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

// ---- theme: the system's, until the reader chooses; the choice is kept where the browser lets pages keep things.

const systemIsDark = matchMedia("(prefers-color-scheme: dark)");
let chosenTheme = stored("theme");
let printing = false;

function stored(name) {
  try {
    return localStorage.getItem(`attn-${name}`);
  } catch {
    return null; // pages opened from a file may have no storage
  }
}

function store(name, value) {
  try {
    localStorage.setItem(`attn-${name}`, value);
  } catch {
    // the choice then lasts as long as the page
  }
}

/** Whether what is drawn now should suit a dark page; never while printing. */
const isDark = () => document.documentElement.dataset.theme === "dark";

function applyTheme() {
  const onScreen = chosenTheme ?? (systemIsDark.matches ? "dark" : "light");
  document.documentElement.dataset.theme = printing ? "light" : onScreen;
  document.dispatchEvent(new Event("themechange"));
}

/** Makes `button` switch the theme. The document gets "themechange" whenever colours must be drawn again. */
function themeButton(button) {
  const label = () => button.setAttribute("aria-pressed", String(isDark()));
  button.addEventListener("click", () => {
    chosenTheme = isDark() ? "light" : "dark";
    store("theme", chosenTheme);
    applyTheme();
  });
  document.addEventListener("themechange", label);
  systemIsDark.addEventListener("change", applyTheme);
  for (const [event, now] of [["beforeprint", true], ["afterprint", false]]) {
    addEventListener(event, () => {
      printing = now;
      applyTheme();
    });
  }
  applyTheme();
}

// ---- colour scales: one hue each, lightness strictly ordered (interpolated in OKLab), so they survive colour
// blindness and a grey printer. The square root keeps 0.02 visible beside 1.

const SCALES = {
  blue: { light: ["#ffffff", "#8fc1ea", "#2171b5", "#08264f"], dark: ["#171b22", "#17406f", "#1f74cc", "#55aeff"] },
  orange: { light: ["#ffffff", "#fbbf85", "#c9600c", "#4f1f00"], dark: ["#171b22", "#5f3008", "#b85c0e", "#ff9c33"] },
};

const hexToRgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
const toLinear = (x) => (x <= 10.31475 ? x / 3294.6 : ((x / 255 + 0.055) / 1.055) ** 2.4);
const fromLinear = (x) => Math.round(255 * (x <= 0.0031308 ? 12.92 * x : 1.055 * x ** (1 / 2.4) - 0.055));
const clamp = (x, low, high) => Math.min(Math.max(x, low), high);

// B. Ottosson, "A perceptual color space for image processing" (2020).
function toOklab(hex) {
  const [r, g, b] = hexToRgb(hex).map(toLinear);
  const l = Math.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b);
  const m = Math.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b);
  const s = Math.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b);
  return [
    0.2104542553 * l + 0.793617785 * m - 0.0040720468 * s,
    1.9779984951 * l - 2.428592205 * m + 0.4505937099 * s,
    0.0259040371 * l + 0.7827717662 * m - 0.808675766 * s,
  ];
}

function fromOklab([lightness, a, b]) {
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ].map((x) => fromLinear(clamp(x, 0, 1)));
}

const tables = new Map();

/** 256 colours [r, g, b] of a hue ("blue" or "orange") for a theme ("light" or "dark"), over the root of the weight. */
function colourTable(hue, theme) {
  const key = `${hue} ${theme}`;
  if (!tables.has(key)) {
    const stops = SCALES[hue][theme].map(toOklab);
    const at = (x) => {
      const left = Math.min(Math.floor(x), stops.length - 2);
      return fromOklab(stops[left].map((from, i) => from + (x - left) * (stops[left + 1][i] - from)));
    };
    tables.set(key, Array.from({ length: 256 }, (_, i) => at((i / 255) * (stops.length - 1))));
  }
  return tables.get(key);
}

const rootIndex = (weight) => Math.round(255 * Math.sqrt(clamp(weight, 0, 1)));

/** The background of a weight between 0 and 1, and the text colour that is readable on it: ["rgb(..)", "#.."]. */
function colours(weight, hue = "blue", theme = isDark() ? "dark" : "light") {
  const rgb = colourTable(hue, theme)[rootIndex(weight)];
  const [r, g, b] = rgb.map(toLinear);
  // Equal WCAG contrast with black and white lies at a luminance of 0.179.
  const ink = 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000000" : "#ffffff";
  return [`rgb(${rgb.join(", ")})`, ink];
}

// ---- tooltip

let tooltipNode = null;

/** Shows `text` (line breaks are kept) near a point of the window, inside it. */
function showTooltip(text, x, y) {
  tooltipNode ??= document.body.appendChild(element("div", { className: "tooltip", "aria-hidden": "true" }));
  if (tooltipNode.textContent !== text) tooltipNode.textContent = text;
  tooltipNode.hidden = false;
  const { offsetWidth: width, offsetHeight: height } = tooltipNode;
  tooltipNode.style.left = `${clamp(x + 14, 4, Math.max(4, innerWidth - width - 4))}px`;
  tooltipNode.style.top = `${y + 18 + height > innerHeight ? Math.max(4, y - height - 12) : y + 18}px`;
}

function hideTooltip() {
  if (tooltipNode) tooltipNode.hidden = true;
}

addEventListener("scroll", hideTooltip, { passive: true, capture: true });

// ---- files

/** Offers `text` as a file to save. */
function download(name, text, type = "image/svg+xml") {
  const address = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

/** `text` where XML stands: markup escaped, what XML cannot hold replaced. */
function escapeXml(text) {
  const named = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
  return text.replace(/[&<>"]/g, (c) => named[c]).replace(/[\0-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]/g, "\ufffd");
}

/** Says on the page that it cannot work, and why. */
function showFailure(message) {
  document.querySelector(".failure[role=alert]")?.remove();
  const box = element("div", { className: "card failure", role: "alert" }, message);
  (document.querySelector("main") ?? document.body).prepend(box);
  box.scrollIntoView({ block: "center" });
}

/** `value` with thousands separated: 345,120. */
const grouped = (value) => value.toLocaleString("en");

/** A number of things: "1 layer", "3 layers". */
const counted = (number, thing) => `${grouped(number)} ${thing}${number === 1 ? "" : "s"}`;
